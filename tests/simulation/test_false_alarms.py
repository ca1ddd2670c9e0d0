"""A bad path that works is not given up: the link machine over hours of loss, delay and retransmission."""

from __future__ import annotations

import time

import pytest

from tests.simulation.path import Timer, Way
from tests.simulation.peers import Pair

pytestmark = pytest.mark.once

HOUR = 3600.0
TIMERS = (Timer(0.7, doubling=True), Timer(1.0, doubling=False))


def bad_path() -> tuple[Way, Way]:
    """5 % loss, a round trip of 300 ± 100 ms."""
    return Way(0.1, 0.2, 0.05), Way(0.1, 0.2, 0.05)


def run(seed: int, timer: Timer, bulk: str, hours: float) -> Pair:
    pair = Pair(seed, timer, *bad_path(), bulk=bulk)
    began = time.process_time()
    pair.clock.run_until(pair.clock.now + hours * HOUR)
    c, s = (pair.sides[name] for name in "cs")
    print(
        f"{timer}, bulk {bulk or 'none'}, {hours:g} h: suspects {len(c.suspects)} + {len(s.suspects)}, "
        f"longest silence {c.longest_silence:.1f} {s.longest_silence:.1f} s, "
        f"changes {pair.link_changes}, dials {pair.dials} ({pair.dials_cancelled} cancelled), "
        f"received {c.received / hours / HOUR:.0f} + {s.received / hours / HOUR:.0f} B/s, "
        f"{time.process_time() - began:.1f} s of CPU"
    )
    return pair


CI_HOURS = {"": 10.0, "c": 2.0}
"""Of each timer, idle and under bulk: 24 hours in all."""

SOAK_HOURS = 24.0
EACH = [
    pytest.param(timer, "c" if bulk else "", id=f"{timer}, {'bulk' if bulk else 'idle'}")
    for timer in TIMERS
    for bulk in (0, 1)
]


def check(pairs: list[Pair], hours: float) -> None:
    """At most one suspect an hour, as each daemon's user hears of them, and one change of link in 24 hours."""
    for name in "cs":
        suspects = sum(len(pair.sides[name].suspects) for pair in pairs)
        assert suspects <= hours, f"{name}: {suspects} suspects in {hours:g} hours"
    changes = sum(pair.link_changes for pair in pairs)
    assert changes <= max(1, hours / 24), f"{changes} changes of link in {hours:g} hours"


@pytest.mark.timeout(900)
def test_a_day_on_a_bad_path_brings_hardly_a_false_alarm() -> None:
    pairs = [run(seed, timer, bulk, CI_HOURS[bulk]) for seed, (timer, bulk) in enumerate(case.values for case in EACH)]
    check(pairs, 2 * sum(CI_HOURS.values()))


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("seed", range(100, 104))
def test_a_day_of_each_kind_brings_hardly_a_false_alarm(seed: int) -> None:
    pairs = [run(seed, *case.values, SOAK_HOURS) for case in EACH]
    check(pairs, SOAK_HOURS * len(pairs))
