"""What is asked of rondevud on two cores, beside what was measured: both ends storing on disk, ratios to the same run."""

from __future__ import annotations

from collections.abc import Iterator

from tests.bench.figures import Report

EACH = "message per send"
BETTER = ""
"""Of the ways in which the raw engine sends."""

RATIOS = {
    ("aiortc", 64): (EACH, 10.0),
    ("aiortc", 1024): (BETTER, 1.5),
    ("aiortc", 16 * 1024): (BETTER, 0.8),
    ("aiortc", 1024 * 1024): (BETTER, 0.8),
    ("libdatachannel", 64): (EACH, 1.0),
    ("libdatachannel", 1024): (BETTER, 0.9),
    ("libdatachannel", 16 * 1024): (BETTER, 0.7),
    ("libdatachannel", 1024 * 1024): (BETTER, 0.7),
}
"""Throughput, by engine and size: what it is compared with, and the least ratio."""

RATE = 60_000.0
"""Messages of 64 bytes a second over libdatachannel."""

ADDED = {"aiortc": 3.0, "libdatachannel": 2.0}
"""Milliseconds that the median delay at a low rate may be above the raw engine's."""

BESIDE = 100.0
"""Milliseconds, p99 of small messages beside a label full of large ones."""

IDLE_MEMORY = {"aiortc": 300.0, "libdatachannel": 450.0}
"""KiB for each idle link."""

IDLE_CORE = 0.1
"""Per cent of a core for each idle link."""

EMPTY_MEMORY = 60_000_000 / 1024
"""KiB before the first link."""

STATUS = 150.0
"""Milliseconds of `rondevuctl status`."""

FLAT = 1.2
"""How much more a message may cost with more of them queued than with 1,000."""

ENGINES = ("aiortc", "libdatachannel")


def lines(report: Report) -> Iterator[str]:
    """A line for each goal of which there is a figure."""
    found = [*_throughput(report), *_delays(report), *_beginnings(report), *_links(report), *_queued(report)]
    if found:
        yield ""
        yield "Goals, on two cores, disk"
        yield from found


def _line(what: str, value: float, unit: str, goal: float, *, least: bool = False) -> str:
    met = value >= goal if least else value <= goal
    return f"{'met' if met else 'MISSED':<7} {value:>10,.2f} {unit:<10} {'≥' if least else '≤'} {goal:>9,.1f}  {what}"


def _throughput(report: Report) -> Iterator[str]:
    for (engine, size), (mode, least) in RATIOS.items():
        shape = {"size": size, "labels": 1, "directions": 1}
        value = report.value("throughput", engine=engine, via="daemon", durability="disk", **shape)
        raw = report.raw(engine, mode, **shape)
        if value is None or raw is None:
            continue
        if (engine, size) == ("libdatachannel", 64):
            yield _line(f"{engine}, {size} B", value, "messages/s", RATE, least=True)
        yield _line(f"{engine}, {size} B", value / raw, f"x raw{'' if mode else '*'}", least, least=True)
    if report.named("throughput", via="daemon"):
        yield "        * of a message per send and 16 KiB frames the better; else a message per send"


def _delays(report: Report) -> Iterator[str]:
    for engine in ENGINES:
        daemon = {"engine": engine, "via": "daemon", "durability": "disk"}
        value = report.value("delay", share="p50", **daemon)
        raw = report.value("delay", share="p50", engine=engine, via="raw")
        if value is not None and raw is not None:
            yield _line(f"{engine}, added to the delay, p50", value - raw, "ms", ADDED[engine])
        beside = report.value("delay beside a full label", share="p99", **daemon)
        if beside is not None:
            yield _line(f"{engine}, delay beside a full label, p99", beside, "ms", BESIDE)


def _beginnings(report: Report) -> Iterator[str]:
    for engine in ENGINES:
        memory = report.value("memory before the first link", engine=engine)
        if memory is not None:
            yield _line(f"{engine}, memory before the first link", memory, "KiB", EMPTY_MEMORY)
    status = report.value("rondevuctl status")
    if status is not None:
        yield _line("rondevuctl status", status, "ms", STATUS)


def _links(report: Report) -> Iterator[str]:
    for engine in ENGINES:
        for name, unit, goal in (
            ("memory of an idle link", "KiB", IDLE_MEMORY[engine]),
            ("processor time of an idle link", "% of a core", IDLE_CORE),
        ):
            for figure in report.named(name, engine=engine):
                yield _line(f"{engine}, {name}, of {figure.parameters['links']}", figure.value, unit, goal)


def _queued(report: Report) -> Iterator[str]:
    for engine in ENGINES:
        for name in ("accepting a message", "draining a message"):
            few = report.value(name, engine=engine, queued=1_000)
            for figure in report.named(name, engine=engine) if few else []:
                if int(figure.parameters["queued"]) > 1_000:
                    what = f"{engine}, {name}, {figure.parameters['queued']} queued"
                    yield _line(what, figure.value / few, "x 1,000's", FLAT)
