"""A daemon is stopped and started while messages flow; programs and peers come back by themselves."""

from __future__ import annotations

import asyncio

import pytest

from rondevu_client import MessageRejected
from tests.integration.daemons import (
    PATIENCE,
    SCALE,
    Ear,
    Exchange,
    exchange_few,
    take,
)

pytestmark = [pytest.mark.webrtc, pytest.mark.timeout(240 * SCALE)]

COUNT = 4_000


@pytest.mark.parametrize(
    ("side", "receives"), [("home", "there"), pytest.param("away", "back", marks=pytest.mark.once)]
)
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


async def test_what_waits_for_a_connection_that_left_the_file_waits_until_it_stands_there_again(world):
    home = await world.daemon("home")
    declared = '[[connection]]\nname = "chat"\nusername = "alice"\nfqn = "com.example.chat@1.0.0"\n'
    away = await world.daemon("away", declared)
    program = await away.client()
    channel = await program.attach("chat", "main")
    for number in range(20):
        await channel.send(f"{number}")
    connection_id = channel.connection_id
    await away.stop()

    without, again = world.place("without"), world.place("again", declared)
    without.state_dir = again.state_dir = away.state_dir
    await without.start()
    program = await without.client()
    (row,) = await program.connections()
    assert (row["connection_id"], row["state"], row["queue_size"]) == (connection_id, "failed", 20)
    refused = await program.attach(connection_id, "main")
    with pytest.raises(MessageRejected, match="not declared"):
        await refused.send("more")
    await without.stop()

    await again.start()
    received: list[str] = []
    everything = asyncio.Event()

    async def collect(channel, _connection_id) -> None:
        async for message in channel:
            received.append(message.data)
            if len(received) == 20:
                everything.set()

    program = await home.client()
    await program.expose_service("alice", "com.example.chat@1.0.0", handler=collect)
    await asyncio.wait_for(everything.wait(), PATIENCE)
    assert received == [f"{number}" for number in range(20)]
