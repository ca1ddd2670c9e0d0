"""Daemons beside foreign peers: what tests of both need."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from tests.integration.daemons import CONFIG, FQN, PATIENCE, SERVICE, Place, Watch, World, take, watch
from tests.integration.foreign import ForeignChannel, ForeignClient, Foreigners, ForeignService
from tests.integration.misbehaving import Behaviour, MisbehavingServer

POLL = 0.02
"""Seconds between two looks at something that no event tells."""


class Host:
    """A daemon with the service alice, and the channels that its program is given."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.program: Any = None
        self.service: Any = None
        self.events: Watch = None  # type: ignore[assignment]
        self._offered: asyncio.Queue[Any] = asyncio.Queue()

    async def expose(self, *, serve: bool = True, **options: Any) -> None:
        """Without `serve` the program leaves the channels to whoever attaches to them."""
        self.program = await self.place.client()
        self.events = await watch(self.program)
        options = {**SERVICE, **options}
        self.service = await self.program.expose_service(
            "alice", FQN, handler=self._offer if serve else None, **options
        )

    async def _offer(self, channel: Any, _connection_id: str) -> None:
        self._offered.put_nowait(channel)

    async def next_channel(self) -> Any:
        async with asyncio.timeout(PATIENCE):
            return await self._offered.get()

    async def counters(self, channel: Any) -> dict[str, int]:
        return (await self.program.queue(channel.connection_id, channel.label))["counters"]

    async def gone(self) -> None:
        """Wait until the daemon has noticed that the peer is gone."""
        await self.events.next("disconnected")


class Guest:
    """A daemon with the connection chat to the foreign service bob."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.program: Any = None
        self.connection: Any = None
        self.events: Watch = None  # type: ignore[assignment]

    async def dial(self, target: str, **options: Any) -> None:
        self.program = await self.place.client()
        self.events = await watch(self.program)
        username, _, fqn = target.partition("/")
        self.connection = await self.program.connect(username, fqn, name="chat", **options)


async def visit(
    foreigners: Foreigners, host: Host, label: str = "main", **options: Any
) -> tuple[ForeignClient, ForeignChannel, Any]:
    """A foreign client with one channel, connected; the channel as the client and as the program have it."""
    client = await foreigners.client(**options)
    near = client.create_channel(label)
    await client.connect()
    return client, near, await host.next_channel()


async def until(condition: Any) -> None:
    """Wait for something that no event tells."""
    async with asyncio.timeout(PATIENCE):
        while not await condition():
            await asyncio.sleep(POLL)


async def received(channel: ForeignChannel, count: int) -> list[str | bytes]:
    return [await channel.receive() for _ in range(count)]


async def texts_of(channel: Any, count: int) -> list[str | bytes]:
    return [message.data for message in await take(channel, count)]


async def exchange(near: ForeignChannel, far: Any) -> None:
    """Text and binary both ways, as they are."""
    there = ["text", b"\x00\xff", "Grüße 🎈", "", b"", "x" * 100_000]
    for message in there:
        near.send(message)
    assert await texts_of(far, len(there)) == there
    back = [b"binary", "", b"", "zurück", b"x" * 100_000]
    for message in back:
        await far.send(message)
    assert await received(near, len(back)) == back


def numbers(first: int, last: int) -> list[str]:
    return [f"number {number}" for number in range(first, last + 1)]


async def call(
    guest: Guest, service: ForeignService, label: str = "main", options: dict[str, Any] | None = None, **more: Any
) -> tuple[Any, ForeignChannel]:
    """The connection to a foreign service, with one channel as both have it."""
    await guest.dial(service.target, **more)
    near = await guest.connection.create_channel(label, options=options)
    return near, await service.next_channel()


def place_at(world: World, server: MisbehavingServer, name: str, more: str = "") -> Place:
    (world.directory / "daemons").mkdir(exist_ok=True)
    world.places[name] = Place(world.directory / "daemons", name, CONFIG.format(url=server.url) + more)
    return world.places[name]


def changing(change: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]) -> Behaviour:
    """What the server answers, changed on the way."""

    async def behave(server: MisbehavingServer, request: web.Request) -> web.StreamResponse:
        answer = await server._forward(request)
        return web.json_response(await change(json.loads(answer.body)), status=answer.status)

    return behave
