"""What a daemon must do to live with the seed-era's real servers and clients, one test for each line of that list.

Elsewhere: time-outs, repetition, Retry-After, 503 and "already answered" of one request, names of two labels and what the
server gives of a TTL in `test_signalling`; the same for each request in `test_wrong_signalling`; offers replaced before they
expire in `test_service_pool`; answers without candidates and channels that either side opens in `test_plain_peers`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from rondevud.durable import dialling
from rondevud.rendezvous.rules import Limits
from rondevud.rendezvous.storage import open_storage
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
    watch,
)
from tests.integration.misbehaving import MisbehavingServer, refusing

pytestmark = [pytest.mark.webrtc, pytest.mark.timeout(120 * SCALE)]

TAKEN = refusing(400, "Offer already answered")
EMPTY = refusing(503, "No available offers")
FORGOTTEN = refusing(401, "Invalid credentials")


@pytest.fixture
async def server() -> AsyncIterator[MisbehavingServer]:
    async with MisbehavingServer() as server:
        yield server


@pytest.fixture
async def world(server: MisbehavingServer, tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path, signalling=False) as world:
        world.url = server.url
        yield world


async def test_each_service_registers_once_and_so_do_all_connections_together(
    server: MisbehavingServer, world: World
) -> None:
    pair = await open_pair(world)
    await pair.program.expose_service("alice", "com.example.other@1.0.0", **SERVICE)
    for number in range(3):
        await (await pair.visitor.connect("alice", FQN, name=f"more-{number}")).wait("connected", PATIENCE)
    assert server.requests["register"] == 3, "one for each of two services, one for whoever connects"
    keys = {json.loads(body)["publicKey"] for route, _, body in server.seen if route == "claim"}
    assert len(keys) == 1, "the key of a user name is kept"


async def test_no_secret_of_ours_is_given_away_as_an_offers_secret(server: MisbehavingServer, world: World) -> None:
    await open_pair(world, pool_size=3)
    answers = [json.loads(body) for route, _, body in server.seen if route == "answer"]
    offers = [offer for route, _, body in server.seen if route == "add_offers" for offer in json.loads(body)["offers"]]
    assert {frozenset(answer) for answer in answers} == {frozenset({"sdp"})}
    assert {frozenset(offer) for offer in offers} == {frozenset({"sdp", "ttl"})}


async def test_offers_and_answers_carry_their_candidates(server: MisbehavingServer, world: World) -> None:
    await open_pair(world, pool_size=2)
    bodies = [body for route, _, body in server.seen if route in {"publish", "add_offers", "answer"}]
    assert len(bodies) >= 3
    assert all("a=candidate:" in body for body in bodies)


@pytest.mark.parametrize(("route", "refusal"), [("discover", EMPTY), ("answer", TAKEN), ("find", FORGOTTEN)])
async def test_an_offer_that_is_not_to_be_had_is_sought_again_and_is_no_attempt(
    server: MisbehavingServer, world: World, monkeypatch: pytest.MonkeyPatch, route: str, refusal: object
) -> None:
    monkeypatch.setattr(dialling, "BUSY_DELAY", (0.0, 0.01))
    pair = await open_pair(world)
    events = await watch(pair.visitor)
    server.wrong = {route: refusal}
    connection = await pair.visitor.connect("alice", FQN, name="late", reconnect={"max_attempts": 2})
    for _ in range(5):
        trying = await events.next("reconnecting")
        assert trying["attempt"] == 0, trying
    server.wrong = {}
    await connection.wait("connected", PATIENCE)


async def test_a_server_that_lost_everything_is_told_all_again_and_live_links_do_not_notice(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        pair = await open_pair(world)
        broken = Ear(pair.connection, "disconnected", "suspect", "reconnecting")
        exchange = Exchange(pair.near, pair.far, 2_000)

        async def forget_everything() -> None:
            await exchange.there.reached(100).wait()
            events = await watch(pair.program)
            await world.stop_signalling()
            world._storage.close()
            world._storage = open_storage("memory", world.directory)
            await world.start_signalling()
            await events.next("published")
            assert (await pair.visitor.check("alice"))["available"] is False
            again = await pair.visitor.connect("alice", FQN, name="after")
            await again.wait("connected", PATIENCE)

        await exchange.run(forget_everything())
        await exchange_few(pair.near, pair.far)
        assert not broken.counts
        (row,) = await pair.program.services()
        assert (row["published"], row["error"]) == (True, None)


async def test_a_refresh_comes_before_the_end_that_the_server_gave_whatever_was_asked_for(tmp_path: Path) -> None:
    async with open_world(tmp_path, limits=Limits(min_ttl=1_000, max_ttl=3_000)) as world:
        home = await world.daemon("home")
        program = await home.client()
        events = await watch(program)
        service = await program.expose_service("alice", FQN, ttl=3_600, **SERVICE)
        async with asyncio.timeout(PATIENCE):
            await events.next("ttl_refreshed")
        assert await world.discover(service.uuid) == 200


async def test_a_poll_waits_as_long_as_the_server_asks_for(
    server: MisbehavingServer, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = await open_pair(world)
    (service,) = pair.home.house.holdings.all_services()
    waits: asyncio.Queue[float] = asyncio.Queue()

    async def wait(seconds: float, **_options: bool) -> None:
        waits.put_nowait(seconds)
        await asyncio.Event().wait()

    monkeypatch.setattr(service, "_wait", wait)
    server.wrong = {"answers": refusing(429, "Too many requests", Retry_After="60")}
    async with asyncio.timeout(PATIENCE):
        while await waits.get() != 60:  # the publication waits, too
            pass
    await exchange_few(pair.near, pair.far)
