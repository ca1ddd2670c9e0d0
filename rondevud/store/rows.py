"""Rows of the SQLite store: checksums, and the rows of channels and producers that stay in memory between commits.

SQLite does not notice a flipped bit, so every row carries a CRC-32 of its fields. `ChannelRows` and `ProducerRows` are
caches that write changed rows back in `flush`, once per transaction; after a rollback `clear` forgets them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sqlite3
import struct
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Any
from zlib import crc32

from rondevud.accounts import Totals
from rondevud.errors import StoreConflict
from rondevud.records import ChannelRecord, Durability, ProducerRange, ProducerRecord, Put, Stamp
from rondevud.store.base import merge_rejected
from rondevud.store.marks import Mark

logger = logging.getLogger(__name__)

CACHED_ROWS = 20_000
"""Rows of channels, and as many of producers, that are kept in memory between transactions."""

_MESSAGE = struct.Struct("<qqbqqqdd")
_DATED = struct.Struct("<qqbqqqddd")
_RECEIVED = struct.Struct("<qqqbqdH")


def fields_crc(fields: Sequence[Any]) -> int:
    """CRC-32 over numbers, text, bytes and None, their types included."""
    return crc32(repr(tuple(fields)).encode("utf-8", "surrogatepass"))


def intact(row: Sequence[Any]) -> bool:
    """Whether a row that ends with its checksum is as it was written."""
    return bool(fields_crc(row[:-1]) == row[-1])


def sealed(fields: Sequence[Any]) -> tuple[Any, ...]:
    """The fields of a row with their checksum behind them."""
    return (*fields, fields_crc(fields))


def message_crc(
    channel: int,
    seq: int,
    kind: int,
    payload: bytes,
    producer: int,
    producer_seq: int,
    boot: int | None,
    boot_expiry: float | None,
    wall_expiry: float | None,
    accepted: float | None,
) -> int:
    """CRC-32 of a row of the outbox; a tenth of the price of `fields_crc`."""
    boot, boot_expiry, wall_expiry = boot or 0, boot_expiry or 0.0, wall_expiry or 0.0
    if accepted is None:  # of version 1
        head = _MESSAGE.pack(channel, seq, kind, producer, producer_seq, boot, boot_expiry, wall_expiry)
    else:
        head = _DATED.pack(channel, seq, kind, producer, producer_seq, boot, boot_expiry, wall_expiry, accepted)
    return crc32(payload, crc32(head))


def message_intact(row: Sequence[Any]) -> bool:
    """Whether a row of the outbox, its columns in the order of the table, is as it was written."""
    try:
        columns = (*row[:9], row[10])
        return bool(message_crc(*columns) == row[9])
    except (struct.error, TypeError):  # a column that holds another type now
        return False


def received_crc(
    channel: int, row: int, epoch: bytes, seq: int, kind: int, payload: bytes, tries: int | None, enqueued: float
) -> int:
    """CRC-32 of a message in the inbox, as `message_crc` is that of one in the outbox."""
    head = _RECEIVED.pack(channel, row, seq, kind, -1 if tries is None else tries, enqueued, len(epoch))
    return crc32(payload, crc32(epoch, crc32(head)))


def received_intact(row: Sequence[Any]) -> bool:
    """Whether a row of the inbox is as it was written. Gaps, and messages of version 1, have `fields_crc`."""
    behind, reason = row[6:8]
    with contextlib.suppress(struct.error, TypeError):  # a column that holds another type now
        if behind is None and reason is None and received_crc(*row[:6], *row[8:10]) == row[10]:
            return True
    return intact(row)


def weight(payload: Any) -> int:
    """Bytes of a payload as it was read; a damaged one may be anything."""
    return len(payload) if isinstance(payload, bytes | str) else 0


def is_number(value: object) -> bool:
    """Whether a column that should hold a number does; a damaged one may be anything."""
    return isinstance(value, int)


def set_aside(connection: sqlite3.Connection, source: str, row: Sequence[Any]) -> None:
    """Keep the content of a damaged row; who calls deletes it from its table. Secrets stay in the database."""
    content = json.dumps([value.hex() if isinstance(value, bytes) else value for value in row])
    connection.execute(
        "INSERT INTO damaged_rows (moved, source, content) VALUES (?, ?, ?)", (time.time(), source, content)
    )


def matching(column: str, value: Any) -> tuple[str, Any]:
    """A condition for the rows that have `value` in `column`, and what to bind: damaged text may be no UTF-8."""
    try:
        if isinstance(value, str):
            value.encode()
    except UnicodeEncodeError:
        return f"{column} = CAST(? AS TEXT)", value.encode("utf-8", "surrogateescape")
    return f"{column} IS ?", value


@dataclass(slots=True)
class ChannelState:
    """A channel's row; see `schema.sql` for what is not in its record."""

    record: ChannelRecord
    base: int = 1
    next_row: int = 1
    in_holes: int = 0
    totals: Totals = field(default_factory=Totals)

    @property
    def front(self) -> int:
        """The lowest row of the inbox that is held, or lacks through damage."""
        return self.next_row - self.record.in_count - self.in_holes

    @property
    def mark(self) -> Mark:
        """How far it has come. None of its numbers ever falls."""
        return Mark(self.record.id, self.record.next, self.next_row, self.next_row - self.record.in_count - 1)

    def bounds(self) -> tuple[tuple[str, str, int, int], ...]:
        """Tables of its queues: by which column they are counted, from where and up to where they hold something."""
        out, held = (self.base, self.record.next), (self.front, self.next_row)
        return (
            ("outbox", "seq", *out),
            ("outbox_packs", "seq", *out),
            ("inbox", "row", *held),
            ("inbox_packs", "row", *held),
        )

    def change(self, **fields: Any) -> None:
        self.record = self.record._replace(**fields)


