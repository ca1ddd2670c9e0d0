"""A service, as a program sees it: its connections, and one handler for each of their channels."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from rondevu_client import channel as channels
from rondevu_client.channel import Channel, describe_failure
from rondevu_client.emitter import Emitter, Listener
from rondevu_client.errors import ConnectionLost, Detached, RequestRefused
from rondevu_client.messages import EVENT
from rondevu_client.wire import PASSING, Wire

if TYPE_CHECKING:
    from rondevu_client.client import Daemon

logger = logging.getLogger(__name__)

Handler: TypeAlias = Callable[[Channel, str], Awaitable[None]]
"""Gets a channel, attached, and its connection id."""

_Key: TypeAlias = tuple[str, str]


class ServiceInfo(NamedTuple):
    """How a service is published."""

    service_id: str
    uuid: str
    expires_at: float
    """When the publication ends unless it is refreshed, seconds since 1970 by the signalling server's clock."""


TAKEN = {"in_use", "detached"}
"""Refusals of a channel that somebody else has or that has just ended: it is offered again when it is free."""


class Service(Emitter):
    """Made by `Daemon.expose_service`. The service is the daemon's: it stays published when the program is gone.

    Events: ``connection`` (its listeners get the id; also for the connections that are there already), ``published``,
    ``ttl_refreshed``, ``disconnection``, ``error`` (its ``context`` is ``handler`` when a handler raised), ``closed``, and
    those of its connections, their channels and the daemon; each with its data.
    """

    def __init__(self, daemon: Daemon, declaration: dict[str, Any], handler: Handler | None) -> None:
        super().__init__(daemon._spawn)
        self._daemon = daemon
        self._declaration = declaration
        self._handler = handler
        self._tasks: dict[_Key, asyncio.Task[None]] = {}
        self._served: dict[_Key, Channel] = {}
        self._offered: dict[_Key, int] = {}
        """What was offered while its task ran and had it not attached: how often it had been attached by then."""
        self._wire: Wire | None = None
        self._subscription = 0
        self._filling = False
        self._ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.username: str = declaration["username"]
        self.fqn: str = declaration["fqn"]
        self.service_info: ServiceInfo | None = None
        """None until it is published for the first time."""
        self.created = False
        """Whether this made the declaration."""
        self.connections: dict[str, dict[str, Any]] = {}
        """Connections by id, each with what the daemon last said about it."""

    @property
    def service_id(self) -> str:
        """As of the signalling server; empty while it is not published."""
        return self.service_info.service_id if self.service_info else ""

    @property
    def uuid(self) -> str:
        """What `Daemon.connect_by_uuid` takes; empty while it is not published."""
        return self.service_info.uuid if self.service_info else ""

    @property
    def active_connections(self) -> list[str]:
        """Ids of the connections whose sessions have not ended, whether or not there is a link now."""
        return list(self.connections)

    async def pool_status(self) -> dict[str, Any]:
        """The daemon's row about this service: its offers, connections and publication, as of `Daemon.services`.

        Raises `RequestRefused` (``unknown_target``) when it is declared no longer.
        """
        for row in await self._daemon.services():
            if (row["username"], row["fqn"]) == (self.username, self.fqn):
                self._take_publication(row)
                return row
        raise RequestRefused("unknown_target", f"no service {self.username}/{self.fqn} is declared")

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
        await wire.request(
            "expose",
            {**self._declaration, "subscribe": True},
            timeout=self._daemon.request_timeout,
            on_result=lambda answer: self._begin(wire, answer),
            undo=lambda answer: wire.send_unsubscribe(answer["subscription"]),
        )

    async def _revive(self, wire: Wire) -> None:
        try:
            await self._declare(wire)
        except RequestRefused as error:
            if error.code in PASSING:
                raise
            logger.warning("Service %s/%s cannot be declared again: %s", self.username, self.fqn, error)
            self._end(error.code)

    def _begin(self, wire: Wire, answer: dict[str, Any]) -> None:
        self.created = answer["created"]
        self._take_publication(answer)
        self._follow(wire, answer)

    def _take_publication(self, facts: dict[str, Any]) -> None:
        """What an answer, row or event says about the publication; an event may say a part of it."""
        known = self.service_info._asdict() if self.service_info else {}
        known |= {key: facts[key] for key in ServiceInfo._fields if facts.get(key) is not None}
        if len(known) == len(ServiceInfo._fields):
            self.service_info = ServiceInfo(**known)

    def _follow(self, wire: Wire, answer: dict[str, Any]) -> None:
        """Another subscription, complete with its snapshot, takes the place of the one before it."""
        if wire is self._wire:
            wire.sinks.pop(self._subscription, None)
            wire.send_unsubscribe(self._subscription)
        self._wire, self._subscription = wire, answer["subscription"]
        self._filling = False
        wire.sinks[self._subscription] = self._take
        there = {row["connection_id"]: row for row in answer["connections"] if row["state"] != "closed"}
        for connection_id in [known for known in self.connections if known not in there]:
            self._lose_connection(connection_id, {"connection_id": connection_id, "reason": None})
        for connection_id, row in there.items():
            known = connection_id in self.connections
            self.connections[connection_id] = row
            if not known:
                self._emit("connection", connection_id)
        for row in answer["connections"]:
            for channel in row["channels"]:
                if channel["state"] == "open" or channel["waiting"]:
                    self._offer(row["connection_id"], channel["label"])

    def _lose_connection(self, connection_id: str, data: dict[str, Any]) -> None:
        self.connections.pop(connection_id, None)
        self._emit("disconnection", data)

    async def _fill(self, wire: Wire) -> None:
        """Events were dropped because this program did not read: look again at what there is."""
        try:
            await wire.request(
                "subscribe",
                {"target": f"service:{self.username}/{self.fqn}"},
                timeout=self._daemon.request_timeout,
                on_result=lambda answer: self._follow(wire, answer),
                undo=lambda answer: wire.send_unsubscribe(answer["subscription"]),
            )
        except ConnectionLost:
            pass  # declared again when the socket is back
        except RequestRefused as error:
            logger.warning("Events of %s/%s were lost: %s", self.username, self.fqn, error)
            if error.code == "unknown_target":
                self._end("closed")
        finally:
            self._filling = False

    def _give_back(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.sinks.pop(self._subscription, None)
            wire.send_unsubscribe(self._subscription)
        self._end("detached")

    def _away(self) -> None:
        self._wire = None

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
        if name in {"published", "ttl_refreshed"}:
            self._take_publication(data)
        elif name == "channel":
            self._offer(connection_id, data.get("label", ""))
        elif name == "disconnection":
            self._lose_connection(connection_id, data)
            return
        elif name == "overrun" and self._wire is not None and not self._filling:
            self._filling = True
            self._daemon._spawn(self._fill(self._wire), f"events of {self.username}/{self.fqn}")
        self._emit(name, data)
        if name == "closed" and not connection_id:
            self._end("closed")

    # --- handlers ----------------------------------------------------------------------------------------------

    def _offer(self, connection_id: str, label: str) -> None:
        """A channel nobody receives on: serve it, unless that is being done."""
        key = (connection_id, label)
        if self._handler is None:
            return
        if key not in self._tasks:
            self._tasks[key] = self._daemon._spawn(self._serve(key), f"handler of {label} of {connection_id}")
            return
        channel = self._served.get(key)
        if channel is None:
            self._offered[key] = 0
        elif not channel.attached:
            self._offered[key] = channel.generation

    async def _serve(self, key: _Key) -> None:
        try:
            await self._serve_until_gone(key)
        finally:
            del self._tasks[key]
            self._offered.pop(key, None)
            self._served.pop(key, None)

    async def _serve_until_gone(self, key: _Key) -> None:
        """Attach and run the handler, again after it raised, until the channel ends or somebody else has it."""
        pause = channels.RETRY_FIRST
        while (channel := await self._attach(key)) is not None:
            if await self._handle(channel, key):
                # A channel left attached may have listeners; one that was given back is not taken again by itself,
                # and one that ended only when it was offered since: attaching would open it anew.
                if await channel.wait_detached() == "detached" or self._offered.get(key) != channel.generation:
                    return
                continue
            try:
                await channel.detach()
            except (RequestRefused, TimeoutError) as error:
                logger.warning("Channel %r of %s was not given back: %s", key[1], key[0], error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, channels.RETRY_LAST)
            if not await self._is_there(key):
                return

    async def _handle(self, channel: Channel, key: _Key) -> bool:
        """Run the handler; False when it raised and still had the channel."""
        if self._handler is None:
            return False
        try:
            await self._handler(channel, key[0])
        except Exception as error:
            if isinstance(error, Detached) and channel.end_reason is not None:
                logger.info("The handler of %r of %s has lost it: %s", key[1], key[0], error)
                return True
            logger.exception("The handler of %r of %s failed", key[1], key[0])
            self._emit("error", {**describe_failure(error), "connection_id": key[0], "label": key[1]})
            return channel.end_reason is not None
        return True

    async def _is_there(self, key: _Key) -> bool:
        """Whether the channel, not attached for a while, has something to read or can get it; yes, if nobody knows."""
        try:
            rows = await self._daemon.channels(key[0])
        except TimeoutError:
            return True
        except RequestRefused as error:
            return error.code in PASSING
        row = next((row for row in rows if row["label"] == key[1]), None)
        return row is not None and (bool(row["waiting"]) or row["state"] in {"open", "connecting"})

    async def _attach(self, key: _Key) -> Channel | None:
        """None when somebody else has it or it is gone. What is offered meanwhile is tried again."""
        pause = channels.RETRY_FIRST
        while self._handler is not None:
            self._offered.pop(key, None)
            self._served.pop(key, None)
            try:
                channel = self._served[key] = await self._daemon.attach(*key)
            except (RequestRefused, TimeoutError) as error:
                if isinstance(error, TimeoutError) or error.code in PASSING:
                    logger.warning("Channel %r of %s cannot be served yet: %s", key[1], key[0], error)
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, channels.RETRY_LAST)
                    if not await self._is_there(key):
                        return None
                elif error.code not in TAKEN:
                    logger.info("Channel %r of %s cannot be served: %s", key[1], key[0], error)
                    return None
                elif key not in self._offered:
                    return None
            else:
                return channel
        return None
