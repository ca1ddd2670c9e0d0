"""Pictures of how cost grows. Needs matplotlib, of the extra `bench`."""

from __future__ import annotations

from pathlib import Path

from tests.bench.figures import Figure, Report

GROWING = (
    ("accepting a message", "queued", {}),
    ("draining a message", "queued", {}),
    ("processor time of a drained message", "queued", {}),
    ("connecting one of many", "links", {}),
    ("memory of an idle link", "links", {}),
    ("processor time of an idle link", "links", {}),
    ("throughput", "size", {"labels": 1, "directions": 1}),
)
"""What is drawn, along which parameter, and what the others must be."""

UNITS = {"queued": "messages queued", "links": "links", "size": "size of a message, bytes"}
LABEL = ("engine", "via", "durability", "mode", "process")
"""What comes first in the name of a curve."""

STEEP = {"throughput"}
"""What has so wide a range that its axis is logarithmic; the others begin at 0."""


def draw(report: Report, directory: Path) -> list[Path]:
    """A PNG for each quantity of which there are figures; their paths. Removes the picture of one that was not measured."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    written = []
    for name, along, fixed in GROWING:
        figures = report.named(name, **fixed)
        path = directory / f"{name.replace(' ', '-')}.png"
        if not figures:
            path.unlink(missing_ok=True)
            continue
        picture, axes = plt.subplots(figsize=(9, 6), layout="constrained")
        for label, points in curves(figures, {along, *fixed}).items():
            axes.plot(*zip(*points, strict=True), marker="o", label=label, linestyle=_style(label))
        axes.set(title=f"{name[0].upper()}{name[1:]}", xlabel=UNITS[along], ylabel=figures[0].unit, xscale="log")
        axes.set(**({"yscale": "log"} if name in STEEP else {"ylim": (0, 1.08 * max(each.value for each in figures))}))
        ticks = sorted({float(each.parameters[along]) for each in figures})
        axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks], minor=False)
        axes.set_xticks([], minor=True)
        axes.grid(visible=True, alpha=0.3)
        axes.legend(fontsize="small")
        picture.savefig(path, dpi=100)
        plt.close(picture)
        written.append(path)
    return written


def curves(figures: list[Figure], without: set[str]) -> dict[str, list[tuple[float, float]]]:
    """Points by what the other parameters are, in the order of the figures."""
    found: dict[str, list[tuple[float, float]]] = {}
    (along,) = without & set(UNITS)
    for each in figures:
        rest = [name for name in LABEL if name in each.parameters]
        rest += sorted(each.parameters.keys() - without - set(LABEL))
        label = ", ".join(str(each.parameters[name]) for name in rest) or each.name
        found.setdefault(label, []).append((float(each.parameters[along]), each.value))
    return dict(sorted(found.items()))


def _style(label: str) -> str:
    """The engines themselves are dotted, brokers dashed."""
    if "raw" in label:
        return ":"
    return "--" if label in {"mosquitto", "nats"} else "-"
