"""What is told to who watches the daemon: metrics by name, with their values at one moment, and whose names they may carry.

Names follow Prometheus: base units, ``_total`` for what only rises. docs/metrics.md lists them all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal, NamedTuple, TypeAlias

from rondevud.latencies import BOUNDS, Histogram

PREFIX = "rondevud_"

Kind: TypeAlias = Literal["counter", "gauge", "histogram"]
Labels: TypeAlias = dict[str, str]


class Described(NamedTuple):
    """A metric before it has values."""

    kind: Kind
    help: str
    labels: tuple[str, ...] = ()


class Sample(NamedTuple):
    suffix: str
    """Behind the name of the family: empty, or ``_bucket``, ``_sum``, ``_count``."""
    labels: Labels
    value: float


@dataclass(slots=True)
class Family:
    """All values of one metric. A counter's name ends in ``_total``."""

    name: str
    described: Described
    samples: list[Sample] = field(default_factory=list)


class Report:
    """One look at everything, being filled. `known` says which names there are; others are a `KeyError`."""

    def __init__(self, known: Mapping[str, Described]) -> None:
        self.families = {name: Family(PREFIX + name, described) for name, described in known.items()}

    def add(self, name: str, value: float | None, **labels: str) -> None:
        """A value; nothing for None. Labels with empty values are as good as absent."""
        if value is not None:
            self.families[name].samples.append(Sample("", labels, float(value)))

    def add_histogram(self, name: str, histogram: Histogram) -> None:
        samples = self.families[name].samples
        bounds = [*map(repr, BOUNDS), "+Inf"]
        for bound, count in zip(bounds, accumulate(histogram.counts), strict=True):
            samples.append(Sample("_bucket", {"le": bound}, count))
        samples.append(Sample("_sum", {}, histogram.sum))
        samples.append(Sample("_count", {}, sum(histogram.counts)))


class Counted(NamedTuple):
    """Something that counts, under its own labels."""

    key: object
    """The same at every look while it is there."""
    labels: Labels
    counters: Mapping[str, int]
    foreign: bool = False
    """Whether a peer made it, so that there can be many."""


class Roster:
    """Who is told of by name. Who comes when `most` are there already is told of together with the others, for good.

    What is foreign gets half of the places, so that no stranger can take them all. Sums only rise: what somebody with a name
    of his own had counted beyond the last look when he went away is counted with the others.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._listed: dict[object, tuple[Counter[str], bool]] = {}
        self._unlisted: set[object] = set()
        self._told: Counter[str] = Counter()
        """What was told by name of those who have gone."""
        self._rest: Counter[str] = Counter()

    @property
    def unlisted(self) -> frozenset[object]:
        """Keys of those that are there and are not told of by name."""
        return frozenset(self._unlisted)

    def look(self, there: list[Counted], past: Mapping[str, int]) -> tuple[list[Counted], Counter[str]]:
        """Those with a name of their own, and what all others have counted, those included that are gone (`past`)."""
        keys = {counted.key for counted in there}
        for gone in self._listed.keys() - keys:
            self._told.update(self._listed.pop(gone)[0])
        self._unlisted &= keys
        rest = Counter(past)
        rest.subtract(self._told)
        listed = []
        for counted in there:
            if self._has_place(counted):
                listed.append(counted)
                self._listed[counted.key] = Counter(counted.counters), counted.foreign
            else:
                self._unlisted.add(counted.key)
                rest.update(counted.counters)
        self._rest |= rest  # the higher of both: nothing falls
        return listed, self._rest

    def _has_place(self, counted: Counted) -> bool:
        if counted.key in self._listed:
            return True
        if counted.key in self._unlisted or len(self._listed) >= self._most:
            return False
        foreign = sum(is_foreign for _, is_foreign in self._listed.values())
        return not counted.foreign or foreign < self._most // 2
