"""Ephemeral declarations: they belong to the sockets that made them, and nothing of them is written."""

from __future__ import annotations

import asyncio
import sqlite3

import pytest

from rondevu_client import RequestRefused
from rondevud import owners as owners_module
from rondevud.durable.service import DurableService
from rondevud.errors import StoreError
from rondevud.records import DeclarationKind
from rondevud.statedir import DATABASE
from tests.integration.daemons import FQN, PATIENCE, SCALE, SERVICE, Place, exchange_few, take, watch

pytestmark = [pytest.mark.webrtc, pytest.mark.timeout(120 * SCALE)]

EXPOSE = {"username": "alice", "fqn": FQN, "options": SERVICE, "ephemeral": True}
CONNECT = {"username": "alice", "fqn": FQN, "name": "chat", "ephemeral": True}
NOT = {"ephemeral": False}


@pytest.fixture
def at_once(monkeypatch):
    """What nobody owns is abandoned in the next turn of the loop."""
    monkeypatch.setattr(owners_module, "GRACE", 0.0)


@pytest.fixture
async def place(world) -> Place:
    """A daemon with a program that declares nothing ephemeral."""
    place = await world.daemon("one")
    place.onlooker = await place.client()
    return place


def owners(place):
    return place.house.holdings.owners


async def leave(place, program):
    """The program ends, and its daemon has noticed."""
    before = len(place.house.clients())
    await program.close()
    async with asyncio.timeout(PATIENCE):
        while len(place.house.clients()) == before:
            await asyncio.sleep(0)


async def open_both(place):
    """A program that owns a service and a connection to it; the channel ``main`` at both ends."""
    program = await place.client()
    await program.call("expose", EXPOSE)
    events = await watch(place.onlooker)
    connection_id = (await program.call("connect", CONNECT))["connection_id"]
    near = await program.attach(connection_id, "main")
    far_id = (await events.next("channel", service=f"alice/{FQN}"))["connection_id"]
    return program, near, await program.attach(far_id, "main")


async def test_messages_go_both_ways_and_nothing_is_written(place):
    _, near, far = await open_both(place)
    await exchange_few(near, far)
    for channel in (near, far):
        (row,) = await place.onlooker.channels(channel.connection_id)
        assert row["durability"] == "memory"
    assert all(row["ephemeral"] for row in await place.onlooker.connections())
    await place.stop()
    database = sqlite3.connect(place.state_dir / DATABASE)
    try:
        for table in ("declarations", "sessions", "channels"):
            assert database.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
    finally:
        database.close()


async def test_a_restarted_daemon_knows_nothing_of_them(place):
    program, _, _ = await open_both(place)
    await program.close()
    await place.restart()
    assert await place.onlooker.connections() == []
    assert await place.onlooker.services() == []
    assert (await (await place.client()).call("connect", CONNECT))["created"]


async def test_while_one_of_two_owners_is_there_they_stay(place, at_once):
    first, near, far = await open_both(place)
    second = await place.client()
    for method, declaration in (("expose", EXPOSE), ("connect", CONNECT)):
        assert not (await second.call(method, declaration))["created"]
    await near.detach()
    await far.detach()
    await leave(place, first)
    assert not owners(place)._timers
    await exchange_few(await second.attach(near.connection_id, "main"), await second.attach(far.connection_id, "main"))


async def test_when_the_last_owner_has_been_gone_for_a_while_they_end_and_say_so(world, place, at_once):
    first, near, _ = await open_both(place)
    second = await place.client()
    for method, declaration in (("expose", EXPOSE), ("connect", CONNECT)):
        await second.call(method, declaration)
    events = await watch(place.onlooker)
    uuid = (await place.onlooker.services())[0]["uuid"]
    await leave(place, first)
    await leave(place, second)
    ended = set()
    while len(ended) < 2:
        ended.add((await events.next("closed")).get("connection_id"))
    assert near.connection_id in ended
    async with asyncio.timeout(PATIENCE):
        while place.house.endings.under_way:
            await asyncio.sleep(0)
    assert await place.onlooker.services() == []
    assert await place.onlooker.connections() == []
    assert await world.discover(uuid) == 404


async def test_what_was_not_delivered_is_reported_as_purged(place, at_once):
    program = await place.client()
    connection_id = (await program.call("connect", CONNECT))["connection_id"]
    channel = await program.attach(connection_id, "main")
    await channel.send("for nobody")
    events = await watch(place.onlooker)
    await leave(place, program)
    purged = await events.next("purged")
    assert (purged["label"], purged["count"]) == ("main", 1)
    await events.next("closed", connection_id=connection_id)


