"""A report as text, and two of them side by side."""

from __future__ import annotations

from collections.abc import Iterator

from tests.bench import goals
from tests.bench.figures import Figure, Report

FLOORS = {
    ("aiortc", 64): 5_700.0,
    ("aiortc", 1024): 5_800_000 / 1024,
    ("aiortc", 16384): 11_900_000 / 16384,
    ("libdatachannel", 64): 59_000.0,
    ("libdatachannel", 1024): 24_000_000 / 1024,
}
"""Messages a second that the raw engine, a message per send, moved on two cores; half of it is what a run must reach."""

FOLDED = ("process", "share")
"""Parameters whose values stand in one line."""

ONE_WAY = {"labels": 1, "directions": 1}


def lines(report: Report) -> Iterator[str]:
    """The table: throughput with its ratio to the raw engine first, then everything else, then the goals."""
    for name, value in report.about.items():
        yield f"{name}: {', '.join(f'{key} {what}' for key, what in value.items()) if isinstance(value, dict) else value}"
    throughput = sorted(report.named("throughput"), key=_order)
    for number, figure in enumerate(throughput):
        if number == 0 or _order(figure)[:3] != _order(throughput[number - 1])[:3]:
            labels, directions = figure.parameters["labels"], figure.parameters["directions"]
            yield ""
            yield f"Throughput, labels {labels}, directions {directions}, beside raw: a message per send, 16 KiB frames"
        yield _throughput(report, figure)
    for name in dict.fromkeys(each.name for each in report if each.name != "throughput"):
        yield from _section(report.named(name))
    yield from goals.lines(report)


def too_slow(report: Report) -> list[str]:
    """What the raw engine did not reach: the machine is too busy or too slow for these figures to say anything."""
    found = []
    for (engine, size), rate in FLOORS.items():
        raw = report.raw(engine, "message per send", size=size, **ONE_WAY)
        if raw is not None and raw < rate / 2:
            found.append(f"raw {engine}, {size} B: {raw:,.0f} messages/s, less than half of {rate:,.0f}")
    return found


def comparison(before: Report, after: Report) -> Iterator[str]:
    """Every figure that both have, and what it became; then what only one of them has."""
    earlier, later = ({each.key: each for each in report} for report in (before, after))
    yield f"{'before':>12} {'after':>12} {'factor':>8}"
    for key, figure in later.items():
        if key in earlier:
            old = earlier[key].value
            factor = f"{figure.value / old:.2f} x" if old else "-"
            yield f"{_digits(old):>12} {_digits(figure.value):>12} {factor:>8}  {figure.unit:<10} {key}"
    for word, some, rest in (("before", earlier, later), ("after", later, earlier)):
        yield from (f"only {word}: {key}" for key in some if key not in rest)


def _section(figures: list[Figure]) -> Iterator[str]:
    """All figures of one name; those that differ in what is folded share a line."""
    yield ""
    yield f"{figures[0].name[0].upper()}{figures[0].name[1:]}, {figures[0].unit}"
    rows: dict[str, list[str]] = {}
    for figure in figures:
        folded = [str(figure.parameters[name]) for name in FOLDED if name in figure.parameters]
        rest = {name: value for name, value in figure.parameters.items() if name not in FOLDED}
        row = ", ".join(f"{name} {value}" for name, value in sorted(rest.items()))
        rows.setdefault(row, []).append(f"{' '.join([*folded, _digits(figure.value)])} ({_spread(figure)})")
    for row, values in rows.items():
        yield f"  {', '.join(values):<60}  {row}"


def _throughput(report: Report, figure: Figure) -> str:
    parameters = figure.parameters
    size = int(parameters["size"])
    names = [str(parameters[name]) for name in ("engine", "via", "durability", "mode") if name in parameters]
    rate = f"{figure.value:>12,.0f} messages/s {figure.value * size / 1e6:>8.2f} MB/s"
    ratios = "  ".join(_ratios(report, figure))
    return f"{rate}  {ratios:<20} {_spread(figure):<22} {_size(size):>7}  {', '.join(names)}"


def _ratios(report: Report, figure: Figure) -> Iterator[str]:
    """To both ways in which the raw engine sent."""
    if figure.parameters["via"] != "daemon":
        return
    shape = {name: figure.parameters[name] for name in ("size", "labels", "directions")}
    for mode in ("message per send", "16 KiB frames"):
        raw = report.raw(str(figure.parameters["engine"]), mode, **shape)
        yield f"{figure.value / raw:>6.2f} x" if raw else "       -"


def _spread(figure: Figure) -> str:
    few, many = min(figure.runs), max(figure.runs)
    return f"{_digits(few)} to {_digits(many)}" if len(figure.runs) > 1 else "one run"


def _digits(value: float) -> str:
    """Three figures are more than is known."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _size(size: int) -> str:
    for unit, many in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= many and size % many == 0:
            return f"{size // many} {unit}"
    return f"{size} B"


def _order(figure: Figure) -> tuple[int, int, str, int, str, str]:
    parameters = figure.parameters
    numbers = int(parameters["directions"]), int(parameters["labels"])
    engine = str(parameters.get("engine", "~"))  # brokers come last
    return (*numbers, engine, int(parameters["size"]), str(parameters["via"]), figure.key)
