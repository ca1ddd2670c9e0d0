"""Sending, and looking on."""

from __future__ import annotations

import json
import os
import re
import signal

import pytest

from rondevu_client.stream import Event
from rondevud.ctl.events import describe
from rondevud.events import EventBus

pytestmark = pytest.mark.once


@pytest.fixture
def channel(house):
    return house.get("conn-a", "main")


def sent(channel):
    return [payload for _, payload, _ in channel.stored.outbox]


async def observing(house, channel, count=1):
    await house.until(lambda: len(channel.observers) == count)


# --- send ------------------------------------------------------------------------------------------------------------


async def test_text_is_one_message_and_the_answer_counts_it(ctl, channel):
    done = await ctl("--json", "send", "alice-chat", "main", "hello")
    assert done.code == 0
    assert json.loads(done.out) == {
        "connection_id": "conn-a", "label": "main", "messages": 1, "bytes": 5, "state": "accepted"
    }  # fmt: skip
    assert sent(channel) == ["hello"]


@pytest.mark.parametrize("args", [(), ("-",)])
async def test_standard_input_is_one_message(ctl, channel, args):
    await ctl("send", "alice-chat", "main", *args, stdin=b"one\ntwo\n")
    assert sent(channel) == ["one\ntwo\n"]


async def test_lines_are_one_message_each_in_order(ctl, channel):
    lines = [f"line {n}" for n in range(1000)]
    done = await ctl("--json", "send", "alice-chat", "main", "-", "--lines", stdin="\n".join(lines).encode())
    assert json.loads(done.out)["messages"] == 1000
    assert sent(channel) == lines


async def test_lines_are_sent_as_they_come(begin, house, channel):
    process = await begin("send", "alice-chat", "main", "--lines")
    await house.until(lambda: channel.producers)
    process.stdin.write(b"first\n")
    await process.stdin.drain()
    await house.until(lambda: sent(channel))
    assert sent(channel) == ["first"]
    process.stdin.write_eof()
    assert await process.wait() == 0


async def test_binary_sends_bytes(ctl, channel):
    await ctl("send", "alice-chat", "main", "--binary", stdin=b"\xff\x00")
    assert sent(channel) == [b"\xff\x00"]


@pytest.mark.parametrize("more", [(), ("--lines",)])
async def test_bytes_that_are_no_text_need_binary(ctl, channel, more):
    done = await ctl("send", "alice-chat", "main", "-", *more, stdin=b"abc\xff")
    assert done.code == 2
    assert "not UTF-8 text (byte 3)" in done.err
    assert sent(channel) == []


async def test_waiting_for_acknowledged_ends_when_the_peer_has_it(begin, house, channel):
    process = await begin("--json", "send", "alice-chat", "main", "hello", "--wait", "acknowledged")
    await house.until(lambda: sent(channel))
    assert process.returncode is None
    channel.producer.acknowledge(1)
    out, _ = await process.communicate()
    assert (process.returncode, json.loads(out)["state"]) == (0, "acknowledged")


async def test_waiting_for_sent_ends_when_it_has_been_handed_over(begin, house, channel):
    process = await begin("--json", "send", "alice-chat", "main", "hello", "--wait", "sent")
    await house.until(lambda: sent(channel))
    assert process.returncode is None
    channel.producer.hand_over(1)
    out, _ = await process.communicate()
    assert (process.returncode, json.loads(out)["state"]) == (0, "sent")


async def test_a_time_out_is_exit_code_4_and_says_how_much_is_missing(ctl, channel):
    done = await ctl("send", "alice-chat", "main", "hello", "--wait", "acknowledged", "--timeout", "0.05")
    assert (done.code, done.out) == (4, "")
    assert "not acknowledged in 0.05 s: 1 of 1 messages" in done.err
    assert sent(channel) == ["hello"]


async def test_a_rejected_message_is_exit_code_1(ctl, channel):
    channel.refused.add("no")
    done = await ctl("send", "alice-chat", "main", "no")
    assert (done.code, done.out) == (1, "")
    assert "queue_full" in done.err


async def test_lines_with_a_text_is_a_usage_error(ctl):
    assert (await ctl("send", "alice-chat", "main", "text", "--lines")).code == 2


# --- tail ------------------------------------------------------------------------------------------------------------


async def test_tail_prints_text_as_it_is_and_takes_it_from_nobody(begin, house, channel):
    process = await begin("tail", "alice-chat", "main")
    await observing(house, channel)
    channel.deliver("grüße \x1b[1m", b"\x00\xff")
    assert await process.stdout.readline() == "grüße \x1b[1m\n".encode()
    assert await process.stdout.readline() == b"b'\\x00\\xff'\n"
    assert channel.waiting == 2


