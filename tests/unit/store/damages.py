"""Faults of a store's files, and which of them can be tried together because each does something that can be told apart.

Flips of values of different messages' rows damage these messages and nothing else, those of unused bytes nothing: many of
them in one store are judged as strictly as one by one, or more so, for all that is to be told is known. What holds the
file together is flipped alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from random import Random
from typing import NamedTuple

from tests.unit.store.pages import Row, layout, purposes

SEED = 20240229
TOGETHER = 40
"""Messages that are damaged together, on average at most."""

Image = dict[str, bytes]
"""The files of a store by how their names end."""


class Damage(NamedTuple):
    """One fault of one file of a store: a flipped bit, or with `bit` -1 the length to which the file is cut."""

    end: str
    place: int
    bit: int

    def apply(self, content: bytearray) -> None:
        if self.bit < 0:
            del content[self.place :]
        else:
            content[self.place] ^= 1 << self.bit


class Group(NamedTuple):
    """Damages that are tried together. `damaged`: exactly the rows that are damaged then, None where nobody knows."""

    damages: list[Damage]
    damaged: frozenset[Row] | None

    def alone(self) -> Iterator[Group]:
        for damage in self.damages:
            yield Group([damage], None)


def single(damages: Iterable[Damage]) -> list[Group]:
    return [Group([damage], None) for damage in damages]


def grouped(files: Image, flips: Iterable[Damage]) -> list[Group]:
    """All of these flips, each once; no two of a group in one message. In a random order."""
    random = Random(SEED)
    by_place = purposes(layout(files[""], files.get("-wal", b"")))
    of_row: defaultdict[Row, list[Damage]] = defaultdict(list)
    unused: list[Damage] = []
    alone: list[Damage] = []
    for flip in flips:
        if flip.end or flip.place not in by_place:
            alone.append(flip)
        elif (row := by_place[flip.place]) is not None:
            of_row[row].append(flip)
        else:
            unused.append(flip)
    of_rows = sum(map(len, of_row.values()))
    count = max([-(-of_rows // TOGETHER), *map(len, of_row.values()), bool(unused)])
    damages: list[list[Damage]] = [[] for _ in range(count)]
    damaged: list[set[Row]] = [set() for _ in range(count)]
    for row, here in of_row.items():
        for place, flip in zip(random.sample(range(count), len(here)), here, strict=True):
            damages[place].append(flip)
            damaged[place].add(row)
    for number, flip in enumerate(unused):
        damages[number % count].append(flip)
    groups = [Group(here, frozenset(rows)) for here, rows in zip(damages, damaged, strict=True) if here]
    groups += single(alone)
    random.shuffle(groups)
    return groups
