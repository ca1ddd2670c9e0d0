"""The client library over whole daemons: what it declares again, the blocking facade, peers that acknowledge nothing."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future

import pytest

from rondevu_client import MessageRejected, MessagesRemoved, NotAcknowledged, RequestRefused
from rondevu_client import sync as blocking
from rondevud.config import parse
from tests.integration.daemons import CONFIG, FQN, PATIENCE, SCALE, SERVICE, Ear, exchange_few, take

pytestmark = [pytest.mark.webrtc, pytest.mark.timeout(120 * SCALE)]


async def expose(place, **options):
    """The service's program and a queue of the channels that its handler gets."""
    program, offered = await place.client(), asyncio.Queue()

    async def offer(channel, _connection_id):
        offered.put_nowait(channel)

    service = await program.expose_service("alice", FQN, handler=offer, **{**SERVICE, **options})
    return program, service, offered


# --- ephemeral declarations ------------------------------------------------------------------------------------------


async def test_an_ephemeral_connection_is_declared_again_when_its_daemon_restarts(world):
    home, away = await world.daemon("home"), await world.daemon("away")
    _, _, offered = await expose(home)
    visitor = await away.client()
    connection = await visitor.connect("alice", FQN, name="chat", ephemeral=True)
    channel = await connection.create_channel("main")
    await exchange_few(channel, await asyncio.wait_for(offered.get(), PATIENCE))
    first_id = connection.id
    await away.restart()
    far = await asyncio.wait_for(offered.get(), PATIENCE)
    await exchange_few(channel, far)
    assert connection.id == channel.connection_id != first_id
    assert channel.verdict == {"in": "new", "out": "new"}


async def test_what_an_ephemeral_connection_had_accepted_is_called_lost_when_its_daemon_restarts(world):
    away = await world.daemon("away")
    visitor = await away.client()
    connection = await visitor.connect("alice", FQN, name="chat", ephemeral=True)
    channel = await connection.create_channel("main")
    assert [await channel.send("one"), await channel.send("two")] == [1, 2]
    await away.restart()
    assert await channel.send("three") == 3
    _, _, offered = await expose(await world.daemon("home"))
    await connection.reconnect()
    with pytest.raises(MessagesRemoved) as caught:
        await asyncio.wait_for(channel.flush(), PATIENCE)
    assert caught.value.ranges == [(1, 2, "lost")]
    far = await asyncio.wait_for(offered.get(), PATIENCE)
    assert [message.data for message in await take(far, 1)] == ["three"]


async def test_an_ephemeral_service_is_declared_and_served_again_when_its_daemon_restarts(world):
    home, away = await world.daemon("home"), await world.daemon("away")
    _, service, offered = await expose(home, ephemeral=True)
    visitor = await away.client()
    connection = await visitor.connect("alice", FQN, name="chat")
    channel = await connection.create_channel("main")
    await exchange_few(channel, await asyncio.wait_for(offered.get(), PATIENCE))
    await asyncio.wait_for(channel.flush(), PATIENCE)
    left = Ear(service, "disconnection")
    await home.restart()
    await left.next("disconnection")
    await channel.send("after")
    far = await asyncio.wait_for(offered.get(), PATIENCE)
    assert [message.data for message in await take(far, 1)] == ["after"]
    assert len(service.active_connections) == 1


# --- the blocking facade ---------------------------------------------------------------------------------------------


def serve(path, opened, closing):
    """A blocking program with a service that echoes."""

    def echo(channel, connection_id):
        for message in channel:
            channel.send(f"Echo: {message.data}")

    with blocking.Daemon(path) as daemon:
        service = daemon.expose_service("alice", FQN, handler=echo, timeout=PATIENCE, **SERVICE)
        opened.set_result(service.uuid)
        closing.result()
        service.stop(drain=0, timeout=PATIENCE)


def call(path, uuid, count):
    """A blocking program that sends and gets the echoes."""
    with blocking.Daemon(path) as daemon:
        connection = daemon.connect_by_uuid(uuid, name="chat", timeout=PATIENCE)
        channel = connection.create_channel("main", timeout=PATIENCE)
        connection.wait("connected", PATIENCE)
        for number in range(count):
            channel.send(str(number), timeout=PATIENCE)
        channel.flush(PATIENCE)
        echoes = [channel.receive(PATIENCE) for _ in range(count)]
        echoes[-1].ack()
        return [message.data for message in echoes]


