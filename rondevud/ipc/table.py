"""The table of methods: names, parameters, handlers. What a handler gets has been checked against it.

A handler is a function of the session and a map with every parameter of the method, those not given with their default.
It returns the answer, or an `Answer` where something must follow it on the socket at once, or a coroutine for either.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from rondevu_client.protocol import shown
from rondevud.errors import RequestError

if TYPE_CHECKING:
    from rondevud.ipc.session import Session

MAX_TEXT = 1_024
"""Bytes of a text parameter: names, FQNs, labels."""


class Answer(NamedTuple):
    """An answer and what is done right behind it, before anything else happens."""

    result: dict[str, Any]
    then: Callable[[], None]


Result: TypeAlias = dict[str, Any] | list[dict[str, Any]] | Answer
Handler: TypeAlias = "Callable[[Session, dict[str, Any]], Result | Awaitable[Result]]"
Check: TypeAlias = Callable[[Any], str | None]
"""Says what a value must be, or None when it is that."""


@dataclass(frozen=True, slots=True)
class Parameter:
    check: Check
    required: bool = False
    default: Any = None


@dataclass(frozen=True, slots=True)
class Method:
    name: str
    help: str
    parameters: dict[str, Parameter]
    handler: Handler


class Table:
    """Methods by name."""

    def __init__(self) -> None:
        self.methods: dict[str, Method] = {}

    def method(self, name: str, help_line: str, /, **parameters: Parameter) -> Callable[[Handler], Handler]:
        """Register the decorated handler."""

        def register(handler: Handler) -> Handler:
            self.methods[name] = Method(name, help_line, parameters, handler)
            return handler

        return register

    def find(self, name: str) -> Method:
        method = self.methods.get(name)
        if method is None:
            raise RequestError("unknown_method", f"there is no method {name[:64]!r}", {"methods": sorted(self.methods)})
        return method


def check_params(method: Method, params: list[Any]) -> dict[str, Any]:
    """Every parameter of the method; raises ``bad_params`` naming method, parameter and what was expected.

    What is unknown in a ``hello`` is ignored: it was said before anybody knew which version this daemon is.
    """
    if len(params) != 1 or type(params[0]) is not dict:
        raise RequestError("bad_params", f"{method.name} takes one map of parameters")
    given: dict[Any, Any] = params[0]
    unknown = [key for key in given if key not in method.parameters]
    if unknown and method.name != "hello":
        known = ", ".join(method.parameters) or "none"
        name = repr(unknown[0][:64]) if type(unknown[0]) is str else shown(unknown[0])
        raise RequestError("bad_params", f"{method.name} has no parameter {name}; it has: {known}")
    return {key: _check_one(method, key, parameter, given) for key, parameter in method.parameters.items()}


def _check_one(method: Method, key: str, parameter: Parameter, given: dict[Any, Any]) -> Any:
    value = given.get(key)
    if value is None:
        if parameter.required:
            raise RequestError("bad_params", f"{method.name} lacks the parameter {key}", {"parameter": key})
        return parameter.default
    expected = parameter.check(value)
    if expected is not None:
        message = f"{method.name}: {key} must be {expected}, not {shown(value)}"
        raise RequestError("bad_params", message, {"parameter": key})
    return value


# --- kinds of parameters -------------------------------------------------------------------------------------------


def text(*, required: bool = False, default: str | None = None) -> Parameter:
    """Text of 1 to `MAX_TEXT` bytes."""
    return Parameter(lambda v: _unless(_is_text(v), f"text of 1 to {MAX_TEXT} bytes"), required, default)


def choice(*words: str, required: bool = False, default: str | None = None) -> Parameter:
    expected = "one of " + ", ".join(words)
    return Parameter(lambda v: _unless(type(v) is str and v in words, expected), required, default)


def flag(*, default: bool = False) -> Parameter:
    return Parameter(lambda v: _unless(type(v) is bool, "true or false"), default=default)


def integer(low: int, high: int, *, required: bool = False, default: int | None = None) -> Parameter:
    expected = f"an integer from {low} to {high}"
    return Parameter(lambda v: _unless(type(v) is int and low <= v <= high, expected), required, default)


def seconds() -> Parameter:
    """A finite number that is not negative."""
    expected = "a number of seconds, 0 or more"
    return Parameter(lambda v: _unless(type(v) in {int, float} and math.isfinite(v) and v >= 0, expected))


def binary(low: int, high: int) -> Parameter:
    expected = f"binary of {low} to {high} bytes"
    return Parameter(lambda v: _unless(type(v) is bytes and low <= len(v) <= high, expected))


def mapping() -> Parameter:
    """A map with text keys; what is in it is for the daemon's other parts to judge."""
    return Parameter(lambda v: _unless(type(v) is dict and all(type(key) is str for key in v), "a map with text keys"))


def integers() -> Parameter:
    expected = "an array of integers"
    return Parameter(
        lambda v: _unless(type(v) is list and all(type(item) is int for item in v), expected), required=True
    )


def _is_text(value: Any) -> bool:
    return type(value) is str and 0 < len(value.encode()) <= MAX_TEXT


def _unless(fine: bool, expected: str) -> str | None:
    return None if fine else expected
