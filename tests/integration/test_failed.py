"""Messages that programs died of, seen through the library: set aside, told, listed, put back, deleted."""

from __future__ import annotations

import asyncio

import pytest

from rondevu_client import RequestRefused
from tests.integration.daemons import PATIENCE, SCALE, open_pair, watch

pytestmark = [pytest.mark.webrtc, pytest.mark.timeout(60 * SCALE)]

LIMITED = "[queue]\nmax_deliveries = 1\n"


async def texts(channel, count: int) -> list[str]:
    async with asyncio.timeout(PATIENCE):
        return [(await channel.receive()).data for _ in range(count)]


async def test_a_message_is_set_aside_told_listed_and_put_back(world):
    pair = await open_pair(world, home=LIMITED)
    _, far_id = await pair.ids()
    await pair.leave()
    home = pair.program
    events = await watch(home)
    for text in ("poison", "food"):
        await pair.near.send(text)
    await asyncio.wait_for(pair.near.flush(), PATIENCE)

    doomed = await home.attach(far_id, "main", auto_ack=False)
    assert await texts(doomed, 1) == ["poison"]
    await doomed.detach()
    channel = await home.attach(far_id, "main", auto_ack=False)
    assert await texts(channel, 1) == ["food"]
    told = await events.next("message_failed", label="main")
    assert (told["attempts"], told["size"]) == (1, 6)
    (failed,) = await home.failed(far_id, "main")
    assert (failed["id"], failed["text"], failed["head"]) == (told["id"], True, b"poison")
    assert failed["enqueued_at"] <= failed["failed_at"]

    with pytest.raises(RequestRefused, match="unknown_message"):
        await home.put_back(far_id, "main", "nothing")
    with pytest.raises(RequestRefused, match="bad_params"):
        await home.purge(far_id, "main", "in", told["id"])
    assert await home.put_back(far_id, "main", told["id"]) == {"put_back": 1}
    async with asyncio.timeout(PATIENCE):
        message = await channel.receive()
        assert (message.id, message.data, message.redelivered) == (told["id"], "poison", True)
        await message.ack()  # and what came before it
        while (facts := await home.queue(far_id, "main"))["waiting"]:
            pass
    assert (facts["failed"], facts["totals"]["received"], facts["totals"]["taken"]) == (0, 2, 2)


async def test_what_is_set_aside_keeps_a_closed_connection_until_it_is_deleted(world):
    pair = await open_pair(world, home=LIMITED)
    _, far_id = await pair.ids()
    await pair.leave()
    home = pair.program
    await pair.near.send("poison")
    await asyncio.wait_for(pair.near.flush(), PATIENCE)
    doomed = await home.attach(far_id, "main", auto_ack=False)
    assert await texts(doomed, 1) == ["poison"]
    await doomed.detach()
    await home.attach(far_id, "main")
    async with asyncio.timeout(PATIENCE):
        while not await home.failed(far_id, "main"):
            pass
    await pair.visitor.close_connection("chat")
    assert [row["connection_id"] for row in await home.connections()] == [far_id]
    assert await home.purge(far_id, "main", "failed") == {"purged": {"failed": 1}}
    async with asyncio.timeout(PATIENCE):
        while await home.connections():
            await home.status()


async def test_ages_and_totals_are_shown(world):
    pair = await open_pair(world)
    _, far_id = await pair.ids()
    await pair.leave()
    await pair.near.send("one")
    await asyncio.wait_for(pair.near.flush(), PATIENCE)
    near, far = await pair.visitor.queue("chat", "main"), await pair.program.queue(far_id, "main")
    assert (near["queue_age"], far["waiting_age"] >= 0) == (None, True)
    assert (near["totals"]["accepted"], near["totals"]["acknowledged"]) == (1, 1)
    assert near["counters"]["sent"] == 1
    assert (far["totals"]["received"], far["totals"]["taken"]) == (1, 0)
