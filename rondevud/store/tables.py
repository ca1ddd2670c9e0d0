"""The operations in SQLite: sessions, declarations, channels and producers here, the queues in their own modules."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

from rondevud import accounts, failed, failpoints, records
from rondevud.errors import StoreConflict
from rondevud.records import ChannelRecord, Lacking, Operation, PeerKind, ProducerRecord, Role, SessionRecord
from rondevud.store.base import Limits, check_numbers
from rondevud.store.database import damage
from rondevud.store.examination import ExamineSlice, Finding
from rondevud.store.failed_table import FailedTable
from rondevud.store.inbox_table import InboxTable
from rondevud.store.marks import Mark, Marks
from rondevud.store.outbox_table import OutboxTable
from rondevud.store.rows import (
    CHANNEL_COLUMNS,
    ChannelRows,
    ChannelState,
    ProducerRows,
    channel_of_row,
    intact,
    matching,
    sealed,
    set_aside,
)

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

GARBAGE_TABLES = {
    "outbox": "seq",
    "outbox_packs": "seq",
    "inbox": "row",
    "inbox_packs": "row",
    "inbox_holes": "first",
    "removals": "first",
    "failed": "row",
}
"""Tables of a channel's queues, and by which column they are counted."""

SMALL_TABLES = ("sessions", "channels", "declarations", "producers")
"""Tables of which no row may go unnoticed; they are looked through at each start."""

READS: frozenset[type[Operation[Any]]] = frozenset(
    {
        records.LoadSessions,
        records.LoadDeclarations,
        records.ReadOut,
        records.ReadIn,
        records.FindExpiry,
        accounts.ReadAccounts,
        failed.ReadFailed,
        ExamineSlice,
    }
)
"""Operations that write only when they meet damage."""


CLOSED, BLOCKED = 1, 2
"""Bits of the column ``closed``."""


def _session_row(session: SessionRecord) -> tuple[Any, ...]:
    return sealed(
        (
            session.connection_id,
            str(session.role),
            session.declaration,
            session.session,
            session.token,
            session.link,
            int(session.welcomed),
            int(session.contacted),
            session.peer_name,
            session.closed * CLOSED | session.blocked * BLOCKED,
            float(session.absent),
            str(session.kind),
            session.answerer,
            session.target,
        )
    )


def _session_of_row(row: Sequence[Any]) -> SessionRecord:
    connection_id, role, declaration, session, token, link, welcomed, contacted, peer_name, closed, absent = row[:11]
    kind, answerer, target, _ = row[11:]
    return SessionRecord(
        connection_id,
        Role(role),
        declaration,
        session,
        token,
        link,
        bool(welcomed),
        bool(contacted),
        peer_name,
        bool(closed & CLOSED),
        absent,
        PeerKind(kind),
        answerer,
        target,
        bool(closed & BLOCKED),
    )


def _lacking(known: ChannelState, mark: Mark) -> Lacking:
    """What a channel knows less than its mark."""
    record, place = known.record, known.mark
    rows = max(0, mark.next_row - place.next_row)
    again = min(record.in_count, max(0, mark.taken - place.taken))
    what = (record.connection_id, record.label, record.id)
    return Lacking(*what, place.next, max(place.next, mark.next), rows, again)


