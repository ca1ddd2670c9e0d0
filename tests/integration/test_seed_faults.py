"""The faults of the seed's durable layer, one test each: what its JavaScript did is said first, then shown not to happen."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web

from rondevu_client import MessagesRemoved, NotAcknowledged
from rondevud.durable.visits import ABSENCE_STEP
from rondevud.rendezvous.rules import Limits
from tests.integration.daemons import (
    FQN,
    PATIENCE,
    SCALE,
    Ear,
    Pair,
    Reception,
    World,
    exchange_few,
    open_pair,
    open_world,
    send_stream,
)
from tests.integration.foreign import Foreigners, mute
from tests.integration.misbehaving import MisbehavingServer
from tests.integration.mixed import Guest, Host, call, exchange, numbers, place_at, texts_of, until, visit

pytestmark = [pytest.mark.webrtc, pytest.mark.timeout(120 * SCALE)]

SHORT_TTL = Limits(min_ttl=1_000)


@pytest.fixture
async def world(tmp_path) -> AsyncIterator[World]:
    async with open_world(tmp_path, limits=SHORT_TTL) as world:
        yield world


@pytest.fixture
async def foreigners(world) -> AsyncIterator[Foreigners]:
    async with Foreigners(world.url) as foreigners:
        yield foreigners


@pytest.fixture
async def watched(tmp_path) -> AsyncIterator[tuple[MisbehavingServer, World]]:
    """A signalling server whose requests are counted, and who uses it."""
    async with MisbehavingServer() as server, open_world(tmp_path, signalling=False) as world:
        yield server, world


async def connections_of(pair: Pair) -> list[Any]:
    """The WebRTC connection of a pair, as both daemons have it."""
    near, far = await pair.ids()
    return pair.away.peer_connections(near) + pair.home.peer_connections(far)


async def test_1_what_is_sent_before_a_loss_is_noticed_arrives(world):
    """Everything handed to the engine between the loss and its detection, up to 33 s, was gone without an error."""
    world.engine = (
        "aiortc"  # whose sockets are ours to silence; faults/test_path.py does it on the way, with any engine
    )
    pair = await open_pair(world)
    for connection in await connections_of(pair):
        mute(connection._pc)
    for number in numbers(1, 100):
        await pair.near.send(number)
    assert (await pair.visitor.connections())[0]["state"] == "connected"
    assert await texts_of(pair.far, 100) == numbers(1, 100)


async def test_2_after_a_break_in_the_middle_everything_has_come_once_in_order_and_the_sender_knows(world):
    """Without numbers nobody knew what had arrived of a flush that broke half-way."""
    pair = await open_pair(world)
    reception = Reception("there", 3_000)

    async def cut() -> None:
        await reception.reached(1_000).wait()
        await pair.visitor.reconnect("chat")

    async with asyncio.timeout(4 * PATIENCE), asyncio.TaskGroup() as group:
        group.create_task(reception.run(pair.far))
        group.create_task(cut())
        await send_stream(pair.near, "there", 3_000)
        await pair.near.flush()


async def test_3_what_waits_outlives_the_processes(world):
    """Queues lived in the memory of a browser's tab."""
    pair = await open_pair(world)
    await pair.home.stop()
    for number in numbers(1, 10):
        await pair.near.send(number)
    await pair.away.stop()
    await pair.home.start()
    await pair.away.start()
    assert await texts_of(pair.far, 10) == numbers(1, 10)


async def test_4_a_refresh_closes_nothing_keeps_the_uuid_and_needs_no_ttl_to_be_given(world):
    """A refresh deleted the service with every live connection; without a ttl there was none, and the service expired."""
    pair = await open_pair(world)
    pool = pair.home.house.holdings.services[f"alice/{FQN}"].pool
    assert pool.next_change() is not None
    short = await pair.program.expose_service("alice", "com.example.short@1.0.0", ttl=2, polling_interval=0.1)
    broken, refreshed = Ear(pair.connection, "disconnected", "suspect"), Ear(short, "ttl_refreshed", "published")
    connection = await pair.visitor.connect("alice", "com.example.short@1.0.0", name="short")
    await connection.wait("connected", PATIENCE)
    lost = Ear(connection, "disconnected", "suspect")
    uuid = short.uuid
    for _ in range(2):
        await refreshed.next("ttl_refreshed")
    assert short.uuid == uuid
    assert await world.discover(uuid) == 200
    assert not broken.counts + lost.counts
    assert not refreshed.counts["published"]


async def test_5_a_peer_that_goes_is_noticed_finds_its_queue_when_it_is_back_and_is_forgotten_in_the_end(
    world, foreigners
):
    """A vanished peer left no event and an entry for ever, and had a new connection and no queue when it came back."""
    host = Host(await world.daemon("home"))
    await host.expose(session_expiry=600)
    client, near, far = await visit(foreigners, host)
    await client.leave()
    await host.gone()
    await far.send("kept")
    await client.reconnect()
    assert await near.receive() == "kept"
    with pytest.raises(NotAcknowledged):
        await asyncio.wait_for(far.flush(), PATIENCE)
    assert [row["connection_id"] for row in await host.program.connections()] == [far.connection_id]
    await client.leave()
    await host.gone()
    service = host.place.house.holdings.services[f"alice/{FQN}"]
    (held,) = service.visits.values()
    held.session.machine.record = replace(held.session.record, absent=600 - ABSENCE_STEP)
    await service.visits._add_absence(held)
    assert (await host.events.next("disconnection"))["reason"] == "expired"
    assert await host.program.connections() == []


