"""A large backlog costs disk and nothing else: memory stays as it was, start and attach take no longer.

In CI with 60 MB and 100,000 messages, in the long run (``make soak``) with 1 GB and 1,000,000.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from rondevud.records import (
    CreateChannel,
    Durability,
    OutMessage,
    Put,
    Receive,
    Role,
    SaveSession,
    SessionRecord,
    Stamp,
)
from rondevud.statedir import DATABASE
from rondevud.store.sqlite import SqliteStore
from tests.acceptance.processes import CONNECTION, LONGEST, PATIENCE, SCALE, SERVICE, Daemon, Stage
from tests.acceptance.test_leaks import Memory

pytestmark = [pytest.mark.acceptance, pytest.mark.once]

MIB = 1024 * 1024
TOLERANCE = 32 * 1024
"""KiB by which a daemon may grow with its backlog."""

UNLIMITED = 'reconnect = { backoff_max = 0.5 }\n[queue]\nmax_queue_bytes = "unlimited"\ninbox_size = "unlimited"\n'
PAYLOAD = 16 * 1024
BATCH = 64
"""Messages that the filling program has under way: a megabyte."""

READY = 2.0
"""Seconds from the start of the process to ``READY=1``, with any backlog. Only the long run looks at a clock."""

ATTACHED = 0.2
"""Seconds from the request to the first message."""

DEARER = 1.5
"""By what factor the processor time of a start with a backlog may exceed that of one without, side by side."""

STARTS = 3
"""Of so many starts the best counts: what else the machine does only makes them slower."""


def long(count: int, *more: int, within: float) -> object:
    """Parameters of a long run: messages, seconds it may take, and what else the test wants."""
    marks = [pytest.mark.soak, pytest.mark.timeout(within * SCALE + 60)]
    return pytest.param(count, within * SCALE, *more, marks=marks, id=str(count))


def short(count: int, *more: int) -> object:
    """The same in CI."""
    return pytest.param(count, 2 * LONGEST, *more, marks=pytest.mark.timeout(2 * LONGEST + 20), id=str(count))


# --- memory ----------------------------------------------------------------------------------------------------------


class Watched:
    """A daemon, and the most it has had in memory above what it had when it was idle."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.idle = self._now()
        self.most: dict[str, int] = {}
        """KiB by phase."""

    def _now(self) -> Memory:
        assert self.daemon.process is not None
        return Memory.of(self.daemon.process.pid)

    def look(self, phase: str) -> None:
        """Resident pages: no less than what the proportional ones grow by of the daemon's own doing."""
        grown = self._now().resident - self.idle.resident
        self.most[phase] = max(grown, self.most.get(phase, grown))

    def judge(self) -> None:
        print(f"{self.daemon.name}: idle {self.idle}, grown by {self.most} KiB")
        assert all(grown <= TOLERANCE for grown in self.most.values()), self.most


