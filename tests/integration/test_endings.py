"""What declared things go through when several hands, a failing store or a restart come between."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from rondevu_client import RequestRefused
from tests.integration.daemons import FQN, PATIENCE, SCALE, Pair, World, open_pair, open_world

pytestmark = [pytest.mark.webrtc, pytest.mark.timeout(120 * SCALE)]


@pytest.fixture
async def world(tmp_path) -> AsyncIterator[World]:
    async with open_world(tmp_path) as world:
        yield world


@pytest.fixture
async def pair(world) -> Pair:
    return await open_pair(world)


# --- declarations ----------------------------------------------------------------------------------------------------


async def test_a_connection_with_too_many_channels_is_refused_and_not_kept(world):
    place = await world.daemon("one")
    program = await place.client()
    with pytest.raises(RequestRefused) as refused:
        await program.connect("alice", FQN, name="chat", channels=[f"c{number}" for number in range(65)])
    assert refused.value.code == "bad_params"
    await place.restart()
    assert await program.connections() == []


async def test_a_channel_that_cannot_be_made_stops_neither_its_connection_nor_the_daemon(world):
    channels = ", ".join(f'"c{number}"' for number in range(65))
    declared = f'[[connection]]\nname = "chat"\nusername = "alice"\nfqn = "{FQN}"\nchannels = [{channels}]\n'
    pair = Pair(world, await world.daemon("home"), await world.daemon("away", declared))
    await pair.expose()
    program = await pair.away.client()
    await program.wait("chat", "connected", PATIENCE)
    assert len(await program.channels("chat")) == 64
