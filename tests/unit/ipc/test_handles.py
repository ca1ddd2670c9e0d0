"""What a handle does: window, confirmations, credit, order, a client that does not read."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from rondevu_client.messages import SEND_WINDOW, SEND_WINDOW_BYTES
from rondevu_client.protocol import encode_request
from rondevud.events import EventBus
from rondevud.ipc import writer
from tests.unit.ipc.raw import raw_client


@pytest.fixture
def channel(house):
    return house.get("conn-a", "main")


async def attach(client, **params):
    return await client.result("attach", target="conn-a", label="main", **params)


async def rejections(client, count):
    return [(await client.notification("rejected"))[1:3] for _ in range(count)]


async def test_attach_answers_what_the_specification_names(client, channel):
    channel.deliver("early")
    answer = await attach(client, producer=b"me")
    assert answer == {
        "handle": 1,
        "connection_id": "conn-a",
        "state": "open",
        "verdict": {"in": "new", "out": "new"},
        "waiting": 1,
        "waiting_bytes": 5,
        "last_seq": 0,
        "rejected": [],
        "acknowledged_seq": 0,
        "removed": 0,
        "acknowledges": True,
        "ephemeral": False,
        "send_window": 1024,
        "max_message": 1024 * 1024,
    }


async def test_sends_are_stored_in_order_with_their_age_and_accepted(client, channel):
    handle = (await attach(client))["handle"]
    client.notify("send", handle, 1, ["a", b"b"])
    client.notify("send", handle, 3, ["c"], {"max_age": 5})
    while (await client.notification("accepted"))[1] < 3:
        pass
    assert channel.stored.outbox == [(1, "a", None), (2, b"b", None), (3, "c", 5.0)]


async def test_bad_payloads_cost_themselves_only(client, channel):
    handle = (await attach(client, producer=b"me"))["handle"]
    client.notify("send", handle, 1, ["a", 5, None, ["x"], "y" * (1024 * 1024 + 1), "é" * (512 * 1024), "b"])
    assert await rejections(client, 4) == [[2, "bad_payload"], [3, "bad_payload"], [4, "bad_payload"], [5, "too_large"]]
    assert (await client.notification("accepted")) == [handle, 7]
    assert [seq for seq, _, _ in channel.stored.outbox] == [1, 6, 7]
    assert dict(channel.stored.producers[b"me"].rejected)[5] == "too_large"


@pytest.mark.parametrize(
    "options", [{"maxage": 5}, {"max_age": 0}, {"max_age": -1}, {"max_age": "5"}, {"max_age": True}]
)
async def test_a_bad_option_rejects_its_frame(client, channel, options):
    handle = (await attach(client))["handle"]
    client.notify("send", handle, 1, ["a", "b"], options)
    client.notify("send", handle, 3, ["c"])
    assert await rejections(client, 2) == [[1, "bad_option"], [2, "bad_option"]]
    while (await client.notification("accepted"))[1] < 3:
        pass
    assert channel.stored.outbox == [(3, "c", None)]


async def test_numbers_begin_at_1(client, channel):
    handle = (await attach(client))["handle"]
    client.notify("send", handle, 0, ["a"])
    assert "from 1" in (await client.next()).error["message"]
    client.notify("send", handle, 2**63 - 1, ["a", "b"])
    assert "from 1" in (await client.next()).error["message"]
    assert channel.stored.outbox == []


async def test_more_messages_than_the_window_are_rejected_until_some_are_decided(client, channel):
    channel.hold = True
    handle = (await attach(client, producer=b"me"))["handle"]
    client.notify("send", handle, 1, ["x"] * (SEND_WINDOW + 2))
    assert await rejections(client, 2) == [[SEND_WINDOW + 1, "window"], [SEND_WINDOW + 2, "window"]]
    channel.release()
    assert await client.notification("accepted") == [handle, SEND_WINDOW + 2]
    client.notify("send", handle, SEND_WINDOW + 3, ["x"])
    assert await client.notification("accepted") == [handle, SEND_WINDOW + 3]
    assert channel.stored.producers[b"me"].rejected == [(SEND_WINDOW + 1, "window"), (SEND_WINDOW + 2, "window")]


async def test_more_bytes_than_the_window_are_rejected_but_one_message_always_goes(client, channel):
    channel.max_message = 8 * 2**20
    channel.hold = True
    handle = (await attach(client))["handle"]
    client.notify("send", handle, 1, [b"x" * (5 * 2**20), b"y"])
    assert await rejections(client, 1) == [[2, "window"]]


@pytest.mark.parametrize("kind", [bytes, str])
async def test_numbers_that_come_again_and_out_of_order_leave_the_window_as_it_was(client, channel, kind):
    channel.max_message = 8 * 2**20
    channel.hold = True
    handle = (await attach(client))["handle"]
    payload = b"x" * 1_000 if kind is bytes else "x" * 1_000
    for first, count in [(10, 1), (13, 1), (12, 1), (3, 1), (9, 6)]:
        client.notify("send", handle, first, [payload] * count)
    await client.result("ping")
    channel.release()
    assert await client.notification("accepted") == [handle, 14]
    quarter = payload * (SEND_WINDOW_BYTES // 4 // 1_000)
    client.notify("send", handle, 15, [quarter] * 4 + ["é"])
    assert await client.notification("accepted") == [handle, 19]
    client.notify("send", handle, 20, ["y"] * SEND_WINDOW)
    assert await client.notification("accepted") == [handle, 19 + SEND_WINDOW]
    stored = [seq for seq, _, _ in channel.stored.outbox]
    assert stored[-SEND_WINDOW - 5 :] == list(range(15, 20 + SEND_WINDOW)), "nothing was beyond the window"


async def test_a_dead_handle_is_ignored(client, channel):
    handle = (await attach(client))["handle"]
    assert await client.result("detach", handle=handle) == {}
    for frame in (("send", handle, 1, ["x"]), ("ack", handle, 1), ("credit", handle, 1)):
        client.notify(*frame)
    assert await client.result("detach", handle=handle) == {}
    assert client.frames == []
    assert channel.stored.outbox == []


async def test_modes_say_who_sends_and_who_receives(client, channel):
    sender = (await attach(client, mode="send"))["handle"]
    observer = (await attach(client, mode="observe", credit=5))["handle"]
    client.notify("credit", sender, 1)
    assert "only sends" in (await client.next()).error["message"]
    client.notify("send", observer, 1, ["x"])
    assert "only receives" in (await client.next()).error["message"]
    channel.deliver("copied")
    assert (await client.notification("message"))[0] == observer
    assert channel.waiting == 1


async def test_an_observer_without_credit_is_told_how_many_it_missed(client, channel):
    observer = (await attach(client, mode="observe", credit=1))["handle"]
    channel.deliver("a", "b")
    assert (await client.notification("message"))[2][0][0] == "a"
    while (event := await client.notification("event"))[2] == "channel":
        pass
    assert event[2:4] == ["overrun", {"count": 1}]
    client.notify("credit", observer, 1)
    await client.result("ping")
    channel.deliver("c")
    assert (await client.notification("message"))[2][0][0] == "c"


async def test_messages_come_within_the_credit_and_until_acknowledged_again(client, channel):
    channel.deliver("a", "b", "c")
    handle = (await attach(client, credit=2))["handle"]
    assert await client.notification("message") == [handle, 1, [["a", "00ff-1", 1_700_000_000.5, 1]]]
    assert await client.notification("message") == [handle, 2, [["b", "00ff-2", 1_700_000_000.5, 1]]]
    client.notify("ack", handle, 1)
    await client.result("detach", handle=handle)
    assert client.frames == []
    handle = (await attach(client, credit=9))["handle"]
    assert (await client.notification("message"))[2] == [["b", "00ff-2", 1_700_000_000.5, 2]]
    assert (await client.notification("message"))[2] == [["c", "00ff-3", 1_700_000_000.5, 1]]


async def test_tags_never_given_cannot_be_acknowledged(client, channel):
    channel.deliver("a")
    handle = (await attach(client, credit=1))["handle"]
    await client.notification("message")
    client.notify("ack", handle, 2)
    assert "no tag above 1" in (await client.next()).error["message"]
    assert channel.waiting == 1


@pytest.mark.parametrize("n", [0, 2**31 + 1])
async def test_credit_has_bounds(client, channel, n):
    handle = (await attach(client))["handle"]
    client.notify("credit", handle, n)
    assert "n is from 1" in (await client.next()).error["message"]


async def test_a_second_receiver_or_producer_is_refused_or_takes_over(client, server, path, channel):
    handle = (await attach(client, producer=b"me"))["handle"]
    async with raw_client(path) as other:
        params = {"target": "conn-a", "label": "main"}
        assert (await other.refused("attach", **params, producer=b"you"))["code"] == "in_use"
        assert (await other.refused("attach", **params, mode="send", producer=b"me"))["code"] == "producer_in_use"
        await other.result("attach", **params, producer=b"me", takeover=True)
        assert await client.notification("detached") == [handle, "taken_over"]
    assert await client.result("ping") == {}
    assert client.frames == []


async def test_a_refused_attach_leaves_nothing_behind(client, server, path, channel):
    await attach(client, mode="send", producer=b"me")
    async with raw_client(path) as other:
        error = await other.refused("attach", target="conn-a", label="main", producer=b"me")
        assert error["code"] == "producer_in_use"
        assert channel.receiver is None
        await other.result("attach", target="conn-a", label="main", producer=b"you")


async def test_acknowledged_and_removed_come_to_who_asked(client, channel):
    await attach(client, mode="send", producer=b"quiet")
    asked = (await attach(client, mode="send", producer=b"asked", acknowledged=True))["handle"]
    for producer in list(channel.producers.values()):
        producer.remove(1, 2, "expired")
        producer.acknowledge(3)
    assert await client.notification("removed") == [1, 1, 2, "expired"]
    assert await client.notification("removed") == [asked, 1, 2, "expired"]
    assert await client.notification("acknowledged") == [asked, 3]
    await client.result("ping")
    assert client.frames == []


async def test_sent_comes_to_who_asked_and_never_behind_what_acknowledges_more(client, channel):
    await attach(client, mode="send", producer=b"quiet", acknowledged=True)
    asked = (await attach(client, mode="send", producer=b"asked", acknowledged=True, confirm_sent=True))["handle"]
    for producer in list(channel.producers.values()):
        producer.hand_over(2)
        producer.hand_over(3)
        producer.acknowledge(3)
    assert await client.notification("acknowledged") == [1, 3]
    assert await client.notification("sent") == [asked, 2]
    assert await client.notification("sent") == [asked, 3]
    assert await client.notification("acknowledged") == [asked, 3]
    await client.result("ping")
    assert client.frames == []


async def test_a_handle_hears_when_little_is_under_way_if_it_asked_and_nobody_else_does(client, channel):
    await attach(client, mode="send", producer=b"quiet")
    asked = (await attach(client, mode="send", producer=b"asked", threshold=100))["handle"]
    (watch,) = channel.watches
    for amount in (50, 101, 100, 99, 500, 0):
        watch.see(amount)
    await client.result("threshold", handle=asked, bytes=10)
    for amount in (50, 20, 10):
        watch.see(amount)
    got = [await client.notification("event") for _ in range(3)]
    assert {(handle, name) for handle, _, name, *_ in got} == {(asked, "buffered_amount_low")}
    assert [params[3]["buffered_amount"] for params in got] == [100, 0, 10]
    await client.result("detach", handle=asked)
    assert (channel.watches, client.frames) == ([], [])


async def test_a_threshold_needs_a_handle_that_sends(client, channel):
    handle = (await attach(client, mode="observe"))["handle"]
    error = await client.refused("threshold", handle=handle, bytes=5)
    assert (error["code"], error["message"]) == ("bad_params", f"handle {handle} only receives")
    assert (await client.refused("threshold", handle=99, bytes=5))["code"] == "unknown_handle"


async def test_a_handle_hears_its_channel_and_connection_and_no_other(client, house, channel):
    house.add_connection("conn-b", "bob")
    handle = (await attach(client))["handle"]
    house.events.publish("open", {"acknowledges": True}, connection_id="conn-a", label="other")
    house.events.publish("state", {"new": "x"}, connection_id="conn-b")
    house.events.publish("open", {"acknowledges": True}, connection_id="conn-a", label="main")
    house.events.publish("suspect", connection_id="conn-a")
    house.events.publish("stopping", {"restarting": False})
    got = [(await client.notification("event"))[:3] for _ in range(3)]
    assert [(number, name) for number, _, name in got] == [(handle, "open"), (handle, "suspect"), (handle, "stopping")]
    assert [event for _, event, _ in got] == [3, 4, 5]


async def test_a_subscription_and_its_snapshot_are_complete_together(client, house, channel):
    house.events.publish("before", connection_id="conn-a")
    answer = await client.result("subscribe", target="conn-a")
    assert answer["next"] == 2
    assert [row["connection_id"] for row in answer["connections"]] == ["conn-a"]
    house.events.publish("after", connection_id="conn-a")
    assert (await client.notification("event"))[1:3] == [2, "after"]
    await client.result("unsubscribe", subscription=answer["subscription"])
    house.events.publish("later", connection_id="conn-a")
    await client.result("ping")
    assert client.frames == []


async def test_since_brings_what_was_kept_and_says_what_was_not(client, house):
    for name in ("one", "two", "three"):
        house.events.publish(name, connection_id="conn-a")
    await client.result("subscribe", since=2)
    assert [(await client.notification("event"))[2] for _ in range(2)] == ["two", "three"]


async def test_an_event_says_when_it_happened_and_not_when_it_is_told(client, house):
    times = iter([1767225600.5, 1767225601.5])
    house.events = EventBus(clock=lambda: next(times))
    for name in ("one", "two"):
        house.events.publish(name, connection_id="conn-a")
    await client.result("subscribe", since=1)
    assert [(await client.notification("event"))[4] for _ in range(2)] == [1767225600.5, 1767225601.5]


async def test_events_that_are_kept_no_longer_are_named_before_all_others(client, house):
    house.events = EventBus(history=2)
    for name in ("one", "two", "three", "four"):
        house.events.publish(name, connection_id="conn-a")
    subscription = (await client.result("subscribe", since=1))["subscription"]
    told = [await client.notification("event") for _ in range(3)]
    assert told[0][:4] == [subscription, 2, "overrun", {"count": 2, "from": 1, "to": 2}]
    assert [event[1:3] for event in told[1:]] == [[3, "three"], [4, "four"]]


async def test_that_events_are_missing_is_said_at_once_where_none_of_the_target_is_kept(client, house):
    house.events = EventBus(history=1)
    for _ in range(3):
        house.events.publish("other", connection_id="conn-b")
    await client.result("subscribe", target="alice-chat", since=1)
    assert (await client.notification("event"))[2:4] == ["overrun", {"count": 2, "from": 1, "to": 2}]


async def test_a_number_above_all_others_was_counted_by_an_earlier_start(client, house):
    house.events.publish("one", connection_id="conn-a")
    await client.result("subscribe", since=500)
    told = [await client.notification("event") for _ in range(2)]
    assert told[0][1:4] == [0, "overrun", {"count": None, "from": 500, "to": None}]
    assert told[1][1:3] == [1, "one"]


async def test_a_number_that_comes_next_is_nothing_missing(client, house):
    await client.result("subscribe", since=house.events.next)
    house.events.publish("next", connection_id="conn-a")
    assert (await client.notification("event"))[2] == "next"


async def test_a_client_that_does_not_read_is_not_produced_for(client, server, channel, house):
    """Deliveries stop at the write buffer's mark, confirmations merge, events are counted; reading brings it all."""
    handle = (await attach(client, credit=10_000))["handle"]
    subscription = (await client.result("subscribe"))["subscription"]
    client.writer.transport.pause_reading()
    (session,) = server._sessions
    for _ in range(200):
        channel.deliver(b"x" * 65_536)
    session.writer.flush()
    assert session.writer.congested
    assert session.writer.unsent < 2 * writer.HIGH_WATER
    delivered = channel.receiver.next
    assert delivered < 100
    before = session.writer.unsent
    for number in range(5000):
        house.events.publish("state", {"new": str(number)}, connection_id="conn-a")
    for number in range(1, 2000):
        channel.producer.listener.accepted(number)
    assert session.writer.unsent == before
    client.writer.transport.resume_reading()
    tags = 0
    while tags < 200:
        frame = await client.next()
        if frame.method == "message":
            tags += len(frame.params[2])
        elif frame.method == "accepted":
            assert frame.params == [handle, 1999]
        else:
            assert frame.params[0] in {handle, subscription}
            assert frame.params[1:4] == [5000, "overrun", {"count": 5000, "from": 1, "to": 5000}]