TOTALS = tuple(total.name for total in fields(Totals))

CHANNEL_COLUMNS = (
    "id, connection_id, label, durability, options, epoch, next, acked, acked_count, peer_epoch, recv_next, recv_count, "
    "out_count, out_bytes, in_count, in_bytes, in_gaps, out_closed, in_closed, attached, base, next_row, in_holes, "
    f"{', '.join(TOTALS)}, failed, failed_bytes, crc"
)
"""In the order in which the checksum covers them."""

_CHANGED = CHANNEL_COLUMNS.split(", ")[1:]
_KEYS = {"connection_id", "label"}
"""They never change, and a row that sets them has its index written as well."""

_SETTINGS = ", ".join(f"{name} = ?{place}" for place, name in enumerate(_CHANGED, 2) if name not in _KEYS)
_UPDATE = f"UPDATE channels SET {_SETTINGS} WHERE id = ?1"  # noqa: S608
_INSERT = f"INSERT INTO channels ({', '.join(_CHANGED)}) VALUES ({', '.join('?' * len(_CHANGED))})"  # noqa: S608
_totals = attrgetter(*TOTALS)


def channel_intact(row: Sequence[Any]) -> bool:
    """Whether a row of ``channels``, its columns in the order of the table, is as it was written."""
    return intact((*row[:23], *row[24:], row[23]))


def _channel_row(state: ChannelState) -> tuple[Any, ...]:
    record, totals = state.record, _totals(state.totals)
    known = (*record[:3], str(record.durability), *record[4:19], int(record.attached))
    return sealed((*known, state.base, state.next_row, state.in_holes, *totals, *record[20:]))


def channel_of_row(row: Sequence[Any]) -> ChannelState:
    """The channel that an intact row describes."""
    known = [*row[:3], Durability(row[3]), *row[4:19], bool(row[19])]
    base, next_row, in_holes = row[20:23]
    return ChannelState(ChannelRecord(*known, *row[-3:-1]), base, next_row, in_holes, Totals(*row[23:-3]))