async def test_an_owner_that_comes_back_in_time_keeps_it(place):
    program = await place.client()
    first = await program.call("connect", CONNECT)
    await leave(place, program)
    assert list(owners(place)._timers) == [(DeclarationKind.CONNECTION, "chat")]
    again = await (await place.client()).call("connect", CONNECT)
    assert (again["connection_id"], again["created"]) == (first["connection_id"], False)
    assert not owners(place)._timers


async def test_who_declares_it_while_it_is_about_to_end_keeps_it(place):
    program = await place.client()
    await program.call("connect", CONNECT)
    await leave(place, program)
    key = (DeclarationKind.CONNECTION, "chat")
    async with place.house.holdings.changing(*key):
        owners(place)._timers[key].cancel()
        owners(place)._abandon(key)
        (ending,) = place.house.endings.under_way.values()
        owners(place).add(key, "somebody")
    await asyncio.wait_for(ending, PATIENCE)
    assert [row["name"] for row in await place.onlooker.connections()] == ["chat"]


@pytest.mark.parametrize(("method", "declaration"), [("connect", CONNECT), ("expose", EXPOSE)])
@pytest.mark.parametrize(("first", "second"), [({}, NOT), (NOT, {})])
async def test_the_same_with_and_without_the_word_is_a_conflict(place, method, declaration, first, second):
    await place.onlooker.call(method, {**declaration, **first})
    other = await place.client()
    with pytest.raises(RequestRefused) as refused:
        await other.call(method, {**declaration, **second})
    assert (refused.value.code, refused.value.data) == ("conflict", {"keys": ["ephemeral"]})
    await other.close()
    assert not owners(place)._timers


@pytest.mark.parametrize(
    ("method", "declaration"),
    [
        ("connect", {**CONNECT, "options": {"queue": {"durability": "disk"}}}),
        ("connect", {**CONNECT, "options": {"channels": [{"label": "main", "durability": "disk"}]}}),
        ("expose", {**EXPOSE, "options": {"queue": {"durability": "disk"}}}),
    ],
)
async def test_durability_disk_is_refused_by_name(place, method, declaration):
    with pytest.raises(RequestRefused, match="durability") as refused:
        await place.onlooker.call(method, declaration)
    assert refused.value.code == "bad_params"
    assert await place.onlooker.services() == []
    assert await place.onlooker.connections() == []


async def test_a_channel_of_an_ephemeral_connection_cannot_be_on_disk(place):
    await place.onlooker.call("connect", CONNECT)
    with pytest.raises(RequestRefused, match="durability"):
        await place.onlooker.attach("chat", "main", options={"durability": "disk"})


async def test_a_name_is_free_for_all_when_what_had_it_has_ended(place, at_once):
    program = await place.client()
    await program.call("connect", CONNECT)
    events = await watch(place.onlooker)
    await leave(place, program)
    await events.next("closed")
    assert (await place.onlooker.call("connect", {**CONNECT, **NOT}))["created"]
    await place.restart()
    assert [row["name"] for row in await place.onlooker.connections()] == ["chat"]


async def test_what_waits_in_an_ended_service_can_be_read_and_does_not_go_to_a_lasting_one(place, at_once):
    other = await place.client()
    _, near, far = await open_both(place)
    await far.detach()
    await near.send("to read")
    await asyncio.wait_for(near.flush(), PATIENCE)
    await place.onlooker.withdraw("alice", FQN, drain=0)
    await other.call("expose", {**EXPOSE, **NOT})
    assert far.connection_id in [row["connection_id"] for row in await other.connections() if row["waiting"]]
    channel = await other.attach(far.connection_id, "main")
    assert [message.data for message in await take(channel, 1)] == ["to read"]
    assert (await other.services())[0]["connections"] == 0


async def test_an_end_that_failed_is_tried_again(place, at_once, monkeypatch):
    withdraw, failures = DurableService.withdraw, []

    async def fail_once(self, drain, *, keep_connections):
        if not failures:
            failures.append("the disk is full")
            raise StoreError(failures[0])
        await withdraw(self, drain, keep_connections=keep_connections)

    monkeypatch.setattr(DurableService, "withdraw", fail_once)
    program = await place.client()
    await program.call("expose", EXPOSE)
    events = await watch(place.onlooker)
    await leave(place, program)
    await events.next("closed", service=f"alice/{FQN}")
    assert failures
    assert await place.onlooker.services() == []
