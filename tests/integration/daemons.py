"""Whole daemons in one loop: an embedded signalling server, real sockets, real WebRTC over this host."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp

from rondevu_client import Daemon
from rondevu_client.stream import EventStream
from rondevud import daemon as daemon_module
from rondevud.config import parse
from rondevud.durable.session import DurableSession
from rondevud.house import House
from rondevud.rendezvous import app as rendezvous
from rondevud.rendezvous.rules import Limits
from rondevud.rendezvous.storage import open_storage
from tests.engines import TRANSPORT, WANTED, with_engine

SCALE = float(os.environ.get("RONDEVUD_TIME_SCALE", "1"))
"""All waits of these tests grow by it on a slow machine."""

PATIENCE = 30.0 * SCALE
"""Seconds after which something that must happen has not."""

FQN = "com.example.chat@1.0.0"
SERVICE = {"polling_interval": 0.1}
"""Options of the services here: whoever dials is answered soon."""

CONFIG = (
    TRANSPORT
    + """
[signalling]
url = "{url}"
request_timeout = 5
[reconnect]
backoff_base = 0.05
backoff_max = 0.2
"""
)


class Place:
    """A daemon: its state directory and socket, which stay, and what runs in between `start` and `stop`."""

    def __init__(self, directory: Path, name: str, config: str) -> None:
        directory.mkdir(exist_ok=True)
        self.state_dir = directory / name
        self.socket = directory / f"{name}.sock"
        self.config = parse(config, name)
        self.config_path: Path | None = None
        """What a reload reads."""
        self.house: House | None = None
        self._stack: contextlib.AsyncExitStack | None = None
        self._clients = contextlib.AsyncExitStack()

    async def start(self) -> None:
        stack = contextlib.AsyncExitStack()
        try:
            async with asyncio.timeout(PATIENCE):
                self.house = await daemon_module.start(
                    stack, self.config, self.state_dir, self.socket, self.config_path
                )
        except BaseException:
            await stack.aclose()
            raise
        self._stack = stack

    async def stop(self) -> None:
        """As at SIGTERM. Idempotent."""
        stack, self._stack = self._stack, None
        if stack is not None:
            async with asyncio.timeout(PATIENCE):
                await stack.aclose()
        self.house = None

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    async def client(self, **options: Any) -> Daemon:
        """A program of this daemon; it leaves with the test."""
        return await self._clients.enter_async_context(Daemon(self.socket, **options))

    async def end(self) -> None:
        async with asyncio.timeout(PATIENCE):
            await self._clients.aclose()
        await self.stop()

    def session(self, target: str) -> DurableSession:
        assert self.house is not None
        return self.house.holdings.session(target)

    def peer_connections(self, target: str) -> list[Any]:
        """The WebRTC connections that carry a connection (name or id) now."""
        return [link.connection for link in self.session(target)._links.values()]


class World:
    """Daemons and the signalling server that introduces them."""

    def __init__(self, directory: Path, limits: Limits) -> None:
        self.directory = directory
        self.places: dict[str, Place] = {}
        self.engine = WANTED
        """Of the daemons that are made from now on."""
        self._storage = open_storage("memory", directory)
        self._settings = rendezvous.Settings(limits=limits)
        self._server: rendezvous.RunningServer | None = None
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port: int = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        """Where daemons made from now on find their signalling server."""

    async def start_signalling(self) -> None:
        self._server = await rendezvous.start("127.0.0.1", self._port, self._storage, self._settings)

    async def stop_signalling(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            await server.close()

    async def discover(self, uuid: str) -> int:
        """The status with which the signalling server answers who asks for a service."""
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(PATIENCE)) as session,
            session.get(f"{self.url}/services/{uuid}") as answer,
        ):
            return answer.status

    def place(self, name: str, more: str = "") -> Place:
        """A daemon that is not started yet; `more` is TOML behind `CONFIG`."""
        config = with_engine(CONFIG.format(url=self.url), self.engine)
        self.places[name] = Place(self.directory / "daemons", name, config + more)
        return self.places[name]

    async def daemon(self, name: str, more: str = "") -> Place:
        place = self.place(name, more)
        await place.start()
        return place

    async def end(self) -> None:
        for place in self.places.values():
            await place.end()
        await self.stop_signalling()
        self._storage.close()


class _Complaints(logging.Handler):
    """What is logged as an error: a daemon that works has none."""

    def __init__(self, expected: str) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []
        self._expected = expected

    def emit(self, record: logging.LogRecord) -> None:
        if self._expected and record.name.startswith(self._expected):
            return
        self.found.append(logging.Formatter("%(name)s: %(message)s").format(record))


@contextlib.asynccontextmanager
async def open_world(
    directory: Path, *, limits: Limits | None = None, signalling: bool = True, expected: str = ""
) -> AsyncIterator[World]:
    """A world that is put away in the end. Errors in logs and exceptions that nobody took fail the test.

    Errors of the logger `expected` do not.
    """
    complaints = _Complaints(expected)
    roots = [logging.getLogger("rondevud"), logging.getLogger("rondevu_client")]
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: complaints.found.append(f"in the loop: {context}"))
    for root in roots:
        root.addHandler(complaints)
    world = World(directory, limits or Limits())
    try:
        if signalling:
            await world.start_signalling()
        yield world
    finally:
        await world.end()
        gc.collect()  # "exception was never retrieved" is said by finalisers
        for root in roots:
            root.removeHandler(complaints)
        loop.set_exception_handler(None)
    if complaints.found:
        raise AssertionError("\n".join(complaints.found))


class Ear:
    """Events of an emitter of the client library, to wait for."""

    def __init__(self, emitter: Any, *names: str) -> None:
        self.queue: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self.counts: Counter[str] = Counter()
        for name in names:
            emitter.on(name, self._listener(name))

    def _listener(self, name: str) -> Callable[..., None]:
        def heard(data: Any = None) -> None:
            self.counts[name] += 1
            self.queue.put_nowait((name, data))

        return heard

    async def any(self) -> str:
        """The name of the next event."""
        async with asyncio.timeout(PATIENCE):
            return (await self.queue.get())[0]

    async def next(self, name: str) -> Any:
        """The data of the next event of that name; others are passed over."""
        async with asyncio.timeout(PATIENCE):
            while True:
                heard, data = await self.queue.get()
                if heard == name:
                    return data


class Watch:
    """All events of a daemon from now on, to wait for; made by `watch`."""

    def __init__(self, stream: EventStream) -> None:
        self._stream = stream
        self.counts: Counter[str] = Counter()

    async def next(self, name: str, **facts: Any) -> dict[str, Any]:
        """The data of the next event of that name and with these facts; others are counted and passed over."""
        async with asyncio.timeout(PATIENCE):
            async for event in self._stream:
                self.counts[event.name] += 1
                if event.name == name and facts.items() <= event.data.items():
                    return event.data
        raise AssertionError(f"the events ended before {name}")


async def watch(program: Daemon) -> Watch:
    return Watch(await program.subscribe())


class Pair:
    """A service at one daemon, a connection to it from another, and one channel as both programs have it."""

    def __init__(self, world: World, home: Place, away: Place) -> None:
        self.world = world
        self.home = home
        """The daemon with the service."""
        self.away = away
        """The daemon with the connection."""
        self.offered: asyncio.Queue[Any] = asyncio.Queue()
        self.program: Any = None
        self.visitor: Any = None
        self.service: Any = None
        self.connection: Any = None
        self.far: Any = None
        """The channel at the service."""
        self.near: Any = None
        """The channel at the connecting side."""

    async def expose(self, **options: Any) -> None:
        async def offer(channel: Any, _connection_id: str) -> None:
            self.offered.put_nowait(channel)

        self.program = await self.home.client()
        self.service = await self.program.expose_service("alice", FQN, handler=offer, **{**SERVICE, **options})
        assert self.service.uuid

    async def connect(self, label: str = "main", **options: Any) -> None:
        self.visitor = await self.away.client()
        self.connection = await self.visitor.connect("alice", FQN, name="chat", **options)
        self.near = await self.connection.create_channel(label)
        await self.connection.wait("connected", PATIENCE)
        self.far = await self.next_offered()

    async def next_offered(self) -> Any:
        async with asyncio.timeout(PATIENCE):
            return await self.offered.get()

    async def ids(self) -> tuple[str, str]:
        """The connection ids that the two daemons list, one each."""
        (near,) = await self.visitor.connections()
        (far,) = await self.program.connections()
        return near["connection_id"], far["connection_id"]

    async def leave(self) -> None:
        """The service's program ends; another one looks on that serves no channel."""
        await self.program.close()
        self.program = await self.home.client()

    async def connected(self) -> None:
        """Wait until both daemons have the link."""
        near, far = await self.ids()
        await self.visitor.wait(near, "connected", PATIENCE)
        await self.program.wait(far, "connected", PATIENCE)


