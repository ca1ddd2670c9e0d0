"""One label of all connections of a service, for observers: what ``rondevuctl tail service:USER/FQN`` sees."""

from __future__ import annotations

from typing import Any

from rondevud.durable.channel import DurableChannel
from rondevud.durable.receiver import MAX_CREDIT, Receiver, ReceiverListener
from rondevud.errors import RequestError
from rondevud.events import Event, Scope
from rondevud.holdings import Holdings


class ServiceChannel:
    """Can be observed and nothing else; also what comes to the service when it is withdrawn and exposed again."""

    state = "open"
    waiting = 0
    waiting_bytes = 0
    queue_bytes = 0
    max_message = 0
    acknowledges = None
    ephemeral = False

    def __init__(self, holdings: Holdings, service: str, label: str) -> None:
        """`service` is ``USER/FQN``."""
        self.label = label
        self.connection_id = ""
        self._holdings = holdings
        self._service = service

    def verdict(self, producer: bytes | None) -> dict[str, str]:
        """An observer of a service sees what comes from now on: there is nothing to resume."""
        return {"in": "new", "out": "new"}

    async def open_producer(self, name: bytes | None, listener: Any, takeover: bool) -> Any:
        raise RequestError("bad_target", "a whole service can only be observed")

    async def open_receiver(self, mode: str, listener: ReceiverListener, takeover: bool) -> ServiceObserver:
        if mode != "observe":
            raise RequestError("bad_target", "a whole service can only be observed")
        observer = ServiceObserver(self._holdings, self._service, self.label, listener)
        observer.open()
        return observer


class ServiceObserver:
    """An observer of every channel of that label, also of those that come later; one credit and one row of tags."""

    def __init__(self, holdings: Holdings, service: str, label: str, listener: ReceiverListener) -> None:
        self._holdings = holdings
        self._service = service
        self._label = label
        self._listener: ReceiverListener | None = listener
        self._receivers: dict[str, Receiver] = {}
        self._left = 0
        self._paused = False
        self._next_tag = 1
        self._subscription = holdings.events.subscribe(Scope(service=service), self._heard)

    def open(self) -> None:
        for session in self._holdings.sessions(f"service:{self._service}"):
            channel = session.channels.get(self._label)
            if channel is not None:
                self._watch(channel)

    def _watch(self, channel: DurableChannel) -> None:
        if channel.connection_id not in self._receivers:
            receiver = channel.inbox.observe(_Part(self, channel.connection_id))
            receiver.credit(MAX_CREDIT)
            self._receivers[channel.connection_id] = receiver

    def _heard(self, event: Event) -> None:
        connection_id = event.data.get("connection_id")
        found = self._holdings.visit(connection_id) if connection_id else None
        channel = found[1].session.channels.get(self._label) if found is not None else None
        if channel is not None and event.data.get("label") == self._label:
            self._watch(channel)

    def deliver(self, connection_id: str, rows: list[tuple[Any, ...]]) -> None:
        if self._listener is None:
            return
        ready = 0 if self._paused else min(self._left, len(rows))
        if ready:
            tag, self._next_tag = self._next_tag, self._next_tag + ready
            self._left -= ready
            self._listener.messages(tag, [(*row, connection_id) for row in rows[:ready]])
        if ready < len(rows) and self._listener is not None:
            self._listener.missed(len(rows) - ready)

    def deliver_gap(self, connection_id: str, gap: dict[str, Any]) -> None:
        if self._listener is None:
            return
        if self._paused or not self._left:
            self._listener.missed(1)
            return
        tag, self._next_tag = self._next_tag, self._next_tag + 1
        self._left -= 1
        self._listener.gap(tag, {**gap, "connection_id": connection_id})

    def missed(self, count: int) -> None:
        if self._listener is not None:
            self._listener.missed(count)

    def gone(self, connection_id: str) -> None:
        self._receivers.pop(connection_id, None)

    def credit(self, n: int) -> None:
        self._left = min(MAX_CREDIT, self._left + n)

    def ack(self, upto_tag: int) -> None:
        """Observers acknowledge nothing."""

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False

    def close(self) -> None:
        self._listener = None
        self._subscription.close()
        for receiver in list(self._receivers.values()):
            receiver.close()
        self._receivers.clear()


class _Part:
    """The listener at one of the channels."""

    def __init__(self, observer: ServiceObserver, connection_id: str) -> None:
        self._observer = observer
        self._connection_id = connection_id

    def messages(self, tag: int, rows: list[tuple[Any, ...]]) -> None:
        self._observer.deliver(self._connection_id, rows)

    def gap(self, tag: int, gap: dict[str, Any]) -> None:
        self._observer.deliver_gap(self._connection_id, gap)

    def missed(self, count: int) -> None:
        self._observer.missed(count)

    def detached(self, reason: str) -> None:
        self._observer.gone(self._connection_id)
