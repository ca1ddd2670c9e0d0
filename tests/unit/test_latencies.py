"""Histograms of how long messages take, and the moments of their acceptance."""

from __future__ import annotations

import pytest

from rondevud import latencies
from rondevud.latencies import BOUNDS, AcceptTimes, Histogram, Latencies


@pytest.fixture
def counted():
    return Latencies()


@pytest.fixture
def times(counted):
    return AcceptTimes(counted)


def test_a_bound_belongs_to_its_bucket_and_what_is_beyond_the_last_has_its_own():
    histogram = Histogram()
    histogram.observe(BOUNDS[0])
    histogram.observe(BOUNDS[0] * 1.01, 3)
    histogram.observe(BOUNDS[-1] * 2)
    histogram.observe(-5.0)
    assert (histogram.counts[0], histogram.counts[1], histogram.counts[-1]) == (2, 3, 1)
    assert histogram.sum == pytest.approx(BOUNDS[0] * 4.03 + BOUNDS[-1] * 2)


def test_an_acknowledgement_times_the_batches_below_it(times, counted):
    times.accepted(3, 2, 10.0)
    times.accepted(4, 1, 11.0)
    times.acknowledged(3, 12.0)
    assert (counted.acknowledge.sum, sum(counted.acknowledge.counts)) == (4.0, 2)
    times.acknowledged(9, 12.0)
    assert (counted.acknowledge.sum, sum(counted.acknowledge.counts)) == (5.0, 3)


def test_batches_beyond_the_bound_are_counted_and_those_behind_them_timed_again(times, counted, monkeypatch):
    monkeypatch.setattr(latencies, "MARKED", 2)
    for next_ in range(2, 7):
        times.accepted(next_, 1, 0.0)
    times.acknowledged(3, 1.0)
    times.accepted(7, 1, 1.0)
    times.acknowledged(7, 2.0)
    assert (sum(counted.acknowledge.counts), counted.untimed) == (3, 3)


def test_removed_batches_are_not_timed(times, counted):
    times.accepted(3, 2, 0.0)
    times.accepted(5, 2, 0.0)
    times.removed(1, 3)
    times.acknowledged(5, 1.0)
    assert sum(counted.acknowledge.counts) == 2
