"""The outbox in SQLite: putting messages, and all the ways in which they leave."""

from __future__ import annotations

import sqlite3

from rondevud import records
from rondevud.errors import StoreConflict
from rondevud.records import ProducerRange, Reason, Removal
from rondevud.store.base import Limits, Taken, check_closing, check_numbers, join_ranges, producer_ranges
from rondevud.store.outbox_expiry import OutboxExpiry
from rondevud.store.outbox_reader import OutboxReader
from rondevud.store.outbox_rows import OutboxRows, first_messages
from rondevud.store.packs import CLOSING, OutPack, encode
from rondevud.store.packs import sizes as sizes_of
from rondevud.store.rows import ChannelRows, ChannelState, ProducerRows, is_number


class OutboxTable:
    """The operations on an outbox, but for those of its `reader` and of its `expiry`. Each is inside a transaction."""

    def __init__(
        self, connection: sqlite3.Connection, channels: ChannelRows, producers: ProducerRows, limits: Limits
    ) -> None:
        self._connection = connection
        self._channels = channels
        self._producers = producers
        self._limits = limits
        self.rows = OutboxRows(connection, channels, producers, limits)
        self.reader = OutboxReader(self.rows)
        self.expiry = OutboxExpiry(self.rows)

    def clear(self) -> None:
        """Forget what a rollback may have undone."""
        self.rows.clear()
        self.expiry.clear()

    # --- putting ---------------------------------------------------------------------------------------------------

    def raise_next(self, channel: ChannelState, floor: int) -> bool:
        """Raise the channel's next number to `floor`, saying so with a `restart` removal; whether it was below."""
        first = channel.record.next
        if floor <= first:
            return False
        self.rows.removals.add(channel.record.id, Removal(first, floor, Reason.RESTART, 0))
        channel.change(next=floor)
        return True

    def skip(self, channel: ChannelState, behind: int) -> None:
        """Numbers up to `behind` were given before the store went back: say `damaged` of those that are not there."""
        number, first = channel.record.id, channel.record.next
        self.rows.packs.cut(number, first, behind)
        messages = size = 0
        while first < behind:
            held = list(self.rows.walk(number, first, behind, self._limits.slice_rows))
            for item in held:
                if item.seq > first:
                    self.rows.removals.add(number, Removal(first, item.seq, Reason.DAMAGED, None))
                first = item.seq + item.messages
                messages, size = messages + item.messages, size + item.size
            if not held:
                self.rows.removals.add(number, Removal(first, behind, Reason.DAMAGED, None))
                first = behind
        record = channel.record
        channel.totals.accepted += messages
        channel.change(next=behind, out_count=record.out_count + messages, out_bytes=record.out_bytes + size)

    def put(self, operation: records.Put) -> records.PutResult:
        channel = self._channels.get(operation.channel, change=True)
        check_closing(operation.payloads)
        check_numbers(operation.floor, operation.first_seq)
        encoded = encode(operation.payloads)
        count = len(encoded.datas)
        producer = self._producers.find(operation.producer) if operation.producer > 0 else None
        if operation.producer > 0 and (producer is None or producer.channel != operation.channel):
            raise StoreConflict(f"no producer {operation.producer} in channel {operation.channel}")
        jumped = bool(count) and self.raise_next(channel, operation.floor)
        self.rows.queue.make_room(channel.record.id, channel.record.next, channel.record.next + count)
        record = channel.record
        first, size = record.next, sum(map(len, encoded.datas))
        self.rows.insert(operation, first, encoded, self.expiry.age(operation))
        closing = bool(count) and encoded.kinds[-1] == CLOSING
        channel.change(
            next=first + count,
            out_count=record.out_count + count,
            out_bytes=record.out_bytes + size,
            out_closed=first + count - 1 if closing else record.out_closed,
        )
        channel.totals.accepted += count
        if producer is not None:
            self._producers.advance(producer, operation)
        self.rows.moved += size
        return records.PutResult(first, first + count, size, jumped)

    # --- messages that leave ---------------------------------------------------------------------------------------

    def acknowledge(self, operation: records.Acknowledge) -> records.Acknowledged:
        channel = self._channels.get(operation.channel, change=True)
        check_numbers(operation.recv_next)
        self.raise_next(channel, operation.recv_next)
        record = channel.record
        if operation.recv_next <= record.acked:
            return records.Acknowledged(record.acked, 0, 0, (), more=False)
        upto = self._slice_end(channel, operation.recv_next)
        packs, upto = self.rows.find_acknowledged(record.id, upto)
        self.rows.packs.cut(record.id, upto)
        rows = self._connection.execute(
            "SELECT producer, min(producer_seq), max(producer_seq), count(*), ifnull(sum(length(payload)), 0) FROM outbox"
            " WHERE channel = ? AND seq < ? GROUP BY producer ORDER BY producer",
            (record.id, upto),
        ).fetchall()
        messages = sum(row[3] for row in rows) + sum(pack.messages for pack in packs)
        size = sum(row[4] for row in rows) + sum(pack.size for pack in packs)
        known = [row for row in rows if row[0] and all(map(is_number, row[:3]))]  # damage leaves anything
        ranges = join_ranges([*producer_ranges(packs), *(ProducerRange(*row[:4]) for row in known)])
        self.rows.queue.delete(record.id, 0, upto)
        self.rows.removals.drop(record.id, upto)
        channel.totals.acknowledged += self.rows.count_off(channel, messages, size)
        self._producers.tell(ranges, acknowledged=True)
        channel.base = max(channel.base, upto)
        channel.change(acked=upto, acked_count=record.acked_count + messages)
        if upto == record.next:  # nothing is left, whatever damage did to the counts
            channel.totals.damaged += channel.record.out_count
            channel.change(out_count=0, out_bytes=0)
        return records.Acknowledged(upto, messages, size, ranges, more=upto < operation.recv_next)

    def _slice_end(self, channel: ChannelState, recv_next: int) -> int:
        """The number up to which one operation may delete."""
        limit = self._limits.slice_rows
        number = channel.record.id
        if recv_next - channel.base <= limit:
            return recv_next
        upto = recv_next
        ends = self._connection.execute(
            "SELECT next FROM removals WHERE channel = ? AND next <= ? ORDER BY first LIMIT 2 OFFSET ?",
            (number, recv_next, limit - 1),
        ).fetchall()
        if len(ends) == 2:
            upto = ends[0][0]
        if channel.record.out_count > limit:
            upto = self._behind_most(number, upto, limit)
        return int(upto)

    def _behind_most(self, channel: int, upto: int, most: int) -> int:
        """The number behind the first `most` messages below `upto`; `upto` when they are not more."""
        behind = upto
        for item in self.rows.walk(channel, 0, upto, most):
            if item.messages > most:
                return min(upto, item.seq + most) if most else behind
            most -= item.messages
            behind = item.seq + item.messages
        return upto

    def trim(self, operation: records.Trim) -> records.RemoveResult:
        channel = self._channels.get(operation.channel, change=True)
        taken: list[Taken] = []
        left = self._limits.slice_rows
        items = list(self.rows.walk(operation.channel, 0, channel.record.next, left, closing=False))
        count, size = channel.record.out_count, channel.record.out_bytes  # less now if something was found damaged

        def too_much() -> bool:
            over_count = operation.max_count is not None and count > operation.max_count
            return over_count or (operation.max_bytes is not None and size > operation.max_bytes)

        more = False
        for item in items:
            messages = 0
            for length in _sizes(item):
                if not too_much() or not left:
                    more = too_much()
                    break
                messages, left, count, size = messages + 1, left - 1, count - 1, size - length
            if messages:
                taken.append(first_messages(item, messages))
            if messages < item.messages:
                break
        return self.rows.answer(operation.channel, self.rows.take(channel, taken, Reason.OVERFLOW), more=more)

    def remove(self, operation: records.Remove) -> records.RemoveResult:
        channel = self._channels.get(operation.channel, change=True)
        left = self._limits.slice_rows
        taken: list[Taken] = []
        more = False
        closing = not operation.keep_closing
        for item in self.rows.walk(operation.channel, operation.first, operation.next, left, closing=closing):
            more = item.messages > left
            if left:
                taken.append(first_messages(item, min(left, item.messages)))
            if more:
                break
            left -= item.messages
        return self.rows.answer(operation.channel, self.rows.take(channel, taken, operation.reason), more=more)

    def oldest(self, channel: ChannelState) -> float | None:
        """When the oldest message that is held was accepted, seconds since 1970; None where nobody knows."""
        return self.rows.queue.oldest(channel.record.id, channel.base)


def _sizes(item: Taken | OutPack) -> list[int]:
    """Payload bytes of each of its messages."""
    return sizes_of(item) if isinstance(item, OutPack) else [item.size]
