"""Each request of the signalling client against each way in which a server can be wrong: an error that names it."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from rondevu_client import Daemon
from rondevud.durable import service
from rondevud.errors import SignallingError, SignallingGarbled, SignallingRejected, SignallingUnreachable
from rondevud.signalling import http
from rondevud.signalling.base import Candidate
from rondevud.signalling.identity import Identities
from rondevud.signalling.rest import RestSignalling
from tests.integration.daemons import (
    FQN,
    PATIENCE,
    SCALE,
    SERVICE,
    Exchange,
    Pair,
    Place,
    open_pair,
    open_world,
    watch,
)
from tests.integration.misbehaving import BEHAVIOURS, ROUTES, MisbehavingServer, answering, refusing, saying

ERRORS: dict[str, tuple[type[SignallingError], str]] = {
    "html": (SignallingGarbled, "not an answer of a Rondevu server: '<html>It works!</html>'"),
    "no members": (SignallingGarbled, r"member \w+ is missing"),
    "wrong types": (SignallingGarbled, r"member \w+ is .* instead of"),
    "a list": (SignallingGarbled, "not an answer of a Rondevu server"),
    "500": (SignallingUnreachable, "500: oops"),
    "503": (SignallingUnreachable, "503: overloaded"),
    "byte by byte": (SignallingUnreachable, r"no answer within 0.\d s"),
    "never": (SignallingUnreachable, r"no answer within 0.\d s"),
    "huge": (SignallingGarbled, r"larger than \d+ bytes"),
    "redirect": (SignallingGarbled, r"redirects to https://elsewhere\.example/"),
    "401": (SignallingRejected, "401: Invalid credentials"),
    "429 for seconds": (SignallingUnreachable, "429: Too many requests"),
    "429 until a date": (SignallingUnreachable, "429: Too many"),
    "another protocol": (SignallingGarbled, "the answer is not HTTP"),
}


class Caller:
    """Makes the request of any route; everything it needs before is there."""

    def __init__(self, signalling: RestSignalling) -> None:
        self.signalling = signalling
        self.publisher = signalling.publisher("alice", FQN)
        self._numbers = itertools.count(1)

    def sdp(self) -> str:
        """No server takes an SDP twice."""
        return f"sdp {next(self._numbers)}"

    async def publish(self) -> None:
        publication = await self.publisher.publish(self.sdp(), ttl=300, public=False, metadata=None)
        self.uuid, self.offer_id = publication.uuid, publication.offer_id

    def request(self, route: str) -> Callable[[], Awaitable[object]]:
        signalling, publisher = self.signalling, self.publisher
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "register": signalling._peer.authorization,
            "claim": lambda: signalling.claim("alice"),
            "check": lambda: signalling.check("alice"),
            "publish": self.publish,
            "add_offers": lambda: publisher.add_offers([self.sdp()], ttl=300),
            "answers": publisher.answers,
            "find": lambda: signalling.discover("alice", FQN),
            "discover": lambda: signalling.discover_uuid(self.uuid),
            "answer": lambda: signalling.answer(self.offer_id, self.sdp()),
            "read_candidates": lambda: signalling.offer_candidates(self.offer_id),
            "add_candidates": lambda: signalling.add_answer_candidates(self.offer_id, [Candidate("candidate:1")]),
        }
        return calls[route]


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MisbehavingServer]:
    monkeypatch.setattr(http, "BACKOFF", 0.01)
    async with MisbehavingServer() as server:
        yield server


@pytest.fixture
async def caller(server: MisbehavingServer, tmp_path: Path) -> AsyncIterator[Caller]:
    signalling = RestSignalling(server.url, Identities(tmp_path))
    caller = Caller(signalling)
    await caller.publish()
    yield caller
    await signalling.close()


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
async def test_every_request_names_what_is_wrong_and_works_when_the_server_does(
    server: MisbehavingServer, caller: Caller, behaviour: str
) -> None:
    error_type, words = ERRORS[behaviour]
    patience = caller.signalling._http._timeout
    for route in ROUTES:
        if route == "add_candidates" and behaviour in {"no members", "wrong types"}:
            continue  # nothing is read in its answer
        call = caller.request(route)
        server.wrong = {route: BEHAVIOURS[behaviour]}
        server.requests.clear()
        if behaviour in {"byte by byte", "never"}:
            caller.signalling._http._timeout = 0.1
        with pytest.raises(error_type, match=words) as refused:
            await call()
        assert f"{ROUTES[route].split()[0]} {server.url}" in str(refused.value)
        assert 1 <= server.requests[route] <= http.TRIES, "no call goes on for ever"
        if behaviour.startswith("429"):
            assert refused.value.retry_after is not None
            assert 55 <= refused.value.retry_after <= 61
            assert server.requests[route] == 1, "not before it may"
        server.wrong = {}
        caller.signalling._http._timeout = patience
        if behaviour == "401":
            await caller.publish()  # the offers belong to credentials that the server refuses
        await call()


@pytest.mark.parametrize("character", ["\n", "\x1b", "\ud800", " "])
async def test_ids_and_credentials_with_characters_that_none_has_are_refused(
    server: MisbehavingServer, caller: Caller, character: str
) -> None:
    for route, member in (("register", "secret"), ("find", "uuid"), ("publish", "offerId")):
        body = {"peerId": "p", "secret": "s", "uuid": "u", "serviceId": "s", "offerId": "o", "expiresAt": 2 * 10**12}
        server.wrong = {route: saying(body | {member: f"a{character}b"})}
        with pytest.raises(SignallingGarbled, match=f"member {member} has characters that no id has"):
            await caller.request(route)()


async def test_a_refusal_is_told_on_one_short_line_that_anybody_can_be_given(
    server: MisbehavingServer, caller: Caller
) -> None:
    server.wrong = {"check": refusing(400, "bad\r\nERROR forged line \x1b[31m\ud800" + "x" * 100_000)}
    with pytest.raises(SignallingRejected, match="400: bad ERROR forged line") as refused:
        await caller.signalling.check("alice")
    assert len(str(refused.value)) < 400
    assert str(refused.value).isprintable()


async def test_half_a_character_in_an_sdp_costs_that_sdp_only(server: MisbehavingServer, caller: Caller) -> None:
    answer = {"offerId": caller.offer_id, "answererId": "a", "sdp": "v=0 \ud800", "answeredAt": 1}
    server.wrong = {"answers": saying({"answers": [answer]})}
    assert [found.sdp for found in await caller.publisher.answers()] == ["v=0 ?"]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("999999999999", http.MAX_RETRY_AFTER),
        ("Mon, 01 Jan 9999 00:00:00 GMT", http.MAX_RETRY_AFTER),
        ("Mon, 01 Jan 1990 00:00:00 GMT", 0.0),
        ("Mon, 01 Jan 99999999999999999999 00:00:00 GMT", None),
        ("Mon, 01 Jan 2020 00:00:00 +99999999999999", None),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
    ],
)
async def test_a_retry_after_is_bounded_and_one_that_is_none_does_not_count(
    server: MisbehavingServer, caller: Caller, value: str, seconds: float | None
) -> None:
    server.wrong = {"check": answering(503, text="{}", headers={"Retry-After": value})}
    with pytest.raises(SignallingUnreachable) as refused:
        await caller.signalling.check("alice")
    assert refused.value.retry_after == seconds


# --- the daemon ------------------------------------------------------------------------------------------------------


async def trouble_is_over(program: Daemon, name: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while await error_of(program, name) is not None:
            pass


async def error_of(program: Daemon, name: str) -> str | None:
    """What the row of a service or connection says is wrong."""
    rows = [*await program.services(), *await program.connections()]
    (error,) = [row["error"] for row in rows if name in {row.get("name"), f"{row.get('username')}/{row.get('fqn')}"}]
    return error


def be_impatient(place: Place, behaviour: str) -> float:
    """Where nothing answers, do not wait long for it: only as long as that lasts, or a busy machine is taken for it."""
    http = place.house.holdings.signalling._http
    patience: float = http._timeout
    if behaviour == "never":
        http._timeout = 0.4
    return patience


def be_patient(place: Place, patience: float) -> None:
    place.house.holdings.signalling._http._timeout = patience


async def expose_against(server: MisbehavingServer, pair: Pair, route: str, behaviour: str) -> str:
    """A service whose requests of that kind fail, until they do not; answers its name."""
    fqn = f"com.example.{route.replace('_', '-')}@1.0.0"
    name = f"alice/{fqn}"
    events = await watch(pair.program)
    patience = be_impatient(pair.home, behaviour)
    server.wrong = {route: BEHAVIOURS[behaviour]}
    exposing = asyncio.ensure_future(pair.program.expose_service("alice", fqn, pool_size=2, **SERVICE))
    context = "poll" if route == "answers" else "publish"
    for _ in range(2):
        failed = await events.next("error", service=name, context=context)
        assert re.search(ERRORS[behaviour][1], failed["message"]), failed
    assert re.search(ERRORS[behaviour][1], await error_of(pair.program, name) or "")
    server.wrong = {}
    be_patient(pair.home, patience)
    await asyncio.wait_for(exposing, PATIENCE)
    await trouble_is_over(pair.program, name)
    await pair.program.withdraw("alice", fqn)
    return name


async def connect_against(server: MisbehavingServer, pair: Pair, route: str, behaviour: str) -> None:
    events = await watch(pair.visitor)
    patience = be_impatient(pair.away, behaviour)
    server.wrong = {route: BEHAVIOURS[behaviour]}
    await pair.visitor.connect("alice", FQN, name=route)
    for _ in range(2):
        trying = await events.next("reconnecting")
        assert re.search(ERRORS[behaviour][1], trying["error"]), trying
    assert re.search(ERRORS[behaviour][1], await error_of(pair.visitor, route) or "")
    server.wrong = {}
    be_patient(pair.away, patience)
    await pair.visitor.wait(route, "connected", PATIENCE)
    assert await error_of(pair.visitor, route) is None


@pytest.mark.webrtc
@pytest.mark.timeout(120 * SCALE)
@pytest.mark.parametrize("behaviour", ["html", "never", "401"])
async def test_a_daemon_says_once_what_is_wrong_goes_on_with_its_links_and_recovers_by_itself(
    server: MisbehavingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, behaviour: str
) -> None:
    monkeypatch.setattr(service, "RETRY", (0.05, 0.1))
    caplog.set_level(logging.INFO, "rondevud.durable")
    async with open_world(tmp_path, signalling=False) as world:
        world.url = server.url
        pair = await open_pair(world, pool_size=3)
        exchange = Exchange(pair.near, pair.far, 2_000)

        async def misbehave() -> None:
            await exchange.there.reached(100).wait()
            for route in ("publish", "add_offers", "answers"):
                name = await expose_against(server, pair, route, behaviour)
                told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
                mine = [line for line in told if line.startswith(f"{name}: ")]
                assert len(mine) == len(set(mine)) >= 1, mine
                context = "poll" if route == "answers" else "publish"
                assert f"{name}: {context}: works again" in [record.getMessage() for record in caplog.records]
            for route in ("find", "discover", "answer"):
                await connect_against(server, pair, route, behaviour)

        await exchange.run(misbehave())


async def test_candidates_are_read_from_the_beginning_each_time_and_passed_on_once(
    server: MisbehavingServer, caller: Caller
) -> None:
    await caller.publisher.add_candidates(caller.offer_id, [Candidate("candidate:1"), Candidate("candidate:1")])
    assert await caller.signalling.offer_candidates(caller.offer_id) == [Candidate("candidate:1")]
    assert await caller.signalling.offer_candidates(caller.offer_id) == []
    paths = [path for route, path, _ in server.seen if route == "read_candidates"]
    assert len(paths) == 2
    assert all(path.endswith("?since=0") for path in paths)
