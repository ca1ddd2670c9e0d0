"""A program's end of one channel.

Attached, or away while the daemon's socket is gone (then sends wait and nothing arrives), or ended, for a reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Any

from rondevu_client import messages
from rondevu_client.emitter import Emitter, Listener
from rondevu_client.errors import ConnectionLost, Detached, MessageRejected, NotAcknowledged, RequestRefused
from rondevu_client.inbox import Inbox, Message
from rondevu_client.outbox import Entry, Outbox, Payload, SendFrame
from rondevu_client.wire import PASSING, Wire

if TYPE_CHECKING:
    from rondevu_client.client import Daemon

logger = logging.getLogger(__name__)

RETRY_FIRST = 1.0
"""Seconds until a handler or message listener that raised is tried again; doubles."""

RETRY_LAST = 30.0

POLL_FIRST = 0.05
"""Seconds between looks at the queue of a peer that acknowledges nothing, in `flush`; doubles."""

POLL_LAST = 1.0

LOOK_AGAIN = {"overrun", "close", "closed"}
"""Events after which the state of the channel has to be asked for."""

STOLEN_TRIES = 20
"""How often attaching again is tried while the daemon still sees the old socket's handle."""

STOLEN_PAUSE = 0.1


class Channel(Emitter):
    """Made by `Daemon.attach` and `Connection.create_channel`.

    Events: ``message`` (its listeners get a `Message`), ``gap`` (in its place among what is received), those of the channel
    (``open``, ``close``, ``error``, ``buffered_amount_low``, ``queue_overflow``, ``message_expired``, ``purged``,
    ``resumed``, ``options_differ``, ``channel``), and those of its connection and of the daemon; each with its data.
    """

    def __init__(self, daemon: Daemon, request: dict[str, Any], *, credit: int, auto_ack: bool) -> None:
        super().__init__(daemon._spawn)
        self._daemon = daemon
        self._request = request
        self._credit = credit
        self._auto_ack = auto_ack
        self.label: str = request["label"]
        self.mode: str = request["mode"]
        self.connection_id = ""
        self.verdict: dict[str, str] = {}
        """``in`` and ``out``, each ``new``, ``resumed`` or ``gap``; of the last attach."""
        self.waiting = 0
        """Messages that waited when it was attached."""
        self.max_message = 0
        self.acknowledges: bool | None = None
        self.last_seq = 0
        """The producer's last number that the daemon had decided at the last attach: where an application with an outbox
        of its own, and a fixed `producer`, goes on."""
        self.end_reason: str | None = None
        """Why the channel is attached no longer; None while it is."""
        self._threshold: int | None = None
        """Of `buffered_amount_low`; None while nobody wants to hear it."""
        self._outbox = Outbox()
        self._wire: Wire | None = None
        self._handle = 0
        self.generation = 0
        """How often it has been attached."""
        self._state = "connecting"
        """As the daemon last said."""
        self._looking = False
        """Whether the daemon is being asked for the state, because events were missed or did not say it."""
        self._inbox = Inbox(credit, self._schedule)
        self._scheduled = False
        self._waiters: set[asyncio.Future[None]] = set()
        self._pump: asyncio.Task[None] | None = None

    # --- sending -----------------------------------------------------------------------------------------------

    async def send(self, data: Payload, *, max_age: float | None = None) -> int:
        """Send text or binary; returns its number once the daemon has stored it.

        Waits while the window is full and while the daemon is away. Raises `MessageRejected`, and `Detached` or
        `ConnectionLost` when nobody will say what became of it. `max_age` (seconds) can only shorten the channel's.
        """
        return await self._send([data], [_size_of(data)], max_age)

    async def send_many(self, data: Iterable[Payload], *, max_age: float | None = None) -> int:
        """Send several in this order, with none of another task between them; returns the number of the last one once the
        daemon has stored all. They cost less than as many calls of `send`.

        Raises as `send` does; nothing is sent when one of them cannot be, and of those that the daemon rejects the first
        one is told when all are decided.
        """
        payloads = list(data)
        if not payloads and self.mode != "observe":
            return self._outbox.last_given
        return await self._send(payloads, _sizes_of(payloads), max_age)

    async def _send(self, payloads: list[Payload], sizes: list[int], max_age: float | None) -> int:
        if self.mode == "observe":
            raise ValueError("a channel that is only observed cannot send")
        self._check_usable()
        if (largest := max(sizes)) > self.max_message:
            raise MessageRejected(0, "too_large", f"{largest} bytes are more than max_message, {self.max_message}")
        entry = Entry(payloads, sizes, max_age, asyncio.get_running_loop().create_future())
        self._outbox.put(entry)
        self._schedule()
        return await entry.future

    async def flush(self) -> None:
        """Wait until the peer's store has everything sent so far through this object.

        Raises `MessagesRemoved` when some of it was removed, `NotAcknowledged` (when everything has left the daemon) for
        a peer that acknowledges nothing, `Detached` or `ConnectionLost` when nobody can tell any more.
        """
        upto = await self._all_decided()
        while self.acknowledges is not False and not self._outbox.is_acknowledged(upto):
            self._check_usable()
            await self._change()
        if self.acknowledges is False:
            await self._wait_until_sent(upto)
        removed = self._outbox.take_removed()
        if removed is not None:
            raise removed
        if self.acknowledges is False and self._outbox.last_accepted:
            raise NotAcknowledged(f"the peer of {self.label!r} acknowledges nothing; everything was sent")

    async def wait_sent(self) -> None:
        """Wait until everything sent so far through this object has been handed to a data channel.

        Raises `MessagesRemoved`, `Detached`, `ConnectionLost`; `ValueError` when it was attached without `confirm_sent`.
        """
        if not self._request["confirm_sent"]:
            raise ValueError("attach with confirm_sent=True to wait until messages are sent")
        upto = await self._all_decided()
        while not self._outbox.is_sent(upto):
            self._check_usable()
            await self._change()
        removed = self._outbox.take_removed()
        if removed is not None:
            raise removed

    async def _all_decided(self) -> int:
        """Wait until the daemon has accepted or rejected everything sent so far; its highest number."""
        undecided = self._outbox.futures()
        if undecided:
            await asyncio.wait(undecided)
        upto = self._outbox.last_given
        while not self._outbox.is_decided(upto):
            self._check_usable()
            await self._change()
        return upto

    @property
    def ready_state(self) -> str:
        """``connecting``, ``open``, ``closing`` or ``closed``, like an RTCDataChannel's. Sending works in the first two."""
        if self.end_reason is not None:
            return "closed"
        return self._state if self._wire is not None else "connecting"

    @property
    def queue_size(self) -> int:
        """Messages sent through this object that the peer has not acknowledged; `Daemon.queue` tells the daemon's.

        Towards a peer that acknowledges nothing, those not handed to a data channel, if attached with `confirm_sent`; else
        they are counted until `flush`.
        """
        told = self.acknowledges is False and self._request["confirm_sent"]
        return self._outbox.undecided + (self._outbox.unsent if told else self._outbox.unacknowledged)

    @property
    def buffered_amount(self) -> int:
        """Bytes sent through this object that the daemon has not decided."""
        return self._outbox.undecided_bytes

    @property
    def buffered_amount_low_threshold(self) -> int:
        """Event ``buffered_amount_low`` comes when what the daemon has under way on this channel falls to so many bytes.

        Under way is what was sent and not acknowledged; towards a plain peer, what is in the engine's buffer. 0 unless it
        is set. Raises `ValueError` when it is set to less, or on a channel that is only observed.
        """
        return self._threshold or 0

    @buffered_amount_low_threshold.setter
    def buffered_amount_low_threshold(self, size: int) -> None:
        if size < 0 or self.mode == "observe":
            raise ValueError("a threshold is 0 bytes or more, of a channel that is not only observed")
        self._threshold = size
        if self._wire is not None:
            self._wire.send_threshold(self._handle, size)

    # --- receiving ---------------------------------------------------------------------------------------------

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        """The next message. With `auto_ack` the one that this task got before is acknowledged by asking.

        Several tasks may receive on one channel: each message goes to one of them, and none is acknowledged while a task
        still has an older one. A task that has ended has nothing any more.

        Ends when the channel was closed or detached here; raises `Detached` when it was taken away.
        """
        message = await self._take_next(asyncio.current_task())
        if message is None:
            raise StopAsyncIteration
        return message

    async def receive(self, timeout: float | None = None) -> Message:
        """As asking the iterator for one message, for at most `timeout` seconds.

        Raises `TimeoutError`, with which nothing is lost, and `Detached` at the end.
        """
        async with asyncio.timeout(timeout):
            try:
                return await anext(self)
            except StopAsyncIteration:
                raise Detached(self.end_reason or "detached") from None

    async def receive_many(self, most: int = 256, timeout: float | None = None) -> list[Message]:
        """What has come, `most` messages of it; waits for the first one as `receive` does. They cost less than one by one.

        With `auto_ack` those that this task got before are acknowledged by asking. A gap ends what is returned, and is told
        when the next ones are asked for. Raises `TimeoutError`, with which nothing is lost, `Detached` at the end, and
        `ValueError` for less than one message.
        """
        if most < 1:
            raise ValueError("one message at least")
        first = await self.receive(timeout)
        return [first, *self._inbox.take_messages(most - 1)]

    def on(self, event: str, listener: Listener) -> None:
        """As `Emitter.on`. A listener of ``message`` gets every message; it is acknowledged when all have returned.

        One that raises: event ``error``, and the message comes again after `RETRY_FIRST` seconds, doubling.
        """
        super().on(event, listener)
        self._serve_listener(event)

    def once(self, event: str, listener: Listener) -> None:
        """As `Emitter.once`. A listener of ``message`` gets the next message; the others wait."""
        super().once(event, listener)
        self._serve_listener(event)

    # --- ending ------------------------------------------------------------------------------------------------

    async def detach(self) -> None:
        """Give the channel back: what was not acknowledged is delivered again to whom attaches next. Idempotent."""
        try:
            await self._release()
        finally:
            self._end("detached")

    async def close(self) -> None:
        """End the channel for both sides; what is queued is still delivered. Also detaches."""
        await self._daemon.call("close_channel", {"target": self.connection_id, "label": self.label})
        await self.detach()

    async def wait_detached(self) -> str:
        """Wait until the channel is attached no longer; why."""
        while self.end_reason is None:
            await self._change()
        return self.end_reason

    @property
    def attached(self) -> bool:
        """Whether it is attached now: it has not ended, and the daemon is there."""
        return self._wire is not None

    # --- attaching, for the daemon object ----------------------------------------------------------------------

    async def _attach(self, wire: Wire, *, takeover: bool = False) -> None:
        """Attach on `wire`. Raises what `Wire.request` raises."""
        await wire.request(
            "attach",
            {**self._request, "credit": self._credit or None, "takeover": takeover},
            timeout=self._daemon.request_timeout,
            on_result=lambda answer: self._begin(wire, answer),
            undo=lambda answer: wire.send_detach(answer["handle"]),
        )

    async def _revive(self, wire: Wire) -> None:
        """Attach again on a new socket; ends the channel when the daemon refuses for good.

        Raises `RequestRefused` with a code of `PASSING`, `ConnectionLost`, `TimeoutError`.
        """
        for attempt in range(1, STOLEN_TRIES + 1):
            if self.end_reason is not None or self._wire is wire:
                return
            try:
                await self._attach(wire)
            except RequestRefused as error:
                if error.code in PASSING:
                    raise
                stolen = error.code in {"in_use", "producer_in_use"} and self._daemon._same_instance
                if not stolen or attempt == STOLEN_TRIES:
                    logger.warning(
                        "Channel %r of %s cannot be attached again: %s", self.label, self.connection_id, error
                    )
                    self._end(error.code)
                    return
                await asyncio.sleep(STOLEN_PAUSE)
            else:
                return

    def _begin(self, wire: Wire, answer: dict[str, Any]) -> None:
        """The attach was answered; called before anything behind the answer is looked at."""
        self.connection_id = answer["connection_id"]
        if self.connection_id and not answer.get("ephemeral", False):
            # A name may mean another connection when the daemon is back; only ephemeral ones have no other way.
            self._request["target"] = self.connection_id
        self.verdict = answer["verdict"]
        self.waiting = answer["waiting"]
        self.max_message = answer["max_message"]
        self.acknowledges = answer["acknowledges"]
        self.last_seq = answer["last_seq"]
        self._state = answer["state"]
        if self.end_reason is not None:
            wire.send_detach(answer["handle"])
            return
        self._inbox = Inbox(self._credit, self._schedule)
        self.generation += 1
        self._wire, self._handle = wire, answer["handle"]
        wire.sinks[self._handle] = self._take
        if self._threshold is not None:
            wire.send_threshold(self._handle, self._threshold)
        rejected = dict(answer["rejected"])
        again = self._outbox.begin(
            answer["last_seq"], rejected, answer["removed"], answer["acknowledged_seq"], answer["send_window"]
        )
        self._send_frames(again)
        self._schedule()
        self._wake()

    def _give_back(self) -> None:
        wire, handle = self._wire, self._handle
        self._end("detached")
        if wire is not None:
            wire.send_detach(handle)

    def _away(self) -> None:
        """The socket is gone; what was received and not acknowledged will come again."""
        self._wire = None
        self._inbox.clear()
        self._wake()

    def _end(self, reason: str, error: Exception | None = None) -> None:
        if self.end_reason is not None:
            return
        self.end_reason = reason
        if self._wire is not None:
            self._wire.sinks.pop(self._handle, None)
            if reason == "detached":
                self._send_acks(self._wire)
        self._wire = None
        self._daemon._forget(self)
        self._outbox.fail(error or Detached(reason))
        if reason != "closed":
            self._inbox.clear()
        self._wake()

    async def _release(self) -> None:
        """Give the handle back, without ending this object."""
        wire, handle, self._wire = self._wire, self._handle, None
        if wire is not None:
            self._send_acks(wire)
        self._inbox.clear()
        if wire is None or wire.lost:
            return
        wire.sinks.pop(handle, None)
        with contextlib.suppress(ConnectionLost):
            await wire.request("detach", {"handle": handle}, timeout=self._daemon.request_timeout)

    # --- what the daemon sends ---------------------------------------------------------------------------------

    def _take(self, method: str, params: list[Any]) -> None:
        if method == messages.MESSAGE:
            for tag, row in enumerate(params[2], params[1]):
                self._inbox.put(tag, Message(self._inbox, tag, row, self.connection_id))
        elif method == messages.GAP:
            self._inbox.put(params[1], params[2])
        elif method == messages.DETACHED:
            self._end(params[1])
        elif method == messages.EVENT:
            self._take_event(params[2], params[3])
        else:
            self._take_outcome(method, params)
        self._wake()

    def _take_outcome(self, method: str, params: list[Any]) -> None:
        """What became of messages that were sent."""
        if method == messages.ACCEPTED:
            self._outbox.accept(params[1])
            self._schedule()
        elif method == messages.REJECTED:
            self._outbox.reject(params[1], params[2], params[3])
        elif method == messages.SENT:
            self._outbox.sent_upto = max(params[1], self._outbox.sent_upto)
        elif method == messages.ACKNOWLEDGED:
            self._outbox.acknowledge(params[1])
        elif method == messages.REMOVED:
            self._outbox.remove(params[1], params[2], params[3])

    def _take_event(self, name: str, data: dict[str, Any]) -> None:
        if name == "open":
            self._state = "open"
            self.acknowledges = data.get("acknowledges", self.acknowledges)
        elif name in {"disconnected", "close", "closed"} and self._state == "open":
            self._state = "connecting"
        if name in LOOK_AGAIN:
            self._look_again()
        if name != "gap":
            self._emit(name, data)

    def _look_again(self) -> None:
        if self._wire is not None and not self._looking:
            self._looking = True
            self._daemon._spawn(self._refresh(self._wire), f"state of {self.label}")

    async def _refresh(self, wire: Wire) -> None:
        """Ask for what events would have told."""
        try:
            await wire.request(
                "channels",
                {"target": self.connection_id},
                timeout=self._daemon.request_timeout,
                on_result=self._take_rows,
            )
        except ConnectionLost:
            pass  # attached again when the socket is back
        except RequestRefused as error:
            logger.debug("The state of %r of %s is not known: %s", self.label, self.connection_id, error)
        finally:
            self._looking = False

    def _take_rows(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            if row["label"] == self.label:
                self._state = row["state"]
                self.acknowledges = row.get("acknowledges", self.acknowledges)
        self._wake()

    # --- inside ------------------------------------------------------------------------------------------------

    def _check_usable(self) -> None:
        if self.end_reason is not None:
            raise Detached(self.end_reason)

    def _schedule(self) -> None:
        """Send what is due at the end of this turn of the loop, in as few frames as possible."""
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._transmit)

    def _transmit(self) -> None:
        self._scheduled = False
        wire = self._wire
        if wire is None:
            return
        self._send_frames(self._outbox.take())
        self._send_acks(wire)
        credit = self._inbox.take_credit()
        if credit is not None:
            wire.notify(messages.CREDIT, self._handle, credit)

    def _send_acks(self, wire: Wire) -> None:
        tag = self._inbox.take_ack()
        if tag is not None and self.mode != "observe":
            wire.notify(messages.ACK, self._handle, tag)

    def _send_frames(self, frames: list[SendFrame]) -> None:
        if self._wire is None:
            return
        for frame in frames:
            options = [] if frame.max_age is None else [{"max_age": frame.max_age}]
            self._wire.notify(messages.SEND, self._handle, frame.seq, frame.payloads, *options)

    async def _take_next(self, consumer: object) -> Message | None:
        """The next message for one of the channel's consumers, which is done with the one before; None at the end.

        Nothing is awaited once the message is taken: who gives up waiting loses none.
        """
        if self._auto_ack:
            self._inbox.release(consumer)
            self._release_for_ended_tasks()
        message = await self._next(acknowledge_gaps=self._auto_ack)
        if message is not None and self._auto_ack:
            self._inbox.hold(consumer, message)
        return message

    def _release_for_ended_tasks(self) -> None:
        """Such as one that only waited for a message, as `asyncio.wait_for` makes them, and handed it on."""
        for consumer in self._inbox.consumers:
            if isinstance(consumer, asyncio.Task) and consumer.done():
                self._inbox.release(consumer)

    async def _next(self, *, acknowledge_gaps: bool) -> Message | None:
        """The next message; None at the end. Hands gaps to their listeners on the way."""
        while True:
            while self._inbox:
                item = self._inbox.take()
                if isinstance(item, Message):
                    return item
                self._emit("gap", item)
                if acknowledge_gaps:
                    self._inbox.acknowledge_taken()
            if self.end_reason in {"closed", "detached"}:
                return None
            self._check_usable()
            await self._change()

    async def _change(self) -> None:
        """Wait until anything happens on this channel."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _wait_until_sent(self, upto: int) -> None:
        """Wait until the daemon and its engine hold nothing up to that number any more."""
        pause = POLL_FIRST
        while not self._outbox.is_acknowledged(upto):
            self._check_usable()
            queue = await self._daemon.queue(self.connection_id, self.label)
            if not queue["queue_size"] and not queue["buffered_amount"]:
                self._outbox.acknowledge(upto)
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._change()
            pause = min(2 * pause, POLL_LAST)

    # --- listeners -------------------------------------------------------------------------------------

    def _serve_listener(self, event: str) -> None:
        """Begin what an event needs that does not come by itself."""
        if event == "message" and self._pump is None:
            self._pump = self._daemon._spawn(self._pump_loop(), f"messages of {self.label}")
        elif event == "buffered_amount_low" and self._threshold is None and self.mode != "observe":
            self.buffered_amount_low_threshold = 0

    async def _pump_loop(self) -> None:
        try:
            await self._pump_messages(asyncio.current_task())
        finally:
            self._pump = None

    async def _pump_messages(self, pump: asyncio.Task[None] | None) -> None:
        """Until there is no listener or no message any more; `pump` is the consumer that has the message."""
        pause = RETRY_FIRST
        while True:
            while not self._inbox and self.end_reason is None:
                await self._change()
            if not self._listeners.get("message"):
                return
            message = await self._next(acknowledge_gaps=True)
            if message is None:
                return
            if self._auto_ack:
                self._inbox.hold(pump, message)
            try:
                await self._hand_to_listeners(message)
            except Exception as error:
                logger.exception("A message listener of %r failed", self.label)
                self._emit("error", describe_failure(error))
                await self._attach_again_after(pause)
                pause = min(2 * pause, RETRY_LAST)
            else:
                pause = RETRY_FIRST
                if self._auto_ack:
                    self._inbox.release(pump)
                else:
                    await message.ack()

    async def _hand_to_listeners(self, message: Message) -> None:
        for listener in self._take_listeners("message"):
            result = listener(message)
            if inspect.isawaitable(result):
                await result

    async def _attach_again_after(self, pause: float) -> None:
        """Give the channel back for a while; whoever has it by then keeps it."""
        try:
            await self._release()
        except (RequestRefused, TimeoutError) as error:
            logger.warning("Channel %r of %s was not given back: %s", self.label, self.connection_id, error)
        await asyncio.sleep(pause)
        if self.end_reason is None and self._wire is None:
            await self._daemon._attach_again(self)


def describe_failure(error: Exception) -> dict[str, Any]:
    """The data of event ``error`` for a handler or listener that raised."""
    return {"context": "handler", "code": type(error).__name__, "message": str(error)}


def _sizes_of(payloads: list[Payload]) -> list[int]:
    """`_size_of` each."""
    types = set(map(type, payloads))
    plain = types == {bytes} or (types == {str} and all(map(str.isascii, payloads)))  # type: ignore[arg-type]
    return list(map(len if plain else _size_of, payloads))


def _size_of(data: Payload) -> int:
    """Bytes on the wire. Raises `TypeError` and, for text that is not Unicode, `ValueError`."""
    if isinstance(data, str):
        return len(data) if data.isascii() else len(data.encode())
    if isinstance(data, bytes):
        return len(data)
    raise TypeError(f"a message is str or bytes, not {type(data).__name__}")
