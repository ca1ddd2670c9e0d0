"""The embedded signalling server: the seed's REST API over aiohttp.

Paths, statuses and texts are those of the seed's server, so that its JavaScript clients work unchanged. It differs on
purpose in this, and in nothing else that a client could notice:

===============================================  =====================================================================
difference                                       reason
===============================================  =====================================================================
the UUID of a service is always the same         clients by UUID survive a refresh, and a restart of the service
a refused publication leaves the old service     a bad SDP must not unpublish what works
a service is deleted by who published it only    serviceId and user name are public: any stranger could
candidates are stamped in strictly rising order  a candidate posted right behind a batch was lost to who reads ``since``
a claim that has expired is free                 its row would have kept the name for ever
at most 1,000 candidates for one offer,          one peer must not fill the store
of 4 KiB each
bodies over 8 MiB: 413; slow bodies: 408         the same for the memory
many requests from one address: 429              ``Retry-After`` says how long; loopback is exempt: local programs and
                                                 a proxy in front share that address
text that is not UTF-8: 500                      the seed's server replaced what it could not read
texts that name JavaScript internals             are this server's own words, with the same status
===============================================  =====================================================================

Deleting the offer that came with a publication deletes the service, as there.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
import math
import os
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any, NamedTuple

from aiohttp import web
from aiohttp.http import HttpProcessingError

from rondevud.errors import ListenError
from rondevud.rendezvous import json_text
from rondevud.rendezvous.checks import INTERNAL, Refusal
from rondevud.rendezvous.limits import RateLimiter, is_loopback
from rondevud.rendezvous.records import Storage
from rondevud.rendezvous.rules import Limits, Rules

logger = logging.getLogger(__name__)

DESCRIPTION = "WebRTC signalling: user names, services, offers and answers"
IP_FREEBIND = 15
"""From linux/in.h; Python has no name for it. Holds for IPv6, too."""

SHUTDOWN_TIMEOUT = 2.0
"""Seconds that running requests get at the end."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What can be set. Durations are seconds except in `limits`."""

    limits: Limits = field(default_factory=Limits)
    auth_secret: bytes | None = None
    """32 bytes; None = the storage's own, so that credentials survive a restart."""
    cors_origins: tuple[str, ...] = ("*",)
    cleanup_interval: float = 60.0
    max_body: int = 8 * 1024 * 1024
    body_timeout: float = 30.0
    rate: float = 50.0
    """Requests a second for each address; 0 = no limit."""
    burst: int = 200
    limit_loopback: bool = False
    """Whether the rate holds for loopback addresses too."""
    version: str = "unknown"
    clock: Callable[[], float] = time.time


class Call(NamedTuple):
    """One request, as the rules need it."""

    rules: Rules
    peer: str
    """Empty where the route is open to everybody."""
    path: dict[str, str]
    query: dict[str, str]
    body: Any
    now: int


class Route(NamedTuple):
    method: str
    path: str
    action: Callable[[Call], dict[str, Any]]
    authenticated: bool = False
    body: bool = False
    status: int = 200
    details: bool = False
    """Whether a body that is not JSON is answered with ``details``."""


ROUTES = (
    Route("POST", "/register", lambda call: call.rules.register()),
    Route("POST", "/usernames/claim", lambda call: call.rules.claim(call.body, call.now), body=True),
    Route("GET", "/usernames/{username}", lambda call: call.rules.username(call.path["username"], call.now)),
    Route("GET", "/usernames/{username}/services", lambda c: c.rules.services_of(c.path["username"], c.now)),
    Route(
        "POST",
        "/services",
        lambda call: call.rules.publish(call.peer, call.body, call.now),
        authenticated=True,
        body=True,
        status=201,
        details=True,
    ),
    Route("GET", "/services/{uuid}", lambda call: call.rules.service(call.path["uuid"], call.now)),
    Route(
        "DELETE",
        "/services/{id}",
        lambda call: call.rules.delete_service(call.peer, call.path["id"], call.body, call.now),
        authenticated=True,
        body=True,
    ),
    Route(
        "POST",
        "/index/{username}/query",
        lambda call: call.rules.query(call.path["username"], call.body, call.now),
        body=True,
    ),
    Route(
        "POST",
        "/offers",
        lambda call: call.rules.create_offers(call.peer, call.body, call.now),
        authenticated=True,
        body=True,
        status=201,
    ),
    Route("GET", "/offers/mine", lambda call: call.rules.offers_of(call.peer, call.now), authenticated=True),
    Route("GET", "/offers/answers", lambda call: call.rules.answers(call.peer, call.now), authenticated=True),
    Route(
        "DELETE",
        "/offers/{id}",
        lambda call: call.rules.delete_offer(call.peer, call.path["id"], call.now),
        authenticated=True,
    ),
    Route(
        "POST",
        "/offers/{id}/answer",
        lambda call: call.rules.answer(call.peer, call.path["id"], call.body, call.now),
        authenticated=True,
        body=True,
    ),
    Route(
        "POST",
        "/offers/{id}/ice-candidates",
        lambda call: call.rules.add_candidates(call.peer, call.path["id"], call.body, call.now),
        authenticated=True,
        body=True,
    ),
    Route(
        "GET",
        "/offers/{id}/ice-candidates",
        lambda call: call.rules.candidates(call.peer, call.path["id"], call.query.get("since"), call.now),
        authenticated=True,
    ),
)


