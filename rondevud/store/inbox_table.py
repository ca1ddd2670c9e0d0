"""The inbox in SQLite: storing what a peer has sent, and all the ways in which it leaves."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterator, Sequence
from heapq import merge
from itertools import islice
from typing import Any

from rondevud import records
from rondevud.errors import StoreConflict
from rondevud.records import OutItem, OutMessage, Reason, Removal
from rondevud.store.base import Limits, check_numbers, oldest_over
from rondevud.store.inbox_reader import InboxReader
from rondevud.store.inbox_rows import GAP, InboxRows
from rondevud.store.packs import Encoded, InPack, encode, runs, sealed
from rondevud.store.packs import contents as contents_of
from rondevud.store.packs import sizes as sizes_of
from rondevud.store.rows import ChannelRows, ChannelState, received_crc, received_intact, weight
from rondevud.store.rows import sealed as sealed_row


class InboxTable:
    """The operations on an inbox, but for that of its `reader`. Each is inside a transaction."""

    def __init__(self, connection: sqlite3.Connection, channels: ChannelRows, limits: Limits) -> None:
        self._connection = connection
        self._channels = channels
        self._limits = limits
        self.rows = InboxRows(connection, channels, limits)
        self.reader = InboxReader(self.rows)

    def clear(self) -> None:
        """Forget what a rollback may have undone."""
        self.rows.clear()

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
        self.rows.queue.make_room(record.id, channel.next_row, row)
        record = channel.record  # what was in the way may have been damaged
        self.rows.queue.write(rows)
        self.rows.packs.insert(packs)
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
        self.rows.moved += size
        return records.ReceiveResult(first_row, row - first_row, size)

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
        holes = self.rows.holes(channel)
        first, end = holes.behind(max(channel.front, first_row)), min(upto_row, channel.next_row)
        upto = min(end, first + self._limits.slice_rows)
        if upto <= first:
            return records.InRemoved(0, 0, 0, 0, more=False)
        count = upto - first - holes.count(first, upto)
        left = self.rows.cut(channel.record.id, first, upto)
        record = channel.record
        size, gaps = self._weigh(channel, first, upto, count)
        size = min(record.in_bytes, size + left)
        self.rows.queue.delete(record.id, first, upto)
        self.rows.dig(channel, holes, first, upto)
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
        packs, _ = self.rows.packs.some_heads(channel.record.id, channel.front, channel.next_row, most)
        record = channel.record
        rows = self._connection.execute(
            "SELECT row, length(payload) FROM inbox WHERE channel = ? AND row >= ? AND row < ? ORDER BY row LIMIT ?",
            (record.id, channel.front, channel.next_row, most),
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
        size += self.rows.packs.weigh(record.id, first, upto)
        return size, min(gaps, record.in_gaps)  # damage that nobody has read so far may look like a gap

    def skip(self, channel: ChannelState, behind: int) -> None:
        """Rows up to `behind` were given before the store went back: none of them is there, or given again."""
        holes, first = self.rows.holes(channel), channel.next_row
        self.rows.packs.cut(channel.record.id, first, behind)
        self.rows.queue.delete(channel.record.id, first, behind)
        channel.next_row = behind
        channel.in_holes += behind - first
        self.rows.dig(channel, holes, first, behind)

    def oldest(self, channel: ChannelState) -> float | None:
        """When the oldest row that is held was stored, seconds since 1970; None without one."""
        return self.rows.queue.oldest(channel.record.id, channel.front)

    # --- single rows, for the table ``failed`` ---------------------------------------------------------------------

    def find(self, channel: ChannelState, row: int) -> Any:
        """A row that is held, is a message and as it was written; None for any other. It has a row of its own then."""
        if not channel.front <= row < channel.next_row or row in self.rows.holes(channel):
            return None
        self._unpack(channel.record.id, row)
        found = self._connection.execute(
            "SELECT * FROM inbox WHERE channel = ? AND row = ?", (channel.record.id, row)
        ).fetchone()
        return found if found is not None and received_intact(found) and found[4] < GAP else None

    def _unpack(self, channel: int, row: int) -> None:
        """Give a message that is in a pack a row of its own."""
        if not self.rows.packs.heads(channel, row, row + 1):
            return
        self.rows.packs.cut(channel, row, row + 1)
        ((pack,), _) = self.rows.packs.read(channel, row, row + 1, 1, 0)
        self.rows.packs.delete(channel, row, row + 1)
        ((kind, data, whole),) = contents_of(pack)
        fields = (channel, row, pack.epoch, pack.seq, kind, data)
        crc = received_crc(*fields, None, pack.enqueued)
        self.rows.queue.write([(*fields, None, None, None, pack.enqueued, crc if whole else ~crc & 0xFFFFFFFF)])

    def rewrite(self, fields: Sequence[Any]) -> None:
        """Other fields of a row that is held."""
        self.rows.queue.write([sealed_row(fields)])

    def take(self, channel: ChannelState, row: int) -> None:
        """Delete one row; the caller accounts for it."""
        self._delete(channel, row, row + 1)

    def append(self, channel: ChannelState, messages: Sequence[Sequence[Any]]) -> int:
        """Put messages, each ``(epoch, seq, kind, payload, enqueued)``, behind all rows; answers the row of the first."""
        self.rows.queue.make_room(channel.record.id, channel.next_row, channel.next_row + len(messages))
        first, record = channel.next_row, channel.record
        for place, (epoch, seq, kind, payload, enqueued) in enumerate(messages, first):
            self.rewrite((record.id, place, epoch, seq, kind, payload, None, None, None, enqueued))
        channel.next_row += len(messages)
        size = sum(weight(message[3]) for message in messages)
        channel.change(in_count=record.in_count + len(messages), in_bytes=record.in_bytes + size)
        return first


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
