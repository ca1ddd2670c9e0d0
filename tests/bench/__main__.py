"""Measure: python -m tests.bench [--quick] [--engine NAME] …; `make bench BENCH="…"` sets up what it needs first."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import sys
import tempfile
from pathlib import Path

from tests.acceptance.processes import Stage
from tests.bench import growth, latency, table, throughput
from tests.bench.figures import Report
from tests.bench.machine import ROOT, describe
from tests.bench.pairs import Timing
from tests.bench.throughput import Shape

SIZES = (64, 1024, 16 * 1024, 1024 * 1024)
PARTS = ("throughput", "latency", "beginnings", "queued", "links")
LONGEST = 7_200.0
"""Seconds after which everything is given up."""


def engines() -> list[str]:
    """Those that a daemon can use here."""
    native = importlib.util.find_spec("libdatachannel") and importlib.util.find_spec(
        "rondevud.transport.libdatachannel"
    )
    return ["aiortc", *(["libdatachannel"] if native else [])]


def options(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few and short runs: whether it works, and a rough idea")
    parser.add_argument("--long", action="store_true", help="also with 1,000,000 messages queued")
    parser.add_argument("--engine", action="append", choices=("aiortc", "libdatachannel"), help="only this one")
    parser.add_argument("--only", action="append", choices=PARTS, help="only this part")
    parser.add_argument("--repeat", type=int, help="runs of the shapes with one label and one direction (3)")
    parser.add_argument("--seconds", type=float, help="measured in each run (3)")
    parser.add_argument("--no-floor", action="store_true", help="do not fail where the raw engine is slow")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bench", help="directory of JSON and PNG")
    parser.add_argument("--show", type=Path, help="print the table of a JSON file, and end")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("BEFORE", "AFTER"), help="two JSON files, and end")
    return parser.parse_args(words)


async def measure(given: argparse.Namespace, report: Report, directory: Path) -> None:
    parts, chosen = given.only or PARTS, given.engine or engines()
    repeat = given.repeat or (1 if given.quick else 3)
    timing = Timing(0.5 if given.quick else 1.0, given.seconds or (1.5 if given.quick else 3.0))
    plain = [Shape(size) for size in SIZES]
    others = [Shape(size, labels, ways) for labels, ways in ((8, 1), (1, 2), (8, 2)) for size in SIZES]
    depths = [10, 1_000] if given.quick else [10, 1_000, 100_000, *([1_000_000] if given.long else [])]
    async with Stage(directory, LONGEST) as stage:
        await stage.rendezvous.start()
        for number in range(repeat if "throughput" in parts else 0):
            say(f"throughput, round {number + 1}")
            await throughput.measure(stage, report, chosen, plain, timing)
        if "throughput" in parts and not given.quick:
            say("throughput, more labels and directions")
            await throughput.measure(stage, report, chosen, others, timing)
        for number in range(repeat if "latency" in parts else 0):
            say(f"delays, round {number + 1}")
            await latency.measure(stage, report, chosen, timing)
        for engine in chosen:
            if "beginnings" in parts:
                say(f"beginnings, {engine}")
                await growth.beginnings(stage, report, engine, 3 if given.quick else 10)
            for depth in depths if "queued" in parts else []:
                say(f"{depth} queued, {engine}")
                await growth.queued(stage, report, engine, depth)
            for count in ([10] if given.quick else [10, 100, 500]) if "links" in parts else []:
                say(f"{count} links, {engine}")
                await growth.links(stage, report, engine, count, 5.0 if given.quick else 20.0)


def say(what: str) -> None:
    print(f"bench: {what}", file=sys.stderr, flush=True)


def main(words: list[str]) -> int:
    given = options(words)
    if given.show:
        print("\n".join(table.lines(Report.load(given.show))))
        return 0
    if given.compare:
        print("\n".join(table.comparison(*map(Report.load, given.compare))))
        return 0
    given.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="b", dir=given.output) as directory:
        report = Report(describe(Path(directory)))
        asyncio.run(measure(given, report, Path(directory)))
    report.save(given.output / "bench.json")
    print("\n".join(table.lines(report)))
    if importlib.util.find_spec("matplotlib"):
        from tests.bench import plots

        plots.draw(report, given.output)
    print(f"written to {given.output}")
    slow = [] if given.no_floor else table.too_slow(report)
    for line in slow:
        print(f"bench: this machine is too slow or too busy to be measured: {line}", file=sys.stderr)
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
