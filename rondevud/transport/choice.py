"""Which WebRTC library is used. Only the one that is chosen is loaded."""

from __future__ import annotations

import logging
import sys

from rondevud.transport.base import Engine, IceServers

logger = logging.getLogger(__name__)


def choose(name: str, ice_servers: IceServers = ()) -> str:
    """What ``auto`` means here: libdatachannel if it can be loaded and reach the servers. Others are what they say."""
    if name != "auto":
        return name
    from rondevud.transport import libdatachannel  # noqa: PLC0415

    beyond = [url for server in ice_servers for url in server.urls if not libdatachannel.reaches(url)]
    if beyond:
        logger.info("the engine is aiortc, since libdatachannel cannot use %s", ", ".join(beyond))
    elif libdatachannel.is_available():
        return "libdatachannel"
    return "aiortc"


def make_engine(name: str, ice_servers: IceServers = ()) -> Engine:
    """Make the engine ``aiortc`` or ``libdatachannel``, or the one that ``auto`` means here.

    Raises `TransportError` for an engine that is not installed here, and for a server that it cannot reach.
    """
    if choose(name, ice_servers) == "aiortc":
        from rondevud.transport.aiortc import AiortcEngine  # noqa: PLC0415

        return AiortcEngine(ice_servers)
    from rondevud.transport import libdatachannel  # noqa: PLC0415

    libdatachannel.require()
    return libdatachannel.LibdatachannelEngine(ice_servers)


def may_end_in_order() -> bool:
    """Whether the interpreter can be ended. Else the process is: there are connections that take their time to close."""
    threads = sys.modules.get("rondevud.transport.libdatachannel_threads")
    return threads is None or not threads.is_closing()
