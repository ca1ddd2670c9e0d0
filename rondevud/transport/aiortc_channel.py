"""Data channels of the engine on aiortc."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from rondevud.errors import TransportError
from rondevud.transport.base import ChannelOptions, ChannelState, Message
from rondevud.transport.channels import nothing

if TYPE_CHECKING:
    from aiortc import RTCDataChannel

    from rondevud.transport.aiortc import AiortcPeerConnection

logger = logging.getLogger(__name__)

EARLY_MESSAGES = 1_024
"""Messages kept of a channel that has no handler yet."""

EARLY_BYTES = 4 * 1024 * 1024
"""Size of the messages kept of a channel that has no handler yet."""


class Utf8Label(str):
    """A text whose length is that of its UTF-8 form: aiortc writes ``len(label)`` where the wire has bytes."""

    __slots__ = ()

    def __len__(self) -> int:
        return len(self.encode())


class AiortcDataChannel:
    """A `DataChannel`."""

    def __init__(self, connection: AiortcPeerConnection, channel: RTCDataChannel) -> None:
        self.label = str.__str__(channel.label)
        self.protocol = str.__str__(channel.protocol)
        self.options = ChannelOptions(channel.ordered, channel.maxRetransmits, channel.maxPacketLifeTime)
        self.on_open: Callable[[], None] = nothing
        self.on_close: Callable[[], None] = nothing
        self.on_buffered_amount_low: Callable[[], None] = nothing
        self._on_message: Callable[[Message], None] = nothing
        self._early: deque[Message] | None = deque()
        """What came before there was a handler; None once it has been delivered."""
        self._early_bytes = 0
        self._connection = connection
        self._channel = channel
        self._state = ChannelState(channel.readyState)
        self._close_reported = False
        self._muted = False
        """Whether this side has closed it: nothing is delivered any more."""
        channel.on("open", self._opened)
        channel.on("message", self._received)
        channel.on("close", self._closed_by_engine)
        channel.on("bufferedamountlow", self._drained)

    def __repr__(self) -> str:
        return f"{self._connection!r} channel {self.label[:64]!r}"

    @property
    def state(self) -> ChannelState:
        return self._state

    @property
    def on_message(self) -> Callable[[Message], None]:
        return self._on_message

    @on_message.setter
    def on_message(self, handler: Callable[[Message], None]) -> None:
        self._on_message = handler
        if self._early:  # what came before, also if the peer has closed meanwhile
            asyncio.get_running_loop().call_soon(self._deliver_early)
        else:
            self._early = None

    @property
    def buffered_amount(self) -> int:
        return self._channel.bufferedAmount

    @property
    def buffered_amount_low_threshold(self) -> int:
        return self._channel.bufferedAmountLowThreshold

    @buffered_amount_low_threshold.setter
    def buffered_amount_low_threshold(self, value: int) -> None:
        self._channel.bufferedAmountLowThreshold = value

    @property
    def unacknowledged(self) -> int:
        return self._connection.unacknowledged(self._channel.id)

    def send(self, message: Message) -> None:
        if self._state is not ChannelState.OPEN:
            raise TransportError(f"channel {self.label[:64]!r} is {self._state}, not open")
        try:
            self._channel.send(message)
        except Exception as error:
            raise TransportError(f"channel {self.label[:64]!r}: {str(error) or type(error).__name__}") from error

    def close(self) -> None:
        if self._state is ChannelState.CLOSED:
            return
        self._state = ChannelState.CLOSED
        self._muted = True
        self.drop_early()
        try:
            self._channel.close()
        except Exception:
            logger.exception("%r: closing failed", self)
            self.report_close()

    def report_close(self) -> None:
        """Say once that the channel is closed, after everything that was received on it."""
        if self._close_reported:
            return
        self._deliver_early()
        self._state = ChannelState.CLOSED
        self._close_reported = True
        self._connection.forget_channel(self)
        self._connection.call(self.on_close)

    def _opened(self) -> None:
        if self._state is ChannelState.CONNECTING:
            self._state = ChannelState.OPEN
            self._connection.call(self.on_open)

    def _received(self, message: Message) -> None:
        if self._state is ChannelState.CLOSED:
            self._connection.count("messages_after_close")
        elif self._early is None:
            self._connection.call(self._on_message, message)
        elif len(self._early) == EARLY_MESSAGES or self._early_bytes + len(message) > EARLY_BYTES:
            if not self._connection.count("early_messages_dropped"):
                logger.warning("%r: messages are dropped, nobody reads them", self)
        else:
            self._early.append(message)
            self._early_bytes += len(message)

    def _deliver_early(self) -> None:
        if self._on_message is nothing:
            return
        while self._early and not self._muted:
            self._connection.call(self._on_message, self._early.popleft())
        self._early = None

    def drop_early(self) -> None:
        """Count what nobody will read."""
        for _ in self._early or ():
            self._connection.count("early_messages_dropped")
        self._early = None

    def _drained(self) -> None:
        if self._state is ChannelState.OPEN:
            self._connection.call(self.on_buffered_amount_low)

    def _closed_by_engine(self) -> None:
        self._connection.check_association()  # when that has ended, the connection has, and this channel with it
        self.report_close()
