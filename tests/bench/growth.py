"""How cost grows: with what is queued, and with the number of links."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time

from rondevu_client import Channel
from tests.acceptance.processes import CONNECTION, Daemon, Stage
from tests.bench.figures import Report
from tests.bench.pairs import PATIENCE, Daemons, Flow
from tests.bench.scene import until
from tests.bench.usage import cores, cpu_seconds, memory_kib, until_steady

SIZE = 64
MORE = 2_000
"""Messages whose acceptance is timed when so many are queued already."""

UNLIMITED = 10_000_000, 4 * 1024**3
SLOWEST = 1_000
"""Messages a second below which a queue is not waited for."""

FEW = 2
"""Links that are there before memory is looked at for the first time: the first ones load the engine."""

AT_ONCE = 125
"""Links of each of the other daemons."""

SETTLING = 60.0
"""Seconds that links may take to come to rest."""


def patience(count: int) -> float:
    """Seconds for so many messages."""
    return PATIENCE + count / SLOWEST


async def queued(stage: Stage, report: Report, engine: str, depth: int) -> None:
    """Queue `depth` messages for a peer that is away, accept some more, let the peer come and take everything.

    The signalling server is away until the receiving program is attached. Draining begins when the link stands.
    """
    pair = Daemons(stage, engine, "disk", UNLIMITED)
    await pair.start()
    flow, conditions = [Flow(*pair.new_labels(1), SIZE)], {"engine": engine, "queued": depth}
    one = await pair.visiting(flow)
    await one.hear("ready")
    await pair.home.stop()
    await stage.rendezvous.kill()
    within = patience(depth)
    one.tell(do="count", count=depth, within=within)
    await one.hear("accepted", within)
    sending = pair.pids["sending daemon"]
    used = cpu_seconds(sending)
    one.tell(do="count", count=MORE)
    accepting = (await one.hear("accepted"))["seconds"]
    report.add("accepting a message", "µs", 1e6 * accepting / MORE, **conditions)
    work = "processor time of an accepted message"
    report.add(work, "µs", 1e6 * (cpu_seconds(sending) - used) / MORE, **conditions)

    await pair.home.start()
    other = await pair.at_home(flow)
    await other.hear("ready")
    await stage.rendezvous.start()
    count = depth + MORE
    other.tell(do="arrived", counts=[count], within=within)
    async with pair.visitor.client() as client:
        before = {process: cpu_seconds(pid) for process, pid in pair.pids.items()}
        await client.call("reconnect", {"target": CONNECTION})
        await client.wait(CONNECTION, "connected", PATIENCE)
        begun = time.monotonic()
    seconds = (await other.hear("arrived", within + PATIENCE))["streams"][0]["ended"] - begun
    report.add("draining", "s", seconds, **conditions)
    report.add("draining a message", "µs", 1e6 * seconds / count, **conditions)
    for process, pid in pair.pids.items():
        spent, work = cpu_seconds(pid) - before[process], "processor time of a drained message"
        report.add(work, "µs", 1e6 * spent / count, process=process, **conditions)
    await one.stop()
    await other.stop()
    await pair.stop()


async def links(stage: Stage, report: Report, engine: str, counts: list[int], quiet: float) -> None:
    """So many idle links of one daemon to several others, in rising numbers; then a message from it over each of them."""
    pair = Daemons(stage, engine, "disk")
    pair.declare(service="pool_size = 10\n")
    process = await pair.home.start()
    visitors = [pair.daemon(f"w{number}-") for number in range(math.ceil(counts[-1] / AT_ONCE))]
    for visitor in visitors:
        await visitor.start()
    peers = Peers(pair, visitors)
    await peers.grow(FEW)
    await until_steady(process.pid, SETTLING)
    memory, share = memory_kib(process.pid), await cores(process.pid, quiet)
    for count in counts:
        begun = time.monotonic()
        more = count - peers.count
        await peers.grow(count)
        conditions = {"engine": engine, "links": count}
        report.add("connecting one of many", "s", (time.monotonic() - begun) / more, **conditions)
        await until_steady(process.pid, SETTLING)
        grown = memory_kib(process.pid) - memory
        report.add("memory of an idle link", "KiB", grown / (count - FEW), **conditions)
        taken = await cores(process.pid, quiet) - share
        report.add("processor time of an idle link", "% of a core", 100 * taken / (count - FEW), **conditions)
        await peers.check()
        report.add("a message over each link", "s", await peers.one_message_each(), **conditions)
    for daemon in (*visitors, pair.home):
        await daemon.stop()


class Peers:
    """Several daemons that share the links to one; link N is `link-N`, of daemon N modulo their number."""

    def __init__(self, pair: Daemons, visitors: list[Daemon]) -> None:
        self._home, self._service = pair.home, pair.service
        self._visitors = visitors
        self.count = 0

    async def grow(self, count: int) -> None:
        """Connect until there are so many links, and all of them stand on both sides."""
        for number in range(self.count, count):
            async with self._visitor(number).client() as client:
                await client.connect(*self._service, name=f"link-{number}", reconnect={"max_attempts": "unlimited"})
        self.count = count
        await until(self._missing, f"{count} links that stand", patience(100 * count))

    async def check(self) -> None:
        """Raises `AssertionError` when one of the links does not stand."""
        assert not (missing := await self._missing()), f"links did not stay: {missing}"

    async def one_message_each(self) -> float:
        """Seconds until a message over each link has arrived. Raises `AssertionError` when one does not, or a wrong one."""
        label, arrived, within = f"at-{self.count}", set[str](), patience(100 * self.count)
        async with contextlib.AsyncExitStack() as stack:
            home = await stack.enter_async_context(self._home.client())
            ids = [row["connection_id"] for row in await home.connections()]
            senders = [await home.attach(each, label, mode="send") for each in ids]
            receivers = []
            for visitor in self._visitors:
                client = await stack.enter_async_context(visitor.client())
                names = [row["name"] for row in await client.connections()]
                receivers += [await client.attach(name, label) for name in names]
            begun = time.monotonic()
            try:
                async with asyncio.timeout(within), asyncio.TaskGroup() as group:
                    for receiver in receivers:
                        group.create_task(_take_one(receiver, arrived), name=f"message of {receiver.connection_id}")
                    for sender in senders:
                        group.create_task(sender.send(sender.connection_id), name=f"to {sender.connection_id}")
            except TimeoutError:
                raise AssertionError(
                    f"not in {within:.0f} s: a message over each link; {len(arrived)} arrived"
                ) from None
            taken = time.monotonic() - begun
        assert arrived == set(ids), f"{len(arrived)} messages over {len(ids)} links are not those that were sent"
        return taken

    async def _missing(self) -> str:
        """What is not there of the links; nothing when all stand."""
        found = []
        for daemon in (self._home, *self._visitors):
            async with daemon.client() as client:
                rows = await client.connections()
            standing = sum(row["state"] == "connected" for row in rows)
            places = self.count if daemon is self._home else len(rows)
            if standing != places or len(rows) != places:
                found.append(f"{daemon.name} has {standing} connected of {len(rows)}, {places} wanted")
        return ", ".join(found)

    def _visitor(self, number: int) -> Daemon:
        return self._visitors[number % len(self._visitors)]


async def _take_one(channel: Channel, arrived: set[str]) -> None:
    message = await channel.receive()
    await message.ack()
    arrived.add(str(message.data))
