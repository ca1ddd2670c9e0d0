"""Random operations on both stores give the same results, whatever is reopened in between, and the books add up."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rondevud import failed
from rondevud import records as r
from rondevud.accounts import ReadAccounts
from rondevud.errors import StoreError
from rondevud.store.base import Limits
from rondevud.store.memory import MemoryTables
from rondevud.store.sqlite import SqliteStore

EXAMPLES = int(os.environ.get("RONDEVUD_STORE_EXAMPLES", "60"))
"""How many scripts both stores get; the soak test asks for more."""

SEEDS = max(4, EXAMPLES // 8)
STEPS = 300
"""How many long scripts there are, and of how many steps."""

LIMITS = Limits(slice_rows=3, page_messages=4, page_bytes=20)
CONNECTIONS, LABELS = ("a", "b"), ("x", "y")
EPOCHS = (b"", b"11111111", b"22222222")

channels = st.sampled_from([0] * 12 + [1, 1, 2, 3])  # an index into the channels made so far, the last one first
numbers = st.integers(0, 60)
payloads = st.one_of(st.text(max_size=6), st.binary(max_size=12))
reasons = st.sampled_from(list(r.Reason))
stamps = st.builds(
    r.Stamp,
    st.sampled_from(["boot-1", "boot-1", "boot-2", "boot-3"]),
    st.integers(0, 50).map(float),
    st.integers(0, 50).map(float),
)
rejected = st.lists(st.tuples(numbers, st.sampled_from(["window", "full"])), max_size=2).map(tuple)
puts = st.builds(
    lambda channel, body, closing, **rest: r.Put(channel, (*body, None) if closing else tuple(body), **rest),
    channels,
    st.lists(payloads, max_size=7),
    st.sampled_from([False] * 5 + [True]),
    stamp=stamps,
    floor=st.sampled_from([0, 0, 0, 10, 30]),
    max_age=st.sampled_from([None, 0, 5.0, 20.0]),
    producer=st.sampled_from([0, -3, 1, 2, 3]),
    first_seq=numbers,
    rejected=rejected,
)
one_after_the_other = st.builds(
    lambda first, bodies: tuple(r.OutMessage(first + place, body) for place, body in enumerate(bodies)),
    numbers,
    st.lists(payloads, min_size=2, max_size=9),
)
items = one_after_the_other | st.lists(
    st.one_of(
        st.builds(r.OutMessage, numbers, st.one_of(payloads, st.none())),
        st.builds(r.Removal, numbers, numbers, reasons, st.sampled_from([None, 0, 1, 4])),
    ),
    max_size=6,
).map(tuple)
sessions = st.builds(
    r.SessionRecord,
    st.sampled_from(CONNECTIONS),
    st.sampled_from(list(r.Role)),
    st.text(max_size=3),
    st.just(b"s" * 16),
    st.just(b"t" * 32),
    link=numbers,
    welcomed=st.booleans(),
    peer_name=st.text(max_size=3),
    closed=st.booleans(),
    absent=st.sampled_from([0.0, 1.5]),
)
rows = st.integers(0, 15)
kinds = st.sampled_from(list(r.DeclarationKind))
of_queues = [
    *[puts] * 6,
    st.builds(r.Acknowledge, channels, numbers),
    st.builds(r.Acknowledge, channels, numbers),
    st.builds(r.Expire, channels, stamps),
    st.builds(r.Expire, channels, stamps),
    st.builds(r.Trim, channels, st.sampled_from([None, 0, 2, 5]), st.sampled_from([None, 0, 10, 30])),
    st.builds(r.Trim, channels, st.sampled_from([2, 5]), st.none()),
    st.builds(r.Remove, channels, numbers, numbers, reasons, st.booleans()),
    st.builds(
        lambda channel, first, count, reason: r.Remove(channel, first, first + count, reason),
        channels,
        numbers,
        numbers,
        reasons,
    ),
    st.builds(r.ReadOut, channels, numbers),
    st.builds(r.ReadOut, channels, st.just(0)),
    st.builds(r.FindExpiry, channels, stamps),
    st.builds(
        r.Receive,
        channels,
        st.sampled_from(EPOCHS),
        st.sampled_from([0, 5]),
        st.sampled_from(EPOCHS),
        st.sampled_from([0, 5]),
        items,
        stamps,
    ),
    *[st.builds(r.Receive, channels, st.none(), st.none(), st.sampled_from(EPOCHS), numbers, items, stamps)] * 4,
    st.builds(r.ReadIn, channels, numbers),
    st.builds(r.AckIn, channels, rows),
    st.builds(r.AckIn, channels, rows, rows),
    st.builds(r.AckIn, channels, rows, rows, st.booleans()),
    st.builds(failed.CountTry, channels, rows, st.integers(0, 3)),
    st.builds(failed.SetAside, channels, rows, st.integers(0, 3), stamps),
    st.builds(failed.SetAside, channels, rows, st.integers(0, 3), stamps),
    st.builds(failed.ReadFailed, channels, rows),
    st.builds(failed.FreeFailed, channels, st.one_of(st.none(), rows), st.booleans()),
    st.builds(ReadAccounts, channels),
    st.builds(r.TrimIn, channels, st.sampled_from([None, 0, 2, 5]), st.sampled_from([None, 0, 10])),
    st.builds(r.TrimIn, channels, st.sampled_from([2, 5]), st.none()),
    st.builds(r.OpenProducer, channels, st.sampled_from([b"p", b"q"]), stamps),
    st.builds(r.OpenProducer, channels, st.sampled_from([b"p", b"q"]), stamps),
    st.sampled_from(["reopen", "crash", "group", "group"]),
]
others = [
    st.builds(r.ForgetProducers, st.sampled_from([0, 10, 30.0]), stamps, st.frozensets(st.integers(1, 3), max_size=1)),
    st.builds(r.SaveSession, sessions),
    st.builds(r.DeleteSession, st.sampled_from(CONNECTIONS)),
    st.builds(r.LoadSessions),
    st.builds(r.SaveDeclaration, st.builds(r.Declaration, kinds, st.sampled_from("mn"), st.binary(max_size=2))),
    st.builds(r.DeleteDeclaration, kinds, st.sampled_from("mn")),
    st.builds(r.LoadDeclarations),
    st.builds(
        r.CreateChannel,
        st.sampled_from(CONNECTIONS),
        st.sampled_from(LABELS),
        st.sampled_from(list(r.Durability)),
        st.sampled_from(EPOCHS),
        st.binary(max_size=2),
    ),
    st.builds(r.SetChannelOptions, channels, st.binary(max_size=2)),
    st.builds(r.SetEpoch, channels, st.sampled_from(EPOCHS), numbers, st.booleans()),
    st.sampled_from([r.MarkAttached(0), r.MarkAttached(1)]),
]
operations = st.one_of(*of_queues, *of_queues, *of_queues, *others)


class Model:
    """`MemoryTables` whose ids are those of SQLite, with channels named by their place among those made so far."""

    def __init__(self) -> None:
        self.tables = MemoryTables(1, LIMITS)
        self.made: list[int] = []

    def fit(self, operation):
        """The operation with the channel's id in place of its index, and sometimes with the right expectations."""
        if hasattr(operation, "channel"):
            index = operation.channel
            operation = replace(operation, channel=self.made[index] if index < len(self.made) else 999)
        if isinstance(operation, r.Receive) and operation.expect_epoch is None:
            known = {c.id: c for c in self.tables.execute(r.LoadSessions()).channels}
            if (channel := known.get(operation.channel)) is None:
                return replace(operation, expect_epoch=b"", expect_next=0)
            return replace(operation, expect_epoch=channel.peer_epoch, expect_next=channel.recv_next)
        return operation

    def run(self, operation):
        try:
            result = self.tables.execute(operation)
        except StoreError as error:
            return type(error), str(error)
        if isinstance(operation, r.CreateChannel):
            self.made.insert(0, result.id)
        for channel in self.tables._channels.values():
            assert channel.totals.mistakes(channel.record) == [], operation
        return result


