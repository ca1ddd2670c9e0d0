"""A program's end of one channel, with calls that block."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Iterable, Iterator

from rondevu_client import channel as aio
from rondevu_client import inbox as aio_inbox
from rondevu_client.errors import Detached
from rondevu_client.outbox import Payload
from rondevu_client.sync.background import Background
from rondevu_client.sync.facade import EmitterFacade, Listener, Relay


class Message:
    """One message received; its attributes are those of `rondevu_client.Message`."""

    __slots__ = ("_background", "_inner", "attempt", "connection_id", "data", "enqueued_at", "id")

    def __init__(self, background: Background, inner: aio_inbox.Message) -> None:
        self._background = background
        self._inner = inner
        self.data: Payload = inner.data
        self.id: str = inner.id
        self.enqueued_at: float = inner.enqueued_at
        self.attempt: int = inner.attempt
        self.connection_id: str = inner.connection_id

    def __repr__(self) -> str:
        return repr(self._inner)

    @property
    def redelivered(self) -> bool:
        """Whether it may have been delivered before."""
        return self._inner.redelivered

    def ack(self) -> None:
        """Done with this message and all before it on its channel. Nothing happens if the socket broke since."""
        self._background.run(None, self._inner.ack)


class MessageRelay(Relay):
    """The same for messages, which are acknowledged when the listener has returned."""

    def __init__(self, background: Background, listener: Listener) -> None:
        super().__init__(background.listeners, listener)
        self._background = background

    def __call__(self, message: aio_inbox.Message) -> Awaitable[object]:
        return self._listeners.call(self.listener, Message(self._background, message))


class Channel(EmitterFacade):
    """Made by `Daemon.attach` and `Connection.create_channel`, and given to handlers; see `rondevu_client.Channel`.

    Several threads may receive on one channel: each message goes to one of them. It is acknowledged when its thread asks
    for the next one and no other thread still has an older one.
    """

    def __init__(self, background: Background, inner: aio.Channel) -> None:
        super().__init__(background)
        self._inner = self._emitter = inner
        self._unseen: dict[threading.Thread, list[aio_inbox.Message]] = {}
        """What was fetched for a thread whose wait was interrupted before it had it; nothing is the end."""

    # --- sending -----------------------------------------------------------------------------------------------

    def send(self, data: Payload, *, max_age: float | None = None, timeout: float | None = None) -> int:
        """Send text or binary; returns its number once the daemon has stored it.

        Raises `MessageRejected`; after `TimeoutError`, `Detached` and `ConnectionLost` nobody knows whether it was stored.
        `max_age` (seconds) can only shorten the channel's.
        """
        return self._run(timeout, self._inner.send, data, max_age=max_age)

    def send_many(self, data: Iterable[Payload], *, max_age: float | None = None, timeout: float | None = None) -> int:
        """Send several in this order; returns the number of the last one once the daemon has stored all.

        Raises as `send` does; of those that the daemon rejects the first one is told when all are decided.
        """
        return self._run(timeout, self._inner.send_many, data, max_age=max_age)

    def flush(self, timeout: float | None = None) -> None:
        """Wait until the peer's store has everything sent so far through this object.

        Raises `MessagesRemoved`, `NotAcknowledged`, `Detached`, `ConnectionLost`.
        """
        self._run(timeout, self._inner.flush)

    def wait_sent(self, timeout: float | None = None) -> None:
        """Wait until everything sent so far through this object has been handed to a data channel.

        Raises `MessagesRemoved`, `Detached`, `ConnectionLost`; `ValueError` when it was attached without `confirm_sent`.
        """
        self._run(timeout, self._inner.wait_sent)

    # --- receiving ---------------------------------------------------------------------------------------------

    def receive(self, timeout: float | None = None) -> Message:
        """The next message; asking for it acknowledges the one that this thread got before (unless `auto_ack` is false).

        Raises `TimeoutError`, with which nothing is lost, and `Detached` at the end.
        """
        return self.receive_many(1, timeout)[0]

    def receive_many(self, most: int = 256, timeout: float | None = None) -> list[Message]:
        """What has come, `most` messages of it; waits for the first one. Asking acknowledges what this thread got before.

        Raises as `receive` does, and `ValueError` for less than one message.
        """
        if most < 1:
            raise ValueError("one message at least")
        messages = self._next(timeout, most)
        if not messages:
            raise Detached(self.end_reason or "detached")
        return messages

    def __iter__(self) -> Iterator[Message]:
        return self

    def __next__(self) -> Message:
        """As `receive`. Ends when the channel was closed or detached here; raises `Detached` when it was taken away."""
        messages = self._next(None, 1)
        if not messages:
            raise StopIteration
        return messages[0]

    def _next(self, timeout: float | None, most: int) -> list[Message]:
        """`most` messages; none at the end."""
        thread = threading.current_thread()
        self._run(timeout, self._fetch, thread, most)
        fetched = self._unseen.pop(thread)
        if fetched[most:]:
            self._unseen[thread] = fetched[most:]
        return [Message(self._background, message) for message in fetched[:most]]

    async def _fetch(self, thread: threading.Thread, most: int) -> None:
        if thread not in self._unseen:
            first = await self._inner._take_next(thread)
            self._unseen[thread] = [] if first is None else [first, *self._inner._inbox.take_messages(most - 1)]

    # --- state -------------------------------------------------------------------------------------------------

    @property
    def label(self) -> str:
        """Its name, the same on both sides."""
        return self._inner.label

    @property
    def mode(self) -> str:
        """As it was attached."""
        return self._inner.mode

    @property
    def connection_id(self) -> str:
        """Of the connection it belongs to."""
        return self._inner.connection_id

    @property
    def verdict(self) -> dict[str, str]:
        """``in`` and ``out``, each ``new``, ``resumed`` or ``gap``; of the last attach."""
        return self._inner.verdict

    @property
    def waiting(self) -> int:
        """Messages that waited when it was attached."""
        return self._inner.waiting

    @property
    def max_message(self) -> int:
        """Bytes of the largest message that can be sent."""
        return self._inner.max_message

    @property
    def acknowledges(self) -> bool | None:
        """Whether the peer acknowledges; None before the first contact."""
        return self._inner.acknowledges

    @property
    def last_seq(self) -> int:
        """The producer's last number that the daemon had decided at the last attach."""
        return self._inner.last_seq

    @property
    def end_reason(self) -> str | None:
        """Why the channel is attached no longer; None while it is."""
        return self._inner.end_reason

    @property
    def attached(self) -> bool:
        """Whether it is attached now: it has not ended, and the daemon is there."""
        return self._inner.attached

    @property
    def ready_state(self) -> str:
        """As `rondevu_client.Channel.ready_state`."""
        return self._background.read(lambda: self._inner.ready_state)

    @property
    def queue_size(self) -> int:
        """Messages sent through this object that the peer has not acknowledged; `Daemon.queue` tells the daemon's."""
        return self._background.read(lambda: self._inner.queue_size)

    @property
    def buffered_amount(self) -> int:
        """Bytes sent through this object that the daemon has not decided."""
        return self._background.read(lambda: self._inner.buffered_amount)

    @property
    def buffered_amount_low_threshold(self) -> int:
        """As `rondevu_client.Channel.buffered_amount_low_threshold`."""
        return self._inner.buffered_amount_low_threshold

    @buffered_amount_low_threshold.setter
    def buffered_amount_low_threshold(self, size: int) -> None:
        self._background.read(lambda: setattr(self._inner, "buffered_amount_low_threshold", size))

    # --- ending ------------------------------------------------------------------------------------------------

    def detach(self, timeout: float | None = None) -> None:
        """Give the channel back: what was not acknowledged is delivered again to whom attaches next. Idempotent."""
        self._run(timeout, self._inner.detach)

    def close(self, timeout: float | None = None) -> None:
        """End the channel for both sides; what is queued is still delivered. Also detaches."""
        self._run(timeout, self._inner.close)

    def wait_detached(self, timeout: float | None = None) -> str:
        """Wait until the channel is attached no longer; why."""
        return self._run(timeout, self._inner.wait_detached)

    def _relay(self, event: str, listener: Listener) -> Relay:
        return MessageRelay(self._background, listener) if event == "message" else super()._relay(event, listener)
