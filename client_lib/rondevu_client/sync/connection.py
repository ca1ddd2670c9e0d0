"""A connection to a service, with calls that block."""

from __future__ import annotations

from typing import Any, Unpack

from rondevu_client import connection as aio
from rondevu_client.attaching import AttachParameters
from rondevu_client.sync.background import Background
from rondevu_client.sync.channel import Channel
from rondevu_client.sync.facade import EmitterFacade


class Connection(EmitterFacade):
    """Made by `Daemon.connect`; see `rondevu_client.Connection`."""

    def __init__(self, background: Background, inner: aio.Connection) -> None:
        super().__init__(background)
        self._inner = self._emitter = inner
        self._channels: dict[str, Channel] = {}

    @property
    def id(self) -> str:
        """Drawn by the daemon, ``conn-`` and 16 hexadecimal digits."""
        return self._inner.id

    @property
    def name(self) -> str:
        """The one given, or one made of what it connects to."""
        return self._inner.name

    @property
    def state(self) -> str:
        """As the daemon last said."""
        return self._inner.state

    @property
    def created(self) -> bool:
        """Whether this made the declaration."""
        return self._inner.created

    @property
    def is_connected(self) -> bool:
        """Whether there is a link to the peer now."""
        return self._inner.is_connected

    def create_channel(
        self, label: str, *, timeout: float | None = None, **parameters: Unpack[AttachParameters]
    ) -> Channel:
        """Attach to the channel of that label, made where there is none; `AttachParameters` may be given by name."""
        inner = self._run(timeout, self._inner.create_channel, label, **parameters)
        channel = self._channels[label] = Channel(self._background, inner)
        return channel

    def get_channel(self, label: str) -> Channel | None:
        """The channel of that label that `create_channel` gave last; None when there is none or it has ended."""
        channel = self._channels.get(label)
        return channel if channel is not None and channel.end_reason is None else None

    def wait(self, what: str = "connected", timeout: float | None = None) -> dict[str, Any]:
        """Wait until it is ``connected`` or ``drained``. Raises `RequestRefused` with code ``timeout``."""
        return self._run(None, self._inner.wait, what, timeout)

    def reconnect(self, timeout: float | None = None) -> dict[str, Any]:
        """Try now."""
        return self._run(timeout, self._inner.reconnect)

    def close(self, drain: float | None = None, timeout: float | None = None) -> dict[str, Any]:
        """End the connection for good, on both sides, after at most `drain` seconds (10) of waiting for its queues."""
        return self._run(timeout, self._inner.close, drain)