class RunningServer:
    """A server that listens. `close` it; its storage stays open and belongs to who made it."""

    def __init__(self, runner: web.AppRunner, host: str, port: int, cleanup: asyncio.Task[None]) -> None:
        self._runner = runner
        self._cleanup = cleanup
        self.port = port
        """The port it listens on, also when 0 was asked for."""
        self.url = f"http://{_url_host(host)}:{port}"
        """Where this machine reaches it."""

    async def close(self) -> None:
        """Stop listening, let running requests end within `SHUTDOWN_TIMEOUT`. Idempotent."""
        self._cleanup.cancel()
        await asyncio.wait([self._cleanup])
        await self._runner.cleanup()


async def start(listen_host: str, port: int, storage: Storage, settings: Settings | None = None) -> RunningServer:
    """Listen and serve. Raises `ListenError`; port 0 lets the system choose."""
    settings = settings or Settings()
    runner = web.AppRunner(
        make_app(storage, settings), access_log=None, logger=_ServerLogger(logger), shutdown_timeout=SHUTDOWN_TIMEOUT
    )
    await runner.setup()
    try:
        await _listen(runner, listen_host, port)
    except (OSError, OverflowError) as error:
        await runner.cleanup()
        raise ListenError(f"signalling server: cannot listen on {listen_host}:{port}: {_reason(error)}") from error
    cleanup = asyncio.create_task(_cleanup_loop(storage, settings), name="rendezvous-cleanup")
    server = RunningServer(runner, listen_host, int(runner.addresses[0][1]), cleanup)
    logger.info("signalling server listens on %s", server.url)
    return server


async def _listen(runner: web.AppRunner, host: str, port: int) -> None:
    """Raises `OSError` and `OverflowError`.

    An address that this machine does not have (yet: networks come up after services) is listened at all the same, and
    reached as soon as it is there.
    """
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise
        await web.SockSite(runner, _bind_in_advance(host, port)).start()
        logger.warning("%s is no address of this machine: nobody reaches the signalling server until it is one", host)


