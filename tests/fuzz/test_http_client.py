"""Broken answers to the client of the signalling server: a result or a `SignallingError`, and nothing else."""

from __future__ import annotations

import asyncio
import math
import re
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from rondevud.errors import SignallingError
from rondevud.signalling import http
from rondevud.signalling.base import Answer, Candidate, DiscoveredOffer, PoolOffer, Publication
from rondevud.signalling.http import HttpClient, Reply, quoted
from rondevud.signalling.identity import Identities
from rondevud.signalling.rest import RestSignalling
from tests.fuzz.http_input import ERRORS, FQN, STATUSES, answers, headers
from tests.fuzz.mutator import AMOUNTS, Case, cases, replayable
from tests.fuzz.watching import Watch, watching

pytestmark = pytest.mark.once

CALLS = 4
"""Calls of one case; one or more requests each."""

WARM_UP = 300
GROWTH = 24 * 2**20
CHECKED_EVERY = 500
PATIENCE = 30.0
SOCKET_SHARE = 10
"""One answer in so many comes over a real socket, as bytes that may be no HTTP."""

ROUTES = {
    name: re.compile(pattern)
    for name, pattern in {
        "register": r"POST /register",
        "claim": r"POST /usernames/claim",
        "check": r"GET /usernames/[^/]+",
        "publish": r"POST /services",
        "add_offers": r"POST /offers",
        "mine": r"GET /offers/mine",
        "answers": r"GET /offers/answers",
        "find": r"POST /index/[^/]+/query",
        "discover": r"GET /services/[^/]+",
        "answer": r"POST /offers/[^/]+/answer",
        "read_candidates": r"GET /offers/[^/]+/ice-candidates.*",
        "add_candidates": r"POST /offers/[^/]+/ice-candidates",
        "health": r"GET /health",
        "delete": r"DELETE /.*",
    }.items()
}

EARLY = {"register", "claim", "publish", "health"}
"""Mostly answered right: else little would be asked behind them."""


