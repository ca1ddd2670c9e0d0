"""Two daemons, a service and a connection: what happens to messages and ids when links break."""

from __future__ import annotations

import asyncio

import pytest

from rondevu_client import MessageRejected
from rondevud.network import Change
from rondevud.transport import ice
from tests.integration.daemons import FQN, PATIENCE, SCALE, Ear, Exchange, Pair, open_pair, take

pytestmark = [pytest.mark.webrtc, pytest.mark.timeout(240 * SCALE)]

COUNT = 10_000


# --- broken links ----------------------------------------------------------------------------------------------------


async def cut_by_connecting_side(pair: Pair) -> None:
    await pair.visitor.reconnect("chat")


async def cut_by_service(pair: Pair) -> None:
    await pair.program.reconnect((await pair.ids())[1])


async def cut_in_the_engine(pair: Pair) -> None:
    """One side's WebRTC connection is closed under its daemon."""
    for connection in pair.home.peer_connections((await pair.ids())[1]):
        await connection.close()


@pytest.mark.parametrize(
    "cut",
    [
        cut_by_service,
        *(pytest.param(cut, marks=pytest.mark.once) for cut in (cut_by_connecting_side, cut_in_the_engine)),
    ],
)
async def test_a_link_cut_three_times_in_a_stream_loses_repeats_and_reorders_nothing(pair, cut):
    before = await pair.ids()
    lost = Ear(pair.connection, "disconnected", "suspect")
    exchange = Exchange(pair.near, pair.far, COUNT)

    async def cut_three_times() -> None:
        for number in (1, 2, 3):
            await exchange.there.reached(number * COUNT // 4).wait()
            await pair.connected()
            assert exchange.there.taken < COUNT
            await cut(pair)
            # What the other end says while it closes can be lost: then the link falls silent, and another replaces it.
            await lost.any()

    await exchange.run(cut_three_times())
    await asyncio.wait_for(pair.near.flush(), PATIENCE)
    await asyncio.wait_for(pair.far.flush(), PATIENCE)
    assert lost.counts["disconnected"] == 3 or cut is not cut_by_connecting_side
    assert await pair.ids() == before
    assert (pair.near.connection_id, pair.far.connection_id) == before


def mute(connection) -> None:
    """Nothing leaves one side's sockets any more; no end of it knows."""

    async def swallow(*_arguments) -> None:
        pass

    for protocol in ice.ice_connection(connection._pc)._protocols:
        protocol.send_data = swallow
        protocol.send_stun = lambda *_arguments: None


@pytest.mark.parametrize("side", ["home", pytest.param("away", marks=pytest.mark.once)])
async def test_a_link_that_falls_silent_is_replaced_while_it_stands_and_nothing_is_lost(world, side):
    world.engine = "aiortc"  # whose sockets are ours to silence; of the other, faults/test_path.py shows the same
    pair = await open_pair(world)
    before = await pair.ids()
    ear = Ear(pair.connection, "suspect", "disconnected", "failed")
    exchange = Exchange(pair.near, pair.far, COUNT)
    (connection,) = getattr(pair, side).peer_connections(before[side == "home"])

    async def fall_silent() -> None:
        await exchange.there.reached(COUNT // 2).wait()
        mute(connection)

    await exchange.run(fall_silent())
    await asyncio.wait_for(pair.near.flush(), PATIENCE)
    await asyncio.wait_for(pair.far.flush(), PATIENCE)
    assert await pair.ids() == before
    assert not ear.counts["disconnected"]
    if side == "home":
        assert ear.counts["suspect"] == 1


async def test_sixty_labels_of_one_connection_keep_their_messages_apart(pair):
    labels = [f"label {number}" for number in range(60)]
    channels = {label: await pair.connection.create_channel(label) for label in labels}
    for label, channel in channels.items():
        await channel.send(f"to {label}")
    for _ in labels:
        far = await pair.next_offered()
        assert (await asyncio.wait_for(anext(far), PATIENCE)).data == f"to {far.label}"
        await far.send(f"from {far.label}")
    for label, channel in channels.items():
        assert (await asyncio.wait_for(anext(channel), PATIENCE)).data == f"from {label}"


@pytest.mark.once
async def test_the_largest_message_passes_and_one_byte_more_is_refused(pair):
    largest = bytes(range(256)) * (pair.near.max_message // 256)
    assert len(largest) == pair.near.max_message
    with pytest.raises(MessageRejected) as rejected:
        await pair.near.send(largest + b"x")
    assert rejected.value.code == "too_large"
    sending = asyncio.ensure_future(pair.near.send(largest))
    (message,) = await take(
        pair.far, 1, within=6 * PATIENCE
    )  # eight seconds of work, where there is nothing else to do
    assert message.data == largest
    await sending


async def test_heartbeats_keep_a_quiet_link(pair):
    """Silence of the programs is none of the link; ten frames take longer than the silence that makes it suspect."""
    ear = Ear(pair.connection, "suspect", "disconnected", "reconnecting")
    (link,) = pair.away.session("chat")._links.values()
    receive, heard, enough = link.channel.on_message, [], asyncio.Event()

    def count(message) -> None:
        heard.append(message)
        if len(heard) == 10:
            enough.set()
        receive(message)

    link.channel.on_message = count
    await asyncio.wait_for(enough.wait(), PATIENCE)
    assert not ear.counts


async def test_a_link_whose_address_goes_is_replaced_at_once_while_it_stands(world):
    # Two connections keep no order between them: the goodbye to the old link can come before the welcome to the new one,
    # with a "disconnected" between them. In one loop aiortc does keep it; libdatachannel's threads do not.
    world.engine = "aiortc"
    pair = await open_pair(world)
    ear = Ear(pair.connection, "suspect", "disconnected", "reconnecting")
    session = pair.away.session("chat")
    before = session.machine.current
    address = session.local_address
    pair.away.house.network_changed(Change(removed={"192.0.2.1"}))
    assert not pair.away.house.holdings.by_name["chat"].dialling
    pair.away.house.network_changed(Change(removed={address}))
    async with asyncio.timeout(PATIENCE):
        while session.machine.current == before:
            await asyncio.sleep(0)
    await pair.near.send("over the other one")
    assert (await asyncio.wait_for(anext(pair.far), PATIENCE)).data == "over the other one"
    assert not ear.counts


async def test_a_change_of_the_network_ends_the_wait_for_the_next_attempt(pair):
    await pair.home.stop()
    connection = pair.away.house.holdings.by_name["chat"]
    connection._delays = iter(lambda: 10_000.0, None)
    connection._lost_at = None
    async with asyncio.timeout(PATIENCE):
        while connection.retry_at is None or connection.retry_at - connection._now() < 1_000:
            connection._lost_at = None
            await asyncio.sleep(0)
    await pair.home.start()
    service = pair.home.house.holdings.services[f"alice/{FQN}"]
    await asyncio.wait_for(service.published.wait(), PATIENCE)
    pair.away.house.network_changed(Change(added={"192.0.2.1"}))
    await pair.visitor.wait("chat", "connected", PATIENCE)
