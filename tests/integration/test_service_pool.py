"""A service with a pool of offers: many connections, refreshes of its TTL, its end; and what else may knock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from rondevu_client import Detached, MessageRejected
from rondevud.durable import sdp
from rondevud.rendezvous.rules import Limits
from rondevud.signalling.identity import Identities
from rondevud.signalling.rest import RestSignalling
from rondevud.transport.aiortc import AiortcEngine
from tests.integration.daemons import (
    FQN,
    PATIENCE,
    SCALE,
    SERVICE,
    Ear,
    Exchange,
    World,
    exchange_few,
    open_pair,
    open_world,
    take,
    watch,
)

pytestmark = [pytest.mark.webrtc, pytest.mark.timeout(240 * SCALE)]

TTL = 3.0
SHORT_TTL = Limits(min_ttl=1_000)


@pytest.fixture
async def world(tmp_path) -> AsyncIterator[World]:
    async with open_world(tmp_path, limits=SHORT_TTL) as world:
        yield world


async def echo(channel, _connection_id):
    async for message in channel:
        await channel.send(f"echo: {message.data}")


async def connect_and_hear_the_echo(visitor, name):
    connection = await visitor.connect("alice", FQN, name=name)
    channel = await connection.create_channel("main")
    await channel.send(f"hello from {name}")
    (answer,) = await take(channel, 1)
    assert answer.data == f"echo: hello from {name}"


async def test_a_pool_of_five_takes_twenty_one_after_another_and_five_at_once(world):
    home, away = await world.daemon("home"), await world.daemon("away")
    program, visitor = await home.client(), await away.client()
    service = await program.expose_service("alice", FQN, handler=echo, pool_size=5, **SERVICE)
    ear = Ear(service, "connection", "disconnected", "error")
    for number in range(20):
        await connect_and_hear_the_echo(visitor, f"single-{number}")
    async with asyncio.TaskGroup() as group:
        for number in range(5):
            group.create_task(connect_and_hear_the_echo(visitor, f"crowd-{number}"))
    assert ear.counts == {"connection": 25}
    rows = await program.connections()
    assert {row["state"] for row in rows} == {"connected"}
    assert len({row["peer_name"] for row in rows}) == 25


async def test_answers_that_were_taken_are_not_repeated_with_every_poll(world):
    home, away = await world.daemon("home"), await world.daemon("away")
    program, visitor = await home.client(), await away.client()
    await program.expose_service("alice", FQN, handler=echo, pool_size=2, **SERVICE)
    for number in range(4):
        await connect_and_hear_the_echo(visitor, f"visitor-{number}")
    (service,) = home.house.holdings.all_services()

    async def answered() -> set[str]:
        mine = await service._publisher._request("GET", "/offers/mine")
        return {offer["id"] for offer in mine.body["offers"] if offer["answered"]}

    async with asyncio.timeout(PATIENCE):
        while not await answered() <= {service.pool.publication.offer_id}:
            pass


async def test_refreshing_the_ttl_is_noticed_by_no_connection_and_leaves_no_moment_without_the_service(world):
    pair = await open_pair(world, ttl=TTL, pool_size=2)
    uuid = pair.service.uuid
    refreshed = Ear(pair.service, "ttl_refreshed", "published", "error")
    broken = Ear(pair.connection, "disconnected", "suspect", "reconnecting")
    exchange = Exchange(pair.near, pair.far, 1_000)
    statuses = set()

    async def ask_until_refreshed_twice() -> None:
        while refreshed.counts["ttl_refreshed"] < 2:
            statuses.add(await world.discover(uuid))

    await exchange.run(ask_until_refreshed_twice())
    await exchange_few(pair.near, pair.far)
    assert statuses == {200}
    assert not broken.counts
    assert set(refreshed.counts) == {"ttl_refreshed"}
    (row,) = await pair.program.services()
    assert row["uuid"] == uuid
    assert (await pair.visitor.connect_by_uuid(uuid)).id


async def test_stopping_the_service_withdraws_it_and_closes_its_connections(world):
    pair = await open_pair(world, pool_size=3)
    closed = Ear(pair.connection, "closed")
    ended = Ear(pair.service, "disconnection")
    await pair.near.send("last words")
    await pair.service.stop()
    assert (await closed.next("closed"))["by"] == "peer"
    assert (await ended.next("disconnection"))["reason"] == "local"
    assert await world.discover(pair.service.uuid) == 404
    assert await pair.program.services() == []
    assert await asyncio.wait_for(pair.near.wait_detached(), PATIENCE) == "closed"
    with pytest.raises(Detached):
        await pair.near.send("too late")
    assert [message.data async for message in pair.far] == ["last words"]


async def test_what_nobody_had_read_stays_when_the_service_is_withdrawn_until_it_is_read(world):
    pair = await open_pair(world)
    await pair.leave()
    await pair.near.send("for later")
    await asyncio.wait_for(pair.near.flush(), PATIENCE)
    await pair.program.withdraw("alice", FQN)
    assert await pair.program.services() == []
    (row,) = await pair.program.connections()
    assert (row["state"], row["waiting"]) == ("closed", 1)
    await pair.home.restart()
    channel = await pair.program.attach(row["connection_id"], "main")
    assert [message.data async for message in channel] == ["for later"]
    assert await pair.program.connections() == []


# --- what is there to connect to -------------------------------------------------------------------------------------


async def test_a_connection_by_uuid_reaches_the_service(world):
    home, away = await world.daemon("home"), await world.daemon("away")
    program, visitor = await home.client(), await away.client()
    service = await program.expose_service("alice", FQN, handler=echo, **SERVICE)
    connection = await visitor.connect_by_uuid(service.uuid)
    assert connection.name == f"uuid/{service.uuid}"
    channel = await connection.create_channel("main")
    await channel.send("by number")
    assert [message.data for message in await take(channel, 1)] == ["echo: by number"]


async def test_a_name_that_does_not_exist_fails_after_its_attempts_and_works_when_it_does(world):
    home = await world.daemon("home")
    away = await world.daemon("away", "max_attempts = 2\n")
    program, visitor = await home.client(), await away.client()
    events = await watch(visitor)
    connection = await visitor.connect("alice", FQN, name="chat")
    channel = await connection.create_channel("main")
    failed = await events.next("failed")
    assert failed["code"] == "not_found"
    assert "2 attempts" in failed["message"]
    assert events.counts["reconnecting"] == 1
    with pytest.raises(MessageRejected) as rejected:
        await channel.send("nobody there")
    assert rejected.value.code == "failed"
    await program.expose_service("alice", FQN, handler=echo, **SERVICE)
    await connection.reconnect()
    await connection.wait("connected", PATIENCE)
    await channel.send("there now")
    assert [message.data for message in await take(channel, 1)] == ["echo: there now"]


async def test_connecting_again_tries_anew_after_a_failure(world):
    home = await world.daemon("home")
    away = await world.daemon("away", "max_attempts = 1\n")
    program, visitor = await home.client(), await away.client()
    events = await watch(visitor)
    connection = await visitor.connect("alice", FQN, name="chat")
    await events.next("failed")
    await program.expose_service("alice", FQN, handler=echo, **SERVICE)
    again = await visitor.connect("alice", FQN, name="chat")
    assert again.id == connection.id
    await again.wait("connected", PATIENCE)


# --- peers that are no daemons ---------------------------------------------------------------------------------------


@pytest.fixture
async def stranger(world, tmp_path):
    """Signalling and WebRTC without the link protocol."""
    signalling = RestSignalling(world.url, Identities(tmp_path / "stranger"))
    engine = AiortcEngine()
    yield signalling, engine
    await engine.close()
    await signalling.close()


async def test_an_answer_without_the_link_line_is_refused_where_only_links_are_wanted_and_disturbs_nobody(
    world, stranger
):
    signalling, engine = stranger
    pair = await open_pair(world, pool_size=2, peer="link")
    ear = Ear(pair.service, "error", "disconnected", "disconnection")
    exchange = Exchange(pair.near, pair.far, 1_000)

    async def knock() -> None:
        offer = await signalling.discover("alice", FQN)
        connection = engine.create_peer_connection()
        connection.create_data_channel("chat")
        await signalling.answer(offer.offer_id, await connection.create_answer(offer.sdp))
        assert "not_a_link" in (await ear.next("error"))["message"]

    await exchange.run(knock())
    assert ear.counts == {"error": 1}
    assert len(await pair.program.connections()) == 1


async def test_an_offer_without_the_link_line_is_not_taken_where_only_links_are_wanted(world, stranger):
    signalling, engine = stranger
    away = await world.daemon("away", "max_attempts = 2\n")
    await signalling.claim("bob")
    publisher = signalling.publisher("bob", FQN)
    connection = engine.create_peer_connection()
    connection.create_data_channel("rondevu-service")
    offer = await connection.create_offer()
    assert not sdp.link_versions(offer)
    await publisher.publish(offer, ttl=60, public=False, metadata=None)
    visitor = await away.client()
    events = await watch(visitor)
    await visitor.connect("bob", FQN, name="plain", peer="link")
    assert (await events.next("failed"))["code"] == "not_a_link"
    assert await publisher.answers() == []
