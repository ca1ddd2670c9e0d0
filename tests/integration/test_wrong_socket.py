"""Programs that do not play by the rules of the socket, while a stream between others goes on and loses nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource

import msgpack
import pytest

from rondevu_client import MessageRejected
from rondevu_client.protocol import encode_notification, encode_request
from rondevud.config import ConnectionOptions, ServiceOptions
from rondevud.ipc import server as server_module
from rondevud.ipc import session as session_module
from rondevud.ipc import writer
from tests.integration.daemons import FQN, PATIENCE, SCALE, Exchange, exchange_few
from tests.unit.ipc.raw import raw_client

pytestmark = [pytest.mark.webrtc, pytest.mark.once, pytest.mark.timeout(120 * SCALE)]


async def while_messages_pass(pair, wrong, count=1_000):
    exchange = Exchange(pair.near, pair.far, count)

    async def do_wrong():
        await exchange.there.reached(50).wait()
        async with asyncio.timeout(PATIENCE):
            await wrong

    await exchange.run(do_wrong())


async def test_a_client_that_never_reads_makes_nothing_grow_and_holds_nobody_up(pair):
    async def never_read():
        async with raw_client(pair.away.socket) as client:
            try:
                await client.result("attach", target="chat", label="main", mode="observe", credit=2**31)
                await client.result("subscribe")
                client.reader._transport.pause_reading()
                client.write(b"".join(encode_request(msgid, "connections", {}) for msgid in range(1_000, 61_000)))
                await not_read(next(session for session in sessions if session.client_name == "raw"))
            finally:
                client.writer.transport.abort()  # nothing of this is ever sent

    async def not_read(session):
        """Until the daemon reads no more of the client's requests."""
        async with asyncio.timeout(PATIENCE):
            while session._transport.is_reading():
                (row,) = [row for row in await pair.visitor.clients() if row["client"] == "raw"]
                assert row["unread_bytes"] < writer.HOPELESS
        assert writer.STOP_READING < session.writer.unsent < writer.HOPELESS

    sessions = pair.away.house.clients.__self__._sessions
    await while_messages_pass(pair, never_read())
    await exchange_few(pair.near, pair.far)


async def test_a_client_that_sends_byte_by_byte_holds_nobody_up_and_is_understood(pair):
    async def dawdle():
        async with raw_client(pair.away.socket, hello=False) as client:
            await write_slowly(client, encode_request(1, "hello", {"protocol": [1], "client": "snail"}))
            assert (await client.next()).result["protocol"] == 1
            await write_slowly(client, encode_request(2, "attach", {"target": "chat", "label": "slow"}))
            assert (await client.next()).result["handle"] == 1
            await write_slowly(client, encode_notification("send", [1, 1, ["from a snail"]]))
            assert (await client.notification("accepted"))[1] == 1

    async def write_slowly(client, frame):
        """A byte, and then not before another program has had an answer."""
        for position in range(len(frame)):
            client.write(frame[position : position + 1])
            assert len(await pair.visitor.connections()) == 1

    await while_messages_pass(pair, dawdle())


async def test_half_a_frame_and_then_silence_holds_nobody_up_not_even_a_stop(pair):
    frame = encode_notification("send", [1, 1, ["x" * 100_000]])

    async def fall_silent():
        client = await stack.enter_async_context(raw_client(pair.away.socket))
        await client.result("attach", target="chat", label="other")
        client.write(frame[:50_000])
        await client.writer.drain()

    async with contextlib.AsyncExitStack() as stack:
        await while_messages_pass(pair, fall_silent())
        (channel,) = [row for row in await pair.visitor.channels("chat") if row["label"] == "other"]
        assert channel["queue_size"] == 0
        await pair.away.stop()


async def test_a_client_without_a_hello_is_told_so_in_the_end(pair, monkeypatch):
    monkeypatch.setattr(session_module, "HELLO_TIMEOUT", 0.05)

    async def say_nothing():
        async with raw_client(pair.away.socket, hello=False) as client:
            answer = await client.next()
            assert answer.error["code"] == "hello_first"
            assert "no hello within" in answer.error["message"]
            assert await client.next() is None

    await while_messages_pass(pair, say_nothing())


