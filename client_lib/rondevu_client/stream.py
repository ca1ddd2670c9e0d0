"""Events of the daemon as something to iterate over."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, NamedTuple

from rondevu_client.errors import Detached, RequestRefused
from rondevu_client.messages import EVENT
from rondevu_client.wire import PASSING, Wire

if TYPE_CHECKING:
    from rondevu_client.client import Daemon

KEPT = 10_000
"""Events kept for a program that is slower than they come; older ones give way and are counted in `overrun`."""


class Event(NamedTuple):
    number: int
    """Rises by one within one start of the daemon."""
    name: str
    data: dict[str, Any]
    at: float | None = None
    """When it happened, seconds since 1970; None where that is not known."""


class EventStream:
    """Made by `Daemon.subscribe`; ends when the daemon object is closed or `close` is called.

    Over a broken socket it goes on where it was. An event ``overrun {count, from, to}`` says which numbers are missing in
    its place, and how many events of any target those were. Where nobody knows how many, as the daemon was started anew,
    `count` and `to` are None; numbers begin at 1 then, and what the new one has is told from its beginning.
    """

    def __init__(self, daemon: Daemon, target: str | None, since: int | None, instance: str = "") -> None:
        """`instance`: whose number `since` is, as `Daemon.instance` was then; empty: that of the present daemon."""
        self._daemon = daemon
        self._target = target
        self._since = since
        """Number of the event to go on with."""
        self._instance = instance
        self._wire: Wire | None = None
        self._subscription = 0
        self._events: deque[Event] = deque(maxlen=KEPT)
        self._change = asyncio.Event()
        self._end_reason: str | None = None
        self.connections: list[dict[str, Any]] = []
        """What was there at event number `next`; of the last subscription."""
        self.next = 0
        self.overrun = 0
        """Events that were dropped because nobody asked for them; the stream tells of them, too."""
        self._dropped = (0, 0, 0)
        """Of those that are not told yet: count, first and last number."""

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        """The next event. Raises `Detached` when the daemon ended the subscription."""
        while not self._events:
            if self._end_reason == "detached":
                raise StopAsyncIteration
            if self._end_reason is not None:
                raise Detached(self._end_reason)
            self._change.clear()
            await self._change.wait()
        count, first, last = self._dropped
        if count:
            self._dropped = (0, 0, 0)
            return Event(last, "overrun", {"count": count, "from": first, "to": last})
        return self._events.popleft()

    async def close(self) -> None:
        """End the subscription. Idempotent."""
        wire, self._wire = self._wire, None
        self._end("detached")
        if wire is not None and not wire.lost:
            wire.sinks.pop(self._subscription, None)
            timeout = self._daemon.request_timeout
            await wire.request("unsubscribe", {"subscription": self._subscription}, timeout=timeout)

    # --- for the daemon object ---------------------------------------------------------------------------------

    async def _declare(self, wire: Wire) -> None:
        await wire.request(
            "subscribe",
            {"target": self._target, "since": 1 if self._is_of_another() and self._since is not None else self._since},
            timeout=self._daemon.request_timeout,
            on_result=lambda answer: self._begin(wire, answer),
            undo=lambda answer: wire.send_unsubscribe(answer["subscription"]),
        )

    async def _revive(self, wire: Wire) -> None:
        try:
            await self._declare(wire)
        except RequestRefused as error:
            if error.code in PASSING:
                raise
            self._end(error.code)

    def _is_of_another(self) -> bool:
        """Whether the number to go on with was counted by another start of the daemon."""
        return self._instance not in {"", self._daemon.instance}

    def _begin(self, wire: Wire, answer: dict[str, Any]) -> None:
        self._wire, self._subscription = wire, answer["subscription"]
        self.connections, self.next = answer["connections"], answer["next"]
        if self._is_of_another():
            self._put(Event(0, "overrun", {"count": None, "from": self._since or 1, "to": None}))
            self._since = 1
        elif self._since is None:
            self._since = self.next
        self._instance = self._daemon.instance
        wire.sinks[self._subscription] = self._take

    def _give_back(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.sinks.pop(self._subscription, None)
            wire.send_unsubscribe(self._subscription)
        self._end("detached")

    def _away(self) -> None:
        self._wire = None

    def _end(self, reason: str, error: Exception | None = None) -> None:
        del error
        self._end_reason = self._end_reason or reason
        self._daemon._forget(self)
        self._change.set()

    def _take(self, method: str, params: list[Any]) -> None:
        if method != EVENT:
            return
        event = Event(params[1], params[2], params[3], params[4] if len(params) > 4 else None)
        if event.name != "overrun":  # before a replay its number is not below those that follow
            self._since = event.number + 1
        self._put(event)

    def _put(self, event: Event) -> None:
        if len(self._events) == KEPT:
            self.overrun += 1
            lost, (count, first, _) = self._events[0], self._dropped
            self._dropped = (count + 1, first or lost.number, max(lost.number, self._dropped[2]))
        self._events.append(event)
        self._change.set()
