"""Data channels without frames: what carries the labels of a plain peer, and the unreliable labels of a link.

    outbox ──Outgoing.message──► data channel ──buffer passed──► gone        data channel ──► Incoming.plain ──► inbox

A label is one channel, however many data channels carry it: messages are taken from all of them, and go out on the one that
a message last came in on, else on the newest that is open. Nothing is acknowledged. A message stays in the outbox until the
engine's buffer has passed it to the network; what was on its way there when the connection ended may be lost, and is
counted.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

from rondevud import failpoints
from rondevud.durable import frames
from rondevud.durable.lanes import Lane, Lanes
from rondevud.durable.pool import SERVICE_LABEL
from rondevud.errors import TransportError
from rondevud.records import payload_size
from rondevud.transport.base import ChannelState, ConnectionState, DataChannel, Message, PeerConnection

logger = logging.getLogger(__name__)

BUFFER_HIGH = 16 * 1024 * 1024
BUFFER_LOW = 8 * 1024 * 1024
"""Bytes in the engine's buffer at which handing over pauses, and goes on: the seed's marks."""

EARLY_MESSAGES = 1_024
EARLY_BYTES = 1024 * 1024
"""What is kept of a label while its channel is being made; one message at least."""

OPEN_LATER = 1.0
"""Seconds for which the side that was dialled leaves it to the other one to open a label: one data channel is enough."""

MOVED_KEPT = 2_048
"""Messages whose sizes are remembered, to tell how many were on their way when a connection ended."""


class Host(Protocol):
    """What carries need of their session."""

    @property
    def lanes(self) -> Lanes: ...

    def want_channel(self, label: str) -> bool:
        """The peer uses a label that is new here: make its channel, then call `lane_added`. False = it is refused."""

    def label_opened(self, label: str) -> None:
        """Messages flow on it."""

    def unsent(self, label: str) -> bool:
        """Whether something waits in its outbox."""

    def label_stopped(self, label: str) -> None:
        """The data channel it went out on is gone; another may take over."""

    def label_closed(self, label: str) -> None:
        """No data channel carries it any more, and the connection is alive."""

    def in_doubt(self, label: str, count: int) -> None:
        """So many messages were on their way when the connection ended."""

    def dropped(self, label: str) -> None:
        """A message of the peer could not be taken."""

    def refuses(self, label: str, message: Message) -> bool:
        """Whether the inbox takes no more; counted there."""

    def schedule_flush(self) -> None: ...


class Carry:
    """One label on its data channels."""

    def __init__(self, label: str, host: Host, connection: PeerConnection) -> None:
        self.label = label
        self.channels: list[DataChannel] = []
        """In the order in which they came."""
        self._host = host
        self._connection = connection
        self._heard: DataChannel | None = None
        """The one that a message last came in on."""
        self._current: DataChannel | None = None
        self._paused = False
        self._closing = False
        """Whether this side closes the data channels that there are."""
        self.over = False
        """Whether the peer has closed the label for good: this side's closing message needs no data channel any more."""
        self._ended = False
        self._early: deque[Message] = deque()
        self._early_bytes = 0
        self._moved: deque[int] = deque(maxlen=MOVED_KEPT)
        """Bytes of the messages given to the engine last."""

    @property
    def lane(self) -> Lane | None:
        return self._host.lanes.get(self.label)

    # --- data channels ---------------------------------------------------------------------------------------------

    def add(self, channel: DataChannel) -> None:
        """Another data channel of this label, open or about to be."""
        channel.on_message = lambda message: self._receive(channel, message)
        if channel.state is ChannelState.CLOSED:  # what came on it is all there will be
            return
        self.over = False
        self.channels.append(channel)
        channel.on_close = lambda: self._closed(channel)
        channel.on_open = self._host.schedule_flush
        channel.on_buffered_amount_low = self._host.schedule_flush
        self._host.schedule_flush()

    def open(self) -> None:
        """Open a data channel. Raises `TransportError`."""
        lane = self._host.lanes[self.label]
        self.add(self._connection.create_data_channel(self.label, options=lane.options))

    @property
    def carried(self) -> bool:
        """Whether a data channel is open, or about to be."""
        return bool(self.channels)

    @property
    def waiting(self) -> bool:
        """Whether messages of the peer wait for the channel."""
        return bool(self._early)

    def _closed(self, channel: DataChannel) -> None:
        if self._ended or self._connection.state is ConnectionState.CLOSED:
            return  # `end` follows
        self._pass()
        self.channels.remove(channel)
        if self._heard is channel:
            self._heard = None
        if self._current is channel:
            self._stop()
        if not self.channels:
            if not self._closing and self.lane is not None:
                self._host.label_closed(self.label)
            self._closing = False
        self._host.schedule_flush()

    def _stop(self) -> None:
        """The data channel in use is gone: what it has not passed on goes on the next one."""
        self._current = None
        lane = self.lane
        if lane is not None:
            self._forget_moved(lane.out.in_flight_bytes)
            lane.out.link_lost()
            self._host.label_stopped(self.label)

    def _forget_moved(self, size: int) -> None:
        """The last messages, of `size` bytes, will be moved again."""
        while size > 0 and self._moved:
            size -= self._moved.pop()

    def close(self) -> None:
        """Close every data channel behind what was sent; nothing is said of it."""
        self._closing = True
        for channel in list(self.channels):
            channel.close()

    def end(self) -> None:
        """The connection is gone, or this label's part of it: count what was on its way. What came early stays."""
        self._ended = True
        if self._current is None:
            return
        self._pass()
        self._stop()
        count = self._on_their_way(sum(channel.unacknowledged for channel in self.channels))
        if count:
            self._host.in_doubt(self.label, count)

    def _on_their_way(self, unacknowledged: int) -> int:
        """How many of the messages that left the buffer last make up so many bytes."""
        count = 0
        while unacknowledged > 0 and self._moved:
            unacknowledged -= self._moved.pop()
            count += 1
        return count

    def drop_early(self) -> None:
        """Nobody will take what came early."""
        for _ in range(len(self._early)):
            self._host.dropped(self.label)
        self._early.clear()

    # --- in --------------------------------------------------------------------------------------------------------

    def _receive(self, channel: DataChannel, message: Message) -> None:
        self._heard = channel
        lane = self.lane
        if lane is not None and not lane.drawing and not self._early:
            self._take(message)
        elif self._keeps(message) and (lane is not None or self._early or self._host.want_channel(self.label)):
            self._early.append(message)
            self._early_bytes += len(message)
            self._host.schedule_flush()
        else:
            self._host.dropped(self.label)

    def _keeps(self, message: Message) -> bool:
        fits = len(self._early) < EARLY_MESSAGES and self._early_bytes + len(message) <= EARLY_BYTES
        return fits or not self._early

    def _take(self, message: Message) -> None:
        if not self._host.refuses(self.label, message) and not self._host.lanes.receive_plain(self.label, message):
            self._host.dropped(self.label)
        self._host.schedule_flush()

    def _take_early(self) -> None:
        while self._early:
            self._take(self._early.popleft())
        self._early_bytes = 0

    # --- out -------------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Take what came early; hand over what the data channel in use may take."""
        lane = self.lane
        if lane is None or lane.drawing:
            return
        self._take_early()
        if self._ended:
            return
        if self.over:
            self._finish(lane)
            return
        self._choose(lane)
        if self._current is not None:
            self._pass()
            self._send(lane, self._current)
            self._pass()
            self._set_mark()

    def _finish(self, lane: Lane) -> None:
        """Let go of what is left in the outbox."""
        if not lane.out.flowing:
            lane.out.flow_plain(self._connection.max_message_size)
        while lane.out.message() is not None:
            pass
        lane.out.passed(0)

    def _choose(self, lane: Lane) -> None:
        """The data channel that a message last came in on, else the newest; it changes when nothing is in the buffers."""
        usable = [channel for channel in self.channels if channel.state is ChannelState.OPEN]
        if not usable:
            return
        chosen = self._heard if self._heard in usable else usable[-1]
        if self._current is None:
            self._current = chosen
            lane.out.flow_plain(self._connection.max_message_size)
            self._host.label_opened(self.label)
        elif chosen is not self._current and not lane.out.in_flight_bytes:
            self._current = chosen

    def _send(self, lane: Lane, channel: DataChannel) -> None:
        buffered = channel.buffered_amount
        self._paused = buffered > BUFFER_LOW if self._paused else buffered >= BUFFER_HIGH
        while not self._paused and channel.state is ChannelState.OPEN:
            message = lane.out.message()
            if message is None:
                return
            if message.payload is None:
                self.close()
                return
            failpoints.hit("plain.before")
            try:
                channel.send(message.payload)
            except TransportError as error:
                logger.warning("label %r: %s; its data channel is closed", self.label, error)
                self._stop()
                channel.close()
                return
            failpoints.hit("plain.after")
            self._moved.append(payload_size(message.payload))
            self._paused = channel.buffered_amount >= BUFFER_HIGH

    def _pass(self) -> None:
        """Confirm what the engine has passed to the network."""
        lane = self.lane
        if lane is not None and self._current is not None:
            lane.out.passed(self._current.buffered_amount)

    def _set_mark(self) -> None:
        """Say at how many bytes in the buffer to look again."""
        channel = self._current
        if channel is not None:  # sending can have failed
            channel.buffered_amount_low_threshold = BUFFER_LOW if self._paused else channel.buffered_amount // 2


