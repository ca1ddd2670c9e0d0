"""Mending a store of which nobody else has a hand on: nothing is invented, and nothing that can be read is lost.

What SQLite cannot read any more is left behind: everything else is copied into a new file, which then takes the place of
the old one. What is read and is not as it was written is treated as the daemon itself treats it: a damaged session is set
aside, a damaged message becomes a gap in its place. Then counts are made true.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rondevud.clock import stamp
from rondevud.errors import StoreFailed
from rondevud.records import ChannelRecord, LoadDeclarations, LoadSessions, ReadIn, ReadOut
from rondevud.store.base import Limits
from rondevud.store.database import check_integrity, failure, open_database
from rondevud.store.inbox_table import GAP
from rondevud.store.rows import ChannelRows, ProducerRows, intact, message_intact, set_aside
from rondevud.store.tables import SqlTables

logger = logging.getLogger(__name__)

ROWID_TABLES = ("boots", "channels", "outbox", "inbox", "producers", "garbage", "damaged_rows")
KEYED_TABLES = {
    "meta": "name",
    "sessions": "connection_id",
    "declarations": "kind, name",
    "removals": "channel, first",
    "inbox_holes": "channel, first",
}
"""Tables without a rowid, and their primary keys."""

PROBES = 200_000
"""Rowids that are looked at one by one between two places at which a table cannot be read."""

BATCH = 256
"""Rows that are written at once."""

Note = Callable[[str], None]


def repair(path: Path, note: Note) -> None:
    """Mend the store at `path`, telling `note` each thing that was done, a line each. Raises `StoreError`."""
    connection, moved = open_database(path)
    try:
        if moved is not None:
            note(f"SQLite could not use the database: moved to {moved}; the store is empty now")
            return
        if check_integrity(connection):
            connection = mend_file(path, connection, note)
        connection.execute("BEGIN IMMEDIATE")
        _Rows(connection, note).mend()
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except sqlite3.Error as error:
        raise failure(error) from error
    finally:
        connection.close()


# --- the file ------------------------------------------------------------------------------------------------------


def mend_file(path: Path, connection: sqlite3.Connection, note: Note) -> sqlite3.Connection:
    """Make what SQLite refuses readable, by new indexes or else a new file. Answers the connection to go on with."""
    try:
        connection.execute("REINDEX")
    except sqlite3.DatabaseError as error:
        logger.debug("indexes cannot be made anew: %s", error)
    else:
        if not check_integrity(connection):
            note("made the indexes anew")
            return connection
    return rebuild(path, connection, note)


def rebuild(path: Path, connection: sqlite3.Connection, note: Note) -> sqlite3.Connection:
    """Copy what can be read into a new file that takes the place of `path`; `connection` is closed.

    At no moment is there no store at `path`: until the new file is whole and on the disk the old one stays.
    """
    fresh = path.with_name(f"{path.name}.rebuilt")
    for suffix in ("", "-wal", "-shm"):
        fresh.with_name(fresh.name + suffix).unlink(missing_ok=True)
    # A page with one bad cell must not hide the others.
    connection.execute("PRAGMA cell_size_check = OFF")
    target, _ = open_database(fresh)
    try:
        lost = _Salvage(connection, target).copy()
        _end_log(target)
    finally:
        target.close()
    _end_log(connection)  # a log of the old file must not be there for the new one
    connection.close()
    fresh.replace(path)
    _sync_directory(path.parent)
    note("copied what can be read into a new file; could not read all of: " + (", ".join(lost) or "nothing"))
    return open_database(path)[0]


def _end_log(connection: sqlite3.Connection) -> None:
    """Bring the log into the file and remove it."""
    mode = connection.execute("PRAGMA journal_mode = DELETE").fetchone()[0]
    if mode != "delete":
        raise StoreFailed("the log of the store cannot be closed; somebody else has it open")


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


class _Salvage:
    """Copies every row that can be read from one database to another, an empty one."""

    def __init__(self, source: sqlite3.Connection, target: sqlite3.Connection) -> None:
        self._source = source
        self._target = target

    def copy(self) -> list[str]:
        """Answers the tables of which something could not be read."""
        lost: list[str] = []
        for table in (*KEYED_TABLES, *ROWID_TABLES):
            self._target.execute("BEGIN IMMEDIATE")
            rows = _Readable(self._source, table)
            for batch in _batches(iter(rows)):
                self._write(table, batch)
            self._target.execute("COMMIT")
            if rows.broken:
                lost.append(table)
        self._keep_numbers_apart()
        return lost

    def _write(self, table: str, rows: list[tuple[Any, ...]]) -> None:
        """A row that is whole takes the place of a damaged one with its key, never the other way round."""
        checked = message_intact if table == "outbox" else intact
        unchecked = table in {"meta", "boots", "garbage", "damaged_rows"}
        for row in rows:
            conflict = "REPLACE" if unchecked or checked(row) else "IGNORE"
            marks = ", ".join("?" * len(row))
            with contextlib.suppress(sqlite3.IntegrityError, sqlite3.DataError, UnicodeEncodeError):
                self._target.execute(f"INSERT OR {conflict} INTO {table} VALUES ({marks})", row)  # noqa: S608

    def _keep_numbers_apart(self) -> None:
        """Ids of channels and producers go on above every one that any row names."""
        tables = ("outbox", "removals", "inbox", "producers", "garbage")
        channels = " UNION ALL ".join(f"SELECT max(channel) FROM {table}" for table in tables)  # noqa: S608
        self._target.execute("BEGIN IMMEDIATE")
        for table, others in (("channels", channels), ("producers", "SELECT max(producer) FROM outbox")):
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


# --- rows ----------------------------------------------------------------------------------------------------------


class _Rows:
    """Mends what can be read, inside the transaction of whoever calls."""

    def __init__(self, connection: sqlite3.Connection, note: Note) -> None:
        self._connection = connection
        self._note = note
        self._tables = SqlTables(connection, Limits())

    def mend(self) -> None:
        before = self._set_aside()
        sessions = self._tables.execute(LoadSessions())
        for connection_id in sessions.damaged:
            self._note(f"set the session {connection_id} aside; its peer is told of a gap when it comes back")
        self._tables.execute(LoadDeclarations())
        self._mend_producers()
        for channel in sessions.channels:
            self._mend_channel(channel)
        self._tables.flush()
        for channel in sessions.channels:
            self._recount(channel.id)
            self._raise_producers(channel.id)
        for source, count in sorted((self._set_aside() - before).items()):
            self._note(f"keeps {count} rows of {source} in the table damaged_rows")

    def _set_aside(self) -> Counter[str]:
        """How many rows of each table have been set aside."""
        return Counter(dict(self._connection.execute("SELECT source, count(*) FROM damaged_rows GROUP BY source")))

    def _count(self, table: str, condition: str, *values: int) -> int:
        found = self._connection.execute(f"SELECT count(*) FROM {table} {condition}", values)  # noqa: S608
        return int(found.fetchone()[0])

    # --- channels --------------------------------------------------------------------------------------------------

    def _mend_channel(self, channel: ChannelRecord) -> None:
        """Read both queues to their ends: the store replaces what is damaged or lacking as it goes."""
        self._remove_stray(channel.id)
        number, end = 0, False
        while not end:
            out = self._tables.execute(ReadOut(channel.id, number))
            for removed in out.damaged:
                numbers = f"{removed.first} to {removed.next - 1}"
                self._note(f"the outbox of channel {channel.id}: numbers {numbers} are reported as damaged")
            number, end = out.next, out.end
        row, damaged = 0, 0
        while (page := self._tables.execute(ReadIn(channel.id, row))).items:
            row, damaged = page.next_row, damaged + page.damaged
        if damaged:
            self._note(f"the inbox of channel {channel.id}: {damaged} messages are reported as damaged")

    def _remove_stray(self, number: int) -> None:
        """Set rows aside that are outside of what a queue holds: numbers that have left it, or were never given."""
        state = ChannelRows(self._connection).get(number)
        bounds = {"outbox": ("seq", state.base, state.record.next), "inbox": ("row", state.front, state.next_row)}
        for table, (key, first, behind) in bounds.items():
            rows = self._connection.execute(
                f"SELECT rowid, * FROM {table} WHERE channel = ? AND ({key} < ? OR {key} >= ?)",  # noqa: S608 - constants
                (number, first, behind),
            )
            moved = 0
            while batch := rows.fetchmany(BATCH):
                for row in batch:
                    set_aside(self._connection, table, row[1:])
                moved += len(batch)
            if moved:
                self._connection.execute(
                    f"DELETE FROM {table} WHERE channel = ? AND ({key} < ? OR {key} >= ?)",  # noqa: S608 - constants
                    (number, first, behind),
                )
                self._note(f"removed {moved} rows that are outside of the {table} of channel {number}")

    def _recount(self, number: int) -> None:
        """Make the counts of both queues those of their rows."""
        channels = ChannelRows(self._connection)
        state = channels.get(number, change=True)
        out = self._connection.execute(
            "SELECT count(*), ifnull(sum(length(payload)), 0) FROM outbox WHERE channel = ?", (number,)
        ).fetchone()
        held = self._connection.execute(
            "SELECT ifnull(sum(length(payload)), 0), ifnull(sum(kind >= ?), 0) FROM inbox WHERE channel = ?",
            (GAP, number),
        ).fetchone()
        counts = dict(zip(("out_count", "out_bytes", "in_bytes", "in_gaps"), (*out, *held), strict=True))
        wrong = [name for name, count in counts.items() if getattr(state.record, name) != count]
        if wrong:
            state.change(**counts)
            channels.flush()
            self._note(f"made the counts of channel {number} true: {', '.join(wrong)}")

    # --- producers -------------------------------------------------------------------------------------------------

    def _mend_producers(self) -> None:
        """Put the last number held in place of what a damaged row remembered; set aside what belongs to no channel."""
        producers, now = ProducerRows(self._connection), stamp()
        damaged = [row for row in self._connection.execute("SELECT * FROM producers") if not intact(row)]
        for row in damaged:
            if self._names_a_channel(row):
                producers.replace_damaged(row, row[1], row[2], now)
            else:
                set_aside(self._connection, "producers", row)
                self._connection.execute("DELETE FROM producers WHERE id = ?", (row[0],))
            self._note(f"producer {row[0]} of channel {row[1]} remembers only what its channel holds")

    def _names_a_channel(self, producer: Sequence[Any]) -> bool:
        return isinstance(producer[2], bytes) and bool(self._count("channels", "WHERE id = ?", producer[1]))

    def _raise_producers(self, channel: int) -> None:
        """No producer ends before a message of it that is held."""
        producers = ProducerRows(self._connection)
        behind = self._connection.execute(
            "SELECT producer, max(producer_seq) AS last FROM outbox WHERE channel = ? AND producer > 0 GROUP BY producer"
            " HAVING last > (SELECT last_seq FROM producers WHERE id = producer)",
            (channel,),
        ).fetchall()
        for number, last_seq in behind:
            producers.raise_last(number, last_seq)
            self._note(f"producer {number} goes on behind its message {last_seq}")
        producers.flush()
