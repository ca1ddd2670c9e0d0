"""A channel as standard input and output."""

from __future__ import annotations

import io
import json
import signal

import click
import pytest

from rondevud.ctl.framing import BINARY, LINES, NULL


@pytest.fixture
def channel(house):
    return house.get("conn-a", "main")


def sent(channel):
    return [payload for _, payload, _ in channel.stored.outbox]


@pytest.mark.parametrize(
    ("framing", "messages"),
    [
        (LINES, [b"one", b"", b"three"]),
        (NULL, [b"one\ntwo", b"", b"x" * 100_000]),
        (BINARY, [b"one\n\0", b"", b"\xff" * 100_000]),
    ],
)
def test_what_is_joined_is_split_again(framing, messages):
    stream = io.BytesIO(b"".join(map(framing.join, messages)))
    assert list(framing.split(stream)) == messages


@pytest.mark.parametrize(("framing", "end"), [(LINES, b"\n"), (NULL, b"\0")])
def test_the_last_message_needs_no_end(framing, end):
    assert list(framing.split(io.BytesIO(b"one" + end + b"two"))) == [b"one", b"two"]


@pytest.mark.parametrize("data", [b"\0\0", b"\0\0\0\2x"])
def test_half_a_message_is_an_error(data):
    with pytest.raises(click.UsageError, match="ended within a message"):
        list(BINARY.split(io.BytesIO(data)))


async def test_lines_go_out_as_messages_and_messages_come_as_lines(begin, house, channel):
    channel.deliver("waited")
    process = await begin("pipe", "alice-chat", "main")
    assert await process.stdout.readline() == b"waited\n"
    process.stdin.write("grüße\n".encode())
    await house.until(lambda: sent(channel))
    assert sent(channel) == ["grüße"]
    channel.deliver("answer", b"\xff\x00")
    assert await process.stdout.readline() == b"answer\n"
    assert await process.stdout.readline() == b"\xff\x00\n"
    await house.until(lambda: not channel.waiting)


async def test_it_ends_when_the_input_has_ended_and_the_peer_has_everything(begin, house, channel):
    process = await begin("pipe", "alice-chat", "main")
    process.stdin.write(b"one\ntwo")
    process.stdin.write_eof()
    await house.until(lambda: len(sent(channel)) == 2)
    channel.deliver("meanwhile")
    assert await process.stdout.readline() == b"meanwhile\n"
    assert process.returncode is None
    channel.producer.acknowledge(2)
    assert await process.communicate() == (b"", b"")
    assert process.returncode == 0


async def test_it_lingers_for_answers(begin, house, channel):
    process = await begin("pipe", "alice-chat", "main", "--linger", "inf")
    process.stdin.write_eof()
    await house.until(lambda: channel.receiver is not None)
    channel.deliver("answer")
    assert await process.stdout.readline() == b"answer\n"
    process.send_signal(signal.SIGINT)
    assert await process.communicate() == (b"", b"")
    assert process.returncode == 0


async def test_binary_messages_stand_behind_their_length(begin, house, channel):
    process = await begin("pipe", "alice-chat", "main", "--binary")
    process.stdin.write(b"\0\0\0\3a\nb\0\0\0\0")
    await house.until(lambda: len(sent(channel)) == 2)
    assert sent(channel) == [b"a\nb", b""]
    channel.deliver("text\n")
    assert await process.stdout.readexactly(9) == b"\0\0\0\5text\n"


async def test_null_carries_line_feeds(begin, house, channel):
    process = await begin("pipe", "alice-chat", "main", "-0")
    process.stdin.write(b"a\nb\0c")
    process.stdin.write_eof()
    await house.until(lambda: len(sent(channel)) == 2)
    assert sent(channel) == ["a\nb", "c"]
    channel.deliver("x\ny")
    assert await process.stdout.readuntil(b"\0") == b"x\ny\0"


async def test_json_prints_messages_as_tail_does(begin, house, channel):
    process = await begin("--json", "pipe", "alice-chat", "main")
    await house.until(lambda: channel.receiver is not None)
    channel.deliver("one")
    row = json.loads(await process.stdout.readline())
    assert (row["connection_id"], row["label"], row["text"]) == ("conn-a", "main", "one")
    channel.deliver(gap={"first": 2, "next": 5, "count": 3, "reason": "lost"})
    assert json.loads(await process.stdout.readline())["gap"]["count"] == 3


async def test_it_ends_with_the_channel(begin, house, channel):
    process = await begin("pipe", "alice-chat", "main")
    await house.until(lambda: channel.receiver is not None)
    channel.close_by_peer()
    out, err = await process.communicate()
    assert (process.returncode, out) == (0, b"")
    assert b"the channel has ended (closed)" in err


async def test_a_channel_that_somebody_has_is_refused_with_advice(ctl, begin, house, channel):
    await begin("pipe", "alice-chat", "main")
    await house.until(lambda: channel.receiver is not None)
    done = await ctl("pipe", "alice-chat", "main")
    assert done.code == 1
    assert "(in_use)" in done.err
    assert "`tail` looks on" in done.err


async def test_text_that_is_none_is_a_usage_error(ctl, channel):
    done = await ctl("pipe", "alice-chat", "main", stdin=b"fine\n\xff\n")
    assert done.code == 2
    assert "--binary" in done.err


async def test_two_framings_are_a_usage_error(ctl):
    assert (await ctl("pipe", "alice-chat", "main", "--null", "--binary")).code == 2
