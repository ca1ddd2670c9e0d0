"""Broken frames on a link, on either side of it: goodbye `protocol` and counters, and nobody else is disturbed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from rondevud.durable import frames
from rondevud.durable.session import DurableSession
from rondevud.transport.base import ChannelState
from tests.fuzz.link_input import BadPeer, understood
from tests.fuzz.link_peers import PRINTS, Line, Owner, Table, Wire, settle
from tests.fuzz.mutator import AMOUNTS, Case, cases, replayable
from tests.fuzz.watching import Watch, watching

pytestmark = pytest.mark.once

FRAMES = 16
"""Frames of one case about."""

WARM_UP = 200
"""Cases after which memory is not to grow."""

GROWTH = 24 * 2**20
"""Bytes by which it may all the same: what the allocator keeps."""

LAST_WORDS = (frames.Goodbye, frames.Refuse)


@pytest.fixture
async def watch() -> AsyncIterator[Watch]:
    with watching() as watch:
        yield watch


@pytest.fixture
async def table(watch: Watch) -> AsyncIterator[Table]:
    table = Table()
    await table.connect_good()
    yield table
    await table.close()


@pytest.mark.parametrize("amount", AMOUNTS)
async def test_a_service_outlives_broken_frames(amount: int, table: Table, watch: Watch) -> None:
    fed = ended = 0
    for case in cases(amount // FRAMES):
        with replayable(case):
            table.say()
            fed, ended = fed + await visit_badly(case, table), ended + 1
            await check(case, table, watch)
    print(f"{fed} frames on {ended} links, {table.counters}, {table.environment.counters}")
    assert ended == 1 or fed >= 0.7 * amount


async def check(case: Case, table: Table, watch: Watch) -> None:
    watch.check()
    if case.turn == WARM_UP:
        watch.begin_memory()
    if case.turn % 100 == 99:
        await table.check_good()
        if case.turn > WARM_UP:
            watch.check_memory(GROWTH)


async def visit_badly(case: Case, table: Table) -> int:
    """One bad peer: up to three links of one session, one after another or at once. Answers how many frames it sent."""
    peer, lines, fed = BadPeer(case), [], 0
    for number in range(case.random.choice((1, 1, 2, 3))):
        line = table.arrive()
        lines.append(line)
        await settle(2)
        fed += await feed(case, line, peer.hello(again=number > 0 and case.chance(0.7)))
        await settle()
        heard_of(peer, line)
        visit = table.visit(peer.session)
        for _ in range(case.random.randrange(20)):
            if line.state is not ChannelState.OPEN:
                break
            if visit is not None and case.chance(0.15):
                send_back(case, visit.session)
            fed += await feed(case, line, peer.next_frame())
            if case.chance(0.4):
                await settle(6)
                heard_of(peer, line)
    await settle()
    for line in lines:
        await end(peer, line)
    table.forget(peer.session)
    return fed


async def feed(case: Case, line: Line, data: Any) -> int:
    line.take(case.feed(data))
    return 1


def send_back(case: Case, session: DurableSession) -> None:
    """The service has something for the bad peer, too."""
    for label, channel in session.channels.items():
        if channel.refusal is None:
            session.execute(session.put(label, (case.random.choice(("text", b"x" * 20_000)),)))


def heard_of(peer: BadPeer, line: Line) -> list[frames.Frame]:
    heard, line.sent = understood(peer, line.sent), []
    line.last = heard[-1] if heard else getattr(line, "last", None)  # type: ignore[attr-defined]
    return heard


async def end(peer: BadPeer, line: Line) -> None:
    """The bad peer goes. A link that the daemon had ended before was ended with a word."""
    heard_of(peer, line)
    if line.state is not ChannelState.OPEN and not peer.refused:
        assert isinstance(line.last, LAST_WORDS), f"closed behind {line.last}"  # type: ignore[attr-defined]
    line.wire.end()
    await settle(4)


@pytest.mark.parametrize("amount", AMOUNTS)
async def test_a_connecting_side_outlives_a_broken_service(amount: int, table: Table, watch: Watch) -> None:
    fed = ended = 0
    for case in cases(amount // FRAMES):
        with replayable(case):
            table.say()
            fed, ended = fed + await serve_badly(case, table), ended + 1
            await check(case, table, watch)
    print(f"{fed} frames on {ended} links, {table.counters}, {table.environment.counters}")
    assert ended == 1 or fed >= 0.5 * amount


async def serve_badly(case: Case, table: Table) -> int:
    owner, peer, fed = Owner(), BadPeer(case), 0
    session = table.new_session(f"bad-{case.number}", owner)
    try:
        for _ in range(case.random.choice((1, 1, 2, 3))):
            wire = Wire()
            line = wire.create_data_channel(frames.LABEL, protocol=frames.PROTOCOL)
            session.open_link(wire, line, PRINTS)
            await settle()
            for number in range(case.random.randrange(20)):
                heard_of(peer, line)
                if line.state is not ChannelState.OPEN:
                    break
                if case.chance(0.15):
                    send_back(case, session)
                fed += await feed(case, line, peer.welcome() if number == 0 else peer.next_frame())
                if number == 0 or case.chance(0.4):
                    await settle(6)
            await end(peer, line)
            assert not [told for told in owner.told if told == "failed store_conflict"]
    finally:
        session.forget()
    return fed