class SqlTables:
    """Operations on one connection, inside the transaction of whoever calls.

    `execute` raises `StoreConflict` before it changes anything; after any other exception the transaction is to be rolled
    back and `clear` called. `flush` comes before each commit and `committed` after it.
    """

    def __init__(self, connection: sqlite3.Connection, limits: Limits, marks: Marks) -> None:
        self._connection = connection
        self._limits = limits
        self._marks = marks
        self._channels = ChannelRows(connection)
        self._producers = ProducerRows(connection)
        self._outbox = OutboxTable(connection, self._channels, self._producers, limits)
        self._inbox = InboxTable(connection, self._channels, limits)
        self._failed = FailedTable(connection, self._channels, self._inbox, limits)
        self._has_garbage = True
        self._handlers: dict[type[Operation[Any]], Callable[[Any], Any]] = {
            records.SaveSession: self._save_session,
            records.DeleteSession: self._delete_session,
            records.LoadSessions: self._load_sessions,
            records.SaveDeclaration: self._save_declaration,
            records.DeleteDeclaration: self._delete_declaration,
            records.LoadDeclarations: self._load_declarations,
            records.CreateChannel: self._create_channel,
            records.SetChannelOptions: self._set_channel_options,
            records.SetEpoch: self._set_epoch,
            records.MarkAttached: self._mark_attached,
            records.Put: self._outbox.put,
            records.Acknowledge: self._outbox.acknowledge,
            records.Expire: self._outbox.expiry.expire,
            records.Trim: self._outbox.trim,
            records.Remove: self._outbox.remove,
            records.ReadOut: self._outbox.reader.read_out,
            records.FindExpiry: self._outbox.expiry.find_expiry,
            records.Receive: self._inbox.receive,
            records.ReadIn: self._inbox.reader.read_in,
            records.AckIn: self._inbox.ack_in,
            records.TrimIn: self._inbox.trim_in,
            failed.CountTry: self._failed.count_try,
            failed.SetAside: self._failed.set_aside,
            failed.ReadFailed: self._failed.read,
            failed.FreeFailed: self._failed.free,
            accounts.ReadAccounts: self._read_accounts,
            records.OpenProducer: self._open_producer,
            records.ForgetProducers: self._forget_producers,
            ExamineSlice: self._examine_slice,
        }

    def trust(self) -> None:
        """The indexes are new: what they do not lead to lacks."""
        self._outbox.reader.trusted = self._inbox.reader.trusted = True

    def execute(self, operation: Operation[Result]) -> Result:
        """Carry out one operation."""
        result = self._handlers[type(operation)](operation)
        failpoints.hit_operation("write", operation)
        return cast("Result", result)

    def cut_packs(self, number: int) -> None:
        """Afterwards no pack of a channel is partly outside of what its queue holds."""
        state = self._channels.get(number)
        self._outbox.rows.packs.cut(number, state.base, state.record.next)
        self._inbox.rows.packs.cut(number, state.front, state.next_row)

    def moved(self) -> int:
        """Payload bytes written and read since the last `flush` or `clear`."""
        return self._outbox.rows.moved + self._inbox.rows.moved

    def flush(self) -> None:
        """Write what is kept in memory; nothing else is executed before the commit."""
        self._channels.flush()
        self._producers.flush()
        self._outbox.rows.moved = self._inbox.rows.moved = 0

    def committed(self) -> None:
        """Leave marks of what has been committed."""
        self._marks.write(state.mark for state in self._channels.take_flushed())

    def shrink(self) -> None:
        """Bound the memory this takes, after a commit."""
        self._channels.shrink()
        self._producers.shrink()

    def clear(self) -> None:
        """Forget what is kept in memory, after a rollback."""
        self._channels.clear()
        self._producers.clear()
        self._outbox.clear()
        self._inbox.clear()
        self._outbox.rows.moved = self._inbox.rows.moved = 0
        self._has_garbage = True

    # --- sessions and declarations ---------------------------------------------------------------------------------

    def _save_session(self, operation: records.SaveSession) -> None:
        self._connection.execute(
            "INSERT OR REPLACE INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            _session_row(operation.session),
        )

    def _delete_session(self, operation: records.DeleteSession) -> None:
        connection_id = operation.connection_id
        self._connection.execute("DELETE FROM sessions WHERE connection_id = ?", (connection_id,))
        channels = self._connection.execute("SELECT id FROM channels WHERE connection_id = ?", (connection_id,))
        for (number,) in channels.fetchall():
            self._drop_channel(number)

    def _load_sessions(self, _operation: records.LoadSessions) -> records.Sessions:
        self._channels.flush()
        self._check_pages()
        damaged: set[Any] = set()  # a damaged id may be anything
        sessions: dict[str, SessionRecord] = {}
        channels: list[ChannelRecord] = []
        for row in self._connection.execute("SELECT * FROM sessions").fetchall():
            if intact(row):
                sessions[row[0]] = _session_of_row(row)
            else:
                damaged.add(row[0])
        rows = self._connection.execute(
            f"SELECT {CHANNEL_COLUMNS} FROM channels ORDER BY id"  # noqa: S608 - a constant
        ).fetchall()
        damaged.update(row[1] for row in rows if row[1] not in sessions or not intact(row))
        states = [channel_of_row(row) for row in rows if row[1] not in damaged]
        lacking = self._catch_up(states, {row[0] for row in rows})
        channels = [state.record for state in states]
        for connection_id in damaged:
            self._set_session_aside(connection_id, [row[0] for row in rows if row[1] == connection_id])
        kept = [sessions[connection_id] for connection_id in sorted(sessions.keys() - damaged)]
        return records.Sessions(kept, channels, sorted(str(connection_id) for connection_id in damaged), lacking)

    def _check_pages(self) -> None:
        """Look for damage that hides rows of a small table: SQLite reads what is left as if it were all. Raises `damage`."""
        for table in SMALL_TABLES:
            for (found,) in self._connection.execute(f"PRAGMA integrity_check({table})").fetchall():
                if found != "ok" and " value in " not in found:  # a wrong value is what the row's checksum is for
                    raise damage(f"table {table}: {found}")

    def _catch_up(self, states: list[ChannelState], there: set[Any]) -> tuple[Lacking, ...]:
        """Compare channels with their marks; numbers that lack are removed as `damaged`, rows of the inbox left out."""
        marks = self._marks.read()
        lacking: list[Lacking] = []
        for index, known in enumerate(states):
            number, place = known.record.id, known.mark
            mark = marks.get(number, place)
            if mark == place and number in marks:
                continue
            state = states[index] = self._channels.get(number, change=True)  # so that it is marked
            if mark.next > place.next:
                self._outbox.skip(state, mark.next)
            if mark.next_row > place.next_row:
                self._inbox.skip(state, mark.next_row)
            if mark.next > place.next or mark.next_row > place.next_row or mark.taken > place.taken:
                lacking.append(_lacking(known, mark))
        for number in marks.keys() - there:
            self._marks.forget(number)
            mark = marks[number]
            lacking.append(Lacking("", "", number, 1, mark.next, mark.next_row - 1, 0))
        for lack in lacking:
            logger.warning("the store went back: %s", lack.as_text())
        return tuple(lacking)

    def _set_session_aside(self, connection_id: Any, channels: list[int]) -> None:
        """Move the rows of a session and of its channels to ``damaged_rows``; what their queues hold stays where it is."""
        logger.error("a row of session %r or of one of its channels is damaged; set aside", connection_id)
        condition, key = matching("connection_id", connection_id)
        for row in self._connection.execute(f"SELECT * FROM sessions WHERE {condition}", (key,)).fetchall():  # noqa: S608
            set_aside(self._connection, "sessions", row)
        self._connection.execute(f"DELETE FROM sessions WHERE {condition}", (key,))  # noqa: S608
        for number in channels:
            for row in self._connection.execute("SELECT * FROM channels WHERE id = ?", (number,)).fetchall():
                set_aside(self._connection, "channels", row)
            self._marks.forget(number)
            self._channels.delete(number)

    def _save_declaration(self, operation: records.SaveDeclaration) -> None:
        kind, name, options = operation.declaration
        self._connection.execute(
            "INSERT OR REPLACE INTO declarations VALUES (?, ?, ?, ?)", sealed((str(kind), name, options))
        )

    def _delete_declaration(self, operation: records.DeleteDeclaration) -> None:
        self._connection.execute(
            "DELETE FROM declarations WHERE kind = ? AND name = ?", (str(operation.kind), operation.name)
        )

    def _load_declarations(self, _operation: records.LoadDeclarations) -> list[records.Declaration]:
        declarations: list[records.Declaration] = []
        for row in self._connection.execute("SELECT * FROM declarations ORDER BY kind, name").fetchall():
            if intact(row):
                declarations.append(records.Declaration(records.DeclarationKind(row[0]), row[1], row[2]))
                continue
            logger.error("the declaration of %s %r is damaged; set aside", row[0], row[1])
            set_aside(self._connection, "declarations", row)
            kind, name = matching("kind", row[0]), matching("name", row[1])
            self._connection.execute(f"DELETE FROM declarations WHERE {kind[0]} AND {name[0]}", (kind[1], name[1]))  # noqa: S608
        return declarations

    def _examine_slice(self, operation: ExamineSlice) -> list[Finding] | None:
        self._channels.flush()
        self._producers.flush()
        return operation.examination.next_slice(self._connection)

    # --- channels --------------------------------------------------------------------------------------------------

    def _create_channel(self, operation: records.CreateChannel) -> ChannelRecord:
        connection_id, label = operation.connection_id, operation.label
        if not self._exists("SELECT 1 FROM sessions WHERE connection_id = ?", connection_id):
            raise StoreConflict(f"no session {connection_id}")
        if self._exists("SELECT 1 FROM channels WHERE connection_id = ? AND label = ?", connection_id, label):
            raise StoreConflict(f"{connection_id} has a channel {label!r} already")
        record = ChannelRecord(0, connection_id, label, operation.durability, operation.options, operation.epoch)
        return self._channels.insert(record)

    def _exists(self, query: str, *values: str) -> bool:
        return self._connection.execute(query, values).fetchone() is not None

    def _set_channel_options(self, operation: records.SetChannelOptions) -> None:
        self._channels.get(operation.channel, change=True).change(options=operation.options)

    def _set_epoch(self, operation: records.SetEpoch) -> None:
        channel = self._channels.get(operation.channel, change=True)
        check_numbers(operation.floor)
        self._outbox.raise_next(channel, operation.floor)
        channel.change(epoch=operation.epoch, acked=0, acked_count=0)
        if operation.reopen:
            channel.change(out_closed=0, in_closed=2 if channel.record.in_closed else 0)

    def _drop_channel(self, number: int) -> None:
        """Delete a channel and its producers; the rows of its queues go later, in slices, by `collect`."""
        self._marks.forget(number)
        self._channels.delete(number)
        self._producers.delete_of(number)
        self._connection.execute("INSERT INTO garbage VALUES (?)", (number,))
        self._has_garbage = True

    def _mark_attached(self, operation: records.MarkAttached) -> None:
        self._channels.get(operation.channel, change=True).change(attached=True)

    def _read_accounts(self, operation: accounts.ReadAccounts) -> accounts.Accounts:
        channel = self._channels.get(operation.channel)
        record = channel.record
        counts = (record.out_count, record.in_count, record.in_gaps, record.failed)
        ages = (self._outbox.oldest(channel), self._inbox.oldest(channel))
        return accounts.Accounts(replace(channel.totals), *counts, *ages)

    def has_garbage(self) -> bool:
        """Whether `collect` may have something to do."""
        return self._has_garbage

    def collect(self) -> None:
        """Remove one slice of what deleted channels left behind."""
        left = self._limits.slice_rows
        for (number,) in self._connection.execute("SELECT channel FROM garbage ORDER BY channel LIMIT 100").fetchall():
            for table in GARBAGE_TABLES:
                left -= self._collect_from(table, number, left)
            if left <= 0:
                return
            self._connection.execute("DELETE FROM garbage WHERE channel = ?", (number,))
        self._has_garbage = self._connection.execute("SELECT 1 FROM garbage LIMIT 1").fetchone() is not None

    def _collect_from(self, table: str, channel: int, limit: int) -> int:
        key = GARBAGE_TABLES[table]
        return self._connection.execute(
            f"DELETE FROM {table} WHERE channel = ?1 AND {key} IN"  # noqa: S608 - constants
            f" (SELECT {key} FROM {table} WHERE channel = ?1 ORDER BY {key} LIMIT ?2)",
            (channel, max(0, limit)),
        ).rowcount

    # --- producers -------------------------------------------------------------------------------------------------

    def _open_producer(self, operation: records.OpenProducer) -> ProducerRecord:
        self._channels.get(operation.channel)
        return self._producers.open(operation.channel, operation.name, operation.stamp)

    def _forget_producers(self, operation: records.ForgetProducers) -> int:
        return self._producers.forget(operation.seconds, operation.stamp, operation.keep, self._limits.slice_rows)
