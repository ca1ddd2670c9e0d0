"""A copy is put in the place of a store, and everything else is refused and changes nothing."""

from __future__ import annotations

import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from rondevud.errors import StoreError
from rondevud.records import LoadSessions, OutMessage, Put, ReadOut, Reason, Removal
from rondevud.store.backup import back_up
from rondevud.store.replacement import put_back
from rondevud.store.sqlite import SqliteStore
from tests.unit.store.kit import NOW, make_channel


@pytest.fixture
async def path(tmp_path) -> Path:
    """A store with one message, of which there is a copy beside it, and a second one that is newer than the copy."""
    path = tmp_path / "state" / "store.sqlite3"
    path.parent.mkdir()
    store = await SqliteStore.open(path)
    channel = await make_channel(store)
    await store.execute(Put(channel, ("old",), NOW))
    back_up(path, tmp_path / "copy")
    await store.execute(Put(channel, ("new",), NOW))
    await store.close()
    return path


@pytest.fixture
def copy(tmp_path) -> Path:
    return tmp_path / "copy"


async def held(path: Path) -> list:
    store = await SqliteStore.open(path)
    await store.execute(LoadSessions())
    items = (await store.execute(ReadOut(1, 0))).items
    await store.close()
    return items


async def test_the_copy_takes_the_place_and_what_was_there_is_kept(path, copy):
    kept = put_back(copy, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert await held(kept) == [OutMessage(1, "old"), OutMessage(2, "new")]
    assert await held(path) == [OutMessage(1, "old"), Removal(2, 3, Reason.DAMAGED, None)]
    assert copy.exists()


async def test_a_log_that_a_killed_daemon_left_goes_with_the_store_it_belongs_to(path, copy, tmp_path):
    store = await SqliteStore.open(path)
    await store.execute(Put(1, ("newest",), NOW))
    for end in ("", "-wal"):
        (tmp_path / f"killed{end}").write_bytes(Path(f"{path}{end}").read_bytes())
    await store.close()
    kept = put_back(copy, tmp_path / "killed")
    assert not (tmp_path / "killed-wal").exists()
    assert await held(kept) == [OutMessage(1, "old"), OutMessage(2, "new"), OutMessage(3, "newest")]
    assert await held(tmp_path / "killed") == [OutMessage(1, "old")]


async def test_a_store_that_sqlite_refuses_is_kept_as_it_is(path, copy):
    path.write_bytes(b"nonsense" * 1000)
    kept = put_back(copy, path)
    assert kept.read_bytes() == b"nonsense" * 1000
    assert (await held(path))[0] == OutMessage(1, "old")


async def test_where_there_is_no_store_the_copy_becomes_it(copy, path, tmp_path):
    assert put_back(copy, tmp_path / "elsewhere") is None
    assert await held(tmp_path / "elsewhere") == [OutMessage(1, "old")]


def other_program(copy: Path) -> None:
    copy.unlink()
    with closing(sqlite3.connect(copy)) as connection:
        connection.execute("CREATE TABLE theirs (x)")


def newer(copy: Path) -> None:
    with closing(sqlite3.connect(copy)) as connection:
        connection.execute("PRAGMA user_version = 77")


def damaged(copy: Path) -> None:
    content = bytearray(copy.read_bytes())
    content[4096 : 4096 + 200] = bytes(200)
    copy.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda copy: copy.unlink(), "no such file"),
        (lambda copy: copy.write_text("a letter, " * 1000), "no copy of a store"),
        (lambda copy: copy.write_bytes(b""), "no copy of a store"),
        (other_program, "no copy of a store"),
        (newer, "schema version 77"),
        (damaged, "is damaged"),
        (lambda copy: Path(f"{copy}-wal").write_bytes(b"x"), "a store in use"),
    ],
)
async def test_what_is_no_whole_copy_is_refused_and_nothing_changes(path, copy, spoil, reason):
    spoil(copy)
    before = path.read_bytes()
    with pytest.raises(StoreError, match=reason):
        put_back(copy, path)
    assert path.read_bytes() == before
    assert sorted(file.name for file in path.parent.iterdir()) == ["store.sqlite3", "store.sqlite3-marks"]
