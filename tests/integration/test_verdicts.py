"""What an attach is told about either direction: true also after the daemon was restarted in between."""

from __future__ import annotations

import contextlib
import sqlite3

import pytest

from rondevud import clock, daemon
from rondevud.config import parse
from rondevud.house import House
from rondevud.records import LoadSessions, OutMessage, Reason, Receive, ReceiveResult, Removal
from rondevud.statedir import DATABASE
from rondevud.store.sqlite import SqliteStore
from tests.unit.ipc.raw import RawClient, raw_client

CONFIG = """
[signalling]
url = "http://127.0.0.1:1"
[[connection]]
name = "far"
username = "alice"
fqn = "com.example.chat@1.0.0"
"""
"""Nobody answers at that port: the peer is away all the time."""


class Place:
    """A daemon with one program; `restart` leaves only what is on the disk."""

    def __init__(self, directory):
        self.directory = directory
        self.stack = contextlib.AsyncExitStack()
        self.house: House | None = None
        self.client: RawClient | None = None

    async def start(self):
        socket = self.directory / "socket"
        self.house = await daemon.start(self.stack, parse(CONFIG, "x"), self.directory / "state", socket)
        self.client = await self.stack.enter_async_context(raw_client(socket))

    async def stop(self):
        await self.stack.aclose()

    async def restart(self):
        await self.stop()
        await self.start()

    async def attach(self, **params):
        return await self.client.result("attach", target="far", label="main", **params)

    async def detach(self, attached):
        await self.client.result("detach", handle=attached["handle"])


@pytest.fixture
async def place(tmp_path):
    place = Place(tmp_path)
    await place.start()
    yield place
    await place.stop()


async def out_verdict(place, producer):
    attached = await place.attach(mode="send", producer=producer)
    await place.detach(attached)
    return attached["verdict"]["out"], attached["removed"]


@pytest.mark.parametrize("restarted", [False, True])
async def test_what_was_removed_since_a_producer_was_attached_is_told_it_once(place, restarted):
    assert await out_verdict(place, b"app") == ("new", 0)
    attached = await place.attach(mode="send", producer=b"app")
    assert attached["verdict"]["out"] == "resumed"
    place.client.notify("send", attached["handle"], 1, ["a", "b", "c"])
    assert (await place.client.notification("accepted"))[1] == 3
    await place.detach(attached)
    assert await out_verdict(place, b"other") == ("resumed", 0)
    await place.client.result("purge", target="far", label="main", direction="out")
    if restarted:
        await place.restart()
    assert await out_verdict(place, b"app") == ("gap", 3)
    if restarted:
        await place.restart()
    assert await out_verdict(place, b"app") == ("resumed", 3)
    assert await out_verdict(place, b"other") == ("resumed", 0)
    assert await out_verdict(place, None) == ("resumed", 0)


async def put_into_inbox(directory, *items, behind):
    store = await SqliteStore.open(directory / "state" / DATABASE)
    (channel,) = (await store.execute(LoadSessions())).channels
    await store.execute(Receive(channel.id, b"", 0, b"the peer", behind, items, clock.stamp()))
    await store.close()


async def test_a_gap_that_waits_is_told_at_each_attach_until_it_is_acknowledged(place):
    await place.detach(await place.attach())
    await place.stop()
    gap = Removal(2, 5, Reason.EXPIRED, 3)
    await put_into_inbox(place.directory, OutMessage(1, "before"), gap, OutMessage(5, "behind"), behind=6)
    await place.start()
    attached = await place.attach(credit=1)
    assert (attached["verdict"]["in"], attached["waiting"]) == ("gap", 3)
    await place.client.notification("message")
    place.client.notify("ack", attached["handle"], 1)
    await place.detach(attached)
    await place.restart()
    attached = await place.attach(credit=1)
    assert (attached["verdict"]["in"], attached["waiting"]) == ("gap", 2)
    assert (await place.client.notification("gap"))[2]["count"] == 3
    place.client.notify("ack", attached["handle"], 1)
    await place.detach(attached)
    await place.restart()
    attached = await place.attach()
    assert (attached["verdict"]["in"], attached["waiting"]) == ("resumed", 1)


async def test_a_purge_takes_the_gaps_that_wait_with_it(place):
    await place.detach(await place.attach())
    await place.stop()
    await put_into_inbox(place.directory, Removal(2, 5, Reason.EXPIRED, 3), behind=5)
    await place.start()
    await place.client.result("purge", target="far", label="main", direction="in")
    attached = await place.attach()
    assert (attached["verdict"]["in"], attached["waiting"]) == ("resumed", 0)


async def test_a_gap_that_comes_while_nobody_is_attached_is_told(place):
    await place.detach(await place.attach())
    channel = await place.house.channel("far", "main", None, create=False)
    operation = Receive(channel.id, b"", 0, b"the peer", 5, (Removal(2, 5, Reason.EXPIRED, 3),), clock.stamp())
    channel.inbox.received(operation, ReceiveResult(first_row=1, rows=1, size=0))  # as if a link had brought it
    attached = await place.attach()
    assert (attached["verdict"]["in"], attached["waiting"]) == ("gap", 1)


async def test_a_message_found_damaged_is_a_gap_from_then_on(place):
    await place.detach(await place.attach())
    await place.stop()
    await put_into_inbox(place.directory, OutMessage(1, "a"), OutMessage(2, "b"), behind=3)
    with contextlib.closing(sqlite3.connect(place.directory / "state" / DATABASE)) as database, database:
        database.execute("UPDATE inbox_packs SET payload = x'6163'")
    await place.start()
    attached = await place.attach(credit=2)
    assert (attached["verdict"]["in"], attached["waiting"]) == ("resumed", 2)
    assert (await place.client.notification("gap"))[2]["reason"] == "damaged"
    await place.detach(attached)
    attached = await place.attach()
    assert (attached["verdict"]["in"], attached["waiting"]) == ("gap", 2)
