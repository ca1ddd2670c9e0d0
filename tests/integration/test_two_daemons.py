"""Two daemons, a service and a connection: what happens to messages and ids when links break."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.integration.daemons import PATIENCE, SCALE, Ear, Exchange, Pair, World, exchange_few, open_pair, open_world

pytestmark = [pytest.mark.webrtc, pytest.mark.timeout(240 * SCALE)]

COUNT = 10_000


@pytest.fixture
async def world(tmp_path) -> AsyncIterator[World]:
    async with open_world(tmp_path) as world:
        yield world


@pytest.fixture
async def pair(world) -> Pair:
    return await open_pair(world)


# --- broken links ----------------------------------------------------------------------------------------------------


async def cut_by_connecting_side(pair: Pair) -> None:
    await pair.visitor.reconnect("chat")


async def cut_by_service(pair: Pair) -> None:
    await pair.program.reconnect((await pair.ids())[1])


async def cut_in_the_engine(pair: Pair) -> None:
    """One side's WebRTC connection is closed under its daemon."""
    for connection in pair.home.peer_connections((await pair.ids())[1]):
        await connection.close()


@pytest.mark.parametrize("cut", [cut_by_connecting_side, cut_by_service, cut_in_the_engine])
async def test_a_link_cut_three_times_in_a_stream_loses_repeats_and_reorders_nothing(pair, cut):
    before = await pair.ids()
    lost = Ear(pair.connection, "disconnected")
    exchange = Exchange(pair.near, pair.far, COUNT)

    async def cut_three_times() -> None:
        for number in (1, 2, 3):
            await exchange.there.reached(number * COUNT // 4).wait()
            await pair.connected()
            assert exchange.there.taken < COUNT
            await cut(pair)
            await lost.next("disconnected")

    await exchange.run(cut_three_times())
    await asyncio.wait_for(pair.near.flush(), PATIENCE)
    await asyncio.wait_for(pair.far.flush(), PATIENCE)
    assert lost.counts["disconnected"] == 3
    assert await pair.ids() == before
    assert (pair.near.connection_id, pair.far.connection_id) == before


async def test_messages_pass_both_ways(pair):
    await exchange_few(pair.near, pair.far)
