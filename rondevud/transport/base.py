"""What the daemon needs of a WebRTC library.

An engine makes `PeerConnection`s. All handlers are called in the event loop, one after another, in the order in which
things happened, and never after `PeerConnection.close` has returned; an exception in a handler is logged and goes no
further. Names are those of the W3C API in snake case.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, TypeAlias

#: What a data channel carries: `str` is text, `bytes` is binary.
Message: TypeAlias = str | bytes


class ConnectionState(StrEnum):
    """States of the connection as a whole. `CLOSED` is final, whoever closed."""

    NEW = "new"
    CONNECTING = "connecting"
    CONNECTED = "connected"
    CLOSED = "closed"


class ChannelState(StrEnum):
    CONNECTING = "connecting"
    OPEN = "open"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class ChannelOptions:
    """Reliability of a data channel; None = reliable in that respect (RFC 8832 §5.1)."""

    ordered: bool = True
    max_retransmits: int | None = None
    max_packet_life_time: int | None = None
    """Milliseconds."""


@dataclass(frozen=True, slots=True)
class CandidatePair:
    """The pair in use: ``address:port`` and candidate type (host, srflx, prflx, relay) of both ends."""

    local: str
    local_type: str
    remote: str
    remote_type: str


class DataChannel(Protocol):
    """One RTCDataChannel."""

    label: str
    protocol: str
    options: ChannelOptions
    on_open: Callable[[], None]
    on_message: Callable[[Message], None]
    """Set it at once: in the `on_data_channel` handler, or right after `create_data_channel`. What comes before is kept."""
    on_close: Callable[[], None]
    on_buffered_amount_low: Callable[[], None]
    """Called when `buffered_amount` falls to `buffered_amount_low_threshold` or below."""
    buffered_amount_low_threshold: int

    @property
    def state(self) -> ChannelState: ...

    @property
    def buffered_amount(self) -> int:
        """Bytes handed over and not yet given to the network."""

    def send(self, message: Message) -> None:
        """Hand a message over. Raises `TransportError` when the channel is not open or the message is too long."""

    def close(self) -> None:
        """Close the channel; idempotent."""


class PeerConnection(Protocol):
    """One RTCPeerConnection with data channels only."""

    on_state: Callable[[ConnectionState], None]
    on_data_channel: Callable[[DataChannel], None]
    """A channel that the peer opened; it is open already."""

    @property
    def state(self) -> ConnectionState: ...

    @property
    def selected_pair(self) -> CandidatePair | None: ...

    def create_data_channel(self, label: str, *, protocol: str = "", options: ChannelOptions = ...) -> DataChannel:
        """Open a channel, in-band. Raises `TransportError` for a label or protocol over 65,535 bytes of UTF-8."""

    async def create_offer(self) -> str:
        """The text of an offer with the candidates that were found within the engine's gathering time."""

    async def accept_answer(self, sdp: str) -> None:
        """Take the answer to our offer. Raises `TransportError` for a text that is no usable answer."""

    async def create_answer(self, offer_sdp: str) -> str:
        """Take an offer and answer it, candidates included. Raises `TransportError` for a text that is no usable offer."""

    async def add_candidate(self, candidate: str, sdp_mid: str | None, sdp_m_line_index: int | None) -> None:
        """Add a trickled candidate (``candidate:…``). One that cannot be used is ignored and counted."""

    async def close(self) -> None:
        """Close and free everything; idempotent, bounded in time, raises nothing."""


class Engine(Protocol):
    """Makes peer connections."""

    name: str

    def create_peer_connection(self) -> PeerConnection: ...

    async def close(self) -> None:
        """Close every peer connection that is still there; to be awaited before the loop ends."""


IceServers: TypeAlias = Sequence["IceServer"]


@dataclass(frozen=True, slots=True)
class IceServer:
    """A STUN or TURN server (W3C RTCIceServer)."""

    urls: tuple[str, ...]
    username: str | None = None
    credential: str | None = None
