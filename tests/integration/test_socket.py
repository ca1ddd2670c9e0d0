"""The client library against the daemon's socket, over a real Unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest
import uvloop

from rondevu_client import (
    ConnectionLost,
    Daemon,
    DaemonUnavailable,
    Detached,
    MessageRejected,
    MessagesRemoved,
    NotAcknowledged,
    RequestRefused,
    ServiceInfo,
)
from rondevu_client import channel as channel_module
from rondevud.access import Policy
from rondevud.errors import RequestError
from rondevud.ipc.server import Server
from tests.unit.ipc.house import Disk, MemoryHouse

FQN = "com.example.chat@1.0.0"


class Place:
    """A daemon that can be stopped and started again over what it had stored."""

    def __init__(self, path):
        self.path = path
        self.house = MemoryHouse()
        self.server = None

    async def start(self):
        self.server = Server(self.house, path=self.path)
        await self.server.start()

    async def stop(self):
        await self.server.stop()

    async def restart(self):
        """Stop and start; what was attached is gone, what was stored is there."""
        await self.stop()
        await self.restart_only()

    async def restart_only(self):
        self.house = MemoryHouse(self.house.disk, instance=self.house.instance + "+")
        await self.start()

    def channel(self, label="main", connection_id="conn-a"):
        return self.house.get(connection_id, label)

    def cut(self):
        """Break every client's socket."""
        for session in list(self.server._sessions):
            session.abort()


@pytest.fixture
async def place(tmp_path):
    place = Place(tmp_path / "rondevud.sock")
    place.house.add_connection("conn-a", "alice-chat")
    await place.start()
    yield place
    await place.stop()


@pytest.fixture
async def daemon(place):
    async with Daemon(place.path) as daemon:
        yield daemon


@pytest.fixture
def quick_retries(monkeypatch):
    monkeypatch.setattr(channel_module, "RETRY_FIRST", 0.001)


def stored(channel):
    return [payload for _, payload, _ in channel.stored.outbox]


def heard(emitter, event):
    """A queue of what comes with `event`."""
    queue = asyncio.Queue()
    emitter.on(event, queue.put_nowait)
    return queue


# --- opening ---------------------------------------------------------------------------------------------------------


