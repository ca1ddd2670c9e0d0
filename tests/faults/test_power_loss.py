"""The power fails in the middle of a two-way stream: whatever is left on the disks, all that was promised is there.

`RONDEVUD_SEED` decides where and how it fails. The long run takes every point, some 15 minutes of a processor;
`RONDEVUD_PROCESSES` bounds how many processes share it (all processors without it), and `RONDEVUD_POWER_EVERY_WAY` has
each loss tried at each point, some hours.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import shutil
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from pathlib import Path

import pytest

from tests.acceptance.processes import LONGEST, PATIENCE, ROOT
from tests.faults import power, recording
from tests.faults.crash_model import Everything, Sectors
from tests.faults.power import BOTH, ONE, Cut, Replay, Report, fail_at, points_of, some_cuts
from tests.faults.recorded import MACHINES, RecordedStage, prepare, record, start_program
from tests.faults.recording import SYNC_BEGINS, SYNC_ENDS, Record
from tests.faults.recovered import write
from tests.jury.test_jury import spoil
from tests.jury.trial import CONNECTING, Trial

pytestmark = [pytest.mark.acceptance, pytest.mark.once]

SEED = int(os.environ.get("RONDEVUD_SEED", "20"))
"""Decides at which points the power fails, and what of the unsynced is lost."""

POINTS = 200
COUNTS = (12, 24)
"""Messages on each label each way, before and after both daemons are killed once."""

CONTINUED = 1
"""Power failures after which daemons and programs go on with what is left; the long run has more."""

EVERY_WAY = bool(os.environ.get("RONDEVUD_POWER_EVERY_WAY"))
"""Whether the long run tries each loss at each point, and not five of them in turn."""

PROCESSES = int(os.environ.get("RONDEVUD_PROCESSES", os.cpu_count() or 1))
"""Among which the points of the long run are shared."""

LONG_COUNTS = (24, 48, 72)
SHARE = 100
"""Neighbouring points that one process does before it says how far it has come."""

LONG = 10_000
"""Operations on files that the long run's recording has at least."""


