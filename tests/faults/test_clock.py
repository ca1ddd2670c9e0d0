"""Somebody sets the wall clock of a daemon or of the signalling server by a day: queues, links and services do not care."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest

from rondevu_client import MessagesRemoved
from tests.acceptance.processes import (
    CONNECTION,
    LIMIT,
    PATIENCE,
    SERVICE,
    Daemon,
    Stage,
    assert_exactly_once_in_order,
    taken,
)
from tests.acceptance.test_daemon_killed import finish, start_both_ways

pytestmark = [pytest.mark.acceptance, pytest.mark.once, LIMIT]

DAY = 86_400
AGED = "[queue]\nmax_message_age = 600\n"
"""Messages can expire, and have no reason to."""

COUNT = 1_600


@pytest.fixture(scope="session")
def library(tmp_path_factory) -> Path:
    """See ``clock.c``."""
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("needs a C compiler")
    made = tmp_path_factory.mktemp("clock") / "clock.so"
    source = Path(__file__).with_name("clock.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", made, source, "-ldl"], check=True)
    return made


class Clock:
    """The wall clock of the processes that have `env` in their environment."""

    def __init__(self, path: Path, library: Path) -> None:
        self._path = path
        self.set(0)
        self.env = {"LD_PRELOAD": str(library), "RONDEVUD_TEST_CLOCK": str(path)}

    def set(self, seconds: int) -> None:
        """How far it is off from now on."""
        with self._path.open("r+b" if self._path.exists() else "wb") as file:
            file.write(struct.pack("=q", seconds))


class Requests:
    """Stands before the signalling server and counts what is asked of it."""

    def __init__(self, url: str) -> None:
        self.url = ""
        self.counts: Counter[str] = Counter()
        """By method and path without what is behind its first word: ``POST /services``."""
        self._port = int(url.rpartition(":")[2])
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def counted(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._pass_on, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield
        finally:  # the daemons may still be there, and hold their connections
            server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        there: asyncio.StreamWriter | None = None
        try:
            there_reader, there = await asyncio.open_connection("127.0.0.1", self._port)
            await asyncio.gather(self._copy(reader, there, asked=True), self._copy(there_reader, writer, asked=False))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            for end in filter(None, (writer, there)):
                end.close()

    async def _copy(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, asked: bool) -> None:
        while data := await source.read(65_536):
            if asked:
                found = re.findall(rb"^(GET|POST|PUT|DELETE) (/[a-z]*)", data, re.MULTILINE)
                self.counts.update(f"{method.decode()} {path.decode()}" for method, path in found)
            target.write(data)
            await target.drain()
        target.close()


class Scene:
    """Two daemons and a signalling server, each with a clock of its own."""

    def __init__(self, stage: Stage, library: Path) -> None:
        self.stage = stage
        self.clocks = {name: Clock(stage.path / f"{name}.clock", library) for name in ("alice", "bob", "signalling")}
        self.service: Daemon
        self.connection: Daemon
        self.requests: Requests

    @contextlib.asynccontextmanager
    async def set_up(self) -> AsyncIterator[None]:
        """The daemons are not started yet."""
        stage = self.stage
        stage.rendezvous.env = self.clocks["signalling"].env
        await stage.rendezvous.start()
        self.requests = Requests(stage.rendezvous.url)
        async with self.requests.counted():
            stage.rendezvous.url = self.requests.url
            target = 'username = "{}"\nfqn = "{}"\n'.format(*SERVICE)
            self.service = stage.daemon("alice", f"{AGED}[[service]]\n{target}polling_interval = 0.2\n")
            connection = f'{AGED}[[connection]]\nname = "{CONNECTION}"\n{target}channels = ["main"]\n'
            self.connection = stage.daemon("bob", connection)
            for daemon in (self.service, self.connection):
                daemon.env = self.clocks[daemon.name].env
            yield

    async def connect(self) -> None:
        await asyncio.gather(self.service.start(), self.connection.start())
        async with self.connection.client() as client:
            await client.wait(CONNECTION, "connected", PATIENCE)


def assert_numbers_rise(log: list[list[str]]) -> None:
    """The numbers of what was received, in order, within each epoch."""
    ids = [message_id.split("-") for message_id, _, _ in taken(log)]
    assert len({epoch for epoch, _ in ids}) == 1, "another epoch without a store that went back"
    assert all(int(left[1]) < int(right[1]) for left, right in pairwise(ids))


def test_the_library_moves_the_wall_clock_and_no_other(tmp_path, library):
    clock = Clock(tmp_path / "clock", library)
    clock.set(-DAY)
    program = "import time, datetime; print(time.time(), time.monotonic(), datetime.datetime.now().timestamp())"
    said = subprocess.run([sys.executable, "-c", program], env=clock.env, check=True, capture_output=True, text=True)
    wall, steady, date = map(float, said.stdout.split())
    assert abs(wall + DAY - time.time()) < 60
    assert abs(date + DAY - time.time()) < 60
    assert abs(steady - time.monotonic()) < 60


async def test_clocks_that_step_by_a_day_in_turn_lose_repeat_and_reorder_nothing(tmp_path, library):
    """Each clock goes both ways while messages flow both ways; daemons are killed while theirs is a day off."""
    steps = [
        ("alice", DAY, None),
        ("bob", -DAY, "bob"),
        ("signalling", DAY, "bob"),
        ("alice", -DAY, "alice"),
        ("bob", DAY, "bob"),
        ("signalling", -DAY, "bob"),
    ]
    async with Stage(tmp_path) as stage:
        scene = Scene(stage, library)
        async with scene.set_up():
            await scene.connect()
            daemons = {"alice": scene.service, "bob": scene.connection}
            _, programs = await start_both_ways(stage, scene.service, scene.connection, COUNT)
            for step, (whose, seconds, killed) in enumerate(steps, 1):
                for program in programs:
                    await program.until_count("received", step * COUNT // (len(steps) + 2))
                scene.clocks[whose].set(seconds)
                if killed:
                    await daemons[killed].restart()
            await finish(stage, programs, COUNT)
        counts = scene.requests.counts
        print(f"requests: {dict(counts)}")
        # One at each of alice's two starts, one when the server's clock has gone forward, one more for whoever is late.
        assert counts["POST /services"] <= 4, counts
        for name in ("alice", "bob"):
            assert_numbers_rise(stage.read_log(name))


async def test_fresh_messages_for_an_absent_peer_outlive_every_step_and_old_ones_do_not(tmp_path, library):
    async with Stage(tmp_path) as stage:
        scene = Scene(stage, library)
        async with scene.set_up():
            await scene.connect()
            target = await scene.service.connection_id()
            assert await scene.service.stop() == 0
            connection, clock = scene.connection, scene.clocks["bob"]
            upto = 0
            for seconds in (DAY, -DAY, 0):
                upto += 100
                sender = await stage.program(
                    "sender", "sender", connection.socket, CONNECTION, "main", "LOG", "bob", upto
                )
                assert await sender.exited() == 0
                clock.set(seconds)
                await expire_one(connection)
                assert (await connection.queue(CONNECTION, "main"))["queue_size"] == upto
                await connection.restart()
                assert (await connection.queue(CONNECTION, "main"))["queue_size"] == upto
            await scene.service.start()
            receiver = await stage.program(
                "receiver", "receiver", scene.service.socket, target, "main", "LOG", upto, 100
            )
            assert await receiver.exited() == 0
        assert_exactly_once_in_order(stage.read_log("receiver"), "bob", upto)
        assert_numbers_rise(stage.read_log("receiver"))


async def expire_one(daemon: Daemon) -> None:
    """A message that may grow a tenth of a second old goes by the clock that nobody sets."""
    async with asyncio.timeout(PATIENCE), daemon.client() as client:
        channel = await client.attach(CONNECTION, "main", mode="send")
        await channel.send("soon too old", max_age=0.1)
        with pytest.raises(MessagesRemoved):
            await channel.flush()


@pytest.mark.parametrize("seconds", [DAY, pytest.param(-DAY, marks=pytest.mark.soak)])
async def test_a_service_is_found_again_when_the_clock_of_the_signalling_server_was_set(tmp_path, library, seconds):
    """Set forward, the server forgets the service; set back, it keeps it: signatures are taken either way."""
    async with Stage(tmp_path) as stage:
        scene = Scene(stage, library)
        async with scene.set_up():
            await scene.connect()
            scene.clocks["signalling"].set(seconds)
            await scene.connection.restart()
            async with scene.connection.client() as client:
                await client.wait(CONNECTION, "connected", PATIENCE)
            await scene.service.restart()  # publishes with a signature by the server's new time
            async with scene.connection.client() as client:
                channel = await client.attach(CONNECTION, "main", mode="send")
                await channel.send("there")
                async with asyncio.timeout(PATIENCE):
                    await channel.flush()
        assert scene.requests.counts["POST /services"] <= 4, scene.requests.counts
