"""Stores of earlier versions, recorded, become ones of this version: nothing is lost, whenever the process dies."""

from __future__ import annotations

import gzip
import logging
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from rondevud import failpoints
from rondevud.accounts import ReadAccounts
from rondevud.errors import StoreError
from rondevud.failed import ReadFailed
from rondevud.records import (
    Acknowledge,
    InGap,
    InMessage,
    LoadSessions,
    OutMessage,
    Put,
    ReadIn,
    ReadOut,
    Reason,
    Remove,
)
from rondevud.store.database import check_integrity, connect, open_database
from rondevud.store.examination import Examination
from rondevud.store.sqlite import SqliteStore
from rondevud.store.upgrades import STEPS, version
from tests.unit.store.kit import NOW

DATA = Path(__file__).parents[2] / "data"

VERSIONS = [1, 2]

LABELS = ["main", "other"]
OUT = [*range(6, 10), *range(13, 41)]
IN = [*range(4, 10), *range(12, 31)]
"""What the recorded store holds in each of two channels: see the README beside it. A gap stands at the end of the inbox."""


ASIDE = [30]
"""Of version 2 on this message is set aside, out of `IN`, and one has been delivered twice."""


def recorded(directory: Path, number: int) -> Path:
    path = directory / "store.sqlite3"
    path.write_bytes(gzip.decompress((DATA / f"store-version-{number}.sqlite3.gz").read_bytes()))
    return path


@pytest.fixture
def old(tmp_path):
    return recorded(tmp_path, 1)


def texts(payloads) -> list[str]:
    return [payload.decode() if isinstance(payload, bytes) else payload for payload in payloads]


def rows_of(path: Path, table: str) -> list:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return connection.execute(f"SELECT * FROM {table}").fetchall()


def version_of(path: Path) -> int:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return version(connection)


async def check(path: Path, was: int = 1) -> None:
    """Open the store as a daemon does, and look for all that was recorded in version `was`."""
    aside = ASIDE if was > 1 else []
    store = await SqliteStore.open(path)
    assert store.moved_aside is None
    channels = (await store.execute(LoadSessions())).channels
    assert [record.label for record in channels] == LABELS
    for record in channels:
        page = await store.execute(ReadOut(record.id, 0))
        held = [item for item in page.items if isinstance(item, OutMessage)]
        assert texts(item.payload for item in held) == [f"out {number}" for number in OUT]
        assert (page.damaged, record.out_count) == ([], len(OUT))
        waiting = (await store.execute(ReadIn(record.id, 0))).items
        assert texts(item.payload for item in waiting[:-1]) == [f"in {number}" for number in IN if number not in aside]
        assert isinstance(waiting[-1], InGap)
        tries = {item.row: item.tries for item in waiting if isinstance(item, InMessage) and item.tries}
        assert tries == ({12: 2} if was > 1 else {})
        failed = (await store.execute(ReadFailed(record.id, 0))).messages
        assert [(message.row, message.payload, message.tries) for message in failed] == [
            (n, f"in {n}".encode(), 3) for n in aside
        ]
        books = await store.execute(ReadAccounts(record.id))
        # Version 1 kept no books: they begin with what it held.
        assert (books.totals.accepted, books.totals.received) == ((40, 30) if was > 1 else (len(OUT), len(IN)))
        assert books.totals.mistakes(record) == []
        assert (books.out_oldest, books.in_oldest) == (1_790_000_000.0 if was > 1 else None, 1_790_000_000.0)
    await store.close()
    with closing(connect(path)) as connection:
        assert (version(connection), check_integrity(connection)) == (len(STEPS), [])


@pytest.mark.parametrize("was", VERSIONS)
async def test_an_older_store_is_upgraded_and_kept_as_it_was(tmp_path, caplog, was):
    old = recorded(tmp_path, was)
    before = {table: rows_of(old, table) for table in ("channels", "outbox", "inbox", "sessions", "producers")}
    await check(old, was)
    kept = old.with_name(f"{old.name}.version-{was}")
    assert version_of(kept) == was
    assert {table: rows_of(kept, table) for table in before} == before
    assert kept.stat().st_mode & 0o777 == 0o600
    assert [record.levelno for record in caplog.records if str(kept) in record.getMessage()] == [logging.WARNING]
    kept.unlink()
    await check(old, was)
    assert not kept.exists()  # only before an upgrade


