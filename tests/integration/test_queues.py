"""What waits for an absent peer: delivered in order, or removed by a limit and reported on both sides."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from rondevu_client import MessageRejected, MessagesRemoved
from rondevud.durable import outbox
from tests.integration.daemons import (
    PATIENCE,
    SCALE,
    Ear,
    Pair,
    World,
    exchange_few,
    open_pair,
    open_world,
    send_stream,
    take,
    watch,
)
from tests.integration.daemons import payload as stream_payload

pytestmark = [pytest.mark.webrtc, pytest.mark.timeout(120 * SCALE)]


@pytest.fixture
async def world(tmp_path) -> AsyncIterator[World]:
    async with open_world(tmp_path) as world:
        yield world


@pytest.fixture
async def pair(world) -> Pair:
    return await open_pair(world)


async def limited(pair, label="small", **options):
    """Another channel of the connection, with limits at the connecting side; both ends."""
    near = await pair.connection.create_channel(label, options=options)
    return near, await pair.next_offered()


async def send_all(channel, texts):
    """Send in order; the texts that were rejected, with their codes."""
    results = await asyncio.gather(*(channel.send(text) for text in texts), return_exceptions=True)
    for result in results:
        assert isinstance(result, int | MessageRejected), result
    return {text: result.code for text, result in zip(texts, results, strict=True) if isinstance(result, Exception)}


async def texts_of(channel, count):
    return [message.data for message in await take(channel, count)]


FIVE = [f"number {number}" for number in range(1, 6)]

# --- nothing is lost -------------------------------------------------------------------------------------------------


async def test_messages_sent_before_the_first_contact_are_delivered_first_and_in_order(world):
    pair = Pair(world, await world.daemon("home"), await world.daemon("away", "max_attempts = 1000\n"))
    pair.visitor = await pair.away.client()
    connection = await pair.visitor.connect("alice", "com.example.chat@1.0.0", name="chat")
    near = await connection.create_channel("main")
    assert near.acknowledges is None
    await send_stream(near, "early", 1_000)
    await pair.expose()
    far = await pair.next_offered()
    for number in range(1_000):
        assert (await asyncio.wait_for(anext(far), PATIENCE)).data == stream_payload("early", number)
    await asyncio.wait_for(near.flush(), PATIENCE)


async def test_messages_sent_while_the_peer_is_away_are_delivered_in_order_when_it_is_back(pair):
    await pair.home.stop()
    await send_stream(pair.near, "absent", 1_000)
    assert (await pair.visitor.queue("chat", "main"))["queue_size"] == 1_000
    await pair.home.start()
    for number in range(1_000):
        message = await asyncio.wait_for(anext(pair.far), PATIENCE)
        assert message.data == stream_payload("absent", number)
        assert message.attempt == 1
    await asyncio.wait_for(pair.near.flush(), PATIENCE)
    assert (await pair.visitor.queue("chat", "main"))["queue_size"] == 0


# --- limits ----------------------------------------------------------------------------------------------------------


async def test_reject_refuses_what_does_not_fit_while_the_peer_is_away(pair):
    near, far = await limited(pair, max_queue_size=3, overflow="reject")
    await pair.home.stop()
    overflow = Ear(near, "queue_overflow")
    assert await send_all(near, FIVE) == {"number 4": "queue_full", "number 5": "queue_full"}
    assert (await overflow.next("queue_overflow"))["policy"] == "reject"
    await pair.home.start()
    assert await texts_of(far, 3) == FIVE[:3]
    await asyncio.wait_for(near.flush(), PATIENCE)
    await near.send("there is room again")
    assert await texts_of(far, 1) == ["there is room again"]


async def test_drop_oldest_removes_the_oldest_and_the_receiver_is_told_in_their_place(pair):
    near, far = await limited(pair, max_queue_size=3, overflow="drop_oldest")
    await near.send("delivered")
    assert await texts_of(far, 1) == ["delivered"]
    await asyncio.wait_for(near.flush(), PATIENCE)
    await pair.home.stop()
    overflow, gaps = Ear(near, "queue_overflow"), Ear(far, "gap")
    assert await send_all(near, FIVE) == {}
    assert (await overflow.next("queue_overflow"))["policy"] == "drop_oldest"
    await pair.home.start()
    assert await texts_of(far, 3) == FIVE[2:]
    gap = await gaps.next("gap")
    assert (gap["reason"], gap["count"]) == ("overflow", 2)
    with pytest.raises(MessagesRemoved) as removed:
        await asyncio.wait_for(near.flush(), PATIENCE)
    assert [tuple(gone) for gone in removed.value.ranges] == [(2, 3, "overflow")]


async def test_block_holds_the_sender_back_until_the_peer_has_taken_something(pair):
    near, far = await limited(pair, max_queue_size=3, overflow="block")
    await pair.home.stop()
    sending = [asyncio.ensure_future(near.send(text)) for text in FIVE]
    await asyncio.wait_for(asyncio.gather(*sending[:3]), PATIENCE)
    queue = await pair.visitor.queue("chat", "small")
    assert (queue["queue_size"], queue["parked"] > 0) == (3, True)
    assert not sending[3].done()
    await pair.home.start()
    await asyncio.wait_for(asyncio.gather(*sending), PATIENCE)
    assert await texts_of(far, 5) == FIVE


async def test_a_message_larger_than_the_whole_queue_is_refused_with_the_limit(pair):
    near, far = await limited(pair, max_queue_bytes=1_000)
    with pytest.raises(MessageRejected) as rejected:
        await near.send("x" * 1_001)
    assert rejected.value.code == "queue_full"
    assert "1000" in rejected.value.message
    await exchange_few(near, far)


async def test_while_messages_flow_a_full_queue_holds_back_and_drops_nothing(pair, monkeypatch):
    monkeypatch.setattr(outbox, "PROGRESS", PATIENCE)  # a busy machine is no reason to drop
    near, far = await limited(pair, max_queue_size=3, overflow="drop_oldest")
    texts = [f"fast {number}" for number in range(500)]
    received = asyncio.ensure_future(texts_of(far, 500))
    assert await send_all(near, texts) == {}
    assert await received == texts
    await asyncio.wait_for(near.flush(), PATIENCE)


async def test_a_message_that_grew_too_old_is_removed_and_its_place_is_a_gap(pair):
    expired, gaps = Ear(pair.near, "message_expired"), Ear(pair.far, "gap")
    await pair.near.send("delivered")
    await asyncio.wait_for(pair.near.flush(), PATIENCE)
    await pair.home.stop()
    await pair.near.send("ages", max_age=0.05)
    await pair.near.send("lasts")
    assert (await expired.next("message_expired"))["count"] == 1
    await pair.home.start()
    assert await texts_of(pair.far, 2) == ["delivered", "lasts"]
    gap = await gaps.next("gap")
    assert (gap["reason"], gap["count"]) == ("expired", 1)
    with pytest.raises(MessagesRemoved) as removed:
        await asyncio.wait_for(pair.near.flush(), PATIENCE)
    assert [gone.reason for gone in removed.value.ranges] == ["expired"]


async def test_a_channels_age_limit_holds_without_a_word_in_the_message(pair):
    near, far = await limited(pair, max_message_age=0.05)
    await pair.home.stop()
    expired = Ear(near, "message_expired")
    await send_all(near, FIVE)
    total = 0
    while total < len(FIVE):
        total += (await expired.next("message_expired"))["count"]
    assert (await pair.visitor.queue("chat", "small"))["queue_size"] == 0
    await pair.home.start()
    await pair.connected()
    await near.send("fresh")
    assert await texts_of(far, 1) == ["fresh"]


async def test_a_purge_empties_the_queue_is_reported_and_leaves_the_channel_alive(pair):
    await pair.near.send("delivered")
    await asyncio.wait_for(pair.near.flush(), PATIENCE)
    await pair.home.stop()
    events, gaps = await watch(pair.visitor), Ear(pair.far, "gap")
    await send_all(pair.near, FIVE)
    assert await pair.visitor.purge("chat", "main", "out") == {"purged": {"out": 5, "in": 0}}
    assert (await events.next("purged"))["count"] == 5
    with pytest.raises(MessagesRemoved) as removed:
        await asyncio.wait_for(pair.near.flush(), PATIENCE)
    assert [gone.reason for gone in removed.value.ranges] == ["purged"]
    await pair.near.send("after the purge")
    await pair.home.start()
    assert await texts_of(pair.far, 2) == ["delivered", "after the purge"]
    assert (await gaps.next("gap"))["reason"] == "purged"


async def test_a_purge_of_the_inbox_takes_what_no_program_has_read(pair):
    await pair.leave()
    await send_all(pair.near, FIVE)
    await asyncio.wait_for(pair.near.flush(), PATIENCE)
    far_id = (await pair.ids())[1]
    assert await pair.program.purge(far_id, "main", "in") == {"purged": {"out": 0, "in": 5}}
    far = await pair.program.attach(far_id, "main")
    await exchange_few(pair.near, far)


async def test_a_full_inbox_holds_the_sender_back_and_loses_nothing(world):
    """Each message is larger than the room of so small an inbox: they come one at a time, and fill it to the last place."""
    pair = await open_pair(world, home="[queue]\ninbox_size = 10\n")
    await pair.leave()
    texts = [f"{number} ".ljust(1_000, "x") for number in range(500)]
    assert await send_all(pair.near, texts) == {}
    flushing = asyncio.ensure_future(pair.near.flush())
    far_id = (await pair.ids())[1]
    async with asyncio.timeout(PATIENCE):
        while (await pair.visitor.queue("chat", "main"))["queue_size"] > 490:
            pass
    assert (await pair.program.queue(far_id, "main"))["waiting"] == 10
    far = await pair.program.attach(far_id, "main", credit=5)
    assert not flushing.done()
    assert await texts_of(far, 500) == texts
    await asyncio.wait_for(flushing, PATIENCE)