async def fill(bob: Daemon, watched: Watched, count: int) -> None:
    async with bob.client() as client:
        channel = await client.attach(CONNECTION, "main", mode="send")
        for _ in range(count // BATCH):
            await asyncio.gather(*(channel.send(os.urandom(PAYLOAD)) for _ in range(BATCH)))
            watched.look("filling")


async def drain(bob: Daemon, left: int, *watched: Watched) -> None:
    """Until no more than `left` messages wait for the peer."""
    async with bob.client() as client:
        while (await client.queue(CONNECTION, "main"))["queue_size"] > left:
            for each in watched:
                each.look("draining")
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(("count", "within", "left"), [short(3_840, 2_560), long(65_536, 0, within=1_800)])
async def test_a_backlog_stays_on_disk_while_it_grows_waits_outlives_a_restart_and_drains(
    tmp_path, count, within, left
):
    async with Stage(tmp_path, within, fresh=True) as stage:
        alice, bob = await stage.declared_pair(UNLIMITED)
        await alice.start()
        await bob.start()
        async with bob.client() as client:
            await client.wait(CONNECTION, "connected", PATIENCE)
            channel = await client.attach(CONNECTION, "main", mode="send")
            await channel.send("warm")
            await client.wait(CONNECTION, "drained", PATIENCE)
        receiving, sending = Watched(alice), Watched(bob)
        await alice.stop()
        await fill(bob, sending, count)
        sending.look("at rest")
        await bob.restart()
        sending.look("after a restart")
        queue = await bob.queue(CONNECTION, "main")
        assert (queue["queue_size"], queue["queue_bytes"]) == (count, count * PAYLOAD)
        await alice.start()
        await drain(bob, left, sending, receiving)
        async with alice.client() as client:
            (row,) = await client.sessions()
        assert row["waiting"] > count - left
        receiving.look("with what has arrived")
        sending.judge()
        receiving.judge()


# --- start and attach ------------------------------------------------------------------------------------------------


class Spent(NamedTuple):
    """What a start or an attach took, in seconds. A busy machine makes `wall` longer, `processor` hardly."""

    wall: float
    processor: float
    """Of the daemon: all its threads, in user mode and in the kernel."""


def processor_seconds(daemon: Daemon) -> float:
    assert daemon.process is not None
    fields = Path(f"/proc/{daemon.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def fill_store(state: Path, count: int) -> None:
    """A connection with `count` messages of 1 KiB in its queues, half of them in each direction."""
    state.mkdir(mode=0o700)
    store = await SqliteStore.open(state / DATABASE)
    stamp = Stamp("an earlier boot", 1.0, time.time())
    username, fqn = SERVICE
    record = SessionRecord(
        "conn-00000000000000aa", Role.CONNECTING, CONNECTION, b"s" * 16, b"t" * 32,
        link=1, welcomed=True, contacted=True, target=f"{username}/{fqn}",
    )  # fmt: skip
    await store.execute(SaveSession(record))
    channel = (await store.execute(CreateChannel(record.connection_id, "main", Durability.DISK, b"epoch-bo"))).id
    payloads = tuple(f"{number:08}".ljust(1_024, "x") for number in range(1_000))
    epoch, received = b"", 0
    for _ in range(count // 2_000):
        await store.execute(Put(channel, payloads, stamp))
        items = tuple(OutMessage(received + 1 + number, payload) for number, payload in enumerate(payloads))
        recv_next = received + 1 + len(items)
        before = received + 1 if received else 0
        await store.execute(Receive(channel, epoch, before, b"epoch-al", recv_next, items, stamp))
        epoch, received = b"epoch-al", received + len(items)
    await store.close()


async def start(bob: Daemon) -> Spent:
    before = time.monotonic()
    await bob.start()
    return Spent(time.monotonic() - before, processor_seconds(bob))


async def attach(bob: Daemon) -> Spent:
    """Attach, and take the first message."""
    async with bob.client() as client:
        before, spent = time.monotonic(), processor_seconds(bob)
        channel = await client.attach(CONNECTION, "main", auto_ack=False, credit=8)
        message = await anext(channel)
        took = Spent(time.monotonic() - before, processor_seconds(bob) - spent)
    assert message.data.startswith("00000000x")
    return took


def best(spent: list[Spent]) -> Spent:
    return Spent(min(each.wall for each in spent), min(each.processor for each in spent))


@pytest.mark.parametrize(("count", "within"), [short(100_000), long(1_000_000, within=600)])
async def test_a_daemon_with_many_queued_messages_is_ready_at_once_and_delivers_the_first_one(
    tmp_path, count, within, request
):
    async with Stage(tmp_path, within, fresh=True) as stage:
        await stage.rendezvous.start()
        username, fqn = SERVICE
        target = f'[[connection]]\nname = "{CONNECTION}"\nusername = "{username}"\nfqn = "{fqn}"\n'
        empty, bob = stage.daemon("empty"), stage.daemon("bob", target)
        await fill_store(bob.state, count)
        starts, attaches, bare_starts = [], [], []
        for _ in range(STARTS):
            bare_starts.append(await start(empty))
            await empty.kill()
            starts.append(await start(bob))
            attaches.append(await attach(bob))
            queue = await bob.queue(CONNECTION, "main")
            assert (queue["queue_size"], queue["waiting"]) == (count // 2, count // 2)
            await bob.kill()
        ready, bare, attached = best(starts), best(bare_starts), best(attaches)
        print(f"{count} messages: ready {ready}, without any {bare}; first message {attached}")
        assert ready.processor <= DEARER * bare.processor
        assert attached.processor <= ATTACHED
        if request.node.get_closest_marker("soak"):
            assert ready.wall <= READY * SCALE
            assert attached.wall <= ATTACHED * SCALE
