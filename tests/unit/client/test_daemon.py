"""The asyncio library, against a daemon's socket without links and stores behind it."""

from __future__ import annotations

import asyncio

import pytest

from rondevu_client import Channel, Connection, Daemon, Detached, MessageRejected, RequestRefused, Service
from rondevu_client import channel as channels
from rondevu_client import client as client_module
from rondevu_client.stream import EventStream
from rondevu_client.wire import Wire
from rondevud.errors import RequestError
from rondevud.ipc.server import Server
from tests.unit.ipc.house import MemoryChannel, MemoryHouse

FQN = "com.example.chat@1.0.0"
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


async def until_come(channel, count):
    """Wait until so many messages and gaps have come that nobody took."""
    async with asyncio.timeout(PATIENCE):
        while len(channel._inbox) < count:
            await channel._change()


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


async def test_what_was_received_together_is_acknowledged_by_asking_for_more(place, channel):
    place.channel.deliver("a", "b", "c", "d")
    received = await channel.receive_many(3, PATIENCE)
    while len(received) < 3:
        received += await channel.receive_many(3 - len(received), PATIENCE)
    assert [message.data for message in received] == ["a", "b", "c"]
    assert (await channel.receive(PATIENCE)).data == "d"
    await place.until(lambda: place.inbox() == ["d"])
    place.channel.deliver("e")
    assert [message.data for message in await channel.receive_many(timeout=PATIENCE)] == ["e"]


async def test_what_one_task_received_together_is_not_acknowledged_by_another(place, channel):
    place.channel.deliver("a", "b", "c")
    await until_come(channel, 3)
    assert [message.data for message in await channel.receive_many(2)] == ["a", "b"]
    other = asyncio.create_task(channel.receive_many(2))
    assert [message.data for message in await other] == ["c"]
    place.channel.deliver("d")
    assert [message.data for message in await asyncio.create_task(channel.receive_many(1, PATIENCE))] == ["d"]
    await channel._daemon.call("ping")
    assert place.inbox() == ["a", "b", "c", "d"]


async def test_a_gap_ends_what_is_received_together(place, channel):
    gaps = []
    channel.on("gap", gaps.append)
    place.channel.deliver("a", "b")
    place.channel.deliver("", gap={"first": 3, "next": 8, "count": 5, "reason": "expired"})
    place.channel.deliver("c")
    await until_come(channel, 4)
    assert [message.data for message in await channel.receive_many()] == ["a", "b"]
    assert gaps == []
    assert [message.data for message in await channel.receive_many()] == ["c"]
    assert [gap["count"] for gap in gaps] == [5]


async def test_receiving_together_waits_for_one_message_and_not_for_more(place, channel):
    with pytest.raises(TimeoutError):
        await channel.receive_many(10, timeout=0.01)
    with pytest.raises(ValueError, match="at least"):
        await channel.receive_many(0)
    place.channel.deliver("a")
    assert [message.data for message in await channel.receive_many(10, PATIENCE)] == ["a"]
    await channel.detach()
    with pytest.raises(Detached):
        await channel.receive_many(10, PATIENCE)


async def test_what_is_sent_together_is_stored_together_and_in_order(place, channel):
    assert await channel.send_many([]) == 0
    first, second = await asyncio.gather(channel.send_many(["a", b"b"]), channel.send_many(iter(["c", "ü"])))
    assert (first, second) == (2, 4)
    assert [payload for _, payload, _ in place.channel.stored.outbox] == ["a", b"b", "c", "ü"]
    with pytest.raises(TypeError, match="int"):
        await channel.send_many(["d", 5])
    with pytest.raises(MessageRejected, match="max_message"):
        await channel.send_many(["d", "x" * (channel.max_message + 1)])
    assert await channel.send_many(["e"]) == await channel.send_many([]) == 5


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


async def test_towards_a_peer_that_acknowledges_nothing_what_is_sent_leaves_the_queue(place, daemon):
    place.channel.acknowledges = False
    channel = await daemon.attach("alice-chat", "main", confirm_sent=True)
    for number in range(3):
        await channel.send(str(number))
    assert channel.queue_size == 3
    place.channel.producer.hand_over(2)
    await daemon.call("ping")
    assert channel.queue_size == 1


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
    service = await daemon.expose_service("alice", FQN)
    connection = await daemon.connect("bob", FQN, name="chat")
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


# --- what nobody waits for any more ----------------------------------------------------------------------------------


async def subscriptions(daemon):
    (row,) = await daemon.clients()
    return row["subscriptions"], row["handles"]


def cancel_when_begun(monkeypatch, owner):
    """Have the next task that `run` starts cancelled in the moment in which it has its answer."""
    begin = owner._begin
    tasks = []

    def cancelling(self, *args):
        begin(self, *args)
        asyncio.get_running_loop().call_soon(tasks[0].cancel)

    monkeypatch.setattr(owner, "_begin", cancelling)

    async def run(work):
        tasks.append(asyncio.create_task(work))
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        monkeypatch.undo()

    return run