async def open_pair(world: World, *, home: str = "", away: str = "", **options: Any) -> Pair:
    """Two daemons, connected; `home` and `away` are TOML of theirs, `options` the service's."""
    pair = Pair(world, await world.daemon("home", home), await world.daemon("away", away))
    await pair.expose(**options)
    await pair.connect()
    return pair


# --- streams ---------------------------------------------------------------------------------------------------------

LARGE_EVERY = 500
LARGE = 200 * 1024


def payload(direction: str, number: int) -> str | bytes:
    """Message `number` of a stream: text and binary in turn, now and then a large one."""
    text = f"{direction} {number} "
    text += "ä" * (LARGE // 2) if number % LARGE_EVERY == LARGE_EVERY - 1 else "x" * (number % 50)
    return text.encode() if number % 2 else text


async def send_stream(channel: Any, direction: str, count: int, first: int = 0) -> None:
    """Send messages `first` to `count` - 1, in order, as fast as they are accepted."""
    for start in range(first, count, 100):
        numbers = range(start, min(start + 100, count))
        await asyncio.gather(*(channel.send(payload(direction, number)) for number in numbers))


class Reception:
    """What one program gets of a stream, checked as it comes: every message once, in order.

    With `redelivered` messages may come again, marked, under the id they had: their daemon is restarted meanwhile.
    """

    def __init__(self, direction: str, count: int, *, redelivered: bool = False) -> None:
        self.direction = direction
        self.count = count
        self.taken = 0
        self.again = 0
        """Redeliveries of what had been taken."""
        self._redelivered = redelivered
        self._ids: set[str] = set()
        self._marks: dict[int, asyncio.Event] = {}

    def reached(self, number: int) -> asyncio.Event:
        """Set once so many messages have been taken."""
        mark = self._marks.setdefault(number, asyncio.Event())
        if self.taken >= number:
            mark.set()
        return mark

    async def run(self, channel: Any) -> None:
        """Take messages until there are `count`; the last one is acknowledged, too."""
        async for message in channel:
            self._take(message)
            if self.taken == self.count:
                await message.ack()
                return
        raise AssertionError(f"{self.direction}: ended after {self.taken} messages: {channel.end_reason}")

    def _take(self, message: Any) -> None:
        if message.id in self._ids:
            assert self._redelivered, f"{self.direction}: {message.id} came twice"
            assert message.redelivered, f"{self.direction}: {message.id} came twice and does not say so"
            self.again += 1
            return
        assert message.data == payload(self.direction, self.taken), (
            f"{self.direction}: {message.data[:20]!r} where {self.taken} was due"
        )
        assert self._redelivered or message.attempt == 1
        self._ids.add(message.id)
        self.taken += 1
        mark = self._marks.get(self.taken)
        if mark is not None:
            mark.set()


class Exchange:
    """Streams in both directions at once: `there` is received at the service, `back` at the connecting side."""

    def __init__(self, near: Any, far: Any, count: int, *, redelivered: tuple[str, ...] = ()) -> None:
        self.near = near
        self.far = far
        self.count = count
        self.there = Reception("there", count, redelivered="there" in redelivered)
        self.back = Reception("back", count, redelivered="back" in redelivered)

    async def run(self, *meanwhile: Any, timeout: float = 6 * PATIENCE) -> None:
        """Until everything has arrived and `meanwhile` (coroutines) is over."""
        async with asyncio.timeout(timeout), asyncio.TaskGroup() as group:
            for work in meanwhile:
                group.create_task(work)
            group.create_task(self.there.run(self.far))
            group.create_task(self.back.run(self.near))
            group.create_task(send_stream(self.near, "there", self.count))
            group.create_task(send_stream(self.far, "back", self.count))


async def take(channel: Any, count: int, within: float = PATIENCE) -> list[Any]:
    """The next messages, acknowledged."""
    messages: list[Any] = []
    async with asyncio.timeout(within):
        while len(messages) < count:
            messages.append(await anext(channel))
    await messages[-1].ack()
    return messages


async def exchange_few(near: Any, far: Any, count: int = 20) -> None:
    """A short stream both ways: that two channels work."""
    await Exchange(near, far, count).run()
