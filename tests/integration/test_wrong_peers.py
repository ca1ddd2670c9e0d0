"""What peers and their signalling get wrong: named once, counted, and neither the session nor anybody else suffers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from rondevud.durable import frames
from rondevud.errors import SignallingRejected
from rondevud.signalling.base import DiscoveredOffer
from rondevud.signalling.identity import Identities
from rondevud.signalling.rest import RestSignalling
from tests.integration.daemons import (
    FQN,
    PATIENCE,
    SCALE,
    SERVICE,
    Exchange,
    Pair,
    World,
    exchange_few,
    open_pair,
    open_world,
    watch,
)
from tests.integration.misbehaving import MisbehavingServer, saying

pytestmark = [pytest.mark.webrtc, pytest.mark.once, pytest.mark.timeout(120 * SCALE)]

MARKED = "v=0\r\na=x-rondevu-link:1\r\n"
UNUSABLE = {
    "no SDP": "hello",
    "no data section": MARKED,
    "a data section and nothing else": f"{MARKED}m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\n",
    "64 KiB": MARKED + "a=x:y\r\n" * 8_000,
}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path) as world:
        yield world


@pytest.fixture
async def stranger(world: World) -> AsyncIterator[RestSignalling]:
    signalling = RestSignalling(world.url, Identities(world.directory / "stranger"))
    yield signalling
    await signalling.close()


async def test_an_offer_that_cannot_be_used_is_named_and_dialled_again(world: World, stranger: RestSignalling) -> None:
    pair = await open_pair(world)
    for number, (what, text) in enumerate(UNUSABLE.items()):
        events = await watch(pair.visitor)
        fqn = f"com.example.broken-{number}@1.0.0"
        await stranger.publisher("mallory", fqn).publish(text, ttl=300, public=False, metadata=None)
        connection = await pair.visitor.connect("mallory", fqn, name=what, peer="link")
        trying = await events.next("reconnecting")
        assert "unusable offer: " in trying["error"] or "not_a_link: " in trying["error"], (what, trying)
        assert trying["attempt"] >= 1
        await connection.close(0)
    await exchange_few(pair.near, pair.far)


async def test_an_answer_that_cannot_be_used_is_named_and_the_next_one_is_taken(
    world: World, stranger: RestSignalling
) -> None:
    pair = await open_pair(world, peer="link")
    for what, text in UNUSABLE.items():
        events = await watch(pair.program)
        offer = await find_offer(stranger)
        await stranger.answer(offer.offer_id, text)
        failed = await events.next("error", context="connection")
        words = ("unusable answer: ", "not_a_link: ", "no a=fingerprint")
        assert any(each in failed["message"] for each in words), (what, failed)
    await (await pair.visitor.connect("alice", FQN, name="next")).wait("connected", PATIENCE)
    await exchange_few(pair.near, pair.far)


async def find_offer(stranger: RestSignalling) -> DiscoveredOffer:
    """An offer of the service, as soon as it has refilled its pool."""
    async with asyncio.timeout(PATIENCE):
        while True:
            with contextlib.suppress(SignallingRejected):
                return await stranger.discover("alice", FQN)


async def test_the_second_answer_to_an_offer_is_ignored_and_counted(tmp_path: Path) -> None:
    async with MisbehavingServer() as server, open_world(tmp_path, signalling=False) as world:
        world.url = server.url
        pair = await open_pair(world)
        (service,) = pair.home.house.holdings.all_services()
        offer = await pair.away.house.holdings.signalling.discover("alice", FQN)
        twice = [{"offerId": offer.offer_id, "answererId": "a", "sdp": "hello", "answeredAt": at} for at in (2, 1)]
        events = await watch(pair.program)
        server.wrong = {"answers": saying({"answers": twice})}
        await events.next("error", context="connection")
        server.wrong = {}
        assert service.counters["answers_ignored"] == 1
        await (await pair.visitor.connect("alice", FQN, name="next")).wait("connected", PATIENCE)
        await exchange_few(pair.near, pair.far)


async def test_a_name_that_another_key_claims_is_named_by_row_and_event_and_tried_again(
    world: World, stranger: RestSignalling
) -> None:
    await stranger.claim("alice")
    home = await world.daemon("home", f'[[service]]\nusername = "alice"\nfqn = "{FQN}"\n')
    program = await home.client()
    events = await watch(program)
    failed = await events.next("error", context="publish", code="name_taken")
    assert "user name alice is held by another key" in failed["message"]
    (row,) = await program.services()
    assert (row["published"], row["error"]) == (False, failed["message"])
    other = await program.expose_service("bobby", FQN, **SERVICE)
    assert other.uuid


@pytest.mark.parametrize(
    ("data", "words"),
    [
        pytest.param(b"\xc1", "msgpack", id="not msgpack"),
        pytest.param("text", "text", id="text"),
        pytest.param(b"\x91\xcc\xc8", "", id="unknown kind"),
        pytest.param(b"\x94\x09\xa4main\x01", "", id="cut off"),
        pytest.param(frames.encode(frames.Data("main", 2**62, ("x",))), "", id="a number out of order"),
        pytest.param(b"\x00" * 70_000, "", id="over 64 KiB"),
    ],
)
async def test_a_damaged_frame_ends_the_link_and_the_session_goes_on(
    pair_logged: tuple[Pair, Any], data: bytes | str, words: str
) -> None:
    pair, caplog = pair_logged
    exchange = Exchange(pair.near, pair.far, 1_000)
    before = (await pair.ids())[1]

    async def damage() -> None:
        await exchange.there.reached(100).wait()
        events = await watch(pair.visitor)
        (link,) = pair.away.session("chat")._links.values()
        link.channel.send(data)
        lost = await events.next("disconnected")
        assert lost["reason"] == "protocol"
        assert words in lost["message"]
        await pair.visitor.wait("chat", "connected", PATIENCE)

    await exchange.run(damage())
    assert (await pair.ids())[1] == before
    (service,) = pair.home.house.holdings.all_services()
    (visit,) = service.visits.values()
    assert visit.session.machine.counters["protocol_errors"] == 1
    told = [record.getMessage() for record in caplog.records if "link lost: protocol: " in record.getMessage()]
    assert len([line for line in told if line.startswith(f"alice/{FQN} ")]) == 1, told


@pytest.fixture
async def pair_logged(world: World, caplog: Any) -> tuple[Pair, Any]:
    caplog.set_level(logging.INFO, "rondevud.durable")
    return await open_pair(world), caplog
