"""Learning the server's clock from answers that show whole seconds."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rondevud.signalling.clock import ServerClock


class Steady:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def learn(clock: ServerClock, server: float, *, sent: float, received: float) -> None:
    """An answer with a Date, written when the server's clock showed `server`."""
    clock.learn(math.floor(server), math.floor(server) + 1.0, sent=sent, received=received)


def test_before_any_answer_the_wall_clock_is_taken_and_nothing_is_known() -> None:
    clock = ServerClock(steady=Steady(), wall=lambda: 77.0)
    assert not clock.known
    assert clock.now() == 77.0
    assert clock.remaining(100.0) is None


def test_answers_narrow_what_is_known() -> None:
    steady = Steady()
    clock = ServerClock(steady=steady, wall=lambda: 0.0)
    offset = 500_000.3
    for moment in (1_000.0, 1_000.25, 1_000.5, 1_000.75):
        steady.now = moment + 0.02
        learn(clock, moment + 0.01 + offset, sent=moment, received=moment + 0.02)
    assert clock.now() == pytest.approx(steady.now + offset, abs=0.2)


@given(
    offset=st.floats(-1e9, 1e9),
    trips=st.lists(st.tuples(st.floats(0.0, 30.0), st.floats(0.0, 5.0), st.floats(0.0, 1.0)), min_size=1, max_size=10),
)
def test_what_remains_is_never_more_than_the_truth(offset: float, trips: list[tuple[float, float, float]]) -> None:
    steady = Steady()
    clock = ServerClock(steady=steady, wall=lambda: 0.0)
    for pause, trip, written in trips:
        sent = steady.now + pause
        steady.now = sent + trip
        learn(clock, sent + written * trip + offset, sent=sent, received=steady.now)
    remaining = clock.remaining(steady.now + offset + 300.0)
    assert remaining is not None
    shortest = min(trip for _, trip, _ in trips)
    assert 300.0 - 1.001 - shortest <= remaining <= 300.001


def test_a_clock_that_was_set_is_learnt_anew() -> None:
    steady = Steady()
    clock = ServerClock(steady=steady, wall=lambda: 0.0)
    learn(clock, 500_000.5, sent=1_000.0, received=1_000.0)
    learn(clock, 400_000.5, sent=1_000.0, received=1_000.0)
    assert clock.now() == pytest.approx(400_000.5)
