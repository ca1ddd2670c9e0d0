"""The two queues of a channel in memory: ordered rows, and removals. Pure, and cheap to copy."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from heapq import heapify, heappop, heappush
from itertools import count, islice, repeat
from operator import attrgetter
from typing import Generic, NamedTuple, TypeVar

from rondevud.records import Payload, Removal, Stamp
from rondevud.store.base import Taken, cut_removal, expiry, join_removals

Row = TypeVar("Row")

DEAD_ROWS = 64
"""Deleted keys that are tolerated in any case before the list of keys is made anew."""


class Rows(Generic[Row]):
    """A map in the order of its keys. Keys are added at the end only; deleting costs O(1) on average."""

    def __init__(self) -> None:
        self._rows: dict[int, Row] = {}
        self._keys: list[int] = []
        self._head = 0  # all keys before it are deleted

    def get(self, key: int) -> Row | None:
        return self._rows.get(key)

    def append(self, key: int, row: Row) -> None:
        """`key` is higher than any before."""
        self._rows[key] = row
        self._keys.append(key)

    def extend(self, first: int, rows: Sequence[Row]) -> None:
        """Rows with consecutive keys from `first` on, which is higher than any before."""
        keys = range(first, first + len(rows))
        self._rows.update(zip(keys, rows, strict=True))
        self._keys.extend(keys)

    def replace(self, key: int, row: Row) -> None:
        """Another row in the place of the one that is there."""
        self._rows[key] = row

    def since(self, key: int) -> Iterator[tuple[int, Row]]:
        """Rows from `key` on, in order; nothing may be added or deleted meanwhile."""
        keys, rows = self._keys, self._rows
        for index in range(bisect_left(keys, key, lo=self._head), len(keys)):
            if (row := rows.get(keys[index])) is not None:
                yield keys[index], row

    def keys(self, first: int, behind: int, most: int) -> list[int]:
        """The first `most` keys of ``first … behind - 1``."""
        keys, rows = self._keys, self._rows
        start = bisect_left(keys, first, lo=self._head)
        within = keys[start : bisect_left(keys, behind, lo=start)]
        return list(islice(filter(rows.__contains__, within), most))

    def delete(self, keys: Iterable[int]) -> list[Row]:
        """Delete rows that are there; answers them."""
        deleted = list(map(self._rows.pop, keys))
        while self._head < len(self._keys) and self._keys[self._head] not in self._rows:
            self._head += 1
        if len(self._keys) > 2 * len(self._rows) + DEAD_ROWS:
            self._keys = [kept for kept in self._keys if kept in self._rows]
            self._head = 0
        return deleted

    def copy(self) -> Rows[Row]:
        """A copy that shares the rows themselves, which must not be changed."""
        other: Rows[Row] = Rows()
        other._rows = self._rows.copy()
        other._keys = self._keys.copy()
        other._head = self._head
        return other


class Removals:
    """Removals of one outbox: disjoint, in order, neighbours with one reason joined."""

    def __init__(self) -> None:
        self._items: list[Removal] = []

    def add(self, removal: Removal) -> None:
        """The numbers of `removal` are in no other one."""
        items = self._items
        index = bisect_left(items, removal.first, key=lambda item: item.first)
        if index < len(items) and (joined := join_removals(removal, items[index])):
            removal = joined
            del items[index]
        if index > 0 and (joined := join_removals(items[index - 1], removal)):
            items[index - 1] = joined
        else:
            items.insert(index, removal)

    def since(self, number: int) -> Iterator[Removal]:
        """Removals that reach `number` or begin behind it, the first one cut to begin there."""
        for index in range(bisect_right(self._items, number, key=lambda item: item.next), len(self._items)):
            yield cut_removal(self._items[index], number)

    def first_end_over(self, count: int, below: int) -> int:
        """The end of the `count`-th removal if more than these end at or below `below`, else `below`."""
        if len(self._items) > count and self._items[count].next <= below:
            return self._items[count - 1].next
        return below

    def drop_below(self, number: int) -> None:
        """Forget what lies below `number`, cutting a removal that goes on behind it."""
        self._items[:] = list(self.since(number))

    def copy(self) -> Removals:
        other = Removals()
        other._items = self._items.copy()
        return other


class Held(NamedTuple):
    """One message of an outbox; `boot` is None for one that never expires."""

    payload: Payload
    size: int
    producer: int
    producer_seq: int
    accepted: float
    """Seconds since 1970."""
    boot: str | None = None
    boot_expiry: float = 0.0
    wall_expiry: float = 0.0


class Outbox:
    """Messages by number, their removals, and which messages expire next."""

    def __init__(self) -> None:
        self.messages: Rows[Held] = Rows()
        self.removals = Removals()
        self._aged: dict[int, Held] = {}
        self._heaps: dict[str | None, list[tuple[float, int]]] = {}  # by boot: (expiry on its boot clock, number)

    def extend(self, first: int, messages: Sequence[Held]) -> None:
        """Messages with consecutive numbers from `first` on."""
        self.messages.extend(first, messages)
        for seq, message in enumerate(messages, first):
            if message.boot is not None:
                self._aged[seq] = message
                heappush(self._heaps.setdefault(message.boot, []), (message.boot_expiry, seq))

    def take(self, numbers: Sequence[int]) -> list[Taken]:
        """Delete messages, given in the order of their numbers; those of one producer that follow each other together."""
        taken: list[Taken] = []
        messages = self.messages.delete(numbers)
        for place, run in runs(numbers, messages):
            taken.append(Taken(numbers[place], sum(map(_size, run)), run[0].producer, run[0].producer_seq, len(run)))
        if self._aged:
            for seq in numbers:
                self._aged.pop(seq, None)
            self._tidy()
        return taken

    def _tidy(self) -> None:
        if sum(map(len, self._heaps.values())) <= 2 * len(self._aged) + DEAD_ROWS:
            return
        self._heaps = {}
        for seq, message in self._aged.items():
            self._heaps.setdefault(message.boot, []).append((message.boot_expiry, seq))
        for heap in self._heaps.values():
            heapify(heap)

    def _first_of(self, boot: str) -> tuple[float, int] | None:
        heap = self._heaps.get(boot, [])
        while heap and heap[0][1] not in self._aged:
            heappop(heap)
        return heap[0] if heap else None

    def _of_other_boots(self, boot: str) -> Iterator[tuple[float, int]]:
        if self._heaps.keys() - {boot}:
            for seq, message in self._aged.items():
                if message.boot != boot:
                    yield message.wall_expiry, seq

    def take_expired(self, stamp: Stamp, limit: int) -> list[Taken]:
        """Delete expired messages, at most `limit`: those of this boot, then those of others, each the earliest first."""
        taken: list[Taken] = []
        while len(taken) < limit and (first := self._first_of(stamp.boot)) and first[0] <= stamp.boottime:
            taken += self.take([first[1]])
        if len(taken) < limit:
            old = sorted(item for item in self._of_other_boots(stamp.boot) if item[0] <= stamp.wall)
            for _, seq in old[: limit - len(taken)]:
                taken += self.take([seq])
        return sorted(taken)

    def next_expiry(self, stamp: Stamp) -> float | None:
        """Seconds from `stamp` until a message expires, not below 0; None when none will."""
        first = self._first_of(stamp.boot)
        waits = [first[0] - stamp.boottime] if first else []
        waits.extend(moment - stamp.wall for moment, _ in self._of_other_boots(stamp.boot))
        return max(0.0, min(waits)) if waits else None

    def copy(self) -> Outbox:
        other = Outbox()
        other.messages = self.messages.copy()
        other.removals = self.removals.copy()
        other._aged = self._aged.copy()
        other._heaps = {boot: heap.copy() for boot, heap in self._heaps.items()}
        return other


_size, _producer, _producer_seq = map(attrgetter, ("size", "producer", "producer_seq"))


def hold(
    payloads: Sequence[Payload],
    sizes: Iterable[int],
    producer: int,
    first_seq: int,
    stamp: Stamp,
    max_age: float | None,
) -> list[Held]:
    """Messages of one producer as an outbox holds them; a closing message never expires."""
    age: tuple[str | None, float, float] = (None, 0.0, 0.0)
    if max_age is not None:
        age = (stamp.boot, expiry(stamp.boottime, max_age), expiry(stamp.wall, max_age))
    fields = zip(
        payloads, sizes, repeat(producer), count(first_seq), repeat(stamp.wall), *map(repeat, age), strict=False
    )
    messages = list(map(Held._make, fields))
    if messages and messages[-1].payload is None:
        messages[-1] = Held(*messages[-1][:5])
    return messages


def runs(numbers: Sequence[int], messages: Sequence[Held]) -> Iterator[tuple[int, Sequence[Held]]]:
    """Messages in which neither their numbers nor those of their producer jump, and at which place each run begins."""
    if _steady(numbers) and _steady(list(map(_producer_seq, messages))) and len(set(map(_producer, messages))) == 1:
        yield 0, messages
        return
    start = 0
    for place in range(1, len(messages) + 1):
        if place < len(messages):
            one, other = messages[place - 1], messages[place]
            if (
                numbers[place] == numbers[place - 1] + 1
                and other.producer == one.producer
                and other.producer_seq == one.producer_seq + 1
            ):
                continue
        yield start, messages[start:place]
        start = place


def _steady(numbers: Sequence[int]) -> bool:
    """Whether each is one more than the one before."""
    return bool(numbers) and numbers == list(range(numbers[0], numbers[0] + len(numbers)))
