"""Attach to the durable channels of a local `rondevud`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rondevu_client.attaching import AttachParameters
    from rondevu_client.channel import Channel
    from rondevu_client.client import Daemon
    from rondevu_client.connection import Connection
    from rondevu_client.errors import (
        ConnectionLost,
        DaemonUnavailable,
        Detached,
        MessageRejected,
        MessagesRemoved,
        NotAcknowledged,
        RequestRefused,
        RondevuClientError,
    )
    from rondevu_client.inbox import Message
    from rondevu_client.service import Service, ServiceInfo

__version__ = "0.1.0"

__all__ = [
    "AttachParameters",
    "Channel",
    "Connection",
    "ConnectionLost",
    "Daemon",
    "DaemonUnavailable",
    "Detached",
    "Message",
    "MessageRejected",
    "MessagesRemoved",
    "NotAcknowledged",
    "RequestRefused",
    "RondevuClientError",
    "Service",
    "ServiceInfo",
    "__version__",
]

_HOMES = {
    "AttachParameters": "attaching",
    "Channel": "channel",
    "Connection": "connection",
    "Daemon": "client",
    "Message": "inbox",
    "Service": "service",
    "ServiceInfo": "service",
}


def __getattr__(name: str) -> Any:
    """Import on first use: the daemon needs the version and the wire only, a blocking program no asyncio."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415 - only when something is asked for

    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
