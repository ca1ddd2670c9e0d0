"""The inbox in SQLite: messages and gaps that wait for a local program."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Sequence
from itertools import islice
from typing import Any

from rondevud import records
from rondevud.errors import StoreConflict
from rondevud.ranges import Ranges
from rondevud.records import InGap, InItem, InMessage, OutMessage, Reason, Removal
from rondevud.store.base import Limits, check_numbers, oldest_over
from rondevud.store.database import damage
from rondevud.store.outbox_table import decode_payload, encode_payload
from rondevud.store.rows import (
    ChannelRows,
    ChannelState,
    intact,
    received_crc,
    received_intact,
    sealed,
    set_aside,
    weight,
)

logger = logging.getLogger(__name__)

GAP, DAMAGED = 3, 4  # kinds beside those of the outbox


class InboxTable:
    """The table ``inbox``. Each method is one operation, inside a transaction."""

    def __init__(self, connection: sqlite3.Connection, channels: ChannelRows, limits: Limits) -> None:
        self._connection = connection
        self._channels = channels
        self._limits = limits
        self.trusted = False
        """Whether what an index does not lead to is not there: its indexes have been made anew."""
        self.moved = 0
        """Payload bytes written and read since whoever watches it set it to 0."""

    def receive(self, operation: records.Receive) -> records.ReceiveResult:
        channel = self._channels.get(operation.channel, change=True)
        record = channel.record
        if (record.peer_epoch, record.recv_next) != (operation.expect_epoch, operation.expect_next):
            raise StoreConflict(f"channel {record.id} is at {record.peer_epoch.hex()}-{record.recv_next}")
        counts = [item.messages or 0 for item in operation.items if isinstance(item, Removal)]
        check_numbers(operation.recv_next, *counts, record.recv_count + sum(counts))
        same_epoch = operation.epoch == record.peer_epoch
        count, closed = (record.recv_count, record.in_closed) if same_epoch else (0, 0)
        rows: list[tuple[Any, ...]] = []
        size, enqueued = 0, float(operation.stamp.wall)
        for item in operation.items:
            place = (record.id, channel.next_row + len(rows), operation.epoch)
            if isinstance(item, OutMessage):
                count += 1
                if item.payload is None:
                    closed = 1
                    continue
                kind, data = encode_payload(item.payload)
                size += len(data)
                crc = received_crc(*place, item.seq, kind, data, None, enqueued)
                rows.append((*place, item.seq, kind, data, None, None, None, enqueued, crc))
            else:
                count += (item.messages or 0) if item.reason is Reason.LOST else 0
                if item.messages == 0 or item.reason is Reason.RESTART:
                    continue
                gap = (item.next, str(item.reason), item.messages)
                rows.append(sealed((*place, item.first, GAP, b"", *gap, enqueued)))
        # REPLACE: files of different times put together can leave rows of a later one behind the last of this one.
        self._connection.executemany("INSERT OR REPLACE INTO inbox VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        first_row = channel.next_row
        channel.next_row += len(rows)
        gaps = sum(row[4] == GAP for row in rows)
        channel.totals.received += len(rows) - gaps
        channel.change(
            peer_epoch=operation.epoch,
            recv_next=operation.recv_next,
            recv_count=count,
            in_closed=closed,
            in_count=record.in_count + len(rows),
            in_bytes=record.in_bytes + size,
            in_gaps=record.in_gaps + gaps,
        )
        self.moved += size
        return records.ReceiveResult(first_row, len(rows), size)

    def read_in(self, operation: records.ReadIn) -> records.InPage:
        channel = self._channels.get(operation.channel)
        record = channel.record
        # Every row is there or in a hole, so one that is lacking is known.
        holes = self._holes(channel)
        start = max(operation.row, channel.front)
        rows, whole = self._rows(operation.channel, start)
        last = channel.next_row if whole else min(rows[-1][1] + 1, channel.next_row)
        held: dict[Any, tuple[Any, bool]] = {}
        behind = start
        for row in rows:
            whole_row = received_intact(row)
            if whole_row and (row[0] != record.id or row[1] < behind):  # not the one that was asked for
                raise damage(f"an index of the inbox leads astray, to row {row[1]} of channel {row[0]}")
            behind = row[1] + 1 if whole_row else behind
            held[row[1]] = row, whole_row
        damaged = 0
        items: list[InItem] = []
        for number in islice(holes.outside(start, last), self._limits.page_messages):
            row, whole_row = held.get(number, (None, False))
            if row is None and not self.trusted:
                raise damage(f"the inbox of channel {record.id} seems to lack row {number}")
            if not whole_row:
                damaged += 1
                rest = (record.peer_epoch, *(None,) * 8) if row is None else row[2:]
                row = self._mark_damaged((record.id, number, *rest))
            items.append(_item(row))
        gaps = self._count_gaps(operation.channel) if damaged else 0
        return records.InPage(items, items[-1].row + 1 if items else operation.row, damaged, gaps)

    def _rows(self, channel: int, start: int) -> tuple[list[Any], bool]:
        """One page of rows from `start` on, and whether it ended by rows and not by bytes."""
        cursor = self._connection.execute(
            "SELECT * FROM inbox WHERE channel = ? AND row >= ? ORDER BY row LIMIT ?",
            (channel, start, self._limits.page_messages),
        )
        rows: list[Any] = []
        size, whole = 0, True
        for row in cursor:
            size += weight(row[5])
            if rows and size > self._limits.page_bytes:
                whole = False
                break
            rows.append(row)
        cursor.close()
        self.moved += size
        return rows, whole

    def _mark_damaged(self, row: Sequence[Any]) -> tuple[Any, ...]:
        """Write a gap in place of a row that is damaged or lacking; 0 stands for a number that nobody knows.

        The payload stays, so that the bytes counted in the channel's row stay true.
        """
        channel, number, epoch, seq, _, payload, *_, enqueued, _ = row
        logger.error("row %s in the inbox of channel %s is damaged", number, channel)
        fields = sealed(
            (
                channel,
                number,
                epoch if isinstance(epoch, bytes) else b"",
                seq if isinstance(seq, int) else 0,
                DAMAGED,
                payload if isinstance(payload, bytes) else b"",
                None,
                None,
                None,
                enqueued if isinstance(enqueued, float) else 0.0,
            )
        )
        self._connection.execute("INSERT OR REPLACE INTO inbox VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", fields)
        return fields

    def _count_gaps(self, number: int) -> int:
        """Count the channel's gaps anew; answers how many more they are. What a damaged row was before, nobody knows."""
        channel = self._channels.get(number, change=True)
        record = channel.record
        gaps = self._connection.execute(
            "SELECT count(*) FROM inbox WHERE channel = ? AND row >= ? AND kind >= ?",
            (number, channel.front, GAP),
        ).fetchone()[0]
        channel.change(in_gaps=gaps)
        channel.totals.damaged_in += gaps - record.in_gaps
        return int(gaps - record.in_gaps)

    def ack_in(self, operation: records.AckIn) -> records.InRemoved:
        channel = self._channels.get(operation.channel, change=True)
        removed = self._delete(channel, operation.first_row, operation.upto_row)
        if operation.purge:
            channel.totals.purged_in += removed.messages - removed.gaps
        else:
            channel.totals.taken += removed.messages - removed.gaps
        return removed

    def _delete(self, channel: ChannelState, first_row: int, upto_row: int) -> records.InRemoved:
        """Delete one slice of the rows ``first_row … upto_row - 1``; the caller accounts for them."""
        holes = self._holes(channel)
        first, end = holes.behind(max(channel.front, first_row)), min(upto_row, channel.next_row)
        upto = min(end, first + self._limits.slice_rows)
        if upto <= first:
            return records.InRemoved(0, 0, 0, 0, more=False)
        record = channel.record
        count = upto - first - holes.count(first, upto)
        size, gaps = self._weigh(channel, first, upto, count)
        self._connection.execute(
            "DELETE FROM inbox WHERE channel = ? AND row >= ? AND row < ?", (record.id, first, upto)
        )
        self._dig(channel, holes, first, upto)
        channel.change(
            in_count=record.in_count - count,
            in_bytes=max(0, record.in_bytes - size),
            in_gaps=record.in_gaps - gaps,
        )
        return records.InRemoved(count, size, gaps, upto, more=upto < end)

    def trim_in(self, operation: records.TrimIn) -> records.InRemoved:
        channel = self._channels.get(operation.channel, change=True)
        removed = self._delete(channel, 0, self._over(channel, operation, self._limits.slice_rows))
        channel.totals.overflow_in += removed.messages - removed.gaps
        return removed._replace(more=bool(self._over(channel, operation, 1)))

    def _over(self, channel: ChannelState, limits: records.TrimIn, most: int) -> int:
        """The row behind the oldest ones, `most` of them at most, that exceed the limits; 0 = none do."""
        record = channel.record
        rows = self._connection.execute(
            "SELECT row, length(payload) FROM inbox WHERE channel = ? AND row >= ? ORDER BY row LIMIT ?",
            (record.id, channel.front, most),
        )
        behind = oldest_over(rows, record.in_count, record.in_bytes, limits.max_count, limits.max_bytes)
        rows.close()
        return behind

    def _weigh(self, channel: ChannelState, first: int, upto: int, count: int) -> tuple[int, int]:
        """Payload bytes and gaps of the `count` rows ``first … upto - 1``."""
        record = channel.record
        if count == record.in_count:
            return record.in_bytes, record.in_gaps  # nothing is left, whatever damage did to the counts
        size, gaps = self._connection.execute(
            "SELECT ifnull(sum(length(payload)), 0), ifnull(sum(kind >= ?), 0) FROM inbox"
            " WHERE channel = ? AND row >= ? AND row < ?",
            (GAP, record.id, first, upto),
        ).fetchone()
        return size, min(gaps, record.in_gaps)  # damage that nobody has read so far may look like a gap

    def skip(self, channel: ChannelState, behind: int) -> None:
        """Rows up to `behind` were given before the store went back: none of them is there, or given again."""
        holes, first = self._holes(channel), channel.next_row
        channel.next_row = behind
        channel.in_holes += behind - first
        self._dig(channel, holes, first, behind)

    def oldest(self, channel: ChannelState) -> float | None:
        """When the oldest row that is held was stored, seconds since 1970; None without one."""
        row = self._connection.execute(
            "SELECT enqueued FROM inbox WHERE channel = ? AND row >= ? ORDER BY row LIMIT 1",
            (channel.record.id, channel.front),
        ).fetchone()
        return row[0] if row is not None and isinstance(row[0], float) else None

    # --- single rows, for the table ``failed`` ---------------------------------------------------------------------

    def find(self, channel: ChannelState, row: int) -> Any:
        """A row that is held, is a message and as it was written; None for any other."""
        found = self._connection.execute(
            "SELECT * FROM inbox WHERE channel = ? AND row = ?", (channel.record.id, row)
        ).fetchone()
        held = found is not None and channel.front <= row < channel.next_row
        return found if held and received_intact(found) and found[4] < GAP else None

    def rewrite(self, fields: Sequence[Any]) -> None:
        """Other fields of a row that is held."""
        self._connection.execute(
            "INSERT OR REPLACE INTO inbox VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", sealed(fields)
        )

    def take(self, channel: ChannelState, row: int) -> None:
        """Delete one row; the caller accounts for it."""
        self._delete(channel, row, row + 1)

    def append(self, channel: ChannelState, messages: Sequence[Sequence[Any]]) -> int:
        """Put messages, each ``(epoch, seq, kind, payload, enqueued)``, behind all rows; answers the row of the first."""
        first, record = channel.next_row, channel.record
        for place, (epoch, seq, kind, payload, enqueued) in enumerate(messages, first):
            self.rewrite((record.id, place, epoch, seq, kind, payload, None, None, None, enqueued))
        channel.next_row += len(messages)
        size = sum(weight(message[3]) for message in messages)
        channel.change(in_count=record.in_count + len(messages), in_bytes=record.in_bytes + size)
        return first

    # --- holes -----------------------------------------------------------------------------------------------------

    def _holes(self, channel: ChannelState) -> Ranges:
        """Rows behind the front that are not there because they were acknowledged."""
        if not channel.in_holes:
            return Ranges()
        rows = self._connection.execute(
            "SELECT channel, first, next, crc FROM inbox_holes WHERE channel = ? ORDER BY first", (channel.record.id,)
        ).fetchall()
        if all(map(intact, rows)) and sum(row[2] - row[1] for row in rows) == channel.in_holes:
            return Ranges(row[1:3] for row in rows)
        for row in rows:
            set_aside(self._connection, "inbox_holes", row)
        return self._find_holes(channel.record.id)

    def _dig(self, channel: ChannelState, holes: Ranges, first: int, upto: int) -> None:
        """Make the rows ``first … upto - 1`` a hole, or move the front if nothing is left before them."""
        number, front = channel.record.id, channel.front
        first, upto = holes.add(first, upto)
        if channel.in_holes:
            self._connection.execute(
                "DELETE FROM inbox_holes WHERE channel = ? AND first >= ? AND first < ?", (number, first, upto)
            )
        if first > front:
            self._connection.execute(
                "INSERT OR REPLACE INTO inbox_holes VALUES (?, ?, ?, ?)", sealed((number, first, upto))
            )
        channel.in_holes = holes.count(upto if first == front else front, channel.next_row)

    def _find_holes(self, number: int) -> Ranges:
        """What is known of the holes is damaged: whatever lacks between the front and the next row is taken for one."""
        channel = self._channels.get(number, change=True)
        record, front = channel.record, channel.front
        rows = self._connection.execute(
            "SELECT row FROM inbox WHERE channel = ? AND row >= ? AND row < ? ORDER BY row",
            (number, front, channel.next_row),
        )
        held = [row for (row,) in rows]
        pairs = zip([front - 1, *held], [*held, channel.next_row], strict=True)
        holes = Ranges((row + 1, behind) for row, behind in pairs if row + 1 < behind)
        lost = record.in_count - len(held)
        logger.error("the holes in the inbox of channel %s were damaged; %d messages are lost with them", number, lost)
        self._connection.execute("DELETE FROM inbox_holes WHERE channel = ?", (number,))
        self._connection.executemany(
            "INSERT OR REPLACE INTO inbox_holes VALUES (?, ?, ?, ?)",  # what is damaged need not have gone by its channel
            [sealed((number, *hole)) for hole in holes],
        )
        channel.in_holes += lost
        channel.totals.damaged_in += lost
        channel.change(in_count=len(held))
        return holes


def _item(row: Sequence[Any]) -> InItem:
    """What an intact row says."""
    _, number, epoch, seq, kind, payload, behind, reason, messages, enqueued, _ = row
    if kind == GAP:
        return InGap(number, epoch, Removal(seq, behind, Reason(reason), messages), enqueued)
    if kind == DAMAGED:
        return InGap(number, epoch, Removal(seq, seq + 1, Reason.DAMAGED, 1), enqueued)
    return InMessage(number, epoch, seq, decode_payload(kind, payload), enqueued, messages or 0)