@pytest.mark.parametrize("msgid", [-1, 2**32, "1", None, 1.5, True, [1], b"1"], ids=repr)
async def test_a_msgid_that_is_none_is_named_and_the_next_request_is_answered(world, msgid):
    away = await world.daemon("away")
    async with raw_client(away.socket) as client:
        client.write(msgpack.packb([0, msgid, "ping", [{}]]))
        answer = await client.next()
        assert (answer.msgid, answer.error["code"]) == (None, "bad_message")
        assert "msgid, an integer from 0 to 4294967295" in answer.error["message"]
        assert await client.result("ping") == {}


async def test_options_of_wrong_types_are_named_and_declare_nothing(world):
    away = await world.daemon("away")
    async with raw_client(away.socket) as client:
        for method, model, target in (
            ("expose", ServiceOptions, {"username": "alice", "fqn": FQN}),
            ("connect", ConnectionOptions, {"username": "alice", "fqn": FQN}),
        ):
            for key in model.model_fields:
                error = await client.refused(method, **target, options={key: b"x"})
                assert (error["code"], key in error["message"]) == ("bad_params", True), (key, error)
        assert await client.result("services") == []
        assert await client.result("connections") == []


async def test_the_thousand_and_first_client_is_told_the_limit_and_let_in_when_another_leaves(pair, caplog):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 4_096:
        if hard < 4_096:
            pytest.skip("this system allows too few open files")
        resource.setrlimit(resource.RLIMIT_NOFILE, (4_096, hard))
    most = server_module.MAX_CLIENTS
    caplog.set_level(logging.WARNING, "rondevud.ipc")
    async with contextlib.AsyncExitStack() as stack:
        clients = []

        async def crowd():
            while len(await pair.visitor.clients()) < most:
                clients.append(await stack.enter_async_context(raw_client(pair.away.socket)))
            for _ in range(3):
                async with raw_client(pair.away.socket, hello=False) as refused:
                    answer = await refused.next()
                    assert answer.error["code"] == "too_many_clients"
                    assert f"{most} clients" in answer.error["message"]
                    assert await refused.next() is None

        await while_messages_pass(pair, crowd())
        assert [record.getMessage() for record in caplog.records if "clients are connected" in record.getMessage()] == [
            f"{most} clients are connected: others are refused, the first being pid {os.getpid()}"
        ]
        await clients.pop().close()
        async with asyncio.timeout(PATIENCE):
            while len(await pair.visitor.clients()) == most:
                pass
        async with raw_client(pair.away.socket) as late:
            assert await late.result("ping") == {}


async def test_a_message_over_the_maximum_is_refused_and_the_error_states_it(pair):
    async def send_too_much():
        async with raw_client(pair.away.socket) as client:
            attached = await client.result("attach", target="chat", label="main", mode="send")
            most = attached["max_message"]
            client.notify("send", attached["handle"], 1, ["x" * (most + 1)])
            _, seq, code, message = await client.notification("rejected")
            assert (seq, code, message) == (1, "too_large", f"{most + 1} bytes are more than the {most} of max_message")

    await while_messages_pass(pair, send_too_much())
    with pytest.raises(MessageRejected, match=f"{pair.near.max_message}") as rejected:
        await pair.near.send(b"x" * (pair.near.max_message + 1))
    assert rejected.value.code == "too_large"


async def test_sending_on_a_closed_channel_is_refused_by_name_and_others_go_on(pair):
    async def send_after_the_end():
        async with raw_client(pair.away.socket) as client:
            handle = (await client.result("attach", target="chat", label="short"))["handle"]
            await client.result("close_channel", target="chat", label="short")
            client.notify("send", handle, 1, ["too late"])
            while (frame := await client.next()).method not in {"rejected", "detached"}:
                pass
            assert frame.params[-2 if frame.method == "rejected" else -1] == "closed"

    await while_messages_pass(pair, send_after_the_end())


@pytest.mark.parametrize(
    ("label", "code"),
    [
        ("", "bad_params"),
        ("x" * 256, "bad_params"),
        ("ä" * 128, "bad_params"),
        ("rondevu-service", "reserved_label"),
        ("rondevu.link", "reserved_label"),
    ],
    ids=["empty", "256 bytes", "256 bytes in 128 characters", "the service's", "the link's"],
)
async def test_labels_that_cannot_be_are_refused(pair, label, code):
    async with raw_client(pair.away.socket) as client:
        error = await client.refused("attach", target="chat", label=label)
        assert error["code"] == code
        assert "label" in error["message"]
        assert [row["label"] for row in await client.result("channels", target="chat")] == ["main"]
