"""Misuse of the socket: each gets an error that names it, and disturbs nobody else."""

from __future__ import annotations

import asyncio
import gc

import msgpack
import pytest

from rondevu_client.errors import CODES
from rondevu_client.protocol import FRAME_OVERHEAD, Response, encode_request
from rondevud.errors import StoreFailed
from rondevud.ipc import session as session_module
from rondevud.ipc.handle import Handle
from tests.unit.ipc.raw import raw_client


async def test_hello_tells_who_answers(server, path):
    async with raw_client(path, hello=False) as client:
        answer = await client.result("hello", protocol=[1, 2], client="me")
        assert answer.pop("features") == ["shared", "sent", "threshold"]
        assert answer == {"protocol": 1, "version": "0.1.0", "instance": "first"}
        (row,) = await client.result("clients")
        assert row["client"] == "me"


async def test_hello_comes_first_and_must_share_a_version(server, path):
    async with raw_client(path, hello=False) as client:
        assert (await client.refused("ping"))["code"] == "hello_first"
        error = await client.refused("hello", protocol=[2])
        assert error["code"] == "unsupported_protocol"
        assert error["data"] == {"protocol": [1]}
        await client.hello()
        assert await client.result("ping") == {}


@pytest.mark.parametrize(
    ("method", "params", "code", "words"),
    [
        ("pnig", {}, "unknown_method", "no method 'pnig'"),
        ("attach", {"target": "a"}, "bad_params", "attach lacks the parameter label"),
        ("attach", {"target": "a", "label": 5}, "bad_params", "attach: label must be text"),
        ("attach", {"target": "a", "label": ""}, "bad_params", "attach: label must be text of 1"),
        ("attach", {"target": "a", "label": "l", "modus": 1}, "bad_params", "no parameter 'modus'; it has: target"),
        (
            "attach",
            {"target": "a", "label": "l", "mode": "loud"},
            "bad_params",
            "one of exclusive, shared, observe, send",
        ),
        ("attach", {"target": "a", "label": "l", "credit": True}, "bad_params", "credit must be an integer from 0"),
        ("attach", {"target": "a", "label": "l", "credit": 2**31 + 1}, "bad_params", "credit must be an integer"),
        ("attach", {"target": "a", "label": "l", "producer": b""}, "bad_params", "binary of 1 to 64 bytes"),
        ("attach", {"target": "a", "label": "l", "producer": b"x" * 65}, "bad_params", "binary of 1 to 64 bytes"),
        ("attach", {"target": "a", "label": "l", "options": []}, "bad_params", "a map"),
        ("attach", {"target": "nobody", "label": "l"}, "unknown_target", "nobody"),
        ("attach", {"target": "conn-a", "label": "l", "mode": "observe"}, "unknown_channel", "no channel 'l'"),
        ("attach", {"target": "service:a/b", "label": "l"}, "bad_target", "only be observed"),
        ("detach", {"handle": 77}, "unknown_handle", "77"),
        ("unsubscribe", {"subscription": 77}, "unknown_handle", "77"),
        ("connect", {"username": "a"}, "bad_params", "not username"),
        ("connect", {"username": "a", "fqn": "b@1", "uuid": "u"}, "bad_params", "username and fqn, or uuid"),
        ("wait", {"target": "conn-a", "for": "godot"}, "bad_params", "one of connected, drained"),
        ("close", {"target": "conn-a", "drain": -1}, "bad_params", "seconds"),
        ("close", {"target": "conn-a", "drain": float("nan")}, "bad_params", "seconds"),
        ("withdraw", {"username": "a", "fqn": "b", "keep_connections": 1}, "bad_params", "true or false"),
        ("subscribe", {"target": "nobody"}, "unknown_target", "nobody"),
        ("reconnect", {"target": "conn-a"}, "internal", "log"),
    ],
)
async def test_a_wrong_request_is_named_and_the_next_one_is_fine(client, method, params, code, words):
    error = await client.refused(method, **params)
    assert error["code"] == code
    assert words in error["message"]
    assert code in CODES
    assert await client.result("ping") == {}


@pytest.mark.parametrize("params", [[], [1], [{}, {}], ["x"]])
async def test_parameters_are_one_map(client, params):
    client.write(msgpack.packb([0, 9, "status", params]))
    assert (await client.next()).error["code"] == "bad_params"


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (5, "array"),
        ([2, "sned", [1]], "no notification"),
        ([2, "send", [99, 1, ["x"]]], "99 is no handle"),
        ([2, "ack", [0, 1]], "0 is no handle"),
        ([1, 4, None, None], "asks nothing"),
    ],
)
async def test_a_wrong_frame_is_answered_without_a_msgid_and_disturbs_nobody(client, frame, words):
    client.write(msgpack.packb(frame))
    answer = await client.next()
    assert answer.msgid is None
    assert answer.error["code"] == "bad_message"
    assert words in answer.error["message"]
    assert await client.result("ping") == {}


