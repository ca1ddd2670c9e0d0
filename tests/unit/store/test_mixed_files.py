"""A database and a log that do not belong together: copied back, forgotten, or deleted by somebody who meant well.

SQLite cannot see that, and puts old pages over new ones. Nothing wrong may be delivered then, nothing twice within one
reading, and the store must go on: what it has lost is for the links to tell.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from rondevud.errors import StoreError
from rondevud.records import (
    AckIn,
    Acknowledge,
    ChannelRecord,
    InMessage,
    LoadSessions,
    OpenProducer,
    OutMessage,
    Put,
    ReadIn,
    ReadOut,
    Reason,
    Receive,
)
from rondevud.store import salvage, sqlite
from rondevud.store.database import damage
from rondevud.store.sqlite import SqliteStore
from tests.unit.store.kit import NOW, PEER, make_channel

STAGES = int(os.environ.get("RONDEVUD_STORE_STAGES", "5"))
"""Moments at which both files are copied: so many times so many mixtures are tried."""

LATER = 1_000_000
"""The first number that a daemon gives that starts after the store went back."""


def text(way: str, channel: int, seq: int) -> str:
    return f"{way} {channel} {seq} " + "x" * (seq * 37 % 400)


class Copy(NamedTuple):
    database: bytes
    log: bytes


class Traffic:
    """Messages both ways on a channel, some of them taken."""

    def __init__(self, store: SqliteStore, channel: int, drawn: random.Random) -> None:
        self.store = store
        self.channel = channel
        self.drawn = drawn
        self.sent = self.received = self.taken = 0

    async def go_on(self) -> None:
        for _ in range(self.drawn.randrange(3, 9)):
            count = self.drawn.randrange(1, 12)
            numbers = range(self.sent + 1, self.sent + count + 1)
            await self.store.execute(Put(self.channel, tuple(text("out", self.channel, n) for n in numbers), NOW))
            self.sent += count
            items = tuple(
                OutMessage(n, text("in", self.channel, n)) for n in range(self.received + 1, self.received + count + 1)
            )
            start = (PEER, self.received + 1) if self.received else (b"", 0)
            self.received += count
            await self.store.execute(Receive(self.channel, *start, PEER, self.received + 1, items, NOW))
        while self.drawn.random() < 0.8:
            await self.store.execute(Acknowledge(self.channel, self.drawn.randrange(self.sent)))
        if self.drawn.random() < 0.7:
            await self.store.execute(AckIn(self.channel, self.drawn.randrange(self.received)))


@pytest.fixture
async def copies(tmp_path, monkeypatch) -> list[Copy]:
    """Of a store whose log is checkpointed and begins anew now and then."""
    monkeypatch.setattr(sqlite, "IDLE_CHECKPOINT", 60_000)
    drawn = random.Random(20)
    path = tmp_path / "origin.sqlite3"
    log = path.with_name(f"{path.name}-wal")
    store = await SqliteStore.open(path)
    traffics = [
        Traffic(store, await make_channel(store, connection_id=connection_id), drawn)
        for connection_id in ("conn-1", "conn-2")
    ]
    made = []
    for _ in range(STAGES):
        for traffic in traffics:
            await traffic.go_on()
        while store._busy:
            await store.execute(LoadSessions())
        made.append(Copy(path.read_bytes(), log.read_bytes()))
    await store.close()
    assert len({copy.database for copy in made}) > 2
    return made


def mixtures(copies: list[Copy]) -> Iterator[tuple[str, Copy]]:
    for number, old in enumerate(copies):
        yield f"{number} without a log", Copy(old.database, b"")
        for other, new in enumerate(copies):
            if other != number:
                yield f"{number} with the log of {other}", Copy(old.database, new.log)


async def read_out(store: SqliteStore, channel: int, told: list[range] | None = None) -> list[int]:
    """The numbers of all messages in the outbox, each looked at; `told` gets what is told to be damaged."""
    numbers: list[int] = []
    number, end = 0, False
    while not end:
        page = await store.execute(ReadOut(channel, number))
        for item in page.items:
            if isinstance(item, OutMessage):
                assert item.payload == text("out", channel, item.seq)
                numbers.append(item.seq)
            else:
                assert item.reason in {Reason.DAMAGED, Reason.RESTART}
                if told is not None and item.reason is Reason.DAMAGED:
                    told.append(range(item.first, item.next))
        assert page.end or page.next > number
        number, end = page.next, page.end
    return numbers


async def read_in(store: SqliteStore, channel: int) -> list[int | None]:
    """The numbers of all messages in the inbox, each looked at; None: something that is told to be damaged."""
    numbers: list[int | None] = []
    row = 0
    while items := (await store.execute(ReadIn(channel, row))).items:
        for item in items:
            if isinstance(item, InMessage):
                assert item.payload == text("in", channel, item.seq)
                numbers.append(item.seq)
            else:
                assert item.removal.reason is Reason.DAMAGED
                numbers.append(None)
        row = items[-1].row + 1
    return numbers


async def use(store: SqliteStore, record: ChannelRecord) -> None:
    """Read all there is, then go on as a daemon does."""
    channel = record.id
    for reading in (read_out, read_in):
        numbers = [number for number in await reading(store, channel) if number is not None]
        assert numbers == sorted(set(numbers))
    producer = (await store.execute(OpenProducer(channel, b"app", NOW))).id
    first = max(LATER, record.next)
    payloads = tuple(text("out", channel, n) for n in range(first, first + 40))
    put = await store.execute(Put(channel, payloads, NOW, floor=first, producer=producer, first_seq=1))
    assert put.first == first
    epoch, start = (record.peer_epoch, record.recv_next) if record.recv_next else (b"", 0)
    begin = max(1, start)
    items = tuple(OutMessage(n, text("in", channel, n)) for n in range(begin, begin + 40))
    received = await store.execute(Receive(channel, epoch, start, PEER, begin + 40, items, NOW))
    assert received.rows == 40
    told: list[range] = []
    found = await read_out(store, channel, told)
    assert found == sorted(set(found))
    assert [n for n in range(first, first + 40) if n not in found and not any(n in gone for gone in told)] == []
    rows = zip((await read_in(store, channel))[-40:], range(begin, begin + 40), strict=True)
    assert all(number in {None, expected} for number, expected in rows)
    while (await store.execute(Acknowledge(channel, first + 40))).more:
        pass
    while (await store.execute(AckIn(channel, 2**40))).more:
        pass
    assert (await read_out(store, channel), await read_in(store, channel)) == ([], [])
    (left,) = [row for row in (await store.execute(LoadSessions())).channels if row.id == channel]
    assert (left.out_count, left.out_bytes, left.in_count, left.in_bytes) == (0, 0, 0, 0)


@pytest.mark.once
@pytest.mark.timeout(300)
async def test_files_that_do_not_belong_together_deliver_nothing_wrong_and_are_used_on(copies, tmp_path, caplog):
    caplog.set_level(logging.CRITICAL)
    path = tmp_path / "mixed" / "store.sqlite3"
    path.parent.mkdir()
    outcomes: list[str] = []
    for name, mixed in mixtures(copies):
        for old in path.parent.iterdir():
            old.unlink()
        path.write_bytes(mixed.database)
        if mixed.log:
            path.with_name(f"{path.name}-wal").write_bytes(mixed.log)
        store = await SqliteStore.open(path, pause=0.001)
        try:
            sessions = await store.execute(LoadSessions())
            assert len(sessions.sessions) + len(sessions.damaged) == 2
            for record in sessions.channels:
                await use(store, record)
        except (AssertionError, StoreError) as error:
            outcomes.append(f"{name}: {type(error).__name__} {error}"[:300])
        finally:
            await store.close()
    assert not outcomes, "\n".join(outcomes)


@pytest.mark.skipif(
    sys.version_info < (3, 12), reason="before Python 3.12 closing a database brings its log into the file"
)
async def test_a_file_that_is_refused_with_its_log_goes_on_without_it(copies, tmp_path, caplog):
    path = tmp_path / "refused" / "store.sqlite3"
    log = path.with_name(f"{path.name}-wal")
    path.parent.mkdir()
    path.write_bytes(copies[-1].database)
    log.write_bytes(copies[-1].log)

    class Refusing(sqlite3.Connection):
        def execute(self, sql, *args):
            if "user_version" in sql and log.exists() and log.stat().st_size:
                raise damage("the log makes nonsense of the file")
            return super().execute(sql, *args)

    store = await SqliteStore.open(path, factory=Refusing)
    try:
        assert len((await store.execute(LoadSessions())).sessions) == 2
        moved = store.moved_aside
        assert (moved.read_bytes(), moved.with_name(f"{moved.name}-wal").read_bytes()) == copies[-1]
        assert "what was stored last is missing" in caplog.text
    finally:
        await store.close()


@pytest.fixture
async def too_short(tmp_path, monkeypatch) -> Path:
    """A file and a later log that cannot have made it as long as it says: SQLite refuses every checkpoint.

    The first message is in neither, the second one in the log.
    """
    for limit in ("IDLE_CHECKPOINT", "BUSY_CHECKPOINT"):
        monkeypatch.setattr(sqlite, limit, 0)
    path = tmp_path / "short" / "store.sqlite3"
    path.parent.mkdir()
    store = await SqliteStore.open(path)
    channel = await make_channel(store)
    await store.close()
    small = path.read_bytes()
    store = await SqliteStore.open(path)
    await store.execute(Put(channel, (bytes(1_000_000),), NOW))
    await store.close()
    store = await SqliteStore.open(path)
    await store.execute(Put(channel, ("two",), NOW))
    late = log_of(path).read_bytes()
    await store.close()
    assert len(late) + 70_000 < path.stat().st_size - len(small)
    path.write_bytes(small)
    log_of(path).write_bytes(late)
    return path


def log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


async def put_three_and_four(path: Path) -> SqliteStore:
    store = await SqliteStore.open(path)
    await store.execute(Put(1, ("three",), NOW))
    await store.execute(Put(1, ("four",), NOW))  # behind the checkpoint that fails
    return store


async def test_a_log_that_cannot_be_brought_into_its_file_makes_a_new_file_of_both(too_short, caplog):
    store = await put_three_and_four(too_short)
    assert "the damaged one is" in caplog.text
    page = await store.execute(ReadOut(1, 2))
    assert [item.payload for item in page.items] == ["two", "three", "four"]
    await store.close()
    assert len(list(too_short.parent.glob("*.damaged-*-wal"))) == 1
    assert not log_of(too_short).exists()


async def test_without_room_for_a_new_file_nothing_of_it_stays_and_the_old_one_is_used_on(
    too_short, monkeypatch, caplog
):
    def fail(_salvage):
        assert list(too_short.parent.glob("*.rebuilt"))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(salvage._Salvage, "_keep_numbers_apart", fail)
    store = await put_three_and_four(too_short)
    assert "cannot be copied into a new file" in caplog.text
    assert not list(too_short.parent.glob("*.rebuilt*"))
    assert (await store.execute(Put(1, ("five",), NOW))).first == 5
    await store.close()
    store = await SqliteStore.open(too_short)
    assert [item.payload for item in (await store.execute(ReadOut(1, 2))).items] == ["two", "three", "four", "five"]
    await store.close()
