"""The asyncio library, against a daemon's socket without links and stores behind it."""

from __future__ import annotations

import asyncio

import pytest

from rondevu_client import Daemon
from rondevu_client import channel as channels
from rondevu_client import client as client_module
from rondevud.errors import RequestError
from rondevud.ipc.server import Server
from tests.unit.ipc.house import MemoryChannel, MemoryHouse

PATIENCE = 20.0


class Place:
    """A daemon that can be stopped and started."""

    def __init__(self, path):
        self.path = path
        self.house = MemoryHouse()
        self.house.add_connection("conn-a", "alice-chat")
        self.server = Server(self.house, path=path)

    @property
    def channel(self):
        return self.house.get("conn-a", "main")

    def inbox(self):
        return [row.payload for row in self.channel.stored.inbox]

    async def until(self, condition):
        async with asyncio.timeout(PATIENCE):
            await self.house.until(condition)

    async def start(self):
        self.house = MemoryHouse(self.house.disk, f"after {self.house.instance}")
        self.server = Server(self.house, path=self.path)
        await self.server.start()


@pytest.fixture
async def place(tmp_path):
    place = Place(tmp_path / "rondevud.sock")
    await place.server.start()
    yield place
    await place.server.stop()


@pytest.fixture
async def daemon(place):
    async with Daemon(place.path) as daemon:
        yield daemon


@pytest.fixture
async def channel(daemon):
    return await daemon.attach("alice-chat", "main")


@pytest.fixture
def at_once(monkeypatch):
    """What is tried again after seconds is tried again at once."""
    for module, name in [(client_module, "PUT_BACK_FIRST"), (channels, "RETRY_FIRST")]:
        monkeypatch.setattr(module, name, 0.001)


def refuse(monkeypatch, owner, name, *errors):
    """Let the first calls of an asynchronous method raise these, one after the other."""
    original, left = getattr(owner, name), list(errors)

    async def refusing(*args, **kwargs):
        if left:
            raise left.pop(0)
        return await original(*args, **kwargs)

    monkeypatch.setattr(owner, name, refusing)
    return left


# --- receiving -------------------------------------------------------------------------------------------------------


async def test_what_one_task_works_on_is_not_acknowledged_by_another(place, channel):
    place.channel.deliver("a", "b", "c")
    assert (await channel.receive(PATIENCE)).data == "a"
    has_c, ask = asyncio.Event(), asyncio.Event()

    async def other():
        assert (await channel.receive(PATIENCE)).data == "b"
        assert (await channel.receive(PATIENCE)).data == "c"
        has_c.set()
        await ask.wait()
        await channel.receive(PATIENCE)

    task = asyncio.create_task(other())
    await has_c.wait()
    await channel._daemon.call("ping")
    assert place.inbox() == ["a", "b", "c"]
    place.channel.deliver("d")
    assert (await channel.receive(PATIENCE)).data == "d"
    await place.until(lambda: place.inbox() == ["c", "d"])
    place.channel.deliver("e")
    ask.set()
    await task
    await place.until(lambda: place.inbox() == ["d", "e"])


async def test_what_a_task_had_that_has_ended_is_acknowledged_by_the_next_who_asks(place, channel):
    place.channel.deliver("a", "b")
    assert (await asyncio.create_task(channel.receive(PATIENCE))).data == "a"
    assert (await asyncio.create_task(channel.receive(PATIENCE))).data == "b"
    await place.until(lambda: place.inbox() == ["b"])


async def test_a_listener_does_not_acknowledge_what_a_task_works_on(place, channel):
    place.channel.deliver("a")
    assert (await channel.receive(PATIENCE)).data == "a"
    heard = asyncio.Queue()
    channel.on("message", lambda message: heard.put_nowait(message.data))
    place.channel.deliver("b")
    assert await asyncio.wait_for(heard.get(), PATIENCE) == "b"
    await channel._daemon.call("ping")
    assert place.inbox() == ["a", "b"]


# --- sending ---------------------------------------------------------------------------------------------------------


async def test_flush_waits_for_a_message_whose_sender_has_given_up(place, channel):
    place.channel.hold = True
    sending = asyncio.create_task(channel.send("given up"))
    await place.until(lambda: place.channel.producer.parked)
    sending.cancel()
    await asyncio.wait([sending])
    flushing = asyncio.create_task(channel.flush())
    await channel._daemon.call("ping")
    assert not flushing.done()
    place.channel.release()
    place.channel.producer.acknowledge(1)
    await asyncio.wait_for(flushing, PATIENCE)


async def test_flush_says_so_when_nobody_will_decide_any_more(place, channel):
    place.channel.hold = True
    sending = asyncio.create_task(channel.send("given up"))
    await place.until(lambda: place.channel.producer.parked)
    sending.cancel()
    await asyncio.wait([sending])
    flushing = asyncio.create_task(channel.flush())
    await channel._daemon.call("ping")
    await channel.detach()
    with pytest.raises(client_module.RondevuClientError, match="detached"):
        await asyncio.wait_for(flushing, PATIENCE)


# --- a daemon that comes back ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["disk_full", "internal", "stopping", "store_failed", "too_many_requests"])
async def test_a_channel_that_is_refused_for_a_while_is_attached_when_it_can_be(
    place, channel, monkeypatch, at_once, code
):
    await place.server.stop()
    left = refuse(monkeypatch, MemoryChannel, "open_producer", *[RequestError(code, "not now")] * 2)
    sending = asyncio.create_task(channel.send("meanwhile"))
    await place.start()
    assert await asyncio.wait_for(sending, PATIENCE) == 1
    assert not left
    assert channel.end_reason is None


async def test_a_declaration_that_is_refused_for_a_while_is_made_when_it_can_be(place, daemon, monkeypatch, at_once):
    service = await daemon.expose_service("alice", "com.example.chat@1.0.0")
    connection = await daemon.connect("bob", "com.example.chat@1.0.0", name="chat")
    ends = []
    connection.on("lost", ends.append)
    await place.server.stop()
    busy = RequestError("store_failed", "not now")
    refused = [refuse(monkeypatch, MemoryHouse, name, busy) for name in ("expose", "connect")]
    await place.start()
    async with asyncio.timeout(PATIENCE):
        while any(refused) or connection._wire is None or service._wire is None:
            await daemon.call("ping")
    assert not ends
