"""Would the jury notice? Each patch in ``bugs/`` plants one bug into a copy of the daemon, and a short run shows it."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.acceptance.processes import CONNECTION, LIMIT, PATIENCE, ROOT, SCALE, Stage
from tests.acceptance.programs.content import AHEAD, LABELS
from tests.jury.checker import Finding
from tests.jury.trial import CONNECTING, SERVICE, Trial

pytestmark = [pytest.mark.acceptance, pytest.mark.once, LIMIT]

BUGS = Path(__file__).with_name("bugs")

SHORT = 6.0 * SCALE
"""Seconds after which the programs of a spoiled run give up: some bugs leave them waiting."""

RUNS = 3
"""Runs at most for one bug."""

EXTRA = "[queue]\nmax_message_age = 3600\n"
"""Messages can expire, and have no reason to."""


class Bug(NamedTuple):
    """How a bug shows."""

    kinds: set[str]
    """At least one of these is found."""
    point: str = ""
    """Where the connecting daemon dies; "" = it lives."""
    hit: int = 1
    """At which hit of it, in the first run."""
    stalled: bool = False
    """Whether the other thread, the loop or the store's writer, goes on for a while before."""
    cured: bool = True
    """Whether it comes back without the bug."""
    buggy: tuple[str, ...] = (CONNECTING,)
    late: bool = False
    """Whether the connecting daemon's program comes when its inbox is full already."""
    quick: bool = False
    """Whether it runs with every test; the others are for the long run."""

    def failpoint(self, run: int) -> str:
        """Another moment in each run: 0, 1, …"""
        if not self.point:
            return ""
        place = f"{self.point}:{self.hit + 3 * run}"
        return f"{place}:delay:0.3,{place}" if self.stalled else place


LOST = {"lost", "accepted-but-nowhere"}
"""Which of the two it is called depends on whether anything behind it arrived."""

TRIALS = {
    "accept-before-the-commit": Bug(LOST, "write.Put", 5, stalled=True, quick=True),
    "acknowledge-before-the-commit": Bug(LOST, "write.Receive", 8, stalled=True, quick=True),
    "begin-the-books-anew-at-a-start": Bug({"unbalanced"}, "stored.Put", 4, cured=False),
    "count-a-commit-as-one-message": Bug({"unbalanced"}, quick=True),
    "deliver-before-the-commit": Bug({"unmarked"}, "write.Receive", 8, stalled=True),
    "delete-inbox-rows-beyond-the-acknowledged": Bug(LOST, "deliver.before", 3, stalled=True, late=True),
    "drop-the-tail-of-a-pack": Bug(LOST),
    "expire-fresh-messages": Bug({"removed", *LOST}, "send.before.data", 3, cured=False),
    "forget-a-producers-last-number": Bug({"duplicated"}, "accepted.before", 5),
    "give-up-what-waits-at-a-start": Bug(LOST, "stored.Put", 4, cured=False),
    "lose-the-text-flag-of-pieces": Bug({"altered"}),
    "redeliver-without-counting-attempts": Bug({"unmarked"}, "write.AckIn", 3, cured=False, quick=True),
    "renumber-after-a-restart": Bug({"duplicated"}, "receive.before.ack", 4, cured=False, quick=True),
    "skip-the-duplicate-test": Bug(
        {"unmarked", "duplicated"}, "receive.before.ack", 4, cured=False, buggy=(CONNECTING, SERVICE)
    ),
    "swap-two-messages-of-a-pack": Bug({"reordered"}, quick=True),
    "take-sent-for-acknowledged": Bug(LOST, "write.Receive", 8, buggy=(SERVICE,)),
}


def test_every_bug_is_tried():
    assert {path.stem for path in BUGS.glob("*.patch")} == TRIALS.keys()


@pytest.mark.parametrize("name", TRIALS)
def test_every_bug_can_be_planted(tmp_path, name):
    assert list(spoil(tmp_path, name).rglob("*.rej")) == []


@pytest.mark.parametrize(
    "name", [name if bug.quick else pytest.param(name, marks=pytest.mark.soak) for name, bug in TRIALS.items()]
)
async def test_the_jury_notices(tmp_path, name):
    """In one of a few runs: which messages are under way when the daemon dies is not in the test's hand."""
    bug = TRIALS[name]
    spoiled = spoil(tmp_path / "spoiled", name)
    for number in range(RUNS):
        path = tmp_path / str(number)
        path.mkdir()
        async with Stage(path, errors_expected=True) as stage:
            trial = await Trial.prepare(stage, SHORT, EXTRA)
            for daemon in bug.buggy:
                trial.daemons[daemon].source = spoiled
            found = await run(trial, bug, bug.failpoint(number))
        if {finding.kind for finding in found} & bug.kinds:
            return
    raise AssertionError(f"not noticed; the last run: {found}")


def spoil(copy: Path, name: str) -> Path:
    """A copy of the daemon with that bug in it."""
    shutil.copytree(ROOT / "rondevud", copy / "rondevud", ignore=shutil.ignore_patterns("__pycache__"))
    patch = BUGS / f"{name}.patch"
    subprocess.run(["patch", "-p1", "--fuzz=3", "-i", patch], cwd=copy, check=True, capture_output=True)
    return copy


async def run(trial: Trial, bug: Bug, failpoint: str) -> list[Finding]:
    """What the jury finds in a run with that bug."""
    connection = trial.daemons[CONNECTING]
    await asyncio.gather(trial.daemons[SERVICE].start(), connection.start(failpoint))
    await trial.connected()
    if bug.late:
        program = await trial.start_program(SERVICE)
        await program.until_count("accepted", AHEAD * len(LABELS))
        await until_full(trial)
        await trial.start_program(CONNECTING)
    else:
        await trial.start_programs()
    if failpoint:
        if bug.cured:
            connection.source = ROOT
        await trial.survive(CONNECTING)
    return await trial.verdict()


async def until_full(trial: Trial) -> None:
    """Wait until all that the service's program sends unanswered is in the inboxes of the connecting daemon."""
    async with asyncio.timeout(PATIENCE), trial.daemons[CONNECTING].client() as client:
        for label in LABELS:
            while (await client.queue(CONNECTION, label))["waiting"] < AHEAD:
                pass
