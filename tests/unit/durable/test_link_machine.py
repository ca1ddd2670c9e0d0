"""The link machine against Hypothesis and against plain chance: every rule of ``rondevu.link.1`` is an invariant here."""

from __future__ import annotations

import os
from collections import Counter
from random import Random
from typing import ClassVar

import pytest
from hypothesis import seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from tests.unit.durable.world import LABELS, World, drive, random_step, shrink

EXAMPLES = settings.get_profile("link").max_examples
PARTS = max(1, EXAMPLES // 500)
"""Tests among which the examples are shared out, so that several processes can have them."""

SEEDS = int(os.environ.get("RONDEVUD_LINK_SEEDS", "2000"))
"""Worlds of the plain random driver."""

GROUPS = max(1, SEEDS // 500)
"""Tests among which those worlds are shared out."""

SOAK_SEEDS = 50_000
ROUND = 2_000
"""Examples of one Hypothesis run in the long test: it remembers them all, some 300 KiB each."""
STEPS = 200
"""Most steps of a random world."""

RULES = 60
"""Most rules of an example: choosing one costs Hypothesis four times what the link does with it, so some are many steps."""

SIDES = st.sampled_from("cs")
LABEL = st.sampled_from(LABELS)
SIZES = st.lists(st.sampled_from([9, 10, 60, 150, 500]), min_size=1, max_size=6)
FEW = st.integers(0, 3)


@pytest.fixture(autouse=True)
def small_bounds(monkeypatch):
    shrink(monkeypatch.setattr)


class LinkMachine(RuleBasedStateMachine):
    """Chance chooses the rules and their arguments; at the end everything comes to rest and the histories must agree."""

    examples: ClassVar[Counter[str]] = Counter()
    """Of all runs of this class: how many there were, and in how many two links of one session stood at once."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    @initialize(links=st.sampled_from([2, 1, 0]))
    def begin(self, links):
        """Two links at once are what chance tries the least often."""
        for number in range(links):
            self.dial()
            if number + 1 < links:
                self.world.run()

    def dial(self) -> None:
        """Another link, as far as the hello."""
        self.world.connect()
        self.world.nodes["c"].commit(100)
        self.world.deliver(self.wire(0), "s")

    def wire(self, back: int) -> int:
        """The key of one of the latest links."""
        keys = list(self.world.wires)
        return keys[-1 - back % len(keys)]

    def has_link(self) -> bool:
        return bool(self.world.wires)

    def has_room_for_link(self) -> bool:
        return len(self.world.live_wires()) == 1

    @precondition(has_link)
    @rule(back=FEW, side=SIDES, number=st.integers(1, 6))
    def deliver(self, back, side, number):
        for _ in range(number):
            self.world.deliver(self.wire(back), side)

    @precondition(has_link)
    @rule(number=st.integers(1, 6))
    def deliver_on_the_latest_link(self, number):
        for _ in range(number):
            for side in "cs":
                self.world.deliver(self.wire(0), side)

    @precondition(has_link)
    @rule(back=FEW, side=SIDES)
    def repeat_a_frame(self, back, side):
        self.world.deliver(self.wire(back), side, repeat=True)

    @precondition(has_link)
    @rule(back=FEW, side=SIDES, index=FEW)
    def lose_a_frame(self, back, side, index):
        self.world.lose_frame(self.wire(back), side, index)

    @rule(side=SIDES, number=st.integers(1, 6))
    def commit(self, side, number):
        self.world.nodes[side].commit(number)

    @rule(side=SIDES)
    def commit_everything(self, side):
        self.world.nodes[side].commit(100)

    @rule(side=SIDES)
    def fail_commit(self, side):
        self.world.nodes[side].fail_commit()

    @rule(side=SIDES, label=LABEL, sizes=SIZES)
    def put(self, side, label, sizes):
        self.world.nodes[side].put(label, sizes)

    @rule()
    def connect(self):
        self.world.connect()

    @precondition(has_room_for_link)
    @rule()
    def dial_beside_the_link_that_stands(self):
        self.dial()

    @precondition(has_link)
    @rule(back=FEW, keep=FEW)
    def cut(self, back, keep):
        self.world.cut(self.wire(back), keep)

    @rule(side=SIDES)
    def restart(self, side):
        self.world.nodes[side].restart()

    @rule(side=SIDES)
    def take_a_copy(self, side):
        self.world.nodes[side].take_copy()

    @rule(side=SIDES, hours=st.integers(1, 3))
    def set_the_clock_back(self, side, hours):
        self.world.nodes[side].set_clock_back(hours)

    @rule(side=SIDES, index=FEW)
    def go_back_to_a_copy(self, side, index):
        self.world.nodes[side].go_back(index)

    @rule(side=SIDES, index=FEW)
    def restore_a_snapshot(self, side, index):
        self.world.nodes[side].restore_snapshot(index)

    @rule()
    def forget_the_session(self):
        self.world.nodes["s"].forget()

    @rule(side=SIDES, label=LABEL, left=FEW)
    def trim(self, side, label, left):
        self.world.nodes[side].trim(label, left)

    @rule(side=SIDES, label=LABEL, number=st.integers(1, 4))
    def purge(self, side, label, number):
        self.world.nodes[side].purge(label, number)

    @rule(side=SIDES, label=LABEL)
    def close_label(self, side, label):
        self.world.nodes[side].close_label(label)

    @rule(side=SIDES, label=LABEL)
    def reopen_label(self, side, label):
        self.world.nodes[side].reopen_label(label)

    @rule(side=SIDES, label=LABEL)
    def read(self, side, label):
        self.world.nodes[side].read(label)

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0, 20.0]), side=SIDES)
    def time_passes(self, seconds, side):
        self.world.pass_time(seconds, side)

    @rule()
    def run_everything(self):
        self.world.run()

    @rule(number=st.integers(0, 2**16 - 1), steps=st.integers(1, 20))
    def traffic(self, number, steps):
        """Steps of the plain driver, which has no faults here."""
        random = Random(number)
        for _ in range(steps):
            random_step(self.world, random)

    def teardown(self) -> None:
        self.examples["all"] += 1
        self.examples["two links"] += self.world.most_links >= 2
        self.world.settle()
        self.world.verify()


def run_machine(count: int, part: int | None = None) -> None:
    """So many examples; two links of one session must have stood at once in a third of them.

    In CI a `part` always gets the same examples, which no other part gets.
    """
    profile = settings(settings.get_profile("link"), max_examples=count)
    LinkMachine.examples.clear()
    machine = LinkMachine
    if part is not None and os.environ.get("CI"):
        machine = seed(part)(type(f"LinkMachinePart{part}", (LinkMachine,), {}))
    run_state_machine_as_test(machine, settings=settings(profile, stateful_step_count=RULES))
    examples = LinkMachine.examples  # reached only when nothing failed, so nothing has been shrunk
    assert examples["all"] >= count
    assert 3 * examples["two links"] >= examples["all"], examples


@pytest.mark.timeout(120 + EXAMPLES // 2)
@pytest.mark.parametrize("part", range(PARTS))
def test_machine_keeps_its_promises_through_every_fault(part):
    run_machine(EXAMPLES // PARTS, part)


@pytest.mark.soak
@pytest.mark.timeout(3600 + EXAMPLES)
def test_machine_keeps_its_promises_through_very_many_faults():
    for _ in range(0, EXAMPLES, ROUND):
        run_machine(ROUND)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("group", range(GROUPS))
def test_machine_keeps_its_promises_in_random_worlds(group):
    for number in range(group, SEEDS, GROUPS):
        drive(number, STEPS)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_machine_keeps_its_promises_in_very_many_random_worlds():
    for number in range(SEEDS, SEEDS + SOAK_SEEDS):
        drive(number, STEPS)
