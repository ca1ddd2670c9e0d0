"""Somebody removes a database's log, or puts an older one or an older database beside the other.

Then messages can be lost or come twice, for what was accepted or received is not in the store any more; but nothing wrong
comes, both programs are told of a gap (but where producers alone went back), and everything goes on.
"""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from tests.acceptance.processes import LONGEST
from tests.faults.recorded import MACHINES, RecordedStage, prepare, start_program, stream
from tests.faults.recovered import DATABASE
from tests.jury.accounts import OWN_BOOKS
from tests.jury.trial import CONNECTING

pytestmark = [pytest.mark.acceptance, pytest.mark.once, pytest.mark.soak, pytest.mark.timeout(2 * LONGEST + 20)]

LOG = f"{DATABASE}-wal"

ALLOWED = {"gap", "lost", "accepted-but-nowhere", "duplicated", "forgotten", "removed", "unbalanced"}
"""What the jury may say once a store has gone back, as long as there is a gap among it; never that a content is wrong. What
it counts goes back as well, so that it differs from what the other side and the programs have counted."""

REAPPEARED = "miscounted"
"""A log beside an older database may have pages of rows that had left long ago, which nobody reads any more."""


@pytest.mark.parametrize(
    "older",
    [
        pytest.param((LOG,), id="log"),
        pytest.param((DATABASE,), id="database"),
        pytest.param((), id="no-log"),
        pytest.param((DATABASE, LOG), id="both"),
    ],
)
async def test_a_store_whose_files_are_of_different_times_says_so_and_goes_on(tmp_path, older):
    async with RecordedStage(tmp_path, recorded=False, errors_expected=True, within=2 * LONGEST) as stage:
        trial = await prepare(stage)
        victim = trial.daemons[CONNECTING]
        await stream(trial, 12)
        await asyncio.gather(*(daemon.kill() for daemon in trial.daemons.values()))
        copies = {name: (victim.state / name).read_bytes() for name in (DATABASE, LOG)}
        await stream(trial, 24)
        await asyncio.gather(*(daemon.kill() for daemon in trial.daemons.values()))
        for name in older:
            (victim.state / name).write_bytes(copies[name])
        if not older:
            (victim.state / LOG).unlink()
        await asyncio.gather(*(daemon.start() for daemon in trial.daemons.values()))
        await trial.connected()
        trial.programs.clear()
        for name in MACHINES:
            await start_program(trial, name, 40)
        found = await trial.verdict()
        kinds = {finding.kind for finding in found}
        print(older, kinds)
        assert kinds <= (ALLOWED | {REAPPEARED} if older == (DATABASE,) else ALLOWED), found
        if REAPPEARED not in kinds:
            books = [finding for finding in found if finding.kind == "unbalanced"]
            assert not [finding for finding in books if OWN_BOOKS in finding.detail], found
        # A log that was in the file already, when it was copied and at the end, is not missed. An older file can have older
        # producers alone, which no mark tells: what their programs send again comes twice.
        unseen = [set(), {"duplicated", "unbalanced"}] if older == (DATABASE,) else [set()] if len(older) < 2 else []
        assert "gap" in kinds or kinds in unseen
        assert await asyncio.gather(*(daemon.stop() for daemon in trial.daemons.values())) == [0, 0]
        with contextlib.suppress(FileNotFoundError):
            assert "Traceback" not in (tmp_path / f"{CONNECTING}-3.err").read_text()
