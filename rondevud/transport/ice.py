"""What has to be reached inside aiortc and aioice, gathered in one place.

Nothing here imports them: the functions get their objects, so that loading this module costs nothing.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import re
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

from rondevud.errors import TransportError
from rondevud.transport.base import CandidatePair, IceCandidates, IceServers

if TYPE_CHECKING:
    from aioice import Candidate, Connection
    from aiortc import RTCPeerConnection

LOOPBACK = ("127.0.0.1", "::1")

_ENGINE_PACKAGES = {"aiortc", "aioice"}
_LOOP_PACKAGES = {"asyncio", "uvloop"}
# What the engine's own URL parser takes: no IPv6 literals, and "stuns" only to ignore it.
_URL = re.compile(r"(stun:[^?:\s]+(:\d{1,5})?)|(turns?:[^?:\s]+(:\d{1,5})?(\?transport=(udp|tcp))?)")


class ServerUrl(NamedTuple):
    url: str
    username: str | None
    credential: str | None


class ServerRotation:
    """Deals out one STUN and one TURN server for each connection, in turn: the engine uses only one of each."""

    def __init__(self, servers: IceServers) -> None:
        """Raise `TransportError` for a URL that the engine cannot use."""
        urls = [ServerUrl(url, server.username, server.credential) for server in servers for url in server.urls]
        for server in urls:
            if _URL.fullmatch(server.url) is None:
                raise TransportError(
                    f"ice_servers: {server.url!r} is not stun:HOST[:PORT] or turn[s]:HOST[:PORT][?transport=udp|tcp]"
                )
        self._cycles: list[Iterator[ServerUrl]] = [
            itertools.cycle([server for server in urls if server.url.startswith(scheme)]) for scheme in ("stun", "turn")
        ]

    def take(self) -> list[ServerUrl]:
        return [server for cycle in self._cycles if (server := next(cycle, None)) is not None]


def bound_gathering(connection: Connection, seconds: float) -> None:
    """Let `connection` gather for at most `seconds`, and on a machine without a network from its loopback addresses.

    aioice waits 5 s for servers that do not answer and leaves loopback addresses out; there is no parameter for either.
    """
    gather = connection.get_component_candidates

    async def gather_within(component: int, addresses: list[str], timeout: float = 0) -> list[Candidate]:
        # The library annotates whole seconds and hands them on to asyncio.wait.
        return await gather(component, addresses or list(LOOPBACK), timeout=seconds)  # type: ignore[arg-type]

    connection.get_component_candidates = gather_within  # type: ignore[method-assign]


def ice_connection(pc: RTCPeerConnection) -> Connection | None:
    return None if pc.sctp is None else pc.sctp.transport.transport._connection


def selected_pair(pc: RTCPeerConnection) -> CandidatePair | None:
    connection = ice_connection(pc)
    pair = None if connection is None else connection._nominated.get(1)
    if pair is None:
        return None
    local, remote = pair.local_candidate, pair.remote_candidate
    return CandidatePair(_address(local), local.type, _address(remote), remote.type)


def candidates(pc: RTCPeerConnection) -> IceCandidates:
    connection = ice_connection(pc)
    if connection is None:
        return IceCandidates()
    local, remote = (
        tuple(f"{_address(candidate)} {candidate.type}" for candidate in side)
        for side in (connection.local_candidates, connection.remote_candidates)
    )
    return IceCandidates(local, remote)


def _address(candidate: Candidate) -> str:
    host = f"[{candidate.host}]" if ":" in candidate.host else candidate.host
    return f"{host}:{candidate.port}"


def owned_objects(pc: RTCPeerConnection) -> list[Any]:
    """The objects of a connection whose methods run as background tasks, and its sockets' transports."""
    objects: list[Any] = [pc]
    connection = ice_connection(pc)
    if pc.sctp is not None and connection is not None:
        dtls = pc.sctp.transport
        objects += [pc.sctp, dtls, dtls.transport, connection]
        for protocol in connection._protocols:
            # A relayed protocol's transport is a TURN client of its own around the real one.
            turn = getattr(protocol.transport, "_TurnTransport__inner_protocol", None)
            objects += [protocol, protocol.transport]
            objects += [] if turn is None else [turn, turn.transport]
    return objects


def deafen(objects: Iterable[Any]) -> None:
    """Remove the listeners by which the library starts closing a connection whose tasks are cancelled."""
    for each in objects:
        if hasattr(each, "remove_all_listeners"):
            each.remove_all_listeners()


def stop_by_force(pc: RTCPeerConnection, objects: Iterable[Any]) -> None:
    """Cancel the timers and close the sockets that an incomplete `close` of the library left; does nothing otherwise."""
    if pc.sctp is not None:
        pc.sctp._set_state(pc.sctp.State.CLOSED)
    for each in objects:
        if hasattr(each, "abort"):
            each.abort()


def tasks_of(objects: Iterable[Any]) -> set[asyncio.Task[Any]]:
    """The unfinished tasks that run a method of one of `objects`.

    The engine keeps no reference to most of the tasks it starts, so they are found by the `self` of their coroutines.
    """
    identities = {id(each) for each in objects}
    found = set()
    for task in asyncio.all_tasks():
        frame = _frame(task)
        if frame is not None and id(frame.f_locals.get("self")) in identities:
            found.add(task)
    return found


def is_from_engine(context: dict[str, Any]) -> bool:
    """Whether what a loop's exception handler was given comes from a task or a callback of the engine."""
    frame = None
    exception = context.get("exception")
    if exception is not None:
        trace = exception.__traceback__
        while trace is not None and _package(trace.tb_frame) in _LOOP_PACKAGES:
            trace = trace.tb_next
        frame = None if trace is None else trace.tb_frame
    if frame is None:
        frame = _frame(context.get("task") or context.get("future"))
    return frame is not None and _package(frame) in _ENGINE_PACKAGES


def _frame(task: Any) -> FrameType | None:
    coroutine = task.get_coro() if isinstance(task, asyncio.Task) else None
    return coroutine.cr_frame if inspect.iscoroutine(coroutine) else None


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]
