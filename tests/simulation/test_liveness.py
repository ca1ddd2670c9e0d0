"""A peer that is gone is suspected within five seconds, on a thousand simulated paths; one that only slept is not.

For each side that runs: when it can hear nothing more, it says `Suspect` within `LIMIT` seconds of the last message, and of
the moment at which the last packet can have arrived.

A hole in one direction only is noticed by the deaf side. The other one goes on hearing it, and is told by it
(`NOTHING_HEARD`).
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple

import pytest

from tests.simulation.path import Timer, Way
from tests.simulation.peers import Pair, other

pytestmark = pytest.mark.once

CASES = 1_000
SOAK_CASES = 50_000
LIMIT = 5.0
"""Seconds."""

TRAFFIC = ("", "", "c", "s", "cs")
"""Which sides always have something to send."""

FAULTS = ("end c", "end s", "stop c", "stop s", "hole c", "hole s", "hole both")
"""A side that ends or stops; a hole in the direction towards a side, or in both."""


class Trial(NamedTuple):
    seed: int
    fault: str
    bulk: str
    pair: Pair
    begun: float
    """When the fault began."""
    deaf: str
    """The sides that run and can hear nothing more."""

    def __str__(self) -> str:
        ways = self.pair.ways
        return (
            f"seed {self.seed}: {self.fault}, bulk {self.bulk or 'none'}, {self.pair.timer}, {ways['s']}, {ways['c']}"
        )


def prepare(seed: int) -> Trial:
    """A pair that works, and then a fault."""
    random = Random(seed)
    fault, bulk = FAULTS[seed % len(FAULTS)], random.choice(TRAFFIC)
    timer = random.choice((Timer(0.7, doubling=True), Timer(1.0, doubling=False)))
    least = random.choice((0.05, 0.1, 0.15))
    loss = random.choice((0.0, 0.0, 0.01))
    there, back = (Way(least, least * random.uniform(1.05, 1.5), loss) for _ in range(2))
    pair = Pair(seed, timer, there, back, bulk=bulk, redial=False)
    pair.clock.run_until(pair.clock.now + random.uniform(1.5, 3.5))
    what, who = fault.split()
    if what == "hole":
        deaf = "cs" if who == "both" else who
        for side in deaf:
            pair.ways[side].blocked = True
    else:
        pair.sides[who].halt()
        there.blocked = back.blocked = True
        deaf = other(who)
    return Trial(seed, fault, bulk, pair, pair.clock.now, deaf)


def suspected(trial: Trial, side: str) -> float:
    """When a side suspected that the other is gone."""
    later = [at for at in trial.pair.sides[side].suspects if at >= trial.begun]
    assert later, f"{trial}: {side} never suspects; {trial.pair.sides[side].events}"
    return later[0]


def everybody_knows(trial: Trial) -> bool:
    """Whether there is nothing left to wait for."""
    sides = (side for side in trial.pair.sides.values() if side.running)
    return all(any(at >= trial.begun for at in side.suspects) for side in sides)


def run_trials(count: int) -> None:
    slowest = {"deaf": 0.0, "hearing": 0.0}
    for seed in range(count):
        trial = prepare(seed)
        pair = trial.pair
        assert all(side.machine.current is not None for side in pair.sides.values()), f"{trial}: no link to begin with"
        pair.clock.run_until(trial.begun + 1.0 + 2 * LIMIT, lambda trial=trial: everybody_knows(trial))
        for side in trial.deaf:
            at = suspected(trial, side)
            assert at - pair.sides[side].heard_at <= LIMIT, f"{trial}: {side} after {at - pair.sides[side].heard_at} s"
            assert at <= trial.begun + pair.ways[side].most + LIMIT, f"{trial}: {side} at {at - trial.begun} s"
            slowest["deaf"] = max(slowest["deaf"], at - trial.begun)
        if trial.fault.startswith("hole") and len(trial.deaf) == 1:
            at = suspected(trial, other(trial.deaf))
            assert at <= trial.begun + pair.ways[trial.deaf].most + LIMIT, f"{trial}: told at {at - trial.begun} s"
            slowest["hearing"] = max(slowest["hearing"], at - trial.begun)
    print(f"{count} trials; suspected {slowest['deaf']:.2f} s after the fault at most")
    print(
        f"the hearing side of a hole in one direction suspected it {slowest['hearing']:.2f} s after the fault at most"
    )


@pytest.mark.timeout(600)
def test_both_sides_suspect_a_dead_peer_within_five_seconds() -> None:
    run_trials(CASES)


@pytest.mark.soak
@pytest.mark.timeout(3 * 3600)
def test_both_sides_suspect_a_dead_peer_within_five_seconds_very_often() -> None:
    run_trials(SOAK_CASES)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", range(40))
def test_a_peer_that_was_stopped_does_not_suspect_who_went_on(seed: int) -> None:
    """What it heard nothing of while it did not run is not silence; the other side has suspected it, and hears it again."""
    random = Random(seed)
    there, back = Way(0.05, 0.07, 0.0), Way(0.05, 0.07, 0.0)
    bulk = random.choice(TRAFFIC)
    pair = Pair(seed, Timer(1.0, doubling=False), there, back, bulk=bulk, redial=False)
    pair.clock.run_until(pair.clock.now + random.uniform(2.0, 5.0))
    name = random.choice("cs")
    sleeper, waker = pair.sides[name], pair.sides[other(name)]
    sleeper.halt()
    there.blocked = back.blocked = True
    pair.clock.run_until(pair.clock.now + random.uniform(5.0, 11.0))
    assert waker.suspects
    there.blocked = back.blocked = False
    sleeper.wake()
    pair.clock.run_until(pair.clock.now + 10.0)
    assert not sleeper.suspects
    assert all(side.machine.current is not None and not side.machine.suspect for side in pair.sides.values())
