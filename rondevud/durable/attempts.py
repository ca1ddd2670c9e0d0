"""How often the rows of an inbox were given to receivers that did not acknowledge them (sans-I/O)."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

STEPS_KEPT = 1_000
"""Places at most where the number of attempts changes; beyond, the lowest rows count as the most tried of them."""


class Attempts:
    """A count for each row, kept as steps: from `_starts[i]` on, up to the next start, it is `_counts[i]`."""

    def __init__(self) -> None:
        self._starts = [0]
        self._counts = [0]

    def __len__(self) -> int:
        """Places where the count changes."""
        return len(self._starts) - 1

    def of(self, row: int) -> int:
        """How often `row` was given in vain."""
        return self._counts[bisect_right(self._starts, row) - 1]

    def add(self, first: int, behind: int) -> None:
        """The rows ``first … behind - 1`` were given in vain once more."""
        low, high = self._step_at(first), self._step_at(behind)
        self._counts[low:high] = [count + 1 for count in self._counts[low:high]]
        self._join(high)
        self._join(low)
        while len(self) > STEPS_KEPT:
            self._counts[:2] = [max(self._counts[:2])]
            del self._starts[1]

    def forget(self, first: int, behind: int) -> None:
        """The rows ``first … behind - 1`` are gone."""
        if first >= behind or not len(self):
            return
        low, high = self._step_at(first), self._step_at(behind)
        self._starts[low:high] = [first]
        self._counts[low:high] = [0]
        self._join(low + 1)
        self._join(low)

    def _step_at(self, row: int) -> int:
        """The place of the step that begins with `row`, made if there is none."""
        index = bisect_left(self._starts, row)
        if index == len(self._starts) or self._starts[index] != row:
            self._starts.insert(index, row)
            self._counts.insert(index, self._counts[index - 1])
        return index

    def _join(self, index: int) -> None:
        """Drop a step that changes nothing."""
        if 0 < index < len(self._starts) and self._counts[index] == self._counts[index - 1]:
            del self._starts[index], self._counts[index]
