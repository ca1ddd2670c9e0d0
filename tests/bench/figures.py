"""What was measured: figures with their runs, and the file that keeps them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FORMAT = 1

Parameters = dict[str, str | int]


@dataclass
class Figure:
    """One quantity under one set of conditions; its value is the median of its runs."""

    name: str
    unit: str
    parameters: Parameters
    runs: list[float] = field(default_factory=list)

    @property
    def value(self) -> float:
        return statistics.median(self.runs)

    @property
    def key(self) -> str:
        return " ".join([self.name, *(f"{name}={value}" for name, value in sorted(self.parameters.items()))])

    @property
    def place(self) -> tuple[str, list[tuple[str, bool, str | int]]]:
        """What figures are sorted by: numbers as numbers."""
        return self.name, [(name, isinstance(value, str), value) for name, value in sorted(self.parameters.items())]


class Report:
    """All figures of one call, with what is to be known of the machine."""

    def __init__(self, about: dict[str, Any]) -> None:
        self.about = about
        self._figures: dict[str, Figure] = {}

    def __iter__(self) -> Iterator[Figure]:
        """In an order that does not depend on when they were measured."""
        return iter(sorted(self._figures.values(), key=lambda each: each.place))

    def add(self, name: str, unit: str, value: float, **parameters: str | int) -> None:
        """One more run of a figure."""
        figure = Figure(name, unit, parameters)
        self._figures.setdefault(figure.key, figure).runs.append(value)

    def named(self, name: str, **parameters: str | int) -> list[Figure]:
        """Figures of that name which have these parameters, and perhaps others."""
        return [each for each in self if each.name == name and parameters.items() <= each.parameters.items()]

    def value(self, name: str, **parameters: str | int) -> float | None:
        """Of the figure with exactly these parameters."""
        figure = self._figures.get(Figure(name, "", parameters).key)
        return figure.value if figure else None

    def raw(self, engine: str, mode: str = "", **shape: str | int) -> float | None:
        """Throughput of the raw engine: of one way to send, or of the better one."""
        conditions = {"engine": engine, "via": "raw", **shape, **({"mode": mode} if mode else {})}
        return max((each.value for each in self.named("throughput", **conditions)), default=None)

    def save(self, path: Path) -> None:
        figures = [
            {
                "name": each.name,
                "unit": each.unit,
                "parameters": dict(sorted(each.parameters.items())),
                "value": each.value,
                "runs": each.runs,
            }
            for each in self
        ]
        path.write_text(json.dumps({"format": FORMAT, "about": self.about, "figures": figures}, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Report:
        """Raises `ValueError`, which names the file, for what is no report or cannot be read."""
        try:
            stored = json.loads(path.read_text())
            if stored["format"] != FORMAT:
                raise ValueError(f"format {stored['format']!r}, this program knows {FORMAT}")
            report = cls(dict(stored["about"]))
            for each in stored["figures"]:
                figure = Figure(each["name"], each["unit"], dict(each["parameters"]), list(each["runs"]))
                if not figure.runs or not all(isinstance(run, int | float) for run in figure.runs):
                    raise ValueError(f"the runs of {figure.key!r} are {figure.runs!r}, not numbers")
                report._figures[figure.key] = figure
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from error
        except KeyError as error:
            raise ValueError(f"{path} is no report of the benchmark: {error} is missing") from error
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no report of the benchmark: {error}") from error
        return report
