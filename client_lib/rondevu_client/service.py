"""A service, as a program sees it: its connections, and one handler for each of their channels."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from rondevu_client import channel as channels
from rondevu_client.channel import Channel, describe_failure
from rondevu_client.emitter import Emitter, Listener
from rondevu_client.errors import RequestRefused
from rondevu_client.messages import EVENT
from rondevu_client.wire import Wire

if TYPE_CHECKING:
    from rondevu_client.client import Daemon

logger = logging.getLogger(__name__)

Handler: TypeAlias = Callable[[Channel, str], Awaitable[None]]
"""Gets a channel, attached, and its connection id."""

_Key: TypeAlias = tuple[str, str]

TAKEN = {"in_use", "detached"}
"""Refusals of a channel that somebody else has or that has just ended: it is offered again when it is free."""

PASSING = {"too_many_requests", "internal", "store_failed", "disk_full"}
"""What attaching to a channel may be refused with for a while."""


class Service(Emitter):
    """Made by `Daemon.expose_service`. The service is the daemon's: it stays published when the program is gone.

    Events: ``connection`` (its id; also for those that are there already), ``closed``, ``error``, and the daemon's other
    events of the service, its connections and their channels, each with its data.
    """

    def __init__(self, daemon: Daemon, declaration: dict[str, Any], handler: Handler | None) -> None:
        super().__init__(daemon._spawn)
        self._daemon = daemon
        self._declaration = declaration
        self._handler = handler
        self._tasks: dict[_Key, asyncio.Task[None]] = {}
        self._offered: set[_Key] = set()
        self._ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.username: str = declaration["username"]
        self.fqn: str = declaration["fqn"]
        self.service_id = ""
        self.uuid = ""
        self.created = False
        """Whether this made the declaration."""
        self.connections: dict[str, dict[str, Any]] = {}
        """Connections by id, each with what the daemon last said about it."""

    def on(self, event: str, listener: Listener) -> None:
        """As `Emitter.on`; ``connection`` is also called for the connections that are there."""
        super().on(event, listener)
        if event == "connection":
            for connection_id in list(self.connections):
                asyncio.get_running_loop().call_soon(self._call, event, listener, connection_id)

    async def wait_closed(self) -> str:
        """Wait until the service is withdrawn, by whomever, or this program's daemon object is closed; why."""
        return await asyncio.shield(self._ended)

    async def stop(self, *, drain: float | None = None, keep_connections: bool = False) -> None:
        """Withdraw the service: offers and connections go (`drain`: seconds for their queues; 10).

        Whatever becomes of the request, this object has ended and does not declare the service again.
        """
        self._daemon._forget(self)
        try:
            await self._daemon.withdraw(self.username, self.fqn, drain=drain, keep_connections=keep_connections)
        finally:
            self._end("closed")

    # --- for the daemon object ---------------------------------------------------------------------------------

    async def _declare(self, wire: Wire) -> None:
        params = {**self._declaration, "subscribe": True}
        timeout = self._daemon.request_timeout
        await wire.request("expose", params, timeout=timeout, on_result=lambda answer: self._begin(wire, answer))

    async def _revive(self, wire: Wire) -> None:
        try:
            await self._declare(wire)
        except RequestRefused as error:
            logger.warning("Service %s/%s cannot be declared again: %s", self.username, self.fqn, error)
            self._end(error.code)

    def _begin(self, wire: Wire, answer: dict[str, Any]) -> None:
        wire.sinks[answer["subscription"]] = self._take
        self.service_id, self.uuid, self.created = answer["service_id"], answer["uuid"], answer["created"]
        for row in answer["connections"]:
            connection_id = row["connection_id"]
            known = connection_id in self.connections
            self.connections[connection_id] = row
            if not known:
                self._emit("connection", connection_id)
            for channel in row["channels"]:
                if channel["state"] == "open" or channel["waiting"]:
                    self._offer(connection_id, channel["label"])

    def _away(self) -> None:
        pass

    def _end(self, reason: str, error: Exception | None = None) -> None:
        """No more channels are served from here; handlers that run go on until their channels end."""
        del error
        self._daemon._forget(self)
        self._handler = None
        if not self._ended.done():
            self._ended.set_result(reason)

    def _take(self, method: str, params: list[Any]) -> None:
        if method != EVENT:
            return
        name, data = params[2], params[3]
        connection_id = data.get("connection_id", "")
        if name == "connection":
            self.connections[connection_id] = data
            self._emit(name, connection_id)
            return
        if name == "channel":
            self._offer(connection_id, data.get("label", ""))
        elif name == "disconnection":
            self.connections.pop(connection_id, None)
        self._emit(name, data)
        if name == "closed" and not connection_id:
            self._end("closed")

    # --- handlers ----------------------------------------------------------------------------------------------

    def _offer(self, connection_id: str, label: str) -> None:
        """A channel nobody receives on: serve it, unless that is being done."""
        key = (connection_id, label)
        if self._handler is None:
            return
        if key in self._tasks:
            self._offered.add(key)
            return
        name = f"handler of {label} of {connection_id}"
        self._tasks[key] = self._daemon._spawn(self._serve(key), name)

    async def _serve(self, key: _Key) -> None:
        try:
            await self._serve_until_gone(key)
        finally:
            del self._tasks[key]
            self._offered.discard(key)

    async def _serve_until_gone(self, key: _Key) -> None:
        """Attach and run the handler, again after it raised, until the channel ends or somebody else has it."""
        pause = channels.RETRY_FIRST
        while self._handler is not None:
            channel = await self._attach(key)
            if channel is None:
                return
            try:
                await self._handler(channel, key[0])
            except Exception as error:
                logger.exception("The handler of %r of %s failed", key[1], key[0])
                self._emit("error", {**describe_failure(error), "connection_id": key[0], "label": key[1]})
                await channel.detach()
                await asyncio.sleep(pause)
                pause = min(2 * pause, channels.RETRY_LAST)
            else:
                # A channel left attached may have listeners; one that was given back is not taken again by itself.
                if await channel.wait_detached() == "detached" or key not in self._offered:
                    return

    async def _attach(self, key: _Key) -> Channel | None:
        """None when somebody else has it or it is gone. What is offered meanwhile is tried again."""
        pause = channels.RETRY_FIRST
        while True:
            self._offered.discard(key)
            try:
                return await self._daemon.attach(*key)
            except RequestRefused as error:
                if error.code in PASSING:
                    logger.warning("Channel %r of %s cannot be served yet: %s", key[1], key[0], error)
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, channels.RETRY_LAST)
                elif error.code not in TAKEN:
                    logger.info("Channel %r of %s cannot be served: %s", key[1], key[0], error)
                    return None
                elif key not in self._offered:
                    return None
            if self._handler is None:
                return None
