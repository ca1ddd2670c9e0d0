"""The engine on libdatachannel (native code, far faster than aiortc). The library is loaded with the first peer connection.

What happens in it happens in its own threads. They tell an `Inbox`, which wakes the loop once for whatever came together.
Three rules keep the two worlds from waiting for each other, since most calls into the library hold the interpreter's lock:

- No callback is used that the library makes while it holds a lock which another call needs (the low mark of a buffer).
- No call is made that waits for the library's thread pool, whose threads may wait for the interpreter: each connection
  brings its own certificate, where the library would make one in the pool.
- An object of the library is dropped only when it has been closed, by a call that gives the interpreter free.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import itertools
import logging
import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import ifaddr

from rondevud.errors import TransportError
from rondevud.transport import ice
from rondevud.transport.base import (
    RELIABLE,
    CandidatePair,
    ChannelOptions,
    ChannelState,
    ConnectionState,
    DataChannel,
    IceCandidates,
    IceServers,
)
from rondevud.transport.certificate import make_certificate
from rondevud.transport.channels import check_channel, nothing
from rondevud.transport.libdatachannel_channel import LibdatachannelDataChannel, discard
from rondevud.transport.sdp import MAX_CANDIDATES, Candidate, Kind, check_description, parse_candidate

if TYPE_CHECKING:
    import libdatachannel

logger = logging.getLogger(__name__)

GATHERING_TIME = 1.0
"""Seconds that STUN and TURN servers have to answer before an offer or answer goes out without them."""

CLOSE_TIMEOUT = 2.0
"""Seconds that `close` waits for the library: it lets the association end in good order, which takes it half a minute when
the peer is gone. It goes on in the background then."""

CLOSE_ATTEMPTS = 4
"""The library waits 30 s in each."""

EXIT_TIMEOUT = 0.5
"""Seconds that the process waits, when it ends, for connections that are still closing."""

MAX_MESSAGE_SIZE = 262_144
"""Bytes of the largest message that we announce, as aiortc and browsers do."""

PROBE_STREAM = 1_023
"""The highest stream that the library takes; channels get the lowest that are free."""

BATCH = 256
"""Reports of the library's threads that are handled in one turn of the loop."""

_ORDER = list(ConnectionState)

_still_closing: set[threading.Thread] = set()


class Inbox:
    """What the library's threads report, for the loop to handle in order."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._reports: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._due = False

    def put(self, handler: Callable[..., None], *arguments: Any) -> None:
        """Have `handler` called in the loop. To be called in any thread."""
        self._reports.append((handler, arguments))
        if not self._due:
            self._due = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                self._loop.call_soon_threadsafe(self._handle)

    def _handle(self) -> None:
        self._due = False
        for _ in range(BATCH):
            try:
                handler, arguments = self._reports.popleft()
            except IndexError:
                return
            try:
                handler(*arguments)
            except Exception:
                logger.exception("a report of libdatachannel could not be handled")
        if self._reports and not self._due:
            self._due = True
            self._loop.call_soon(self._handle)


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
        self._native_channels: set[libdatachannel.DataChannel] = set()
        """One that nobody refers to is closed by the library, and its stream is used again."""
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
        native.on_state_change(self._on_native_state)
        native.on_gathering_state_change(self._on_native_gathering)
        native.on_data_channel(self._on_native_channel)

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
            self._native_channels.discard(native)

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
        self._native_channels.add(native)
        channel.attach(native)
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
            self._probe.on_open(self._on_native_ready)
            self._native_channels.add(self._probe)

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
        self._native_channels.add(native)
        try:
            # Here, in the thread that brings the messages, callbacks can be set without missing one.
            channel = LibdatachannelDataChannel.of_peer(self, native)
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
            for channel in list(self._channels):
                channel.report_close()
            self._gathered.set()
            self._begin_close()
        self.call(self.on_state, state)

    def _begin_close(self) -> asyncio.Task[None]:
        if self._close_task is None:
            self._closing = True
            self._close_task = asyncio.create_task(self._shut_down(), name=f"{self!r} closing")
        return self._close_task

    async def close(self) -> None:
        for channel in list(self._channels):
            channel.mute()
        self._set_state(ConnectionState.CLOSED)
        await asyncio.shield(self._begin_close())

    async def _shut_down(self) -> None:
        """Have a thread close the library's part; it ends by itself when that takes longer than we wait."""
        done = asyncio.Event()
        thread = threading.Thread(target=self._close_native, args=(done.set,), name=f"{self!r} closing", daemon=True)
        _still_closing.add(thread)
        thread.start()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await done.wait()
        except TimeoutError:
            self.count("slow_closes")
            logger.info("%r: the peer does not answer; it is closed in the background", self)
        finally:
            self._engine.forget(self)

    def _close_native(self, done: Callable[[], None]) -> None:
        """Run in a thread of its own. What still arrives is thrown away meanwhile, else the library would wait for ever."""
        try:
            close_native(self._native, self._native_channels)
        except Exception:
            self.post(lambda: self.count("close_errors"))
            logger.exception("%r: closing failed", self)
        finally:
            self._native_channels.clear()
            _still_closing.discard(threading.current_thread())
            self.post(done)


