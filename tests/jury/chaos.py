"""Chaos: both daemons, both programs and the signalling server are killed at seeded moments; the jury judges what is left.

    python -m tests.jury.chaos --kills 300 --seed 1 --log chaos.txt

A trial ends after `TRIAL_KILLS` kills, with its verdict; the next one has the next seed. The log gets a line for each blow
and one for each verdict. What a seed decides is whom the blows hit, how, and how much must have been received before;
what exactly is under way at that moment is not in its hand.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, Self

from tests.acceptance.processes import PATIENCE, SCALE, STOPPING, Process, Stage
from tests.acceptance.programs.content import LABELS
from tests.jury.checker import Finding
from tests.jury.trial import CONNECTING, SERVICE, Trial

TRIAL_KILLS = 50
"""Kills in one trial of a long run."""

KILL_TIME = 8.0 * SCALE
"""Seconds that a kill may take with what follows: a killed service is missed after 4 s of silence."""

SIGNALLING = "signalling"
PROGRAM = "-program"
VICTIMS = (SERVICE, CONNECTING, SERVICE + PROGRAM, CONNECTING + PROGRAM, SIGNALLING)
WEIGHTS = (2, 5, 3, 3, 2)
"""How often each is hit: seldom the one that is missed only after 4 s of silence."""

CREEP = 3
"""Messages that the programs may send on each label beyond what the last blow waits for."""


class Blow(NamedTuple):
    """What happens at once."""

    victims: tuple[str, ...]
    action: str
    """``kill``, ``stop`` (SIGTERM, and a new start) or ``freeze`` (SIGSTOP, SIGCONT)."""
    progress: int
    """Messages that each program has to receive before; 0: whoever is still coming back from the last blow is hit, too."""
    delay: float
    """Seconds from then on."""
    pause: float
    """Seconds for which the victims stay away."""
    forgets: bool
    """Whether the signalling server, if it is one of them, comes back without what it knew."""

    def __str__(self) -> str:
        when = f"after {self.progress} messages" if self.progress else "while others come back"
        return f"{self.action} {' '.join(self.victims)} {when} + {self.delay:.3f} s, for {self.pause:.2f} s"


def plan(seed: int, kills: int, *, rough: bool) -> Iterator[Blow]:
    """Blows until so many processes have been killed; with `rough` also orderly stops and freezes."""
    draw = random.Random(seed)
    half = kills // 2
    while kills > 0:
        count = min(kills, draw.choices((1, 2, 3), (70, 20, 10))[0])
        if kills <= half:  # once in a trial, all at once
            count, half = min(kills, len(VICTIMS)), 0
        victims = {draw.choices(VICTIMS, WEIGHTS)[0]}
        while len(victims) < count:
            victims.add(draw.choice(VICTIMS))
        action = "kill"
        if rough and draw.random() < 0.15:
            victims, action = {draw.choice((SERVICE, CONNECTING))}, draw.choice(("stop", "freeze"))
        again = draw.random() < 0.25
        pause = draw.uniform(1, 6) if action == "freeze" else draw.choice((0.0, 0.0, draw.uniform(0, 0.5)))
        yield Blow(
            victims=tuple(victim for victim in VICTIMS if victim in victims),
            action=action,
            progress=0 if again else draw.randint(1, 40),
            delay=draw.uniform(0, 0.6) if again else draw.uniform(0, 0.03),
            pause=pause,
            forgets=draw.random() < 0.3,
        )
        if action == "kill":
            kills -= len(victims)


class Chaos:
    """One trial. Make it with `open`."""

    def __init__(self, trial: Trial, tell: Callable[[str], None]) -> None:
        """`tell` is told each blow."""
        self.kills = 0
        self._trial = trial
        self._tell = tell
        self._returns: dict[str, asyncio.Task[None]] = {}
        """How the victims of earlier blows come back: they are started, or go on."""
        self._frozen: set[str] = set()

    @classmethod
    async def open(cls, stage: Stage, patience: float, tell: Callable[[str], None]) -> Self:
        """Everything runs, and messages flow."""
        trial = await Trial.prepare(stage, patience)
        trial.open = True
        await asyncio.gather(*(daemon.start() for daemon in trial.daemons.values()))
        await trial.connected()
        await trial.start_programs()
        return cls(trial, tell)

    async def strike(self, blow: Blow) -> None:
        """Wait for the moment, hit, and see to it that the victims come back."""
        if blow.progress:
            await self._progress(blow.progress)
        else:
            self._trial.allow(CREEP)
        await asyncio.sleep(blow.delay)
        self._tell(f"{self.kills:4} killed: {blow}")
        act = {"kill": self._kill, "stop": self._stop, "freeze": self._freeze}[blow.action]
        for process in [await self._seize(victim, blow.action) for victim in blow.victims]:
            await act(process)
        for victim in blow.victims:
            back = self._thaw(victim, blow) if blow.action == "freeze" else self._start(victim, blow)
            self._returns[victim] = asyncio.create_task(back, name=f"{victim} comes back")

    async def end(self) -> list[Finding]:
        """Let everything come back and through; what the jury finds."""
        await self._progress(1)
        self._trial.close()
        return await self._trial.verdict()

    def judge(self) -> list[Finding]:
        """What the jury finds as things are."""
        return self._trial.judge()

    async def _progress(self, count: int) -> None:
        """Wait until everything runs again, and each program has received so many messages more."""
        while self._returns:
            await self._returns.pop(next(iter(self._returns)))
        self._trial.allow(CREEP + count // len(LABELS))
        await asyncio.gather(*(_receives(program, count) for program in self._trial.programs.values()))

    # --- blows ---------------------------------------------------------------------------------------------------

    async def _seize(self, victim: str, action: str) -> Process:
        """The victim's process, which may just have been started, or be frozen if it is to be killed."""
        coming = self._returns.pop(victim, None)
        if coming is not None and victim in self._frozen and action == "kill":
            coming.cancel()
            await asyncio.wait({coming})
        elif coming is not None:
            await coming
        name = victim.removesuffix(PROGRAM)
        if victim == SIGNALLING:
            process = self._trial.stage.rendezvous.process
        elif victim == name:
            process = self._trial.daemons[name].process
        else:
            process = self._trial.programs[name]
        assert process is not None
        assert process.exit_code is None, f"{victim} ended by itself: {process.exit_code}"
        return process

    async def _kill(self, process: Process) -> None:
        self.kills += 1
        await process.kill()

    async def _stop(self, process: Process) -> None:
        process.send(signal.SIGTERM)
        code = await process.exited(STOPPING)
        assert code in {0, -signal.SIGTERM}, f"stopped with {code}"  # the latter before it is ready

    async def _freeze(self, process: Process) -> None:
        process.send(signal.SIGSTOP)

    async def _thaw(self, victim: str, blow: Blow) -> None:
        process = self._trial.daemons[victim].process
        assert process is not None
        self._frozen.add(victim)
        try:
            await asyncio.sleep(blow.pause)
            process.send(signal.SIGCONT)
        finally:
            self._frozen.discard(victim)

    async def _start(self, victim: str, blow: Blow) -> None:
        """Start it again; whether it is ready remains to be seen."""
        await asyncio.sleep(blow.pause)
        if victim == SIGNALLING:
            await self._trial.stage.rendezvous.start("memory" if blow.forgets else None)
        elif victim.endswith(PROGRAM):
            await self._trial.start_program(victim.removesuffix(PROGRAM))
        else:
            await self._trial.daemons[victim].launch()


