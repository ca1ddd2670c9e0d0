"""Which WebRTC library is used. Only the one that is chosen is loaded."""

from __future__ import annotations

import logging
import sys

from rondevud.transport.base import Engine, IceServers

logger = logging.getLogger(__name__)


def make_engine(name: str, ice_servers: IceServers = ()) -> Engine:
    """Make the engine ``aiortc`` or ``libdatachannel``, or (``auto``) the faster if it can be loaded and reach the servers.

    Raises `TransportError` for an engine that is not installed here, and for a server that it cannot reach.
    """
    if name == "aiortc":
        return _aiortc(ice_servers)
    from rondevud.transport import libdatachannel  # noqa: PLC0415

    if name == "libdatachannel":
        libdatachannel.require()
        return libdatachannel.LibdatachannelEngine(ice_servers)
    beyond = [url for server in ice_servers for url in server.urls if not libdatachannel.reaches(url)]
    if beyond:
        logger.info("the engine is aiortc, since libdatachannel cannot use %s", ", ".join(beyond))
    elif libdatachannel.is_available():
        return libdatachannel.LibdatachannelEngine(ice_servers)
    return _aiortc(ice_servers)


def may_end_in_order() -> bool:
    """Whether the interpreter can be ended. Else the process is: there are connections that take their time to close."""
    threads = sys.modules.get("rondevud.transport.libdatachannel_threads")
    return threads is None or not threads.is_closing()


def _aiortc(ice_servers: IceServers) -> Engine:
    from rondevud.transport.aiortc import AiortcEngine  # noqa: PLC0415

    return AiortcEngine(ice_servers)
