"""Every failpoint is hit once, many in one run: whenever a daemon has died at one it comes back with the next one set.

One long stream goes both ways meanwhile, and the jury judges it at the end. Which point of a run did the damage is found
out with the tests of one point each (``test_failpoints.py``).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import sqlite3
from collections.abc import AsyncIterator, Coroutine, Iterable
from typing import Any

import pytest

from rondevud import failpoints, records
from tests.acceptance.processes import LIMIT, PATIENCE, SCALE, Stage
from tests.acceptance.programs.content import LABELS
from tests.acceptance.test_failpoints import (
    EVERY,
    MEETING,
    MEETING_SERVICE,
    PEER_STOPPING,
    PLAIN,
    REFUSED,
    REOPENING,
    SEED,
    STOPPING,
    STREAM,
    UPGRADING,
    forget_everything,
    hand_over_to_a_plain_peer,
    open_anew,
)
from tests.jury.trial import CONNECTING, SERVICE, Trial
from tests.unit.test_failpoints import FRAME_PLACES, OPERATION_PLACES, POINTS

pytestmark = [pytest.mark.acceptance, pytest.mark.once, LIMIT]

LONG_CHAIN = 200 * SCALE
"""Seconds for a run over most of the points."""

FIRST = ("MarkAttached", "CreateChannel", "OpenProducer")
"""Operations of which there are more at the beginning than later."""

FROM_A_START = ("receive.before.skip", "receive.after.skip")
"""Comes from the peer after a start of its own."""

MORE = 12
"""Messages that are let through on each label whenever all that were have been accepted."""

HITS = {
    "attach": (1, 3),
    "OpenProducer": (1, 3),
    "MarkAttached": (1, 1),
    "channel": (1, 3),
    "skip": (1, 3),
    "commit": (8, 20),
}
"""At which hits to die, for points with such a word in their name."""


def at(point: str) -> str:
    """At which hit of `point` to die, drawn with the seed."""
    hits = next((hits for word, hits in HITS.items() if word in point), (1, 6))
    return f"{point}:{random.Random(f'{SEED} {point}').randint(*hits)}"


def test_every_point_is_tried():
    tried = {*EVERY, *UPGRADING}
    of_frames = {f"{place}.{kind}" for place in FRAME_PLACES for kind in failpoints.FRAME_KINDS.values()}
    of_operations = {point for point in tried if point.startswith(OPERATION_PLACES)}
    assert tried == {*POINTS} | of_frames | of_operations
    for point in of_operations:
        assert issubclass(getattr(records, point.partition(".")[2]), records.Operation)


class Chain:
    """A run in which daemons die at one point after another."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self.done: list[str] = []
        """The points at which one has died."""

    async def die(self, victim: str, point: str) -> None:
        """Start `victim` with that point set, and wait until it has died there."""
        await self.trial.daemons[victim].launch(point if ":" in point else f"{point}:1")
        await self.died(victim, point)

    async def died(self, victim: str, point: str) -> None:
        name = point.partition(":")[0]
        await self.trial.died(victim, name)
        self.done.append(name)

    async def keep_going(self) -> None:
        """Let messages through, for ever: whenever all that were let through are accepted."""
        while True:
            for program in self.trial.programs.values():
                await program.until_count("accepted", self.trial.count * len(LABELS), within=LONG_CHAIN)
            self.trial.allow(MORE)


