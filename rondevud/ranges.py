"""Sets of whole numbers that come in runs: rows that were deleted, numbers that are under way."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator


class Ranges:
    """Disjoint ranges ``(first, next)`` with `next` behind the last number, in order; neighbours are joined."""

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._firsts: list[int] = []
        self._nexts: list[int] = []
        for first, behind in ranges:
            self.add(first, behind)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._firsts, self._nexts, strict=True)

    def __bool__(self) -> bool:
        return bool(self._firsts)

    def __len__(self) -> int:
        """How many ranges there are, not how many numbers."""
        return len(self._firsts)

    def __contains__(self, number: int) -> bool:
        return self.behind(number) != number

    def behind(self, number: int) -> int:
        """The first number from `number` on that is not in the set."""
        index = bisect_right(self._firsts, number) - 1
        return max(number, self._nexts[index]) if index >= 0 else number

    def add(self, first: int, behind: int) -> tuple[int, int]:
        """Add ``first … behind - 1`` (at least one number); answers the range in which they are now."""
        low, high = bisect_left(self._nexts, first), bisect_right(self._firsts, behind)
        if low < high:
            first, behind = min(first, self._firsts[low]), max(behind, self._nexts[high - 1])
        self._firsts[low:high] = [first]
        self._nexts[low:high] = [behind]
        return first, behind

    def count(self, first: int, behind: int) -> int:
        """How many of the numbers ``first … behind - 1`` are in the set."""
        low, high = bisect_right(self._nexts, first), bisect_left(self._firsts, behind)
        pairs = zip(self._firsts[low:high], self._nexts[low:high], strict=True)
        return sum(min(last, behind) - max(start, first) for start, last in pairs)

    def outside(self, first: int, behind: int) -> Iterator[int]:
        """The numbers ``first … behind - 1`` that are not in the set, in order."""
        number = self.behind(first)
        while number < behind:
            index = bisect_right(self._firsts, number)
            stop = min(behind, self._firsts[index]) if index < len(self._firsts) else behind
            yield from range(number, stop)
            number = self.behind(stop)
