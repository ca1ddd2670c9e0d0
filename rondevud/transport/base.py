"""What the daemon needs of a WebRTC library.

An engine makes `PeerConnection`s. All handlers are called in the event loop, one after another, in the order in which
things happened, and never after `PeerConnection.close` has returned; an exception in a handler is logged, counted, and
goes no further. Names are those of the W3C API in snake case.

Set a connection's handlers before the first ``await`` after making it, a channel's in `on_data_channel` or right after
`create_data_channel`. However it ends, each channel has exactly one `on_close` and each connection exactly one `CLOSED`,
the channels' first; `PeerConnection.close` calls those that are still due itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, TypeAlias

#: What a data channel carries: `str` is text, `bytes` is binary.
Message: TypeAlias = str | bytes

IceServers: TypeAlias = Sequence["IceServer"]

MAX_LABEL = 65_535
"""Bytes of UTF-8 in a label or a protocol name (RFC 8832 §5.1)."""

MAX_RELIABILITY = 65_535
"""Largest `max_retransmits` and `max_packet_life_time` (W3C: unsigned short)."""


class ConnectionState(StrEnum):
    """States of the connection as a whole, never left backwards. `CLOSED` is final, whoever closed."""

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
    """Reliability of a data channel; None = reliable in that respect (RFC 8832 §5.1). At most one limit may be given."""

    ordered: bool = True
    max_retransmits: int | None = None
    max_packet_life_time: int | None = None
    """Milliseconds."""


RELIABLE = ChannelOptions()


@dataclass(frozen=True, slots=True)
class CandidatePair:
    """The pair in use: ``address:port`` and candidate type (host, srflx, prflx, relay) of both ends."""

    local: str
    local_type: str
    remote: str
    remote_type: str


@dataclass(frozen=True, slots=True)
class IceCandidates:
    """What both ends can be reached at, as far as it is known here: ``address:port type`` each."""

    local: tuple[str, ...] = ()
    remote: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class IceServer:
    """A STUN or TURN server (W3C RTCIceServer)."""

    urls: tuple[str, ...]
    username: str | None = None
    credential: str | None = None


class DataChannel(Protocol):
    """One RTCDataChannel."""

    label: str
    protocol: str
    options: ChannelOptions
    on_open: Callable[[], None]
    """Called for channels made here; a channel that the peer opened is open when it is shown."""
    on_message: Callable[[Message], None]
    """Set it at once. What comes before is kept (bounded) and delivered in order soon after it was set, also when the peer
    has closed the channel meanwhile."""
    on_close: Callable[[], None]
    on_buffered_amount_low: Callable[[], None]
    """Called when `buffered_amount` falls to `buffered_amount_low_threshold` or below."""
    buffered_amount_low_threshold: int

    @property
    def state(self) -> ChannelState: ...

    @property
    def buffered_amount(self) -> int:
        """Bytes handed over and not yet given to the network."""

    @property
    def unacknowledged(self) -> int:
        """Bytes given to the network that the other side's SCTP has not acknowledged; 0 when unknown."""

    def send(self, message: Message) -> None:
        """Hand a message over. Raises `TransportError` when the channel is not open or the message is too long."""

    def close(self) -> None:
        """Close the channel behind what was sent; idempotent. No message is delivered from now on."""


class PeerConnection(Protocol):
    """One RTCPeerConnection with data channels only."""

    on_state: Callable[[ConnectionState], None]
    on_data_channel: Callable[[DataChannel], None]
    """A channel that the peer opened; it is open already."""

    @property
    def state(self) -> ConnectionState: ...

    @property
    def selected_pair(self) -> CandidatePair | None: ...

    @property
    def ice_candidates(self) -> IceCandidates: ...

    @property
    def max_message_size(self) -> int:
        """Bytes of the largest message that both sides take (W3C RTCSctpTransport), once connected."""

    def create_data_channel(self, label: str, *, protocol: str = "", options: ChannelOptions = RELIABLE) -> DataChannel:
        """Open a channel, in-band.

        Raises `TransportError` for a label or protocol over 65,535 bytes of UTF-8, for options that do not go together,
        and on a closed connection.
        """

    async def create_offer(self) -> str:
        """The text of an offer with the candidates that were found within the engine's gathering time.

        There must be a data channel already: it makes the data section. Raises `TransportError`, also when the
        connection is closed meanwhile.
        """

    async def accept_answer(self, sdp: str) -> None:
        """Take the answer to our offer. Raises `TransportError` for a text that is no usable answer."""

    async def create_answer(self, offer_sdp: str) -> str:
        """Take an offer and answer it, candidates included. Raises `TransportError` for a text that is no usable offer.

        After a `TransportError` the connection is of no more use: close it.
        """

    async def add_candidate(self, candidate: str, sdp_mid: str | None, sdp_m_line_index: int | None) -> None:
        """Add a trickled candidate (``candidate:…``). One that cannot be used is ignored and counted; "" is the end.

        May be called before the description came. Where it belongs needs no saying, there is only one section.
        """

    async def close(self) -> None:
        """Close and free everything; idempotent, bounded in time, raises nothing.

        What was sent right before is not transmitted: say goodbye, wait for the answer, then close.
        """


class Engine(Protocol):
    """Makes peer connections."""

    name: str
    counters: Counter[str]
    """What went wrong or was dropped, by name; they only rise."""

    @property
    def closing(self) -> int:
        """Connections whose end the library still waits for, after `close` has returned or while it runs."""

    def create_peer_connection(self) -> PeerConnection:
        """Make a connection, in the running loop.

        Raises `TransportError` when the engine cannot be loaded or is closed, and while too many are still `closing`.
        """

    def absorb(self, context: dict[str, Any]) -> bool:
        """Take what a loop's exception handler was given if it comes from the library's own tasks and callbacks.

        True = counted and logged here; False = it is not this engine's, and somebody else's to report.
        """

    async def close(self) -> None:
        """Close every peer connection that is still there; to be awaited before the loop ends. Idempotent."""
