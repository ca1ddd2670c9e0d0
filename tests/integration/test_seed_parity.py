"""What a program hears of a connection, a channel and a service from beginning to end, under the seed's names."""

from __future__ import annotations

import asyncio

import pytest

from rondevu_client import Detached
from rondevud import declaring
from rondevud.durable import service as service_module
from tests.integration.daemons import FQN, PATIENCE, SCALE, SERVICE, Ear, Pair, exchange_few, open_world

pytestmark = [pytest.mark.webrtc, pytest.mark.timeout(120 * SCALE)]

QUICK = {"max_attempts": 3, "backoff_base": 0.1, "backoff_max": 0.15, "jitter": 0.2}


async def test_a_connection_tells_its_states_and_their_events_from_the_first_contact_to_its_end(world):
    pair = Pair(world, await world.daemon("home"), await world.daemon("away"))
    visitor = await pair.away.client()
    connection = await visitor.connect("alice", FQN, name="chat", reconnect={"backoff_base": 0.1})
    assert connection.state == "connecting"
    states, events = Ear(connection, "state"), Ear(connection, "connected", "disconnected", "closed")
    trying = Ear(connection, "reconnecting")
    await pair.expose()
    channel = await connection.create_channel("main")
    await events.next("connected")
    assert connection.is_connected
    far = await pair.next_offered()
    await pair.program.reconnect(far.connection_id)  # cuts the link at the service
    assert (await events.next("disconnected")).keys() >= {"reason", "message"}
    await events.next("connected")
    assert (await trying.next("reconnecting")).keys() >= {"attempt", "max_attempts", "next_retry_in"}
    await exchange_few(channel, far)
    await connection.close()
    assert (await events.next("closed"))["by"] == "local"
    assert connection.state == "closed"
    told = [states.queue.get_nowait()[1] for _ in range(states.counts["state"])]
    assert [(data["previous"], data["new"]) for data in told] == [
        ("connecting", "connected"),
        ("connected", "reconnecting"),
        ("reconnecting", "connected"),
        ("connected", "closed"),
    ]


async def test_each_attempt_says_its_number_and_the_next_pause_and_the_last_one_that_it_was_the_last(world):
    away = await world.daemon("away")
    visitor = await away.client()
    stream = await visitor.subscribe()
    connection = await visitor.connect("nobody", FQN, name="chat", reconnect=QUICK)
    told = []
    async with asyncio.timeout(PATIENCE):
        async for event in stream:
            if event.name in {"reconnecting", "failed"}:
                told.append(event.data)
            if event.name == "failed":
                break
    first, second, failed = told
    assert [(data["attempt"], data["max_attempts"]) for data in (first, second)] == [(1, 3), (2, 3)]
    assert 0.08 <= first["next_retry_in"] <= 0.12 <= second["next_retry_in"] <= 0.18
    assert (failed["code"], failed["permanent"]) == ("not_found", True)
    (row,) = await visitor.connections()
    assert (row["connection_id"], row["state"]) == (connection.id, "failed")


async def test_a_channel_goes_from_connecting_to_open_back_and_to_closed(world):
    pair = Pair(world, await world.daemon("home"), await world.daemon("away"))
    visitor = await pair.away.client()
    connection = await visitor.connect("alice", FQN, name="chat")
    channel = await connection.create_channel("main")
    events = Ear(channel, "open", "close")
    lost = Ear(connection, "disconnected")
    await channel.send("queued")
    assert (channel.ready_state, channel.queue_size) == ("connecting", 1)
    await pair.expose()
    await connection.reconnect()
    await events.next("open")
    assert channel.ready_state == "open"
    far = await pair.next_offered()
    await channel.flush()
    assert (channel.queue_size, channel.buffered_amount) == (0, 0)
    await pair.home.stop()
    await lost.next("disconnected")
    assert channel.ready_state == "connecting"
    await pair.home.start()
    await events.next("open")
    (message,) = [await asyncio.wait_for(anext(far), PATIENCE)]
    assert message.data == "queued"
    await message.ack()
    await far.close()
    await events.next("close")
    await channel.close()
    assert channel.ready_state == "closed"
    with pytest.raises(Detached):
        await channel.send("too late")


async def test_a_service_tells_its_publication_its_connections_its_errors_and_its_pool(tmp_path, monkeypatch):
    monkeypatch.setattr(declaring, "PUBLISH_WAIT", 0.01)
    monkeypatch.setattr(service_module, "RETRY", (0.05, 0.1))
    async with open_world(tmp_path, signalling=False) as world:
        home, away = await world.daemon("home"), await world.daemon("away")
        program, visitor = await home.client(), await away.client()
        service = await program.expose_service("alice", FQN, pool_size=2, **SERVICE)
        assert (service.service_info, service.active_connections) == (None, [])
        ear = Ear(service, "published", "connection", "disconnection", "error", "closed")
        failed = await ear.next("error")
        assert (failed["context"], failed["code"]) == ("publish", "signalling")
        await world.start_signalling()
        published = await ear.next("published")
        assert service.service_info == tuple(published[key] for key in ("service_id", "uuid", "expires_at"))
        connection = await visitor.connect_by_uuid(service.uuid)
        connection_id = await ear.next("connection")
        assert service.active_connections == [connection_id]
        pool = (await service.pool_status())["pool"]
        assert (pool["active_connections"], pool["total_connections_handled"]) == (1, 1)
        assert pool["failed_offer_creations"] >= 1
        assert pool["active_offers"] in {1, 2}
        await connection.close()
        ended = await ear.next("disconnection")
        assert (ended["connection_id"], ended["reason"]) == (connection_id, "peer")
        assert service.active_connections == []
        await service.stop()
        assert await service.wait_closed() == "closed"
