"""A peer that is dead, or cannot be heard any more, is suspect within 5 s: what real daemons say, through a relay.

The heartbeat is the default, the moments are the daemons' own (their logs), and they are compared with the last datagram
that came through the relay.
"""

from __future__ import annotations

import asyncio
import signal
import time
from typing import NamedTuple

import pytest

from tests.acceptance.processes import SCALE, Daemon, Stage
from tests.faults.pair import Lag, Pair, open_pair, until_line
from tests.faults.relay import Way, Weather

LIMIT = 5.0
"""Seconds within which a side must suspect that it hears nothing any more."""

LONGEST = 300.0 * SCALE

pytestmark = [pytest.mark.acceptance, pytest.mark.once, pytest.mark.timeout(LONGEST + 20)]

NARROW = Weather(rate=400_000.0)
"""Bulk fills the path, not the processor: what is sent waits, and so does every heartbeat behind it."""

BULK = 4 * 1024 * 1024
CHUNK = 64 * 1024
"""Bytes that a side sends while it is busy, and of one message: more than the path takes meanwhile."""

SUSPECT = r"nothing heard for [\d.]+ s"
TOLD = f"{SUSPECT}|the peer hears nothing any more"
"""What the side may say that still hears the other: unless that has nothing to say any more, it was told."""


class Case(NamedTuple):
    """What happens to the peer, or the path, of whom."""

    what: str
    """``kill`` or ``stop`` (a process), ``block`` (a way, or both)."""
    whom: str
    """``service``, ``connection`` or ``both``: which process it happens to, or who does not hear anything any more."""


class Seen(NamedTuple):
    """What a side said: seconds of silence as it measured them, and since anything came through to the one that is deaf."""

    pair: str
    case: Case
    side: str
    silence: float
    since: float
    lag: float

    def __str__(self) -> str:
        what = f"{self.pair}: {self.case.what} {self.case.whom}, seen by the {self.side}"
        return f"{what}: silent {self.silence:.1f} s, {self.since:.2f} s after the last datagram (lag {self.lag:.2f} s)"

    @property
    def in_time(self) -> bool:
        return self.silence <= LIMIT and self.since <= LIMIT + 2 * self.lag


DEATHS = [Case(what, whom) for what in ("stop", "kill") for whom in ("service", "connection")]
HOLES = [Case("block", whom) for whom in ("both", "service", "connection")]

PLAN: dict[str, tuple[set[str], list[Case]]] = {
    "idle": (set(), [*HOLES, DEATHS[0]]),
    "quiet": (set(), DEATHS[1:]),
    "busy service": ({"service"}, DEATHS),
    "busy connection": ({"connection"}, [HOLES[0], *DEATHS]),
    "busy both ways": ({"service", "connection"}, [*HOLES, DEATHS[0]]),
}
"""Per pair: who sends bulk, and what happens one after the other."""


async def test_a_peer_that_is_not_heard_any_more_is_suspect_within_five_seconds(tmp_path):
    assert sum(len(cases) for _, cases in PLAN.values()) == 20
    async with Stage(tmp_path, LONGEST) as stage, Lag.measured() as lag:
        await stage.rendezvous.start()
        turn = asyncio.Lock()
        async with asyncio.TaskGroup() as group:
            runs = [group.create_task(run(stage, turn, lag, name), name=name) for name in PLAN]
    seen = [each for task in runs for each in task.result()]
    print(*seen, sep="\n")
    late = [str(each) for each in seen if not each.in_time]
    assert not late, "\n".join(late)


async def run(stage: Stage, turn: asyncio.Lock, lag: Lag, name: str) -> list[Seen]:
    """One pair through its cases; pairs start one after the other."""
    busy, cases = PLAN[name]
    seen = []
    async with open_pair(stage, f"-{name.replace(' ', '-')}") as pair:
        async with turn:
            await pair.start()
        if busy:
            pair.relay.set(NARROW)
        for case in cases:
            for side in busy:
                await keep_busy(pair, side)
            await pair.settled()
            seen += await happen(pair, case, name, lag)
    return seen


async def keep_busy(pair: Pair, side: str) -> None:
    """Have so much in the outbox of that side that it does not end before the case does."""
    daemon = daemon_of(pair, side)
    async with daemon.client() as client:
        (row,) = await client.connections()
        queued = (await client.queue(row["connection_id"], "main"))["queue_bytes"]
        channel = await client.attach(row["connection_id"], "main", mode="send")
        for _ in range((BULK - queued) // CHUNK):
            await channel.send(bytes(CHUNK))


async def happen(pair: Pair, case: Case, name: str, lag: Lag) -> list[Seen]:
    """Let it happen, wait until whoever is left alone says so, and undo it."""
    sides = {"service", "connection"} if case.whom == "both" else {case.whom}
    deaf = sides if case.what == "block" else {"service", "connection"} - sides
    since = time.time()
    if case.what == "block":
        pair.relay.block(*(way_to(pair, side) for side in deaf))
    elif case.what == "stop":
        daemon_of(pair, case.whom).process.send(signal.SIGSTOP)
    else:
        await daemon_of(pair, case.whom).kill()
    try:
        seen = [await suspicion(pair, case, name, side, side, since, lag) for side in sorted(deaf)]
        if case.what == "block" and len(deaf) == 1:
            (hearing,) = {"service", "connection"} - deaf
            seen.append(await suspicion(pair, case, name, hearing, *deaf, since, lag))
        return seen
    finally:
        if case.what == "block":
            pair.relay.open()
        elif case.what == "stop":
            daemon_of(pair, case.whom).process.send(signal.SIGCONT)
        else:
            await daemon_of(pair, case.whom).start()


async def suspicion(pair: Pair, case: Case, name: str, side: str, deaf: str, since: float, lag: Lag) -> Seen:
    line = await until_line(daemon_of(pair, side), SUSPECT if side == deaf else TOLD, since)
    said = line.text.partition("nothing heard for ")[2]
    silence = float(said.split()[0]) if said else 0.0
    last = way_to(pair, deaf).last
    return Seen(name, case, side, silence, line.at - last, lag.since(since))


def daemon_of(pair: Pair, side: str) -> Daemon:
    return pair.service if side == "service" else pair.connection


def way_to(pair: Pair, side: str) -> Way:
    return pair.relay.to_service if side == "service" else pair.relay.to_connecting
