"""A short run for the jury: two daemons, a program at each, three labels, both ways, packed and fragmented."""

from __future__ import annotations

import signal

from tests.acceptance.processes import CONNECTION, PATIENCE, Daemon, Process, Stage
from tests.acceptance.programs.patient import patient_client
from tests.jury.accounts import reconcile
from tests.jury.checker import Finding, judge
from tests.jury.dump import dump

COUNT = 40
"""Messages on each label in each direction."""

DATABASE = "rondevud.sqlite3"
SERVICE, CONNECTING = "alice", "bob"


class Trial:
    """The two daemons and programs of a run. `patience`: seconds after which a program gives up; `count`: see `COUNT`."""

    def __init__(
        self, stage: Stage, service: Daemon, connection: Daemon, patience: float = PATIENCE, count: int = COUNT
    ) -> None:
        self.stage = stage
        self.daemons = {SERVICE: service, CONNECTING: connection}
        self.programs: dict[str, Process] = {}
        self.count = count
        """Messages on each label in each direction, so far if the run is `open`."""
        self.open = False
        """Whether more messages may follow: see `allow` and `close`."""
        self._targets = {CONNECTING: CONNECTION}
        self._patience = patience

    @classmethod
    async def prepare(cls, stage: Stage, patience: float = PATIENCE, extra: str = "") -> Trial:
        """The daemons are declared, and not started yet; `extra` is more of both configurations."""
        return cls(stage, *await stage.declared_pair(extra), patience)

    async def connected(self) -> None:
        """Wait for the link, also when the connecting daemon dies meanwhile."""
        async with patient_client(self.daemons[CONNECTING].socket, "test") as client:
            await client.wait(CONNECTION, "connected", PATIENCE)

    async def start_program(self, name: str) -> Process:
        """The program of that daemon; the service's needs a connection that has been made."""
        daemon = self.daemons[name]
        if name not in self._targets:
            async with patient_client(daemon.socket, "test") as client:
                (row,) = await client.connections()
            self._targets[name] = row["connection_id"]
        count = f"{self.count}+" if self.open else str(self.count)
        arguments = (daemon.socket, self._targets[name], "LOG", name, count, self._patience)
        self.programs[name] = await self.stage.program("streams", name, *arguments)
        return self.programs[name]

    def allow(self, more: int) -> None:
        """Let the programs of an open run send so many messages more on each label."""
        self.count += more
        self._tell(f"{self.count}+")

    def close(self) -> None:
        """End an open run: each label gets one more message, and it is the last."""
        self.open = False
        self.count += 1
        self._tell(str(self.count))

    def _tell(self, count: str) -> None:
        for program in self.programs.values():
            if program.exit_code is None:
                program.type(count)

    async def start_programs(self) -> None:
        for name in (CONNECTING, SERVICE):
            await self.start_program(name)

    async def survive(self, name: str) -> None:
        """Wait until that daemon has died at its failpoint; start it again without one."""
        await self.died(name)
        await self.daemons[name].start()

    async def died(self, name: str, point: str = "") -> None:
        """Wait until that daemon has died at its failpoint, and no other than `point`."""
        daemon = self.daemons[name]
        assert daemon.process is not None
        code = await daemon.process.exited()
        assert code == -signal.SIGKILL, f"{name} ended with {code} instead of being killed"
        if point:
            assert f"failpoint {point}: kill" in daemon.process.log.read_text().splitlines()

    async def finish(self) -> list[int]:
        """Wait for both programs; their exit codes."""
        return [await program.exited(self._patience + PATIENCE) for program in self.programs.values()]

    def judge(self) -> list[Finding]:
        """What the jury finds, and where the books do not add up."""
        left, right = (self.stage.read_log(name) for name in (SERVICE, CONNECTING))
        stores = [dump(self.daemons[name].state / DATABASE) for name in (SERVICE, CONNECTING)]
        evidence = (left, right), (stores[0], stores[1])
        return judge(*evidence) + reconcile(*evidence)

    async def verdict(self) -> list[Finding]:
        """`finish`, then `judge`; a program that gave up is a finding, too."""
        codes = await self.finish()
        unfinished = [
            Finding("unfinished", "", name) for name, code in zip(self.programs, codes, strict=True) if code != 0
        ]
        return self.judge() + unfinished
