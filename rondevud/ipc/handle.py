"""One attachment of one client: what the client sends, what it is told, and the window between the two."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from itertools import repeat
from typing import Any

from rondevu_client import messages
from rondevu_client.errors import BadMessage
from rondevu_client.protocol import encode_notification, shown
from rondevud import failpoints
from rondevud.access import Subject, Verb
from rondevud.errors import RequestError
from rondevud.events import Event, EventBus, Subscription
from rondevud.ipc.ports import BufferWatch, Channel, Payload, Producer, Receiver
from rondevud.ipc.usage import Usage
from rondevud.ipc.writer import Writer

MAX_HELD = 1_000
"""Events held back for a handle whose attach is not answered yet; more are counted as overrun."""


class EventFeed:
    """Events to one handle or subscription; to a client that does not read they are dropped, and how many is told."""

    def __init__(
        self, number: int, writer: Writer, emit: Callable[[bytes], None], sees: Callable[[Event], bool]
    ) -> None:
        """`sees` says which events the client may know of."""
        self._sees = sees
        self._number = number
        self._writer = writer
        self._emit = emit
        self._dropped = 0
        self._first_dropped = 0
        self._last_dropped = 0
        self.subscription: Subscription | None = None

    def deliver(self, event: Event) -> None:
        if not self._sees(event):
            return
        if self._writer.congested and event.name != "stopping":
            self.drop(1, event.number)
            return
        self.tell_overrun()
        frame = [self._number, event.number, event.name, event.data, event.at]
        self._emit(encode_notification(messages.EVENT, frame))

    def drop(self, count: int, number: int) -> None:
        """`count` events, the last of them with that number, do not reach the client; number 0: they have none."""
        self._dropped += count
        self._first_dropped = self._first_dropped or number
        self._last_dropped = max(number, self._last_dropped)

    def tell_overrun(self) -> None:
        """Say how many were dropped since it was last said."""
        if self._dropped:
            self.say_overrun(self._dropped, self._first_dropped, self._last_dropped, self._last_dropped)
            self._dropped = self._first_dropped = 0

    def say_overrun(self, count: int | None, first: int, last: int | None, number: int) -> None:
        """`count` events of the numbers `first` to `last` are missing here; None: nobody knows, first 0: without numbers."""
        numbers = {"from": first, "to": last} if first else {}
        data = {"count": count, **numbers}
        self._emit(encode_notification(messages.EVENT, [self._number, number, "overrun", data, time.time()]))

    def close(self) -> None:
        if self.subscription is not None:
            self.subscription.close()


class Handle:
    """Listener of a producer and a receiver, and the client's side of both.

    Until `start` everything for the client is held back, so that nothing overtakes the answer to its attach.
    """

    def __init__(
        self,
        number: int,
        writer: Writer,
        *,
        acknowledged: bool,
        needs: tuple[Verb, Subject],
        usage: Usage,
        sees: Callable[[Event], bool],
        on_dead: Callable[[Handle], None],
        on_limit: Callable[[str, str], None],
    ) -> None:
        self.number = number
        self.dead = False
        self.needs = needs
        """Without this right the handle ends."""
        self.channel: Channel | None = None
        self.producer: Producer | None = None
        self.receiver: Receiver | None = None
        self.feed = EventFeed(number, writer, self._emit, sees)
        self._writer = writer
        self._wants_acknowledged = acknowledged
        self._on_dead = on_dead
        self._on_limit = on_limit
        self._usage = usage
        self._held: list[bytes] | None = []
        self._unconfirmed: dict[int, int] = {}
        self._unconfirmed_bytes = 0
        self._accepted = self._accepted_told = 0
        self._sent = self._sent_told = 0
        self._acknowledged = self._acknowledged_told = 0
        self._last_tag = 0
        self._buffer: BufferWatch | None = None

    # --- from the client ---------------------------------------------------------------------------------------

    def send(self, seq: int, payloads: list[Any], options: dict[Any, Any]) -> None:
        """Hand fine payloads to the producer and reject the others through it. Raises `BadMessage`, nothing done then."""
        producer = self.producer
        if producer is None:
            raise BadMessage(f"send: handle {self.number} only receives")
        if seq < 1 or seq + len(payloads) > messages.MAX_NUMBER:
            raise BadMessage(f"send: numbers are from 1 to 2^63 - 1, not {seq}")
        max_age, problem = _read_options(options)
        if problem is not None:
            producer.reject(seq, len(payloads), "bad_option", problem)
            return
        if self._admit_all(seq, payloads):
            producer.send(seq, payloads, max_age)
            return
        fine: list[Payload] = []
        for number, payload in enumerate(payloads, seq):
            refusal = self._admit(number, payload)
            if refusal is None:
                fine.append(payload)
                continue
            if fine:
                producer.send(number - len(fine), fine, max_age)
                fine = []
            producer.reject(number, 1, *refusal)
        if fine:
            producer.send(seq + len(payloads) - len(fine), fine, max_age)

    def ack(self, upto_tag: int) -> None:
        if self.receiver is None:
            raise BadMessage(f"ack: handle {self.number} receives nothing that is acknowledged")
        if upto_tag > self._last_tag:
            raise BadMessage(f"ack: handle {self.number} was given no tag above {self._last_tag}, not {upto_tag}")
        self.receiver.ack(upto_tag)

    def credit(self, n: int) -> None:
        if self.receiver is None:
            raise BadMessage(f"credit: handle {self.number} only sends")
        if not 1 <= n <= messages.MAX_CREDIT:
            raise BadMessage(f"credit: n is from 1 to {messages.MAX_CREDIT}, not {n}")
        self.receiver.credit(n)

    def threshold(self, size: int, events: EventBus) -> None:
        """From now on send `buffered_amount_low` when what is under way falls to `size` bytes. Raises `RequestError`.

        The event concerns this handle alone, and is not published.
        """
        if self.channel is None or self.producer is None:
            raise RequestError("bad_params", f"handle {self.number} only receives")
        if self._buffer is not None:
            self._buffer.threshold = size
            return
        about = {"connection_id": self.channel.connection_id, "label": self.channel.label}

        def low(amount: int) -> None:
            self.event(events.aside("buffered_amount_low", {"buffered_amount": amount, **about}))

        self._buffer = self.channel.watch_buffer(size, low)

    # --- life --------------------------------------------------------------------------------------------------

    def start(self, credit: int) -> None:
        """The attach is answered: say what was held back, then let messages come."""
        held, self._held = self._held or [], None
        for frame in held:
            self._writer.write(frame)
        if self.dead:
            return
        self._tell_marks()
        if self.receiver is not None:
            if self._writer.congested:
                self.receiver.pause()
            if credit:
                self.receiver.credit(credit)

    def pause(self) -> None:
        if self.receiver is not None and not self.dead:
            self.receiver.pause()

    def resume(self) -> None:
        """The client has read: say what was kept back, go on."""
        if self.dead:
            return
        self._tell_marks()
        self.feed.tell_overrun()
        if self.receiver is not None:
            self.receiver.resume()

    def close(self) -> None:
        """End both halves; nothing more is said. May be repeated."""
        self.dead = True
        self.feed.close()
        for half in (self.producer, self.receiver, self._buffer):
            if half is not None:
                half.close()
        self._unconfirmed.clear()
        self._count(-self._unconfirmed_bytes)

    # --- listener of the producer ------------------------------------------------------------------------------

    def accepted(self, upto_seq: int) -> None:
        unconfirmed = self._unconfirmed
        if unconfirmed and (first := next(iter(unconfirmed))) <= upto_seq:  # numbers mostly follow each other
            together = range(first, min(upto_seq + 1, first + len(unconfirmed)))
            self._count(-sum(map(unconfirmed.pop, together, repeat(0))))
        while unconfirmed and (seq := next(iter(unconfirmed))) <= upto_seq:
            self._count(-unconfirmed.pop(seq))
        self._accepted = max(upto_seq, self._accepted)
        if not self._writer.congested:
            self._tell_marks()

    def rejected(self, seq: int, code: str, message: str) -> None:
        self._count(-self._unconfirmed.pop(seq, 0))
        self._tell_marks()
        self._notify(messages.REJECTED, seq, code, message)

    def removed(self, from_seq: int, upto_seq: int, reason: str) -> None:
        self._tell_marks()
        self._notify(messages.REMOVED, from_seq, upto_seq, reason)

    def sent(self, upto_seq: int) -> None:
        self._sent = max(upto_seq, self._sent)
        if not self._writer.congested:
            self._tell_marks()

    def acknowledged(self, upto_seq: int) -> None:
        self._acknowledged = max(upto_seq, self._acknowledged)
        if not self._writer.congested:
            self._tell_marks()

    # --- listener of the receiver ------------------------------------------------------------------------------

    def messages(self, tag: int, rows: list[tuple[Any, ...]]) -> None:
        self._last_tag = tag + len(rows) - 1
        failpoints.hit("message.before")
        self._notify(messages.MESSAGE, tag, rows)
        failpoints.hit("message.after")

    def gap(self, tag: int, gap: dict[str, Any]) -> None:
        self._last_tag = tag
        self._notify(messages.GAP, tag, gap)

    def missed(self, count: int) -> None:
        """Messages an observer did not get are told like events it did not get."""
        self.feed.drop(count, 0)
        if not self._writer.congested:
            self.feed.tell_overrun()

    def detached(self, reason: str) -> None:
        """Whichever half is taken away, the handle ends."""
        if self.dead:
            return
        self._tell_marks()
        self._notify(messages.DETACHED, reason)
        self.close()
        self._on_dead(self)

    # --- inside ------------------------------------------------------------------------------------------------

    def event(self, event: Event) -> None:
        """An event of the handle's channel or connection."""
        if self._held is not None and len(self._held) >= MAX_HELD:
            self.feed.drop(1, event.number)
        else:
            self.feed.deliver(event)

    def _admit_all(self, first: int, payloads: list[Any]) -> bool:
        """Count new payloads in the window, if all of them are fine; else nothing."""
        types = set(map(type, payloads))
        if types != {bytes} and (types != {str} or not all(map(str.isascii, payloads))):
            return False
        sizes = list(map(len, payloads))
        size, count = sum(sizes), len(self._unconfirmed) + len(sizes)
        fits = count <= messages.SEND_WINDOW and self._unconfirmed_bytes + size <= messages.SEND_WINDOW_BYTES
        new = self._unconfirmed.keys().isdisjoint(range(first, first + len(sizes)))
        limit = self.channel.max_message if self.channel is not None else 0
        if not fits or not new or max(sizes) > limit or self._usage.refusal(size) is not None:
            return False
        self._count(size)
        self._unconfirmed.update(zip(range(first, first + len(sizes)), sizes, strict=True))
        return True

    def _admit(self, number: int, payload: Any) -> tuple[str, str] | None:
        """Count a payload in the window; code and message when it is refused."""
        if type(payload) is str:
            size = len(payload) if payload.isascii() else len(payload.encode())
        elif type(payload) is bytes:
            size = len(payload)
        else:
            return "bad_payload", f"a payload is text or binary, not {shown(payload)}"
        limit = self.channel.max_message if self.channel is not None else 0
        if size > limit:
            return "too_large", f"{size} bytes are more than the {limit} of max_message"
        if self._unconfirmed and (
            len(self._unconfirmed) >= messages.SEND_WINDOW
            or self._unconfirmed_bytes + size > messages.SEND_WINDOW_BYTES
        ):
            return "window", f"{len(self._unconfirmed)} messages, {self._unconfirmed_bytes} bytes are unconfirmed"
        refusal = self._usage.refusal(size)
        if refusal is not None:
            self._on_limit("send", refusal)
            return "user_limit", refusal
        self._count(size - self._unconfirmed.get(number, 0))
        self._unconfirmed[number] = size
        return None

    def _count(self, size: int) -> None:
        self._unconfirmed_bytes += size
        self._usage.parked += size

    def _tell_marks(self) -> None:
        """Cumulative confirmations not told yet. A congested client gets them merged, later."""
        if self._accepted > self._accepted_told:
            self._accepted_told = self._accepted
            failpoints.hit("accepted.before")
            self._notify(messages.ACCEPTED, self._accepted)
            failpoints.hit("accepted.after")
        if self._sent > self._sent_told:
            self._sent_told = self._sent
            self._notify(messages.SENT, self._sent)
        acknowledging = self._wants_acknowledged and self.channel is not None and self.channel.acknowledges is not False
        if acknowledging and self._acknowledged > self._acknowledged_told:
            self._acknowledged_told = self._acknowledged
            failpoints.hit("acknowledged.before")
            self._notify(messages.ACKNOWLEDGED, self._acknowledged)
            failpoints.hit("acknowledged.after")

    def _notify(self, method: str, *params: Any) -> None:
        self._emit(encode_notification(method, [self.number, *params]))

    def _emit(self, frame: bytes) -> None:
        if self.dead:
            return
        if self._held is not None:
            self._held.append(frame)
        else:
            self._writer.write(frame)


def _read_options(options: dict[Any, Any]) -> tuple[float | None, str | None]:
    """The ``max_age`` of a send, and what is wrong with its options."""
    unknown = [key for key in options if key != "max_age"]
    if unknown:
        return None, f"send knows the option max_age, not {unknown[0]!r:.64}"
    max_age = options.get("max_age")
    if max_age is None:
        return None, None
    if type(max_age) not in {int, float} or not math.isfinite(max_age) or max_age <= 0:
        return None, "max_age is a number of seconds above 0"
    return float(max_age), None
