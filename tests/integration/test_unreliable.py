"""Unreliable labels of a link between two daemons: data channels of their own, without numbers and acknowledgements."""

from __future__ import annotations

import asyncio

import pytest

from rondevud.transport.base import ChannelOptions
from tests.integration.daemons import PATIENCE, SCALE, Ear, Pair, take

pytestmark = [pytest.mark.webrtc, pytest.mark.timeout(120 * SCALE)]

FAST = {"ordered": False, "max_retransmits": 0}


async def carried(pair: Pair, label: str) -> list[ChannelOptions]:
    """The options of the data channels that carry the label at both ends."""
    near, far = await pair.ids()
    sessions = pair.away.session(near), pair.home.session(far)
    return [channel.options for session in sessions for channel in session._unframed._carries[label].channels]


@pytest.mark.parametrize("opener", ["connecting side", "service"])
async def test_messages_pass_both_ways_and_the_options_hold_at_both_ends(pair, opener):
    if opener == "service":
        far = await pair.program.attach((await pair.ids())[1], "fast", options=FAST)
        near = await pair.visitor.attach("chat", "fast")
    else:
        near = await pair.connection.create_channel("fast", options=FAST)
        far = await pair.next_offered()
    for sender, receiver in ((near, far), (far, near)):
        await sender.send("text")
        await sender.send(b"binary")
        messages = await take(receiver, 2)
        assert sorted(message.data for message in messages if isinstance(message.data, str)) == ["text"]
        assert sorted(message.data for message in messages if isinstance(message.data, bytes)) == [b"binary"]
    assert await carried(pair, "fast") == [ChannelOptions(ordered=False, max_retransmits=0)] * 2
    assert (near.acknowledges, far.acknowledges) == (False, False)


async def test_what_is_sent_without_a_link_goes_over_the_next_one_with_the_same_options(pair):
    near = await pair.connection.create_channel("fast", options={"max_packet_life_time": 500})
    far = await pair.next_offered()
    await near.send("before")
    assert [message.data for message in await take(far, 1)] == ["before"]
    ear = Ear(pair.connection, "disconnected", "connected")
    await pair.visitor.reconnect("chat")
    await ear.next("disconnected")
    await near.send("in between")
    assert [message.data for message in await take(far, 1)] == ["in between"]
    assert await carried(pair, "fast") == [ChannelOptions(max_packet_life_time=500)] * 2


async def test_the_side_with_other_options_is_told_which_hold(pair):
    await pair.home.stop()
    near = await pair.connection.create_channel("fast", options=FAST)
    await near.send("queued")
    await pair.home.start()
    pair.program = await pair.home.client()
    (row,) = await pair.program.connections()
    stream = await pair.program.subscribe()
    far = await pair.program.attach(row["connection_id"], "fast", options={"ordered": False, "max_retransmits": 3})
    assert [message.data for message in await take(far, 1)] == ["queued"]

    async def next_difference() -> dict:
        async for event in stream:
            if event.name == "options_differ":
                return event.data
        raise AssertionError("the events ended")

    told = await asyncio.wait_for(next_difference(), PATIENCE)
    assert (told["label"], told["taken"]) == ("fast", FAST)


@pytest.mark.parametrize("closer", ["near", "far"])
async def test_closing_it_ends_it_at_both_sides(pair, closer):
    near = await pair.connection.create_channel("fast", options=FAST)
    far = await pair.next_offered()
    await near.send("hello")
    await take(far, 1)
    channels = {"near": near, "far": far}
    await channels.pop(closer).close()
    (other,) = channels.values()
    with pytest.raises(StopAsyncIteration):
        await asyncio.wait_for(anext(other), PATIENCE)


async def test_a_closed_label_is_opened_anew(pair):
    near = await pair.connection.create_channel("fast", options=FAST)
    far = await pair.next_offered()
    await near.close()
    with pytest.raises(StopAsyncIteration):
        await asyncio.wait_for(anext(far), PATIENCE)
    near = await pair.connection.create_channel("fast")
    await near.send("anew")
    far = await pair.next_offered()
    assert [message.data for message in await take(far, 1)] == ["anew"]


async def test_a_data_channel_that_no_label_announced_is_closed_and_counted(pair):
    far = (await pair.ids())[1]
    (connection,) = pair.away.peer_connections((await pair.ids())[0])
    closed = asyncio.Event()
    stray = connection.create_data_channel("stray")
    stray.on_close = closed.set
    await asyncio.wait_for(closed.wait(), PATIENCE)
    assert pair.home.house._environment.counters["stray_channels"] == 1
    assert "stray" not in pair.home.session(far).channels