def _bind_in_advance(host: str, port: int) -> socket.socket:
    """A socket at an address that need not be there, by ip(7), IP_FREEBIND. Raises `OSError`, also for a host's name."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
        bound.bind((host, port))
    except BaseException:
        bound.close()
        raise
    return bound


class _ServerLogger(logging.LoggerAdapter[logging.Logger]):
    """What aiohttp has to say. A request that is no HTTP is no error of ours, nor one whose sender has gone meanwhile."""

    def exception(self, msg: object, *args: object, exc_info: Any = True, **more: Any) -> None:
        if isinstance(exc_info, HttpProcessingError):
            self.debug("signalling server: a request that is no HTTP: %r", exc_info.message)
        elif isinstance(exc_info, ConnectionResetError):
            self.debug("signalling server: nobody waits for the answer any more: %s", exc_info)
        else:
            super().exception(msg, *args, exc_info=exc_info, **more)


def _reason(error: OSError | OverflowError) -> str:
    """Without the address, which asyncio says twice."""
    number = getattr(error, "errno", None)
    return os.strerror(number) if number is not None and number > 0 else str(error)


def _url_host(host: str) -> str:
    """A wildcard address cannot be connected to; this machine reaches it on loopback."""
    host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"[{host}]" if ":" in host else host


async def _cleanup_loop(storage: Storage, settings: Settings) -> None:
    while True:
        await asyncio.sleep(settings.cleanup_interval)
        try:
            removed = storage.delete_expired(_milliseconds(settings))
        except Exception:  # the outermost edge of the task: the next round may succeed
            logger.exception("signalling server: expired rows could not be removed")
        else:
            logger.debug("signalling server: %d expired rows removed", removed)


def _milliseconds(settings: Settings) -> int:
    return int(settings.clock() * 1000)


def make_app(storage: Storage, settings: Settings) -> web.Application:
    rules = Rules(storage, auth_secret=settings.auth_secret, limits=settings.limits)
    app = web.Application(client_max_size=settings.max_body, middlewares=[_make_middleware(settings)])
    for route in ROUTES:
        app.router.add_route(route.method, route.path, _make_handler(route, rules, settings))
    about = {"version": settings.version, "name": "Rondevu", "description": DESCRIPTION}

    async def info(_request: web.Request) -> web.Response:
        return _json(200, about)

    async def health(_request: web.Request) -> web.Response:
        return _json(200, {"status": "ok", "timestamp": _milliseconds(settings), "version": settings.version})

    app.router.add_get("/", info)
    app.router.add_get("/health", health)
    return app


def _make_handler(route: Route, rules: Rules, settings: Settings) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(request: web.Request) -> web.Response:
        peer = rules.authenticate(request.headers.get("Authorization")) if route.authenticated else ""
        body = await _read_json(request, settings, details=route.details) if route.body else None
        path, query = dict(request.match_info), dict(request.query)
        return _json(route.status, route.action(Call(rules, peer, path, query, body, _milliseconds(settings))))

    return handle


async def _read_json(request: web.Request, settings: Settings, *, details: bool) -> Any:
    """The JSON value of the body; the content type is not looked at. Raises `Refusal`."""
    try:
        async with asyncio.timeout(settings.body_timeout):
            raw = await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise Refusal(413, f"Request body too large (max {settings.max_body} bytes)") from error
    except TimeoutError as error:
        raise Refusal(408, f"Request body did not come within {settings.body_timeout:g} s") from error
    except (ConnectionError, web.RequestPayloadError, HttpProcessingError) as error:  # it hung up, or it is no HTTP
        raise Refusal(400, "Request body did not come whole") from error
    try:
        body = json_text.parse(raw)
    except (ValueError, RecursionError) as error:
        members = {"details": "The request body is not JSON"} if details else {}
        raise Refusal(500, INTERNAL, **members) from error
    if body is None:
        members = {"details": "The request body is null"} if details else {}
        raise Refusal(500, INTERNAL, **members)
    return body


def _json(status: int, body: dict[str, Any]) -> web.Response:
    return web.Response(status=status, body=json_text.write(body).encode(), content_type="application/json")


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _make_middleware(settings: Settings) -> Any:
    limiter = RateLimiter(settings.rate, settings.burst) if settings.rate > 0 else None

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        response = _limit(request, limiter, settings)
        if response is None and request.method == "OPTIONS":
            response = _preflight(request)
        if response is None:
            response = await _answer(request, handler)
        response.headers["Date"] = _http_date(int(settings.clock()))
        _add_cors(request, response, settings.cors_origins)
        return response

    return middleware


@functools.lru_cache(maxsize=1)
def _http_date(seconds: int) -> str:
    return formatdate(seconds, usegmt=True)


def _limit(request: web.Request, limiter: RateLimiter | None, settings: Settings) -> web.StreamResponse | None:
    address = request.remote or ""
    if limiter is None or (is_loopback(address) and not settings.limit_loopback):
        return None
    wait = limiter.check(address, time.monotonic())
    if not wait:
        return None
    response = _json(429, {"error": "Too many requests"})
    response.headers["Retry-After"] = str(math.ceil(wait))
    return response


async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Run the handler; whatever it raises becomes an answer."""
    try:
        return await handler(request)
    except Refusal as refusal:
        return _json(refusal.status, refusal.body)
    except (web.HTTPNotFound, web.HTTPMethodNotAllowed):
        return web.Response(status=404, body=b"404 Not Found", headers={"Content-Type": "text/plain; charset=UTF-8"})
    except web.HTTPException as error:
        return _json(error.status, {"error": error.reason})
    except Exception:  # the outermost edge of a request
        logger.exception("signalling server: %s %s failed", request.method, request.path)
        return _json(500, {"error": INTERNAL})


def _preflight(request: web.Request) -> web.Response:
    response = web.Response(status=204)
    response.headers["Access-Control-Allow-Methods"] = "GET,POST,PUT,DELETE,OPTIONS"
    response.headers["Access-Control-Allow-Headers"] = "Content-Type,Origin,Authorization"
    response.headers["Access-Control-Max-Age"] = "600"
    if "Access-Control-Request-Headers" in request.headers:
        response.headers["Vary"] = "Access-Control-Request-Headers"
    return response


def _add_cors(request: web.Request, response: web.StreamResponse, origins: tuple[str, ...]) -> None:
    """A listed origin is echoed, any other one is told the first of the list; ``*`` lists every origin."""
    origin = request.headers.get("Origin", "")
    if origin and origin.isascii() and origin.isprintable():
        allowed = origin if "*" in origins or origin in origins else next(iter(origins), "")
        if allowed:
            response.headers["Access-Control-Allow-Origin"] = allowed
    response.headers["Access-Control-Allow-Credentials"] = "true"
    response.headers["Access-Control-Expose-Headers"] = "Content-Type"
    response.headers["Vary"] = ", ".join(filter(None, ["Origin", response.headers.get("Vary")]))
