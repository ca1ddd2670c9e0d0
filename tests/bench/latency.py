"""Delays: at a low rate, beside a label that is full of large messages, and until a message is accepted."""

from __future__ import annotations

import asyncio

from tests.acceptance.processes import Stage
from tests.bench.figures import Report
from tests.bench.pairs import Daemons, Flow, Run, Timing, raw_pair, run_pair

SIZE = 64
INTERVAL = 0.02
BULK = 1024 * 1024
FRAME = 16 * 1024
SHARES = ("p50", "p99")


async def measure(stage: Stage, report: Report, engine: str, durabilities: list[str], timing: Timing) -> None:
    await raw(stage, report, engine, timing)
    for durability in durabilities:
        pair = Daemons(stage, engine, durability)
        await pair.start()
        await low_rate(pair, report, engine, durability, timing)
        await beside(pair, report, engine, durability, timing)
        await pair.stop()


async def raw(stage: Stage, report: Report, engine: str, timing: Timing) -> None:
    for name, flows in (
        ("delay", [Flow("small", SIZE, INTERVAL)]),
        ("delay beside a full label", [Flow("small", SIZE, INTERVAL), Flow("bulk", FRAME)]),
    ):
        one, other = await raw_pair(stage, engine, flows)
        run = await run_pair(one, other, timing, sizes=[each.size for each in flows])
        _add(report, name, run, engine=engine, via="raw")
        await one.stop()
        await other.stop()


async def low_rate(pair: Daemons, report: Report, engine: str, durability: str, timing: Timing) -> None:
    one, other = await pair.programs([Flow(*pair.new_labels(1), SIZE, INTERVAL)])
    run = await run_pair(one, other, timing)
    conditions = {"engine": engine, "via": "daemon", "durability": durability}
    _add(report, "delay", run, **conditions)
    for share in SHARES:
        report.add("delay until accepted", "ms", run.results[0].sender[share], share=share, **conditions)
    await one.stop()
    await other.stop()


async def beside(pair: Daemons, report: Report, engine: str, durability: str, timing: Timing) -> None:
    """Programs of their own for the large messages: what is measured is the daemons and the link."""
    small, bulk = pair.new_labels(2)
    quick = await pair.programs([Flow(small, SIZE, INTERVAL)])
    heavy = await pair.programs([Flow(bulk, BULK)])
    async with asyncio.TaskGroup() as group:
        group.create_task(run_pair(*heavy, timing), name="large messages")
        running = group.create_task(run_pair(*quick, timing), name="small messages")
    _add(report, "delay beside a full label", running.result(), engine=engine, via="daemon", durability=durability)
    for worker in (*quick, *heavy):
        await worker.stop()


def _add(report: Report, name: str, run: Run, **conditions: str) -> None:
    """Raises `RuntimeError` when no message of the first flow arrived within the window."""
    stream = run.results[0].streams[0]
    if SHARES[0] not in stream:
        raise RuntimeError(f"no message arrived within the window: {name}, {conditions}; measure longer")
    for share in SHARES:
        report.add(name, "ms", stream[share], share=share, **conditions)