def some_points(path: Path, records: list[Record], count: int) -> list[int]:
    """Half of them after changes of files, half of them after promises."""
    drawn = random.Random(SEED)
    changes, promises = points_of(path, records)
    return sorted(drawn.sample(changes, count // 2) + drawn.sample(promises, min(len(promises), count // 2)))


def without_syncs(records: list[Record], name: str) -> list[Record]:
    """As if files with that in their names were never synced."""
    paths: dict[tuple[int, int], str] = {}
    left: list[Record] = []
    for item in records:
        key = (item.pid, item.fd)
        if item.kind == recording.OPEN:
            paths[key] = item.paths[0]
        if item.kind not in {SYNC_BEGINS, SYNC_ENDS} or name not in paths.get(key, ""):
            left.append(item)
    return left


async def assert_it_goes_on(trial: Trial, records: list[Record], point: int, count: int) -> None:
    """Both machines come back with what a power failure has left, and programs with their logs of that moment."""
    path = trial.stage.path
    replay = Replay(path, records)
    replay.play_to(point)
    drawn = random.Random(point)
    for name, loss in zip(MACHINES, (Everything(), Sectors(drawn)), strict=True):
        write(replay.disks[name].after(loss), path / name)
        (path / name / "state").chmod(0o700)
        trial.stage.log_path(name).write_bytes(replay.promises.logs[name])
    await asyncio.gather(*(daemon.start() for daemon in trial.daemons.values()))
    await trial.connected()
    trial.programs.clear()
    for name in MACHINES:
        await start_program(trial, name, count)
    assert await trial.verdict() == []
    assert await asyncio.gather(*(daemon.stop() for daemon in trial.daemons.values())) == [0, 0]


@pytest.mark.parametrize("continued", [CONTINUED, pytest.param(10 * CONTINUED, marks=pytest.mark.soak)])
@pytest.mark.timeout(4 * LONGEST + 20)
async def test_all_that_was_promised_survives_a_power_failure(tmp_path, continued):
    async with RecordedStage(tmp_path, within=4 * LONGEST) as stage:
        trial = await prepare(stage)
        await record(trial, COUNTS)
        records = recording.read(stage.log)
        assert_complete(tmp_path, records)
        assert trial.judge() == []
        points = some_points(tmp_path, records, POINTS)
        report = await fail_at(tmp_path, records, points, some_cuts, SEED)
        print(report)
        assert report.points == POINTS
        assert report.findings == [], report
        stage.recorded = False
        for point in random.Random(SEED).sample(points[len(points) // 4 :], continued):
            await assert_it_goes_on(trial, records, point, COUNTS[-1] + 6)
    # Would it notice? The same run on disks that do not sync.
    for name, kinds in (("-wal", {"lost", "accepted-but-nowhere"}), (".sqlite3", {"damaged"})):
        spoiled = without_syncs(records, name)
        report = await fail_at(tmp_path, spoiled, some_points(tmp_path, spoiled, POINTS), some_cuts, SEED, enough=20)
        assert report.kinds & kinds, (name, report)


def assert_complete(path: Path, records: list[Record]) -> None:
    """Nothing escaped the recorder: what it makes of both disks is what is on them; and all kinds of promises were seen."""
    replay = Replay(path, records)
    replay.play_to(len(records) - 1)
    for name in MACHINES:
        files = {
            str(file.relative_to(path / name)): file.read_bytes() for file in (path / name).rglob("*") if file.is_file()
        }
        assert replay.disks[name].after(power.Nothing()) == files
        heard, accepted = replay.promises.heard(name), replay.promises.accepted(name)
        assert heard
        assert all(number <= accepted[label] for label, number in heard)
        assert replay.promises.told[name].keys() == accepted.keys()


@pytest.mark.soak
@pytest.mark.parametrize("bug", ["acknowledge-before-the-commit", "accept-before-the-commit"])
@pytest.mark.timeout(150)
async def test_a_promise_before_the_sync_is_noticed(tmp_path, bug):
    """Without anybody being killed at the one moment at which the bug would show."""
    spoiled = spoil(tmp_path / "spoiled", bug)
    async with RecordedStage(tmp_path, errors_expected=True) as stage:
        trial = await prepare(stage)
        trial.daemons[CONNECTING].source = spoiled
        await record(trial, (6,))
    records = recording.read(stage.log)
    _, promises = points_of(tmp_path, records)
    report = await fail_at(tmp_path, records, promises, lambda _: BOTH[1:2], SEED, enough=1)
    assert report.kinds & {"lost", "accepted-but-nowhere"}, report


def every_way(number: int) -> list[Cut]:
    """All that can be lost at both at once and at one alone; or a few of these in turn, so that all of them come up."""
    return BOTH + ONE if EVERY_WAY else [BOTH[0], *some_cuts(number)]


def share_of(points: list[int], process: int) -> list[int]:
    """Every so-manyeth run of neighbours: later ones take longer, and one replay serves all of a process."""
    return [point for place, point in enumerate(points) if place // SHARE % PROCESSES == process]


def fail_in_process(path: Path, points: list[int]) -> Report:
    """A share of the long run."""
    logging.disable(logging.CRITICAL)  # of the stores, of which there are thousands

    def told(report: Report) -> None:
        if report.points % SHARE == 0:  # with -s one sees how far it has come
            print(f"{report} of {len(points)} points", flush=True)

    return asyncio.run(fail_at(path, recording.read(path / "recording"), points, every_way, SEED, told=told))


@pytest.mark.soak
@pytest.mark.timeout(14_400)
async def test_every_point_of_a_long_run(tmp_path):
    async with RecordedStage(tmp_path, within=600.0) as stage:
        trial = await prepare(stage, 10 * PATIENCE)
        await record(trial, LONG_COUNTS)
    records = recording.read(stage.log)
    assert_complete(tmp_path, records)
    points = sorted(chain(*points_of(tmp_path, records)))
    shares = [share_of(points, process) for process in range(PROCESSES)]
    with ProcessPoolExecutor(PROCESSES, initializer=os.nice, initargs=(5,)) as pool:
        reports = list(pool.map(fail_in_process, [tmp_path] * len(shares), shares))
    counts = (sum(getattr(report, what) for report in reports) for what in ("points", "states"))
    whole = Report(reports[0].operations, *counts, max(report.promises for report in reports))
    whole.findings += [finding for report in reports for finding in report.findings]
    print(whole)
    assert whole.operations >= LONG
    assert whole.points == len(points)
    assert whole.findings == [], whole


@pytest.mark.soak
@pytest.mark.parametrize("level", ["NORMAL", "OFF"])
@pytest.mark.timeout(600)
async def test_a_daemon_that_syncs_less_is_noticed(tmp_path, level):
    copy = tmp_path / "copy"
    await asyncio.to_thread(copy_with, copy, "synchronous = FULL", f"synchronous = {level}")
    async with RecordedStage(tmp_path) as stage:
        trial = await prepare(stage)
        for daemon in trial.daemons.values():
            daemon.source = copy
        await record(trial, COUNTS)
    records = recording.read(stage.log)
    points = some_points(tmp_path, records, POINTS)
    report = await fail_at(tmp_path, records, points, some_cuts, SEED, enough=20)
    assert report.kinds & {"lost", "accepted-but-nowhere"}, report


def copy_with(copy: Path, old: str, new: str) -> None:
    """A copy of the daemon with another setting in its database module."""
    shutil.copytree(ROOT / "rondevud", copy / "rondevud", ignore=shutil.ignore_patterns("__pycache__"))
    module = copy / "rondevud" / "store" / "database.py"
    text = module.read_text()
    assert text.count(old) == 1
    module.write_text(text.replace(old, new))
