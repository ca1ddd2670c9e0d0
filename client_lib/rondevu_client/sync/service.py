"""A service, with calls that block and handlers that run in threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from rondevu_client import channel as aio_channel
from rondevu_client import service as aio
from rondevu_client.service import ServiceInfo
from rondevu_client.sync.background import Background
from rondevu_client.sync.channel import Channel
from rondevu_client.sync.facade import EmitterFacade, refuse_coroutine_function

Handler: TypeAlias = Callable[[Channel, str], object]
"""Gets a channel, attached, and its connection id; runs in a thread of its own."""


class Service(EmitterFacade):
    """Made by `Daemon.expose_service`; see `rondevu_client.Service`."""

    def __init__(self, background: Background, inner: aio.Service) -> None:
        super().__init__(background)
        self._inner = self._emitter = inner

    @property
    def username(self) -> str:
        """Who exposes it."""
        return self._inner.username

    @property
    def fqn(self) -> str:
        """Its name and version."""
        return self._inner.fqn

    @property
    def service_id(self) -> str:
        """As of the signalling server; empty while it is not published."""
        return self._inner.service_id

    @property
    def uuid(self) -> str:
        """What `Daemon.connect_by_uuid` takes; empty while it is not published."""
        return self._inner.uuid

    @property
    def created(self) -> bool:
        """Whether this made the declaration."""
        return self._inner.created

    @property
    def connections(self) -> dict[str, dict[str, Any]]:
        """Connections by id, each with what the daemon last said about it; a copy."""
        return self._background.read(lambda: dict(self._inner.connections))

    @property
    def service_info(self) -> ServiceInfo | None:
        """How it is published; None until it is for the first time."""
        return self._inner.service_info

    @property
    def active_connections(self) -> list[str]:
        """Ids of the connections whose sessions have not ended, whether or not there is a link now."""
        return list(self.connections)

    def pool_status(self, timeout: float | None = None) -> dict[str, Any]:
        """The daemon's row about this service: its offers, connections and publication, as of `Daemon.services`."""
        return self._run(timeout, self._inner.pool_status)

    def wait_closed(self, timeout: float | None = None) -> str:
        """Wait until the service is withdrawn, by whomever, or the daemon object is closed; why."""
        return self._run(timeout, self._inner.wait_closed)

    def stop(self, *, drain: float | None = None, keep_connections: bool = False, timeout: float | None = None) -> None:
        """Withdraw the service: offers and connections go (`drain`: seconds for their queues; 10)."""
        self._run(timeout, self._inner.stop, drain=drain, keep_connections=keep_connections)


def handler_in_thread(background: Background, handler: Handler) -> aio.Handler:
    refuse_coroutine_function(handler)

    async def run_handler(channel: aio_channel.Channel, connection_id: str) -> None:
        await background.handlers.call(handler, Channel(background, channel), connection_id)

    return run_handler