class PlainLink:
    """A connection with a plain peer. `dialled` says whether this side is the connecting one."""

    def __init__(
        self,
        host: Host,
        connection: PeerConnection,
        channels: Iterable[DataChannel],
        *,
        dialled: bool,
        max_channels: int,
    ) -> None:
        """`channels` are those that there are already."""
        self.connection = connection
        self._host = host
        self._dialled = dialled
        self._max_channels = max_channels
        self._carries: dict[str, Carry] = {}
        self._open_timer: asyncio.TimerHandle | None = None
        """Runs while opening labels is left to the peer."""
        self._parted: Callable[[], None] | None = None
        connection.on_data_channel = self._accept
        for channel in channels:
            self._accept(channel)
        if not dialled:
            self._open_timer = asyncio.get_running_loop().call_later(OPEN_LATER, self._open_ours)
        host.schedule_flush()

    def _accept(self, channel: DataChannel) -> None:
        label = channel.label
        known = label in self._carries or label in self._host.lanes
        if self._parted or not frames.valid_label(label) or (not known and self._full):
            logger.info("A data channel %.40r of a plain peer is closed", label)
            self._host.dropped(label)
            channel.close()
            return
        self._carry(label).add(channel)
        if label in self._host.lanes and self._host.lanes[label].closed:
            self._host.lanes.reopen(label)
        if not known and label != SERVICE_LABEL:  # that one is in every offer, used or not
            self._host.want_channel(label)

    @property
    def _full(self) -> bool:
        return len(self._carries.keys() | self._host.lanes.keys()) >= self._max_channels

    def _carry(self, label: str) -> Carry:
        carry = self._carries.get(label)
        if carry is None:
            carry = self._carries[label] = Carry(label, self._host, self.connection)
        return carry

    def _open_ours(self) -> None:
        self._open_timer = None
        self._host.schedule_flush()

    def flush(self) -> None:
        """Open what has to be opened, move what can be moved."""
        if self._parted:
            self._tell_parted()
            return
        if self._open_timer is None:
            for label, lane in self._host.lanes.items():
                if self._to_open(label, lane):
                    self._try_open(label)
        for carry in list(self._carries.values()):
            carry.flush()

    def _to_open(self, label: str, lane: Lane) -> bool:
        """Whether nobody carries the label; once closed by the peer, or on the dialled side, only for something to send."""
        if lane.out.close_confirmed or lane.drawing or (label in self._carries and self._carries[label].carried):
            return False
        return (self._dialled and label not in self._carries) or self._host.unsent(label)

    def _try_open(self, label: str) -> None:
        try:
            self._carry(label).open()
        except TransportError as error:
            logger.warning("label %r cannot be opened: %s", label, error)

    def part(self, parted: Callable[[], None]) -> None:
        """Close all data channels behind what was sent, then call `parted`; the caller bounds the time."""
        self._stop_timer()
        self._parted = parted
        for carry in self._carries.values():
            carry.close()
        self._host.schedule_flush()

    def _tell_parted(self) -> None:
        if self._parted is not None and not any(carry.carried for carry in self._carries.values()):
            self._parted()

    def end(self) -> list[Carry]:
        """The connection is gone, or about to be closed; answers the carries that have something to take."""
        self._stop_timer()
        for carry in self._carries.values():
            carry.end()
        return [carry for carry in self._carries.values() if carry.waiting]

    def _stop_timer(self) -> None:
        if self._open_timer is not None:
            self._open_timer.cancel()
            self._open_timer = None
