"""A process is stopped and goes on later, as on a machine that slept: queues go on, exactly once, and the service is found.

In CI it stops for seconds, in the long run for the ten minutes in which everything at the signalling server has expired.
"""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from rondevu_client import MessagesRemoved
from tests.acceptance.processes import CONNECTION, LONGEST, PATIENCE, Daemon, Process, Stage
from tests.acceptance.test_daemon_killed import assert_drained, finish, start_both_ways

pytestmark = [pytest.mark.acceptance, pytest.mark.once]

SHORT, LONG = 16.0, 600.0
"""Seconds: longer than a link outlives its peer; longer than offers and services do."""

DOZE = 6.0
"""Seconds: less than after which the other side gives a link up."""

COUNT = 2_000

VICTIMS = {
    "service": ("alice",),
    "connection": ("bob",),
    "both daemons": ("alice", "bob"),
    "program": ("program",),
}


class Play:
    """Two daemons with a program each, of which something is stopped."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.service: Daemon
        self.connection: Daemon
        self.programs: list[Process]
        self.ids: dict[Daemon, str]

    async def begin(self) -> None:
        self.service, self.connection = await self.stage.pair()
        self.ids, self.programs = await start_both_ways(self.stage, self.service, self.connection, COUNT)
        await self.reached(COUNT // 4)

    async def reached(self, count: int) -> None:
        """Wait until both programs have received so many."""
        for program in self.programs:
            await program.until_count("received", count)

    def processes(self, names: tuple[str, ...]) -> list[Process]:
        known = {"alice": self.service.process, "bob": self.connection.process, "program": self.programs[1]}
        found = [known[name] for name in names]
        return [process for process in found if process is not None]

    async def suspend(self, names: tuple[str, ...], seconds: float) -> None:
        processes = self.processes(names)
        for process in processes:
            process.send(signal.SIGSTOP)
        await asyncio.sleep(seconds)  # the pause is the subject of the test
        for process in processes:
            process.send(signal.SIGCONT)

    async def end(self) -> None:
        await finish(self.stage, self.programs, COUNT)
        await assert_drained(self.ids)
        await self.reconnect()

    async def reconnect(self) -> None:
        """A connection that is made anew finds the service: its offers are fresh."""
        await self.connection.restart()
        async with self.connection.client() as client:
            await client.wait(CONNECTION, "connected", PATIENCE)


async def outlive(path: Path, names: tuple[str, ...], seconds: float) -> None:
    path.mkdir()
    async with Stage(path, LONGEST + seconds) as stage:
        play = Play(stage)
        await play.begin()
        await play.suspend(names, seconds)
        await play.end()


async def assert_undisturbed(play: Play) -> None:
    """The connecting daemon has the link with which it began, and never took its peer for silent."""
    async with play.connection.client() as client:
        told = [event["name"] for event in (await client.why(CONNECTION))["recent"]]
    assert "suspect" not in told, "time in which the daemon did not run was taken for silence of its peer"
    assert told == ["connected"], told


@pytest.mark.timeout(LONGEST + 3 * SHORT + 20)
async def test_what_is_stopped_for_a_while_goes_on_where_it_was(tmp_path):
    async with Stage(tmp_path, LONGEST + 3 * SHORT) as stage:
        play = Play(stage)
        await play.begin()
        await play.suspend(("bob",), DOZE)
        await play.reached(COUNT // 2)
        await assert_undisturbed(play)
        await play.suspend(("alice", "program"), SHORT)
        await play.reached(COUNT * 3 // 4)
        await play.suspend(("alice", "bob"), DOZE)
        await play.end()


@pytest.mark.soak
@pytest.mark.timeout(LONGEST + LONG + 120)
async def test_what_is_stopped_for_ten_minutes_goes_on_where_it_was(tmp_path):
    await asyncio.gather(*(outlive(tmp_path / name.replace(" ", "-"), names, LONG) for name, names in VICTIMS.items()))


@pytest.mark.timeout(LONGEST + 20)
async def test_time_asleep_counts_for_the_age_of_messages(tmp_path):
    """What may grow a second old has expired after a pause of three; what may grow older has not."""
    async with Stage(tmp_path) as stage:
        service, connection = await stage.pair()
        assert await service.stop() == 0
        async with connection.client() as client:
            channel = await client.attach(CONNECTION, "main", mode="send")
            await channel.send("short", max_age=1.0)
            await channel.send("long", max_age=600.0)
            connection.process.send(signal.SIGSTOP)
            await asyncio.sleep(3.0)
            connection.process.send(signal.SIGCONT)
            await service.start()
            with pytest.raises(MessagesRemoved) as removed:
                async with asyncio.timeout(PATIENCE):
                    await channel.flush()
            assert [(gone.first, gone.last, gone.reason) for gone in removed.value.ranges] == [(1, 1, "expired")]
        async with service.client() as client:
            received = await client.attach(await service.connection_id(), "main")
            async with asyncio.timeout(PATIENCE):
                assert (await anext(received)).data == "long"
