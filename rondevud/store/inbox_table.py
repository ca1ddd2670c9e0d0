"""The inbox in SQLite: messages and gaps that wait for a local program."""

from __future__ import annotations

import itertools
import logging
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from heapq import merge
from itertools import islice, pairwise
from typing import Any, TypeAlias

from rondevud import records
from rondevud.errors import StoreConflict
from rondevud.ranges import Ranges
from rondevud.records import InGap, InItem, InMessage, OutItem, OutMessage, Reason, Removal
from rondevud.store.base import Limits, check_numbers, oldest_over
from rondevud.store.database import damage
from rondevud.store.pack_table import PackTable
from rondevud.store.packs import (
    PACK_MESSAGES,
    Encoded,
    InPack,
    claimed,
    decode_payload,
    encode,
    heaviness,
    runs,
    sealed,
)
from rondevud.store.packs import contents as contents_of
from rondevud.store.packs import payloads as payloads_of
from rondevud.store.packs import sizes as sizes_of
from rondevud.store.rows import (
    ChannelRows,
    ChannelState,
    intact,
    is_number,
    received_crc,
    received_intact,
    set_aside,
    weight,
)
from rondevud.store.rows import sealed as sealed_row

logger = logging.getLogger(__name__)

GAP, DAMAGED = 3, 4  # kinds beside those of the outbox

_Entry: TypeAlias = tuple[int, Any]
"""Payload bytes, and an item or a row that fails its checksum."""


