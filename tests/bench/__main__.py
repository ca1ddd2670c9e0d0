"""Measure: python -m tests.bench [--quick] [--engine NAME] …; `make bench BENCH="…"` sets up what it needs first."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import signal
import sys
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from tests.bench import table
from tests.bench.figures import Report
from tests.bench.machine import ROOT, describe
from tests.bench.plan import DURABILITIES, ENGINES, PARTS, SIZES, Plan, carry_out
from tests.bench.scene import Failed


def options(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few and short runs: whether it works, and a rough idea")
    parser.add_argument("--long", action="store_true", help="also with 1,000,000 messages queued")
    parser.add_argument("--only", action="append", choices=PARTS, help="only this part; may be given again")
    parser.add_argument("--engine", action="append", choices=ENGINES, help="only this one")
    parser.add_argument("--durability", action="append", choices=DURABILITIES, help="only this one")
    parser.add_argument("--size", action="append", type=int, choices=SIZES, help="throughput of this size only")
    parser.add_argument("--repeat", type=int, help="runs of throughput and delays (3)")
    parser.add_argument("--seconds", type=float, help="measured in each run (3; delays 10)")
    parser.add_argument("--no-floor", action="store_true", help="do not fail where the raw engine is slow")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bench", help="directory of JSON and PNG")
    parser.add_argument("--show", type=Path, metavar="FILE", help="print the table of a JSON file, and end")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("BEFORE", "AFTER"), help="two JSON files, and end")
    given = parser.parse_args(words)
    if (given.repeat or 1) < 1 or (given.seconds or 1.0) <= 0:
        parser.error("--repeat and --seconds must be above 0")
    return given


def measure(given: argparse.Namespace) -> int:
    """The exit code: 1 where something could not be measured, or the machine is too slow."""
    given.output.mkdir(parents=True, exist_ok=True)
    failed = ""
    with tempfile.TemporaryDirectory(prefix="b", dir=given.output) as directory:
        report = Report(describe(Path(directory)))
        try:
            asyncio.run(_interruptible(carry_out(Plan.of(given), report, Path(directory))))
        except Failed as error:
            failed = str(error)
        except (KeyboardInterrupt, asyncio.CancelledError):
            failed = "interrupted"
    if failed:
        report.about["failed"] = failed
    report.save(given.output / "bench.json")
    print("\n".join(table.lines(report)))
    if importlib.util.find_spec("matplotlib"):
        from tests.bench import plots

        plots.draw(report, given.output)
    print(f"written to {given.output}")
    slow = [] if given.no_floor else table.too_slow(report)
    for line in slow:
        print(f"bench: this machine is too slow or too busy to be measured: {line}", file=sys.stderr)
    if failed:
        print(f"bench: failed: {failed}", file=sys.stderr)
    return 1 if slow or failed else 0


async def _interruptible(work: Coroutine[Any, Any, None]) -> None:
    """SIGTERM ends it as SIGINT does: with all its processes."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await work


def main(words: list[str]) -> int:
    given = options(words)
    try:
        if given.show:
            print("\n".join(table.lines(Report.load(given.show))))
        elif given.compare:
            print("\n".join(table.comparison(*map(Report.load, given.compare))))
        else:
            return measure(given)
    except ValueError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
