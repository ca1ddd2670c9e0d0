"""`expose` and `connect` with words and values that they do not have: each is named, and nothing is declared."""

from __future__ import annotations

import contextlib

import pytest

from rondevud import daemon
from rondevud.config import parse
from tests.unit.ipc.raw import raw_client

FQN = "com.example.chat@1.0.0"
TARGET = {"username": "alice", "fqn": FQN}
CONFIG = '[signalling]\nurl = "http://127.0.0.1:1"\nrequest_timeout = 1\n'


@pytest.fixture
async def client(tmp_path):
    async with contextlib.AsyncExitStack() as stack:
        await daemon.start(stack, parse(CONFIG, "x"), tmp_path / "state", tmp_path / "socket")
        yield await stack.enter_async_context(raw_client(tmp_path / "socket"))


@pytest.mark.parametrize(
    ("method", "params", "words"),
    [
        ("expose", {}, "username"),
        ("expose", {"username": "alice"}, "fqn"),
        ("expose", {**TARGET, "username": 5}, "username must be text"),
        ("expose", {**TARGET, "username": "A!"}, "username"),
        ("expose", {**TARGET, "fqn": "no version"}, "fqn"),
        ("expose", {**TARGET, "options": "public"}, "options must be a map"),
        ("expose", {**TARGET, "options": {"pool_sise": 2}}, "pool_size"),
        ("expose", {**TARGET, "options": {"pool_size": "two"}}, "pool_size"),
        ("expose", {**TARGET, "options": {"pool_size": 0}}, "pool_size"),
        ("expose", {**TARGET, "options": {"queue": {"overflow": "panic"}}}, "queue.overflow"),
        ("expose", {**TARGET, "ephemeral": "yes"}, "ephemeral must be true or false"),
        ("expose", {**TARGET, "pool_size": 2}, "has no parameter 'pool_size'"),
        ("connect", {}, "username and fqn, or uuid"),
        ("connect", {"username": "alice"}, "username and fqn, or uuid"),
        ("connect", {**TARGET, "uuid": "00000000-0000-4000-8000-000000000000"}, "username and fqn, or uuid"),
        ("connect", {"uuid": "none"}, "uuid"),
        ("connect", {**TARGET, "name": 7}, "name must be text"),
        ("connect", {**TARGET, "name": "conn-0123456789abcdef"}, "name"),
        ("connect", {**TARGET, "options": {"channels": "main"}}, "channels"),
        ("connect", {**TARGET, "options": {"channels": [{"label": "main", "orderd": True}]}}, "ordered"),
        ("connect", {**TARGET, "options": {"channels": [""]}}, "channels"),
        ("connect", {**TARGET, "options": {"reconnect": {"jitter": 2}}}, "reconnect.jitter"),
        ("connect", {**TARGET, "options": {"peer": "browser"}}, "peer"),
        ("connect", {**TARGET, "ephemeral": 1}, "ephemeral must be true or false"),
    ],
)
async def test_what_is_wrong_is_named_and_nothing_is_declared(client, method, params, words):
    error = await client.refused(method, **params)
    assert error["code"] == "bad_params"
    assert words in error["message"]
    assert await client.result("services") == []
    assert await client.result("connections") == []
