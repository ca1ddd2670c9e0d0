"""`[queue] max_store_bytes`: what happens to programs and peers when all queues together are full, and when they drain."""

from __future__ import annotations

import asyncio

import pytest

from rondevu_client import MessageRejected
from tests.integration.daemons import FQN, PATIENCE, SCALE, exchange_few, open_pair, take

pytestmark = [pytest.mark.webrtc, pytest.mark.timeout(120 * SCALE)]

LIMIT = 256 * 1024
MOST = LIMIT - LIMIT // 8
"""Bytes that one direction can take."""

MESSAGE = 4 * 1024


def limit(size=LIMIT, more=""):
    return f"[queue]\nmax_store_bytes = {size}\n{more}"


def message(number):
    return f"{number:06}".ljust(MESSAGE, "x")


async def fill(channel):
    """Send until the store is full; how many were accepted."""
    for number in range(2 * LIMIT // MESSAGE):
        try:
            await channel.send(message(number))
        except MessageRejected as error:
            return number if error.code == "store_full" else 0
    raise AssertionError("the store takes more than it may")


async def until(condition):
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


async def held(program):
    return (await program.status())["store_bytes"]


async def test_what_is_sent_to_an_absent_peer_is_refused_when_the_store_is_full_and_taken_again_when_it_drains(world):
    pair = await open_pair(world, away=limit())
    await pair.home.stop()
    count = await fill(pair.near)
    assert count == MOST // MESSAGE
    status = await pair.visitor.status()
    assert (status["store_bytes"], status["max_store_bytes"]) == (count * MESSAGE, LIMIT)
    await pair.away.restart()
    with pytest.raises(MessageRejected):
        await pair.near.send(message(count))
    await pair.home.start()
    assert [each.data for each in await take(pair.far, count)] == [message(number) for number in range(count)]
    await pair.near.flush()
    assert await held(pair.visitor) == 0
    await exchange_few(pair.near, pair.far)


async def test_a_peer_is_held_back_by_a_full_store_and_everything_arrives_when_it_drains(world):
    pair = await open_pair(world, home=limit())
    await pair.leave()
    count = 3 * LIMIT // MESSAGE
    await asyncio.gather(*(pair.near.send(message(number)) for number in range(count)))
    lane = pair.away.session("chat").lanes["main"].out
    await until(lambda: lane._room <= 1 and not lane.in_flight_bytes)
    waiting = await held(pair.program)
    assert MOST - MESSAGE - 16 * 1024 <= waiting <= MOST + MESSAGE
    outbox = pair.away.session("chat").channels["main"].outbox
    await until(lambda: outbox.count == count - waiting // MESSAGE)
    (row,) = await pair.program.connections()
    far = await pair.program.attach(row["connection_id"], "main")
    assert [each.data for each in await take(far, count)] == [message(number) for number in range(count)]
    await until(lambda: pair.home.house._environment.budget.held == 0)


async def test_what_waits_for_one_peer_slows_another_channel_down_and_does_not_stop_it(world):
    pair = await open_pair(world, away=limit())
    lost = await pair.visitor.connect("alice", "com.example.nobody@1.0.0", name="lost")
    await fill(await lost.create_channel("main"))
    await exchange_few(pair.near, pair.far)
    await until(lambda: pair.away.house._environment.budget.held == MOST // MESSAGE * MESSAGE)


async def test_a_full_inbox_slows_another_channel_down_and_does_not_stop_it(world):
    pair = await open_pair(world, home=limit())
    other = await pair.connection.create_channel("unread")
    await pair.next_offered()
    pair.offered.put_nowait(None)
    await asyncio.gather(*(other.send(message(number)) for number in range(2 * LIMIT // MESSAGE)))
    budget = pair.home.house._environment.budget
    await until(lambda: not budget.offer())
    await exchange_few(pair.near, pair.far)


async def test_two_full_daemons_that_echo_to_each_other_go_on(world):
    small = limit(64 * 1024, 'overflow = "block"\n')
    pair = await open_pair(world, home=small, away=small)
    count = 60

    async def echo():
        async for each in pair.far:
            await pair.far.send(each.data)

    echoing = asyncio.ensure_future(echo())
    sending = asyncio.gather(*(pair.near.send(message(number)) for number in range(count)))
    assert [each.data for each in await take(pair.near, count)] == [message(number) for number in range(count)]
    await sending
    echoing.cancel()


async def test_a_raised_limit_lets_those_who_wait_go_on(world, tmp_path):
    pair = await open_pair(world, away=limit(more='overflow = "block"\n'))
    await pair.home.stop()
    for number in range(MOST // MESSAGE):
        await pair.near.send(message(number))
    waiting = asyncio.ensure_future(pair.near.send("one more"))
    await until(lambda: pair.away.session("chat").channels["main"].outbox.parked == 1)
    pair.away.config_path = tmp_path / "away.toml"
    text = f'[signalling]\nurl = "{world.url}"\n' + limit("{size}", 'overflow = "block"\n')
    reloading = pair.away.house._reloading
    reloading._path = pair.away.config_path
    pair.away.config_path.write_text(text.replace("{size}", str(4 * LIMIT)))
    assert "queue" in (await pair.visitor.reload())["changed"]
    await asyncio.wait_for(waiting, PATIENCE)
    pair.away.config_path.write_text(text.replace("{size}", str(LIMIT // 2)))
    await pair.visitor.reload()
    status = await pair.visitor.status()
    assert status["max_store_bytes"] == LIMIT // 2 < status["store_bytes"]


@pytest.mark.parametrize("policy", ["drop_oldest", "reject"])
async def test_what_a_plain_peer_sends_into_a_full_store_is_dropped_by_the_policy_and_counted(world, policy):
    queue = {"overflow": policy}
    away = '[queue]\noverflow = "block"\n'
    pair = await open_pair(world, home=limit(1_000), away=away, peer="plain", queue=queue)
    await pair.leave()
    flood = [f"{number:030}" for number in range(60)]
    for each in flood:
        await pair.near.send(each)
    sent = pair.away.session("chat")
    await until(lambda: not sent.busy)
    (row,) = await pair.program.connections()
    session = pair.home.session(row["connection_id"])
    channel = session.channels["main"]
    await until(lambda: channel.counters["received"] + channel.counters["inbox_overflow"] >= 60)
    await until(lambda: not channel.inbox._trimming)
    assert channel.counters["inbox_overflow"] > 0
    assert await held(pair.program) <= 875
    far = await pair.program.attach(row["connection_id"], "main")
    got = [each.data for each in await take(far, channel.waiting)]
    assert got == (flood[-len(got) :] if policy == "drop_oldest" else flood[: len(got)])


async def test_memory_channels_and_ephemeral_connections_draw_on_nothing(world):
    pair = await open_pair(world, away=limit(1_000))
    memory = await pair.connection.create_channel("memory", options={"durability": "memory"})
    passing = await pair.visitor.connect("alice", FQN, name="passing", ephemeral=True)
    brief = await passing.create_channel("brief")
    await pair.home.stop()
    for channel in (memory, brief):
        await channel.send(message(0))
    assert await held(pair.visitor) == 0
