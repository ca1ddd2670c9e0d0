"""What the durable layer needs of the parts around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, TypeVar

from rondevud.durable.settings import ChannelSettings
from rondevud.errors import StoreError, StoreFailed
from rondevud.records import Operation, Stamp

Result = TypeVar("Result")


class Store(Protocol):
    """Executes operations in order, each atomically, and answers in that order after the commit."""

    @property
    def failing(self) -> StoreFailed | None:
        """Why commits fail at present; None while they do not."""

    def submit(self, operation: Operation[Result], done: Callable[[Result | StoreError], None] | None = None) -> None:
        """Queue an operation; `done` is called with its result, or with the error as a value."""

    async def execute(self, operation: Operation[Result]) -> Result:
        """Submit and wait. Raises `StoreError`."""


class Clock(Protocol):
    """The clocks of the daemon (module `rondevud.clock`)."""

    def monotonic(self) -> float: ...

    def wall(self) -> float: ...

    def wall_microseconds(self) -> int: ...

    def stamp(self) -> Stamp: ...


class Publish(Protocol):
    """Publishes an event of the daemon."""

    def __call__(
        self,
        name: str,
        data: dict[str, Any] | None = None,
        *,
        service: str | None = None,
        connection_id: str | None = None,
        label: str | None = None,
    ) -> object: ...


Configure: TypeAlias = Callable[[str, dict[str, Any] | None, bool], ChannelSettings]
"""Resolves what a user said about the channel of a label (None: nothing) to its settings, those towards a plain peer if the
last argument is true; raises `RequestError`."""
