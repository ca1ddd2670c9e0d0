"""A path between two peers that the test has in its hand: a UDP relay in this process, and a proxy before the signalling.

    service ⇄ socket facing the service │ relay │ socket facing the connecting side ⇄ connecting side

Each contact of the two gets a `Path` of its own, two sockets. What the proxy hands out of an offer names only the socket
that faces whoever reads it, and the same of an answer: neither side ever learns an address of the other. All paths of a
relay share its two `Way`s, one for each direction, and these have the weather: loss, delay, reordering, duplicates, a limit
of the rate, a hole. Chance is seeded: the same seed deals the same losses to the same datagrams.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import aiohttp
from aiohttp import web
from yarl import URL

HOST = "127.0.0.1"
"""Where the relay's sockets are: peers send to it from whatever address of this host they have."""

RECEIVE_BUFFER = 2 * 1024 * 1024
"""Bytes that the kernel may hold for the relay: what is lost, it is to lose by its own choice."""

QUEUE = 0.3
"""Seconds of its rate that a way queues; what comes beyond is lost."""

HELD_BACK = 0.05
"""Seconds by which a datagram that is to come out of order is late, at least."""

Address = tuple[str, int]


@dataclass(frozen=True)
class Weather:
    """What one way does to datagrams. Times are seconds, shares 0 to 1."""

    loss: float = 0.0
    delay: float = 0.0
    jitter: float = 0.0
    """`delay` is more or less by up to this; the order stays."""
    reorder: float = 0.0
    """Share that is held back, so that others overtake it."""
    duplicate: float = 0.0
    rate: float | None = None
    """Bytes a second."""


FAIR = Weather()


class Way:
    """One direction through a relay."""

    def __init__(self, seed: str) -> None:
        self.weather = FAIR
        self.hole = False
        """Whether everything is swallowed, what is under way included."""
        self.counts: Counter[str] = Counter()
        """Datagrams: ``carried``, ``lost``, ``swallowed``, ``delayed``, ``reordered``, ``duplicated``, ``queue_full``."""
        self.last = 0.0
        """When something came out at the end last, seconds since 1970."""
        self._random = random.Random(seed)
        self._clear_at = 0.0
        """When the last datagram under way comes out: those behind it do so later."""
        self._idle_at = 0.0
        """When everything so far has passed the limit of the rate."""

    def carry(self, data: bytes, deliver: Callable[[bytes], None]) -> None:
        """Take a datagram; `deliver` is called with it now, later, twice or never."""
        weather, now = self.weather, asyncio.get_running_loop().time()
        if self.hole:
            self.counts["swallowed"] += 1
            return
        if self._happens(weather.loss):
            self.counts["lost"] += 1
            return
        passed = self._pass_limit(len(data), now)
        if passed is None:
            self.counts["queue_full"] += 1
            return
        for _ in range(1 + self._count_if("duplicated", weather.duplicate)):
            self._send(data, passed, now, deliver)

    def _pass_limit(self, size: int, now: float) -> float | None:
        """When it has passed the limit of the rate; None = the queue before it is full."""
        if self.weather.rate is None:
            return now
        begin = max(now, self._idle_at)
        if begin - now > QUEUE:
            return None
        self._idle_at = begin + size / self.weather.rate
        return self._idle_at

    def _send(self, data: bytes, at: float, now: float, deliver: Callable[[bytes], None]) -> None:
        weather = self.weather
        at += weather.delay + self._random.uniform(-weather.jitter, weather.jitter)
        if self._count_if("reordered", weather.reorder):
            at = max(at, self._clear_at) + HELD_BACK + self._random.uniform(0, HELD_BACK)
        else:
            at = self._clear_at = max(at, self._clear_at)
        if at <= now:
            self._arrive(data, deliver)
        else:
            self.counts["delayed"] += 1
            asyncio.get_running_loop().call_at(at, self._arrive, data, deliver)

    def _arrive(self, data: bytes, deliver: Callable[[bytes], None]) -> None:
        if self.hole:
            self.counts["swallowed"] += 1
            return
        self.counts["carried"] += 1
        self.last = time.time()
        deliver(data)

    def _happens(self, share: float) -> bool:
        return share > 0 and self._random.random() < share

    def _count_if(self, what: str, share: float) -> bool:
        happens = self._happens(share)
        self.counts[what] += happens
        return happens