async def test_a_client_that_reads_again_gets_what_its_handles_have_in_turns(client, server, house):
    """Twelve handles with 2 MiB each: resumed all at once they would pass what a client is given up at."""
    for number in range(12):
        await client.result("attach", target="conn-a", label=str(number), credit=10_000)
    (session,) = server._sessions
    for number in range(12):
        house.get("conn-a", str(number)).deliver(*[b"x" * 65_536] * 32)
    session.writer.flush()
    assert session.writer.congested
    client.writer.transport.resume_reading()
    for _ in range(12 * 32):
        await client.notification("message")
        assert session.writer.unsent < 3 * writer.HIGH_WATER


async def test_a_bug_while_a_client_that_reads_again_goes_on_closes_its_socket(client, server, house, caplog):
    for label in ("broken", "behind it"):
        await client.result("attach", target="conn-a", label=label, credit=10_000)
    (session,) = server._sessions
    house.get("conn-a", "broken").receiver.resume = lambda: 1 / 0
    house.get("conn-a", "behind it").deliver(*[b"x" * 65_536] * 100)
    session.writer.flush()
    assert session.writer.congested
    client.writer.transport.resume_reading()
    frame = None
    while (later := await client.next()) is not None:
        frame = later
    assert (frame.msgid, frame.error["code"]) == (None, "internal")
    assert "ZeroDivisionError" in caplog.text


