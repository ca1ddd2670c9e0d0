"""The receiving half of a channel on a link (sans-I/O).

    frames ──► batch ──Receive──► inbox in the store ──► [11]

Rules of ``rondevu.link.1`` that live here: 3 (exactly the next number), 4 (stored, then acknowledged), 7 (the room that is
offered), 8 (a half-received message dies with its link). Duplicates are judged by what has been *received*; what is said to
the peer is what has been *committed*.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rondevud.durable import frames
from rondevud.durable.outgoing import Direction, Verdict, VerdictKind
from rondevud.errors import PeerError
from rondevud.records import (
    ChannelRecord,
    OutItem,
    OutMessage,
    Payload,
    Reason,
    Receive,
    ReceiveResult,
    Removal,
    Stamp,
    out_messages,
    payload_size,
    payload_sizes,
)

ROOM = 4 * 1024 * 1024
"""Bytes of payload a receiver takes beyond what it has acknowledged."""

ROOM_PER_MESSAGE = 64
"""Bytes of room that one free place of a counted inbox is worth: with smaller messages an inbox can get fuller than its
``inbox_size``, by what fits into the room that was offered."""

UNSTORED_BYTES = 4 * ROOM
UNSTORED_ITEMS = 65_536
"""What a peer may have sent, for one channel, that is not stored yet: far more than room and the sender's own bounds allow.
A message beyond comes from a peer that ignores them, and would only cost memory."""

RENEWALS = 8
"""New epochs of one link at most that come in the middle of messages: a store that was put back needs one."""


@dataclass(frozen=True, slots=True)
class InboxLimits:
    """None = no limit."""

    max_count: int | None = None
    max_bytes: int | None = None
    max_deliveries: int | None = None
    """Deliveries without acknowledgement after which a message is set aside."""


@dataclass(slots=True)
class _Batch:
    """What one transaction will store: items of one epoch, in order."""

    epoch: bytes
    next: int
    items: list[OutItem] = field(default_factory=list)


@dataclass(slots=True)
class _Assembly:
    """A large message of which pieces have come."""

    seq: int
    total: int
    text: bool
    data: bytearray = field(default_factory=bytearray)


class Incoming:
    """What of the peer's numbers has been received and stored."""

    def __init__(self, record: ChannelRecord, limits: InboxLimits) -> None:
        self.channel = record.id
        self.limits = limits
        self.offer: Callable[[], int | None] = lambda: None
        """Bytes that all inboxes together may still take; None = unlimited, below 0: not even one message."""
        # committed
        self.epoch = record.peer_epoch
        self.recv_next = record.recv_next
        self.recv_count = record.recv_count
        self.in_count = record.in_count
        self.in_bytes = record.in_bytes
        self.closed = record.in_closed == 1
        """Whether the peer's closing message has been stored, and this side has not opened the label anew since."""
        # received
        self.received_epoch = record.peer_epoch
        self._received_next = record.recv_next
        self.received_closed = record.in_closed > 0
        self._batches: deque[_Batch] = deque()
        self._storing: Receive | None = None
        self.unstored_bytes = self.unstored_items = 0
        """What has been received and is on its way into the store."""
        # this link
        self.flowing = False
        self._assembly: _Assembly | None = None
        self._told = (0, 0)
        """(recv_next, room) as the peer last heard them on this link."""
        self._taken = self._allowed = 0
        """Bytes received on this link, and up to where the rooms that were told allow it."""
        self._alone = -1
        """Up to where one message is allowed, whatever its size."""
        self._renewals = 0
        """New epochs of this link that came while something was on its way into the store."""
        self.duplicates = 0

    # --- links -----------------------------------------------------------------------------------------------------

    def link_lost(self) -> None:
        """The current link is gone, and with it what was half received."""
        self.flowing = False
        self._assembly = None
        self._told = (0, 0)
        self._taken = self._allowed = self._renewals = 0
        self._alone = -1

    def peer_channel(self, frame: frames.Channel) -> Verdict | None:
        """The peer's [8] of this link: whether its numbers go on (rule 10). None = a repetition that changes nothing.

        A new epoch is stored at once: what is said of it later (a gap, a closed channel) must outlive this process.
        """
        repeated, self.flowing = self.flowing, True
        if frame.epoch == self.received_epoch:
            return None if repeated else Verdict(Direction.IN, VerdictKind.RESUMED)
        known, closed = self.received_epoch, self.received_closed
        self.received_epoch, self._received_next, self.received_closed = frame.epoch, 0, False
        self._assembly = None
        if repeated:
            self._renew_room()
        gap = bool(known) and not closed
        self._batches.append(_Batch(frame.epoch, 0, [Removal(0, 0, Reason.LOST, None)] if gap else []))
        self.unstored_items += gap
        return Verdict(Direction.IN, VerdictKind.GAP, messages=None) if gap else Verdict(Direction.IN, VerdictKind.NEW)

    def _renew_room(self) -> None:
        """A new epoch on the same link: its sender forgets what was under way, and goes by the room that it knew last.

        Raises `PeerError` when that is used to get more and more room.
        """
        room = self._told[1]
        if not self.all_stored:
            self._renewals += 1
            room = ROOM
        if self._renewals > RENEWALS:
            raise PeerError("too many new epochs on one link")
        self._allow(self._taken, room)

    def _allow(self, base: int, room: int) -> None:
        """The peer is told of so much room beyond the first `base` bytes of this link."""
        if room > 0:
            self._allowed = max(self._allowed, base + room)
            self._alone = max(self._alone, base)

    def _check_room(self, size: int) -> None:
        """Raises `PeerError` for a message beyond all room that was told on this link: rule 7."""
        if self._taken + size > self._allowed and self._taken > self._alone:
            raise PeerError(f"a message of {size} bytes beyond the room that was offered")
        self._taken += size

    # --- frames ----------------------------------------------------------------------------------------------------

    def data(self, frame: frames.Data) -> None:
        """The peer's [9]. Raises `PeerError` for a number out of order."""
        payloads = frame.payloads
        duplicates = self._expect(frame.seq, len(payloads))
        self.duplicates += duplicates
        if duplicates:
            payloads = payloads[duplicates:]
        first, size = frame.seq + duplicates, sum(payload_sizes(payloads))
        if payloads and self._has_room(len(payloads), size):
            self._taken += size
            self._append(list(out_messages(first, payloads)), size, first + len(payloads))
            self.received_closed = payloads[-1] is None
        else:  # one by one: those before the one that breaks a rule count
            for seq, payload in enumerate(payloads, first):
                self._take(seq, payload)

    def skip(self, frame: frames.Skip) -> None:
        """The peer's [12]."""
        self._must_flow()
        if self._received_next and frame.next <= self._received_next:
            return
        self._add(Removal(self._received_next, frame.next, frame.reason, frame.messages), frame.next)
        self._assembly = None

    def piece(self, frame: frames.Piece, max_message: int) -> None:
        """The peer's [10]. Raises `PeerError` for a number or an offset out of order, or a message over `max_message`."""
        if self._expect(frame.seq, 1):
            self.duplicates += frame.offset == 0
            return
        if frame.total > max_message:
            raise PeerError(f"a message of {frame.total} bytes; {max_message} were announced as the maximum")
        assembly = self._assembly
        if frame.offset == 0:
            assembly = self._assembly = _Assembly(frame.seq, frame.total, frame.text)
        if (
            assembly is None
            or (frame.seq, frame.total, frame.text) != (assembly.seq, assembly.total, assembly.text)
            or frame.offset != len(assembly.data)
        ):
            raise PeerError(f"a piece at offset {frame.offset} of message {frame.seq} that does not fit the one before")
        assembly.data += frame.chunk
        if len(assembly.data) == assembly.total:
            self._assembly = None
            self._take(frame.seq, _payload(assembly))

    def plain(self, payload: str | bytes, floor: int) -> bool:
        """A message without number, from a data channel without frames: it gets the next one here, at least `floor`.

        False = dropped: too much has not been stored yet.
        """
        if self._overrun:
            return False
        seq = max(self._received_next, floor)
        self._add(OutMessage(seq, payload), seq + 1)
        return True

    @property
    def _overrun(self) -> bool:
        return self.unstored_bytes > UNSTORED_BYTES or self.unstored_items > UNSTORED_ITEMS

    def _must_flow(self) -> None:
        if not self.flowing:
            raise PeerError("a message before the channel was opened on this link")

    def _expect(self, seq: int, count: int) -> int:
        """How many of `count` numbers from `seq` on are duplicates."""
        self._must_flow()
        if not self._received_next:
            return 0
        if seq > self._received_next:
            raise PeerError(f"number {seq} where {self._received_next} was expected")
        return min(count, self._received_next - seq)

    def _has_room(self, count: int, size: int) -> bool:
        """Whether no message of `count`, of `size` bytes together, can break a rule."""
        within = self.unstored_bytes + size <= UNSTORED_BYTES and self.unstored_items + count <= UNSTORED_ITEMS
        return within and self._assembly is None and self._taken + size <= self._allowed

    def _take(self, seq: int, payload: Payload) -> None:
        if self._assembly is not None:
            raise PeerError(f"message {seq} in the middle of the pieces of {self._assembly.seq}")
        self._check_room(payload_size(payload))
        self._add(OutMessage(seq, payload), seq + 1)
        self.received_closed = payload is None  # a peer whose store went back may have forgotten that it closed

    def _add(self, item: OutItem, next_seq: int) -> None:
        if self._overrun:
            raise PeerError(f"message {next_seq - 1} is far beyond the room that was offered")
        self._append([item], _size(item), next_seq)

    def _append(self, items: Sequence[OutItem], size: int, next_seq: int) -> None:
        """Have `items`, of `size` bytes together, stored."""
        self.unstored_bytes += size
        self.unstored_items += len(items)
        self._received_next = next_seq
        if not self._batches or self._batches[-1].epoch != self.received_epoch:
            self._batches.append(_Batch(self.received_epoch, next_seq))
        batch = self._batches[-1]
        batch.items.extend(items)
        batch.next = next_seq

    # --- the store -------------------------------------------------------------------------------------------------

    def wanted(self, stamp: Stamp) -> Receive | None:
        """The next batch to store, when the one before has been; None = nothing to do."""
        if self._storing is not None or not self._batches:
            return None
        batch = self._batches.popleft()
        self._storing = Receive(
            self.channel, self.epoch, self.recv_next, batch.epoch, batch.next, tuple(batch.items), stamp
        )
        return self._storing

    def stored(self, result: ReceiveResult | None) -> Receive | None:
        """The batch has been committed: it is answered. None = that failed: the same batch is asked for again."""
        operation = self._storing
        if operation is None:
            raise RuntimeError("nothing is being stored")
        self._storing = None
        if result is None:
            self._batches.appendleft(_Batch(operation.epoch, operation.recv_next, list(operation.items)))
            return None
        self.unstored_bytes -= result.size
        self.unstored_items -= len(operation.items)
        if operation.epoch != self.epoch:
            self.recv_count = 0
            self.closed = False
        self.epoch, self.recv_next = operation.epoch, operation.recv_next
        removals = [item for item in operation.items if isinstance(item, Removal)]
        self.recv_count += len(operation.items) - len(removals)
        self.recv_count += sum(item.messages or 0 for item in removals if item.reason is Reason.LOST)
        last = next((item for item in reversed(operation.items) if isinstance(item, OutMessage)), None)
        if last is not None:
            self.closed = last.payload is None
        self.in_count += result.rows
        self.in_bytes += result.size
        return operation

    def taken(self, count: int, size: int) -> None:
        """The application acknowledged rows of the inbox, or they were purged."""
        self.in_count -= count
        self.in_bytes -= size

    # --- what the peer is told -------------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """Bytes of payload that are welcome beyond `recv_next`; 0 = the inbox is full."""
        room = ROOM
        if self.limits.max_bytes is not None:
            room = min(room, self.limits.max_bytes - self.in_bytes)
        if self.limits.max_count is not None:
            room = min(room, (self.limits.max_count - self.in_count) * ROOM_PER_MESSAGE)
        offered = self.offer()
        if offered is not None and offered < room:
            room = max(
                offered, 0 if self.in_count or offered < 0 else 1
            )  # one message at a time, whoever fills the store
        return max(0, room)

    @property
    def all_stored(self) -> bool:
        """Whether everything that has been received is stored: only then what is said of it is the whole truth."""
        return self._storing is None and not self._batches

    def told(self) -> None:
        """[8] has been sent on this link, with what `_now` says."""
        self._tell(self._now())

    def _tell(self, now: tuple[int, int]) -> None:
        self._told = now
        self._allow(self._taken - self.unstored_bytes, now[1])

    def _now(self) -> tuple[int, int]:
        return (self.recv_next if self.epoch == self.received_epoch else 0, self.room)

    def ack(self) -> tuple[int, int] | None:
        """(recv_next, room) for an [11] if the peer should have one now: more is stored, or room has returned or gone."""
        if not self.flowing:
            return None
        now = self._now()
        told_next, told_room = self._told
        grown = now[1] - told_room
        returned = grown > 0 and (told_room <= 1 or grown >= ROOM // 4)
        gone = now[1] <= 1 < told_room
        if now[0] == told_next and not returned and not gone:
            return None
        self._tell(now)
        return now


def _size(item: OutItem) -> int:
    return payload_size(item.payload) if isinstance(item, OutMessage) else 0


def _payload(assembly: _Assembly) -> Payload:
    if not assembly.text:
        return bytes(assembly.data)
    try:
        return assembly.data.decode()
    except UnicodeDecodeError:
        raise PeerError(f"text message {assembly.seq} is not UTF-8") from None
