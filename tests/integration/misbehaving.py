"""A signalling server that can be told to misbehave: the embedded one behind a proxy, which answers some requests itself."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import Self

import aiohttp
from aiohttp import web

from rondevud.rendezvous.app import RunningServer, Settings, start
from rondevud.rendezvous.storage import SqliteStorage

ROUTES = {
    "register": r"POST /register",
    "claim": r"POST /usernames/claim",
    "check": r"GET /usernames/[^/]+",
    "publish": r"POST /services",
    "add_offers": r"POST /offers",
    "answers": r"GET /offers/answers",
    "find": r"POST /index/[^/]+/query",
    "discover": r"GET /services/[^/]+",
    "answer": r"POST /offers/[^/]+/answer",
    "read_candidates": r"GET /offers/[^/]+/ice-candidates",
    "add_candidates": r"POST /offers/[^/]+/ice-candidates",
}
"""The requests of the API that a daemon makes, by the name of what they are for."""

WRONG_TYPES = dict.fromkeys(
    ("peerId", "secret", "username", "expiresAt", "claimedAt", "serviceId", "uuid", "offerId", "offers", "answers"),
    True,
) | {"available": "no", "success": "yes", "candidates": 5, "count": "many", "serviceFqn": [], "sdp": 5}


class MisbehavingServer:
    """Answers requests of a route in `wrong` as the behaviour there says, all others as the embedded server does."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.wrong: dict[str, Behaviour] = {}
        self.requests: Counter[str] = Counter()
        """By route."""
        self.seen: list[tuple[str, str, str]] = []
        """Route, path with its query, and body of each request."""
        self.over = asyncio.Event()
        """Set when the server ends: answers that never come wait for it."""
        self._settings = settings
        self._storage = SqliteStorage(":memory:")

    async def __aenter__(self) -> Self:
        self._server: RunningServer = await start("127.0.0.1", 0, self._storage, self._settings)
        self._session = aiohttp.ClientSession()
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.over.set()
        await self._runner.cleanup()
        await self._session.close()
        await self._server.close()
        self._storage.close()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        line = f"{request.method} {request.path}"
        route = next((name for name, pattern in ROUTES.items() if re.fullmatch(pattern, line)), line)
        self.requests[route] += 1
        self.seen.append((route, request.path_qs, await request.text()))
        behaviour = self.wrong.get(route)
        return await (self._forward(request) if behaviour is None else behaviour(self, request))

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        names = ("Authorization", "Content-Type")
        headers = {name: request.headers[name] for name in names if name in request.headers}
        async with self._session.request(
            request.method, self._server.url + request.path_qs, data=await request.read(), headers=headers
        ) as answer:
            kept = {name: answer.headers[name] for name in ("Content-Type", "Date")}
            return web.Response(status=answer.status, body=await answer.read(), headers=kept)


Behaviour = Callable[[MisbehavingServer, web.Request], Awaitable[web.StreamResponse]]


def answering(status: int = 200, **response: object) -> Behaviour:
    async def behave(_server: MisbehavingServer, _request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, **response)

    return behave


def refusing(status: int, error: str, **headers: str) -> Behaviour:
    async def behave(_server: MisbehavingServer, _request: web.Request) -> web.StreamResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.json_response({"error": error}, status=status, headers=named)

    return behave


def saying(body: object) -> Behaviour:
    async def behave(_server: MisbehavingServer, _request: web.Request) -> web.StreamResponse:
        return web.json_response(body)

    return behave


async def never(server: MisbehavingServer, _request: web.Request) -> web.StreamResponse:
    await server.over.wait()
    return web.Response()


async def byte_by_byte(server: MisbehavingServer, request: web.Request) -> web.StreamResponse:
    """An answer that always goes on and never ends."""
    response = web.StreamResponse(headers={"Content-Length": "1000000"})
    await response.prepare(request)
    while not server.over.is_set():
        await response.write(b" ")
        await asyncio.wait({asyncio.ensure_future(server.over.wait())}, timeout=0.01)
    return response


async def another_protocol(_server: MisbehavingServer, request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.write(b"SSH-2.0-OpenSSH_9.2\r\n")  # type: ignore[attr-defined]
    request.transport.close()
    return web.Response()


BEHAVIOURS: dict[str, Behaviour] = {
    "html": answering(text="<html>It works!</html>", content_type="text/html"),
    "no members": saying({}),
    "wrong types": saying(WRONG_TYPES),
    "a list": saying([]),
    "500": answering(500, text="oops"),
    "503": refusing(503, "overloaded"),
    "byte by byte": byte_by_byte,
    "never": never,
    "huge": answering(body=b" " * (8 * 1024 * 1024 + 1)),
    "redirect": answering(308, headers={"Location": "https://elsewhere.example/"}),
    "401": refusing(401, "Invalid credentials"),
    "429 for seconds": refusing(429, "Too many requests", Retry_After="60"),
    "429 until a date": refusing(
        429, "Too many", Retry_After=formatdate(2_000_000_060, usegmt=True), Date=formatdate(2_000_000_000, usegmt=True)
    ),
    "another protocol": another_protocol,
}
