"""Peer connections of the engine on libdatachannel; of the rules they follow see `libdatachannel_threads`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rondevud.errors import TransportError
from rondevud.transport.base import (
    RELIABLE,
    CandidatePair,
    ChannelOptions,
    ChannelState,
    ConnectionState,
    DataChannel,
    IceCandidates,
)
from rondevud.transport.channels import check_channel, nothing
from rondevud.transport.libdatachannel_channel import LibdatachannelDataChannel
from rondevud.transport.libdatachannel_threads import Inbox, Natives, closer
from rondevud.transport.sdp import MAX_CANDIDATES, Candidate, Kind, check_description, parse_candidate

if TYPE_CHECKING:
    import libdatachannel

    from rondevud.transport.libdatachannel import LibdatachannelEngine

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT = 2.0
"""Seconds that `close` waits for the library: it lets the association end in good order, which takes it 11 s and more when
the peer is gone, and there may be others to be closed before. It goes on in the background then."""

PROBE_STREAM = 1_023
"""The highest stream that the library takes; channels get the lowest that are free."""

MAX_MESSAGE_SIZE = 262_144
"""Bytes of the largest message that we announce, as aiortc and browsers do."""

_ORDER = list(ConnectionState)

_STATES = {
    "Connecting": ConnectionState.CONNECTING,
    "Connected": ConnectionState.CONNECTED,
    "Disconnected": ConnectionState.CLOSED,
    "Failed": ConnectionState.CLOSED,
    "Closed": ConnectionState.CLOSED,
}

_ENDED = {name for name, state in _STATES.items() if state is ConnectionState.CLOSED}


class LibdatachannelPeerConnection:
    """A `PeerConnection`. `_on_native_…` are called in threads of the library, everything else in the loop."""

    def __init__(
        self, engine: LibdatachannelEngine, native: libdatachannel.PeerConnection, inbox: Inbox, number: int
    ) -> None:
        self.on_state: Callable[[ConnectionState], None] = nothing
        self.on_data_channel: Callable[[DataChannel], None] = nothing
        self._engine = engine
        self._native = native
        self._inbox = inbox
        self._number = number
        self._state = ConnectionState.NEW
        self._channels: dict[LibdatachannelDataChannel, None] = {}
        self._natives = Natives(native)
        self._opened_any = False
        self._probe: libdatachannel.DataChannel | None = None
        self._ready = False
        """Whether channels may be made while the connection stands."""
        self._deferred: list[LibdatachannelDataChannel] = []
        """Made before that, and not known to the library yet."""
        self._gathered = asyncio.Event()
        """Also set when the connection has closed."""
        self._closing = False
        self._close_task: asyncio.Task[None] | None = None
        self._held_candidates: list[Candidate] = []
        """Trickled before there was a description."""
        self._described = False
        self._remote_candidates = 0
        held = self._natives.connection
        native.on_state_change(held.callback(self._on_native_state))
        native.on_gathering_state_change(held.callback(self._on_native_gathering))
        native.on_data_channel(held.callback(self._on_native_channel))

    def __repr__(self) -> str:
        return f"webrtc-{self._number}"

    @property
    def state(self) -> ConnectionState:
        return self._state

    @property
    def selected_pair(self) -> CandidatePair | None:
        import libdatachannel  # noqa: PLC0415

        local, remote = libdatachannel.Candidate(), libdatachannel.Candidate()
        if self._closing or not self._native.get_selected_candidate_pair(local, remote):
            return None
        types = {
            libdatachannel.Candidate.Type.Host: "host",
            libdatachannel.Candidate.Type.ServerReflexive: "srflx",
            libdatachannel.Candidate.Type.PeerReflexive: "prflx",
            libdatachannel.Candidate.Type.Relayed: "relay",
        }
        return CandidatePair(
            _address(local.address(), local.port()),
            types.get(local.type(), "unknown"),
            _address(remote.address(), remote.port()),
            types.get(remote.type(), "unknown"),
        )

    @property
    def ice_candidates(self) -> IceCandidates:
        return IceCandidates(_listed(self._native.local_description()), _listed(self._native.remote_description()))

    @property
    def max_message_size(self) -> int:
        return min(self._native.remote_max_message_size(), MAX_MESSAGE_SIZE)

    # --- what channels call ----------------------------------------------------------------------------------------

    def call(self, handler: Callable[..., None], *arguments: Any) -> None:
        """Call a handler; an exception in it is logged and counted."""
        try:
            handler(*arguments)
        except Exception:
            self.count("handler_errors")
            logger.exception("%r: a handler failed", self)

    def post(self, handler: Callable[..., None], *arguments: Any) -> None:
        """Have `handler` called in the loop. To be called in any thread."""
        self._inbox.put(handler, *arguments)

    def count(self, what: str) -> None:
        self._engine.counters[what] += 1

    def count_more(self, what: str, many: int) -> None:
        if many:
            self._engine.counters[what] += many

    def note_connected(self) -> None:
        """A channel is open, so the connection is; the library's threads may report that in another order."""
        self._set_state(ConnectionState.CONNECTED)

    def check_end(self) -> bool:
        """Look whether the library has ended the connection, and report it then. Returns whether it has closed."""
        if self._state is not ConnectionState.CLOSED and self._native.state().name in _ENDED:
            self._set_state(ConnectionState.CLOSED)
        return self._state is ConnectionState.CLOSED

    def close_native_channel(self, native: libdatachannel.DataChannel) -> None:
        self._engine.in_thread(native.close)

    def forget_channel(self, channel: LibdatachannelDataChannel, native: libdatachannel.DataChannel | None) -> None:
        self._channels.pop(channel, None)
        if not self._closing and native is not None:
            self._natives.forget(native)

    # --- channels --------------------------------------------------------------------------------------------------

    def create_data_channel(
        self, label: str, *, protocol: str = "", options: ChannelOptions = RELIABLE
    ) -> LibdatachannelDataChannel:
        self._require_open()
        check_channel(label, protocol, options)
        self._opened_any = True
        channel = LibdatachannelDataChannel(self, label, protocol, options)
        self._channels[channel] = None
        if self._probe is None or not self._described or self._ready:
            self._open_channel(channel)
        else:
            self._deferred.append(channel)
        return channel

    def _open_channel(self, channel: LibdatachannelDataChannel) -> None:
        import libdatachannel  # noqa: PLC0415

        label, options = channel.label, channel.options
        init = libdatachannel.DataChannelInit()
        init.protocol = channel.protocol
        reliability = libdatachannel.Reliability()
        reliability.unordered = not options.ordered
        reliability.max_retransmits = options.max_retransmits
        if options.max_packet_life_time is not None:
            reliability.max_packet_lifetime = timedelta(milliseconds=options.max_packet_life_time)
        init.reliability = reliability
        try:
            native = self._native.create_data_channel(label, init)
        except Exception as error:
            self._channels.pop(channel, None)
            raise TransportError(f"channel {label[:64]!r} cannot be opened: {error}") from error
        channel.attach(self._natives.add(native))
        channel.catch_up()

    def _make_probe(self) -> None:
        """Have the library say when it has opened the channels that were made before the connection stood.

        It does so a moment after the connection stands. One that is made in between is opened twice, and the peer then
        closes it, since its stream is in use (aiortc ends the connection). The peer hears nothing of the probe.
        """
        import libdatachannel  # noqa: PLC0415

        if self._probe is None:
            init = libdatachannel.DataChannelInit()
            init.negotiated = True
            init.id = PROBE_STREAM
            self._probe = self._native.create_data_channel("", init)
            self._probe.on_open(self._natives.add(self._probe).callback(self._on_native_ready))

    def _on_native_ready(self) -> None:
        self.post(self._open_deferred)

    def _open_deferred(self) -> None:
        self._ready = True
        deferred, self._deferred = self._deferred, []
        for channel in deferred:
            if channel.state is ChannelState.CONNECTING and self._state is not ConnectionState.CLOSED:
                try:
                    self._open_channel(channel)
                except TransportError as error:
                    logger.warning("%r: %s", self, error)
                    channel.report_close()

    def _on_native_channel(self, native: libdatachannel.DataChannel) -> None:
        held = self._natives.add(native)
        try:
            # Here, in the thread that brings the messages, callbacks can be set without missing one.
            channel = LibdatachannelDataChannel.of_peer(self, held)
        except UnicodeDecodeError:
            self.post(self._refuse_channel, native)
            return
        self.post(self._accept_channel, channel)

    def _refuse_channel(self, native: libdatachannel.DataChannel) -> None:
        self.count("malformed_channels")
        logger.warning("%r: a data channel whose label is not UTF-8 is closed", self)
        self.close_native_channel(native)

    def _accept_channel(self, channel: LibdatachannelDataChannel) -> None:
        if self._state is ConnectionState.CLOSED:
            channel.mute()
            return
        self.note_connected()
        self._channels[channel] = None
        channel.mark_open()
        self.call(self.on_data_channel, channel)

    # --- descriptions ----------------------------------------------------------------------------------------------

    async def create_offer(self) -> str:
        self._require_open()
        if not self._opened_any:
            raise TransportError("an offer needs a data channel: create one first")
        return await self._describe("creating an offer", "Offer")

    async def accept_answer(self, sdp: str) -> None:
        self._require_open()
        self._take_description(sdp, "answer")

    async def create_answer(self, offer_sdp: str) -> str:
        self._require_open()
        self._take_description(offer_sdp, "offer")
        return await self._describe("answering an offer", "Answer")

    async def add_candidate(self, candidate: str, sdp_mid: str | None, sdp_m_line_index: int | None) -> None:
        if not candidate or self._state is ConnectionState.CLOSED:
            return
        parsed = parse_candidate(candidate)
        if parsed is None or self._remote_candidates == MAX_CANDIDATES:
            self.count("candidates_ignored")
            return
        self._remote_candidates += 1
        if self._described:
            self._add_candidate(parsed)
        else:
            self._held_candidates.append(parsed)

    async def _describe(self, what: str, kind: str) -> str:
        import libdatachannel  # noqa: PLC0415

        self._make_probe()
        try:
            # The library's stub hides the class behind an import of its own.
            self._native.set_local_description(libdatachannel.Description.Type[kind])  # type: ignore[attr-defined]
        except Exception as error:
            raise TransportError(f"{what} failed: {error}") from error
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._engine.gathering_time):
                await self._gathered.wait()
        if self._state is ConnectionState.CLOSED:
            raise TransportError(f"the connection was closed while {what}")
        description = self._native.local_description()
        if not _listed(description):
            raise TransportError("this machine has no network address to connect from")
        return str(description)

    def _take_description(self, text: str, kind: Kind) -> None:
        import libdatachannel  # noqa: PLC0415

        description = check_description(text, kind)
        self.count_more("candidates_ignored", description.ignored)
        try:
            offered = libdatachannel.Description(description.text, kind)  # type: ignore[attr-defined]
            self._native.set_remote_description(offered)
        except Exception as error:
            raise TransportError(f"unusable {kind}: {error}") from error
        self._described = True
        self._remote_candidates += description.candidates
        held, self._held_candidates = self._held_candidates, []
        for candidate in held:
            self._add_candidate(candidate)

    def _add_candidate(self, candidate: Candidate) -> None:
        import libdatachannel  # noqa: PLC0415

        text = "candidate:{} 1 UDP {} {} {} typ {}".format(*candidate)
        try:
            self._native.add_remote_candidate(libdatachannel.Candidate(text))
        except Exception as error:  # noqa: BLE001 - of the library
            self.count("candidates_ignored")
            logger.info("%r: a candidate cannot be used: %s", self, error)

    def _require_open(self) -> None:
        if self._state is ConnectionState.CLOSED:
            raise TransportError("the connection is closed")

    # --- states and the end ----------------------------------------------------------------------------------------

    def _on_native_state(self, state: libdatachannel.PeerConnection.State) -> None:
        reached = _STATES.get(state.name)
        if reached is not None:
            self.post(self._set_state, reached)

    def _on_native_gathering(self, state: libdatachannel.PeerConnection.GatheringState) -> None:
        if state.name == "Complete":
            self.post(self._gathered.set)

    def _set_state(self, state: ConnectionState) -> None:
        if _ORDER.index(state) <= _ORDER.index(self._state):
            return
        logger.debug("%r: %s -> %s", self, self._state, state)
        self._state = state
        if state is ConnectionState.CLOSED:
            self._closing = True
            for channel in list(self._channels):
                channel.report_close()
            self._gathered.set()
            self._begin_close()
        self.call(self.on_state, state)

    def _begin_close(self) -> asyncio.Task[None]:
        if self._close_task is None:
            self._close_task = asyncio.create_task(self._shut_down(), name=f"{self!r} closing")
        return self._close_task

    async def close(self) -> None:
        for channel in list(self._channels):
            channel.mute()
        self._set_state(ConnectionState.CLOSED)
        await asyncio.shield(self._begin_close())

    async def _shut_down(self) -> None:
        """Have the library's part closed in a thread; that goes on by itself when it takes longer than we wait."""
        done = asyncio.Event()

        def report(closed: bool) -> None:
            if not closed:
                self.count("close_errors")
            done.set()

        self._natives.close_in_thread(f"{self!r} closing", lambda closed: self.post(report, closed))
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await done.wait()
        except TimeoutError:
            self.count("slow_closes")
            if closer.is_waiting(self._natives):
                self.count("queued_closes")
                logger.info("%r: others are still being closed, whose peers do not answer; it waits behind them", self)
                self._engine.in_thread(self._natives.silence)
            else:
                logger.info("%r: the peer does not answer; it is closed in the background", self)
        finally:
            self._engine.forget(self)


def _address(address: str | None, port: int | None) -> str:
    return f"[{address}]:{port}" if ":" in (address or "") else f"{address}:{port}"


def _listed(description: object) -> tuple[str, ...]:
    """The candidates of a description, ``address:port type`` each."""
    lines = [] if description is None else str(description).splitlines()
    found = [parse_candidate(line) for line in lines if line.startswith("a=candidate:")]
    return tuple(f"{_address(each.address, each.port)} {each.type}" for each in found if each is not None)
