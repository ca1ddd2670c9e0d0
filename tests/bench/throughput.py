"""Throughput, of the raw engine and of the whole way from program to program, turn by turn."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from tests.acceptance.processes import Stage
from tests.bench.figures import Report
from tests.bench.pairs import Daemons, Flow, Timing, cpu_within, raw_pair, run_pair

LARGEST = 262_144
"""Bytes of the largest message that the engines send."""

FRAME = 16 * 1024
"""Bytes of a send where small messages are put together and large ones are cut."""


@dataclass(frozen=True)
class Shape:
    size: int
    labels: int = 1
    directions: int = 1

    @property
    def both(self) -> bool:
        return self.directions == 2


async def measure(stage: Stage, report: Report, engines: list[str], shapes: list[Shape], timing: Timing) -> None:
    """One run of each shape over each engine: raw, daemons on disk, daemons in memory, and so on."""
    for engine in engines:
        pairs = {durability: Daemons(stage, engine, durability) for durability in ("disk", "memory")}
        for pair in pairs.values():
            await pair.start()
        for shape in shapes:
            await raw(stage, report, engine, shape, timing)
            for durability, pair in pairs.items():
                await through_daemons(pair, report, engine, durability, shape, timing)
        for pair in pairs.values():
            await pair.stop()


async def raw(stage: Stage, report: Report, engine: str, shape: Shape, timing: Timing) -> None:
    """Both ways to send: a message each, as far as the engine takes it, and frames of 16 KiB."""
    for mode, unit in (("message per send", shape.size), ("16 KiB frames", FRAME)):
        if unit > LARGEST or (mode == "16 KiB frames" and shape.size == FRAME):
            continue
        flows = [Flow(str(number), unit) for number in range(shape.labels)]
        one, other = await raw_pair(stage, engine, flows)
        results = await run_pair(one, other, timing, both=shape.both, sizes=[unit] * shape.labels)
        rate = sum(stream["bytes_per_second"] for result in results for stream in result.streams)
        add(report, rate, shape, engine=engine, via="raw", mode=mode)
        await one.stop()
        await other.stop()


async def through_daemons(
    pair: Daemons, report: Report, engine: str, durability: str, shape: Shape, timing: Timing
) -> None:
    flows = [Flow(label, shape.size) for label in pair.new_labels(shape.labels)]
    one, other = await pair.programs(flows, both=shape.both)
    watching = asyncio.create_task(cpu_within(pair.pids, timing.warm, timing.measured), name="processor time")
    results = await run_pair(one, other, timing, both=shape.both)
    rate = sum(stream["bytes_per_second"] for result in results for stream in result.streams)
    add(report, rate, shape, engine=engine, via="daemon", durability=durability)
    for side, share in zip(("sender", "receiver"), await watching, strict=True):
        conditions = {"engine": engine, "durability": durability, "side": side, **vars(shape)}
        report.add("processor time of a daemon", "cores", share, **conditions)
    await one.stop()
    await other.stop()


def add(report: Report, rate: float, shape: Shape, **parameters: str) -> None:
    """`rate` is in bytes a second."""
    if not rate:
        raise RuntimeError(f"nothing arrived within the window: {shape}, {parameters}; measure longer")
    report.add("throughput", "messages/s", rate / shape.size, **parameters, **vars(shape))