async def test_two_blocking_programs_talk_over_two_daemons(world):
    home, away = await world.daemon("home"), await world.daemon("away")
    opened, closing = Future(), Future()
    async with asyncio.timeout(2 * PATIENCE), asyncio.TaskGroup() as group:
        group.create_task(asyncio.to_thread(serve, home.socket, opened, closing))
        try:
            uuid = await asyncio.wrap_future(opened)
            echoes = await asyncio.to_thread(call, away.socket, uuid, 20)
        finally:
            closing.set_result(None)
    assert echoes == [f"Echo: {number}" for number in range(20)]


# --- what is under way -----------------------------------------------------------------------------------------------


async def test_a_sender_hears_when_little_is_under_way(world):
    home, away = await world.daemon("home"), await world.daemon("away")
    await expose(home)
    visitor = await away.client()
    connection = await visitor.connect("alice", FQN, name="chat")
    channel = await connection.create_channel("main")
    await connection.wait("connected", PATIENCE)
    low = Ear(channel, "buffered_amount_low")
    await channel.send(bytes(100_000))
    assert (await low.next("buffered_amount_low"))["buffered_amount"] == 0


# --- keys ------------------------------------------------------------------------------------------------------------


async def test_keys_are_made_taken_elsewhere_and_removed(world):
    one, other = [await (await world.daemon(name)).client() for name in ("one", "other")]
    made = await one.key_generate("alice")
    assert await one.key_show("alice") == made
    assert await one.key_list() == [made]
    exported = await one.key_export("alice")
    await other.key_generate("alice")
    with pytest.raises(RequestRefused) as caught:
        await other.key_import("alice", exported["private_key"])
    assert caught.value.code == "key_exists"
    taken = await other.key_import("alice", exported["private_key"], force=True)
    assert taken["public_key"] == made["public_key"]
    await one.key_delete("alice")
    assert await one.key_list() == []
    await other.claim("alice")
    assert (await other.check("alice"))["holder"] == "ours"


# --- what is not acknowledged ----------------------------------------------------------------------------------------


async def test_flush_on_an_unreliable_channel_says_that_nobody_acknowledges(world):
    home, away = await world.daemon("home"), await world.daemon("away")
    _, _, offered = await expose(home)
    visitor = await away.client()
    connection = await visitor.connect("alice", FQN, name="chat")
    channel = await connection.create_channel("video", ordered=False, max_retransmits=3)
    await channel.send("frame")
    with pytest.raises(NotAcknowledged):
        await asyncio.wait_for(channel.flush(), PATIENCE)
    assert channel.acknowledges is False
    assert (await visitor.queue("chat", "video"))["queue_size"] == 0
    far = await asyncio.wait_for(offered.get(), PATIENCE)
    assert [message.data for message in await take(far, 1)] == ["frame"]


# --- names -----------------------------------------------------------------------------------------------------------


async def test_a_channel_follows_its_connection_and_not_the_name_that_means_another_one_after_a_restart(world):
    """What was sent to the one must not go to the other."""
    declared = '[[connection]]\nname = "chat"\nusername = "alice"\nfqn = "com.example.%s@1.0.0"\n'
    away = await world.daemon("away", declared % "old")
    other = away.config.model_copy(
        update={"connections": parse(CONFIG.format(url=world.url) + declared % "new", "").connections}
    )
    program = await away.client()
    channel = await program.attach("chat", "main")
    await channel.send("for the old one")
    before = channel.connection_id
    await away.stop()
    away.config = other
    await away.start()
    with pytest.raises(MessageRejected) as refused:
        await asyncio.wait_for(channel.send("for the old one, too"), PATIENCE)
    assert refused.value.code == "failed"
    assert channel.connection_id == before
    (named,) = [row for row in await program.connections() if row["name"] == "chat" and row["connection_id"] != before]
    assert named["queue_size"] == 0