async def test_tail_with_json_prints_a_line_for_each_message(begin, house, channel):
    process = await begin("--json", "tail", "alice-chat", "main")
    await observing(house, channel)
    channel.deliver("text", b"\x00\xff")
    common = {"connection_id": "conn-a", "label": "main", "enqueued_at": 1_700_000_000.5, "attempt": 1}
    assert json.loads(await process.stdout.readline()) == {**common, "id": "00ff-1", "text": "text"}
    assert json.loads(await process.stdout.readline()) == {**common, "id": "00ff-2", "base64": "AP8="}


async def test_tail_says_what_it_missed(begin, house, channel):
    process = await begin("tail", "alice-chat", "main")
    await observing(house, channel)
    channel.deliver("shown")
    await process.stdout.readline()
    channel.observers[0].listener.missed(3)
    assert b"3 messages" in await process.stderr.readline()


async def test_tail_ends_at_ctrl_c_without_a_word(begin, house, channel):
    process = await begin("tail", "alice-chat", "main")
    await observing(house, channel)
    channel.deliver("shown")
    await process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert await process.communicate() == (b"", b"")
    assert process.returncode == 0


@pytest.mark.parametrize("command", [("tail", "alice-chat", "main"), ("events",)])
async def test_following_ends_when_its_reader_goes_away_though_nothing_comes(begin, house, channel, command):
    reading, writing = os.pipe()
    process = await begin(*command, stdout=writing)
    os.close(writing)
    if command[0] == "tail":
        await observing(house, channel)
    os.close(reading)
    assert await process.wait() == 0
    assert await process.stderr.read() == b""


async def test_tail_of_a_channel_that_is_not_there_is_refused(ctl):
    done = await ctl("tail", "alice-chat", "nothing")
    assert (done.code, done.out) == (1, "")
    assert "unknown_channel" in done.err


async def test_tail_goes_on_after_a_restart_of_the_daemon(begin, house, channel, server, path):
    process = await begin("tail", "alice-chat", "main")
    await observing(house, channel)
    await server.stop()
    assert b"is gone" in await process.stderr.readline()
    channel.observers.clear()
    again = type(server)(house, path=path)
    await again.start()
    await observing(house, channel)
    channel.deliver("after")
    assert await process.stdout.readline() == b"after\n"
    process.send_signal(signal.SIGINT)
    await process.wait()
    await again.stop()


# --- events ----------------------------------------------------------------------------------------------------------


async def test_events_are_printed_from_the_number_asked_for(begin, house):
    house.events = EventBus(clock=lambda: 1767225600.5)
    house.events.publish("state", {"new": "connected", "previous": "connecting"}, connection_id="conn-a")
    process = await begin("--json", "events", "alice-chat", "--since", "1")
    assert json.loads(await process.stdout.readline()) == {
        "number": 1,
        "at": 1767225600.5,
        "name": "state",
        "data": {"new": "connected", "previous": "connecting", "connection_id": "conn-a"},
        "instance": house.instance,
    }


async def test_events_of_an_earlier_start_are_told_as_missing_and_the_present_ones_follow(begin, house):
    house.events.publish("state", connection_id="conn-a")
    process = await begin("--json", "events", "--since", "1", "--instance", "an earlier one")
    lines = [json.loads(await process.stdout.readline()) for _ in range(2)]
    assert [(line["number"], line["name"]) for line in lines] == [(0, "overrun"), (1, "state")]
    assert lines[0]["data"] == {"count": None, "from": 1, "to": None}


async def test_an_event_is_a_line_with_its_subject_and_facts(begin, house):
    house.events.publish("state", {"new": "connected", "previous": "connecting"}, connection_id="conn-a", label="x")
    process = await begin("events", "--since", "1")
    line = (await process.stdout.readline()).decode()
    assert re.fullmatch(r"\d\d:\d\d:\d\d  1  state  conn-a/x  new=connected previous=connecting\n", line)
    house.events.publish("later")
    assert re.fullmatch(r"\d\d:\d\d:\d\d  2  later\n", (await process.stdout.readline()).decode())


@pytest.mark.parametrize(
    ("before", "text"),
    [(0, r"\d\d:\d\d:\d\d"), (86_400, r"\d\d-\d\d \d\d:\d\d:\d\d"), (None, "--:--:--")],
)
def test_a_line_says_when_its_event_happened(before, text):
    now = 1767225600.5
    event = Event(7, "stopping", {"restarting": True}, None if before is None else now - before)
    assert re.fullmatch(f"{text}  7  stopping  restarting=yes", describe(event, today=now))
