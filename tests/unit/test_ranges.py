"""`Ranges` against a plain set."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rondevud.ranges import Ranges

spans = st.tuples(st.integers(0, 40), st.integers(1, 6)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@given(st.lists(spans, max_size=12), spans)
def test_ranges_hold_what_a_set_holds(added, asked):
    ranges, numbers = Ranges(), set()
    for first, behind in added:
        numbers |= set(range(first, behind))
        low, high = ranges.add(first, behind)
        assert {low - 1, high} & numbers == set()
        assert set(range(low, high)) <= numbers
    assert [number for first, behind in ranges for number in range(first, behind)] == sorted(numbers)
    assert list(Ranges(ranges)) == list(ranges)
    assert all(left[1] < right[0] for left, right in zip(list(ranges), list(ranges)[1:], strict=False))
    assert bool(ranges) == bool(numbers)
    assert [number in ranges for number in range(50)] == [number in numbers for number in range(50)]
    inside = set(range(*asked)) & numbers
    assert ranges.count(*asked) == len(inside)
    assert list(ranges.outside(*asked)) == sorted(set(range(*asked)) - inside)