def named(result):
    return (type(result), str(result)) if isinstance(result, StoreError) else result


def crashed(path: Path) -> Path:
    """The files as a killed process would leave them now, under another name."""
    copy = path.with_name(f"{path.name}x")
    shutil.copy(path, copy)
    shutil.copy(f"{path}-wal", f"{copy}-wal")
    return copy


async def compare(path: Path, write: Callable[[Model], Iterable[Any]]) -> None:
    """Give both stores the script that `write` makes, step by step, knowing what has become of the steps before."""
    model = Model()
    store = await SqliteStore.open(path, limits=LIMITS)
    waiting: list[tuple] = []
    grouped = False

    async def settle() -> None:
        for operation, expected, answer in waiting:
            assert named(await answer) == expected, operation
        waiting.clear()

    start = [r.SaveSession(r.SessionRecord(c, r.Role.SERVICE, "", b"", b"")) for c in CONNECTIONS]
    start += [r.CreateChannel(c, "x", r.Durability.DISK, EPOCHS[1]) for c in CONNECTIONS]
    start += [r.OpenProducer(0, b"p", r.Stamp("boot-1", 0.0, 0.0))]
    readings = (r.ReadOut, r.ReadIn, failed.ReadFailed)
    end = [r.LoadSessions(), *(read(index, 0) for read in readings for index in range(4))]
    end += [ReadAccounts(index) for index in range(4)]  # so the books of SQLite add up as well
    try:
        for step in chain(start, write(model), end):
            if step == "group":
                grouped = True
            elif step == "reopen":
                await settle()
                await store.close()
                store = await SqliteStore.open(path, limits=LIMITS)
            elif step == "crash":
                await settle()
                path = crashed(path)
                await store.close()
                store = await SqliteStore.open(path, limits=LIMITS)
            else:
                operation = model.fit(step)
                expected = model.run(operation)
                answer = asyncio.get_running_loop().create_future()
                store.submit(operation, answer.set_result)
                waiting.append((operation, expected, answer))
                if not grouped or len(waiting) > 5:
                    await settle()
                    grouped = False
        await settle()
    finally:
        await store.close()


