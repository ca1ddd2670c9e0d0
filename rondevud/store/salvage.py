"""A new file in place of one that SQLite cannot read in all its parts, with every row that can be read."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from rondevud.errors import StoreFailed
from rondevud.store.database import aside, connect, is_damage
from rondevud.store.packs import InPack, OutPack
from rondevud.store.packs import intact as pack_intact
from rondevud.store.rows import channel_intact, intact, message_intact, received_intact
from rondevud.syncing import sync

logger = logging.getLogger(__name__)

ROWID_TABLES = (
    "boots",
    "channels",
    "outbox",
    "outbox_packs",
    "inbox",
    "inbox_packs",
    "failed",
    "producers",
    "garbage",
    "damaged_rows",
)
KEYED_TABLES = {
    "meta": "name",
    "sessions": "connection_id",
    "declarations": "kind, name",
    "removals": "channel, first",
    "inbox_holes": "channel, first",
}
"""Tables without a rowid, and their primary keys."""

CHECKS: dict[str, Callable[[Sequence[Any]], bool]] = {
    "outbox": message_intact,
    "outbox_packs": lambda row: pack_intact(OutPack._make(row)),
    "inbox": received_intact,
    "inbox_packs": lambda row: pack_intact(InPack._make(row)),
    "channels": channel_intact,
}
"""Whether a row is as it was written, where that is not `intact`."""

SENDERS = "SELECT max(producer) FROM outbox UNION ALL SELECT max(producer) FROM outbox_packs"

PROBES = 20_000
"""Rowids that are looked at one by one between two places at which a table cannot be read."""

BATCH = 256
"""Rows between two signs of life."""

Live: TypeAlias = Callable[[], object]


def _nothing() -> None:
    pass


def rebuild(
    path: Path, connection: sqlite3.Connection, *, keep: Path | None = None, live: Live = _nothing
) -> list[str]:
    """Copy what can be read into a new file that takes the place of `path`, and answer of which tables something is lost.

    `connection` is closed when that succeeded. At no moment is there no store at `path`: until the new file is whole and on
    the disk the old one stays; it gets the second name `keep`. `live` is called now and then.
    """
    fresh = path.with_name(f"{path.name}.rebuilt")
    _remove(fresh)
    # A page with one bad cell must not hide the others.
    connection.execute("PRAGMA cell_size_check = OFF")
    try:
        with contextlib.closing(connect(fresh)) as target:
            target.execute("PRAGMA journal_mode = OFF")  # a copy that was cut short is thrown away
            target.execute("PRAGMA synchronous = OFF")
            lost = _Salvage(connection, target, live).copy()
        sync(fresh)
    except BaseException:
        _remove(fresh)  # it may be what has filled the disk
        raise
    logged = _end_log(connection)  # a log of the old file must not be there for the new one
    if keep is not None:
        os.link(path, keep)
    if logged:
        _move_log(path, keep or aside(path))
    fresh.replace(path)
    connection.close()
    sync(path.parent)
    return lost


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _end_log(connection: sqlite3.Connection) -> bool:
    """Bring the log into the file and remove it; whether it is still there, because the file is too damaged for that."""
    try:
        mode = connection.execute("PRAGMA journal_mode = DELETE").fetchone()[0]
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        return True
    if mode != "delete":
        raise StoreFailed("the log of the store cannot be closed; somebody else has it open")
    return False


def _move_log(path: Path, kept: Path) -> None:
    for suffix in ("-wal", "-shm"):
        log = path.with_name(path.name + suffix)
        if log.exists():
            log.rename(kept.with_name(kept.name + suffix))


class _Salvage:
    """Copies every row that can be read from one database to another, an empty one."""

    def __init__(self, source: sqlite3.Connection, target: sqlite3.Connection, live: Live) -> None:
        self._source = source
        self._target = target
        self._live = live

    def copy(self) -> list[str]:
        """Answers the tables of which something could not be read."""
        lost: list[str] = []
        for table in (*KEYED_TABLES, *ROWID_TABLES):
            self._target.execute("BEGIN IMMEDIATE")
            rows = _Readable(self._source, table)
            for batch in _batches(iter(rows)):
                self._write(table, batch)
                self._live()
            self._target.execute("COMMIT")
            if rows.broken:
                lost.append(table)
        self._keep_numbers_apart()
        return lost

    def _write(self, table: str, rows: list[tuple[Any, ...]]) -> None:
        """A row that is whole takes the place of a damaged one with its key, never the other way round."""
        checked = CHECKS.get(table, intact)
        unchecked = table in {"meta", "boots", "garbage", "damaged_rows"}
        for row in rows:
            conflict = "REPLACE" if unchecked or checked(row) else "IGNORE"
            marks = ", ".join("?" * len(row))
            with contextlib.suppress(sqlite3.IntegrityError, sqlite3.DataError, UnicodeEncodeError):
                self._target.execute(f"INSERT OR {conflict} INTO {table} VALUES ({marks})", row)  # noqa: S608

    def _keep_numbers_apart(self) -> None:
        """Ids of channels and producers go on above every one that any row names."""
        tables = ("outbox", "outbox_packs", "removals", "inbox", "inbox_packs", "failed", "producers", "garbage")
        channels = " UNION ALL ".join(f"SELECT max(channel) FROM {table}" for table in tables)  # noqa: S608
        self._target.execute("BEGIN IMMEDIATE")
        for table, others in (("channels", channels), ("producers", SENDERS)):
            query = f"SELECT max(ifnull(id, 0)) FROM (SELECT max(id) AS id FROM {table} UNION ALL {others})"  # noqa: S608
            highest = self._target.execute(query).fetchone()[0] or 0
            with contextlib.suppress(sqlite3.DatabaseError):
                known = self._source.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)).fetchone()
                highest = max(highest, known[0] if known and isinstance(known[0], int) else 0)
            self._target.execute("DELETE FROM sqlite_sequence WHERE name = ?", (table,))
            self._target.execute("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (table, highest))
        self._target.execute("COMMIT")


def _batches(rows: Iterator[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    batch: list[tuple[Any, ...]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


class _Readable:
    """The rows of a table that can be read, some of them perhaps twice; `broken` says whether there were others."""

    def __init__(self, connection: sqlite3.Connection, table: str) -> None:
        self._connection = connection
        self.broken = False
        self._rows = self._by_key(table) if table in KEYED_TABLES else self._by_rowid(table)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return self._rows

    def _read(self, query: str, *values: int) -> Iterator[tuple[Any, ...]]:
        """Rows up to the first one that cannot be read."""
        try:
            yield from self._connection.execute(query, values)
        except (sqlite3.DatabaseError, MemoryError) as error:  # MemoryError: a damaged length
            if isinstance(error, sqlite3.OperationalError):
                raise
            logger.debug("%s: %s", query, error)
            self.broken = True

    def _by_key(self, table: str) -> Iterator[tuple[Any, ...]]:
        """From the beginning and, where that ends early, from the end."""
        columns = KEYED_TABLES[table].split(", ")
        yield from self._read(f"SELECT * FROM {table} ORDER BY {', '.join(columns)}")  # noqa: S608 - constants
        if self.broken:
            backwards = ", ".join(f"{column} DESC" for column in columns)
            yield from self._read(f"SELECT * FROM {table} ORDER BY {backwards}")  # noqa: S608 - constants

    def _by_rowid(self, table: str) -> Iterator[tuple[Any, ...]]:
        """From the beginning; where that ends early also from the end, and one by one what lies between."""
        rows = f"SELECT rowid, * FROM {table} NOT INDEXED"  # noqa: S608 - a constant
        last: int | None = None
        first: int | None = None
        for number, *row in self._read(f"{rows} ORDER BY rowid"):
            last = number
            yield tuple(row)
        if not self.broken:
            return
        for number, *row in self._read(f"{rows} ORDER BY rowid DESC"):
            if last is not None and number <= last:
                break
            first = number
            yield tuple(row)
        if last is None:
            last = 0 if first is None else max(0, first - PROBES)
        for number in range(last + 1, min(first or last + PROBES, last + PROBES)):
            for _, *row in self._read(f"{rows} WHERE rowid = ?", number):
                yield tuple(row)