async def test_a_client_that_asks_and_never_reads_is_not_read_any_more(server, path, house):
    async def answer_much(_target):
        house.changed.set()
        return {"why": "x" * 60_000}

    house.why = answer_much
    async with raw_client(path) as client:
        client.reader._transport.pause_reading()
        (session,) = server._sessions
        for msgid in range(200):
            client.write(encode_request(msgid, "why", {"target": "conn-a"}))
        await house.until(lambda: not session._transport.is_reading())
        assert session.writer.unsent < writer.HOPELESS


async def test_a_client_that_asks_for_too_much_at_once_is_given_up_before_it_is_all_answered(server, path, house):
    house.connections = lambda: [{"name": "x" * 60_000}]
    async with raw_client(path) as client:
        client.reader._transport.pause_reading()
        (session,) = server._sessions
        answered, write = [], session.writer.write
        session.writer.write = lambda frame: (answered.append(len(frame)), write(frame))
        session.data_received(b"".join(encode_request(msgid, "connections", {}) for msgid in range(5_000)))
        assert sum(answered) < 2 * writer.HOPELESS
        await server._wait_until_alone()
        client.writer.transport.abort()


async def test_nothing_overtakes_the_answer_to_an_attach(client, channel, monkeypatch):
    open_receiver = channel.open_receiver
    listeners = []

    async def open_and_talk(mode, listener, takeover):
        listeners.append(listener)
        return await open_receiver(mode, listener, takeover)

    open_producer = channel.open_producer

    async def open_and_confirm(name, listener, takeover):
        producer = await open_producer(name, listener, takeover)
        listener.removed(1, 1, "expired")
        listener.accepted(2)
        return producer

    monkeypatch.setattr(channel, "open_receiver", open_and_talk)
    monkeypatch.setattr(channel, "open_producer", open_and_confirm)
    client.write(encode_request(50, "attach", {"target": "conn-a", "label": "main"}))
    answer = await client.next()
    assert answer.msgid == 50
    assert (await client.next()).method == "removed"
    assert (await client.next()).params == [1, 2]


