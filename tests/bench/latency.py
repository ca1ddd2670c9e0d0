"""Delays: at a low rate, beside a label that is full of large messages, and until a message is accepted."""

from __future__ import annotations

import asyncio

from tests.acceptance.processes import Stage
from tests.bench.figures import Report
from tests.bench.pairs import Daemons, Flow, Timing, raw_pair, run_pair

SIZE = 64
INTERVAL = 0.02
BULK = 1024 * 1024
FRAME = 16 * 1024


async def measure(stage: Stage, report: Report, engines: list[str], timing: Timing) -> None:
    for engine in engines:
        await raw(stage, report, engine, timing)
        for durability in ("disk", "memory"):
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
        (result,) = await run_pair(one, other, timing, both=False, sizes=[each.size for each in flows])
        for share in ("p50", "p99"):
            report.add(name, "ms", result.streams[0][share], engine=engine, via="raw", share=share)
        await one.stop()
        await other.stop()


async def low_rate(pair: Daemons, report: Report, engine: str, durability: str, timing: Timing) -> None:
    one, other = await pair.programs([Flow(*pair.new_labels(1), SIZE, INTERVAL)])
    (result,) = await run_pair(one, other, timing, both=False)
    conditions = {"engine": engine, "via": "daemon", "durability": durability}
    for share in ("p50", "p99"):
        report.add("delay", "ms", result.streams[0][share], share=share, **conditions)
        report.add("delay until accepted", "ms", result.sender[share], share=share, **conditions)
    await one.stop()
    await other.stop()


async def beside(pair: Daemons, report: Report, engine: str, durability: str, timing: Timing) -> None:
    """Programs of their own for the large messages: what is measured is the daemons and the link."""
    small, bulk = pair.new_labels(2)
    quick = await pair.programs([Flow(small, SIZE, INTERVAL)])
    heavy = await pair.programs([Flow(bulk, BULK)])
    async with asyncio.TaskGroup() as group:
        group.create_task(run_pair(*heavy, timing, both=False), name="large messages")
        running = group.create_task(run_pair(*quick, timing, both=False), name="small messages")
    (result,) = running.result()
    for share in ("p50", "p99"):
        conditions = {"engine": engine, "via": "daemon", "durability": durability, "share": share}
        report.add("delay beside a full label", "ms", result.streams[0][share], **conditions)
    for worker in (*quick, *heavy):
        await worker.stop()
