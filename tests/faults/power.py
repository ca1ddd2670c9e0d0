"""Power failures at moments of a recording: what is left on both disks is built, opened, and judged by what was promised."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tests.faults.crash_model import (
    Disk,
    Everything,
    Hollow,
    Loss,
    Nothing,
    OnlyOf,
    Sectors,
    Torn,
    Tree,
    Whole,
)
from tests.faults.promises import Promises
from tests.faults.recorded import MACHINES
from tests.faults.recording import FILE_OPERATIONS, Record
from tests.faults.recovered import Recovered, Reopening, database_of
from tests.jury.checker import Finding, Side, judge_sides, read

LOG = "-wal"

Losses = Callable[[random.Random], Loss]

LOSSES: dict[str, Losses] = {
    "nothing": lambda _: Nothing(),
    "everything": lambda _: Everything(),
    "the log": lambda _: OnlyOf(LOG),
    "all but the log": lambda _: OnlyOf(LOG, instead=True),
    "the end of a write": Torn,
    "some sectors": Sectors,
    "most sectors": lambda drawn: Sectors(drawn, 0.1),
    "few sectors": lambda drawn: Sectors(drawn, 0.9),
    "some writes": Whole,
    "the content": lambda _: Hollow(),
}
"""What the disks lose that was not synced."""


class Cut(NamedTuple):
    """What one power failure does: by machine, what is lost."""

    losses: tuple[str, str]

    def __str__(self) -> str:
        return " and ".join(f"{name} loses {loss}" for name, loss in zip(MACHINES, self.losses, strict=True))


BOTH = [Cut((loss, loss)) for loss in LOSSES]
ONE = [Cut(pair) for loss in LOSSES if loss != "nothing" for pair in ((loss, "nothing"), ("nothing", loss))]


def some_cuts(number: int) -> list[Cut]:
    """The plain loss of everything unsynced, and a few others in turn."""
    return [BOTH[1], ONE[number % 2], BOTH[2 + number % (len(BOTH) - 2)], ONE[number % len(ONE)]]


@dataclass
class Report:
    """What was tried and what was found."""

    operations: int = 0
    """Changes and syncs of files in the recording."""
    points: int = 0
    states: int = 0
    """Different ones that were opened."""
    promises: int = 0
    findings: list[tuple[int, str, Finding]] = field(default_factory=list)

    @property
    def kinds(self) -> set[str]:
        return {finding.kind for _, _, finding in self.findings}

    def __str__(self) -> str:
        told = "\n".join(f"after record {place}, {cut}: {finding}" for place, cut, finding in self.findings[:20])
        return (
            f"{self.points} points in {self.operations} operations, {self.states} states opened,"
            f" {self.promises} promises, {len(self.findings)} findings\n{told}"
        )


class Replay:
    """A recording played forward, as far as somebody wants to see."""

    def __init__(self, path: Path, records: list[Record]) -> None:
        self._records = records
        self.promises = Promises(path, MACHINES, records)
        self.disks = {name: Disk(path / name) for name in MACHINES}
        self.place = -1
        """Of the last record that was played."""

    def step(self) -> tuple[bool, bool]:
        """Play one more record; whether a disk changed by it, and whether it was a promise."""
        self.place += 1
        record = self._records[self.place]
        changed = sum(disk.take(record) for disk in self.disks.values())
        return bool(changed), self.promises.take(self.place, record)

    def play_to(self, place: int) -> None:
        while self.place < place:
            self.step()


def points_of(path: Path, records: list[Record]) -> tuple[list[int], list[int]]:
    """The records after which the power could fail with another outcome than before: changes of disks, and promises."""
    replay = Replay(path, records)
    changes: list[int] = []
    promises: list[int] = []
    for place in range(len(records)):
        changed, promised = replay.step()
        if changed:
            changes.append(place)
        elif promised:
            promises.append(place)
    return changes, promises


async def fail_at(
    path: Path,
    records: list[Record],
    points: Collection[int],
    cuts: Callable[[int], Iterable[Cut]],
    seed: int,
    enough: int = 1_000_000,
    told: Callable[[Report], None] = lambda _: None,
) -> Report:
    """Let the power fail after each of `points`, in the ways that `cuts` tells for the first, second, … of them.

    Stops early when `enough` findings have been made. `told` hears after each point how far it has come.
    """
    report = Report(operations=sum(record.kind in FILE_OPERATIONS for record in records))
    replay = Replay(path, records)
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as directory:
        reopening, jury = Reopening(Path(directory) / "state"), Jury(replay)
        for number, point in enumerate(sorted(points)):
            while replay.place < point:
                report.promises += replay.step()[1]
            for cut in cuts(number):
                drawn = random.Random(f"{seed} {point} {cut}")
                trees = [
                    replay.disks[name].after(LOSSES[loss](drawn))
                    for name, loss in zip(MACHINES, cut.losses, strict=True)
                ]
                left = [await reopening.reopen(tree) for tree in trees]
                found = jury.judge((trees[0], trees[1]), (left[0], left[1]))
                report.findings += [(point, str(cut), finding) for finding in found]
            report.points += 1
            report.states = reopening.opened
            told(report)
            if len(report.findings) >= enough:
                break
    return report


class Jury:
    """Judges what is left at the moment to which `replay` has come; remembers it until something is promised."""

    def __init__(self, replay: Replay) -> None:
        self._replay = replay
        self._promises = -1
        self._sides: list[dict[str, Side]] = []
        self._judged: dict[tuple[int, int], list[Finding]] = {}
        self._others: dict[str, tuple[int, Tree]] = {}

    def judge(self, trees: tuple[Tree, Tree], left: tuple[Recovered, Recovered]) -> list[Finding]:
        """All that is wrong. Of stores that hold the same `left` is the same object, and lives on."""
        promises = self._replay.promises
        if self._promises != promises.count:
            self._promises = promises.count
            self._sides = [read(promises.words(name)) for name in MACHINES]
            self._judged.clear()
        key = (id(left[0]), id(left[1]))
        if key not in self._judged:
            found = judge_sides((self._sides[0], self._sides[1]), (left[0].dump, left[1].dump))
            for here, there in ((0, 1), (1, 0)):
                found += examine(promises, MACHINES[here], MACHINES[there], left[here])
            self._judged[key] = found
        lost = [self._lost(name, tree) for name, tree in zip(MACHINES, trees, strict=True)]
        return [*self._judged[key], *lost[0], *lost[1]]

    def _lost(self, name: str, tree: Tree) -> list[Finding]:
        """Files beside the database that lack: once messages have been accepted, the service's name had been claimed, and
        its key is the only proof."""
        if not self._replay.promises.accepted(name):
            return []
        disk = self._replay.disks[name]
        if name not in self._others or self._others[name][0] != disk.changed:
            kept = disk.after(Nothing())
            database = {*database_of(kept), "lock"}
            others = {path: data for path, data in kept.items() if Path(path).name not in database}
            self._others[name] = (disk.changed, others)
        others = self._others[name][1]
        return [Finding("lost", "", f"{name}: {path}") for path, data in others.items() if tree.get(path) != data]


def examine(promises: Promises, here: str, there: str, left: Recovered) -> list[Finding]:
    """What the jury cannot see: what was promised from daemon to daemon, and what the store says about itself."""
    found = [Finding("damaged", "", f"{here}: {what}") for what in left.wrong]
    for label, recv_next in promises.told[here].items():
        stored = left.channels[label].recv_next if label in left.channels else 0
        if stored < recv_next:
            found.append(Finding("lost", label, f"{here} had acknowledged all below {recv_next}, and is at {stored}"))
    for label, channel in left.channels.items():
        if channel.acked > (told := promises.told[there].get(label, 0)):
            found.append(
                Finding("unexpected", label, f"{here} takes {channel.acked} for acknowledged, {told} was said")
            )
    return found
