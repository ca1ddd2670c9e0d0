"""The events of one run of the daemon: numbered, kept for a while, delivered synchronously and in order.

Numbers start at 1 with each start of the daemon and rise by one for every event, whoever listens. An event says what it
is about with up to three words, its service (``USER/FQN``), its connection id and its label; they stand in its data too.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

logger = logging.getLogger(__name__)

HISTORY = 4_096
"""Events kept for subscribers that come back and ask for what they missed."""


class Event(NamedTuple):
    number: int
    name: str
    data: dict[str, Any]
    """With ``service``, ``connection_id`` and ``label`` where they apply. Shared by all listeners: not to be changed."""
    at: float
    """When it was published, seconds since 1970."""


Callback: TypeAlias = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class Scope:
    """Which events somebody wants to hear: those that agree in every word that is not None.

    A scope with a label also covers what has no label, its connection's events; every scope covers the events of the
    daemon itself, which name neither a service nor a connection (``stopping`` concerns everybody).
    """

    service: str | None = None
    """``USER/FQN``; covers the service's connections and their channels, too."""
    connection_id: str | None = None
    label: str | None = None

    def covers(self, event: Event) -> bool:
        service = event.data.get("service")
        connection_id = event.data.get("connection_id")
        if service is None and connection_id is None:
            return True
        if self.service is not None and service != self.service:
            return False
        if self.connection_id is not None and connection_id != self.connection_id:
            return False
        return self.label is None or event.data.get("label") in {None, self.label}


class Replay(NamedTuple):
    events: list[Event]
    lost: int
    """Events of any scope since then that are kept no longer."""


class Subscription:
    """One listener. `close` ends it at once and may be repeated; the callback is never called after it."""

    def __init__(self, bus: EventBus, scope: Scope, callback: Callback) -> None:
        self.scope = scope
        self.first = bus.next
        self._bus = bus
        self._callback: Callback | None = callback

    def close(self) -> None:
        self._callback = None
        self._bus.forget(self)

    def deliver(self, event: Event) -> None:
        """Hand `event` to the callback if it is for it. A callback that raises is logged and disturbs nobody else."""
        if self._callback is None or event.number < self.first or not self.scope.covers(event):
            return
        try:
            self._callback(event)
        except Exception:
            logger.exception("A listener failed at event %d %s", event.number, event.name)


class EventBus:
    """Numbers events and hands them to their listeners, each event to all before the next one to any.

    An event published from within a listener is delivered when the one under way has reached everybody.
    """

    def __init__(self, history: int = HISTORY, clock: Callable[[], float] = time.time) -> None:
        self.next = 1
        """The number that the next event will get."""
        self._clock = clock
        self._history: deque[Event] = deque(maxlen=history)
        self._subscriptions: dict[int, Subscription] = {}
        self._undelivered: deque[Event] = deque()
        self._delivering = False

    def publish(
        self,
        name: str,
        data: Mapping[str, Any] | None = None,
        *,
        service: str | None = None,
        connection_id: str | None = None,
        label: str | None = None,
    ) -> int:
        """Give the event its number, which is returned, and call every listener that wants it.

        `data` must be something msgpack can carry; it is copied.
        """
        subject = {"service": service, "connection_id": connection_id, "label": label}
        about = {key: value for key, value in subject.items() if value is not None}
        event = Event(self.next, name, {**(data or {}), **about}, self._clock())
        self.next += 1
        self._history.append(event)
        self._undelivered.append(event)
        if not self._delivering:
            self._deliver_all()
        return event.number

    def aside(self, name: str, data: dict[str, Any]) -> Event:
        """An event for one listener alone, with the number of the last one published. Nobody else hears of it."""
        return Event(self.next - 1, name, data, self._clock())

    def subscribe(self, scope: Scope, callback: Callback) -> Subscription:
        """Call `callback` with every event from `next` on that `scope` covers, until the subscription is closed."""
        subscription = Subscription(self, scope, callback)
        self._subscriptions[id(subscription)] = subscription
        return subscription

    def replay(self, since: int, scope: Scope) -> Replay:
        """What is kept of the events numbered `since` and above."""
        oldest = self.next - len(self._history)
        events = [event for event in self._history if event.number >= since and scope.covers(event)]
        return Replay(events, max(0, oldest - max(since, 1)))

    def forget(self, subscription: Subscription) -> None:
        """End a subscription (what `Subscription.close` does)."""
        self._subscriptions.pop(id(subscription), None)

    def _deliver_all(self) -> None:
        self._delivering = True
        try:
            while self._undelivered:
                event = self._undelivered.popleft()
                for subscription in list(self._subscriptions.values()):
                    subscription.deliver(event)
        finally:
            self._delivering = False