async def _receives(program: Process, count: int) -> None:
    await program.until_count("received", program.count("received") + count)


async def run(path: Path, seed: int, kills: int, *, rough: bool, tell: Callable[[str], None]) -> list[Finding]:
    """One trial in an empty directory; what the jury finds. Raises `AssertionError` when it cannot be brought to its end."""
    within = limit(kills)
    async with Stage(path, within) as stage:
        chaos = await Chaos.open(stage, within, tell)
        try:
            for blow in plan(seed, kills, rough=rough):
                await chaos.strike(blow)
            found = await chaos.end()
        except AssertionError:  # why nothing comes through any more
            tell(f"stuck: {chaos.judge()}")
            raise
        assert chaos.kills >= kills
        return found


def limit(kills: int) -> float:
    """Seconds that a trial may take."""
    return 2 * PATIENCE + kills * KILL_TIME


def repeat(seed: int, kills: int, *, rough: bool) -> str:
    """How to run that trial again."""
    return f"python -m tests.jury.chaos --seed {seed} --kills {kills}{'' if rough else ' --gentle'}"


async def run_for_long(seed: int, kills: int, *, rough: bool, tell: Callable[[str], None]) -> int:
    """Trials with so many kills in all; how many of them went wrong. Their directories are kept."""
    wrong = done = 0
    while done < kills:
        some = min(TRIAL_KILLS, kills - done)
        path = Path(tempfile.mkdtemp(prefix=f"chaos-{seed}-"))
        began = time.monotonic()
        try:
            found = await run(path, seed, some, rough=rough, tell=tell)
        except (AssertionError, TimeoutError, ExceptionGroup) as error:
            traceback.print_exc()
            found = [Finding("unfinished", "", repr(error))]
        done += some
        took = f"seed {seed}, {some} kills in {time.monotonic() - began:.0f} s, {done} in all"
        if found:
            wrong += 1
            tell(f"WRONG: {took}; {path} is kept; {repeat(seed, some, rough=rough)}")
            for finding in found:
                tell(f"    {finding}")
        else:
            tell(f"right: {took}")
            shutil.rmtree(path)
        seed += 1
    tell(f"{wrong} trials wrong")
    return wrong


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that nothing is left behind
    parser = argparse.ArgumentParser(prog="python -m tests.jury.chaos", description="Kill, and judge what is left.")
    parser.add_argument("--kills", type=int, default=TRIAL_KILLS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--gentle", action="store_true", help="neither orderly stops nor freezes")
    parser.add_argument("--log", type=Path, help="where lines are appended; otherwise to standard output")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(options.log.open("a")) if options.log else sys.stdout

        def tell(line: str) -> None:
            print(f"{datetime.now(UTC):%H:%M:%S} {line}", file=log, flush=True)

        return bool(asyncio.run(run_for_long(options.seed, options.kills, rough=not options.gentle, tell=tell)))


if __name__ == "__main__":
    sys.exit(main())
