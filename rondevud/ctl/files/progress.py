"""How far files are: bars on a terminal, now and then a line elsewhere, or JSON. Methods may be called by any thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, Self

from rondevud.ctl.common import say
from rondevud.ctl.output import printable, show_json_line

LINE_EVERY = 5.0
"""Seconds between two lines about one file."""

JSON_EVERY = 1.0

Facts = dict[str, Any]
"""A line of JSON; `received`, `size`, `name` and `state` are also shown to people."""


class Display(Protocol):
    def show(self, key: bytes, facts: Facts) -> None:
        """`key` stands for the file: its state is one of those of the line of JSON."""

    def end(self, key: bytes, facts: Facts, line: str) -> None:
        """The file is done with; `line` is that for people, for standard output."""

    def tell(self, text: str) -> None:
        """A message, on standard error."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


def open_display(*, as_json: bool) -> Display:
    if as_json:
        return JsonLines()
    import sys  # noqa: PLC0415

    if sys.stderr.isatty():
        from rondevud.ctl.files.bars import Bars  # noqa: PLC0415 - rich takes its time

        return Bars()
    return Lines()


class _Plain:
    def __init__(self, every: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._every = every
        self._clock = clock
        self._shown_at: dict[bytes, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass

    def tell(self, text: str) -> None:
        say(text)

    def _is_due(self, key: bytes) -> bool:
        """Whether the last word about it was long enough ago; the first one is not said at once."""
        now = self._clock()
        if now - self._shown_at.setdefault(key, now) < self._every:
            return False
        self._shown_at[key] = now
        return True


class JsonLines(_Plain):
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(JSON_EVERY, clock)

    def show(self, key: bytes, facts: Facts) -> None:
        if self._is_due(key):
            show_json_line(facts)

    def end(self, key: bytes, facts: Facts, line: str) -> None:
        del line
        self._shown_at.pop(key, None)
        show_json_line(facts)


class Lines(_Plain):
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(LINE_EVERY, clock)

    def show(self, key: bytes, facts: Facts) -> None:
        if self._is_due(key):
            share = facts["received"] * 100 // facts["size"] if facts["size"] else 100
            amounts = f"{format_size(facts['received'])} of {format_size(facts['size'])}"
            say(f"{printable(facts['name'])}: {facts['state']}, {amounts} ({share} %)")

    def end(self, key: bytes, facts: Facts, line: str) -> None:
        del facts
        self._shown_at.pop(key, None)
        print(line, flush=True)


def format_size(size: int) -> str:
    """``12 B``, ``3.4 MiB``."""
    amount, units = float(size), iter(["B", "KiB", "MiB", "GiB", "TiB"])
    unit = next(units)
    for larger in units:
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
