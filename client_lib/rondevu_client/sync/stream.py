"""Events of the daemon as something to iterate over, with calls that block."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rondevu_client import stream as aio
from rondevu_client.errors import Detached
from rondevu_client.stream import Event
from rondevu_client.sync.background import Background
from rondevu_client.sync.facade import Facade


class EventStream(Facade):
    """Made by `Daemon.subscribe`; see `rondevu_client.stream.EventStream`. For one thread."""

    def __init__(self, background: Background, inner: aio.EventStream) -> None:
        super().__init__(background)
        self._inner = inner

    @property
    def connections(self) -> list[dict[str, Any]]:
        """What was there at event number `next`; of the last subscription."""
        return self._inner.connections

    @property
    def next(self) -> int:
        """Number of the first event after `connections`."""
        return self._inner.next

    @property
    def overrun(self) -> int:
        """Events that were dropped because nobody asked for them."""
        return self._inner.overrun

    def receive(self, timeout: float | None = None) -> Event:
        """The next event. Raises `TimeoutError`, and `Detached` at the end."""
        event = self._next(timeout)
        if event is None:
            raise Detached("detached")
        return event

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        """The next event. Raises `Detached` when the daemon ended the subscription."""
        event = self._next(None)
        if event is None:
            raise StopIteration
        return event

    def _next(self, timeout: float | None) -> Event | None:
        return self._run(timeout, self._take)

    async def _take(self) -> Event | None:
        return await anext(self._inner, None)

    def close(self, timeout: float | None = None) -> None:
        """End the subscription. Idempotent."""
        self._run(timeout, self._inner.close)
