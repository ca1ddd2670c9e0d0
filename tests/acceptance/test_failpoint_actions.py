"""What raises, or takes long, at a telling point of a stream loses nothing: the daemon goes on, or ends and comes back."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from tests.acceptance.processes import LONGEST, PATIENCE, Daemon, Stage
from tests.jury.trial import CONNECTING, SERVICE, Trial

pytestmark = [pytest.mark.acceptance, pytest.mark.once, pytest.mark.timeout(2 * LONGEST + 20)]

RAISING = {
    "commit.before": 15,
    "checkpoint.before": 1,
    "write.Put": 8,
    "write.Receive": 8,
    "write.Acknowledge": 8,
    "write.AckIn": 8,
    "stored.Put": 8,
    "stored.Receive": 8,
    "stored.AckIn": 8,
    "deliver.before": 8,
    "message.before": 8,
    "accepted.before": 8,
    "acknowledged.before": 2,
    "attach.before": 2,
    "send.before.data": 8,
    "send.before.piece": 8,
    "send.before.ack": 8,
    "receive.before.data": 8,
    "receive.before.ack": 8,
    "receive.after.data": 8,
}
"""At which hit."""

QUICK = {"write.Receive", "checkpoint.before"}
"""Those that run with every test."""

DELAYING = (
    "commit.before",
    "write.Receive",
    "checkpoint.before",
    "stored.Receive",
    "deliver.before",
    "send.before.ack",
)

COUNT = 60
"""Messages on each label."""

LONG = 200
"""The same where it takes a log of some megabytes, at which the first checkpoint comes."""


async def let_it_act(tmp_path, failpoint: str) -> None:
    """A trial in which that happens in the connecting daemon."""
    async with Stage(tmp_path, 2 * LONGEST, errors_expected=True) as stage:
        trial = await Trial.prepare(stage, 2 * PATIENCE)
        trial.count = LONG if "checkpoint" in failpoint else COUNT
        connection = trial.daemons[CONNECTING]
        await trial.daemons[SERVICE].start()
        first = await connection.launch(failpoint)
        keeper = asyncio.create_task(keep_alive(connection), name="keep alive")
        await trial.start_program(CONNECTING)
        await trial.connected()
        await trial.start_program(SERVICE)
        assert await trial.verdict() == []
        keeper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeper
        assert f"failpoint {failpoint.partition(':')[0]}: " in first.log.read_text()


async def keep_alive(daemon: Daemon) -> None:
    """As systemd would: a daemon that fails is started again."""
    while True:
        assert daemon.process is not None
        assert await daemon.process.exited(within=1_000) == 1
        await daemon.launch()


@pytest.mark.parametrize(
    "point", [name if name in QUICK else pytest.param(name, marks=pytest.mark.soak) for name in RAISING]
)
async def test_what_raises_loses_nothing(tmp_path, point):
    await let_it_act(tmp_path, f"{point}:{RAISING[point]}:raise")


@pytest.mark.soak
@pytest.mark.parametrize("point", DELAYING)
async def test_what_takes_long_loses_nothing(tmp_path, point):
    await let_it_act(tmp_path, f"{point}:{RAISING[point]}:delay:6")
