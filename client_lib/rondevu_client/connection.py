"""A connection to a service, as a program sees it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Unpack

from rondevu_client.attaching import AttachParameters
from rondevu_client.channel import Channel
from rondevu_client.emitter import Emitter
from rondevu_client.errors import ConnectionLost, RequestRefused
from rondevu_client.messages import EVENT
from rondevu_client.wire import PASSING, Wire

if TYPE_CHECKING:
    from rondevu_client.client import Daemon


class Connection(Emitter):
    """Made by `Daemon.connect`. The connection is the daemon's: it goes on when this object and the program are gone.

    Events: those of the connection (``state``, ``connected``, ``suspect``, ``reconnecting``, ``disconnected``, ``failed``,
    ``closed``), of its channels and of the daemon, each with its data; ``lost`` when the daemon refuses the declaration
    after a restart.
    """

    def __init__(self, daemon: Daemon, declaration: dict[str, Any]) -> None:
        super().__init__(daemon._spawn)
        self._daemon = daemon
        self._declaration = declaration
        self._wire: Wire | None = None
        self._subscription = 0
        self.id = ""
        self.name = ""
        self.state = ""
        """As the daemon last said."""
        self.created = False
        """Whether this made the declaration."""
        self._channels: dict[str, Channel] = {}

    @property
    def is_connected(self) -> bool:
        """Whether there is a link to the peer now."""
        return self.state == "connected"

    async def create_channel(self, label: str, **parameters: Unpack[AttachParameters]) -> Channel:
        """Attach to the channel of that label, made where there is none; `AttachParameters` may be given by name."""
        target = self.name if self._declaration["ephemeral"] else self.id  # what a restart of the daemon leaves
        channel = await self._daemon.attach(target, label, **parameters)
        self._channels[label] = channel
        return channel

    def get_channel(self, label: str) -> Channel | None:
        """The channel of that label that `create_channel` gave last; None when there is none or it has ended."""
        channel = self._channels.get(label)
        return channel if channel is not None and channel.end_reason is None else None

    async def wait(self, what: str = "connected", timeout: float | None = None) -> dict[str, Any]:
        """Wait until it is ``connected`` or ``drained``. Raises `RequestRefused` with code ``timeout``."""
        return await self._daemon.wait(self.id, what, timeout)

    async def reconnect(self) -> dict[str, Any]:
        """Dial now, and again if it had failed."""
        return await self._daemon.reconnect(self.id)

    async def close(self, drain: float | None = None) -> dict[str, Any]:
        """End the connection for good, on both sides, after at most `drain` seconds (10) of waiting for its queues.

        Whatever becomes of the request, this object does not declare the connection again.
        """
        self._daemon._forget(self)
        return await self._daemon.close_connection(self.id, drain)

    # --- for the daemon object ---------------------------------------------------------------------------------

    async def _declare(self, wire: Wire) -> None:
        timeout = self._daemon.request_timeout
        answer = await wire.request("connect", self._declaration, timeout=timeout)
        self.id, self.name = answer["connection_id"], answer["name"]
        self.state, self.created = answer["state"], answer["created"]
        await wire.request(
            "subscribe",
            {"target": self.id},
            timeout=timeout,
            on_result=lambda answer: self._begin(wire, answer),
            undo=lambda answer: wire.send_unsubscribe(answer["subscription"]),
        )

    async def _revive(self, wire: Wire) -> None:
        try:
            await self._declare(wire)
        except RequestRefused as error:
            if error.code in PASSING:
                raise
            self._end(error.code)

    def _begin(self, wire: Wire, answer: dict[str, Any]) -> None:
        self._wire, self._subscription = wire, answer["subscription"]
        wire.sinks[self._subscription] = self._take
        self._take_rows(answer["connections"])

    def _give_back(self) -> None:
        self._leave()

    def _away(self) -> None:
        self._wire = None

    def _end(self, reason: str, error: Exception | None = None) -> None:
        self._daemon._forget(self)
        self._emit("lost", {"reason": reason, "message": str(error or "")})

    async def _look_again(self, wire: Wire) -> None:
        """Events were dropped because this program did not read."""
        timeout = self._daemon.request_timeout
        with contextlib.suppress(ConnectionLost):
            await wire.request("connections", timeout=timeout, on_result=self._take_rows)

    def _take_rows(self, rows: list[dict[str, Any]]) -> None:
        self.state = next((row["state"] for row in rows if row["connection_id"] == self.id), "closed")
        if self.state == "closed":
            self._leave()

    def _leave(self) -> None:
        """The connection is closed: there is nothing more to hear of it."""
        self._daemon._forget(self)
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.sinks.pop(self._subscription, None)
            wire.send_unsubscribe(self._subscription)

    def _take(self, method: str, params: list[Any]) -> None:
        if method != EVENT:
            return
        name, data = params[2], params[3]
        if name == "state" and data.get("connection_id") == self.id:
            self.state = data.get("new", self.state)
        elif name == "overrun" and self._wire is not None:
            self._daemon._spawn(self._look_again(self._wire), f"events of {self.name}")
        elif name == "closed" and data.get("connection_id") == self.id:
            self.state = "closed"
            self._leave()
        self._emit(name, data)
