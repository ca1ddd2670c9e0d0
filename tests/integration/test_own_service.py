"""A daemon that connects to its own service: both ends of one session in one store."""

from __future__ import annotations

import pytest

from tests.integration.daemons import SCALE, Ear, Exchange, Pair, exchange_few

pytestmark = [pytest.mark.webrtc, pytest.mark.timeout(120 * SCALE)]


@pytest.fixture
async def pair(world) -> Pair:
    place = await world.daemon("both")
    pair = Pair(world, place, place)
    await pair.expose()
    await pair.connect()
    return pair


async def test_messages_pass_both_ways_under_two_connection_ids(pair):
    rows = await pair.program.connections()
    assert {row["connection_id"] for row in rows} == {pair.near.connection_id, pair.far.connection_id}
    assert len(rows) == 2
    await exchange_few(pair.near, pair.far, 1_000)


async def test_a_cut_link_is_resumed_without_loss(pair):
    lost = Ear(pair.connection, "disconnected")
    exchange = Exchange(pair.near, pair.far, 2_000)

    async def cut() -> None:
        await exchange.back.reached(500).wait()
        await pair.connection.reconnect()
        await lost.next("disconnected")

    await exchange.run(cut())


async def test_a_restart_brings_both_ends_back(pair):
    before = {row["connection_id"] for row in await pair.program.connections()}
    await pair.near.send("across the restart")
    await pair.home.restart()
    assert (await anext(pair.far)).data == "across the restart"
    await pair.visitor.wait(pair.near.connection_id)
    assert {row["connection_id"] for row in await pair.program.connections()} == before
    await exchange_few(pair.near, pair.far)


async def test_close_ends_both_ends(pair):
    ended = Ear(pair.service, "disconnection")
    await pair.near.send("last words")
    await pair.connection.close()
    assert (await ended.next("disconnection"))["reason"] == "peer"
    assert [message.data async for message in pair.far] == ["last words"]
    assert pair.near.end_reason == "closed"
    assert [row["state"] for row in await pair.program.connections()] in ([], ["closed"])
