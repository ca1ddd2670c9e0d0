"""Broken requests to the embedded signalling server, on its sockets: each is answered, and others find what they seek."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from rondevud.rendezvous.app import RunningServer, Settings, start
from rondevud.rendezvous.storage import SqliteStorage
from rondevud.signalling.identity import Identities
from rondevud.signalling.rest import RestSignalling
from tests.fuzz.http_input import FQN, Asking
from tests.fuzz.mutator import AMOUNTS, Case, cases, replayable
from tests.fuzz.watching import Watch, watching

pytestmark = pytest.mark.once

WARM_UP = 1_000
GROWTH = 32 * 2**20
CHECKED_EVERY = 500
PATIENCE = 30.0
STEP = 0.2
"""Seconds that pass for the server with each request: what is stored expires."""

LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)


class Place:
    """The server, its clock, a good client and a bad one."""

    def __init__(self, directory: Path) -> None:
        self.now = 1_700_000_000.0
        self.storage = SqliteStorage(":memory:")
        self.asking = Asking(Identities(directory / "bad"))
        self.statuses: Counter[int] = Counter()
        self.server: RunningServer
        self._identities = Identities(directory / "good")
        self._published = 0
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter

    async def begin(self) -> None:
        self.server = await start("127.0.0.1", 0, self.storage, Settings(clock=lambda: self.now))

    async def check_good(self) -> None:
        """Another client publishes, and is found."""
        self.storage.delete_expired(int(self.now * 1000))
        self._published += 1
        sdp = f"v=0 good {self._published}"
        signalling = RestSignalling(self.server.url, self._identities)
        try:
            publisher = signalling.publisher("alice", FQN)
            await publisher.publish(sdp, ttl=300, public=True, metadata=None)
            assert (await signalling.discover("alice", FQN)).sdp == sdp
            await publisher.withdraw()
        finally:
            await signalling.close()

    async def exchange(self, data: bytes) -> tuple[int, bytes]:
        """One whole request on the connection that there is, and its answer."""
        if self._reader is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self.server.port)
        self._writer.write(data)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = LENGTH.search(head)
        body = await self._reader.readexactly(int(length[1]) if length else 0)
        if b"\r\nconnection: close\r\n" in head.lower():
            self.hang_up()
        return int(head.split()[1]), body

    def hang_up(self) -> None:
        if self._reader is not None:
            self._writer.close()
            self._reader = None

    async def say(self, data: bytes) -> None:
        """Bytes that may be no request, on a connection of their own, to its end."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
        try:
            writer.write(data)
            writer.write_eof()
            answer = await reader.read(-1)
            assert not answer or answer.startswith(b"HTTP/"), answer[:100]
        except ConnectionError:  # it hung up before it had read everything
            pass
        finally:
            writer.close()


@pytest.mark.parametrize("amount", AMOUNTS)
async def test_the_signalling_server_outlives_broken_requests(amount: int, tmp_path: Path) -> None:
    place = Place(tmp_path)
    await place.begin()
    with watching() as watch:
        try:
            for case in cases(amount):
                with replayable(case):
                    async with asyncio.timeout(PATIENCE):
                        await ask_badly(case, place)
                        await check(case, place, watch)
            await place.check_good()
        finally:
            place.hang_up()
            await place.server.close()
    place.storage.close()
    print(dict(sorted(place.statuses.items())))


async def check(case: Case, place: Place, watch: Watch) -> None:
    watch.check()
    if case.turn == WARM_UP:
        watch.begin_memory()
    if case.turn % CHECKED_EVERY == CHECKED_EVERY - 1:
        await place.check_good()
        if case.turn > WARM_UP:
            watch.check_memory(GROWTH)


async def ask_badly(case: Case, place: Place) -> None:
    place.now += STEP
    data, whole = build(case, place)
    case.feed(data)
    if not whole:
        await place.say(data)
        return
    status, body = await place.exchange(data)
    place.statuses[status] += 1
    assert 200 <= status < 600, status
    if status < 300 and body[:1] == b"{":
        place.asking.learn(json.loads(body))


def build(case: Case, place: Place) -> tuple[bytes, bool]:
    """The bytes of a request, and whether it is one as far as HTTP goes."""
    method, path, body = place.asking.request(case, int(place.now * 1000))
    authorization = place.asking.authorization
    damaged = case.chance(0.7)
    if damaged and body is not None and case.chance(0.8):
        body = case.damage(body)
    if damaged and case.chance(0.15):
        path = "/" + case.damage_text(path[1:])
    if damaged and case.chance(0.1):
        authorization = case.damage_text(authorization)
    raw = b"" if body is None else case.json(body)
    lines = [f"{method} {ascii_path(path)} HTTP/1.1", "Host: localhost", f"Content-Length: {len(raw)}"]
    if authorization.isascii() and authorization.isprintable():
        lines.append(f"Authorization: {authorization}")
    if case.chance(0.1):
        lines.append(f"Origin: {ascii_path(case.text())}")
    data = "\r\n".join([*lines, "", ""]).encode() + raw
    if case.chance(0.15):
        return mangle(case, data), False
    return data, True


def ascii_path(text: str) -> str:
    """What may stand in a line of HTTP, percent signs as they are."""
    if text.isascii() and text.isprintable() and " " not in text:
        return text
    return "".join(
        character if character.isascii() and character > " " and character != "\x7f" else "%ff" for character in text
    )


def mangle(case: Case, data: bytes) -> bytes:
    what = case.random.randrange(6)
    if what == 0:
        return data.replace(
            b"Content-Length: ", case.random.choice((b"Content-Length: -", b"Content-Length: 9", b"X: "))
        )
    if what == 1:
        chunks = case.random.choice((b"zz\r\n", b"ffffffffffffffff\r\n", b"5;x\r\nhello\r\n0\r\n\r\n", b"-1\r\n"))
        return data.split(b"\r\n\r\n")[0] + b"\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks
    if what == 2:
        more = case.random.choice(
            (b"X-A: " + b"a" * 9_000, b"X\0: 1", b": 1", b"Expect: 100-continue", b"Upgrade: h2c")
        )
        return data.replace(b"\r\n", b"\r\n" + more + b"\r\n", 1)
    return case.scramble(data)
