"""Data channels of the engine on libdatachannel.

Messages stay with the library until the loop takes them, a batch at a time: the library stops the peer when 1,024 are
waiting, so nothing is lost to a slow loop, and memory is bounded. Nobody is told of a single message.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from rondevud.errors import TransportError
from rondevud.transport.base import ChannelOptions, ChannelState, Message
from rondevud.transport.channels import nothing
from rondevud.transport.libdatachannel_threads import Held, discard

if TYPE_CHECKING:
    import libdatachannel

    from rondevud.transport.libdatachannel_connection import LibdatachannelPeerConnection

logger = logging.getLogger(__name__)

BATCH_MESSAGES = 128
BATCH_BYTES = 512 * 1024
"""What one channel delivers in one turn of the loop."""

WATCH_SHORT = 0.002
WATCH_LONG = 0.02
"""Seconds between two looks at a buffer that is to fall. Below it the library holds up to 1 MiB more: the network has work
meanwhile."""


END_TOGETHER = 0.01
"""Seconds after the end of a channel within which the library reports that of its connection."""


class LibdatachannelDataChannel:
    """A `DataChannel`. `on_native_…` are called in threads of the library, everything else in the loop."""

    def __init__(
        self, connection: LibdatachannelPeerConnection, label: str, protocol: str, options: ChannelOptions
    ) -> None:
        """`attach` gives it the library's channel, now or soon."""
        self.label = label
        self.protocol = protocol
        self.options = options
        self.on_open: Callable[[], None] = nothing
        self.on_close: Callable[[], None] = nothing
        self.on_buffered_amount_low: Callable[[], None] = nothing
        self._on_message: Callable[[Message], None] = nothing
        self._connection = connection
        self._native: libdatachannel.DataChannel | None = None
        self._state = ChannelState.CONNECTING
        self._close_reported = False
        self._muted = False
        """Whether nothing is delivered any more: this side has closed it, or the connection."""
        self._ended = False
        """Whether nothing more is taken from the library."""
        self._kept: deque[Message] = deque()
        """What came before the end and has no handler yet; the library's limit holds."""
        self._reading_due = False
        self._threshold = 0
        self._handed_over = 0
        """Bytes given to the library in this turn of the loop."""
        self._above = False
        """Whether the buffer has been over the threshold since it was below it last."""
        self._watch: asyncio.Handle | None = None
        self._watch_interval = WATCH_SHORT

    @classmethod
    def of_peer(cls, connection: LibdatachannelPeerConnection, held: Held[libdatachannel.DataChannel]) -> Self:
        """One that the peer opened. Raises `UnicodeDecodeError` for a label or protocol that is not UTF-8."""
        native = held.native
        made = cls(connection, native.label(), native.protocol(), options_of(native.reliability()))
        made.attach(held)
        return made

    def attach(self, held: Held[libdatachannel.DataChannel]) -> None:
        self._native = native = held.native
        # Each of these may be late; what has been missed is made up for by `catch_up`.
        native.on_open(held.callback(self._on_native_open))
        native.on_closed(held.callback(self._on_native_closed))
        native.on_available(held.callback(self._on_native_available))

    def __repr__(self) -> str:
        return f"{self._connection!r} channel {self.label[:64]!r}"

    @property
    def state(self) -> ChannelState:
        """One that the library has closed takes no message any more, though its end has not been reported yet."""
        if self._state is ChannelState.OPEN and self._native is not None and self._native.is_closed():
            return ChannelState.CLOSED
        return self._state

    @property
    def on_message(self) -> Callable[[Message], None]:
        return self._on_message

    @on_message.setter
    def on_message(self, handler: Callable[[Message], None]) -> None:
        self._on_message = handler
        self._read_soon()  # what came before, also if the peer has closed meanwhile

    @property
    def buffered_amount(self) -> int:
        """What was handed over in this turn counts in full, as in a browser; the library may have passed it on at once."""
        return max(self._native.buffered_amount() if self._native is not None else 0, self._handed_over)

    @property
    def buffered_amount_low_threshold(self) -> int:
        return self._threshold

    @buffered_amount_low_threshold.setter
    def buffered_amount_low_threshold(self, value: int) -> None:
        self._threshold = value
        self._look_at_buffer()

    @property
    def unacknowledged(self) -> int:
        return 0  # the library does not tell

    def send(self, message: Message) -> None:
        state, native = self.state, self._native
        if state is not ChannelState.OPEN or native is None:
            raise TransportError(f"channel {self.label[:64]!r} is {state}, not open")
        try:
            native.send(message)
        except Exception as error:
            raise TransportError(f"channel {self.label[:64]!r}: {str(error) or type(error).__name__}") from error
        self._handed_over += len(message)
        self._look_at_buffer()

    def close(self) -> None:
        if self._state is ChannelState.CLOSED:
            return
        self._state = ChannelState.CLOSED
        self.mute()
        if self._native is not None:
            self._connection.close_native_channel(self._native)
        else:
            asyncio.get_running_loop().call_soon(self.report_close)

    # --- what the connection calls -----------------------------------------------------------------------------------

    def mark_open(self) -> None:
        """Called for channels of the peer, which are open when they are shown."""
        self._state = ChannelState.OPEN

    def catch_up(self) -> None:
        """Find what happened before the library had our callbacks."""
        if self._native is None:
            return
        if self._native.is_open():
            self._on_native_open()
        if self._native.available_amount():
            self._on_native_available()
        if self._native.is_closed():
            self._on_native_closed()

    def mute(self) -> None:
        """Deliver nothing from now on. What came is thrown away, else the library's threads would wait for a reader."""
        self._muted = self._ended = True
        many = len(self._kept) + (discard(self._native) if self._native is not None else 0)
        self._connection.count_more("messages_after_close", many)
        self._kept.clear()

    def report_close(self) -> None:
        """Say once that the channel is closed, after everything that was received on it."""
        if self._close_reported:
            return
        self._deliver(None)
        self._ended = True
        while not self._muted and (message := self._take()) is not None:
            self._kept.append(message)
        self._state = ChannelState.CLOSED
        self._close_reported = True
        if self._watch is not None:
            self._watch.cancel()
        self._connection.forget_channel(self, self._native)
        self._connection.call(self.on_close)

    # --- from the library --------------------------------------------------------------------------------------------

    def _on_native_open(self) -> None:
        self._connection.post(self._opened)

    def _on_native_closed(self) -> None:
        self._connection.post(self._closed_by_engine)

    def _on_native_available(self) -> None:
        """Called when there is a message and there was none."""
        if self._ended:
            if self._native is not None:
                discard(self._native)
        elif not self._reading_due:
            self._reading_due = True
            self._connection.post(self._read)

    # --- in the loop -------------------------------------------------------------------------------------------------

    def _opened(self) -> None:
        if self._state is ChannelState.CONNECTING:
            self._connection.note_connected()
            self._state = ChannelState.OPEN
            self._connection.call(self.on_open)

    def _closed_by_engine(self) -> None:
        """When the connection ends, its channels do so first in the library; the end of all is to be reported as one."""
        if not self._connection.check_end():
            asyncio.get_running_loop().call_later(END_TOGETHER, self._close_alone)

    def _close_alone(self) -> None:
        if not self._connection.check_end():
            self.report_close()

    def _read_soon(self) -> None:
        if not self._reading_due:
            self._reading_due = True
            asyncio.get_running_loop().call_soon(self._read)

    def _read(self) -> None:
        self._reading_due = False
        if not self._deliver(BATCH_MESSAGES):
            self._read_soon()

    def _deliver(self, most: int | None) -> bool:
        """Hand messages to whoever listens, `most` of them at most; whether there are none left for now."""
        size = count = 0
        while not self._muted and self._on_message is not nothing:
            if most is not None and (count == most or size >= BATCH_BYTES):
                return False
            message = self._kept.popleft() if self._kept else self._take()
            if message is None:
                return True
            count += 1
            size += len(message)
            self._connection.call(self._on_message, message)
        return True

    def _take(self) -> Message | None:
        """The next message of the library; what says it is text and is not UTF-8 is passed over."""
        while self._native is not None:
            try:
                return self._native.receive()
            except UnicodeDecodeError:
                self._connection.count_more("malformed_messages", 1)
        return None

    def _look_at_buffer(self) -> None:
        if self.buffered_amount > self._threshold:
            self._above = True
        if self._watch is None and (self._above or self._handed_over) and not self._close_reported:
            self._watch_interval = WATCH_SHORT
            self._watch = asyncio.get_running_loop().call_soon(self._watch_buffer)

    def _watch_buffer(self) -> None:
        """Wait for the buffer to fall.

        The library could say so, but does it while it holds a lock that other calls wait for with the interpreter's: both
        would stand still.
        """
        self._watch, self._handed_over = None, 0
        if not self._above or self._state is not ChannelState.OPEN or self._native is None:
            return
        if self._native.buffered_amount() <= self._threshold:
            self._above = False
            self._connection.call(self.on_buffered_amount_low)
            return
        self._watch = asyncio.get_running_loop().call_later(self._watch_interval, self._watch_buffer)
        self._watch_interval = min(WATCH_LONG, self._watch_interval * 1.5)


def options_of(reliability: libdatachannel.Reliability) -> ChannelOptions:
    life_time = reliability.max_packet_lifetime
    return ChannelOptions(
        not reliability.unordered,
        reliability.max_retransmits,
        None if life_time is None else round(life_time / dt.timedelta(milliseconds=1)),
    )
