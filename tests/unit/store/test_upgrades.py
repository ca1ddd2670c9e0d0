"""A store of version 1, recorded, becomes one of version 2: nothing is lost, whenever the process dies."""

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
from rondevud.records import Acknowledge, InGap, LoadSessions, OutMessage, ReadIn, ReadOut, Reason
from rondevud.store.database import check_integrity, connect, open_database
from rondevud.store.examination import Examination
from rondevud.store.sqlite import SqliteStore
from rondevud.store.upgrades import STEPS, version

RECORDED = Path(__file__).parents[2] / "data" / "store-version-1.sqlite3.gz"

LABELS = ["main", "other"]
OUT = [*range(6, 10), *range(13, 41)]
IN = [*range(4, 10), *range(12, 31)]
"""What the recorded store holds in each of two channels: see the README beside it. A gap stands at the end of the inbox."""


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "store.sqlite3"
    path.write_bytes(gzip.decompress(RECORDED.read_bytes()))
    return path


def texts(payloads) -> list[str]:
    return [payload.decode() if isinstance(payload, bytes) else payload for payload in payloads]


def rows_of(path: Path, table: str) -> list:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return connection.execute(f"SELECT * FROM {table}").fetchall()


def version_of(path: Path) -> int:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return version(connection)


async def check(path: Path, labels: list[str] = LABELS) -> None:
    """Open the store as a daemon does, and look for all that was recorded."""
    store = await SqliteStore.open(path)
    assert store.moved_aside is None
    channels = (await store.execute(LoadSessions())).channels
    assert [record.label for record in channels] == labels
    for record in channels:
        page = await store.execute(ReadOut(record.id, 0))
        held = [item for item in page.items if isinstance(item, OutMessage)]
        assert texts(item.payload for item in held) == [f"out {number}" for number in OUT]
        assert (page.damaged, record.out_count) == ([], len(OUT))
        waiting = (await store.execute(ReadIn(record.id, 0))).items
        assert texts(item.payload for item in waiting[:-1]) == [f"in {number}" for number in IN]
        assert isinstance(waiting[-1], InGap)
        books = await store.execute(ReadAccounts(record.id))
        assert (books.totals.accepted, books.totals.received) == (len(OUT), len(IN))
        assert books.totals.mistakes(record) == []
        assert (books.out_oldest, books.in_oldest) == (None, 1_790_000_000.0)
    await store.close()
    with closing(connect(path)) as connection:
        assert (version(connection), check_integrity(connection)) == (len(STEPS), [])


async def test_a_store_of_version_1_is_upgraded_and_kept_as_it_was(old, caplog):
    before = {table: rows_of(old, table) for table in ("channels", "outbox", "inbox", "sessions", "producers")}
    await check(old)
    kept = old.with_name(f"{old.name}.version-1")
    assert version_of(kept) == 1
    assert {table: rows_of(kept, table) for table in before} == before
    assert kept.stat().st_mode & 0o777 == 0o600
    assert [record.levelno for record in caplog.records if str(kept) in record.getMessage()] == [logging.WARNING]
    kept.unlink()
    await check(old)
    assert not kept.exists()  # only before an upgrade


async def test_what_is_upgraded_is_as_a_new_store(old):
    await check(old)
    examination = Examination()
    with closing(connect(old)) as connection:
        while (found := examination.next_slice(connection)) is not None:
            assert found == []
    store = await SqliteStore.open(old)
    (record, _) = (await store.execute(LoadSessions())).channels
    done = await store.execute(Acknowledge(record.id, record.next))
    books = await store.execute(ReadAccounts(record.id))
    assert (done.messages, books.totals.acknowledged, books.totals.damaged) == (len(OUT), len(OUT), 0)
    await store.close()


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
@pytest.mark.parametrize("point", ["upgrade.before", "upgrade.within", "upgrade.after"])
async def test_a_process_that_dies_in_the_upgrade_leaves_what_the_next_one_finishes(old, point):
    program = (
        "import sys; from pathlib import Path; from rondevud.store.database import connect; connect(Path(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, old],
        env={**os.environ, failpoints.VARIABLE: f"{point}:1"}, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    assert version_of(old) == (2 if point.endswith("after") else 1)
    assert version_of(old.with_name(f"{old.name}.version-1")) == 1
    await check(old)


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
