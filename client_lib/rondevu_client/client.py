"""The daemon, as an asyncio program sees it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, Unpack, cast

from rondevu_client import __version__
from rondevu_client.attaching import AttachParameters, attach_request
from rondevu_client.channel import Channel
from rondevu_client.connection import Connection
from rondevu_client.emitter import Emitter, Listener
from rondevu_client.errors import ConnectionLost, DaemonUnavailable, RequestRefused, RondevuClientError
from rondevu_client.messages import EVENT
from rondevu_client.protocol import PROTOCOL_VERSION
from rondevu_client.requests import Requests
from rondevu_client.service import Handler, Service
from rondevu_client.sockets import REQUEST_TIMEOUT, describe_problem, describe_unavailable, socket_candidates
from rondevu_client.stream import EventStream
from rondevu_client.wire import PASSING, Wire, open_wire

logger = logging.getLogger(__name__)

REOPEN_FIRST = 0.05
"""Seconds between looks for a socket that is gone; doubles."""

REOPEN_LAST = 1.0

PUT_BACK_FIRST = 1.0
"""Seconds until something that the daemon refused for a while is declared or attached again; doubles."""

PUT_BACK_LAST = 30.0

ONCE_ONLY = {
    "close",
    "close_channel",
    "detach",
    "forget",
    "key_delete",
    "key_generate",
    "kick",
    "purge",
    "withdraw",
    "unsubscribe",
}
"""Requests that are not repeated by themselves when the socket breaks before they are answered."""


class _Revivable(Protocol):
    """What has to be told when the socket is gone, back, or gone for good."""

    async def _revive(self, wire: Wire) -> None:
        """Raises `RequestRefused` with a code of `PASSING` only; another refusal is the end of it."""

    def _give_back(self) -> None:
        """End, and free what the daemon keeps for it: nobody waits for the declaration any more."""

    def _away(self) -> None: ...

    def _end(self, reason: str, error: Exception | None = None) -> None: ...


class _OwnEvents:
    """The subscription from which a daemon object hears what concerns no connection and no service."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._wire: Wire | None = None
        self._subscription = 0

    async def _declare(self, wire: Wire) -> None:
        await wire.request(
            "subscribe",
            timeout=self._daemon.request_timeout,
            on_result=lambda answer: self._begin(wire, answer),
            undo=lambda answer: wire.send_unsubscribe(answer["subscription"]),
        )

    async def _revive(self, wire: Wire) -> None:
        await self._declare(wire)

    def _begin(self, wire: Wire, answer: dict[str, Any]) -> None:
        self._wire, self._subscription = wire, answer["subscription"]
        wire.sinks[self._subscription] = self._take

    def _take(self, method: str, params: list[Any]) -> None:
        if method == EVENT and not {"service", "connection_id"} & params[3].keys():
            self._daemon._emit(params[2], params[3])

    def _give_back(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.sinks.pop(self._subscription, None)
            wire.send_unsubscribe(self._subscription)

    def _away(self) -> None:
        self._wire = None

    def _end(self, reason: str, error: Exception | None = None) -> None:
        del reason, error
        self._daemon._forget(self)


class Daemon(Emitter, Requests):
    """The daemon behind a socket; use it as an async context manager, or call `open` and `close`.

    With `reconnect` the socket may break or the daemon restart: requests and sends wait for it, channels, services and
    connections are attached again. Leaving only detaches: what was declared stays.

    Events: those of the daemon itself (``stopping``, ``reloaded``, ``signalling``, ``overrun``), each with its data; the
    first listener makes this program hear the events of everything. `subscribe` gives all of them to iterate over.
    """

    def __init__(
        self,
        socket: str | os.PathLike[str] | None = None,
        reconnect: bool = True,
        *,
        client: str | None = None,
        request_timeout: float = REQUEST_TIMEOUT,
        hello_timeout: float | None = None,
    ) -> None:
        """`client` is the name the daemon shows for this program; `request_timeout` is in seconds.

        So is `hello_timeout`, within which a daemon has to answer the first request at its socket, also one that is just
        being started; None: `request_timeout`.
        """
        super().__init__(self._spawn)
        self._given = socket
        self._reconnect = reconnect
        self._client = client or f"{Path(sys.argv[0] or 'python').name}, rondevu_client {__version__}"
        self.request_timeout = request_timeout
        self._hello_timeout = request_timeout if hello_timeout is None else hello_timeout
        self.version = ""
        self.instance = ""
        """Changes with each start of the daemon."""
        self._same_instance = False
        """Whether the socket before this one was the same daemon's: it may not have seen yet that that one is gone."""
        self.path: Path | None = None
        """Of the socket that answered."""
        self._producer = os.urandom(16)
        self._wire: Wire | None = None
        self._closed: Exception | None = ConnectionLost("the daemon object is not open")
        self._ready = asyncio.Event()
        self._members: dict[int, _Revivable] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._own_events: _OwnEvents | None = None

    # --- life --------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Find the socket and say hello. Raises `DaemonUnavailable`, `RequestRefused` (``access_denied``).

        Raises `RuntimeError` when it is open already.
        """
        if self._closed is None:
            raise RuntimeError("the daemon object is open")
        self._closed = ConnectionLost("the daemon object is not open")
        self._ready.clear()
        tried: list[tuple[Path, str]] = []
        for path in map(Path, socket_candidates(self._given)):
            try:
                self._wire = await self._greet(path)
            except OSError as error:  # a time-out is one, too
                tried.append((path, describe_problem(error)))
            except ConnectionLost as error:
                tried.append((path, str(error)))
            else:
                self.path = path
                self._closed = None
                self._ready.set()
                if self._listeners:
                    self._hear_own_events()
                return
        self._closed = DaemonUnavailable(describe_unavailable(tried))
        raise self._closed

    async def close(self) -> None:
        """Detach from everything and close the socket. Handlers are cancelled; idempotent."""
        self._finish("detached", ConnectionLost("the daemon object is closed"))
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def on(self, event: str, listener: Listener) -> None:
        """As `Emitter.on`; may be called before `open`."""
        super().on(event, listener)
        self._hear_own_events()

    def once(self, event: str, listener: Listener) -> None:
        """As `Emitter.once`; may be called before `open`."""
        super().once(event, listener)
        self._hear_own_events()

    # --- use ---------------------------------------------------------------------------------------------------

    async def call(self, method: str, params: dict[str, Any] | None = None, *, timeout: float | None = None) -> Any:
        async with asyncio.timeout(timeout):
            return await self._ask(method, params, self.request_timeout if timeout is None else None)

    async def connect(
        self,
        username: str,
        fqn: str,
        *,
        name: str | None = None,
        ephemeral: bool = False,
        options: dict[str, Any] | None = None,
        **more: Any,
    ) -> Connection:
        """Declare a connection to a service; idempotent by name. Answers at once, whatever the peer does.

        One that is `ephemeral` ends when the last program that declared it so has been gone for 10 s; nothing of it is
        written to disk. Options may be given as a map or by name. Raises `RequestRefused`: ``conflict``, or what is wrong
        with them.
        """
        options = {**(options or {}), **more}
        return await self._connect({"username": username, "fqn": fqn}, name, options, ephemeral=ephemeral)

    async def connect_by_uuid(
        self,
        uuid: str,
        *,
        name: str | None = None,
        ephemeral: bool = False,
        options: dict[str, Any] | None = None,
        **more: Any,
    ) -> Connection:
        """The same by the service's UUID."""
        return await self._connect({"uuid": uuid}, name, {**(options or {}), **more}, ephemeral=ephemeral)

    async def attach(self, target: str, label: str, **parameters: Unpack[AttachParameters]) -> Channel:
        """Attach to a channel of a connection (name or id); `AttachParameters` says what can be given by name.

        Raises `RequestRefused`: ``unknown_target``, ``unknown_channel``, ``in_use``, ``options_differ``, ….
        """
        producer = parameters.get("producer")
        request, credit = attach_request(parameters)
        request |= {"target": target, "label": label}
        if request["acknowledged"]:
            request["producer"] = producer or self._producer
        channel = Channel(self, request, credit=credit, auto_ack=parameters.get("auto_ack", True))
        takeover = parameters.get("takeover", False)
        try:
            await self._attach(channel, takeover=takeover)
        except RequestRefused as error:
            if error.code != "producer_in_use" or producer is not None:
                raise
            # This very object has the channel already: the second one counts for itself.
            request["producer"] = os.urandom(16)
            await self._attach(channel, takeover=takeover)
        return channel

    async def expose_service(
        self,
        username: str,
        fqn: str,
        *,
        handler: Handler | None = None,
        ephemeral: bool = False,
        options: dict[str, Any] | None = None,
        **more: Any,
    ) -> Service:
        """Declare a service; idempotent. `handler(channel, connection_id)` runs for each of its channels.

        One that is `ephemeral` ends when the last program that declared it so has been gone for 10 s. Options may be given
        as a map or by name (``pool_size=10, public=True``). Raises `RequestRefused`: ``conflict``, ``name_taken``, or what
        is wrong with them.
        """
        options = {**(options or {}), **more}
        declaration = {"username": username, "fqn": fqn, "options": options or None, "ephemeral": ephemeral or None}
        service = Service(self, declaration, handler)
        await self._join(service, service._declare)
        return service

    async def subscribe(
        self, target: str | None = None, since: int | None = None, *, instance: str = ""
    ) -> EventStream:
        """The events of a target or, with None, of everything; from number `since` on, as far as they are kept.

        `instance` says of which start of the daemon `since` is a number (`Daemon.instance` was that then). If that is over,
        an ``overrun`` comes first, and then all that the present one has kept.
        """
        stream = EventStream(self, target, since, instance if since is not None else "")
        await self._join(stream, stream._declare)
        return stream

    async def wait(self, target: str, what: str = "connected", timeout: float | None = None) -> dict[str, Any]:
        """Wait until `target` is ``connected`` or ``drained``; `timeout` in seconds, None: as long as it takes.

        Raises `RequestRefused`: ``timeout``, or ``closed`` and ``failed`` when it will not come about.
        """
        until = None if timeout is None else asyncio.get_running_loop().time() + timeout
        while True:
            try:
                async with asyncio.timeout_at(until):
                    wire = await self._usable()
            except TimeoutError:
                raise RequestRefused("timeout", f"the daemon has not come back within {timeout} s") from None
            left = None if until is None else max(0.0, until - asyncio.get_running_loop().time())
            limit = None if left is None else self.request_timeout + left
            with self._repeating("wait"):
                params = {"target": target, "for": what, "timeout": left}
                return cast("dict[str, Any]", await wire.request("wait", params, timeout=limit))

    # --- inside ------------------------------------------------------------------------------------------------

    def _hear_own_events(self) -> None:
        """Subscribe, unless that was done since this was opened, or it is not open."""
        if self._own_events is None and self._closed is None:
            self._own_events = _OwnEvents(self)
            self._spawn(self._join(self._own_events, self._own_events._declare), "events of the daemon")

    async def _ask(self, method: str, params: dict[str, Any] | None, limit: float | None) -> Any:
        while True:
            wire = await self._usable()
            with self._repeating(method):
                return await wire.request(method, params, timeout=limit)

    @contextlib.contextmanager
    def _repeating(self, method: str) -> Iterator[None]:
        """Passes over `ConnectionLost` where the request may be made again on the next socket."""
        try:
            yield
        except ConnectionLost:
            if not self._reconnect or method in ONCE_ONLY or self._closed is not None:
                raise

    async def _connect(
        self, service: dict[str, Any], name: str | None, options: dict[str, Any], *, ephemeral: bool
    ) -> Connection:
        more = {"name": name, "options": options or None, "ephemeral": ephemeral or None}
        connection = Connection(self, {**service, **more})
        await self._join(connection, connection._declare)
        return connection

    async def _attach(self, channel: Channel, *, takeover: bool) -> None:
        await self._join(channel, lambda wire: channel._attach(wire, takeover=takeover))

    async def _attach_again(self, channel: Channel) -> None:
        """After the channel gave its handle back for a while; it ends when it cannot be had."""
        with contextlib.suppress(ConnectionLost):
            wire = await self._usable()
            try:
                await channel._revive(wire)
            except (RequestRefused, TimeoutError) as error:
                await self._put_back(channel, wire, error)

    async def _join(self, member: _Revivable, declare: Callable[[Wire], Awaitable[None]]) -> None:
        """Declare or attach something, on another socket where the first one breaks, and keep it so from then on."""
        while True:
            wire = await self._usable()
            try:
                await declare(wire)
            except ConnectionLost:
                if not self._reconnect or self._closed is not None:
                    raise
                continue
            except RequestRefused:
                raise
            except BaseException:
                member._give_back()
                raise
            if wire is self._wire:
                self._members[id(member)] = member
                return
            member._away()

    def _forget(self, member: _Revivable) -> None:
        self._members.pop(id(member), None)

    async def _usable(self) -> Wire:
        """The open socket; waits for it while it is gone."""
        while True:
            if self._closed is not None:
                raise self._closed
            if self._wire is not None and self._ready.is_set():
                return self._wire
            await self._ready.wait()

    async def _greet(self, path: Path) -> Wire:
        wire = await open_wire(path, self._lose)
        try:
            hello = {"protocol": [PROTOCOL_VERSION], "client": self._client}
            answer = await wire.request("hello", hello, timeout=self._hello_timeout)
        except BaseException:
            wire.close()
            raise
        if wire.lost:
            raise ConnectionLost("the daemon closed the socket after its hello")
        self._same_instance = self.instance == answer["instance"]
        self.version, self.instance = answer["version"], answer["instance"]
        return wire

    def _lose(self, wire: Wire) -> None:
        """The socket is gone."""
        if wire is not self._wire:
            return
        self._wire = None
        was_ready = self._ready.is_set()
        self._ready.clear()
        if not self._reconnect:
            self._finish("connection_lost", ConnectionLost("the daemon's socket is closed"))
            return
        for member in list(self._members.values()):
            member._away()
        if was_ready:
            self._spawn(self._return(), "rondevu: wait for the daemon")

    async def _return(self) -> None:
        """Wait for the socket, say hello and put everything back."""
        logger.info("The daemon at %s is gone; waiting for it", self.path)
        pause = REOPEN_FIRST
        while self._closed is None:
            try:
                await self._restore()
            except (OSError, ConnectionLost) as error:
                logger.debug("The daemon is not back: %s", error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, REOPEN_LAST)
            except RondevuClientError as error:
                self._finish("connection_lost", error)
            else:
                logger.info("The daemon is back")
                return

    async def _restore(self) -> None:
        """Raises what `_greet` and requests raise; then nothing is ready and that socket is closed."""
        wire = self._wire = await self._greet(self.path or Path())
        try:
            await self._revive_all(wire)
            if wire.lost:
                raise ConnectionLost("the daemon's socket is closed again")
        except BaseException:
            wire.close()
            self._lose(wire)
            raise
        self._ready.set()

    async def _revive_all(self, wire: Wire) -> None:
        """Connections first, whose names channels may be attached by; then everything else, which waits for nothing."""
        members = list(self._members.values())
        connections = [member for member in members if isinstance(member, Connection)]
        for group in (connections, [member for member in members if not isinstance(member, Connection)]):
            outcomes = await asyncio.gather(*(member._revive(wire) for member in group), return_exceptions=True)
            for member, outcome in zip(group, outcomes, strict=True):
                if isinstance(outcome, RequestRefused) and outcome.code in PASSING:
                    self._spawn(self._put_back(member, wire, outcome), "rondevu: put back what was refused")
                elif outcome is not None:
                    raise outcome

    async def _put_back(self, member: _Revivable, wire: Wire, error: Exception) -> None:
        """Declare or attach again what was refused with `error` for a while, unless it ends or there is another socket."""
        pause = PUT_BACK_FIRST
        while True:
            logger.warning("%s is tried again in %g s: %s", type(member).__name__, pause, error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, PUT_BACK_LAST)
            if wire is not self._wire or id(member) not in self._members:
                return
            try:
                await member._revive(wire)
            except ConnectionLost:
                return
            except (RequestRefused, TimeoutError) as again:
                error = again
            else:
                return

    def _finish(self, reason: str, error: Exception) -> None:
        """Nothing works from here on."""
        self._closed = self._closed or error
        self._own_events = None
        self._ready.set()
        for member in list(self._members.values()):
            member._end(reason, error)

    def _spawn(self, work: Awaitable[Any], name: str) -> asyncio.Task[Any]:
        """Run something that belongs to this object and ends with it."""
        task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(_await(work), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._end_task)
        return task

    def _end_task(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            if isinstance(task.exception(), RondevuClientError):
                logger.info("%s ended: %s", task.get_name(), task.exception())
            else:
                logger.error("%s failed", task.get_name(), exc_info=task.exception())


async def _await(work: Awaitable[Any]) -> Any:
    return await work
