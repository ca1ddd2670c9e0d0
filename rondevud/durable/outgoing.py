"""The sending half of a channel on a link (sans-I/O).

    outbox in the store ──ReadOut──► loaded ──frames──► in flight ──[11]──► Acknowledge ──► gone

Rules of ``rondevu.link.1`` that live here: 1 (numbers never given twice), 3 (every number that will not be sent is
announced), 5 (where to go on from after the peer's [8]), 6 (removals), 7 (the peer's room), 8 (large messages start again
on a new link). Numbers are given by the store; this half only learns of them. Messages freshly stored are kept in memory
when they fit behind what is loaded, so that a channel without backlog reads nothing.

A label may also go without frames, on data channels of its own (`flow_plain`): towards plain peers, and where it is
unreliable. Then a message has left when the engine's buffer has passed it to the network, and nobody acknowledges it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from enum import StrEnum
from itertools import count, islice, takewhile
from typing import Any, NamedTuple

from rondevud.durable import frames
from rondevud.errors import PeerError
from rondevud.records import (
    Acknowledge,
    Acknowledged,
    ChannelRecord,
    OutItem,
    OutMessage,
    OutPage,
    Payload,
    PutResult,
    ReadOut,
    Reason,
    Removal,
    Remove,
    Removed,
    out_messages,
    payload_size,
    payload_sizes,
)

LOADED_MESSAGES = 16_384
LOADED_BYTES = 4 * 1024 * 1024
"""Bounds of what a channel keeps in memory for sending, as many bytes as a peer offers room for; the rest stays in the
store. To read it back takes a sixth of all that is done for a message of 1 KiB."""

READ_AHEAD = 8_192
"""Messages loaded below which the next page is asked for: many, so that reading comes to the end of the outbox, from where
on messages are loaded as they are stored."""

PACK_MESSAGES = 512
"""Messages of one frame at most."""

IN_FLIGHT_FRAMES = 2_048
"""Frames without acknowledgement at most, whatever the peer's room: bounds memory when messages are tiny."""

IN_FLIGHT_MESSAGES = 16_384
"""The same in messages (a frame more at most)."""


class Direction(StrEnum):
    IN = "in"
    OUT = "out"


class VerdictKind(StrEnum):
    NEW = "new"
    RESUMED = "resumed"
    GAP = "gap"


class Verdict(NamedTuple):
    """What became of one direction of a channel on a new link (rule 10)."""

    direction: Direction
    kind: VerdictKind
    first: int = 0
    next: int = 0
    messages: int | None = 0


class _Large(NamedTuple):
    """A message that goes in pieces."""

    seq: int
    text: bool
    data: bytes


