"""How cost grows: with what is queued, and with the number of links. And what a daemon costs before anything happens."""

from __future__ import annotations

import asyncio
import statistics
import sys
import time

from rondevu_client import Daemon as Client
from tests.acceptance.processes import CONNECTION, Stage
from tests.bench.figures import Report
from tests.bench.pairs import PATIENCE, Daemons, Flow, cpu_seconds, cpu_within, memory_kib, settled

SIZE = 64
MORE = 2_000
"""Messages whose acceptance is timed when so many are queued already."""

UNLIMITED = 10_000_000, 4 * 1024**3
FEW = 8
"""Links that are there before memory is looked at for the first time: the first ones load the engine."""


async def queued(stage: Stage, report: Report, engine: str, depth: int) -> None:
    """Queue `depth` messages for a peer that is away, accept some more, let the peer come and take everything."""
    pair = Daemons(stage, engine, "disk", (UNLIMITED[0] + depth, UNLIMITED[1]))
    await pair.start()
    (label,) = pair.new_labels(1)
    flow = [Flow(label, SIZE)]
    one, other = await pair.programs(flow)
    one.tell(do="run", send=False, begin=0, first=0, end=0)
    await one.hear("sent")
    await other.stop()
    await pair.home.stop()
    one.tell(do="count", count=depth)
    await one.hear("accepted")
    one.tell(do="count", count=MORE)
    conditions = {"engine": engine, "queued": depth}
    accepting = (await one.hear("accepted"))["seconds"]
    report.add("accepting a message", "µs", 1e6 * accepting / MORE, **conditions)

    used = cpu_seconds(pair.pids[0])
    await pair.home.start()
    begun = time.monotonic()
    other = await pair.at_home(flow)
    await other.hear("ready")
    other.tell(do="arrived", counts=[depth + MORE], within=PATIENCE + depth / 500)
    arrived = await other.hear("arrived", PATIENCE + depth / 500)
    report.add("draining", "s", arrived["at"] - begun, **conditions)
    report.add(
        "processor time of a drained message",
        "µs",
        1e6 * (cpu_seconds(pair.pids[0]) - used) / (depth + MORE),
        **conditions,
    )
    await one.stop()
    await other.stop()
    await pair.stop()


async def links(stage: Stage, report: Report, engine: str, count: int, seconds: float) -> None:
    """So many idle links between two daemons; one message over each arrives."""
    pair = Daemons(stage, engine, "disk", (100_000 + count, 1 << 28))
    pair.declare("pool_size = 10\nmax_connections = 10000\nmax_sessions = 10000\n")
    await pair.home.start()
    await pair.visitor.start()
    await pair.linked()
    async with pair.home.client() as home, pair.visitor.client() as visitor:
        begun = time.monotonic()
        few = min(FEW, count // 2)
        await _connect(visitor, pair.service, 1, few)
        await settled(home, few)
        before = [memory_kib(pid) for pid in pair.pids]
        await _connect(visitor, pair.service, few, count)
        await settled(visitor, count)
        await settled(home, count)
        report.add("connecting all links", "s", time.monotonic() - begun, engine=engine, links=count)
        after = [memory_kib(pid) for pid in pair.pids]
        shares = await cpu_within(pair.pids, 2.0, seconds)
        for side, low, high, share in zip(("connecting", "service"), before, after, shares, strict=True):
            conditions = {"engine": engine, "links": count, "side": side}
            report.add("memory of a link", "KiB", (high - low) / (count - few), **conditions)
            report.add("processor time of an idle link", "% of a core", 100 * share / count, **conditions)
        arriving = await _one_message_each(home, visitor, count)
        report.add("a message over each link", "s", arriving, engine=engine, links=count)
    await pair.stop()


async def _connect(client: Client, service: tuple[str, str], first: int, last: int) -> None:
    for number in range(first, last):
        await client.connect(*service, name=f"link-{number}", max_attempts=0)


async def _one_message_each(home: Client, visitor: Client, count: int) -> float:
    """Seconds until a message over each link has arrived. Raises `TimeoutError`, `RuntimeError` for a wrong message."""
    names = [CONNECTION, *(f"link-{number}" for number in range(1, count))]
    far = [row["connection_id"] for row in await home.connections()]
    begun = time.monotonic()

    async def send(name: str) -> None:
        channel = await visitor.attach(name, "once", mode="send", options={})
        await channel.send(name)
        await channel.flush()

    async def receive(connection: str) -> str:
        while True:
            if any(row["label"] == "once" for row in await home.channels(connection)):
                break
            await asyncio.sleep(0.1)
        message = await (await home.attach(connection, "once")).receive()
        await message.ack()
        return str(message.data)

    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
        receiving = [group.create_task(receive(each), name=f"receive {each}") for each in far]
        for name in names:
            group.create_task(send(name), name=f"send {name}")
    if sorted(task.result() for task in receiving) != sorted(names):
        raise RuntimeError("not every link delivered its own message")
    return time.monotonic() - begun


async def beginnings(stage: Stage, report: Report, engine: str, times: int) -> None:
    """Start-up, memory before the first link, connect time, and how long `rondevuctl status` takes."""
    pair = Daemons(stage, engine, "disk", (90_001, 1 << 28))
    pair.declare()
    username, fqn = pair.service
    for _ in range(times):
        begun = time.monotonic()
        await pair.home.start()
        report.add("start-up until READY", "s", time.monotonic() - begun, engine=engine)
        await pair.home.stop()
    alone = Daemons(stage, engine, "memory", (90_002, 1 << 28))
    alone.declare()
    alone.visitor._config.write_text(alone.home._config.read_text().partition("[[service]]")[0])
    await alone.visitor.start()
    assert alone.visitor.process is not None
    report.add("memory before the first link", "KiB", memory_kib(alone.visitor.process.pid), engine=engine)
    await pair.home.start()
    async with alone.visitor.client() as client:
        for number in range(times):
            begun = time.monotonic()
            connection = await client.connect(username, fqn, name=f"new-{number}")
            await connection.wait("connected", PATIENCE)
            report.add("connecting", "s", time.monotonic() - begun, engine=engine)
    await _status(report, alone, times)
    await pair.home.stop()
    await alone.visitor.stop()


async def _status(report: Report, pair: Daemons, times: int) -> None:
    command = [sys.executable, "-m", "rondevud.ctl.main", "--socket", str(pair.visitor.socket), "status"]
    taken = []
    for _ in range(max(3, times)):
        begun = time.monotonic()
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        output, _ = await process.communicate()
        if process.returncode or not output:
            raise RuntimeError(f"rondevuctl status ended with {process.returncode}")
        taken.append(1e3 * (time.monotonic() - begun))
    report.add("rondevuctl status", "ms", statistics.median(taken))