class InboxTable:
    """The tables ``inbox``, ``inbox_packs`` and ``inbox_holes``. Each method is one operation, inside a transaction."""

    def __init__(self, connection: sqlite3.Connection, channels: ChannelRows, limits: Limits) -> None:
        self._connection = connection
        self._channels = channels
        self._limits = limits
        self.packs = PackTable(connection, InPack, self._lose)
        self._lost: dict[int, tuple[int, int]] = {}
        """By channel how many rows were lost with packs, and how many more gaps there are, since a reading has told."""
        self._leaving = range(0)
        """Rows of which nothing is told if they are lost: a program has taken them."""
        self._left_bytes = 0
        self._clear_from: set[int] = set()
        """Channels that hold nothing at or above their next row."""
        self.trusted = False
        """Whether what an index does not lead to is not there: its indexes have been made anew."""
        self.moved = 0
        """Payload bytes written and read since whoever watches it set it to 0."""

    def clear(self) -> None:
        """Forget what a rollback may have undone."""
        self._lost.clear()
        self._clear_from.clear()
        self.packs.clear()

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
        size, gaps, enqueued = 0, 0, float(operation.stamp.wall)
        row = first_row = channel.next_row
        packs: list[InPack] = []
        for run in _runs(operation.items):
            head = run[0]
            if isinstance(head, OutMessage):
                count += len(run)
                if head.payload is None:
                    closed = 1
                    continue
                encoded = encode([message.payload for message in run if isinstance(message, OutMessage)])
                size += sum(map(len, encoded.datas))
                _place((record.id, row, operation.epoch, head.seq, enqueued), encoded, rows, packs)
            else:
                count += (head.messages or 0) if head.reason is Reason.LOST else 0
                if head.messages == 0 or head.reason is Reason.RESTART:
                    continue
                gap = (head.next, str(head.reason), head.messages)
                rows.append(sealed_row((record.id, row, operation.epoch, head.first, GAP, b"", *gap, enqueued)))
                gaps += 1
            row += len(run)
        self._make_room(channel, row)
        record = channel.record  # what was in the way may have been damaged
        self._write(rows)
        self.packs.insert(packs)
        channel.next_row = row
        channel.totals.received += row - first_row - gaps
        channel.change(
            peer_epoch=operation.epoch,
            recv_next=operation.recv_next,
            recv_count=count,
            in_closed=closed,
            in_count=record.in_count + row - first_row,
            in_bytes=record.in_bytes + size,
            in_gaps=record.in_gaps + gaps,
        )
        self.moved += size
        return records.ReceiveResult(first_row, row - first_row, size)

    def _write(self, rows: Iterable[tuple[Any, ...]]) -> None:
        self._connection.executemany("INSERT OR REPLACE INTO inbox VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def _make_room(self, channel: ChannelState, behind: int) -> None:
        """Delete what is in the way of the rows up to `behind`.

        Files of different times put together can leave rows of a later one behind the last of this one.
        """
        number, first = channel.record.id, channel.next_row
        if number in self._clear_from:
            return
        row = self._connection.execute(
            "SELECT 1 FROM inbox WHERE channel = ? AND row >= ? LIMIT 1", (number, first)
        ).fetchone()
        if row is None and not self.packs.reaches(number, first):
            self._clear_from.add(number)
            return
        self.packs.cut(number, first, behind)
        self._remove(number, first, behind)

    def _remove(self, channel: int, first: int, behind: int) -> None:
        """The rows ``first … behind - 1``; no pack reaches over either end."""
        self._connection.execute(
            "DELETE FROM inbox WHERE channel = ? AND row >= ? AND row < ?", (channel, first, behind)
        )
        self.packs.delete(channel, first, behind)

    def read_in(self, operation: records.ReadIn) -> records.InPage:
        channel = self._channels.get(operation.channel)
        record = channel.record
        # Every row is there or in a hole, so one that is lacking is known.
        holes = self._holes(channel)
        start = max(operation.row, channel.front)
        held, horizon = self._held(channel, start)
        items: list[InItem] = []
        size = damaged = 0
        for number in islice(holes.outside(start, horizon), self._limits.page_messages):
            found = held.get(number)
            if found is None and not self.trusted:
                raise damage(f"the inbox of channel {record.id} seems to lack row {number}")
            length, item = found or (0, None)
            size += length
            if items and size > self._limits.page_bytes:
                break
            if item is None:
                damaged += 1
                item = _item(self._mark_damaged((record.id, number, record.peer_epoch, *(None,) * 8)))
            elif not isinstance(item, InMessage | InGap):  # a row that fails its checksum
                damaged += 1
                item = _item(self._mark_damaged((record.id, number, *item[2:])))
            items.append(item)
        gaps = self._count_gaps(operation.channel) if damaged else 0
        lost, more_gaps = self._lost.pop(operation.channel, (0, 0))
        return records.InPage(items, items[-1].row + 1 if items else operation.row, damaged + lost, gaps + more_gaps)

    def _held(self, channel: ChannelState, start: int) -> tuple[dict[Any, _Entry], int]:
        """What a page has by rows, and the row up to which that is all of it."""
        held, horizon = self._packed(channel, start)
        singles, horizon = self._singles(channel, start, horizon)
        twice = held.keys() & singles.keys()
        for row in twice:  # files of different times have been put together
            self._keep_once(channel.record.id, row, single=isinstance(singles[row][1], InMessage | InGap))
        if twice:
            return self._held(channel, start)
        held.update(singles)
        return held, horizon

    def _keep_once(self, channel: int, row: int, *, single: bool) -> None:
        """Of a row that is in a pack as well one is deleted: the pack's, if the single one is intact, for it is newer."""
        logger.error("row %d in the inbox of channel %d is there twice", row, channel)
        if single:
            self.packs.cut(channel, row, row + 1)
            self.packs.delete(channel, row, row + 1)
        else:
            self._connection.execute("DELETE FROM inbox WHERE channel = ? AND row = ?", (channel, row))

    def _packed(self, channel: ChannelState, start: int) -> tuple[dict[int, _Entry], int]:
        """What a page has of packs, by rows, and the row up to which that is all of them."""
        number, limits = channel.record.id, self._limits
        while True:
            packs, horizon = self.packs.read(number, start, channel.next_row, limits.page_messages, limits.page_bytes)
            contents = list(map(payloads_of, packs))
            if None not in contents:
                break
            for pack, payloads in zip(packs, contents, strict=True):
                if payloads is None:
                    self._single_out(pack)
        held: dict[int, _Entry] = {}
        for pack, payloads in zip(packs, contents, strict=True):
            fields = zip(
                itertools.count(pack.row), itertools.count(pack.seq), sizes_of(pack), payloads or (), strict=False
            )
            for row, seq, length, payload in fields:
                held[row] = length, InMessage(row, pack.epoch, seq, payload, pack.enqueued, 0)
        self.moved += sum(pack.size for pack in packs)
        return held, horizon

    def _singles(self, channel: ChannelState, start: int, horizon: int) -> tuple[dict[Any, _Entry], int]:
        """What a page has of rows of their own, by their numbers, and the row up to which that is all of them."""
        rows, whole = self._rows(channel.record.id, start, horizon)
        if not whole:
            horizon = min(rows[-1][1] + 1, horizon)
        held: dict[Any, _Entry] = {}
        behind = start
        for row in rows:
            if not received_intact(row):
                held[row[1]] = weight(row[5]), row
                continue
            if row[0] != channel.record.id or row[1] < behind:  # not the one that was asked for
                raise damage(f"an index of the inbox leads astray, to row {row[1]} of channel {row[0]}")
            behind = row[1] + 1
            held[row[1]] = weight(row[5]), _item(row)
        return held, horizon

    def _rows(self, channel: int, start: int, end: int) -> tuple[list[Any], bool]:
        """One page of rows from `start` on, and whether these are all below `end`."""
        limits = self._limits
        cursor = self._connection.execute(
            "SELECT * FROM inbox WHERE channel = ? AND row >= ? AND row < ? ORDER BY row LIMIT ?",
            (channel, start, end, limits.page_messages + 1),
        )
        rows: list[Any] = []
        size, whole = 0, True
        for row in cursor:
            size += weight(row[5])
            if rows and (size > limits.page_bytes or len(rows) == limits.page_messages):
                whole = False
                break
            rows.append(row)
        cursor.close()
        self.moved += size
        return rows, whole

    def _single_out(self, pack: InPack) -> None:
        """Give each damaged message of a pack a row of its own, which fails its checksum as well."""
        for place, (kind, data, whole) in enumerate(contents_of(pack)):
            if whole:
                continue
            row = pack.row + place
            self.packs.cut(pack.channel, row, row + 1)
            self.packs.delete(pack.channel, row, row + 1)
            fields = (pack.channel, row, pack.epoch, pack.seq + place, kind, data)
            wrong = ~received_crc(*fields, None, pack.enqueued) & 0xFFFFFFFF
            self._write([(*fields, None, None, None, pack.enqueued, wrong)])

    def _lose(self, pack: InPack) -> None:
        """Mark the rows of a pack that is not as it was written as damaged: all that lack where it was.

        The first one gets the pack's bytes, so that those counted in the channel's row stay true.
        """
        if not is_number(pack.channel) or not is_number(pack.row):
            return
        try:
            channel = self._channels.get(pack.channel, change=True)
        except StoreConflict:
            return
        stored: Any = pack.payload
        content = stored if isinstance(stored, bytes) else bytes(heaviness(pack))
        lacking = self._lacking(channel, pack.row, pack.row + claimed(pack))
        marked = [row for row in lacking if row not in self._leaving]
        for row in marked:
            self._mark_damaged((pack.channel, row, channel.record.peer_epoch, None, None, content, *(None,) * 5))
            content = b""
        if len(marked) < len(lacking):
            self._left_bytes += len(content)
        gaps = self._count_gaps(pack.channel)
        lost, more_gaps = self._lost.get(pack.channel, (0, 0))
        self._lost[pack.channel] = lost + len(marked), more_gaps + gaps

    def _lacking(self, channel: ChannelState, first: int, behind: int) -> list[int]:
        """Rows of a pack that are neither held nor in a hole. Where it is known how many they are, they were in no hole."""
        number, (holes, _) = channel.record.id, self._read_holes(channel)
        if holes is None:
            holes = self._holes(channel) if behind - first == PACK_MESSAGES else Ranges()
        first, behind = max(first, channel.front), min(behind, channel.next_row)
        rows = self._connection.execute(
            "SELECT row FROM inbox WHERE channel = ? AND row >= ? AND row < ?", (number, first, behind)
        ).fetchall()
        held = {row for (row,) in rows}
        for pack in self.packs.heads(number, first, behind):
            held.update(range(pack.row, pack.behind))
        return [row for row in holes.outside(first, behind) if row not in held]

    def _mark_damaged(self, row: Sequence[Any]) -> tuple[Any, ...]:
        """Write a gap in place of a row that is damaged or lacking; 0 stands for a number that nobody knows.

        The payload stays, so that the bytes counted in the channel's row stay true.
        """
        channel, number, epoch, seq, _, payload, *_, enqueued, _ = row
        logger.error("row %s in the inbox of channel %s is damaged", number, channel)
        fields = sealed_row(
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
        self._write([fields])
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
        count = upto - first - holes.count(first, upto)
        left = self._cut(channel.record.id, first, upto)
        record = channel.record
        size, gaps = self._weigh(channel, first, upto, count)
        size = min(record.in_bytes, size + left)
        self._remove(record.id, first, upto)
        self._dig(channel, holes, first, upto)
        channel.change(
            in_count=record.in_count - count,
            in_bytes=max(0, record.in_bytes - size),
            in_gaps=record.in_gaps - gaps,
        )
        return records.InRemoved(count, size, gaps, upto, more=upto < end)

    def _cut(self, channel: int, first: int, upto: int) -> int:
        """Cut packs at both ends of rows that leave; answers bytes of those rows that are lost meanwhile."""
        self._leaving, self._left_bytes = range(first, upto), 0
        try:
            self.packs.cut(channel, first, upto)
        finally:
            self._leaving = range(0)
        return self._left_bytes

    def trim_in(self, operation: records.TrimIn) -> records.InRemoved:
        channel = self._channels.get(operation.channel, change=True)
        removed = self._delete(channel, 0, self._over(channel, operation, self._limits.slice_rows))
        channel.totals.overflow_in += removed.messages - removed.gaps
        return removed._replace(more=bool(self._over(channel, operation, 1)))

    def _over(self, channel: ChannelState, limits: records.TrimIn, most: int) -> int:
        """The row behind the oldest ones, `most` of them at most, that exceed the limits; 0 = none do."""
        packs, _ = self.packs.some_heads(channel.record.id, channel.front, channel.next_row, most)
        record = channel.record
        rows = self._connection.execute(
            "SELECT row, length(payload) FROM inbox WHERE channel = ? AND row >= ? ORDER BY row LIMIT ?",
            (record.id, channel.front, most),
        ).fetchall()
        packed = (pair for pack in packs for pair in zip(itertools.count(pack.row), sizes_of(pack), strict=False))
        oldest = islice((pair for pair in merge(rows, packed) if pair[0] >= channel.front), most)
        return oldest_over(oldest, record.in_count, record.in_bytes, limits.max_count, limits.max_bytes)

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
        size += self.packs.weigh(record.id, first, upto)
        return size, min(gaps, record.in_gaps)  # damage that nobody has read so far may look like a gap

    def skip(self, channel: ChannelState, behind: int) -> None:
        """Rows up to `behind` were given before the store went back: none of them is there, or given again."""
        holes, first = self._holes(channel), channel.next_row
        self.packs.cut(channel.record.id, first, behind)
        self._remove(channel.record.id, first, behind)
        channel.next_row = behind
        channel.in_holes += behind - first
        self._dig(channel, holes, first, behind)

    def oldest(self, channel: ChannelState) -> float | None:
        """When the oldest row that is held was stored, seconds since 1970; None without one."""
        rows = [
            self._connection.execute(
                f"SELECT row, enqueued FROM {table} WHERE channel = ? AND row >= ? ORDER BY row LIMIT 1",  # noqa: S608
                (channel.record.id, channel.front),
            ).fetchone()
            for table in ("inbox", "inbox_packs")
        ]
        first = min((row for row in rows if row is not None and isinstance(row[0], int)), default=None)
        return first[1] if first is not None and isinstance(first[1], float) else None

    # --- single rows, for the table ``failed`` ---------------------------------------------------------------------

    def find(self, channel: ChannelState, row: int) -> Any:
        """A row that is held, is a message and as it was written; None for any other. It has a row of its own then."""
        if not channel.front <= row < channel.next_row or row in self._holes(channel):
            return None
        self._unpack(channel.record.id, row)
        found = self._connection.execute(
            "SELECT * FROM inbox WHERE channel = ? AND row = ?", (channel.record.id, row)
        ).fetchone()
        return found if found is not None and received_intact(found) and found[4] < GAP else None

    def _unpack(self, channel: int, row: int) -> None:
        """Give a message that is in a pack a row of its own."""
        if not self.packs.heads(channel, row, row + 1):
            return
        self.packs.cut(channel, row, row + 1)
        ((pack,), _) = self.packs.read(channel, row, row + 1, 1, 0)
        self.packs.delete(channel, row, row + 1)
        ((kind, data, whole),) = contents_of(pack)
        fields = (channel, row, pack.epoch, pack.seq, kind, data)
        crc = received_crc(*fields, None, pack.enqueued)
        self._write([(*fields, None, None, None, pack.enqueued, crc if whole else ~crc & 0xFFFFFFFF)])

    def rewrite(self, fields: Sequence[Any]) -> None:
        """Other fields of a row that is held."""
        self._write([sealed_row(fields)])

    def take(self, channel: ChannelState, row: int) -> None:
        """Delete one row; the caller accounts for it."""
        self._delete(channel, row, row + 1)

    def append(self, channel: ChannelState, messages: Sequence[Sequence[Any]]) -> int:
        """Put messages, each ``(epoch, seq, kind, payload, enqueued)``, behind all rows; answers the row of the first."""
        self._make_room(channel, channel.next_row + len(messages))
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
        holes, rows = self._read_holes(channel)
        if holes is not None:
            return holes
        for row in rows:
            set_aside(self._connection, "inbox_holes", row)
        return self._find_holes(channel.record.id)

    def _read_holes(self, channel: ChannelState) -> tuple[Ranges | None, list[Any]]:
        """The holes as they are stored, None if these are damaged, and their rows."""
        if not channel.in_holes:
            return Ranges(), []
        rows = self._connection.execute(
            "SELECT channel, first, next, crc FROM inbox_holes WHERE channel = ? ORDER BY first", (channel.record.id,)
        ).fetchall()
        if all(map(intact, rows)) and sum(row[2] - row[1] for row in rows) == channel.in_holes:
            return Ranges(row[1:3] for row in rows), rows
        return None, rows

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
                "INSERT OR REPLACE INTO inbox_holes VALUES (?, ?, ?, ?)", sealed_row((number, first, upto))
            )
        channel.in_holes = holes.count(upto if first == front else front, channel.next_row)

    def _find_holes(self, number: int) -> Ranges:
        """What is known of the holes is damaged: whatever lacks between the front and the next row is taken for one."""
        channel = self._channels.get(number, change=True)
        front = channel.front
        packs = Ranges(
            (max(front, pack.row), pack.behind) for pack in self.packs.all_heads(number, front, channel.next_row)
        )
        rows = self._connection.execute(
            "SELECT row FROM inbox WHERE channel = ? AND row >= ? AND row < ? ORDER BY row",
            (number, front, channel.next_row),
        )
        held = Ranges((row, row + 1) for (row,) in rows if is_number(row))
        for pack in packs:
            held.add(pack[0], min(pack[1], channel.next_row))
        ends = [(front, front), *held, (channel.next_row, channel.next_row)]
        holes = Ranges((left[1], right[0]) for left, right in pairwise(ends) if left[1] < right[0])
        record, count = channel.record, held.count(front, channel.next_row)
        lost = record.in_count - count
        logger.error("the holes in the inbox of channel %s were damaged; %d messages are lost with them", number, lost)
        self._connection.execute("DELETE FROM inbox_holes WHERE channel = ?", (number,))
        self._connection.executemany(
            "INSERT OR REPLACE INTO inbox_holes VALUES (?, ?, ?, ?)",  # what is damaged need not have gone by its channel
            [sealed_row((number, *hole)) for hole in holes],
        )
        channel.in_holes += lost
        channel.totals.damaged_in += lost
        if lost:
            size = self._connection.execute(
                "SELECT ifnull(sum(length(payload)), 0) FROM inbox WHERE channel = ? AND row >= ?", (number, front)
            ).fetchone()[0]
            channel.change(in_count=count, in_bytes=size + self.packs.weigh(number, front, channel.next_row))
            self._count_gaps(number)
        return holes


def _place(
    place: tuple[int, int, bytes, int, float], encoded: Encoded, rows: list[tuple[Any, ...]], packs: list[InPack]
) -> None:
    """Make rows and packs of messages with consecutive numbers; `place` is channel, first row, epoch, first number, time."""
    channel, first, epoch, seq, enqueued = place
    for start, behind in runs(encoded):
        if behind - start > 1:
            pack = InPack(channel, first + start, 0, 0, epoch, seq + start, enqueued, b"", b"", 0, b"")
            packs.append(sealed(pack, encoded.part(start, behind)))
            continue
        fields = (channel, first + start, epoch, seq + start, encoded.kinds[start], encoded.datas[start])
        rows.append((*fields, None, None, None, enqueued, received_crc(*fields, None, enqueued)))


def _runs(items: Sequence[OutItem]) -> Iterator[Sequence[OutItem]]:
    """Messages with consecutive numbers together; removals and closing messages alone."""
    whole: Sequence[Any] = items
    if set(map(type, items)) == {OutMessage} and all(item.payload is not None for item in whole):
        numbers = [item.seq for item in whole]
        if numbers == list(range(numbers[0], numbers[0] + len(numbers))):
            yield items
            return
    run: list[OutItem] = []
    for item in items:
        alone = not isinstance(item, OutMessage) or item.payload is None
        if run and (alone or item[0] != run[0][0] + len(run)):
            yield run
            run = []
        run.append(item)
        if alone:
            yield run
            run = []
    if run:
        yield run


def _item(row: Sequence[Any]) -> InItem:
    """What an intact row says."""
    _, number, epoch, seq, kind, payload, behind, reason, messages, enqueued, _ = row
    if kind == GAP:
        return InGap(number, epoch, Removal(seq, behind, Reason(reason), messages), enqueued)
    if kind == DAMAGED:
        return InGap(number, epoch, Removal(seq, seq + 1, Reason.DAMAGED, 1), enqueued)
    return InMessage(number, epoch, seq, decode_payload(kind, payload), enqueued, messages or 0)