class LibdatachannelEngine:
    """An `Engine`."""

    name = "libdatachannel"

    def __init__(self, ice_servers: IceServers = (), *, gathering_time: float = GATHERING_TIME) -> None:
        """Raise `TransportError` for a URL in `ice_servers` that cannot be used. `gathering_time` is in seconds."""
        self.counters: Counter[str] = Counter()
        self.gathering_time = gathering_time
        self._servers = ice.ServerRotation(ice_servers)
        for server in ice_servers:
            for url in server.urls:
                if not reaches(url):
                    raise TransportError(
                        f"ice_servers: {url!r}: the engine libdatachannel reaches TURN servers over UDP only; "
                        'engine = "aiortc" can use it'
                    )
        self._connections: set[LibdatachannelPeerConnection] = set()
        self._numbers = itertools.count(1)
        self._closed = False
        self._inbox: Inbox | None = None
        self._threads: ThreadPoolExecutor | None = None

    def create_peer_connection(self) -> LibdatachannelPeerConnection:
        if self._closed:
            raise TransportError("the WebRTC engine is closed")
        require()
        import libdatachannel  # noqa: PLC0415

        if self._inbox is None:
            self._inbox = Inbox(asyncio.get_running_loop())
        try:
            native = libdatachannel.PeerConnection(self._configure())
        except Exception as error:
            raise TransportError(f"the WebRTC engine libdatachannel made no connection: {error}") from error
        connection = LibdatachannelPeerConnection(self, native, self._inbox, next(self._numbers))
        self._connections.add(connection)
        _open_natives.add(native)
        return connection

    def _configure(self) -> libdatachannel.Configuration:
        import libdatachannel  # noqa: PLC0415

        configuration = libdatachannel.Configuration()
        configuration.disable_auto_negotiation = True
        configuration.max_message_size = MAX_MESSAGE_SIZE
        configuration.certificate_pem_file, configuration.key_pem_file = make_certificate()
        servers = []
        for each in self._servers.take():
            scheme, _, place = each.url.partition("?")[0].partition(":")
            host, _, port = place.partition(":")
            if scheme == "stun":
                servers.append(libdatachannel.IceServer(host, int(port or STUN_PORT)))
            else:
                servers.append(
                    libdatachannel.IceServer(
                        host, int(port or STUN_PORT), username=each.username or "", password=each.credential or ""
                    )
                )
        configuration.ice_servers = servers
        if not has_network():
            configuration.bind_address = "127.0.0.1"
        return configuration

    def in_thread(self, call: Callable[[], None]) -> None:
        """Have something called in a thread: it may take a second."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(4, thread_name_prefix="webrtc channels")
        with contextlib.suppress(RuntimeError):  # closed: so is every connection, and its channels with it
            self._threads.submit(call)

    def forget(self, connection: LibdatachannelPeerConnection) -> None:
        """Drop a connection that has closed; called by the connection itself."""
        self._connections.discard(connection)

    def absorb(self, context: dict[str, Any]) -> bool:
        """The library has no tasks in the loop, and callbacks of ours are guarded where they are made."""
        return False

    async def close(self) -> None:
        self._closed = True
        await asyncio.gather(*(connection.close() for connection in self._connections))
        if self._threads is not None:
            self._threads.shutdown(wait=False)


STUN_PORT = 3478

_STATES = {
    "Connecting": ConnectionState.CONNECTING,
    "Connected": ConnectionState.CONNECTED,
    "Disconnected": ConnectionState.CLOSED,
    "Failed": ConnectionState.CLOSED,
    "Closed": ConnectionState.CLOSED,
}

_ENDED = {name for name, state in _STATES.items() if state is ConnectionState.CLOSED}

_open_natives: set[libdatachannel.PeerConnection] = set()
"""Not closed yet. The library ends the process with SIGABRT when it ends with one of them."""


def close_native(native: libdatachannel.PeerConnection, channels: set[libdatachannel.DataChannel]) -> None:
    """Close a connection of the library. To be called in a thread of its own; it takes half a minute if the peer is gone."""
    for channel in list(channels):
        discard(channel)
    _open_natives.discard(native)
    for _ in range(CLOSE_ATTEMPTS):
        with warnings.catch_warnings(action="ignore"):  # it warns when it gives up waiting
            native.close()
        if native.state().name == "Closed":
            break
    deadline = time.monotonic() + 1.0
    while not all(channel.is_closed() or not channel.is_open() for channel in list(channels)):
        if time.monotonic() > deadline:
            break
        time.sleep(0.002)


def _end() -> None:
    """At the end of the process: close what nobody closed."""
    for native in list(_open_natives):
        thread = threading.Thread(target=close_native, args=(native, set()), name="webrtc closing", daemon=True)
        _still_closing.add(thread)
        thread.start()
    deadline = time.monotonic() + EXIT_TIMEOUT
    for thread in list(_still_closing):
        thread.join(max(0.0, deadline - time.monotonic()))


atexit.register(_end)


def require() -> None:
    """Raise `TransportError` where the library cannot be loaded."""
    try:
        import libdatachannel  # noqa: F401, PLC0415
    except ImportError as error:
        raise TransportError(
            f"the WebRTC engine libdatachannel cannot be loaded ({error}): it needs the package libdatachannel-py, which "
            "there is for Python 3.12 and later"
        ) from error


def is_available() -> bool:
    """Whether the library can be loaded here."""
    try:
        require()
    except TransportError:
        return False
    return True


def reaches(url: str) -> bool:
    """Whether the library can use a STUN or TURN server."""
    return not url.startswith("turns:") and not url.endswith("?transport=tcp")


def has_network() -> bool:
    """Whether this machine has an address but its loopback ones; else connections are made over those."""
    for adapter in ifaddr.get_adapters():
        for each in adapter.ips:
            address = each.ip if isinstance(each.ip, str) else each.ip[0]
            if not address.startswith(("127.", "fe80:")) and address != "::1":
                return True
    return False


def _address(address: str | None, port: int | None) -> str:
    return f"[{address}]:{port}" if ":" in (address or "") else f"{address}:{port}"


def _listed(description: object) -> tuple[str, ...]:
    """The candidates of a description, ``address:port type`` each."""
    lines = [] if description is None else str(description).splitlines()
    found = [parse_candidate(line) for line in lines if line.startswith("a=candidate:")]
    return tuple(f"{_address(each.address, each.port)} {each.type}" for each in found if each is not None)
