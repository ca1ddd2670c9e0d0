"""Connections come and go, and leave nothing behind in daemons and programs: descriptors, threads, tasks, memory."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple, Self

import pytest

from rondevu_client import Channel
from rondevu_client import Daemon as Client
from tests.acceptance.processes import PATIENCE, SCALE, SERVICE, Daemon, Stage

POOL_SIZE = 2
IDLE_HTTP = 4
"""Connections to the signalling server that a daemon may keep for its next requests; how many it does is chance."""


class Memory(NamedTuple):
    """What a process has in memory, in KiB."""

    resident: int
    """All its pages. What it grows by is no less than what its proportional part grows by of its own doing."""
    proportional: int
    """The same, pages of files divided by the number of processes that share them: it rises whenever one of those ends."""

    @classmethod
    def of(cls, pid: int) -> Self:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        sizes = dict(re.findall(r"^(\w+): +(\d+) kB$", rollup, re.MULTILINE))
        return cls(int(sizes["Rss"]), int(sizes["Pss"]))


class Holdings(NamedTuple):
    """What a process holds beside memory."""

    descriptors: Counter[str]
    """By what they are: sockets (without those of `http`), pipes, files by their path without numbers."""
    http: int
    """Connections over TCP: those to the signalling server."""
    threads: int
    tasks: int

    @classmethod
    def of(cls, pid: int, tasks: int) -> Self:
        names: list[str] = []
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed since it was listed
                names.append(str(entry.readlink()))
        over_tcp = {f"socket:[{line.split()[9]}]" for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]}
        others = Counter(re.sub(r"\d+", "N", name) for name in names if name not in over_tcp)
        return cls(others, len(over_tcp.intersection(names)), len(list(Path(f"/proc/{pid}/task").iterdir())), tasks)

    def within(self, other: Holdings) -> bool:
        """Whether this is nothing more than the other."""
        return (
            self.descriptors <= other.descriptors
            and self.http <= IDLE_HTTP
            and self.threads <= other.threads
            and self.tasks <= other.tasks
        )


class Side:
    """One of the two daemons, with a program on its socket."""

    def __init__(self, daemon: Daemon, program: Client) -> None:
        assert daemon.process is not None
        self.name = daemon.name
        self.program = program
        self._pid = daemon.process.pid

    @classmethod
    @contextlib.asynccontextmanager
    async def start(cls, stage: Stage, name: str) -> AsyncIterator[Side]:
        daemon = stage.daemon(name)
        await daemon.start()
        async with daemon.client() as program:
            yield cls(daemon, program)

    def memory(self) -> Memory:
        return Memory.of(self._pid)

    async def holdings(self) -> Holdings:
        return Holdings.of(self._pid, (await self.program.call("status"))["tasks"])


class Visitors:
    """Connections, one after another, from one daemon to a service of another."""

    def __init__(self, home: Side, away: Side) -> None:
        self._home = home
        self._away = away
        self._number = 0

    async def expose(self) -> None:
        async def echo(channel: Channel, _connection_id: str) -> None:
            async for message in channel:
                await channel.send(message.data)

        await self._home.program.expose_service(*SERVICE, handler=echo, pool_size=POOL_SIZE, polling_interval=0.1)

    async def come_and_go(self, times: int) -> None:
        for _ in range(times):
            self._number += 1
            async with asyncio.timeout(PATIENCE):
                connection = await self._away.program.connect(*SERVICE, name=f"visit-{self._number}")
                channel = await connection.create_channel("main")
                await channel.send(f"hello {self._number}")
                message = await anext(channel)
                assert message.data == f"hello {self._number}"
                await message.ack()
                await connection.close()

    async def settle(self, wanted: list[Holdings] | None = None) -> list[Holdings]:
        """Wait until everybody has left, the pool is full and, if given, nobody holds more than `wanted`.

        The daemon with the service, the other one, and this process with the programs of both.
        """
        held: list[Holdings] = []
        try:
            async with asyncio.timeout(PATIENCE):
                while True:
                    gone = await self._all_gone()
                    held = [await side.holdings() for side in (self._home, self._away)]
                    held.append(Holdings.of(os.getpid(), len(asyncio.all_tasks())))
                    if gone and all(now.within(then) for now, then in zip(held, wanted or held, strict=True)):
                        return held
        except TimeoutError:
            raise AssertionError(f"{held} where {wanted} was before") from None

    async def _all_gone(self) -> bool:
        """Asking is what lets the daemons go on: there is no need to sleep."""
        (service,) = await self._home.program.services()
        return service["offers"] == POOL_SIZE and not any(
            [await side.program.connections() for side in (self._home, self._away)]
        )


@pytest.mark.acceptance
@pytest.mark.webrtc
@pytest.mark.once
@pytest.mark.parametrize(
    ("before", "cycles", "allowed"),
    [
        pytest.param(20, 40, 4_500, id="few", marks=pytest.mark.timeout(120 * SCALE)),
        pytest.param(100, 500, 10 * 1_024, id="many", marks=[pytest.mark.soak, pytest.mark.timeout(1_800 * SCALE)]),
    ],
)
async def test_connections_that_come_and_go_leave_nothing_behind(
    tmp_path: Path, before: int, cycles: int, allowed: int
) -> None:
    """`allowed` is what each daemon may grow by, in KiB, its history of events (4,096 of them) included.

    It is measured by resident pages, a stricter measure than the proportional one that is printed beside them: pages of
    Python and its libraries are shared with every other Python of the machine, which come and go as they like.
    """
    async with (
        Stage(tmp_path, within=(60 + before + cycles) * SCALE, fresh=True) as stage,
        contextlib.AsyncExitStack() as sides,
    ):
        await stage.rendezvous.start()
        home, away = [await sides.enter_async_context(Side.start(stage, name)) for name in ("home", "away")]
        visitors = Visitors(home, away)
        await visitors.expose()
        await visitors.come_and_go(before)
        held = await visitors.settle()
        memory = [(side, side.memory()) for side in (home, away)]
        await visitors.come_and_go(cycles)
        await visitors.settle(held)
        for side, then in memory:
            now = side.memory()
            grown = now.resident - then.resident
            print(
                f"{side.name}: {cycles} cycles after {before}: Rss {then.resident} {grown:+d} KiB,"
                f" Pss {then.proportional} {now.proportional - then.proportional:+d} KiB; load {os.getloadavg()}"
            )
            assert grown < allowed