async def test_6_the_options_of_a_channel_survive_a_reconnect(world, foreigners):
    """Channels were opened again ordered and reliable, and options given before the first contact were dropped."""
    guest = Guest(await world.daemon("away"))
    service = await foreigners.service()
    _, far = await call(guest, service, options={"ordered": False, "max_retransmits": 0})
    for _ in range(2):
        assert (far.data_channel.ordered, far.data_channel.maxRetransmits) == (False, 0)
        await guest.connection.reconnect()
        far = await service.next_channel()


async def test_7_connecting_answers_at_once_and_each_attempt_is_one(watched):
    """`connect` raised and went on dialling behind the caller's back, and told every failed attempt twice."""
    server, world = watched
    guest = Guest(place_at(world, server, "away", "max_attempts = 3\n"))
    await guest.place.start()
    await guest.dial(f"nobody/{FQN}")
    failed = await guest.events.next("failed")
    assert failed["permanent"]
    assert guest.events.counts["reconnecting"] == 2
    assert server.requests["find"] == 3
    assert (await guest.program.connections())[0]["state"] == "failed"


async def test_8_one_loss_is_one_recovery(world, foreigners):
    """The data channel and the connection told of one loss each, and each began a recovery."""
    guest = Guest(await world.daemon("away"))
    service = await foreigners.service(pool_size=3)
    near, far = await call(guest, service)
    await exchange(far, near)
    ear = Ear(guest.connection, "disconnected", "connected")
    (live,) = service.live
    far.close()
    await live.pc.close()
    await exchange(await service.next_channel(), near)
    assert ear.counts == {"disconnected": 1, "connected": 1}
    assert len(service.handled) == 2


async def test_8_a_failed_attempt_leaves_no_connection_behind(world, foreigners):
    """The connection of an attempt that had failed was not closed."""
    guest = Guest(await world.daemon("away", "max_attempts = 1\nconnection_timeout = 0.3\n"))
    service = await foreigners.service()
    service.polling.clear()
    await guest.dial(service.target)
    await guest.events.next("failed")

    async def closed() -> bool:
        return not guest.place.house._engine._connections

    await until(closed)


async def test_8_a_silence_that_ends_by_itself_breaks_nothing(world):
    """A moment without network (ICE's ``disconnected``) tore the connection down at once."""
    world.engine = (
        "aiortc"  # whose sockets are ours to silence; faults/test_path.py does it on the way, with any engine
    )
    pair = await open_pair(world)
    ear = Ear(pair.connection, "suspect", "recovered", "disconnected")
    await world.stop_signalling()  # no second connection can take over
    unmute = [mute(connection._pc) for connection in await connections_of(pair)]
    await ear.next("suspect")
    for each in unmute:
        each()
    await ear.next("recovered")
    await exchange_few(pair.near, pair.far)
    assert not ear.counts["disconnected"]


async def test_9_what_is_too_old_is_told_with_its_numbers(world):
    """Pruning by age was a line on the console; of an overflow only the count was told."""
    pair = await open_pair(world)
    ear = Ear(pair.near, "message_expired")
    await pair.home.stop()
    seq = await pair.near.send("old", max_age=0.05)
    assert (await ear.next("message_expired"))["count"] == 1
    with pytest.raises(MessagesRemoved) as removed:
        await asyncio.wait_for(pair.near.flush(), PATIENCE)
    assert removed.value.ranges == [(seq, seq, "expired")]


async def test_10_a_service_is_given_every_channel_of_a_connection(world, foreigners):
    """Only the first data channel that the client opened reached the handler; messages on the others vanished."""
    host = Host(await world.daemon("home"))
    await host.expose()
    client = await foreigners.client()
    near = {label: client.create_channel(label) for label in ("one", "two", "three")}
    await client.connect()
    for channel in near.values():
        channel.send(f"on {channel.label}")
    for _ in range(3):
        far = await host.next_channel()
        assert await texts_of(far, 1) == [f"on {far.label}"]
        await far.send("back")
        assert await near.pop(far.label).receive() == "back"


async def test_11_no_secret_leaves_where_it_belongs(watched):
    """The bearer secret was sent as the offer's secret, too, and private keys lay open in the browser's local storage."""
    server, world = watched
    bodies: list[dict[str, Any]] = []
    secrets: list[str] = []

    async def look(server: MisbehavingServer, request: web.Request) -> web.StreamResponse:
        bodies.append(json.loads(await request.read()))
        secrets.append(request.headers["Authorization"].partition(":")[2])
        return await server._forward(request)

    server.wrong["answer"] = server.wrong["publish"] = server.wrong["add_offers"] = look
    home, away = place_at(world, server, "home"), place_at(world, server, "away")
    for place in (home, away):
        await place.start()
    host, guest = Host(home), Guest(away)
    await host.expose(pool_size=2)
    await guest.dial(f"alice/{FQN}")
    await guest.connection.wait("connected", PATIENCE)
    assert len(bodies) >= 3
    assert all(secrets)
    assert not any(secret in json.dumps(body) for body in bodies for secret in secrets)
    (key,) = home.state_dir.rglob("alice.key")
    assert (key.stat().st_mode & 0o777, key.parent.stat().st_mode & 0o777) == (0o600, 0o700)
