"""A wrong letter in the schema is set right, and costs nothing; what is not certainly ours is never touched."""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from rondevud.errors import StoreError
from rondevud.records import OutMessage, Put, ReadOut
from rondevud.store import schema_text
from rondevud.store.database import check_integrity, connect, open_database
from rondevud.store.sqlite import SqliteStore
from rondevud.store.upgrades import STEPS
from tests.unit.store.kit import NOW, make_channel
from tests.unit.store.mending import mend

TEXTS = ("one", "two", "three")


@pytest.fixture
async def filled(path: Path) -> Path:
    path.parent.mkdir()
    store = await SqliteStore.open(path)
    await store.execute(Put(await make_channel(store), TEXTS, NOW))
    await store.close()
    return path


async def check(path: Path) -> None:
    """All that was stored is there."""
    store = await SqliteStore.open(path)
    assert store.moved_aside is None
    items = (await store.execute(ReadOut(1, 0))).items
    await store.close()
    assert [item.payload for item in items if isinstance(item, OutMessage)] == list(TEXTS)
    with closing(connect(path)) as connection:
        assert check_integrity(connection) == []


def rows(path: Path) -> list[tuple]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        return connection.execute("SELECT rowid, * FROM sqlite_schema").fetchall()


def change(path: Path, statement: str, *values) -> bytes:
    """Change the table of the schema; answers what the file is then."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(statement, values)
    assert not path.with_name(f"{path.name}-wal").exists()
    return path.read_bytes()


def flip(path: Path, text: bytes, place: int, bit: int) -> None:
    content = bytearray(path.read_bytes())
    assert content.count(text) == 1
    content[content.index(text) + place] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize(
    "entry", [entry for entry in schema_text.expected() if entry.sql], ids=lambda entry: entry.name
)
async def test_a_flipped_bit_of_what_a_table_is_called_and_holds_is_set_right(filled, entry, caplog):
    before = rows(filled)
    random = Random(entry.rowid)
    text = entry.sql.encode()
    for place in [0, 7, len(text) - 1, *(random.randrange(len(text)) for _ in range(3))]:
        flip(filled, text, place, random.randrange(8))
        caplog.clear()
        await check(filled)
        assert rows(filled) == before
        told = [record for record in caplog.records if "set its schema right" in record.getMessage()]
        assert [record.levelno for record in told] == [logging.ERROR]
        assert told[0].getMessage().endswith(f" at {entry.name}")


@pytest.mark.parametrize("column", ["type", "name", "tbl_name"])
@pytest.mark.parametrize("value", ["x", b"\xff\xfe", None, 7])
async def test_the_short_columns_are_set_right_too(filled, column, value):
    before = rows(filled)
    for entry in (before[2], before[8], before[22]):
        change(filled, f"UPDATE sqlite_schema SET {column} = ? WHERE rowid = ?", value, entry[0])
        await check(filled)
        assert rows(filled) == before


async def test_a_table_that_begins_elsewhere_is_led_back(filled):
    before = rows(filled)
    for place, (_, _, _, _, root, _) in enumerate(before):
        for bit in range(place % 4, 4, 3):
            change(filled, "UPDATE sqlite_schema SET rootpage = ? WHERE rootpage = ?", root ^ 1 << bit, root)
            if len({row[4] for row in rows(filled)}) == len(before):
                await check(filled)
                assert rows(filled) == before
            change(filled, "DELETE FROM sqlite_schema")
            for row in before:
                change(
                    filled,
                    "INSERT INTO sqlite_schema (rowid, type, name, tbl_name, rootpage, sql) VALUES (?, ?, ?, ?, ?, ?)",
                    *row,
                )


async def test_a_schema_that_is_damaged_in_the_log_is_set_right(filled, tmp_path):
    """The page of the schema is in the log, and a copy of both is what a killed daemon leaves."""
    with closing(connect(filled)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(
            "UPDATE sqlite_schema SET sql = replace(sql, 'payload', 'pbyload') WHERE name = 'outbox_packs'"
        )
        copy = tmp_path / "copy.sqlite3"
        for end in ("", "-wal"):
            copy.with_name(copy.name + end).write_bytes(filled.with_name(filled.name + end).read_bytes())
    await check(copy)


async def test_a_store_whose_tables_begin_elsewhere_is_set_right(filled):
    """It came from an earlier version, or somebody has compacted it."""
    with closing(sqlite3.connect(filled, isolation_level=None)) as connection:
        connection.execute("VACUUM")
    before = rows(filled)
    assert [row[4] for row in before] != [entry.root for entry in schema_text.expected()]
    for name in ("channels", "failed", "inbox_packs"):
        change(filled, "UPDATE sqlite_schema SET sql = replace(sql, 'INTEGER', 'INTEHER') WHERE name = ?", name)
        await check(filled)
        assert rows(filled) == before


async def test_more_than_one_wrong_row_is_not_guessed_at(filled):
    spoilt = change(filled, "UPDATE sqlite_schema SET sql = replace(sql, 'payload', 'pbyload')")
    store = await SqliteStore.open(filled)
    moved = store.moved_aside
    await store.close()
    assert moved is not None
    assert moved.read_bytes() == spoilt


@pytest.mark.parametrize("pragma", ["application_id = 7", f"user_version = {len(STEPS) + 1}", "user_version = 2"])
def test_a_file_that_is_not_ours_or_of_another_version_is_never_touched(filled, pragma):
    with closing(sqlite3.connect(filled, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA {pragma}")
    spoilt = change(filled, "UPDATE sqlite_schema SET sql = replace(sql, 'payload', 'pbyload') WHERE name = 'outbox'")
    assert schema_text.mend(filled, 1.0) == []
    assert filled.read_bytes() == spoilt
    log = filled.with_name(f"{filled.name}-wal")
    assert not log.exists() or log.stat().st_size == 0


def test_a_newer_file_with_a_damaged_schema_stays_where_it_is(filled):
    with closing(sqlite3.connect(filled, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA user_version = {len(STEPS) + 1}")
    spoilt = change(filled, "UPDATE sqlite_schema SET sql = replace(sql, 'payload', 'pbyload') WHERE name = 'outbox'")
    with pytest.raises(StoreError, match="schema version"):
        open_database(filled)
    assert filled.read_bytes() == spoilt


async def test_a_repair_tells_of_it(filled):
    change(filled, "UPDATE sqlite_schema SET sql = replace(sql, 'payload', 'pbyload') WHERE name = 'outbox'")
    assert mend(filled) == ["set the text of the schema right at outbox"]
    assert mend(filled) == []
    await check(filled)


def test_a_file_in_order_is_left_as_it_is(filled):
    before = filled.read_bytes()
    assert schema_text.mend(filled, 1.0) == []
    assert filled.read_bytes() == before


async def test_what_somebody_has_added_does_not_matter(filled):
    with closing(sqlite3.connect(filled, isolation_level=None)) as connection:
        connection.execute("CREATE VIEW waiting AS SELECT count(*) FROM outbox")
    await check(filled)
    assert len(rows(filled)) == len(schema_text.expected()) + 1
