"""The HTTP side of the server: bodies, limits, CORS, tasks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from rondevud.rendezvous.app import RunningServer, Settings, _ServerLogger, start
from rondevud.rendezvous.records import Username
from rondevud.rendezvous.storage import SqliteStorage


@contextlib.asynccontextmanager
async def serving(settings: Settings, storage: SqliteStorage | None = None) -> AsyncIterator[RunningServer]:
    with contextlib.closing(storage or SqliteStorage(":memory:")) as used:
        server = await start("127.0.0.1", 0, used, settings)
        try:
            yield server
        finally:
            await server.close()


async def ask(server: RunningServer, method: str, path: str, **options: Any) -> tuple[int, Any, Any]:
    async with aiohttp.ClientSession() as session, session.request(method, server.url + path, **options) as response:
        return response.status, response.headers, json.loads(await response.read() or b"null")


async def test_a_body_over_the_limit_is_refused() -> None:
    async with serving(Settings(max_body=1000)) as server:
        status, _, body = await ask(server, "POST", "/usernames/claim", data=b"[" + b" " * 1000)
        assert (status, body) == (413, {"error": "Request body too large (max 1000 bytes)"})


async def test_a_body_that_does_not_come_ends_in_a_time_out() -> None:
    async with serving(Settings(body_timeout=0.05)) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"POST /usernames/claim HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
        assert b"408" in await reader.readline()
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"{",
        b'{"serviceFqn": NaN}',
        b'{"serviceFqn": "\\ud800"}',
        b'{"serviceFqn": "\xed\xa0\x80"}',
        '{"serviceFqn": "x"}'.encode("utf-16"),
        b"[" * 100_000,
        b"\xff",
        b"9" * 5000,
    ],
)
async def test_what_is_no_json_is_answered_like_the_seeds_server_does(
    body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(Settings()) as server:
        status, _, answer = await ask(server, "POST", "/index/alice/query", data=body)
        assert (status, answer) == (500, {"error": "Internal server error"})
    assert "failed" not in caplog.text


async def test_a_number_too_large_for_a_float_is_answered_as_null() -> None:
    async with serving(Settings()) as server:
        _, _, peer = await ask(server, "POST", "/register")
        headers = {"Authorization": f"Bearer {peer['peerId']}:{peer['secret']}"}
        offers = await ask(server, "POST", "/offers", data=b'{"offers": [{"sdp": "offer"}]}', headers=headers)
        path = f"/offers/{offers[2]['offers'][0]['id']}/ice-candidates"
        _, _, other = await ask(server, "POST", "/register")
        answerer = {"Authorization": f"Bearer {other['peerId']}:{other['secret']}"}
        candidates = b'{"candidates": [{"numbers": [1e999, 1.5]}, -1e999]}'
        status, _, _ = await ask(server, "POST", path, data=candidates, headers=answerer)
        assert status == 200
        _, _, answer = await ask(server, "GET", path, headers=headers)
        assert [one["candidate"] for one in answer["candidates"]] == [{"numbers": [None, 1.5]}, None]


async def test_a_surrogate_pair_is_text() -> None:
    async with serving(Settings()) as server:
        status, _, _ = await ask(server, "POST", "/index/alice/query", data=b'{"serviceFqn": "\\ud83d\\ude00"}')
        assert status == 404


async def test_too_many_requests_are_told_when_to_come_back() -> None:
    async with serving(Settings(rate=0.01, burst=2, limit_loopback=True)) as server:
        statuses = [(await ask(server, "GET", "/health"))[0] for _ in range(2)]
        status, headers, body = await ask(server, "GET", "/health", headers={"Origin": "https://app.example"})
        assert statuses == [200, 200]
        assert (status, body) == (429, {"error": "Too many requests"})
        assert 90 <= int(headers["Retry-After"]) <= 100
        assert headers["Access-Control-Allow-Origin"] == "https://app.example"


async def test_loopback_is_exempt_from_the_rate() -> None:
    async with serving(Settings(rate=0.01, burst=1)) as server:
        assert [(await ask(server, "GET", "/health"))[0] for _ in range(3)] == [200, 200, 200]


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [("https://b.example", "https://b.example"), ("https://c.example", "https://a.example"), (None, None)],
)
async def test_listed_origins_are_echoed_and_others_get_the_first(origin: str | None, allowed: str | None) -> None:
    async with serving(Settings(cors_origins=("https://a.example", "https://b.example"))) as server:
        _, headers, _ = await ask(server, "GET", "/health", headers={} if origin is None else {"Origin": origin})
        assert headers.get("Access-Control-Allow-Origin") == allowed


async def test_credentials_are_checked_before_the_body() -> None:
    async with serving(Settings(max_body=10)) as server:
        status, _, _ = await ask(server, "POST", "/offers", data=b"x" * 100)
        assert status == 401


async def test_a_failing_storage_is_an_internal_error_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    storage = SqliteStorage(":memory:")
    async with serving(Settings(), storage) as server:
        storage.close()
        status, _, body = await ask(server, "GET", "/usernames/alice")
        assert (status, body) == (500, {"error": "Internal server error"})
    assert "GET /usernames/alice failed" in caplog.text


async def test_expired_rows_are_removed_in_the_background() -> None:
    removed = asyncio.Event()

    class Watched(SqliteStorage):
        def delete_expired(self, now: int) -> int:
            count = super().delete_expired(now)
            if count:
                removed.set()
            return count

    storage = Watched(":memory:")
    storage.save_username(Username("alice", "key", 1, 2))
    async with serving(Settings(cleanup_interval=0.01, clock=lambda: 10.0), storage):
        names = [task.get_name() for task in asyncio.all_tasks()]
        assert "rendezvous-cleanup" in names
        async with asyncio.timeout(10):
            await removed.wait()
    assert "rendezvous-cleanup" not in [task.get_name() for task in asyncio.all_tasks()]


async def test_a_failing_cleanup_is_logged_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    twice = asyncio.Event()

    class Failing(SqliteStorage):
        calls = 0

        def delete_expired(self, now: int) -> int:
            self.calls += 1
            if self.calls == 2:
                twice.set()
            raise OSError("disk full")

    async with serving(Settings(cleanup_interval=0.01), Failing(":memory:")):
        async with asyncio.timeout(10):
            await twice.wait()
    assert "expired rows could not be removed" in caplog.text


async def test_wildcard_addresses_have_a_url_that_reaches_them() -> None:
    with contextlib.closing(SqliteStorage(":memory:")) as storage:
        server = await start("0.0.0.0", 0, storage)
        try:
            assert server.url == f"http://127.0.0.1:{server.port}"
            assert (await ask(server, "GET", "/health"))[0] == 200
        finally:
            await server.close()


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(
            b"POST /register HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n", id="twice"
        ),
        pytest.param(b"POST /register HTTP/1.1\r\nHost: x\r\nContent-Length: -\r\n\r\n", id="no length"),
        pytest.param(b"POST /usernames/claim HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n{", id="hangs up"),
        pytest.param(
            b"POST /usernames/claim HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", id="no chunk"
        ),
    ],
)
async def test_what_is_no_http_is_no_error_in_the_log(said: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(Settings()) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(said)
        writer.write_eof()
        with contextlib.suppress(ConnectionError):
            await asyncio.wait_for(reader.read(), 30)
        writer.close()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize(
    ("error", "levels"),
    [(aiohttp.ClientConnectionResetError("closing"), ["DEBUG"]), (RuntimeError("ours"), ["ERROR"])],
)
def test_that_a_client_has_gone_is_no_error_of_the_server(caplog, error, levels) -> None:
    """aiohttp tells of it where it answers ``Expect: 100-continue``."""
    caplog.set_level(logging.DEBUG)
    _ServerLogger(logging.getLogger("test")).exception("Error handling request from %s", "127.0.0.1", exc_info=error)
    assert [record.levelname for record in caplog.records] == levels
