"""Pictures of how cost grows. Needs matplotlib, of the extra `bench`."""

from __future__ import annotations

from pathlib import Path

from tests.bench.figures import Report

GROWING = (
    ("accepting a message", "queued"),
    ("draining", "queued"),
    ("processor time of a drained message", "queued"),
    ("memory of a link", "links"),
    ("processor time of an idle link", "links"),
    ("throughput", "size"),
)


def draw(report: Report, directory: Path) -> list[Path]:
    """A PNG for each quantity of which there are figures; their paths."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    written = []
    for name, along in GROWING:
        curves: dict[str, list[tuple[float, float]]] = {}
        figures = report.named(name)
        for each in figures:
            rest = ", ".join(str(value) for key, value in sorted(each.parameters.items()) if key != along)
            curves.setdefault(rest, []).append((float(each.parameters[along]), each.value))
        if not figures:
            continue
        picture, axes = plt.subplots(figsize=(9, 6))
        for label, points in sorted(curves.items()):
            axes.plot(*zip(*sorted(points), strict=True), marker="o", label=label)
        axes.set(xscale="log", xlabel=along, ylabel=f"{name}, {figures[0].unit}", ylim=(0, None))
        axes.legend(fontsize="x-small")
        written.append(directory / f"{name.replace(' ', '-')}.png")
        picture.savefig(written[-1], dpi=100)
        plt.close(picture)
    return written