class Saying:
    """What the bad server of one case says to each request."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.requests = 0

    def answer(self, method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        case, line = self.case, f"{method} {path}"
        self.requests += 1
        route = next((name for name, pattern in ROUTES.items() if pattern.fullmatch(line)), "health")
        body = answers(case, "sdp 1")[route]
        if case.chance(0.85 if route in EARLY else 0.3):
            return 200, {}, case.json(body)
        status = case.random.choice(STATUSES)
        what = case.random.randrange(10)
        if what < 6:
            body = case.damage(body)
        elif what == 6:
            body = {"error": case.random.choice((*ERRORS, case.text()))}
        elif what == 7:
            body = case.value(3)
        raw = case.json(body)
        if what == 8:
            raw = case.random.choice((b"", b"<html>", b"\xff\xfe", b"[" * 100_000, b"0" * 5_000, raw[: len(raw) // 2]))
        return status, headers(case), case.feed(raw)


def replying(client: HttpClient, saying: Saying) -> Any:
    """Stands in for a try over the network: everything above it is real."""

    async def reply(what: str, method: str, url: Any, *_: Any, repeated: bool) -> Reply:
        status, found, raw = saying.answer(method, url.raw_path_qs)
        if 300 <= status < 400:
            raise http.SignallingGarbled(f"{what}: redirects")
        date = http._parse_date(found.get("Date"))
        if date is not None and "Age" not in found:
            now = client._clock.steady()
            client._clock.learn(date.timestamp(), date.timestamp() + 1.0, sent=now, received=now)
        text = quoted(raw[: 4 * http.QUOTED].decode("utf-8", "replace"))
        wait = client._retry_after(found.get("Retry-After"))
        return Reply(what, status, http._parse(raw), text, wait, repeated)

    return reply


@pytest.fixture(autouse=True)
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "BACKOFF", 0.0)


@pytest.fixture
async def watch() -> AsyncIterator[Watch]:
    with watching() as watch:
        yield watch


@pytest.mark.parametrize("amount", AMOUNTS)
async def test_the_client_outlives_broken_answers(amount: int, tmp_path: Path, watch: Watch) -> None:
    outcomes: Counter[str] = Counter()
    identities, requests = Identities(tmp_path), 0
    identities.obtain("alice")
    for case in cases(amount // CALLS):
        with replayable(case):
            signalling, saying = RestSignalling("http://127.0.0.1:1", identities, timeout=0.05), Saying(case)
            signalling._http._try = replying(signalling._http, saying)
            await call_everything(case, signalling, outcomes)
            requests += saying.requests
            check(case, watch)
    print(f"{requests} answers; {outcomes}")
    assert requests >= amount or outcomes.total() <= CALLS


def check(case: Case, watch: Watch) -> None:
    watch.check()
    if case.turn == WARM_UP:
        watch.begin_memory()
    elif case.turn % CHECKED_EVERY == CHECKED_EVERY - 1 and case.turn > WARM_UP:
        watch.check_memory(GROWTH)


async def call_everything(case: Case, signalling: RestSignalling, outcomes: Counter[str]) -> None:
    """Publish, then a few calls at random."""
    publisher = signalling.publisher("alice", FQN)
    calls = {
        "claim": lambda: signalling.claim("alice"),
        "check": lambda: signalling.check("alice"),
        "add_offers": lambda: publisher.add_offers(["sdp 1"], ttl=300),
        "answers": publisher.answers,
        "discover": lambda: signalling.discover("alice", FQN),
        "discover_uuid": lambda: signalling.discover_uuid("uuid"),
        "answer": lambda: signalling.answer("offer", "sdp"),
        "read": lambda: signalling.offer_candidates("offer"),
        "read_own": lambda: publisher.candidates("offer"),
        "add": lambda: signalling.add_answer_candidates("offer", [Candidate("candidate:1")]),
        "delete": lambda: publisher.delete_offer("offer-1"),
        "withdraw": publisher.withdraw,
    }
    names = ["publish", *case.random.sample(sorted(calls), CALLS - 1)]
    calls["publish"] = lambda: publisher.publish("sdp 1", ttl=300, public=False, metadata=None)
    for name in names:
        try:
            async with asyncio.timeout(PATIENCE):
                judge(await calls[name]())
            outcomes[f"{name} done"] += 1
        except SignallingError as error:
            outcomes[type(error).__name__] += 1
            judge_error(str(error))


def judge_error(message: str) -> None:
    message.encode()
    assert len(message) < 4_000, "an error that repeats what was answered"


def judge(result: Any) -> None:
    """What is handed on is of the kind that it says, and can be stored, logged and sent on."""
    match result:
        case list():
            for each in result:
                judge(each)
        case dict():
            repr(result).encode()
        case Publication():
            assert 0 < result.ttl <= 300
            assert math.isfinite(result.expires_at)
        case PoolOffer():
            assert 0 <= result.ttl <= 300
        case DiscoveredOffer() | Answer():
            result.sdp.encode()
            assert result.offer_id.isascii()
        case Candidate():
            assert result.candidate.isprintable()
        case float():
            assert math.isfinite(result)
        case _:
            assert result is None


@pytest.mark.parametrize("amount", AMOUNTS)
async def test_the_client_outlives_broken_http(amount: int, tmp_path: Path, watch: Watch) -> None:
    outcomes: Counter[str] = Counter()
    identities, current = Identities(tmp_path), [Saying(next(cases(1)))]
    identities.obtain("alice")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            method, path = head.split()[:2]
            status, found, raw = current[0].answer(method.decode(), path.decode())
            writer.write(spoken(current[0].case, status, found, raw))
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    requests = 0
    for case in cases(amount // SOCKET_SHARE // CALLS):
        with replayable(case):
            current[0] = Saying(case)
            signalling = RestSignalling(url, identities, timeout=PATIENCE / 10)
            try:
                await call_everything(case, signalling, outcomes)
            finally:
                await signalling.close()
            requests += current[0].requests
            check(case, watch)
    server.close()
    await server.wait_closed()
    print(f"{requests} answers over sockets; {outcomes}")


def spoken(case: Case, status: int, found: dict[str, str], raw: bytes) -> bytes:
    """The bytes of an answer, more or less HTTP."""
    found = {
        name: value for name, value in found.items() if name != "Retry-After" or not value.isdecimal() or value == "0"
    }
    lines = [f"HTTP/1.1 {status} Whatever", "Connection: close", f"Content-Length: {len(raw)}"]
    lines += [f"{name}: {value}" for name, value in found.items()]
    data = "\r\n".join([*lines, "", ""]).encode("utf-8", "replace") + raw
    if case.chance(0.5):
        return data
    what = case.random.randrange(6)
    if what == 0:
        return data.replace(
            b"Content-Length: ", case.random.choice((b"Content-Length: 1", b"Content-Length: -", b"X: "))
        )
    if what == 1:
        chunks = case.random.choice(
            (b"zz\r\n", b"ffffffffffffffff\r\n", b"2\r\n{}\r\n0\r\n\r\n", b"5\r\n{}", b"-1\r\n")
        )
        return data.split(b"\r\n\r\n")[0] + b"\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks
    if what == 2:
        more = (b"X-A: " + b"a" * 9_000, b"X\0: 1", b": 1", b"Set-Cookie: =\xff;;=", b"Content-Encoding: gzip")
        return data.replace(b"\r\n", b"\r\n" + case.random.choice(more) + b"\r\n", 1)
    if what == 3:
        return data[: case.random.randrange(len(data))]
    return case.scramble(data)
