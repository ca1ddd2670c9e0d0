"""Whose names metrics carry: a bound on them, and sums that never fall."""

from __future__ import annotations

from collections import Counter

import pytest

from rondevud.families import Counted, Described, Report, Roster
from rondevud.latencies import Histogram


def counted(key, n, *, foreign=False):
    return Counted(key, {"name": key}, {"n": n}, foreign)


def shown(looked):
    listed, rest = looked
    return {entry.key: entry.counters["n"] for entry in listed}, rest["n"]


def test_who_comes_late_is_told_of_with_the_others_for_good():
    roster = Roster(2)
    assert shown(roster.look([counted("a", 1), counted("b", 2), counted("c", 4)], {})) == ({"a": 1, "b": 2}, 4)
    assert shown(roster.look([counted("b", 2), counted("c", 5)], Counter(n=1))) == ({"b": 2}, 5)
    assert roster.unlisted == {"c"}
    assert shown(roster.look([counted("b", 2), counted("c", 5), counted("d", 8)], Counter(n=1))) == (
        {"b": 2, "d": 8},
        5,
    )


def test_what_was_counted_after_the_last_look_is_not_lost():
    roster = Roster(2)
    roster.look([counted("a", 10)], {})
    assert shown(roster.look([], Counter(n=13))) == ({}, 3)


def test_who_came_and_went_between_two_looks_is_among_the_others():
    assert shown(Roster(2).look([], Counter(n=7))) == ({}, 7)


def test_the_sum_of_the_others_never_falls():
    roster = Roster(1)
    roster.look([counted("a", 1), counted("b", 9)], {})
    assert shown(roster.look([counted("a", 1)], {})) == ({"a": 1}, 9)  # b is gone and not among the past yet


def test_strangers_get_half_of_the_places():
    roster = Roster(4)
    strangers = [counted(name, 1, foreign=True) for name in "abcd"]
    assert set(shown(roster.look(strangers, {}))[0]) == {"a", "b"}
    ours = [counted(name, 1) for name in "xyz"]
    assert set(shown(roster.look([*strangers, *ours], {}))[0]) == {"a", "b", "x", "y"}


def test_a_histogram_is_told_in_rising_sums():
    report = Report({"h": Described("histogram", "")})
    histogram = Histogram()
    histogram.observe(0.0005, 2)
    histogram.observe(1e9)
    report.add_histogram("h", histogram)
    samples = {(s.suffix, s.labels.get("le")): s.value for s in report.families["h"].samples}
    assert (samples["_bucket", "0.001"], samples["_bucket", "86400.0"], samples["_bucket", "+Inf"]) == (2, 2, 3)
    assert (samples["_count", None], samples["_sum", None]) == (3, pytest.approx(1e9 + 0.001))


def test_a_metric_that_is_not_described_is_a_mistake():
    with pytest.raises(KeyError):
        Report({}).add("unknown", 1)