class Outgoing:
    """What of one channel's outbox goes out on the current link.

    Between links (`flowing` false) it only follows the numbers. The owner asks `wanted` for store operations, hands their
    results to `page_read`, `acknowledged` and `removed`, and takes frames from `frame`.
    """

    def __init__(self, record: ChannelRecord, floor: int) -> None:
        self.channel = record.id
        self.label = record.label
        self.epoch = record.epoch
        self.next = max(record.next, floor)
        self.stored_next = record.next
        self._known = (record.next, self.next)
        """Behind the last number that the store knew at this start, and the first one that this start can give."""
        self.acked = record.acked
        self.acked_count = record.acked_count
        self.closed = record.out_closed
        self.sent_high = record.next if record.acked or record.peer_epoch else 0
        """Numbers below may have been handed to a link; after a start: all of them, if there was one."""
        self.handed = record.acked
        """Numbers below have been handed to a data channel, whole, or are acknowledged; after a start: the latter."""
        self.needs_epoch = False
        """Whether a new epoch has to be drawn and stored (`new_epoch`) before anything is sent."""
        self.sent = 0
        """Messages that were put into frames since the start of the daemon; each time, where it was more than once."""
        self._passed = 0
        """Numbers below went out without frames; 0 on a link."""
        self._stale_reads = 0
        self._reading = False
        self._acknowledging = False
        self._asked = 0
        self._detach()

    def _detach(self) -> None:
        self._stale_reads += self._reading
        self._reading = False
        self.flowing = False
        self._loaded: deque[OutItem] = deque()
        self._loaded_bytes = 0
        self._loaded_next = 0
        self._in_flight: deque[tuple[int, int, int]] = deque()
        """(number behind it, bytes, messages) of each frame, or large message, without acknowledgement."""
        self._in_flight_messages = 0
        self.in_flight_bytes = 0
        self._large: _Large | None = None
        self._offset = 0
        self._room = 0
        self._peer_next = 0
        self._peer_max = 0
        self._too_large = 0
        self._removing = False
        self._awaiting_epoch = False
        self._uncounted: int | None = None
        """The peer's count of our messages, while what it lost is to be counted when an acknowledgement has been stored."""

    # --- links -----------------------------------------------------------------------------------------------------

    def link_lost(self) -> None:
        """The current link is gone; what was in flight will be sent again."""
        self._detach()
        self.needs_epoch = False

    def peer_channel(self, frame: frames.Channel, peer_max_message: int) -> Verdict | None:
        """The peer's [8] of this link: decide where to go on from (rule 5). None = a repetition that changes nothing."""
        if self.flowing:
            if frame.peer_epoch == self.epoch:
                self._awaiting_epoch = False
                self._confirm(frame.recv_next, frame.room)
            return None
        self._peer_max = peer_max_message
        self._room = frame.room
        if frame.peer_epoch == self.epoch and frame.recv_next:
            return self._resume(frame.recv_next, frame.recv_count)
        self.flowing = True
        if self._claimed:
            return self._peer_lost(0, frame.recv_count if frame.peer_epoch == self.epoch else 0)
        self._peer_next = self._loaded_next = 0
        return Verdict(Direction.OUT, VerdictKind.NEW)

    def _resume(self, recv_next: int, recv_count: int) -> Verdict:
        last, first = self._known
        if recv_next > max(first, self.sent_high):
            return self._went_back()
        self.flowing = True
        if recv_next < self._claimed:
            return self._peer_lost(recv_next, recv_count)
        self._peer_next = self._loaded_next = recv_next
        if last < recv_next < first:
            return self._forgot(recv_next)
        return Verdict(Direction.OUT, VerdictKind.RESUMED)

    def _peer_lost(self, recv_next: int, recv_count: int) -> Verdict:
        """The peer has less than it acknowledged: say which numbers it will never get from us."""
        messages = None if self._acknowledging else max(0, self.acked_count - recv_count)
        self._uncounted = recv_count if self._acknowledging else None
        self._loaded.append(Removal(recv_next, self._claimed, Reason.LOST, messages))
        self._peer_next = recv_next
        self._loaded_next = self._claimed
        return Verdict(Direction.OUT, VerdictKind.GAP, recv_next, self._claimed, messages)

    @property
    def _claimed(self) -> int:
        """What the peer has confirmed, an acknowledgement that is being stored included: its messages may be gone."""
        return max(self.acked, self._asked)

    def _forgot(self, recv_next: int) -> Verdict:
        """The peer has numbers of ours that our store does not know: it went back, and the clock did not.

        Numbers from `recv_next` up to this start's first may have held messages too; nobody can tell.
        """
        first = self._known[1]
        self._loaded.append(Removal(recv_next, first, Reason.LOST, None))
        self._loaded_next = first
        return Verdict(Direction.OUT, VerdictKind.GAP, recv_next, first, None)

    def _went_back(self) -> Verdict:
        """The peer has numbers that this start has not sent: store and clock went back. A new epoch is needed.

        What has been stored since may bear the numbers of messages that the peer has, so it is not enough to look at
        the next number.
        """
        self.needs_epoch = True
        return Verdict(Direction.OUT, VerdictKind.GAP, self.next, self.next, None)

    def new_epoch(self, epoch: bytes, *, reopened: bool, announced: bool) -> None:
        """A new epoch has been stored: nothing is acknowledged in it, and everything held is sent again.

        If the epoch before was `announced` on this link, acknowledgements belong to it until the peer has answered
        the new [8].
        """
        answered, room, peer_max = self.flowing or self.needs_epoch, self._room, self._peer_max
        self._detach()
        self.needs_epoch = False
        self.epoch = epoch
        self.acked = self.acked_count = self._passed = 0
        if reopened:
            self.closed = 0
        self.flowing = answered
        self._awaiting_epoch = answered and announced
        self._room, self._peer_max = room, peer_max

    # --- without frames --------------------------------------------------------------------------------------------

    def flow_plain(self, peer_max: int) -> None:
        """A data channel carries the label without frames, messages of at most `peer_max` bytes: go on where the last
        one left off."""
        self._detach()
        self.flowing = True
        self._room = frames.MAX_NUMBER
        self._peer_max = peer_max
        self._peer_next = self._loaded_next = max(self._claimed, self._passed)

    def message(self) -> OutMessage | None:
        """The next message for a data channel without frames; None when there is none that may go now."""
        while self.flowing and self._sendable():
            head = self._loaded[0]
            size = 0 if isinstance(head, Removal) else payload_size(head.payload)
            if size > self._peer_max and isinstance(head, OutMessage):
                self._too_large = head.seq
                return None
            self._loaded.popleft()
            self._loaded_bytes -= size
            if isinstance(head, OutMessage):
                self._sent(head.seq + 1, size, 1)
                return head
            self._sent(head.next, 0, 0)
        return None

    def passed(self, buffered: int) -> None:
        """`buffered` bytes are left in the engine's buffer: what was given to it before those is with the network."""
        while self._in_flight and self.in_flight_bytes - self._in_flight[0][1] >= buffered:
            self._passed = self._in_flight[0][0]
            self._confirm(self._passed, self._room)

    def forget_plain(self) -> None:
        """From now on a link carries the label: its peer has nothing of what went without frames."""
        self.acked = self.acked_count = self._passed = 0

    @property
    def close_confirmed(self) -> bool:
        """Whether this side's closing message has been acknowledged."""
        return 0 < self.closed < max(self.acked, self._peer_next, self._passed)

    # --- the store -------------------------------------------------------------------------------------------------

    def stored(self, result: PutResult, payloads: Sequence[Payload]) -> None:
        """Messages have been committed to the outbox."""
        contiguous = (
            self.flowing
            and not self._reading
            and not result.jumped
            and self._loaded_next == result.first
            and len(self._loaded) + len(payloads) <= LOADED_MESSAGES
            and self._loaded_bytes + result.size <= LOADED_BYTES
        )
        if contiguous:
            self._loaded.extend(out_messages(result.first, payloads))
            self._loaded_bytes += result.size
            self._loaded_next = result.next
        self.next = self.stored_next = result.next
        if payloads[-1] is None:
            self.closed = result.next - 1

    def wanted(self) -> list[Acknowledge | ReadOut | Remove]:
        """Store operations that are due; each is asked for once until its result has come."""
        operations: list[Acknowledge | ReadOut | Remove] = []
        confirmed = max(self._peer_next, self._passed)
        if confirmed > self.acked and not self._acknowledging:
            self._acknowledging = True
            self._asked = confirmed
            operations.append(Acknowledge(self.channel, confirmed))
        if self._too_large and not self._removing:
            self._removing = True
            operations.append(Remove(self.channel, self._too_large, self._too_large + 1, Reason.TOO_LARGE))
        more = self._loaded_next < self.stored_next
        low = len(self._loaded) < READ_AHEAD and self._loaded_bytes < LOADED_BYTES
        if self.flowing and more and not self._reading and low:
            self._reading = True
            operations.append(ReadOut(self.channel, self._loaded_next))
        return operations

    def page_read(self, page: OutPage | None) -> None:
        """A page has been read; None = reading failed and is to be tried again."""
        if self._stale_reads:
            self._stale_reads -= 1
            return
        self._reading = False
        if page is None:
            return
        for item in page.items:
            if item.next > self._loaded_next if isinstance(item, Removal) else True:
                self._loaded.append(item)
        self._loaded_bytes += sum(payload_sizes([i.payload for i in page.items if isinstance(i, OutMessage)]))
        self._loaded_next = page.next

    def acknowledged(self, result: Acknowledged | None) -> None:
        """An acknowledgement has been committed; None = it failed and is to be tried again."""
        self._acknowledging = False
        self._asked = 0
        if result is not None:
            self.acked = max(self.acked, result.acked)
            self.stored_next = max(self.stored_next, self.acked)
            self.acked_count += result.messages
        if self._uncounted is not None:
            self._count_lost(self._uncounted, stored=result is not None)

    def _count_lost(self, recv_count: int, *, stored: bool) -> None:
        """What the peer has lost, now that it is known what it had acknowledged; nothing, if that could not be stored."""
        self._uncounted = None
        lost = self._loaded[0]
        if stored and isinstance(lost, Removal):
            self._loaded[0] = lost._replace(messages=max(0, self.acked_count - recv_count))
        elif isinstance(lost, Removal):
            self._loaded.clear()
            self._loaded_bytes = 0
            self._loaded_next = lost.first

    def removed(self, removed: Sequence[Removed]) -> int:
        """Messages have been taken out of the outbox; answers how many of them may have been sent already."""
        in_doubt = 0
        for gone in removed:
            in_doubt += max(0, min(gone.next, self.sent_high) - gone.first)
            if gone.first <= self._too_large < gone.next:
                self._too_large = 0
                self._removing = False
            self._drop_loaded(gone)
        return in_doubt

    def _drop_loaded(self, gone: Removed) -> None:
        kept: deque[OutItem] = deque()
        said = False
        for item in self._loaded:
            if isinstance(item, OutMessage) and gone.first <= item.seq < gone.next:
                self._loaded_bytes -= payload_size(item.payload)
                if not said:
                    kept.append(Removal(item.seq, gone.next, gone.reason, gone.next - item.seq))
                    said = True
            else:
                kept.append(item)
        self._loaded = kept
        if said:
            self._loaded_next = max(self._loaded_next, gone.next)

    # --- the link --------------------------------------------------------------------------------------------------

    def ack(self, recv_next: int, room: int) -> int:
        """The peer's [11]: answers how many bytes it confirmed. Raises `PeerError`."""
        if not self.flowing:
            raise PeerError("an acknowledgement before the channel was opened on this link")
        if self._awaiting_epoch:
            return 0
        if recv_next > max(self.sent_high, self._peer_next):
            raise PeerError(f"an acknowledgement up to {recv_next}, which has not been sent")
        if recv_next < self._peer_next:
            raise PeerError(f"an acknowledgement up to {recv_next} after one up to {self._peer_next}")
        return self._confirm(recv_next, room)

    def _confirm(self, recv_next: int, room: int) -> int:
        self._peer_next = max(self._peer_next, recv_next)
        self._room = room
        confirmed = 0
        while self._in_flight and self._in_flight[0][0] <= recv_next:
            _, size, messages = self._in_flight.popleft()
            confirmed += size
            self._in_flight_messages -= messages
        self.in_flight_bytes -= confirmed
        return confirmed

    def _sendable(self) -> bool:
        if not self._loaded or len(self._in_flight) >= IN_FLIGHT_FRAMES:
            return False
        if self._in_flight_messages >= IN_FLIGHT_MESSAGES:
            return False
        head = self._loaded[0]
        if isinstance(head, Removal):
            return self._uncounted is None
        if self._too_large:
            return False
        return self._fits(payload_size(head.payload))

    def _fits(self, size: int) -> bool:
        """Rule 7: within the room, or the one message that may always be under way while there is any."""
        if self._room <= 0:
            return False
        return not self._in_flight or self.in_flight_bytes + size <= self._room

    def frame(self) -> bytes | None:
        """The next frame of this channel; None when there is none that may go now."""
        if not self.flowing:
            return None
        if self._large is not None:
            return self._piece(self._large)
        if not self._sendable():
            return None
        head = self._loaded[0]
        if isinstance(head, Removal):
            return self._skip(head)
        size = payload_size(head.payload)
        if size > self._peer_max:
            self._too_large = head.seq
            return None
        if size > frames.PACK:
            return self._start_large(head, size)
        return self._pack(head.seq, size)

    def _sent(self, next_seq: int, size: int, messages: int) -> None:
        self._in_flight.append((next_seq, size, messages))
        self._in_flight_messages += messages
        self.in_flight_bytes += size
        self.sent_high = max(self.sent_high, next_seq)
        if self._large is None:
            self.handed = max(self.handed, next_seq)

    def _skip(self, head: Removal) -> bytes:
        self._loaded.popleft()
        self._sent(head.next, 0, 0)
        return frames.encode(frames.Skip(self.label, head.next, head.reason, head.messages))

    def _most(self, first: int) -> int:
        """How many messages to look at for a frame whose first has that size: as fit if all have it, or the usual one."""
        usual = self._loaded_bytes // len(self._loaded)
        return min(PACK_MESSAGES, frames.PACK // max(1, min(first, usual)) + 1)

    def _pack(self, seq: int, first: int) -> bytes:
        """As many of the loaded messages as one frame and the peer's room take: at least one, whose size is `first`."""
        loaded, room = self._loaded, self._room - self.in_flight_bytes
        heads: list[Any] = list(islice(loaded, self._most(first)))
        if set(map(type, heads)) != {OutMessage} or heads[-1].seq != seq + len(heads) - 1:
            together = zip(heads, count(seq), strict=False)
            heads = [head for head, _ in takewhile(lambda pair: _is_message(*pair), together)]
        payloads: list[Payload] = [head.payload for head in heads]
        sizes = payload_sizes(payloads)
        total = sizes[0]
        for place, size in enumerate(sizes[1:], 1):
            if size > self._peer_max or total + size + 5 * place > frames.PACK or total + size > room:
                del payloads[place:]
                break
            total += size
        for _ in payloads:
            loaded.popleft()
        self._loaded_bytes -= total
        self.sent += len(payloads)
        self._sent(seq + len(payloads), total, len(payloads))
        return frames.data_frame(self.label, seq, payloads)

    def _start_large(self, head: OutMessage, size: int) -> bytes:
        self._loaded.popleft()
        self._loaded_bytes -= size
        text = isinstance(head.payload, str)
        data = head.payload.encode() if isinstance(head.payload, str) else head.payload or b""
        self._large = _Large(head.seq, text, data)
        self._offset = 0
        self.sent += 1
        self._sent(head.seq + 1, size, 1)
        return self._piece(self._large)

    def _piece(self, large: _Large) -> bytes:
        offset = self._offset
        chunk = large.data[offset : offset + frames.PACK]
        self._offset += len(chunk)
        if self._offset == len(large.data):
            self._large = None
            self.handed = max(self.handed, large.seq + 1)
        return frames.encode(frames.Piece(self.label, large.seq, offset, len(large.data), large.text, chunk))


def _is_message(item: OutItem, seq: int) -> bool:
    """Whether it is the message of that number."""
    return isinstance(item, OutMessage) and item.seq == seq
