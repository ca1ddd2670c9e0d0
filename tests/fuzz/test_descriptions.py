"""Broken SDP and candidates from signalling: refused as `TransportError`, by the readers and by the engine."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter

import pytest

from rondevud.durable import sdp as durable_sdp
from rondevud.errors import TransportError
from rondevud.transport import sdp as transport_sdp
from rondevud.transport.aiortc import AiortcEngine
from rondevud.transport.sdp import Kind
from tests.fuzz.mutator import AMOUNTS, CASES, Case, cases, replayable
from tests.fuzz.watching import Watch, watching

pytestmark = pytest.mark.once

FINGERPRINT = ":".join(["AB"] * 32)
HEAD = "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0\r\na=msid-semantic:WMS *\r\n"
BODY = (
    "m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\nc=IN IP4 0.0.0.0\r\na=mid:0\r\na=sctp-port:5000\r\n"
    "a=max-message-size:262144\r\na=ice-ufrag:abcd\r\na=ice-pwd:0123456789012345678901\r\n"
    f"a=fingerprint:sha-256 {FINGERPRINT}\r\na=setup:actpass\r\n"
    "a=candidate:1 1 udp 2130706431 127.0.0.1 5000 typ host\r\n"
    "a=candidate:2 1 udp 1694498815 192.0.2.1 5001 typ srflx raddr 127.0.0.1 rport 5000\r\n"
    "a=candidate:3 1 tcp 1518280447 127.0.0.1 9 typ host tcptype active\r\n"
    "a=candidate:4 1 udp 2130706431 6ac5d7fb-2b3a-4d0e-8d0c-000000000000.local 5002 typ host\r\n"
    "a=candidate:5 1 udp 2130706430 ::1 5003 typ host\r\na=end-of-candidates\r\n"
)
OFFER = f"{HEAD}a=x-rondevu-link:1\r\n{BODY}"
ANSWER = OFFER.replace("actpass", "active")
CANDIDATE = "candidate:1 1 udp 2130706431 127.0.0.1 5000 typ host"

SLOWEST = 1.0
"""Seconds that one text may take its readers: an expression that goes wild takes hours."""

WARM_UP = 1_000
"""Cases after which memory is not to grow."""

GROWTH = 16 * 2**20
"""Bytes by which it may all the same: what the allocator keeps."""

CHECKED_EVERY = 1_000

ENGINE_CASES = 150
"""Texts for the engine in CI: each of them makes connections."""

SOAK_ENGINE_CASES = 5_000
ENGINE_AMOUNTS = [
    pytest.param(ENGINE_CASES, id="ci", marks=[pytest.mark.timeout(300)]),
    pytest.param(SOAK_ENGINE_CASES, id="long", marks=[pytest.mark.soak, pytest.mark.timeout(6 * 3600)]),
]


def broken(case: Case, text: str) -> str:
    if case.chance(0.03):
        return case.text() * case.random.choice((1, 1_000))
    if case.chance(0.2):
        return case.damage_text(text)
    return case.damage_lines(text)


def read(text: str, kind: Kind) -> bool:
    """Everything that is read in a text before an engine sees it; whether it would be given to one as a `kind`."""
    marked = durable_sdp.mark(text)
    assert durable_sdp.link_versions(text) is not None
    durable_sdp.link_versions(marked)
    durable_sdp.addresses(text)
    for candidate in durable_sdp.candidates(text):
        transport_sdp.parse_candidate(candidate.candidate)
    with contextlib.suppress(TransportError):
        assert len(durable_sdp.fingerprint(text)) == 32
    with contextlib.suppress(TransportError):
        description = transport_sdp.check_description(text, kind)
        assert description.candidates <= transport_sdp.MAX_CANDIDATES
        return True
    return False


def read_both(case: Case, text: str, kind: Kind, line: str) -> bool:
    """A text and a candidate; whether the text would be given to an engine."""
    usable = read(case.feed(text), kind)
    parsed = transport_sdp.parse_candidate(case.feed(line))
    assert parsed is None or 0 < parsed.port < 2**16
    return usable


def check(case: Case, watch: Watch) -> None:
    watch.check()
    if case.turn == WARM_UP:
        watch.begin_memory()
    elif case.turn > WARM_UP and case.turn % CHECKED_EVERY == 0:
        watch.check_memory(GROWTH)


@pytest.mark.parametrize("amount", AMOUNTS)
async def test_readers_of_descriptions_refuse_broken_ones(amount: int) -> None:
    usable = 0
    slowest = 0.0
    with watching() as watch:
        for case in cases(amount):
            with replayable(case):
                kind: Kind = case.random.choice(("offer", "answer"))
                template = OFFER if (kind == "offer") == case.chance(0.8) else ANSWER
                text, line = broken(case, template), case.damage_text(CANDIDATE)
                began = time.monotonic()
                usable += read_both(case, text, kind, line)
                taken = time.monotonic() - began
                if taken >= SLOWEST:  # or it is the machine that was busy with something else
                    began = time.process_time()
                    read_both(case, text, kind, line)
                    taken = time.process_time() - began
                    assert taken < SLOWEST
                slowest = max(slowest, taken)
                check(case, watch)
    print(f"{amount} texts, {usable} of them usable; the slowest took {slowest * 1000:.1f} ms")
    assert 0 < usable < amount or amount < CASES


@pytest.mark.webrtc
@pytest.mark.parametrize("amount", ENGINE_AMOUNTS)
async def test_the_engine_refuses_broken_descriptions(amount: int) -> None:
    outcomes: Counter[str] = Counter()
    engine = AiortcEngine(gathering_time=0.05)
    with watching() as watch:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(
            lambda _loop, context: (
                None if engine.absorb(context) else watch.complaints.append(f"in the loop: {context}")
            )
        )
        for case in cases(amount):
            with replayable(case):
                await take_badly(case, engine, outcomes)
                watch.check()
        await engine.close()
    print(outcomes, engine.counters)
    assert engine.counters["close_errors"] == engine.counters["tasks_left"] == 0


async def take_badly(case: Case, engine: AiortcEngine, outcomes: Counter[str]) -> None:
    """One text that the checks let through, or trickled candidates; what comes of it is a connection or an error."""
    connection = engine.create_peer_connection()
    try:
        if case.chance(0.5):
            text = usable_text(case, OFFER)
            await connection.create_answer(text)
        else:
            connection.create_data_channel("main")
            offer = await connection.create_offer()
            text = usable_text(case, ANSWER)
            assert durable_sdp.fingerprint(offer)
            await connection.accept_answer(text)
        outcomes["taken"] += 1
    except TransportError as error:
        outcomes[str(error).split(":")[0][:40]] += 1
    for _ in range(3):
        await connection.add_candidate(
            case.feed(case.damage_text(CANDIDATE)), case.text(), case.random.choice((None, 0, 9))
        )
    await connection.close()


def usable_text(case: Case, text: str) -> str:
    """A broken text that gets as far as the engine, if one is found soon."""
    candidate = text
    for _ in range(30):
        candidate = broken(case, text)
        with contextlib.suppress(TransportError):
            transport_sdp.check_description(candidate, "offer" if text is OFFER else "answer")
            break
    return str(case.feed(candidate))
