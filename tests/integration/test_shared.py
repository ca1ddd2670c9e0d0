"""Several programs that share one channel: each message is done by one of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from rondevu_client import RequestRefused
from tests.integration.daemons import PATIENCE, SCALE, Pair, open_pair, open_world, send_stream
from tests.integration.daemons import payload as stream_payload

pytestmark = [pytest.mark.webrtc, pytest.mark.timeout(120 * SCALE)]

COUNT = 400


@pytest.fixture
async def pair(tmp_path) -> AsyncIterator[Pair]:
    async with open_world(tmp_path) as world:
        pair = await open_pair(world)
        await pair.near.detach()
        yield pair


async def work(channel, done: Counter, most: int = COUNT) -> None:
    """Acknowledge messages, each after a turn of the loop, and count them by what they say."""
    for _ in range(most):
        message = await anext(channel, None)
        if message is None:
            return
        await asyncio.sleep(0)
        await message.ack()
        done[message.data] += 1


async def start(pair, done: Counter, credit: int = 16) -> tuple:
    program = await pair.away.client()
    channel = await program.attach("chat", "main", mode="shared", auto_ack=False, credit=credit)
    return program, channel, asyncio.create_task(work(channel, done))


async def until_waiting(pair, count: int) -> None:
    """Wait until everything has arrived, and so many messages are not acknowledged."""
    await asyncio.wait_for(pair.far.flush(), PATIENCE)
    async with asyncio.timeout(PATIENCE):
        while (await pair.visitor.queue("chat", "main"))["waiting"] != count:
            pass


async def test_workers_share_a_channel_and_what_one_leaves_is_done_by_the_others(pair):
    done: Counter = Counter()
    workers = [await start(pair, done) for _ in range(3)]
    idle = await pair.away.client()
    lazy = await idle.attach("chat", "main", mode="shared", auto_ack=False, credit=32)
    await send_stream(pair.far, "jobs", COUNT)
    await asyncio.wait_for(anext(lazy), PATIENCE)
    await idle.close()
    await until_waiting(pair, 0)
    assert done.keys() == {stream_payload("jobs", number) for number in range(COUNT)}
    assert set(done.values()) == {1}
    with pytest.raises(RequestRefused, match="in_use"):
        await pair.visitor.attach("chat", "main")
    for program, _, task in workers:
        task.cancel()
        await program.close()


async def test_what_shared_workers_acknowledged_does_not_come_again_after_a_restart_of_the_daemon(pair):
    early: Counter = Counter()
    slow = await pair.away.client()
    await slow.attach("chat", "main", mode="shared", auto_ack=False, credit=8)
    program, _, task = await start(pair, early)
    await send_stream(pair.far, "jobs", COUNT)
    await until_waiting(pair, 8)
    task.cancel()
    await program.close()
    await slow.close()
    await pair.away.restart()
    last = await pair.away.client()
    channel = await last.attach("chat", "main", auto_ack=False)
    assert channel.waiting == 8
    again = [await asyncio.wait_for(anext(channel), PATIENCE) for _ in range(8)]
    assert all(message.redelivered for message in again)
    everything = {stream_payload("jobs", number) for number in range(COUNT)}
    assert {message.data for message in again} == everything - early.keys()
    await again[-1].ack()
    await until_waiting(pair, 0)
