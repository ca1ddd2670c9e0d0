"""Mending a store of which nobody else has a hand on: nothing is invented, and nothing that can be read is lost.

What SQLite cannot read any more is left behind: everything else is copied into a new file, which then takes the place of
the old one. What is read and is not as it was written is treated as the daemon itself treats it: a damaged session is set
aside, a damaged message becomes a gap in its place. Then counts are made true.
"""

from __future__ import annotations

import logging
import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rondevud.clock import stamp
from rondevud.failed import ReadFailed
from rondevud.records import ChannelRecord, LoadDeclarations, LoadSessions, ReadIn, ReadOut
from rondevud.store.base import Limits
from rondevud.store.database import check_integrity, connect, failure, open_database
from rondevud.store.inbox_rows import GAP
from rondevud.store.marks import Marks
from rondevud.store.rows import LAST_SENT, ChannelRows, ProducerRows, intact, set_aside
from rondevud.store.salvage import rebuild
from rondevud.store.tables import SqlTables

logger = logging.getLogger(__name__)

BATCH = 256
"""Rows that are held in memory at once."""

Note = Callable[[str], None]


def repair(path: Path, note: Note) -> None:
    """Mend the store at `path`, telling `note` each thing that was done, a line each. Raises `StoreError`."""
    connection, moved = open_database(path, note=note)
    try:
        if moved is not None:
            note(f"SQLite could not use the database: moved to {moved}; the store is empty now")
            return
        if check_integrity(connection):
            connection = mend_file(path, connection, note)
        marks = Marks(path)
        connection.execute("BEGIN IMMEDIATE")
        rows = _Rows(connection, note, marks)
        rows.mend()
        connection.execute("COMMIT")
        rows.mended()
        marks.close()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except (sqlite3.Error, OSError) as error:
        raise failure(error) from error
    finally:
        connection.close()


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
    lost = rebuild(path, connection)
    note("copied what can be read into a new file; could not read all of: " + (", ".join(lost) or "nothing"))
    return connect(path)


class _Rows:
    """Mends what can be read, inside the transaction of whoever calls."""

    def __init__(self, connection: sqlite3.Connection, note: Note, marks: Marks) -> None:
        self._connection = connection
        self._note = note
        self._tables = SqlTables(connection, Limits(), marks)
        self._tables.trust()  # SQLite has just found nothing wrong with the file

    def mended(self) -> None:
        """After the commit."""
        self._tables.committed()

    def mend(self) -> None:
        before = self._set_aside()
        sessions = self._tables.execute(LoadSessions())
        for connection_id in sessions.damaged:
            self._note(f"set the session {connection_id} aside; its peer is told of a gap when it comes back")
        for lack in sessions.lacking:
            self._note(f"the store went back: {lack.as_text()}; its peer is told")
        self._tables.flush()  # a queue that went back holds what is there of its later numbers
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
        self._mend_failed(channel.id)
        if damaged:
            self._note(f"the inbox of channel {channel.id}: {damaged} messages are reported as damaged")

    def _mend_failed(self, number: int) -> None:
        """Read what is set aside to its end: the store takes out what is damaged."""
        row = 0
        while row := self._tables.execute(ReadFailed(number, row)).next_row:
            pass

    def _remove_stray(self, number: int) -> None:
        """Set rows aside that are outside of what a queue holds: numbers that have left it, or were never given."""
        state = ChannelRows(self._connection).get(number)
        self._tables.cut_packs(number)
        for table, key, first, behind in state.bounds():
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
            "SELECT sum(messages), sum(bytes) FROM (SELECT count(*) AS messages, ifnull(sum(length(payload)), 0) AS bytes"
            " FROM outbox WHERE channel = ?1 UNION ALL SELECT ifnull(sum(messages), 0), ifnull(sum(size), 0)"
            " FROM outbox_packs WHERE channel = ?1)",
            (number,),
        ).fetchone()
        held = self._connection.execute(
            "SELECT ifnull(sum(length(payload)), 0) + (SELECT ifnull(sum(size), 0) FROM inbox_packs WHERE channel = ?2),"
            " ifnull(sum(kind >= ?1), 0) FROM inbox WHERE channel = ?2",
            (GAP, number),
        ).fetchone()
        aside = self._connection.execute(
            "SELECT count(*), ifnull(sum(length(payload)), 0) FROM failed WHERE channel = ?", (number,)
        ).fetchone()
        names = ("out_count", "out_bytes", "in_bytes", "in_gaps", "failed", "failed_bytes")
        counts = dict(zip(names, (*out, *held, *aside), strict=True))
        wrong = [name for name, count in counts.items() if getattr(state.record, name) != count]
        if wrong:
            state.change(**counts)
            self._note(f"made the counts of channel {number} true: {', '.join(wrong)}")
        if state.totals.mistakes(state.record):
            state.totals.settle(state.record)
            self._note(f"made the books of channel {number} add up")
        channels.flush()

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
            f"SELECT producer, max(last) AS last FROM ({LAST_SENT}) WHERE producer > 0 GROUP BY producer"  # noqa: S608
            " HAVING last > (SELECT last_seq FROM producers WHERE id = producer)",
            (channel,),
        ).fetchall()
        for number, last_seq in behind:
            producers.raise_last(number, last_seq)
            self._note(f"producer {number} goes on behind its message {last_seq}")
        producers.flush()