async def test_an_attach_that_is_cancelled_as_it_is_answered_leaves_no_handle(daemon, monkeypatch):
    await cancel_when_begun(monkeypatch, Channel)(daemon.attach("alice-chat", "main"))
    assert await subscriptions(daemon) == (0, 0)
    assert not daemon._members
    assert (await daemon.attach("alice-chat", "main")).attached


@pytest.mark.parametrize(
    ("owner", "declare"),
    [
        (Service, lambda daemon: daemon.expose_service("alice", FQN)),
        (Connection, lambda daemon: daemon.connect("bob", FQN, name="chat")),
        (EventStream, lambda daemon: daemon.subscribe()),
    ],
)
async def test_a_declaration_that_is_cancelled_as_it_is_answered_leaves_no_subscription(
    daemon, monkeypatch, owner, declare
):
    await cancel_when_begun(monkeypatch, owner)(declare(daemon))
    assert await subscriptions(daemon) == (0, 0)
    assert not daemon._members


@pytest.mark.parametrize(
    "declare",
    [
        lambda daemon: daemon.expose_service("alice", FQN),
        lambda daemon: daemon.connect("bob", FQN, name="chat"),
        lambda daemon: daemon.subscribe(),
        lambda daemon: daemon._join(events := client_module._OwnEvents(daemon), events._declare),
    ],
)
async def test_an_answer_that_comes_too_late_leaves_no_subscription(daemon, monkeypatch, declare):
    """The program gives up when the request is on its way."""
    sent = asyncio.Event()
    send = Wire._request

    async def telling(self, method, *args):
        if method in {"expose", "subscribe"}:
            sent.set()
        return await send(self, method, *args)

    monkeypatch.setattr(Wire, "_request", telling)
    task = asyncio.create_task(declare(daemon))
    await sent.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await daemon.call("ping")
    assert await subscriptions(daemon) == (0, 0)


async def test_what_an_answer_does_to_its_request_does_not_end_the_socket(daemon):
    undone = []
    wire = daemon._wire
    task = asyncio.create_task(wire.request("ping", on_result=lambda _answer: task.cancel(), undo=undone.append))
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(undone) == 1
    assert not wire.lost


# --- while the daemon is away ----------------------------------------------------------------------------------------


async def test_a_time_limit_holds_while_the_daemon_is_away(place, daemon):
    await place.server.stop()
    with pytest.raises(TimeoutError):
        await daemon.call("ping", timeout=0.01)
    with pytest.raises(RequestRefused) as caught:
        await daemon.wait("alice-chat", "connected", 0.01)
    assert caught.value.code == "timeout"


async def test_a_request_without_a_time_limit_waits_for_the_daemon(place, daemon):
    daemon.request_timeout = 0.01
    await place.server.stop()
    asking = asyncio.create_task(daemon.status())
    with pytest.raises(TimeoutError):
        await daemon.call("ping", timeout=0.03)
    daemon.request_timeout = PATIENCE
    await place.start()
    assert (await asyncio.wait_for(asking, PATIENCE))["version"]


# --- opening ---------------------------------------------------------------------------------------------------------


async def test_what_is_open_cannot_be_opened_again(daemon):
    with pytest.raises(RuntimeError, match="is open"):
        await daemon.open()
    assert len(await daemon.clients()) == 1


async def test_the_answer_of_an_older_daemon_that_lacks_a_word_will_do(daemon, monkeypatch):
    begin = Channel._begin

    def begin_of_less(self, wire, answer):
        del answer["ephemeral"]
        begin(self, wire, answer)

    monkeypatch.setattr(Channel, "_begin", begin_of_less)
    assert (await daemon.attach("alice-chat", "main")).attached


# --- time limits in what runs by itself ------------------------------------------------------------------------------


async def test_a_listener_that_raised_gets_the_message_again_after_requests_that_timed_out(
    place, channel, monkeypatch, at_once
):
    heard = asyncio.Queue()

    def listen(message):
        heard.put_nowait(message.attempt)
        if message.attempt == 1:
            raise ValueError("not yet")

    release = Channel._release

    async def release_and_time_out(self):
        await release(self)
        raise TimeoutError

    monkeypatch.setattr(Channel, "_release", release_and_time_out)
    place.channel.deliver("a")
    left = refuse(monkeypatch, Channel, "_attach", TimeoutError())
    channel.on("message", listen)
    assert await asyncio.wait_for(heard.get(), PATIENCE) == 1
    assert await asyncio.wait_for(heard.get(), PATIENCE) == 2
    await place.until(lambda: not place.inbox())
    assert not left


async def test_a_handler_runs_after_attaching_timed_out(place, daemon, monkeypatch, at_once):
    place.house.add_connection("conn-b", "bob", service=f"alice/{FQN}")
    place.house.get("conn-b", "main").deliver("a")
    left = refuse(monkeypatch, Channel, "_attach", TimeoutError())
    served = asyncio.Queue()

    async def serve(channel, connection_id):
        served.put_nowait((connection_id, channel.label))

    await daemon.expose_service("alice", FQN, handler=serve)
    assert await asyncio.wait_for(served.get(), PATIENCE) == ("conn-b", "main")
    assert not left
