"""Random operations on both stores give the same results, whatever is reopened in between, and the books add up."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

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

EXAMPLES = int(os.environ.get("RONDEVUD_STORE_EXAMPLES", "100"))
"""How many scripts both stores get; the soak test asks for more."""

LIMITS = Limits(slice_rows=3, page_messages=4, page_bytes=20)
CONNECTIONS, LABELS = ("a", "b"), ("x", "y")
EPOCHS = (b"", b"11111111", b"22222222")

channels = st.integers(0, 3)  # an index into the channels made so far
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
items = st.lists(
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
operations = st.one_of(
    puts,
    puts,
    puts,
    st.builds(r.Acknowledge, channels, numbers),
    st.builds(r.Acknowledge, channels, numbers),
    st.builds(r.Expire, channels, stamps),
    st.builds(r.Expire, channels, stamps),
    st.builds(r.Trim, channels, st.sampled_from([None, 0, 2]), st.sampled_from([None, 0, 10])),
    st.builds(r.Remove, channels, numbers, numbers, reasons, st.booleans()),
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
    st.builds(r.Receive, channels, st.none(), st.none(), st.sampled_from(EPOCHS), numbers, items, stamps),
    st.builds(r.ReadIn, channels, numbers),
    st.builds(r.AckIn, channels, numbers),
    st.builds(r.AckIn, channels, rows, rows),
    st.builds(r.AckIn, channels, rows, rows, st.booleans()),
    st.builds(failed.CountTry, channels, rows, st.integers(0, 3)),
    st.builds(failed.SetAside, channels, rows, st.integers(0, 3), stamps),
    st.builds(failed.SetAside, channels, rows, st.integers(0, 3), stamps),
    st.builds(failed.ReadFailed, channels, rows),
    st.builds(failed.FreeFailed, channels, st.one_of(st.none(), rows), st.booleans()),
    st.builds(ReadAccounts, channels),
    st.builds(r.TrimIn, channels, st.sampled_from([None, 0, 2, 5]), st.sampled_from([None, 0, 10])),
    st.builds(r.OpenProducer, channels, st.sampled_from([b"p", b"q"]), stamps),
    st.builds(r.OpenProducer, channels, st.sampled_from([b"p", b"q"]), stamps),
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
    st.sampled_from(["reopen", "crash", "group"]),
)


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


async def compare(path: Path, script: list) -> None:
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
        for step in [*start, *script, *end]:
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
@given(st.lists(operations, min_size=5, max_size=60))
def test_both_stores_answer_alike(script):
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(compare(Path(directory) / "store.sqlite3", script))