@contextlib.asynccontextmanager
async def in_background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Endless work that goes on meanwhile."""
    task = asyncio.create_task(work, name="in the background")
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@contextlib.asynccontextmanager
async def chain(tmp_path) -> AsyncIterator[Chain]:
    """A trial whose daemons are not started yet; its verdict at the end, with the points if it is a bad one."""
    async with Stage(tmp_path, LONG_CHAIN) as stage:
        chain = Chain(await Trial.prepare(stage, LONG_CHAIN))
        try:
            yield chain
            assert await chain.trial.verdict() == []
        except BaseException:
            print(f"seed {SEED}; died at: {' '.join(chain.done)}")
            with contextlib.suppress(OSError, sqlite3.Error):  # before there is a log or a store
                print(f"the jury: {chain.trial.judge()}")
            raise


@pytest.mark.timeout(LONG_CHAIN + 20)
async def test_a_daemon_dies_at_each_point_of_a_stream(tmp_path):
    async with chain(tmp_path) as run:
        trial = run.trial
        trial.open = True
        await trial.daemons[SERVICE].start()
        for point in MEETING:
            await run.die(CONNECTING, point)
        dying = asyncio.create_task(die_at_each(run, STREAM), name="die")
        await trial.start_program(CONNECTING)
        await trial.start_program(SERVICE)
        async with in_background(run.keep_going()):
            await dying
        await stop_at_each(run)
        await meet_at_each(run)
        assert sorted(run.done) == sorted([*MEETING, *STREAM, *STOPPING, *PEER_STOPPING, *MEETING_SERVICE])
        trial.close()


async def die_at_each(run: Chain, points: Iterable[str]) -> None:
    """The connecting daemon, one point after another."""
    service = run.trial.daemons[SERVICE]
    for point in sorted(points, key=lambda point: point.partition(".")[2] not in FIRST):
        if point in FROM_A_START:
            await service.kill()
            await service.launch()
        await run.die(CONNECTING, at(point))


async def stop_at_each(run: Chain) -> None:
    """The connecting daemon dies while it stops, or while the other one does."""
    service, connection = run.trial.daemons[SERVICE], run.trial.daemons[CONNECTING]
    await connection.start()
    assert await connection.stop() == 0  # what those that were killed left in the log would be checkpointed at a start
    for point in (*STOPPING, *PEER_STOPPING):
        await connection.launch(f"{point}:1")
        await run.trial.connected()
        stopping = (service if point in PEER_STOPPING else connection).process
        stopping.send(signal.SIGTERM)
        await run.died(CONNECTING, point)
        if point in PEER_STOPPING:
            assert await stopping.exited() == 0
            await service.launch()


async def meet_at_each(run: Chain) -> None:
    """The daemon with the service dies when a peer comes; the peer begins anew with it, which is quicker than to wait."""
    service, connection = run.trial.daemons[SERVICE], run.trial.daemons[CONNECTING]
    await connection.launch()
    for point in MEETING_SERVICE:
        await asyncio.gather(service.kill(), connection.kill())
        await asyncio.gather(connection.launch(), run.die(SERVICE, point))
        await service.launch()


async def test_a_daemon_dies_whenever_a_forgotten_session_is_refused(tmp_path):
    async with chain(tmp_path) as run:
        trial = run.trial
        await asyncio.gather(*(daemon.start() for daemon in trial.daemons.values()))
        for point in REFUSED:
            await trial.connected()
            await forget_everything(trial)
            victim = SERVICE if point.startswith("send") else CONNECTING
            other = CONNECTING if victim == SERVICE else SERVICE
            await asyncio.gather(trial.daemons[other].launch(), run.die(victim, point))
            await trial.daemons[victim].launch()
        assert sorted(run.done) == sorted(REFUSED)
        await trial.connected()
        await trial.start_programs()


async def test_a_daemon_dies_whenever_a_closed_label_is_opened_anew(tmp_path):
    async with Stage(tmp_path) as stage:
        trial = await Trial.prepare(stage)
        await trial.daemons[SERVICE].start()
        for point in REOPENING:
            await trial.daemons[CONNECTING].launch(f"{point}:1")
            await trial.connected()
            await open_anew(trial, point)
            await trial.daemons[CONNECTING].kill()


@pytest.mark.parametrize("point", PLAIN)
async def test_a_daemon_dies_when_it_hands_over_to_a_plain_peer(tmp_path, point):
    async with Stage(tmp_path) as stage, asyncio.timeout(2 * PATIENCE):
        await hand_over_to_a_plain_peer(stage, point)
