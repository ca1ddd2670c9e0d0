"""A report as text, and two of them side by side."""

from __future__ import annotations

from collections.abc import Iterator

from tests.bench.figures import Figure, Report

FLOORS = {
    ("aiortc", 64): 5_700.0,
    ("aiortc", 1024): 5_800_000 / 1024,
    ("aiortc", 16384): 11_900_000 / 16384,
    ("libdatachannel", 64): 59_000.0,
    ("libdatachannel", 1024): 24_000_000 / 1024,
}
"""Messages a second that the raw engine, a message per send, moved on two cores; half of it is what a run must reach."""


def lines(report: Report) -> Iterator[str]:
    """The table: throughput with its ratio to the raw engine first, then everything else."""
    about = report.about
    yield ", ".join(
        f"{name} {about[name]}" for name in ("date", "commit", "processor", "cores", "python") if name in about
    )
    for figure in sorted(report.named("throughput"), key=_order):
        megabytes = figure.value * int(figure.parameters["size"]) / 1e6
        yield f"{figure.value:>14,.0f} messages/s {megabytes:>8.1f} MB/s  {_ratio(report, figure):<12} {figure.key}"
    for figure in report:
        if figure.name != "throughput":
            spread = f"{min(figure.runs):,.3g} to {max(figure.runs):,.3g}" if len(figure.runs) > 1 else "one run"
            yield f"{figure.value:>14,.3f} {figure.unit:<14} {spread:<24} {figure.key}"


def too_slow(report: Report) -> list[str]:
    """What the raw engine did not reach: the machine is too busy or too slow for these figures to say anything."""
    found = []
    for (engine, size), rate in FLOORS.items():
        raw = report.value(
            "throughput", engine=engine, via="raw", mode="message per send", size=size, labels=1, directions=1
        )
        if raw is not None and raw < rate / 2:
            found.append(f"raw {engine}, {size} B: {raw:,.0f} messages/s, less than half of {rate:,.0f}")
    return found


def comparison(before: Report, after: Report) -> Iterator[str]:
    """Every figure that both have, and what it became."""
    earlier = {each.key: each for each in before}
    for figure in after:
        if figure.key in earlier and earlier[figure.key].value:
            old = earlier[figure.key].value
            yield f"{old:>14,.3f} {figure.value:>14,.3f} {figure.value / old:>7.2f} x  {figure.unit:<14} {figure.key}"


def _ratio(report: Report, figure: Figure) -> str:
    same = {name: figure.parameters[name] for name in ("size", "labels", "directions")}
    if figure.parameters["via"] != "daemon":
        return ""
    raw = report.baseline(engine=figure.parameters["engine"], **same)
    return f"{figure.value / raw:.2f} x raw" if raw else ""


def _order(figure: Figure) -> tuple[str, ...]:
    parameters = figure.parameters
    numbers = [f"{parameters[name]:>9}" for name in ("directions", "labels", "size")]
    return (str(parameters["engine"]), *numbers, str(parameters["via"]), figure.key)
