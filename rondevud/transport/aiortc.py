"""The engine on aiortc (pure Python). The library is loaded with the first peer connection: it costs about 40 MB."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from rondevud.errors import TransportError
from rondevud.transport import ice
from rondevud.transport.aiortc_channel import AiortcDataChannel, Utf8Label
from rondevud.transport.base import (
    RELIABLE,
    CandidatePair,
    ChannelOptions,
    ConnectionState,
    DataChannel,
    IceCandidates,
    IceServers,
)
from rondevud.transport.channels import check_channel, nothing
from rondevud.transport.sdp import MAX_CANDIDATES, Candidate, Kind, check_description, parse_candidate

if TYPE_CHECKING:
    from aiortc import RTCDataChannel, RTCPeerConnection

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

GATHERING_TIME = 1.0
"""Seconds that STUN and TURN servers have to answer before an offer or answer goes out without them."""

OPERATION_TIMEOUT = 10.0
"""Seconds for making or taking a description; what takes longer hangs."""

CLOSE_TIMEOUT = 2.0
"""Seconds that the library has to close a connection before its sockets and tasks are taken from it (a TURN server that
is gone keeps it for a minute)."""

MAX_MESSAGE_SIZE = 262_144
"""Bytes of the largest message that the library takes and announces."""

_STATES = {
    "new": ConnectionState.NEW,
    "connecting": ConnectionState.CONNECTING,
    "connected": ConnectionState.CONNECTED,
    "failed": ConnectionState.CLOSED,
    "closed": ConnectionState.CLOSED,
}
_ORDER = list(ConnectionState)


class AiortcPeerConnection:
    """A `PeerConnection`."""

    def __init__(self, engine: AiortcEngine, pc: RTCPeerConnection, number: int) -> None:
        self.on_state: Callable[[ConnectionState], None] = nothing
        self.on_data_channel: Callable[[DataChannel], None] = nothing
        self._engine = engine
        self._pc = pc
        self._number = number
        self._state = ConnectionState.NEW
        self._channels: dict[AiortcDataChannel, None] = {}
        self._operations: set[asyncio.Task[Any]] = set()
        self._close_task: asyncio.Task[None] | None = None
        self._held_candidates: list[Candidate] = []
        """Trickled before there was a description."""
        self._described = False
        self._remote_candidates = 0
        self._gathering_bounded = False
        pc.on("connectionstatechange", lambda: self._set_state(_STATES[pc.connectionState]))
        pc.on("datachannel", self._accept_channel)

    def __repr__(self) -> str:
        return f"webrtc-{self._number}"

    @property
    def state(self) -> ConnectionState:
        return self._state

    @property
    def selected_pair(self) -> CandidatePair | None:
        return ice.selected_pair(self._pc)

    @property
    def ice_candidates(self) -> IceCandidates:
        return ice.candidates(self._pc)

    @property
    def max_message_size(self) -> int:
        remote = self._pc.sctp._remote_max_message_size if self._pc.sctp is not None else 0
        return min(remote, MAX_MESSAGE_SIZE) or MAX_MESSAGE_SIZE

    def unacknowledged(self, stream: int | None) -> int:
        """Bytes of one stream that are with the network."""
        sctp = self._pc.sctp
        queues = (sctp._sent_queue, sctp._outbound_queue) if sctp is not None else ()
        return sum(len(chunk.user_data) for queue in queues for chunk in queue if chunk.stream_id == stream)

    # --- what channels call ----------------------------------------------------------------------------------------

    def call(self, handler: Callable[..., None], *arguments: Any) -> None:
        """Call a handler; an exception in it would otherwise take the whole connection down.

        Whoever calls has looked at the state: nothing is reported of what has closed.
        """
        try:
            handler(*arguments)
        except Exception:
            self.count("handler_errors")
            logger.exception("%r: a handler failed", self)

    def count(self, what: str) -> int:
        """Count, and return what the counter was before."""
        before = self._engine.counters[what]
        self._engine.counters[what] += 1
        return before

    def forget_channel(self, channel: AiortcDataChannel) -> None:
        self._channels.pop(channel, None)

    def check_association(self) -> None:
        """Treat the end of the SCTP association as the end of the connection: the library never starts another."""
        if self._pc.sctp is not None and self._pc.sctp.state == "closed":
            self._set_state(ConnectionState.CLOSED)

    # --- channels --------------------------------------------------------------------------------------------------

    def create_data_channel(
        self, label: str, *, protocol: str = "", options: ChannelOptions = RELIABLE
    ) -> AiortcDataChannel:
        self._require_open()
        check_channel(label, protocol, options)
        channel = AiortcDataChannel(
            self,
            self._pc.createDataChannel(
                Utf8Label(label),
                protocol=Utf8Label(protocol),
                ordered=options.ordered,
                maxRetransmits=options.max_retransmits,
                maxPacketLifeTime=options.max_packet_life_time,
            ),
        )
        self._channels[channel] = None
        return channel

    def _accept_channel(self, channel: RTCDataChannel) -> None:
        if self._state is ConnectionState.CLOSED:
            return
        # The handlers are set here, before the library goes on: it drops messages that nobody listens to.
        accepted = AiortcDataChannel(self, channel)
        self._channels[accepted] = None
        self.call(self.on_data_channel, accepted)

    # --- descriptions ----------------------------------------------------------------------------------------------

    async def create_offer(self) -> str:
        return await self._run(self._make_offer(), "creating an offer")

    async def accept_answer(self, sdp: str) -> None:
        await self._run(self._take_description(sdp, "answer"), "taking an answer")

    async def create_answer(self, offer_sdp: str) -> str:
        return await self._run(self._make_answer(offer_sdp), "answering an offer")

    async def add_candidate(self, candidate: str, sdp_mid: str | None, sdp_m_line_index: int | None) -> None:
        if not candidate or self._state is ConnectionState.CLOSED:
            return
        parsed = parse_candidate(candidate)
        if parsed is None or self._remote_candidates == MAX_CANDIDATES:
            self.count("candidates_ignored")
            return
        self._remote_candidates += 1
        if self._described:
            await self._add_candidate(parsed)
        else:
            self._held_candidates.append(parsed)

    async def _make_offer(self) -> str:
        if self._pc.sctp is None:
            raise TransportError("an offer needs a data channel: create one first")
        return await self._set_local(await self._pc.createOffer())

    async def _make_answer(self, offer: str) -> str:
        await self._take_description(offer, "offer")
        return await self._set_local(await self._pc.createAnswer())

    async def _set_local(self, description: Any) -> str:
        connection = ice.ice_connection(self._pc)
        if connection is not None and not self._gathering_bounded:
            self._gathering_bounded = True
            ice.bound_gathering(connection, self._engine.gathering_time)
        await self._pc.setLocalDescription(description)
        if connection is None or not connection.local_candidates:
            raise TransportError("this machine has no network address to connect from")
        return self._pc.localDescription.sdp

    async def _take_description(self, text: str, kind: Kind) -> None:
        from aiortc import RTCSessionDescription  # noqa: PLC0415

        description = check_description(text, kind)
        self._engine.counters["candidates_ignored"] += description.ignored
        try:
            await self._pc.setRemoteDescription(RTCSessionDescription(sdp=description.text, type=kind))
        except Exception as error:
            # Every kind of exception comes out of the library's parser, assertions included.
            raise TransportError(f"unusable {kind}: {type(error).__name__} {error}".rstrip()) from error
        self._described = True
        self._remote_candidates += description.candidates
        held, self._held_candidates = self._held_candidates, []
        for candidate in held:
            await self._add_candidate(candidate)

    async def _add_candidate(self, candidate: Candidate) -> None:
        from aiortc import RTCIceCandidate  # noqa: PLC0415

        if self._pc.sctp is None:
            return
        await self._pc.sctp.transport.transport.addRemoteCandidate(
            RTCIceCandidate(
                component=1,
                foundation=candidate.foundation,
                ip=candidate.address,
                port=candidate.port,
                priority=candidate.priority,
                protocol="udp",
                type=candidate.type,
            )
        )

    async def _run(self, operation: Coroutine[Any, Any, Result], what: str) -> Result:
        """Run an operation of the library in a task of this connection, so that nobody's cancellation tears it apart.

        A gathering that is cancelled loses the sockets it has opened so far.
        """
        if self._state is ConnectionState.CLOSED:
            operation.close()
        self._require_open()
        task = asyncio.create_task(operation, name=f"{self!r} {what}")
        self._operations.add(task)
        task.add_done_callback(self._operation_done)
        await asyncio.wait({task}, timeout=OPERATION_TIMEOUT)
        if self._state is ConnectionState.CLOSED or task.cancelled():
            raise TransportError(f"the connection was closed while {what}")
        if not task.done():
            raise TransportError(f"{what} took longer than {OPERATION_TIMEOUT:.0f} s")
        error = task.exception()
        if error is None or isinstance(error, TransportError):
            return task.result()
        raise TransportError(f"{what} failed: {type(error).__name__} {error}".rstrip()) from error

    def _operation_done(self, task: asyncio.Task[Any]) -> None:
        self._operations.discard(task)
        if not task.cancelled():
            task.exception()  # marks it as seen, also when whoever waited for it has gone

    def _require_open(self) -> None:
        if self._state is ConnectionState.CLOSED:
            raise TransportError("the connection is closed")

    # --- states and the end ----------------------------------------------------------------------------------------

    def _set_state(self, state: ConnectionState) -> None:
        if _ORDER.index(state) <= _ORDER.index(self._state):
            return
        logger.debug("%r: %s -> %s", self, self._state, state)
        self._state = state
        if state is ConnectionState.CLOSED:
            for channel in list(self._channels):
                channel.report_close()
            self._begin_close()
        self.call(self.on_state, state)

    def _begin_close(self) -> asyncio.Task[None]:
        if self._close_task is None:
            self._close_task = asyncio.create_task(self._shut_down(), name=f"{self!r} closing")
        return self._close_task

    async def close(self) -> None:
        self._set_state(ConnectionState.CLOSED)
        await asyncio.shield(self._begin_close())

    async def _shut_down(self) -> None:
        """Close the library's connection, and take from it what it does not give up in time."""
        try:
            if self._operations:
                await asyncio.wait(self._operations, timeout=self._engine.gathering_time + 0.5)
            objects = ice.owned_objects(self._pc)
            closing = asyncio.create_task(self._pc.close(), name=f"{self!r} closing the library's part")
            await asyncio.wait({closing}, timeout=CLOSE_TIMEOUT)
            if not closing.done():
                self.count("forced_closes")
                logger.warning("%r: the library did not close it within %.0f s", self, CLOSE_TIMEOUT)
            elif (error := closing.exception()) is not None:
                self.count("close_errors")
                logger.warning("%r: the library failed to close it: %r", self, error)
            ice.deafen(objects)
            await self._reap({closing, *self._operations, *ice.tasks_of(objects)})
            ice.stop_by_force(self._pc, objects)
        except Exception:
            self.count("close_errors")
            logger.exception("%r: closing failed", self)
        finally:
            self._engine.forget(self)

    async def _reap(self, tasks: set[asyncio.Task[Any]]) -> None:
        for task in tasks:
            task.cancel()
        _, pending = await asyncio.wait(tasks, timeout=1.0)
        if pending:
            self.count("tasks_left")
            logger.error("%r: tasks do not end: %s", self, [task.get_name() for task in pending])
        for task in tasks - pending:
            if not task.cancelled() and (error := task.exception()) is not None:
                logger.debug("%r: %s ended with %r", self, task.get_name(), error)