class Door:
    """The socket of a path that faces one side; knows that side's own address once the proxy has seen it."""

    def __init__(self, heard: Callable[[bytes], None]) -> None:
        self.peer: Address | None = None
        self._heard = heard
        self._socket = self._open()

    @property
    def port(self) -> int:
        port: int = self._socket.getsockname()[1]
        return port

    def send(self, data: bytes) -> None:
        """To the side it faces. What cannot be sent is lost, as on any network."""
        if self.peer is not None:
            with contextlib.suppress(OSError):
                self._socket.sendto(data, self.peer)

    def move(self) -> None:
        """Another port from now on; what is sent to the old one is lost."""
        old, self._socket = self._socket, self._open()
        self._shut(old)

    def close(self) -> None:
        self._shut(self._socket)

    def _open(self) -> socket.socket:
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        opened.bind((HOST, 0))
        asyncio.get_running_loop().add_reader(opened, self._read, opened)
        return opened

    @staticmethod
    def _shut(opened: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(opened)
        opened.close()

    def _read(self, opened: socket.socket) -> None:
        """Only what comes from the one port that was announced: a peer with several would confuse its own checks.

        A socket that is bound to no address sends from that of the loopback, whatever was announced.
        """
        for _ in range(64):
            try:
                data, source = opened.recvfrom(65_536)
            except OSError:  # nothing more, or an ICMP error of what was sent
                return
            if self.peer is not None and source[1] == self.peer[1]:
                self._heard(data)


class Path:
    """One contact: an offer and its answer."""

    def __init__(self, to_service: Way, to_connecting: Way) -> None:
        self.facing_service = Door(lambda data: to_connecting.carry(data, self.facing_connecting.send))
        self.facing_connecting = Door(lambda data: to_service.carry(data, self.facing_service.send))

    def close(self) -> None:
        self.facing_service.close()
        self.facing_connecting.close()


class Relay:
    """Everything between the two peers of one pair."""

    def __init__(self, seed: object) -> None:
        self.to_service = Way(f"{seed} to the service")
        self.to_connecting = Way(f"{seed} to the connecting side")
        self._paths: dict[str, Path] = {}

    @property
    def ways(self) -> tuple[Way, Way]:
        return self.to_service, self.to_connecting

    def set(self, weather: Weather) -> None:
        """The same weather both ways."""
        for way in self.ways:
            way.weather = weather

    def block(self, *ways: Way) -> None:
        """These ways swallow everything from now on; none named: both do."""
        for way in ways or self.ways:
            way.hole = True

    def open(self) -> None:
        """No way swallows anything any more."""
        for way in self.ways:
            way.hole = False

    def change_ports(self, *, service_sees: bool) -> None:
        """As after a rebinding of a NAT: one side, the service or not, gets what the other sends from another port.

        What it sends itself is lost until it goes there.
        """
        for path in self._paths.values():
            (path.facing_service if service_sees else path.facing_connecting).move()

    def count(self, what: str) -> int:
        return sum(way.counts[what] for way in self.ways)

    def ports(self) -> set[int]:
        """All ports that a peer can have been told."""
        return {door.port for path in self._paths.values() for door in (path.facing_service, path.facing_connecting)}

    def offer(self, offer_id: str, sdp: str) -> str:
        """What the connecting side is to read of an offer."""
        path = self._path(offer_id)
        path.facing_service.peer, text = _replace_candidates(sdp, path.facing_connecting.port)
        return text

    def answer(self, offer_id: str, sdp: str) -> str:
        """What the service is to read of the answer."""
        path = self._path(offer_id)
        path.facing_connecting.peer, text = _replace_candidates(sdp, path.facing_service.port)
        return text

    def _path(self, offer_id: str) -> Path:
        if offer_id not in self._paths:
            self._paths[offer_id] = Path(self.to_service, self.to_connecting)
        return self._paths[offer_id]

    def close(self) -> None:
        for path in self._paths.values():
            path.close()
        self._paths.clear()


_CANDIDATE = re.compile(r"(?im)^a=candidate:\S+ 1 udp \d+ (\d+\.\d+\.\d+\.\d+) (\d+) typ host[^\r\n]*\r?\n")
_ANY_CANDIDATE = re.compile(r"^a=(?:candidate:[^\r\n]*|end-of-candidates[^\r\n]*)\r?\n", re.MULTILINE)
_PLACE = re.compile(r"^(m=application )\d+|^(c=IN )[^\r\n]+", re.MULTILINE)


def _replace_candidates(sdp: str, port: int) -> tuple[Address, str]:
    """The first IPv4 host candidate of a description, and the description with the relay's port for all of them."""
    found = _CANDIDATE.search(sdp)
    assert found is not None, f"no IPv4 host candidate in {sdp}"
    ours = f"a=candidate:relay 1 udp 2130706431 {HOST} {port} typ host\r\n"
    text = _ANY_CANDIDATE.sub(lambda line: ours if line.start() == found.start() else "", sdp)
    text = _PLACE.sub(lambda line: f"m=application {port}" if line[1] else f"c=IN IP4 {HOST}", text)
    return (found[1], int(found[2])), text


class SignallingProxy:
    """Stands before a signalling server, for the daemons of one relay. An async context manager."""

    def __init__(self, relay: Relay, upstream: Callable[[], str]) -> None:
        """`upstream` gives the server's URL at the time of each request."""
        self.url = ""
        self._relay = relay
        self._upstream = upstream
        self._exits = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        self._session = await self._exits.enter_async_context(aiohttp.ClientSession())
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        self._exits.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, HOST, 0).start()
        self.url = f"http://{HOST}:{runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._exits.aclose()

    async def _handle(self, request: web.Request) -> web.Response:
        target = URL(self._upstream() + request.raw_path, encoded=True)
        kept = {name: request.headers[name] for name in ("Authorization", "Content-Type") if name in request.headers}
        body = await request.read()
        try:
            async with self._session.request(request.method, target, data=body, headers=kept) as reply:
                text = await reply.read()
                if reply.status < 300:
                    text = self._rewrite(request.path, text)
                return web.Response(status=reply.status, body=text, content_type="application/json")
        except aiohttp.ClientError as error:
            return web.Response(status=502, text=f"no server: {error}")

    def _rewrite(self, path: str, text: bytes) -> bytes:
        """What one side reads of the other's descriptions; trickled candidates are kept from both."""
        if path.endswith("/ice-candidates"):
            return b'{"candidates": []}'
        body: Any = json.loads(text)
        if path == "/offers/answers":
            for answer in body["answers"]:
                answer["sdp"] = self._relay.answer(answer["offerId"], answer["sdp"])
        elif path.startswith("/services/") and "sdp" in body:
            body["sdp"] = self._relay.offer(body["offerId"], body["sdp"])
        else:
            return text
        return json.dumps(body).encode()