async def test_nobody_answers_says_what_was_tried_and_how_to_start(tmp_path, monkeypatch):
    monkeypatch.setenv("RONDEVU_SOCKET", str(tmp_path / "one.sock"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr("rondevu_client.sockets.SYSTEM_SOCKET", tmp_path / "system.sock")
    (tmp_path / "rondevud.sock").write_text("no socket")
    with pytest.raises(DaemonUnavailable) as caught:
        await Daemon().open()
    text = str(caught.value)
    assert f"{tmp_path}/one.sock: does not exist" in text
    assert f"{tmp_path}/rondevud.sock: exists, but nobody listens there" in text
    assert f"{tmp_path}/system.sock: does not exist" in text
    assert "rondevud run" in text


async def test_the_first_socket_that_answers_is_taken(place, tmp_path, monkeypatch):
    monkeypatch.setenv("RONDEVU_SOCKET", str(tmp_path / "dead.sock"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    async with Daemon() as daemon:
        assert daemon.path == place.path
        assert daemon.instance == "first"


async def test_access_denied_is_said(place):
    await place.stop()
    place.server = Server(place.house, path=place.path, policy=Policy(frozenset()))
    await place.server.start()
    daemon = Daemon(place.path)
    with pytest.raises(RequestRefused) as caught:
        await daemon.open()
    assert caught.value.code == "access_denied"
    with pytest.raises(ConnectionLost, match="not open"):
        await daemon.status()


async def test_requests_bring_their_answers_and_refusals(daemon):
    assert (await daemon.status())["version"] == "0.1.0"
    assert [row["name"] for row in await daemon.connections()] == ["alice-chat"]
    assert (await daemon.clients())[0]["handles"] == 0
    assert await daemon.claim("alice") == {"username": "alice"}
    assert (await daemon.why("conn-a"))["why"] == "because"
    with pytest.raises(RequestRefused, match="nobody") as caught:
        await daemon.attach("nobody", "main")
    assert caught.value.code == "unknown_target"


# --- sending ---------------------------------------------------------------------------------------------------------


async def test_send_returns_once_stored_and_not_before(place, daemon):
    channel = await daemon.attach("alice-chat", "main")
    assert await channel.send("one") == 1
    place.channel().hold = True
    sending = asyncio.create_task(channel.send(b"two", max_age=5))
    await daemon.status()
    assert not sending.done()
    place.channel().release()
    assert await sending == 2
    assert place.channel().stored.outbox == [(1, "one", None), (2, b"two", 5.0)]


async def test_messages_of_one_turn_share_frames_and_keep_their_order(place, daemon):
    channel = await daemon.attach("alice-chat", "main")
    texts = [str(number) for number in range(600)]
    assert await asyncio.gather(*(channel.send(text) for text in texts)) == list(range(1, 601))
    assert stored(place.channel()) == texts
    assert place.channel().producer.frames == 3


async def test_more_than_a_window_waits_instead_of_being_rejected(place, daemon):
    channel = await daemon.attach("alice-chat", "main")
    place.channel().hold = True
    sending = [asyncio.create_task(channel.send(str(number))) for number in range(3000)]
    await daemon.status()
    await daemon.status()
    assert len(place.channel().producer.parked) == 1024
    place.channel().release()
    assert await asyncio.gather(*sending) == list(range(1, 3001))
    assert stored(place.channel()) == [str(number) for number in range(3000)]


async def test_more_bytes_than_a_window_wait_too(place, daemon):
    channel = await daemon.attach("alice-chat", "main")
    big = b"x" * (1024 * 1024)
    await asyncio.gather(*(channel.send(big) for _ in range(9)))
    assert stored(place.channel()) == [big] * 9


async def test_a_rejection_is_an_exception_of_its_send_only(place, daemon):
    channel = await daemon.attach("alice-chat", "main")
    place.channel().refused = {"bad"}
    first, bad, last = await asyncio.gather(*map(channel.send, ["a", "bad", "b"]), return_exceptions=True)
    assert (first, last) == (1, 3)
    assert isinstance(bad, MessageRejected)
    assert (bad.seq, bad.code) == (2, "queue_full")
    assert stored(place.channel()) == ["a", "b"]


@pytest.mark.parametrize(
    ("data", "error"),
    [(5, TypeError), (None, TypeError), ("\ud800", ValueError), (b"x" * (1024 * 1024 + 1), MessageRejected)],
)
async def test_what_cannot_be_sent_is_refused_before_it_takes_a_number(place, daemon, data, error):
    channel = await daemon.attach("alice-chat", "main")
    with pytest.raises(error):
        await channel.send(data)
    assert await channel.send("fine") == 1


async def test_numbers_go_on_where_a_named_producer_left_off(place):
    for text in ("a", "b"):
        async with Daemon(place.path) as daemon:
            channel = await daemon.attach("alice-chat", "main", producer=b"outbox")
            await channel.send(text)
    assert place.channel().stored.outbox == [(1, "a", None), (2, "b", None)]


async def test_flush_returns_when_the_peer_has_everything(place, daemon):
    channel = await daemon.attach("alice-chat", "main")
    await channel.flush()
    await channel.send("a")
    await channel.send("b")
    assert channel.queue_size == 2
    flushing = asyncio.create_task(channel.flush())
    place.channel().producer.acknowledge(1)
    await daemon.status()
    assert not flushing.done()
    place.channel().producer.acknowledge(2)
    await flushing
    assert channel.queue_size == 0


async def test_flush_raises_what_was_removed_once(place, daemon):
    channel = await daemon.attach("alice-chat", "main")
    for text in "abcd":
        await channel.send(text)
    place.channel().producer.remove(1, 1, "expired")
    place.channel().producer.remove(2, 3, "expired")
    place.channel().producer.acknowledge(4)
    with pytest.raises(MessagesRemoved) as caught:
        await channel.flush()
    assert caught.value.ranges == [(1, 3, "expired")]
    assert caught.value.unnumbered == 0
    await channel.flush()


async def test_flush_counts_what_was_removed_while_the_socket_was_broken(place, daemon):
    channel = await daemon.attach("alice-chat", "main")
    for text in "abc":
        await channel.send(text)
    producer = place.channel().producer
    await place.stop()
    producer.remove(1, 2, "expired")
    producer.books.acknowledged_seq = 3
    await place.start()
    await daemon.status()
    with pytest.raises(MessagesRemoved) as caught:
        await channel.flush()
    assert (caught.value.ranges, caught.value.unnumbered) == ([], 2)


async def test_what_was_handed_to_a_data_channel_can_be_waited_for(place, daemon):
    channel = await daemon.attach("alice-chat", "main", confirm_sent=True)
    for text in "abc":
        await channel.send(text)
    waiting = asyncio.create_task(channel.wait_sent())
    producer = place.channel().producer
    producer.hand_over(2)
    await daemon.status()
    assert not waiting.done()
    producer.hand_over(3)
    await waiting
    await channel.send("d")
    producer.acknowledge(4)
    await channel.wait_sent()
    await channel.send("e")
    producer.remove(5, 5, "expired")
    with pytest.raises(MessagesRemoved):
        await channel.wait_sent()


async def test_waiting_until_sent_has_to_be_asked_for_at_attach(place, daemon):
    channel = await daemon.attach("alice-chat", "main")
    with pytest.raises(ValueError, match="confirm_sent"):
        await channel.wait_sent()


async def test_flush_to_a_peer_that_acknowledges_nothing_waits_until_the_queue_is_empty(place, daemon):
    place.channel().acknowledges = False
    channel = await daemon.attach("alice-chat", "main")
    await channel.send("a")
    flushing = asyncio.create_task(channel.flush())
    await daemon.status()
    assert not flushing.done()
    place.channel().stored.outbox.clear()
    with pytest.raises(NotAcknowledged):
        await flushing


async def test_what_has_left_for_a_peer_that_acknowledges_nothing_is_not_called_acknowledged(place, daemon):
    place.channel().acknowledges = False
    channel = await daemon.attach("alice-chat", "main")
    await channel.flush()
    await channel.send("a")
    flushing = asyncio.create_task(channel.flush())
    await daemon.status()
    place.channel().producer.acknowledge(1)
    place.channel().stored.outbox.clear()
    with pytest.raises(NotAcknowledged):
        await flushing
    assert channel.queue_size == 0
    with pytest.raises(NotAcknowledged):
        await channel.flush()
    await channel.send("b")
    place.channel().producer.remove(2, 2, "expired")
    with pytest.raises(MessagesRemoved):
        await channel.flush()


async def test_a_flush_ends_with_the_channel_when_the_peer_acknowledges_nothing(place, daemon):
    place.channel().acknowledges = False
    channel = await daemon.attach("alice-chat", "main")
    await channel.send("a")
    flushing = asyncio.create_task(channel.flush())
    await daemon.status()
    await channel.detach()
    with pytest.raises(Detached):
        await flushing


async def test_a_first_contact_that_acknowledges_nothing_ends_a_flush(place, daemon):
    place.channel().acknowledges = None
    channel = await daemon.attach("alice-chat", "main")
    await channel.send("a")
    place.channel().stored.outbox.clear()
    flushing = asyncio.create_task(channel.flush())
    await daemon.status()
    assert not flushing.done()
    place.house.publish("open", {"acknowledges": False}, place.channel())
    with pytest.raises(NotAcknowledged):
        await flushing


# --- receiving -------------------------------------------------------------------------------------------------------


async def test_asking_for_the_next_message_acknowledges_the_one_before(place, daemon):
    channel = await daemon.attach("alice-chat", "main")
    place.channel().deliver("a", b"b")
    first = await anext(channel)
    assert (first.data, first.attempt, first.redelivered, first.id) == ("a", 1, False, "00ff-1")
    assert (first.enqueued_at, first.connection_id) == (1_700_000_000.5, "conn-a")
    await daemon.status()
    assert place.channel().waiting == 2
    second = await anext(channel)
    assert second.data == b"b"
    await place.house.until(lambda: place.channel().waiting == 1)


async def test_without_auto_ack_only_ack_acknowledges(place, daemon):
    channel = await daemon.attach("alice-chat", "main", auto_ack=False)
    place.channel().deliver("a", "b", "c")
    got = [await anext(channel) for _ in range(3)]
    await daemon.status()
    assert place.channel().waiting == 3
    await got[1].ack()
    await place.house.until(lambda: place.channel().waiting == 1)


async def test_what_was_not_acknowledged_comes_again_on_the_next_attach(place, daemon):
    place.channel().deliver("a", "b")
    channel = await daemon.attach("alice-chat", "main")
    await anext(channel)
    await anext(channel)
    await channel.detach()
    again = await daemon.attach("alice-chat", "main")
    message = await anext(again)
    assert (message.data, message.attempt, message.redelivered) == ("b", 2, True)


async def test_an_acknowledgement_right_before_leaving_is_not_lost(place):
    place.channel().deliver("a")
    async with Daemon(place.path) as daemon:
        channel = await daemon.attach("alice-chat", "main", auto_ack=False)
        await (await anext(channel)).ack()
    await place.house.until(lambda: place.channel().waiting == 0)


async def test_credit_is_given_again_as_messages_are_taken(place, daemon):
    place.channel().deliver(*map(str, range(20)))
    channel = await daemon.attach("alice-chat", "main", credit=4)
    assert [(await anext(channel)).data for _ in range(20)] == list(map(str, range(20)))


async def test_a_program_that_takes_nothing_gets_no_more_than_its_credit(place, daemon):
    place.channel().deliver(*map(str, range(20)))
    await daemon.attach("alice-chat", "main", credit=4)
    await daemon.status()
    assert place.channel().receiver.next == 4


async def test_gaps_are_skipped_told_in_their_place_and_acknowledged(place, daemon):
    channel = await daemon.attach("alice-chat", "main")
    order = []
    channel.on("gap", lambda gap: order.append(gap["count"]))
    place.channel().deliver("a")
    place.channel().deliver(gap={"first": 2, "next": 5, "count": 3, "reason": "expired"})
    place.channel().deliver("b")
    for _ in range(2):
        order.append((await anext(channel)).data)  # noqa: PERF401 - the order is what is tested
    assert order == ["a", 3, "b"]
    await place.house.until(lambda: place.channel().waiting == 1)


async def test_an_observer_sees_copies_and_takes_nothing(place, daemon):
    place.channel()
    place.channel().deliver("before")
    channel = await daemon.attach("alice-chat", "main", mode="observe")
    place.channel().deliver("after")
    assert (await anext(channel)).data == "after"
    assert place.channel().waiting == 2
    with pytest.raises(ValueError, match="observed"):
        await channel.send("x")


async def test_a_sender_and_a_receiver_of_one_program_may_share_a_channel(place, daemon):
    receiver = await daemon.attach("alice-chat", "main")
    sender = await daemon.attach("alice-chat", "main", mode="send")
    assert [await sender.send("a"), await receiver.send("b")] == [1, 1]
    assert stored(place.channel()) == ["a", "b"]


async def test_options_of_a_channel_may_be_given_by_name(place, daemon, monkeypatch):
    asked, channel = [], place.house.channel

    async def hear(target, label, options, create):
        asked.append(options)
        return await channel(target, label, options, create)

    monkeypatch.setattr(place.house, "channel", hear)
    connection = await daemon.connect("bob", FQN)
    await connection.create_channel("one", ordered=False, max_retransmits=0, options={"durability": "memory"})
    await daemon.attach(connection.id, "two", max_packet_life_time=500)
    await daemon.attach(connection.id, "three")
    assert asked == [
        {"ordered": False, "max_retransmits": 0, "durability": "memory"},
        {"max_packet_life_time": 500},
        None,
    ]


async def test_events_and_messages_of_a_channel_keep_their_order(place, daemon):
    channel = await daemon.attach("alice-chat", "main")
    order = asyncio.Queue()
    channel.on("close", lambda _data: order.put_nowait("close"))
    channel.on("open", lambda data: order.put_nowait(data["acknowledges"]))
    place.house.publish("close", {}, place.channel())
    place.house.publish("open", {"acknowledges": True}, place.channel())
    place.house.publish("close", {}, place.channel())
    assert [await order.get() for _ in range(3)] == ["close", True, "close"]


async def test_the_state_of_a_channel_is_as_the_daemon_says(place, daemon):
    channel = await daemon.attach("alice-chat", "main")
    assert channel.ready_state == "open"
    lost = heard(channel, "disconnected")
    place.house.events.publish("disconnected", {}, connection_id="conn-a")
    await lost.get()
    assert channel.ready_state == "connecting"
    opened = heard(channel, "open")
    place.house.publish("open", {"acknowledges": False}, place.channel())
    await opened.get()
    assert (channel.ready_state, channel.acknowledges) == ("open", False)


@pytest.mark.parametrize("event", ["overrun", "close"])
async def test_what_an_event_does_not_say_of_a_channel_is_asked_for(place, daemon, event):
    channel = await daemon.attach("alice-chat", "main")
    place.channel().state, place.channel().acknowledges = "closing", False
    told = heard(channel, event)
    place.house.publish(event, {"count": 1}, place.channel())
    await told.get()
    await daemon.status()
    await daemon.status()
    assert (channel.ready_state, channel.acknowledges) == ("closing", False)


async def test_the_threshold_of_what_is_under_way_is_asked_for_when_somebody_wants_it(place, daemon):
    channel = await daemon.attach("alice-chat", "main")
    other = await daemon.attach("alice-chat", "other")
    low = heard(channel, "buffered_amount_low")
    await daemon.status()
    assert (len(place.channel().watches), place.channel("other").watches) == (1, [])
    for amount in (10, 0):
        place.channel().watches[0].see(amount)
    assert (await low.get())["buffered_amount"] == 0
    channel.buffered_amount_low_threshold = 30
    assert (channel.buffered_amount_low_threshold, other.buffered_amount_low_threshold) == (30, 0)
    await place.restart()
    await daemon.status()
    for amount in (40, 20):
        place.channel().watches[0].see(amount)
    assert (await low.get())["buffered_amount"] == 20


async def test_a_threshold_must_make_sense(place, daemon):
    place.channel()
    observer = await daemon.attach("alice-chat", "main", mode="observe")
    observer.on("buffered_amount_low", print)
    with pytest.raises(ValueError, match="only observed"):
        observer.buffered_amount_low_threshold = 1
    channel = await daemon.attach("alice-chat", "main")
    with pytest.raises(ValueError, match="0 bytes or more"):
        channel.buffered_amount_low_threshold = -1


async def test_listeners_come_and_go(place, daemon):
    channel = await daemon.attach("alice-chat", "main")
    once, never, always = [], [], heard(channel, "suspect")
    channel.once("suspect", once.append)
    channel.on("suspect", never.append)
    channel.off("suspect", never.append)
    for _ in range(2):
        place.house.publish("suspect", {}, place.channel())
        await always.get()
    assert (len(once), never) == (1, [])


async def test_message_listeners_acknowledge_when_they_return(place, daemon):
    channel = await daemon.attach("alice-chat", "main")
    gate, entered = asyncio.Event(), asyncio.Event()

    async def slow(message):
        entered.set()
        await gate.wait()

    channel.on("message", slow)
    place.channel().deliver("a")
    await entered.wait()
    await daemon.status()
    assert place.channel().waiting == 1
    gate.set()
    await place.house.until(lambda: place.channel().waiting == 0)


async def test_a_message_listener_that_raises_gets_the_message_again(place, daemon, quick_retries):
    channel = await daemon.attach("alice-chat", "main")
    errors = heard(channel, "error")
    attempts = asyncio.Queue()

    def listener(message):
        attempts.put_nowait(message.attempt)
        if message.attempt < 3:
            raise RuntimeError("not yet")

    channel.on("message", listener)
    place.channel().deliver("a")
    assert [await attempts.get() for _ in range(3)] == [1, 2, 3]
    assert await errors.get() == {"context": "handler", "code": "RuntimeError", "message": "not yet"}
    await place.house.until(lambda: place.channel().waiting == 0)


async def test_once_a_listener_has_its_one_message_the_next_stays_where_it_is(place, daemon):
    channel = await daemon.attach("alice-chat", "main")
    first = asyncio.Queue()
    channel.once("message", first.put_nowait)
    place.channel().deliver("a", "b")
    assert (await first.get()).data == "a"
    await place.house.until(lambda: place.channel().waiting == 1)
    assert (await anext(channel)).data == "b"


# --- whose channel ---------------------------------------------------------------------------------------------------


async def test_a_second_receiver_is_refused_or_takes_over(place, daemon):
    channel = await daemon.attach("alice-chat", "main")
    async with Daemon(place.path) as other:
        with pytest.raises(RequestRefused) as caught:
            await other.attach("alice-chat", "main")
        assert caught.value.code == "in_use"
        await other.attach("alice-chat", "main", takeover=True)
        with pytest.raises(Detached) as detached:
            await anext(channel)
        assert detached.value.reason == "taken_over"
        with pytest.raises(Detached):
            await channel.send("x")
        assert channel.ready_state == "closed"


async def test_a_fixed_producer_has_one_live_handle(place, daemon):
    await daemon.attach("alice-chat", "main", mode="send", producer=b"outbox")
    with pytest.raises(RequestRefused) as caught:
        await daemon.attach("alice-chat", "main", mode="send", producer=b"outbox")
    assert caught.value.code == "producer_in_use"
    await daemon.attach("alice-chat", "main", mode="send", producer=b"outbox", takeover=True)


async def test_a_closed_channel_ends_the_iteration_after_what_came(place, daemon):
    channel = await daemon.attach("alice-chat", "main")
    place.channel().deliver("a")
    place.channel().close_by_peer()
    assert [message.data async for message in channel] == ["a"]
    assert await channel.wait_detached() == "closed"


async def test_close_ends_the_label_and_detach_gives_it_back(place, daemon):
    channel = await daemon.attach("alice-chat", "main")
    await channel.detach()
    await channel.detach()
    assert place.channel().receiver is None
    again = await daemon.attach("alice-chat", "main")
    await again.close()
    assert ("conn-a", "main") not in place.house.channels_by_key


# --- the daemon goes and comes ---------------------------------------------------------------------------------------


async def test_after_a_broken_socket_what_was_not_stored_is_sent_again_without_duplicates(place, daemon):
    """The daemon stored a part without having said so; its restart must make neither a hole nor a double."""
    channel = await daemon.attach("alice-chat", "main")
    place.channel().mute = True
    place.channel().refused = {"2"}
    half = [asyncio.create_task(channel.send(str(number))) for number in range(5)]
    await daemon.status()
    place.channel().producer.decide()
    place.channel().hold = True
    rest = [asyncio.create_task(channel.send(str(number))) for number in range(5, 2000)]
    await daemon.status()
    assert not any(task.done() for task in half)
    await place.restart()
    numbers = await asyncio.gather(*half, *rest, return_exceptions=True)
    assert isinstance(numbers.pop(2), MessageRejected)
    assert numbers == [1, 2, *range(4, 2001)]
    assert stored(place.channel()) == [str(number) for number in range(2000) if number != 2]
    assert daemon.instance == "first+"


async def test_sends_and_requests_wait_for_the_daemon(place, daemon):
    channel = await daemon.attach("alice-chat", "main")
    await place.stop()
    sending = asyncio.create_task(channel.send("later"))
    asking = asyncio.create_task(daemon.status())
    attaching = asyncio.create_task(daemon.attach("alice-chat", "second"))
    await place.start()
    assert await sending == 1
    assert (await asking)["version"] == "0.1.0"
    assert (await attaching).verdict == {"in": "new", "out": "new"}


async def test_what_was_received_and_not_acknowledged_comes_again_and_old_acknowledgements_do_not_count(place, daemon):
    channel = await daemon.attach("alice-chat", "main", auto_ack=False)
    place.channel().deliver("a", "b")
    old = [await anext(channel) for _ in range(2)]
    place.cut()
    await daemon.status()
    assert [(await anext(channel)).data for _ in range(2)] == ["a", "b"]
    await old[1].ack()
    await daemon.status()
    assert place.channel().waiting == 2


async def test_credit_is_given_again_after_a_restart(place, daemon):
    channel = await daemon.attach("alice-chat", "main", credit=2)
    place.channel().deliver("a", "b", "c", "d")
    assert (await anext(channel)).data == "a"
    await place.restart()
    await daemon.status()
    assert [(await anext(channel)).data for _ in range(4)] == ["a", "b", "c", "d"]


async def test_a_channel_somebody_else_has_by_then_is_ended(place, daemon, monkeypatch):
    monkeypatch.setattr(channel_module, "STOLEN_TRIES", 2)
    channel = await daemon.attach("alice-chat", "main")
    await place.stop()
    place.house = MemoryHouse(place.house.disk)
    await place.channel().open_receiver("exclusive", None, False)
    await place.start()
    assert await channel.wait_detached() == "in_use"


async def test_a_channel_that_another_program_has_after_a_restart_is_ended_at_once(place, daemon, monkeypatch):
    """The new daemon never knew the old socket: nobody's hold will go away by itself."""
    monkeypatch.setattr(channel_module, "STOLEN_PAUSE", 3600)
    channel = await daemon.attach("alice-chat", "main")
    await place.stop()
    place.house = MemoryHouse(place.house.disk, instance="second")
    await place.channel().open_receiver("exclusive", None, False)
    await place.start()
    assert await channel.wait_detached() == "in_use"


async def test_a_service_that_takes_long_to_come_back_holds_up_no_channel(place, daemon, monkeypatch):
    await daemon.expose_service("alice", FQN)
    channel = await daemon.attach("alice-chat", "main")
    await place.stop()
    place.house = MemoryHouse(place.house.disk, instance="second")
    signalling, expose = asyncio.Event(), place.house.expose

    async def slow_expose(*args):
        await signalling.wait()
        return await expose(*args)

    monkeypatch.setattr(place.house, "expose", slow_expose)
    await place.start()
    assert await channel.send("x") == 1
    signalling.set()
    await daemon.status()


async def test_coming_back_in_vain_leaves_no_socket_that_holds_channels(place, daemon, monkeypatch):
    """One channel is not attached in time once; the other one, which was, must not be in its own way."""
    one, two = await daemon.attach("alice-chat", "one"), await daemon.attach("alice-chat", "two")
    channel, calls = place.house.channel, []

    async def hang_once(target, label, options, create):
        if label == "two" and not calls:
            calls.append(label)
            await asyncio.Event().wait()
        return await channel(target, label, options, create)

    monkeypatch.setattr(place.house, "channel", hang_once)
    daemon.request_timeout = 0.2
    place.cut()
    assert [await channel.send("x") for channel in (one, two)] == [1, 1]
    assert len(await daemon.clients()) == 1
    assert (one.end_reason, two.end_reason) == (None, None)


async def test_without_reconnect_everything_fails_when_the_socket_breaks(place):
    async with Daemon(place.path, reconnect=False) as daemon:
        channel = await daemon.attach("alice-chat", "main")
        place.channel().hold = True
        sending = asyncio.create_task(channel.send("x"))
        await daemon.status()
        place.cut()
        with pytest.raises(ConnectionLost):
            await sending
        with pytest.raises(ConnectionLost):
            await daemon.status()
        with pytest.raises(Detached):
            await anext(channel)


async def test_leaving_ends_what_waits_and_no_task_is_left(place):
    async with Daemon(place.path) as daemon:
        channel = await daemon.attach("alice-chat", "main")
        channel.on("message", lambda _message: None)
        place.channel().hold = True
        sending = asyncio.create_task(channel.send("x"))
        waiting = asyncio.create_task(daemon.wait("conn-a"))
        await daemon.status()
    for task in (sending, waiting):
        with pytest.raises(ConnectionLost):
            await task
    await place.house.until(lambda: place.house.gone)
    mine = {"messages of main", "rondevu: wait for the daemon"}
    assert not mine & {task.get_name() for task in asyncio.all_tasks()}


async def test_a_cancelled_attach_holds_nothing(place, daemon):
    """The answer that comes too late is given back at once."""
    attaching = asyncio.create_task(daemon.attach("alice-chat", "main"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    attaching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await attaching
    await daemon.status()
    await daemon.status()
    assert place.channel().receiver is None


# --- connections, events, services -----------------------------------------------------------------------------------


async def test_a_connection_that_is_closed_leaves_no_subscription(place, daemon):
    connection = await daemon.connect("alice", "com.example.chat@1.0.0", name="short")
    assert (await daemon.clients())[0]["subscriptions"] == 1
    closed = asyncio.Event()
    connection.on("closed", lambda _data: closed.set())
    await connection.close()
    await asyncio.wait_for(closed.wait(), 10)
    assert (await daemon.clients())[0]["subscriptions"] == 0
    assert daemon._wire.sinks == {}


async def test_a_connection_is_declared_once_and_tells_its_events(place, daemon):
    connection = await daemon.connect("bob", FQN, name="bob-chat")
    assert (connection.name, connection.created) == ("bob-chat", True)
    assert not (await daemon.connect("bob", FQN, name="bob-chat")).created
    states = heard(connection, "state")
    place.house.events.publish("state", {"new": "failed", "previous": "x"}, connection_id=connection.id)
    assert (await states.get())["new"] == "failed"
    assert connection.state == "failed"
    channel = await connection.create_channel("main")
    await channel.send("hello")
    await place.restart()
    await daemon.status()
    place.house.events.publish("state", {"new": "connected", "previous": "x"}, connection_id=connection.id)
    await states.get()
    assert connection.state == "connected"


async def test_what_is_ephemeral_is_declared_again_to_a_daemon_that_has_forgotten_it(place, daemon, monkeypatch):
    """With other connection ids, and without what had been accepted."""
    declared, connect, expose = [], MemoryHouse.connect, MemoryHouse.expose

    async def hear_connect(house, **facts):
        declared.append((facts["name"], facts["ephemeral"]))
        return await connect(house, **facts)

    async def hear_expose(house, *facts):
        declared.append((facts[0], facts[3]))
        return await expose(house, *facts)

    monkeypatch.setattr(MemoryHouse, "connect", hear_connect)
    monkeypatch.setattr(MemoryHouse, "expose", hear_expose)
    connection = await daemon.connect("bob", FQN, ephemeral=True)
    channel = await connection.create_channel("main")
    await daemon.expose_service("carol", FQN, ephemeral=True)
    assert await channel.send("forgotten") == 1
    await place.stop()
    place.house.disk = Disk()
    place.house.disk.connections = {"conn-x": {"name": "x", "service": None, "state": "connected"}}
    place.house.disk.connections["conn-y"] = dict(place.house.disk.connections["conn-x"], name="y")
    await place.restart_only()
    assert await channel.send("after") == 2
    assert (connection.id, channel.connection_id) == (f"conn-{3:016x}", f"conn-{3:016x}")
    assert channel.verdict == {"in": "new", "out": "new"}
    place.house.get(channel.connection_id, "main").producer.acknowledge(2)
    with pytest.raises(MessagesRemoved) as caught:
        await channel.flush()
    assert caught.value.ranges == [(1, 1, "lost")]
    assert declared == [(None, True), ("carol", True)] * 2


@pytest.mark.parametrize("by_another", [False, True])
async def test_a_connection_that_was_closed_stays_so_when_the_daemon_is_back(place, daemon, by_another):
    connection = await daemon.connect("bob", FQN, name="bob-chat")
    closed = heard(connection, "closed")
    if by_another:
        async with Daemon(place.path) as other:
            await other.close_connection("bob-chat")
    else:
        await connection.close()
    assert (await closed.get())["by"] == "local"
    await place.restart()
    assert [row["name"] for row in await daemon.connections()] == ["alice-chat"]


async def test_what_is_being_ended_when_the_socket_breaks_is_not_declared_again(place, daemon, monkeypatch):
    """Whether the daemon has done it or not is not known; it must not be undone by who asked for it."""
    connection = await daemon.connect("bob", FQN, name="bob-chat")
    service = await daemon.expose_service("alice", FQN)
    house = place.house

    async def never(*_args, **_more):
        house.changed.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(house, "close", never)
    monkeypatch.setattr(house, "withdraw", never)
    ending = [asyncio.create_task(connection.close()), asyncio.create_task(service.stop())]
    (session,) = place.server._sessions
    await house.until(lambda: len(session._tasks) == 2)
    del house.disk.connections[connection.id]
    house.disk.services.clear()
    place.cut()
    assert [type(error) for error in await asyncio.gather(*ending, return_exceptions=True)] == [ConnectionLost] * 2
    assert len(await daemon.connections()) == 1
    assert await daemon.services() == []
    assert await service.wait_closed() == "closed"


async def test_a_connection_knows_its_channels_and_whether_it_is_connected(place, daemon):
    connection = await daemon.connect("bob", FQN, name="bob-chat")
    assert (connection.is_connected, connection.get_channel("main")) == (True, None)
    channel = await connection.create_channel("main")
    assert connection.get_channel("main") is channel
    await channel.detach()
    assert connection.get_channel("main") is None
    states = heard(connection, "state")
    place.house.events.publish("state", {"new": "reconnecting", "previous": "connected"}, connection_id=connection.id)
    await states.get()
    assert not connection.is_connected


async def test_a_service_tells_how_it_is_published_and_who_is_there(place, daemon):
    place.house.add_connection("conn-b", "bob", service=f"alice/{FQN}")
    service = await daemon.expose_service("alice", FQN)
    assert service.active_connections == ["conn-b"]
    assert service.service_info == ServiceInfo("service-1", "uuid-1", 1.5)
    refreshed = heard(service, "ttl_refreshed")
    place.house.events.publish("ttl_refreshed", {"expires_at": 9.5}, service=f"alice/{FQN}")
    await refreshed.get()
    assert service.service_info.expires_at == 9.5
    assert (await service.pool_status())["pool_size"] == 1
    assert service.service_info.expires_at == 2.5
    await service.stop()
    with pytest.raises(RequestRefused):
        await service.pool_status()


async def test_a_service_that_could_not_be_published_yet_has_no_information(place, daemon, monkeypatch):
    async def expose(*_args):
        place.house.disk.services[f"alice/{FQN}"] = {}
        return {"service_id": None, "uuid": None, "expires_at": None, "created": True}

    monkeypatch.setattr(place.house, "expose", expose)
    service = await daemon.expose_service("alice", FQN)
    assert (service.service_info, service.uuid) == (None, "")
    published = heard(service, "published")
    facts = {"service_id": "s", "uuid": "u", "expires_at": 3.5}
    place.house.events.publish("published", facts, service=f"alice/{FQN}")
    await published.get()
    assert service.service_info == ServiceInfo("s", "u", 3.5)


async def test_the_daemon_tells_its_own_events_and_no_others(place, daemon):
    signalling, opened = heard(daemon, "signalling"), heard(daemon, "open")
    await daemon.status()
    place.house.publish("open", {}, place.channel())
    place.house.events.publish("signalling", {"state": "down"})
    assert await signalling.get() == {"state": "down"}
    await place.restart()
    await daemon.status()
    place.house.events.publish("signalling", {"state": "up"})
    assert await signalling.get() == {"state": "up"}
    assert opened.empty()


async def test_listeners_of_the_daemon_may_be_there_before_it_is_open(place):
    daemon = Daemon(place.path)
    signalling = heard(daemon, "signalling")
    async with daemon:
        await daemon.status()
        place.house.events.publish("signalling", {"state": "down"})
        assert await signalling.get() == {"state": "down"}
    async with daemon:
        await daemon.status()
        place.house.events.publish("signalling", {"state": "up"})
        assert await signalling.get() == {"state": "up"}


async def test_a_stream_of_events_begins_where_it_was_asked_to(place, daemon):
    place.house.events.publish("one", connection_id="conn-a")
    place.house.events.publish("two", connection_id="conn-a")
    stream = await daemon.subscribe("alice-chat", since=2)
    assert [row["connection_id"] for row in stream.connections] == ["conn-a"]
    place.house.events.publish("three", connection_id="conn-a")
    assert [tuple(await anext(stream))[:2] for _ in range(2)] == [(2, "two"), (3, "three")]
    await stream.close()
    assert [event async for event in stream] == []


async def test_a_stream_goes_on_where_it_was_when_its_socket_broke(place, daemon):
    stream = await daemon.subscribe()
    quiet = await daemon.subscribe("alice-chat")
    place.house.events.publish("one")
    assert (await anext(stream)).name == "one"
    place.cut()
    place.house.events.publish("two", connection_id="conn-a")
    await daemon.status()
    place.house.events.publish("three", connection_id="conn-a")
    assert [(await anext(stream)).name for _ in range(2)] == ["two", "three"]
    assert [(await anext(quiet)).name for _ in range(3)] == ["one", "two", "three"]


async def test_a_stream_says_that_a_restart_may_have_cost_events(place, daemon):
    stream = await daemon.subscribe()
    await place.restart()
    await daemon.status()
    place.house.events.publish("new")
    missing = {"count": None, "from": 1, "to": None}
    assert [tuple(await anext(stream))[:3] for _ in range(2)] == [(0, "overrun", missing), (1, "new", {})]


async def test_a_stream_tells_what_a_daemon_had_to_say_before_it_was_back(place, daemon):
    stream = await daemon.subscribe()
    place.house.events.publish("old")
    assert (await anext(stream)).name == "old"
    await place.restart()
    place.house.events.publish("early")
    await daemon.status()
    place.house.events.publish("late")
    told = [await anext(stream) for _ in range(3)]
    assert [(event.number, event.name) for event in told] == [(0, "overrun"), (1, "early"), (2, "late")]
    assert told[0].data == {"count": None, "from": 2, "to": None}


async def test_a_number_of_an_earlier_start_brings_all_there_is(place, daemon):
    place.house.events.publish("one")
    stream = await daemon.subscribe(since=1, instance="of an earlier start")
    told = [await anext(stream) for _ in range(2)]
    missing = {"count": None, "from": 1, "to": None}
    assert [tuple(event)[:3] for event in told] == [(0, "overrun", missing), (1, "one", {})]
    same = await daemon.subscribe(since=1, instance=daemon.instance)
    assert (await anext(same)).name == "one"


async def test_a_stream_that_nobody_reads_says_which_events_it_dropped(place, daemon, monkeypatch):
    monkeypatch.setattr("rondevu_client.stream.KEPT", 2)
    stream = await daemon.subscribe()
    for number in range(1, 6):
        place.house.events.publish(f"n{number}")
    await daemon.status()
    told = [await anext(stream) for _ in range(3)]
    assert tuple(told[0]) == (3, "overrun", {"count": 3, "from": 1, "to": 3}, None)
    assert all(abs(event.at - time.time()) < 3_600 for event in told[1:])
    assert [event.name for event in told[1:]] == ["n4", "n5"]
    assert stream.overrun == 3


class Serving:
    """A handler and what it was given."""

    def __init__(self):
        self.got = asyncio.Queue()
        self.failures = 0

    async def __call__(self, channel, connection_id):
        async for message in channel:
            if self.failures:
                self.failures -= 1
                raise RuntimeError("cannot")
            self.got.put_nowait((connection_id, channel.label, message.data, message.attempt))


async def test_a_handler_serves_the_channels_that_are_there_and_those_that_come(place, daemon):
    house, serving = place.house, Serving()
    house.add_connection("conn-s", "joe", service=f"alice/{FQN}")
    house.get("conn-s", "main").deliver("early")
    service = await daemon.expose_service("alice", FQN, handler=serving, pool_size=2)
    joined = heard(service, "connection")
    assert (service.uuid, service.created, house.disk.services) == ("uuid-1", True, {f"alice/{FQN}": {"pool_size": 2}})
    assert await joined.get() == "conn-s"
    assert await serving.got.get() == ("conn-s", "main", "early", 1)
    house.get("conn-s", "second").deliver("new label")
    assert await serving.got.get() == ("conn-s", "second", "new label", 1)
    house.add_connection("conn-t", "jim", service=f"alice/{FQN}")
    assert await joined.get() == "conn-t"
    house.get("conn-t", "main").deliver("other connection")
    assert await serving.got.get() == ("conn-t", "main", "other connection", 1)


async def test_a_handler_that_raises_is_tried_again_with_the_same_message(place, daemon, quick_retries):
    house, serving = place.house, Serving()
    serving.failures = 2
    house.add_connection("conn-s", "joe", service=f"alice/{FQN}")
    service = await daemon.expose_service("alice", FQN, handler=serving)
    errors = heard(service, "error")
    house.get("conn-s", "main").deliver("stubborn")
    assert await serving.got.get() == ("conn-s", "main", "stubborn", 3)
    error = await errors.get()
    assert (error["context"], error["message"], error["label"]) == ("handler", "cannot", "main")


async def test_a_second_program_takes_over_what_the_first_leaves(place, daemon):
    house, first, second = place.house, Serving(), Serving()
    house.add_connection("conn-s", "joe", service=f"alice/{FQN}")
    await daemon.expose_service("alice", FQN, handler=second)
    async with Daemon(place.path) as other:
        held = await other.attach("conn-s", "main")
        house.get("conn-s", "main").deliver("x")
        assert (await anext(held)).data == "x"
        await other.expose_service("alice", FQN, handler=first)
        await daemon.status()
        assert second.got.empty()
    assert await second.got.get() == ("conn-s", "main", "x", 2)
    assert first.got.empty()


async def test_a_handler_that_returned_keeps_its_channel_and_its_listeners(place, daemon):
    house, got = place.house, asyncio.Queue()
    house.add_connection("conn-s", "joe", service=f"alice/{FQN}")

    async def handler(channel, connection_id):
        channel.on("message", lambda message: got.put_nowait(message.data))

    await daemon.expose_service("alice", FQN, handler=handler)
    house.get("conn-s", "main").deliver("a")
    assert await got.get() == "a"
    house.get("conn-s", "main").deliver("b")
    assert await got.get() == "b"


async def test_a_service_goes_on_after_a_restart(place, daemon):
    serving = Serving()
    place.house.add_connection("conn-s", "joe", service=f"alice/{FQN}")
    place.house.get("conn-s", "main").deliver("a")
    await daemon.expose_service("alice", FQN, handler=serving)
    assert (await serving.got.get())[2] == "a"
    await place.house.until(lambda: place.channel(connection_id="conn-s").waiting <= 1)
    await place.restart()
    await daemon.status()
    place.house.get("conn-s", "main").deliver("b")
    place.house.get("conn-s", "second").deliver("c")
    got = [(await serving.got.get())[1:3] for _ in range(2)]
    assert sorted(got) == [("main", "b"), ("second", "c")]


async def test_stopping_a_service_ends_the_wait_for_it(place, daemon):
    service = await daemon.expose_service("alice", FQN)
    waiting = asyncio.create_task(service.wait_closed())
    await service.stop(drain=0)
    assert await waiting == "closed"
    assert place.house.disk.services == {}


async def test_a_service_withdrawn_by_somebody_else_ends_the_wait_for_it(place, daemon):
    service = await daemon.expose_service("alice", FQN)
    async with Daemon(place.path) as other:
        await other.withdraw("alice", FQN)
    assert await service.wait_closed() == "closed"


async def test_other_options_are_a_conflict(place, daemon):
    await daemon.expose_service("alice", FQN, pool_size=1)
    with pytest.raises(RequestRefused) as caught:
        await daemon.expose_service("alice", FQN, pool_size=2)
    assert (caught.value.code, caught.value.data) == ("conflict", {"options": ["pool_size"]})


async def test_a_channel_that_is_free_again_right_after_it_was_in_use_is_served(place, daemon, monkeypatch):
    """The refusal and the event arrive together: the event must not be taken for old news."""
    house, serving = place.house, Serving()
    house.add_connection("conn-s", "joe", service=f"alice/{FQN}")
    await daemon.expose_service("alice", FQN, handler=serving)
    channel = house.get("conn-s", "main")
    open_receiver = channel.open_receiver

    async def refuse_once(mode, listener, takeover):
        monkeypatch.setattr(channel, "open_receiver", open_receiver)
        asyncio.get_running_loop().call_soon(channel.offer)
        raise RequestError("in_use", "just now")

    monkeypatch.setattr(channel, "open_receiver", refuse_once)
    channel.deliver("x")
    assert await serving.got.get() == ("conn-s", "main", "x", 1)


async def test_more_requests_at_once_than_a_daemon_takes_have_their_turns(place, daemon, monkeypatch):
    """Past 64 unanswered requests a daemon refuses; what waits on purpose takes no turn from others."""
    open_now, house_channel = asyncio.Event(), place.house.channel

    async def slow_channel(*args, **more):
        await open_now.wait()
        return await house_channel(*args, **more)

    monkeypatch.setattr(place.house, "channel", slow_channel)
    waits = [asyncio.create_task(daemon.wait("alice-chat")) for _ in range(32)]
    attaching = [asyncio.create_task(daemon.attach("alice-chat", f"label {number}")) for number in range(100)]
    async with Daemon(place.path) as other:
        await other.status()
    open_now.set()
    assert len({(await channel).label for channel in attaching}) == 100
    for wait in waits:
        wait.cancel()
    await asyncio.gather(*waits, return_exceptions=True)


@pytest.mark.parametrize("code", ["too_many_requests", "internal", "store_failed", "disk_full"])
async def test_a_channel_that_is_refused_for_a_while_is_served_then(place, daemon, quick_retries, code):
    house, serving = place.house, Serving()
    house.add_connection("conn-s", "joe", service=f"alice/{FQN}")
    await daemon.expose_service("alice", FQN, handler=serving)
    channel = house.get("conn-s", "main")

    open_receiver = channel.open_receiver

    async def refuse_once(mode, listener, takeover):
        channel.open_receiver = open_receiver
        raise RequestError(code, "not now")

    channel.open_receiver = refuse_once
    channel.deliver("x")
    assert (await serving.got.get())[2] == "x"


class Tidying:
    """A handler that has something to do after its channel has ended."""

    def __init__(self):
        self.calls = 0
        self.ended = asyncio.Event()
        self.done = asyncio.Event()
        self.got = []

    async def __call__(self, channel, connection_id):
        self.calls += 1
        async for message in channel:
            self.got.append(message.data)
        self.ended.set()
        await self.done.wait()


@pytest.fixture
async def tidying(place, daemon):
    """Serves conn-s; the daemon has been restarted since, and offers what is open in its snapshot."""
    tidying = Tidying()
    place.house.add_connection("conn-s", "joe", service=f"alice/{FQN}")
    place.channel(connection_id="conn-s").deliver("a")
    tidying.service = await daemon.expose_service("alice", FQN, handler=tidying)
    await place.house.until(lambda: place.channel(connection_id="conn-s").receiver)
    await place.restart()
    await daemon.status()
    assert place.channel(connection_id="conn-s").receiver is not None
    return tidying


async def test_a_channel_that_was_closed_is_not_opened_again_by_an_old_offer(place, daemon, tidying):
    place.channel(connection_id="conn-s").close_by_peer()
    await tidying.ended.wait()
    tidying.done.set()
    await asyncio.gather(*tidying.service._tasks.values())
    assert tidying.calls == 1
    assert ("conn-s", "main") not in place.house.disk.channels


async def test_a_channel_opened_again_while_its_handler_still_works_is_served_again(place, daemon, tidying):
    place.channel(connection_id="conn-s").close_by_peer()
    place.channel(connection_id="conn-s").deliver("again")
    await tidying.ended.wait()
    await daemon.status()
    tidying.done.set()
    await place.house.until(lambda: place.channel(connection_id="conn-s").receiver)
    await daemon.status()
    assert tidying.calls == 2


async def test_a_channel_that_ended_while_its_handler_was_to_be_tried_again_stays_ended(place, daemon, monkeypatch):
    monkeypatch.setattr(channel_module, "RETRY_FIRST", 0.05)
    house, serving = place.house, Serving()
    serving.failures = 1
    house.add_connection("conn-s", "joe", service=f"alice/{FQN}")
    service = await daemon.expose_service("alice", FQN, handler=serving)
    errors = heard(service, "error")
    channel = house.get("conn-s", "main")
    channel.deliver("x")
    await errors.get()
    channel.close_by_peer()
    await asyncio.gather(*service._tasks.values())
    assert ("conn-s", "main") not in house.disk.channels


async def test_a_channel_taken_over_ends_its_handler_without_an_error(place, daemon, caplog):
    house, serving = place.house, Serving()
    house.add_connection("conn-s", "joe", service=f"alice/{FQN}")
    service = await daemon.expose_service("alice", FQN, handler=serving)
    errors = heard(service, "error")
    house.get("conn-s", "main").deliver("x")
    await serving.got.get()
    async with Daemon(place.path) as other:
        await other.attach("conn-s", "main", takeover=True)
        await asyncio.gather(*service._tasks.values())
    assert errors.empty()
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_what_ended_while_the_socket_was_gone_is_told(place, daemon):
    place.house.add_connection("conn-s", "joe", service=f"alice/{FQN}")
    place.house.add_connection("conn-t", "jim", service=f"alice/{FQN}")
    service = await daemon.expose_service("alice", FQN)
    gone = heard(service, "disconnection")
    await place.stop()
    del place.house.disk.connections["conn-s"]
    await place.start()
    assert (await gone.get())["connection_id"] == "conn-s"
    assert list(service.connections) == ["conn-t"]


async def test_what_was_dropped_while_a_program_did_not_read_is_looked_up(place, daemon):
    house, serving = place.house, Serving()
    house.add_connection("conn-s", "joe", service=f"alice/{FQN}")
    service = await daemon.expose_service("alice", FQN, handler=serving)
    connection = await daemon.connect("bob", FQN, name="bob-chat")
    joined, left, overrun = heard(service, "connection"), heard(service, "disconnection"), heard(connection, "overrun")
    assert await joined.get() == "conn-s"
    await daemon.attach("alice-chat", "bulk")
    (session,) = place.server._sessions
    daemon._wire._transport.pause_reading()
    house.get("conn-a", "bulk").deliver(*[b"x" * 65_536] * 100)
    session.writer.flush()
    assert session.writer.congested
    house.add_connection("conn-t", "jim", service=f"alice/{FQN}")
    house.get("conn-t", "main").deliver("late")
    del house.disk.connections["conn-s"]
    house.events.publish("disconnection", {}, service=f"alice/{FQN}", connection_id="conn-s")
    house.disk.connections[connection.id]["state"] = "failed"
    house.events.publish("state", {"new": "failed"}, connection_id=connection.id)
    daemon._wire._transport.resume_reading()
    assert await joined.get() == "conn-t"
    assert (await left.get())["connection_id"] == "conn-s"
    assert (await serving.got.get())[:3] == ("conn-t", "main", "late")
    await overrun.get()
    await daemon.status()
    assert connection.state == "failed"
    await daemon.status()
    assert len(session.subscriptions) == 2


async def test_a_service_withdrawn_while_its_program_did_not_read_ends(place, daemon):
    service = await daemon.expose_service("alice", FQN)
    place.house.disk.services.clear()
    place.house.events.publish("overrun", {"count": 1}, service=f"alice/{FQN}")
    assert await service.wait_closed() == "closed"


def test_both_ends_work_under_uvloop_too(tmp_path):
    async def exchange():
        place = Place(tmp_path / "rondevud.sock")
        place.house.add_connection("conn-a", "alice-chat")
        await place.start()
        async with Daemon(place.path) as daemon:
            channel = await daemon.attach("alice-chat", "main")
            await asyncio.gather(*(channel.send(b"x" * 65_536) for _ in range(100)))
            place.channel().deliver(*(b"y" * 65_536 for _ in range(100)))
            received = [(await anext(channel)).data for _ in range(100)]
            place.cut()
            assert await channel.send("after") == 101
        await place.stop()
        return received

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(exchange()) == [b"y" * 65_536] * 100
    assert not (tmp_path / "rondevud.sock").exists()