@pytest.mark.parametrize("was", VERSIONS)
async def test_what_is_upgraded_is_as_a_new_store(tmp_path, was):
    old = recorded(tmp_path, was)
    await check(old, was)
    examination = Examination()
    with closing(connect(old)) as connection:
        while (found := examination.next_slice(connection)) is not None:
            assert found == []
    store = await SqliteStore.open(old)
    (record, _) = (await store.execute(LoadSessions())).channels
    await store.execute(Put(record.id, ("new 1", "new 2", "new 3"), NOW))
    page = await store.execute(ReadOut(record.id, 40))
    assert texts(item.payload for item in page.items) == ["out 40", "new 1", "new 2", "new 3"]
    await store.execute(Remove(record.id, record.next + 1, record.next + 2, Reason.PURGED))
    done = await store.execute(Acknowledge(record.id, record.next + 3))
    books = await store.execute(ReadAccounts(record.id))
    acknowledged = len(OUT) + 2 + (5 if was > 1 else 0)
    assert (done.messages, books.totals.acknowledged, books.totals.damaged) == (len(OUT) + 2, acknowledged, 0)
    await store.close()
    assert [len(rows_of(old, table)) for table in ("outbox", "outbox_packs")] == [
        len(OUT),
        0,
    ]  # those of the other channel


async def test_a_damaged_row_of_a_channel_stays_one(old):
    with closing(sqlite3.connect(old)) as connection:
        connection.execute("UPDATE channels SET out_count = out_count + 1 WHERE label = 'other'")
        connection.commit()
    store = await SqliteStore.open(old)
    found = await store.execute(LoadSessions())
    assert (len(found.damaged), found.channels) == (1, [])
    await store.close()


async def test_a_message_of_version_1_is_still_checked(old):
    with closing(sqlite3.connect(old)) as connection:
        connection.execute("UPDATE outbox SET payload = 'other' WHERE seq = 20 AND channel = 1")
        connection.commit()
    store = await SqliteStore.open(old)
    (first, *_) = (await store.execute(LoadSessions())).channels
    page = await store.execute(ReadOut(first.id, 0))
    assert [(gone.first, gone.next, gone.reason) for gone in page.damaged] == [(20, 21, Reason.DAMAGED)]
    (first, *_) = (await store.execute(LoadSessions())).channels
    assert (await store.execute(ReadAccounts(first.id))).totals.mistakes(first) == []
    await store.close()


@pytest.mark.once
@pytest.mark.parametrize("was", VERSIONS)
@pytest.mark.parametrize("point", ["upgrade.before", "upgrade.within", "upgrade.after"])
async def test_a_process_that_dies_in_the_upgrade_leaves_what_the_next_one_finishes(tmp_path, point, was):
    old = recorded(tmp_path, was)
    program = (
        "import sys; from pathlib import Path; from rondevud.store.database import connect; connect(Path(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, old],
        env={**os.environ, failpoints.VARIABLE: f"{point}:1"}, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    assert version_of(old) == (was + 1 if point.endswith("after") else was)
    assert version_of(old.with_name(f"{old.name}.version-{was}")) == was
    await check(old, was)


def test_a_store_that_cannot_be_kept_is_not_upgraded(old):
    old.with_name(f"{old.name}.version-1").mkdir()
    with pytest.raises(StoreError, match="version-1"):
        open_database(old)
    assert version_of(old) == 1


def test_a_new_store_is_no_upgrade(tmp_path):
    connect(tmp_path / "new.sqlite3").close()
    assert [path.name for path in tmp_path.iterdir() if "version" in path.name] == []


def test_a_newer_store_is_refused(old):
    with closing(sqlite3.connect(old)) as connection:
        connection.execute(f"PRAGMA user_version = {len(STEPS) + 1}")
    with pytest.raises(StoreError, match="schema version"):
        open_database(old)