async def test_a_channel_taken_away_while_it_is_attached_is_an_error(client, channel, monkeypatch):
    open_producer = channel.open_producer

    async def open_and_lose(name, listener, takeover):
        producer = await open_producer(name, listener, takeover)
        channel.receiver.close()
        listener.detached("taken_over")
        return producer

    monkeypatch.setattr(channel, "open_producer", open_and_lose)
    error = await client.refused("attach", target="conn-a", label="main")
    assert error["code"] == "detached"
    assert not channel.producers
    assert client.frames == []


async def test_a_half_opened_after_its_socket_broke_is_closed(server, house, path, channel, monkeypatch):
    """Whoever opens a producer may finish although it was cancelled."""
    open_producer, began, proceed = channel.open_producer, asyncio.Event(), asyncio.Event()

    async def open_late(name, listener, takeover):
        began.set()
        with contextlib.suppress(asyncio.CancelledError):
            await proceed.wait()
        return await open_producer(name, listener, takeover)

    monkeypatch.setattr(channel, "open_producer", open_late)
    async with raw_client(path) as client:
        client.write(encode_request(50, "attach", {"target": "conn-a", "label": "main", "producer": b"me"}))
        await began.wait()
    house.changed.clear()
    await house.changed.wait()
    await house.until(lambda: house.gone and not channel.producers)
    assert channel.receiver is None
