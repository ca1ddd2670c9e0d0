from __future__ import annotations

import itertools
import random

from rondevud.backoff import Trouble, delays
from rondevud.errors import SignallingUnreachable


def first(count: int, *arguments, **keywords):
    return list(itertools.islice(delays(*arguments, **keywords), count))


def middle() -> float:
    return 0.5


def test_delays_double_up_to_the_maximum_and_stay_there():
    assert first(7, 1.0, 30.0, 0.2, middle) == [1, 2, 4, 8, 16, 30, 30]


def test_jitter_spreads_each_delay_by_its_share_to_both_sides():
    assert first(2, 10.0, 10.0, 0.2, lambda: 0.0) == [8.0, 8.0]
    found = first(1000, 10.0, 10.0, 0.2, random.Random(1).random)
    assert all(8 <= delay <= 12 for delay in found)
    assert max(found) - min(found) > 3


def test_without_jitter_delays_are_exact_whatever_the_random_source_gives():
    assert first(3, 1.0, 30.0, 0.0, lambda: 0.9) == [1, 2, 4]


def test_a_base_above_the_maximum_counts_as_the_maximum():
    assert first(2, 60.0, 30.0, 0.0, middle) == [30, 30]


def test_delays_never_end_nor_overflow():
    assert next(itertools.islice(delays(1.0, 30.0, 0.2, middle), 5000, None)) == 30


def test_trouble_is_news_when_it_begins_and_when_its_reason_changes():
    trouble = Trouble(lambda: delays(1.0, 30.0, 0.0, middle))
    found = [trouble.add(ValueError(reason)) for reason in ("down", "down", "garbled", "down")]
    assert found == [True, False, True, True]
    assert trouble.message == "down"
    assert trouble.end()
    assert trouble.message is None
    assert not trouble.end()
    assert trouble.add(ValueError())
    assert trouble.message == "ValueError()"


def test_delays_of_a_trouble_grow_until_it_ends_and_are_as_long_as_was_asked_for():
    trouble = Trouble(lambda: delays(1.0, 30.0, 0.0, middle))
    error = SignallingUnreachable("429", retry_after=3.0)
    trouble.add(error)
    assert [trouble.delay(error) for _ in range(4)] == [3, 3, 4, 8]
    trouble.end()
    assert trouble.delay(ValueError()) == 1