class AiortcEngine:
    """An `Engine`."""

    name = "aiortc"

    def __init__(self, ice_servers: IceServers = (), *, gathering_time: float = GATHERING_TIME) -> None:
        """Raise `TransportError` for a URL in `ice_servers` that cannot be used. `gathering_time` is in seconds."""
        self.counters: Counter[str] = Counter()
        self.gathering_time = gathering_time
        self._servers = ice.ServerRotation(ice_servers)
        self._connections: set[AiortcPeerConnection] = set()
        self._numbers = itertools.count(1)
        self._closed = False

    def create_peer_connection(self) -> AiortcPeerConnection:
        if self._closed:
            raise TransportError("the WebRTC engine is closed")
        try:
            from aiortc import RTCConfiguration, RTCIceServer, RTCPeerConnection  # noqa: PLC0415
        except ImportError as error:
            raise TransportError(f"the WebRTC engine aiortc cannot be loaded: {error}") from error
        # An empty list, not None: with None the library asks a public STUN server that nobody named.
        servers = [RTCIceServer(each.url, each.username, each.credential) for each in self._servers.take()]
        pc = RTCPeerConnection(RTCConfiguration(iceServers=servers))
        connection = AiortcPeerConnection(self, pc, next(self._numbers))
        self._connections.add(connection)
        return connection

    @property
    def closing(self) -> int:
        return sum(connection.state is ConnectionState.CLOSED for connection in self._connections)

    def forget(self, connection: AiortcPeerConnection) -> None:
        """Drop a connection that has closed; called by the connection itself."""
        self._connections.discard(connection)

    def absorb(self, context: dict[str, Any]) -> bool:
        if not ice.is_from_engine(context):
            return False
        self.counters["background_errors"] += 1
        error = context.get("exception")
        logger.info("aiortc, in the background: %s: %r", context.get("message"), error)
        logger.debug("where that came from", exc_info=error)
        return True

    async def close(self) -> None:
        self._closed = True
        await asyncio.gather(*(connection.close() for connection in self._connections))
