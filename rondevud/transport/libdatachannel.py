"""The engine on libdatachannel (native code, far faster than aiortc). The library is loaded with the first peer connection.

What happens in it happens in its own threads, which tell an `Inbox`; it wakes the loop once for whatever came together.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from rondevud.errors import TransportError
from rondevud.transport import ice
from rondevud.transport.base import IceServers
from rondevud.transport.libdatachannel_connection import MAX_MESSAGE_SIZE, LibdatachannelPeerConnection
from rondevud.transport.libdatachannel_threads import CLOSING_MAX, Inbox, closer

if TYPE_CHECKING:
    import libdatachannel

GATHERING_TIME = 1.0
"""Seconds that STUN and TURN servers have to answer before an offer or answer goes out without them."""

STUN_PORT = 3_478


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
        if len(closer) >= CLOSING_MAX:
            self.counters["connections_refused"] += 1
            raise TransportError(
                f"{len(closer):,} connections are still being closed, since their peers do not answer: no new one is made "
                "before some of them are"
            )
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
        return connection

    @property
    def closing(self) -> int:
        return len(closer)

    def _configure(self) -> libdatachannel.Configuration:
        import libdatachannel  # noqa: PLC0415

        from rondevud.transport.certificate import make_certificate  # noqa: PLC0415

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
    import ifaddr  # noqa: PLC0415

    for adapter in ifaddr.get_adapters():
        for each in adapter.ips:
            address = each.ip if isinstance(each.ip, str) else each.ip[0]
            if not address.startswith(("127.", "fe80:")) and address != "::1":
                return True
    return False
