"""`Attempts` against a plain count for each row."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from rondevud.durable import attempts
from rondevud.durable.attempts import Attempts

spans = st.tuples(st.integers(1, 30), st.integers(1, 8)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@given(st.lists(st.tuples(st.booleans(), spans), max_size=20))
def test_attempts_are_counted_for_each_row(script):
    tries, rows = Attempts(), Counter()
    for added, span in script:
        if added:
            tries.add(*span)
            rows.update(range(*span))
        else:
            tries.forget(*span)
            for row in range(*span):
                del rows[row]
    counts = [rows[row] for row in range(60)]
    assert [tries.of(row) for row in range(60)] == counts
    assert len(tries) == sum(here != before for before, here in zip([0, *counts], counts, strict=False))


def test_attempts_take_bounded_memory_and_are_never_counted_too_low(monkeypatch):
    monkeypatch.setattr(attempts, "STEPS_KEPT", 4)
    tries = Attempts()
    for row in range(1, 40, 2):
        tries.add(row, row + 1)
        assert len(tries) <= 4
    assert [tries.of(row) for row in range(37, 41)] == [1, 0, 1, 0]
    assert all(tries.of(row) == 1 for row in range(1, 40, 2))
