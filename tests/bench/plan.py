"""What is measured, in which order, and how often."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from tests.acceptance.processes import Stage
from tests.bench import beginnings, brokers, growth, latency, throughput
from tests.bench.figures import Report
from tests.bench.pairs import Timing
from tests.bench.scene import scene
from tests.bench.throughput import Shape

SIZES = (64, 1024, 16 * 1024, 1024 * 1024)
ENGINES = ("aiortc", "libdatachannel")
DURABILITIES = ("disk", "memory")
PARTS = ("throughput", "brokers", "latency", "beginnings", "queued", "links")
BRIEFLY = 300.0
"""Seconds beside those of measuring after which a part is given up."""


def usable() -> list[str]:
    """The engines that a daemon can use here."""
    return [name for name in ENGINES if importlib.util.find_spec(name)]


@dataclass(frozen=True)
class Plan:
    parts: tuple[str, ...]
    engines: list[str]
    durabilities: list[str]
    repeat: int
    shapes: list[Shape]
    others: list[Shape]
    """With more labels and directions; measured once."""
    timing: Timing
    delays: Timing
    times: int
    """Starts, connects, and calls of a command."""
    depths: list[int]
    """Messages queued."""
    links: list[int]
    quiet: float
    """Seconds for which idle links are watched."""
    fresh: bool = True
    """Whether daemons are interpreters of their own; a test that measures nothing can have them sooner."""

    @classmethod
    def of(cls, given: argparse.Namespace) -> Plan:
        quick = given.quick
        sizes = given.size or SIZES
        more = ((8, 1), (1, 2), (8, 2))
        return cls(
            parts=tuple(given.only or PARTS),
            engines=given.engine or usable(),
            durabilities=given.durability or list(DURABILITIES),
            repeat=given.repeat or (1 if quick else 3),
            shapes=[Shape(size) for size in sizes],
            others=[] if quick else [Shape(size, labels, ways) for labels, ways in more for size in sizes],
            timing=Timing(0.5 if quick else 1.0, given.seconds or (1.5 if quick else 3.0)),
            delays=Timing(0.5 if quick else 1.0, given.seconds or (2.0 if quick else 10.0)),
            times=3 if quick else 10,
            depths=[10, 1_000] if quick else [10, 1_000, 10_000, 100_000, *([1_000_000] if given.long else [])],
            links=[10] if quick else [10, 100, 500],
            quiet=5.0 if quick else 20.0,
        )

    def patience(self, shapes: int) -> float:
        """Seconds for so many shapes, each over the raw engine and through daemons."""
        longest = max(self.timing.warm + self.timing.measured, self.delays.warm + self.delays.measured)
        return BRIEFLY + shapes * (4 * longest + 20)


async def carry_out(plan: Plan, report: Report, directory: Path) -> None:
    """Add all figures to the report. Raises `Failed`, with what came before in the report."""

    def begin(what: str, within: float) -> AbstractAsyncContextManager[Stage]:
        print(f"bench: {time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)
        return scene(directory, what, within, fresh=plan.fresh)

    for number in range(1, plan.repeat + 1) if "throughput" in plan.parts else ():
        for engine in plan.engines:
            async with begin(f"throughput, {engine}, round {number}", plan.patience(len(plan.shapes))) as stage:
                await throughput.measure(stage, report, engine, plan.shapes, plan.durabilities, plan.timing)
    for number in range(1, plan.repeat + 1) if "brokers" in plan.parts else ():
        for name in brokers.usable():
            async with begin(f"throughput, {name}, round {number}", plan.patience(len(brokers.SIZES))) as stage:
                await brokers.measure(stage, report, name, plan.timing)
    for engine in plan.engines if "throughput" in plan.parts else ():
        # Daemons of their own for each, since a connection has 64 channels at most.
        for (labels, directions), group in groupby(plan.others, attrgetter("labels", "directions")):
            shapes = list(group)
            what = f"{labels} labels, {directions} directions, {engine}"
            async with begin(what, plan.patience(len(shapes))) as stage:
                await throughput.measure(stage, report, engine, shapes, plan.durabilities, plan.timing)
    for number in range(1, plan.repeat + 1) if "latency" in plan.parts else ():
        for engine in plan.engines:
            async with begin(f"delays, {engine}, round {number}", plan.patience(2)) as stage:
                await latency.measure(stage, report, engine, plan.durabilities, plan.delays)
    for engine in plan.engines:
        if "beginnings" in plan.parts:
            async with begin(f"beginnings, {engine}", BRIEFLY) as stage:
                await beginnings.measure(stage, report, engine, plan.times)
        for depth in plan.depths if "queued" in plan.parts else ():
            within = growth.patience(depth)
            async with begin(f"{depth:,} queued, {engine}", within) as stage:
                await growth.queued(stage, report, engine, depth)
        if "links" in plan.parts:
            async with begin(f"{plan.links[-1]} links, {engine}", BRIEFLY + 2 * sum(plan.links)) as stage:
                await growth.links(stage, report, engine, plan.links, plan.quiet)
