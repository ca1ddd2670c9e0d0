"""A daemon is stopped and started while messages flow; programs and peers come back by themselves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.integration.daemons import (
    PATIENCE,
    SCALE,
    Ear,
    Exchange,
    Pair,
    World,
    exchange_few,
    open_pair,
    open_world,
    take,
)

pytestmark = [pytest.mark.webrtc, pytest.mark.timeout(240 * SCALE)]

COUNT = 4_000


@pytest.fixture
async def world(tmp_path) -> AsyncIterator[World]:
    async with open_world(tmp_path) as world:
        yield world


@pytest.fixture
async def pair(world) -> Pair:
    return await open_pair(world)


@pytest.mark.parametrize(("side", "receives"), [("home", "there"), ("away", "back")])
async def test_a_restart_in_a_stream_loses_and_reorders_nothing_and_marks_what_comes_again(pair, side, receives):
    """Only the program of the restarted daemon can see a message again: it may not have acknowledged it yet."""
    before = await pair.ids()
    place = getattr(pair, side)
    exchange = Exchange(pair.near, pair.far, COUNT, redelivered=(receives,))

    async def restart_twice() -> None:
        for number in (1, 2):
            await exchange.there.reached(number * COUNT // 3).wait()
            assert exchange.there.taken < COUNT
            await place.restart()
            await pair.connected()

    await exchange.run(restart_twice())
    await asyncio.wait_for(pair.near.flush(), PATIENCE)
    await asyncio.wait_for(pair.far.flush(), PATIENCE)
    assert await pair.ids() == before


@pytest.mark.parametrize("side", ["home", "away"])
async def test_a_stopping_daemon_says_that_it_comes_back(pair, side):
    """The side that stays hears `restarting`, keeps the connection, and is resumed."""
    ear = Ear(pair.near if side == "home" else pair.far, "disconnected", "failed", "closed")
    place = getattr(pair, side)
    await place.stop()
    assert (await ear.next("disconnected"))["reason"] == "restarting"
    await place.start()
    await pair.connected()
    await exchange_few(pair.near, pair.far)
    assert ear.counts == {"disconnected": 1}


async def test_a_service_whose_daemon_stops_leaves_no_offer_behind_and_returns_under_its_uuid(world, pair):
    uuid = pair.service.uuid
    await pair.home.stop()
    assert await world.discover(uuid) == 404
    await pair.home.start()
    await pair.connected()
    assert pair.service.uuid == uuid
    assert await world.discover(uuid) == 200


async def test_what_a_program_sends_while_its_daemon_is_away_arrives_when_it_is_back(pair):
    await pair.away.stop()
    sending = asyncio.gather(*(pair.near.send(f"late {number}") for number in range(50)))
    await pair.away.start()
    await asyncio.wait_for(sending, PATIENCE)
    assert [message.data for message in await take(pair.far, 50)] == [f"late {number}" for number in range(50)]


async def test_both_daemons_stopped_at_once_resume_with_what_was_queued(pair):
    """Neither was there to hear the other's goodbye."""
    await pair.home.stop()
    await asyncio.wait_for(pair.near.send("queued"), PATIENCE)
    await pair.away.stop()
    await pair.home.start()
    await asyncio.wait_for(pair.far.send("queued, too"), PATIENCE)
    await pair.away.start()
    await pair.connected()
    assert [message.data for message in await take(pair.far, 1)] == ["queued"]
    assert [message.data for message in await take(pair.near, 1)] == ["queued, too"]
    await exchange_few(pair.near, pair.far)