@pytest.mark.timeout(180)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(operations, min_size=40, max_size=80))
def test_both_stores_answer_alike(script):
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(compare(Path(directory) / "store.sqlite3", lambda _model: script))


def likely(model: Model, random: Random) -> Iterator[Any]:
    """A long script of what happens in a channel that is in use: numbers are mostly those that it holds."""
    stamp = r.Stamp("boot-1", 0.0, 0.0)
    for _ in range(STEPS):
        index = random.choice([0, 0, 0, 1])
        channel = model.tables._channels[model.made[index]]
        record = channel.record
        out = range(max(0, channel.base - 1), record.next + 2)
        held = range(max(0, channel.next_row - record.in_count - 4), channel.next_row + 2)
        stamp = r.Stamp(
            random.choice(["boot-1"] * 20 + ["boot-2"]), stamp.boottime + random.choice([0, 1]), stamp.wall + 1
        )
        number, row = random.choice(out), random.choice(held)
        bodies = tuple(
            "ü" * random.randrange(4) if random.random() < 0.5 else bytes(random.randrange(12))
            for _ in range(random.choice([0, 1, 1, 2, 3, 5, 9]))
        )
        closing = (None,) if random.random() < 0.02 else ()
        age = random.choice([None, None, 0, 3.0, 9.0])
        floor = record.next + 5 if random.random() < 0.05 else 0
        first = record.recv_next + random.choice([0] * 9 + [3])
        received = [r.OutMessage(first + place, body) for place, body in enumerate(bodies)]
        if random.random() < 0.2:
            received.insert(
                random.randrange(len(received) + 1), r.Removal(first, first + 2, random.choice(list(r.Reason)), 1)
            )
        limits = (random.choice([None, 2, 6, 12]), random.choice([None, 15, 60]))
        yield random.choices(
            [
                r.Put(
                    index, (*bodies, *closing), stamp, floor, age, random.choice([0, 1, -1]), random.randrange(1, 99)
                ),
                r.Receive(
                    index, None, None, record.peer_epoch or EPOCHS[1], first + len(bodies), tuple(received), stamp
                ),
                r.Acknowledge(index, number),
                r.Remove(index, number, number + random.randrange(5), r.Reason.PURGED, random.random() < 0.8),
                r.Trim(index, *limits),
                r.Expire(index, stamp),
                r.FindExpiry(index, stamp),
                r.ReadOut(index, number),
                r.ReadIn(index, row),
                r.AckIn(index, row),
                r.AckIn(index, row + random.randrange(5), row),
                r.TrimIn(index, *limits),
                failed.CountTry(index, row, random.randrange(4)),
                failed.SetAside(index, row, 3, stamp),
                failed.FreeFailed(index, random.choice([None, row]), random.random() < 0.7),
                failed.ReadFailed(index, row),
                ReadAccounts(index),
                random.choice(["reopen", "crash"]),
                "group",
            ],
            [8, 8, 2, 2, 0.7, 2, 1, 4, 4, 1, 2, 0.7, 1, 1, 0.5, 0.5, 1, 0.3, 2],
        )[0]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("seed", range(SEEDS))
async def test_both_stores_answer_alike_for_long(tmp_path, seed):
    await compare(tmp_path / "store.sqlite3", lambda model: likely(model, Random(seed)))
