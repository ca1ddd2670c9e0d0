"""A run of two daemons and their programs, every change of their files recorded, in one order with what they promise."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from tests.acceptance.processes import CONNECTION, LONGEST, PATIENCE, ROOT, Process, Stage
from tests.acceptance.programs.patient import patient_client
from tests.faults import recording
from tests.faults.control import Control
from tests.jury.trial import CONNECTING, SERVICE, Trial

DAEMON = Path(__file__).with_name("recorded_daemon.py")
MACHINES = (SERVICE, CONNECTING)

CHECKPOINTS = {"RECORDED_IDLE": "60000", "RECORDED_RESERVED": "100000", "RECORDED_TRUNCATING": "250000"}
"""Bytes of the log after which it is checkpointed, and cut: so that a short run sees both."""


class RecordedStage(Stage):
    """A stage whose daemons and programs have the recorder preloaded.

    `recorded`: whether it writes a log. `checkpoints`: whether the daemons' logs are checkpointed early and often.
    """

    def __init__(
        self,
        path: Path,
        *,
        recorded: bool = True,
        checkpoints: bool = True,
        errors_expected: bool = False,
        within: float = LONGEST,
    ) -> None:
        super().__init__(path, within, errors_expected=errors_expected)
        self.library = recording.build(path)
        self.log = path / "recording"
        self.recorded = recorded
        self._environment = CHECKPOINTS if checkpoints else {}
        self.controls: dict[str, Control] = {}
        """By the name of a daemon: what of its store is to fail."""

    def control(self, name: str) -> Control:
        """The control of that daemon, of the lives that begin from now on."""
        self.controls[name] = Control(self.path / f"{name}-control")
        return self.controls[name]

    async def start(
        self, name: str, arguments: list[str], env: Mapping[str, str] | None = None, cwd: Path = ROOT
    ) -> Process:
        if name.startswith("signalling"):
            return await super().start(name, arguments, env, cwd)
        control = self.controls.get(name.rpartition("-")[0])
        paths = [self.path / machine for machine in MACHINES]
        preloaded = recording.environment(
            self.library, paths, self.log if self.recorded else None, control.path if control else None
        )
        if arguments[1:4] == ["-m", "rondevud", "run"]:
            arguments = [arguments[0], str(DAEMON), *arguments[3:]]
        return await super().start(name, arguments, {**(env or {}), **preloaded, **self._environment}, cwd)


async def prepare(stage: RecordedStage, patience: float = PATIENCE, extra: str = "") -> Trial:
    """Two daemons, not started yet, each with a disk of its own: ``NAME/`` holds the state directory."""
    trial = await Trial.prepare(stage, patience, extra)
    for name, daemon in trial.daemons.items():
        (stage.path / name).mkdir()
        daemon.state = stage.path / name / "state"
    return trial


async def start_program(trial: Trial, name: str, count: int, patience: float = PATIENCE) -> Process:
    """The program of that daemon: `count` messages on each label."""
    daemon = trial.daemons[name]
    target = CONNECTION
    if name == SERVICE:
        async with patient_client(daemon.socket, "test") as client:
            (row,) = await client.connections()
        target = row["connection_id"]
    trial.programs[name] = await trial.stage.program(
        "streams", name, daemon.socket, target, "LOG", name, count, patience
    )
    return trial.programs[name]


async def stream(trial: Trial, count: int, patience: float = PATIENCE) -> None:
    """Start both daemons and programs, and let each send and receive `count` messages on each label."""
    await asyncio.gather(*(daemon.start() for daemon in trial.daemons.values()))
    await trial.connected()
    programs = [await start_program(trial, name, count, patience) for name in MACHINES]
    assert [await program.exited(patience) for program in programs] == [0, 0]


async def record(trial: Trial, counts: tuple[int, ...]) -> None:
    """Traffic both ways up to each of `counts`, the daemons killed in between and stopped at the end."""
    for count in counts[:-1]:
        await stream(trial, count)
        await asyncio.gather(*(daemon.kill() for daemon in trial.daemons.values()))
    await stream(trial, counts[-1])
    assert await asyncio.gather(*(daemon.stop() for daemon in trial.daemons.values())) == [0, 0]