class ChannelRows:
    """The table ``channels``."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._states: dict[int, ChannelState] = {}
        self._changed: set[int] = set()
        self._flushed: set[int] = set()

    def get(self, number: int, *, change: bool = False) -> ChannelState:
        """The state of a channel; with `change` it is written back by `flush`. Raises `StoreConflict`."""
        state = self._states.get(number)
        if state is None:
            row = self._connection.execute(
                f"SELECT {CHANNEL_COLUMNS} FROM channels WHERE id = ?",  # noqa: S608 - a constant
                (number,),
            ).fetchone()
            if row is None:
                raise StoreConflict(f"no channel {number}")
            if not intact(row):
                raise StoreConflict(f"the row of channel {number} is damaged")
            state = self._states[number] = channel_of_row(row)
        if change:
            self._changed.add(number)
        return state

    def insert(self, record: ChannelRecord) -> ChannelRecord:
        """A new row; answers the record with its id."""
        cursor = self._connection.execute(_INSERT, _channel_row(ChannelState(record))[1:])
        record = record._replace(id=cursor.lastrowid or 0)
        self._states[record.id] = ChannelState(record)
        self._changed.add(record.id)  # its checksum covers the id
        return record

    def delete(self, number: int) -> None:
        self._connection.execute("DELETE FROM channels WHERE id = ?", (number,))
        self._states.pop(number, None)
        self._changed.discard(number)
        self._flushed.discard(number)

    def take_flushed(self) -> list[ChannelState]:
        """The channels that were written since the last call, as they are now; after a commit."""
        flushed = [self._states[number] for number in self._flushed]
        self._flushed.clear()
        return flushed

    def flush(self) -> None:
        """Write changed rows back."""
        rows = [_channel_row(self._states[number]) for number in self._changed]
        self._flushed |= self._changed
        self._changed.clear()
        self._connection.executemany(_UPDATE, rows)

    def shrink(self) -> None:
        """Bound the memory this takes; between transactions only."""
        if len(self._states) > CACHED_ROWS:
            self._states.clear()

    def clear(self) -> None:
        """Forget everything, after a rollback."""
        self._states.clear()
        self._changed.clear()
        self._flushed.clear()


LAST_SENT = (
    "SELECT producer, max(producer_seq) AS last FROM outbox WHERE channel = ?1 GROUP BY producer"
    " UNION ALL SELECT producer, max(producer_seq + messages - 1) FROM outbox_packs WHERE channel = ?1 GROUP BY producer"
)
"""What an outbox holds of each producer, up to which number of its own."""


@dataclass(slots=True)
class ProducerState:
    channel: int
    record: ProducerRecord
    used: Stamp
    rejected_json: str = "[]"

    def row(self) -> tuple[Any, ...]:
        record, used = self.record, self.used
        return sealed(
            (
                record.id,
                self.channel,
                record.name,
                record.last_seq,
                self.rejected_json,
                record.acknowledged_seq,
                record.removed,
                record.unreported,
                used.boot,
                float(used.boottime),
                float(used.wall),
            )
        )


def _producer_of_row(row: Sequence[Any]) -> ProducerState:
    number, channel, name, last_seq, rejected_json, acknowledged_seq, removed, unreported, *used, _ = row
    rejected = tuple((seq, code) for seq, code in json.loads(rejected_json))
    record = ProducerRecord(number, name, last_seq, rejected, acknowledged_seq, removed, unreported)
    return ProducerState(channel, record, Stamp(*used), rejected_json)


class ProducerRows:
    """The table ``producers``."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._states: dict[int, ProducerState] = {}
        self._changed: set[int] = set()

    def find(self, number: int) -> ProducerState | None:
        """A producer by its id; None when there is none or its row is damaged."""
        if (state := self._states.get(number)) is None:
            row = self._connection.execute("SELECT * FROM producers WHERE id = ?", (number,)).fetchone()
            if row is None or not intact(row):
                return None
            state = self._states[number] = _producer_of_row(row)
        return state

    def open(self, channel: int, name: bytes, stamp: Stamp) -> ProducerRecord:
        """The producer of that name in that channel, in use at `stamp`; what was unreported is reported with it."""
        self.flush()
        row = self._connection.execute(
            "SELECT * FROM producers WHERE channel = ? AND name = ?", (channel, name)
        ).fetchone()
        if row is None:
            number = self._insert(ProducerState(channel, ProducerRecord(0, name), stamp))
        elif not intact(row):
            number = self.replace_damaged(row, channel, name, stamp)
        else:
            number = row[0]
        state = self._states.get(number) or _producer_of_row(row)
        state.used = stamp
        self._states[number] = state
        self._changed.add(number)
        record, state.record = state.record, state.record._replace(unreported=0)
        return record

    def _insert(self, state: ProducerState) -> int:
        fields = state.row()
        cursor = self._connection.execute(
            "INSERT INTO producers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (state.record.id or None, *fields[1:])
        )
        number = cursor.lastrowid or 0
        state.record = state.record._replace(id=number)
        self._states[number] = state
        return number

    def replace_damaged(self, row: Sequence[Any], channel: int, name: bytes, stamp: Stamp) -> int:
        """A row in place of a damaged one; its number is that of the last message held, which is all that is known."""
        logger.error("the row of producer %s in channel %d is damaged; what it remembered is lost", row[0], channel)
        set_aside(self._connection, "producers", row)
        self._connection.execute("DELETE FROM producers WHERE id = ?", (row[0],))
        last_seq = self._connection.execute(
            f"SELECT ifnull(max(last), 0) FROM ({LAST_SENT}) WHERE producer = ?2",  # noqa: S608 - a constant
            (channel, row[0]),
        ).fetchone()[0]
        return self._insert(ProducerState(channel, ProducerRecord(row[0], name, last_seq), stamp))

    def raise_last(self, number: int, last_seq: int) -> None:
        """Say that a producer has decided everything up to `last_seq`, at least."""
        if (state := self.find(number)) is not None:
            state.record = state.record._replace(last_seq=max(state.record.last_seq, last_seq))
            self._changed.add(number)

    def advance(self, state: ProducerState, put: Put) -> None:
        """Take over what a `Put` says about its producer."""
        record = state.record
        last_seq = max(record.last_seq, put.first_seq + len(put.payloads) - 1)
        rejected = record.rejected
        if rejected or put.rejected:
            rejected = merge_rejected(rejected, put.rejected, last_seq)
            if rejected != record.rejected:
                state.rejected_json = json.dumps(rejected)
        state.record = record._replace(last_seq=last_seq, rejected=rejected)
        state.used = put.stamp
        self._changed.add(record.id)

    def tell(self, ranges: Iterable[ProducerRange], *, acknowledged: bool) -> None:
        """Set what producers remember of their messages that left the outbox."""
        for told in ranges:
            if told.producer < 0 or (state := self.find(told.producer)) is None:
                continue
            record = state.record
            if acknowledged:
                state.record = record._replace(acknowledged_seq=max(record.acknowledged_seq, told.last))
            else:
                removed, unreported = record.removed + told.messages, record.unreported + told.messages
                state.record = record._replace(removed=removed, unreported=unreported)
            self._changed.add(record.id)

    def delete_of(self, channel: int) -> None:
        """Delete the producers of a channel."""
        self._drop(number for number, state in self._states.items() if state.channel == channel)
        self._connection.execute("DELETE FROM producers WHERE channel = ?", (channel,))

    def forget(self, seconds: float, stamp: Stamp, keep: frozenset[int], limit: int) -> int:
        """Delete producers not used for `seconds`, `limit` at most; answers how many."""
        self.flush()
        unused = self._connection.execute(
            "SELECT id FROM producers WHERE max(0.0,"
            " CASE WHEN used_boot = ? THEN ? - used_boottime ELSE ? - used_wall END) >= ? ORDER BY id",
            (stamp.boot, stamp.boottime, stamp.wall, seconds),
        )
        numbers: list[int] = []
        for (number,) in unused:
            if len(numbers) == limit:
                break
            if number not in keep:
                numbers.append(number)
        unused.close()
        self._connection.executemany("DELETE FROM producers WHERE id = ?", [(number,) for number in numbers])
        self._drop(numbers)
        return len(numbers)

    def _drop(self, numbers: Iterable[int]) -> None:
        for number in list(numbers):
            self._states.pop(number, None)
            self._changed.discard(number)

    def flush(self) -> None:
        """Write changed rows back."""
        rows = [self._states[number].row() for number in self._changed]
        self._changed.clear()
        self._connection.executemany(
            "UPDATE producers SET last_seq = ?4, rejected = ?5, acknowledged_seq = ?6, removed = ?7, unreported = ?8,"
            " used_boot = ?9, used_boottime = ?10, used_wall = ?11, crc = ?12 WHERE id = ?1",
            rows,
        )

    def shrink(self) -> None:
        """Bound the memory this takes; between transactions only."""
        if len(self._states) > CACHED_ROWS:
            self._states.clear()

    def clear(self) -> None:
        """Forget everything, after a rollback."""
        self._states.clear()
        self._changed.clear()
