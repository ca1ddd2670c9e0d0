"""The channels of a session: both halves of each, and where its [8] stands on the current link (sans-I/O).

Rules of ``rondevu.link.1`` that live here: 1 (the clock), 2 (nothing flows before both [8] of this link), 9 (closing and
opening anew), 10 (verdicts). Channels have no opener: each side announces what it holds, and answers what it has not.

Unreliable labels are announced here too, but go on data channels of their own, without numbers (`rondevud.durable.plain`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from rondevud.durable import frames
from rondevud.durable.effects import (
    ChannelClosed,
    ChannelOpened,
    ChannelResumed,
    CreateLabel,
    Effect,
    Execute,
    LabelRefused,
    OpenDataChannel,
    OptionsTaken,
    SessionFailed,
)
from rondevud.durable.incoming import InboxLimits, Incoming
from rondevud.durable.outgoing import Outgoing
from rondevud.errors import PeerError, StoreConflict, StoreError
from rondevud.records import (
    Acknowledge,
    ChannelRecord,
    Durability,
    Expire,
    Operation,
    Payload,
    Put,
    ReadOut,
    Receive,
    Remove,
    SetEpoch,
    Stamp,
    Trim,
)
from rondevud.transport.base import RELIABLE, ChannelOptions


@dataclass(slots=True)
class Lane:
    """A channel of the session: both halves, and where its [8] stands on the current link."""

    label: str
    durability: Durability
    out: Outgoing
    incoming: Incoming
    options: ChannelOptions = RELIABLE
    announced: bool = False
    answer_due: bool = False
    drawing: bool = False
    closing: bool = False
    closed: bool = False

    @property
    def unreliable(self) -> bool:
        return self.options != RELIABLE


class Lanes(Mapping[str, Lane]):
    """The lanes by label. `clock_us` is microseconds since 1970 at the daemon's start; `emit` takes effects."""

    def __init__(
        self,
        channels: Iterable[tuple[ChannelRecord, InboxLimits, ChannelOptions]],
        most: int,
        *,
        plain: bool = False,
        connecting: bool = False,
        clock_us: int,
        random: Callable[[int], bytes],
        emit: Callable[[Effect], None],
        offer: Callable[[Durability], int | None] = lambda _durability: None,
    ) -> None:
        """`offer` tells how many bytes all inboxes of a durability may still take together; None = unlimited."""
        self._lanes: dict[str, Lane] = {}
        self._by_id: dict[int, Lane] = {}
        self.plain = plain
        """Whether the peer is a plain one: no label has frames."""
        self._connecting = connecting
        self._most = most
        self._clock_us = clock_us
        self._random = random
        self._emit = emit
        self._offer = offer
        self._turn: deque[Lane] = deque()
        self._waiting: dict[str, frames.Channel] = {}
        """The peer's [8] of labels that are being made."""
        self._attached = False
        self._peer_max = 0
        for channel, limits, options in channels:
            self._add(channel, limits, options)

    def __getitem__(self, label: str) -> Lane:
        return self._lanes[label]

    def __iter__(self) -> Iterator[str]:
        return iter(self._lanes)

    def __len__(self) -> int:
        return len(self._lanes)

    # --- links -----------------------------------------------------------------------------------------------------

    def attach(self, peer_max: int) -> None:
        """Another link carries the session; `peer_max` is the largest message that its peer takes, in bytes."""
        self.detach()
        self._attached = True
        self._peer_max = peer_max

    def end_plain(self) -> None:
        """The peer, a plain one so far, is on a link now: it knows none of the numbers that were given to what it got."""
        self.plain = False
        for lane in self._lanes.values():
            self._number_anew(lane)

    def _number_anew(self, lane: Lane) -> None:
        """Numbers that the peer is told from now on must not look like ones that it had and lost."""
        lane.out.forget_plain()
        self._draw_epoch(lane, reopen=False)

    def detach(self) -> None:
        """No link carries the session."""
        self._attached = False
        self._waiting.clear()
        for lane in self._lanes.values():
            lane.announced = lane.answer_due = False
            lane.incoming.link_lost()
            if not lane.unreliable:  # who carries those has to see first what they had under way
                lane.out.link_lost()

    # --- what programs do ------------------------------------------------------------------------------------------

    def add(self, record: ChannelRecord, limits: InboxLimits, options: ChannelOptions = RELIABLE) -> Lane:
        """A channel that has been made in the store; it is announced on the current link."""
        lane = self._add(record, limits, options)
        waiting = self._waiting.pop(record.label, None)
        if waiting is not None and self._attached:
            self._on_channel(waiting)
        return lane

    def _add(self, record: ChannelRecord, limits: InboxLimits, options: ChannelOptions) -> Lane:
        out, incoming = Outgoing(record, self._clock_us), Incoming(record, limits)
        lane = Lane(record.label, record.durability, out, incoming, options)
        lane.closed = self._is_closed(lane)
        self._lanes[record.label] = self._by_id[record.id] = lane
        self._turn.append(lane)
        incoming.offer = partial(self._offer, record.durability)
        return lane

    def put(
        self,
        label: str,
        payloads: tuple[Payload, ...],
        stamp: Stamp,
        *,
        max_age: float | None = None,
        producer: int = 0,
        first_seq: int = 0,
        rejected: tuple[tuple[int, str], ...] = (),
    ) -> Put:
        """The operation that stores and numbers messages of a channel (rule 1). Submit it, then call `completed`."""
        channel = self._lanes[label].out.channel
        return Put(channel, payloads, stamp, self._clock_us, max_age, producer, first_seq, rejected)

    def close(self, label: str, stamp: Stamp) -> Put | None:
        """The operation that stores this side's closing message; None when it has been asked for already."""
        lane = self._lanes[label]
        if lane.closing or lane.out.closed:
            return None
        lane.closing = True
        return self.put(label, (None,), stamp)

    def reopen(self, label: str) -> None:
        """Open a closed channel anew, under a new epoch (rule 9). The effect is an operation; idempotent."""
        lane = self._lanes[label]
        if lane.closed and not lane.drawing:
            self._draw_epoch(lane, reopen=True)

    def taken(self, label: str, count: int, size: int) -> None:
        """The application acknowledged `count` rows of `size` bytes: room returns."""
        self._lanes[label].incoming.taken(count, size)

    def receive_plain(self, label: str, payload: str | bytes) -> bool:
        """A message of a data channel without frames; False = dropped (see `Incoming.plain`)."""
        return self._lanes[label].incoming.plain(payload, self._clock_us)

    # --- frames ----------------------------------------------------------------------------------------------------

    def receive(
        self, frame: frames.Data | frames.Piece | frames.Ack | frames.Skip | frames.Channel, max_message: int
    ) -> int:
        """A frame of the current link; answers how many bytes it confirmed. Raises `PeerError`."""
        match frame:
            case frames.Data():
                self._lane(frame.label).incoming.data(frame)
            case frames.Piece():
                self._lane(frame.label).incoming.piece(frame, max_message)
            case frames.Ack():
                return self._lane(frame.label).out.ack(frame.recv_next, frame.room)
            case frames.Skip():
                self._lane(frame.label).incoming.skip(frame)
            case frames.Channel():
                self._on_channel(frame)
        return 0

    def _lane(self, label: str) -> Lane:
        lane = self._lanes.get(label)
        if lane is None:
            raise PeerError("a frame for a label that was not opened on this link")
        return lane

    def _on_channel(self, frame: frames.Channel) -> None:
        lane = self._lanes.get(frame.label)
        if lane is None:
            self._on_new_label(frame)
            return
        if not frame.epoch:
            self._on_unreliable(lane, frame)
            return
        if lane.unreliable:
            self._take_options(lane, RELIABLE)
            lane.announced = False
        opened = lane.out.flowing or lane.out.needs_epoch
        known = lane.incoming.received_epoch
        out = lane.out.peer_channel(frame, self._peer_max)
        incoming = lane.incoming.peer_channel(frame)
        for verdict in (out, incoming):
            if verdict is not None:
                self._emit(ChannelResumed(frame.label, verdict))
        lane.answer_due |= opened and incoming is not None
        if lane.out.needs_epoch:
            self._draw_epoch(lane, reopen=False)
        elif known not in {b"", frame.epoch} and lane.out.close_confirmed:
            self._draw_epoch(lane, reopen=True)
        if not opened:
            self._emit(ChannelOpened(frame.label, frame.durability))

    def _on_unreliable(self, lane: Lane, frame: frames.Channel) -> None:
        """Reliable wins over unreliable; of two that are unreliable, the connecting side's."""
        if not lane.unreliable:
            return  # what we announce tells the peer
        if lane.closed:
            self._draw_epoch(lane, reopen=True)
        if lane.options != frame.options and not self._connecting:
            self._take_options(lane, frame.options)
        if self._connecting:
            self._emit(OpenDataChannel(lane.label))

    def _take_options(self, lane: Lane, options: ChannelOptions) -> None:
        lane.options = options
        lane.out.link_lost()
        if not lane.unreliable:
            self._number_anew(lane)
        self._emit(OptionsTaken(lane.label, options))

    def _on_new_label(self, frame: frames.Channel) -> None:
        if frame.label.startswith("rondevu"):
            raise PeerError(f"label {frame.label!r:.40} is reserved")
        if frame.label in self._waiting:
            self._waiting[frame.label] = frame
        elif len(self._lanes) + len(self._waiting) >= self._most:
            self._emit(LabelRefused(frame.label, f"more than {self._most} channels"))
        else:
            self._waiting[frame.label] = frame
            self._emit(CreateLabel(frame.label, frame.durability, frame.options))

    def _draw_epoch(self, lane: Lane, *, reopen: bool) -> None:
        if lane.drawing:
            return
        lane.drawing = True
        epoch = self._random(frames.EPOCH_BYTES)
        self._emit(Execute(SetEpoch(lane.out.channel, epoch, max(lane.out.next, self._clock_us), reopen)))

    # --- the store -------------------------------------------------------------------------------------------------

    def completed(self, operation: Operation[Any], outcome: Any) -> int:
        """The outcome of an operation on a channel; answers how many removed messages are in doubt."""
        lane = self._by_id.get(operation.channel)  # type: ignore[attr-defined]
        if lane is None:
            return 0
        if isinstance(outcome, StoreConflict):
            self._emit(SessionFailed("store_conflict", str(outcome)))
            return 0
        if isinstance(operation, SetEpoch):
            self._epoch_set(lane, operation, done=not isinstance(outcome, StoreError))
            return 0
        return self._lane_completed(lane, operation, None if isinstance(outcome, StoreError) else outcome)

    def _lane_completed(self, lane: Lane, operation: Operation[Any], result: Any) -> int:
        in_doubt = 0
        match operation:
            case Put():
                if result is not None:
                    lane.out.stored(result, operation.payloads)
                elif operation.payloads[-1] is None:
                    lane.closing = False
            case Acknowledge():
                lane.out.acknowledged(result)
            case ReadOut():
                lane.out.page_read(result)
            case Remove() | Expire() | Trim():
                in_doubt = lane.out.removed(result.removed) if result is not None else 0
            case Receive():
                lane.incoming.stored(result)
        return in_doubt

    def _epoch_set(self, lane: Lane, operation: SetEpoch, *, done: bool) -> None:
        lane.drawing = False
        if not done:
            self._draw_epoch(lane, reopen=operation.reopen)
            return
        lane.out.new_epoch(operation.epoch, reopened=operation.reopen, announced=lane.announced)
        if operation.reopen:
            lane.closing = lane.closed = lane.incoming.closed = False
        lane.announced = False

    def _settle(self, lane: Lane, stamp: Stamp) -> None:
        """Rule 9: answer the peer's closing message; notice that both are acknowledged."""
        if lane.incoming.closed and not lane.drawing and not lane.closing:
            operation = self.close(lane.label, stamp)
            if operation is not None:
                self._emit(Execute(operation))
        done = self._is_closed(lane)
        if done and not lane.closed:
            self._emit(ChannelClosed(lane.label))
        lane.closed = done

    def _is_closed(self, lane: Lane) -> bool:
        one_sided = self.plain or lane.unreliable  # there the end of the data channel is all the peer hears of it
        return lane.out.close_confirmed and (lane.incoming.closed or one_sided)

    # --- output ----------------------------------------------------------------------------------------------------

    def store_received(self, stamp: Stamp) -> None:
        """Ask for the commits of what has been received, and settle what is being closed."""
        for lane in self._lanes.values():
            self._settle(lane, stamp)
            # What closes the peer's next epoch must not be taken for what closed the one before the label was reopened.
            receive = None if lane.drawing else lane.incoming.wanted(stamp)
            if receive is not None:
                self._emit(Execute(receive))

    def ask_store(self) -> None:
        """Ask for what sending needs of the store."""
        for lane in self._lanes.values():
            if not lane.drawing:  # an acknowledgement of the old epoch must not count in the new one
                for operation in lane.out.wanted():
                    self._emit(Execute(operation))

    def announcements(self) -> Iterator[bytes]:
        """The [8] that are due on the current link.

        A channel waits until everything received on an older link has been stored: else a peer whose store and clock went
        back could not see in `recv_next` that its numbers were given before.
        """
        for lane in self._lanes.values():
            incoming = lane.incoming
            settled = lane.answer_due and incoming.epoch == incoming.received_epoch
            said = lane.announced and not settled
            if said or lane.drawing or not incoming.all_stored or (lane.closed and not incoming.flowing):
                continue
            lane.announced = True
            if lane.unreliable:
                yield frames.encode(frames.Channel(lane.label, b"", b"", 0, 0, 0, Durability.MEMORY, lane.options))
                continue
            lane.answer_due = lane.answer_due and not settled
            frame = frames.Channel(
                lane.label,
                lane.out.epoch,
                incoming.epoch,
                incoming.recv_next if incoming.epoch else 0,  # else: of messages that had no numbers
                incoming.recv_count if incoming.epoch else 0,
                incoming.room,
                lane.durability,
            )
            incoming.told()
            yield frames.encode(frame)

    def acknowledgements(self) -> Iterator[bytes]:
        """The [11] that are due on the current link."""
        for lane in self._lanes.values():
            now = lane.incoming.ack() if lane.announced else None
            if now is not None:
                yield frames.encode(frames.Ack(lane.label, *now))

    def next_frame(self) -> bytes | None:
        """The next frame with messages, round robin over the labels; None when none may go now."""
        for _ in range(len(self._turn)):
            lane = self._turn[0]
            self._turn.rotate(-1)
            framed = lane.announced and not lane.drawing and not lane.unreliable
            data = lane.out.frame() if framed else None
            if data is not None:
                return data
        return None