@pytest.mark.parametrize(
    ("stream", "code"),
    [
        (b"GET / HTTP/1.1\r\n\r\n\xc1", "bad_frame"),
        (b"\xc1", "bad_frame"),
        (b"\x93\x02\xa4send\xc6\xff\xff\xff\xff", "frame_too_large"),
        (b"\x91" * 17, "bad_frame"),
        (b"\x93\x02\xa4send\x93\x01\x01\x91\xa2\xff\xfe", "bad_frame"),
        (b"\x93\x02\xa4send\xc6" + (16 * 2**20 + FRAME_OVERHEAD + 1).to_bytes(4, "big"), "frame_too_large"),
    ],
)
async def test_what_is_no_frame_gets_one_error_and_the_socket_is_closed(client, stream, code):
    client.write(stream + encode_request(5, "ping", {}) * 3)
    errors = []
    while (frame := await client.next()) is not None:
        errors.append(frame)
    assert [frame.error["code"] for frame in errors if frame.error["code"] != "bad_message"] == [code]
    assert errors[-1].error["code"] == code


async def test_requests_that_wait_do_not_hold_up_others_and_are_bounded(client, server, monkeypatch):
    monkeypatch.setattr(session_module, "MAX_REQUESTS", 3)
    for msgid in range(100, 104):
        client.write(encode_request(msgid, "wait", {"target": "conn-a", "for": "connected"}))
    answer = await client.next()
    assert isinstance(answer, Response)
    assert (answer.msgid, answer.error["code"]) == (103, "too_many_requests")


@pytest.mark.parametrize("code", ["disk_full", "store_failed"])
async def test_a_store_that_fails_is_named_to_who_asked(client, house, monkeypatch, code):
    async def fail(_username):
        raise StoreFailed("cannot write", code)

    monkeypatch.setattr(house, "claim", fail)
    error = await client.refused("claim", username="alice")
    assert (error["code"], error["message"]) == (code, "cannot write")


async def test_a_socket_that_breaks_ends_its_requests_handles_and_ownership(server, house, path):
    async with raw_client(path) as client:
        await client.result("attach", target="conn-a", label="main")
        client.write(encode_request(100, "wait", {"target": "conn-a", "for": "connected"}))
        await client.result("subscribe")
        await client.result("ping")
    await house.until(lambda: house.gone)
    assert house.get("conn-a", "main").receiver is None
    assert not house.get("conn-a", "main").producers
    assert len(house.gone) == 1
    assert [task for task in asyncio.all_tasks() if "wait" in task.get_name()] == []


async def test_stopping_closes_every_socket(house, path):
    from rondevud.ipc.server import Server

    server = Server(house, path=path)
    await server.start()
    async with raw_client(path) as one, raw_client(path) as two:
        await one.result("subscribe")
        house.events.publish("stopping", {"restarting": True})
        await server.stop()
        assert (await one.notification("event"))[2:4] == ["stopping", {"restarting": True}]
        assert await one.next() is None
        assert await two.next() is None
    assert server.clients() == []


async def test_more_clients_than_allowed_are_told(server, path, monkeypatch):
    monkeypatch.setattr("rondevud.ipc.server.MAX_CLIENTS", 1)
    async with raw_client(path), raw_client(path, hello=False) as second:
        answer = await second.next()
        assert answer.error["code"] == "too_many_clients"
        assert await second.next() is None
    assert server.refused == 1


async def test_a_bug_behind_a_notification_closes_the_socket(client, monkeypatch):
    """Who waits for what such a message was to bring would wait for ever; on another socket it is all said again."""
    handle = (await client.result("attach", target="alice-chat", label="main"))["handle"]
    monkeypatch.setattr(Handle, "credit", lambda *_: 1 / 0)
    client.notify("credit", handle, 5)
    complaint = await client.next()
    assert (complaint.msgid, complaint.error["code"]) == (None, "internal")
    assert await client.next() is None


async def test_a_client_that_leaves_behind_a_request_leaves_nothing_of_it(house, server, path):
    """The request's task is cancelled before its first step: a coroutine that nobody began would be complained of."""
    async with raw_client(path) as client:
        client.write(encode_request(1, "close", {"target": "alice-chat"}) + b"\xc1")
        while await client.next() is not None:
            pass
    gc.collect()
    assert "conn-a" in house.disk.connections
