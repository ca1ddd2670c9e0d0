"""Throughput, of the raw engine and of the whole way from program to program, turn by turn."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from tests.acceptance.processes import Stage
from tests.bench.figures import Report
from tests.bench.pairs import Daemons, Flow, Run, Timing, raw_pair, run_pair

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


async def measure(
    stage: Stage, report: Report, engine: str, shapes: list[Shape], durabilities: list[str], timing: Timing
) -> None:
    """One run of each shape: raw, daemons on disk, daemons in memory, and so on."""
    pairs = {durability: Daemons(stage, engine, durability) for durability in durabilities}
    for durability, pair in pairs.items():
        await pair.start()
        pids = ", ".join(f"{pid} ({name})" for name, pid in pair.pids.items())
        print(f"bench: daemons of {engine}, {durability}: {pids}", file=sys.stderr, flush=True)
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
        run = await run_pair(one, other, timing, both=shape.both, sizes=[unit] * shape.labels)
        add(report, run, shape, engine=engine, via="raw", mode=mode)
        await one.stop()
        await other.stop()


async def through_daemons(
    pair: Daemons, report: Report, engine: str, durability: str, shape: Shape, timing: Timing
) -> None:
    flows = [Flow(label, shape.size) for label in pair.new_labels(shape.labels)]
    one, other = await pair.programs(flows, both=shape.both)
    run = await run_pair(one, other, timing, both=shape.both, watched=pair.pids)
    add(report, run, shape, engine=engine, via="daemon", durability=durability)
    await one.stop()
    await other.stop()


def add(report: Report, run: Run, shape: Shape, **parameters: str) -> None:
    """Messages a second, and what each of the processes took for one of them."""
    conditions = {**parameters, **vars(shape)}
    if not run.bytes_per_second:
        raise RuntimeError(f"nothing arrived within the window: {conditions}; measure longer")
    rate = run.bytes_per_second / shape.size
    report.add("throughput", "messages/s", rate, **conditions)
    for process, cores in run.cores.items():
        report.add("processor time of a message", "µs", 1e6 * cores / rate, process=process, **conditions)
