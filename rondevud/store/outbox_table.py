"""The outbox in SQLite: messages, removals, and what reading does about damage."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable
from heapq import merge
from itertools import islice
from typing import Any

from rondevud import records
from rondevud.errors import StoreConflict
from rondevud.records import OutItem, OutMessage, Payload, ProducerRange, Reason, Removal, Removed, Stamp
from rondevud.store.base import (
    Limits,
    Taken,
    check_closing,
    check_numbers,
    cut_removal,
    encode_text,
    expiry,
    group_removed,
    join_removals,
)
from rondevud.store.database import damage
from rondevud.store.rows import (
    ChannelRows,
    ChannelState,
    ProducerRows,
    fields_crc,
    intact,
    message_crc,
    message_intact,
    weight,
)

logger = logging.getLogger(__name__)

CLOSING, TEXT, BINARY = 0, 1, 2

_TAKEN = "seq, ifnull(length(payload), 0), producer, producer_seq"


def encode_payload(payload: Payload) -> tuple[int, bytes]:
    """Kind and bytes of a payload. Raises `StoreConflict` for text that UTF-8 cannot carry."""
    if payload is None:
        return CLOSING, b""
    if isinstance(payload, str):
        return TEXT, encode_text(payload)
    return BINARY, payload


def decode_payload(kind: int, data: bytes) -> Payload:
    """The payload of an intact row."""
    if kind == CLOSING:
        return None
    return data.decode() if kind == TEXT else data


class OutboxTable:
    """The tables ``outbox``, ``removals`` and ``boots``. Each method is one operation, inside a transaction."""

    def __init__(
        self, connection: sqlite3.Connection, channels: ChannelRows, producers: ProducerRows, limits: Limits
    ) -> None:
        self._connection = connection
        self._channels = channels
        self._producers = producers
        self._limits = limits
        self._boots: dict[str, int] = {}
        self.trusted = False
        """Whether what an index does not lead to is not there: its indexes have been made anew."""
        self.moved = 0
        """Payload bytes written and read since whoever watches it set it to 0."""

    def clear(self) -> None:
        """Forget what a rollback may have undone."""
        self._boots.clear()

    def _boot(self, boot: str) -> int:
        """The small id of a boot, given at its first use."""
        if (number := self._boots.get(boot)) is None:
            self._connection.execute("INSERT OR IGNORE INTO boots (boot) VALUES (?)", (boot,))
            number = self._connection.execute("SELECT id FROM boots WHERE boot = ?", (boot,)).fetchone()[0]
            self._boots[boot] = number
        return number

    # --- putting ---------------------------------------------------------------------------------------------------

    def raise_next(self, channel: ChannelState, floor: int) -> bool:
        """Raise the channel's next number to `floor`, saying so with a `restart` removal; whether it was below."""
        first = channel.record.next
        if floor <= first:
            return False
        self._add_removal(channel.record.id, Removal(first, floor, Reason.RESTART, 0))
        channel.change(next=floor)
        return True

    def skip(self, channel: ChannelState, behind: int) -> None:
        """Numbers up to `behind` were given before the store went back: say `damaged` of those that are not there."""
        number, first = channel.record.id, channel.record.next
        held = self._connection.execute(
            "SELECT seq, ifnull(length(payload), 0) FROM outbox WHERE channel = ? AND seq >= ? AND seq < ? ORDER BY seq",
            (number, first, behind),
        ).fetchall()
        for seq, _ in [*held, (behind, 0)]:
            if seq > first:
                self._add_removal(number, Removal(first, seq, Reason.DAMAGED, None))
            first = seq + 1
        record = channel.record
        channel.totals.accepted += len(held)
        channel.change(
            next=behind,
            out_count=record.out_count + len(held),
            out_bytes=record.out_bytes + sum(row[1] for row in held),
        )

    def put(self, operation: records.Put) -> records.PutResult:
        channel = self._channels.get(operation.channel, change=True)
        check_closing(operation.payloads)
        check_numbers(operation.floor, operation.first_seq)
        encoded = [encode_payload(payload) for payload in operation.payloads]
        producer = self._producers.find(operation.producer) if operation.producer > 0 else None
        if operation.producer > 0 and (producer is None or producer.channel != operation.channel):
            raise StoreConflict(f"no producer {operation.producer} in channel {operation.channel}")
        jumped = bool(encoded) and self.raise_next(channel, operation.floor)
        record = channel.record
        first, size = record.next, sum(len(data) for _, data in encoded)
        self._insert(operation, first, encoded)
        closing = bool(encoded) and encoded[-1][0] == CLOSING
        channel.change(
            next=first + len(encoded),
            out_count=record.out_count + len(encoded),
            out_bytes=record.out_bytes + size,
            out_closed=first + len(encoded) - 1 if closing else record.out_closed,
        )
        channel.totals.accepted += len(encoded)
        if producer is not None:
            self._producers.advance(producer, operation)
        self.moved += size
        return records.PutResult(first, first + len(encoded), size, jumped)

    def _insert(self, operation: records.Put, first: int, encoded: list[tuple[int, bytes]]) -> None:
        boot: int | None = None
        boot_expiry: float | None = None
        wall_expiry: float | None = None
        if operation.max_age is not None:
            boot = self._boot(operation.stamp.boot)
            boot_expiry = float(expiry(operation.stamp.boottime, operation.max_age))
            wall_expiry = float(expiry(operation.stamp.wall, operation.max_age))
        rows: list[tuple[Any, ...]] = []
        number, producer, producer_seq = operation.channel, operation.producer, operation.first_seq
        accepted = float(operation.stamp.wall)
        for index, (kind, data) in enumerate(encoded):
            age = (boot, boot_expiry, wall_expiry) if kind != CLOSING else (None, None, None)
            crc = message_crc(number, first + index, kind, data, producer, producer_seq + index, *age, accepted)
            rows.append((number, first + index, kind, data, producer, producer_seq + index, *age, crc, accepted))
        # REPLACE: files of different times put together can leave messages of a later one behind the last of this one.
        self._connection.executemany("INSERT OR REPLACE INTO outbox VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)

    # --- removals --------------------------------------------------------------------------------------------------

    def _add_removal(self, channel: int, removal: Removal) -> None:
        """Write a removal, joined with its neighbours where they have the same reason."""
        neighbours = self._connection.execute(
            "SELECT channel, first, next, reason, messages, crc FROM removals WHERE channel = ?1 AND first IN"
            " ((SELECT max(first) FROM removals WHERE channel = ?1 AND first < ?2), ?3) ORDER BY first",
            (channel, removal.first, removal.next),
        ).fetchall()
        for row in neighbours:
            if not intact(row):
                continue
            other = Removal(row[1], row[2], Reason(row[3]), row[4])
            pair = (other, removal) if other.first < removal.first else (removal, other)
            if joined := join_removals(*pair):
                removal = joined
                self._connection.execute("DELETE FROM removals WHERE channel = ? AND first = ?", (channel, other.first))
        fields = (channel, removal.first, removal.next, str(removal.reason), removal.messages)
        self._connection.execute(
            "INSERT OR REPLACE INTO removals VALUES (?, ?, ?, ?, ?, ?)", (*fields, fields_crc(fields))
        )

    def _removals_since(self, channel: int, number: int) -> list[Removal]:
        """One page of removals that reach `number` or begin behind it, the first one cut; damaged ones are deleted."""
        rows = self._connection.execute(
            "SELECT channel, first, next, reason, messages, crc FROM removals WHERE channel = ?1 AND first >="
            " ifnull((SELECT max(first) FROM removals WHERE channel = ?1 AND first <= ?2), ?2) ORDER BY first LIMIT ?3",
            (channel, number, self._limits.page_messages + 1),
        ).fetchall()
        removals: list[Removal] = []
        for row in rows:
            if not intact(row):
                logger.error("a removal in channel %d is damaged, at about number %s", channel, row[1])
                self._connection.execute("DELETE FROM removals WHERE channel = ? AND first = ?", (channel, row[1]))
            elif row[2] > number:
                removals.append(cut_removal(Removal(row[1], row[2], Reason(row[3]), row[4]), number))
        return removals[: self._limits.page_messages]

    def _drop_removals(self, channel: int, number: int) -> None:
        """Forget what lies below `number`, cutting a removal that goes on behind it."""
        last = self._connection.execute(
            "SELECT channel, first, next, reason, messages, crc FROM removals WHERE channel = ? AND first < ?"
            " ORDER BY first DESC LIMIT 1",
            (channel, number),
        ).fetchone()
        if last is None:
            return
        self._connection.execute("DELETE FROM removals WHERE channel = ? AND first < ?", (channel, number))
        if intact(last) and last[2] > number:
            self._add_removal(channel, cut_removal(Removal(last[1], last[2], Reason(last[3]), last[4]), number))

    # --- messages that leave ---------------------------------------------------------------------------------------

    def acknowledge(self, operation: records.Acknowledge) -> records.Acknowledged:
        channel = self._channels.get(operation.channel, change=True)
        check_numbers(operation.recv_next)
        self.raise_next(channel, operation.recv_next)
        record = channel.record
        if operation.recv_next <= record.acked:
            return records.Acknowledged(record.acked, 0, 0, (), more=False)
        upto = self._slice_end(channel, operation.recv_next)
        rows = self._connection.execute(
            "SELECT producer, min(producer_seq), max(producer_seq), count(*), ifnull(sum(length(payload)), 0) FROM outbox"
            " WHERE channel = ? AND seq < ? GROUP BY producer ORDER BY producer",
            (record.id, upto),
        ).fetchall()
        messages, size = sum(row[3] for row in rows), sum(row[4] for row in rows)
        known = [
            row for row in rows if row[0] and all(isinstance(field, int) for field in row[:3])
        ]  # damage leaves anything
        ranges = tuple(ProducerRange(*row[:4]) for row in known)
        self._connection.execute("DELETE FROM outbox WHERE channel = ? AND seq < ?", (record.id, upto))
        self._drop_removals(record.id, upto)
        channel.totals.acknowledged += self._count_off(channel, messages, size)
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
            numbers = self._connection.execute(
                "SELECT seq FROM outbox WHERE channel = ? AND seq < ? ORDER BY seq LIMIT 2 OFFSET ?",
                (number, upto, limit - 1),
            ).fetchall()
            if len(numbers) == 2:
                upto = numbers[0][0] + 1
        return int(upto)

    @staticmethod
    def _count_off(channel: ChannelState, messages: int, size: int) -> int:
        """Answers how many of the messages had been counted: all of them, unless damage made some reappear."""
        record = channel.record
        counted = min(record.out_count, messages)
        channel.change(out_count=record.out_count - counted, out_bytes=max(0, record.out_bytes - size))
        return counted

    def _take(self, channel: ChannelState, taken: list[Taken], reason: Reason) -> list[Removed]:
        """Delete messages, given in the order of their numbers, and write removals for them."""
        removed = group_removed(taken, reason)
        number = channel.record.id
        for item in removed:
            self._connection.execute(
                "DELETE FROM outbox WHERE channel = ? AND seq >= ? AND seq < ?", (number, item.first, item.next)
            )
            self._add_removal(number, Removal(item.first, item.next, reason, item.messages))
            self._producers.tell(item.producers, acknowledged=False)
            channel.totals.remove(reason, self._count_off(channel, item.messages, item.size))
        return removed

    def _other_boots(self, channel: int, boot: int) -> list[int]:
        """Boots other than `boot` from which messages that can expire are held; each is one look into the index."""
        boots: list[int] = []
        last = -1
        while True:
            row = self._connection.execute(
                "SELECT min(boot) FROM outbox WHERE channel = ? AND boot > ?", (channel, last)
            ).fetchone()
            if row[0] is None:
                return boots
            last = row[0]
            if last != boot:
                boots.append(last)

    def expire(self, operation: records.Expire) -> records.RemoveResult:
        channel = self._channels.get(operation.channel, change=True)
        stamp, number = operation.stamp, operation.channel
        boot = self._boot(stamp.boot)
        limit = self._limits.slice_rows
        taken = self._connection.execute(
            f"SELECT {_TAKEN} FROM outbox WHERE channel = ? AND boot = ? AND boot_expiry <= ?"  # noqa: S608 - a constant
            " ORDER BY boot_expiry, seq LIMIT ?",
            (number, boot, stamp.boottime, limit),
        ).fetchall()
        if len(taken) < limit:
            old = [
                self._connection.execute(
                    f"SELECT wall_expiry, {_TAKEN} FROM outbox WHERE channel = ? AND boot = ?"  # noqa: S608 - a constant
                    " AND wall_expiry <= ? ORDER BY wall_expiry, seq LIMIT ?",
                    (number, other, stamp.wall, limit - len(taken)),
                ).fetchall()
                for other in self._other_boots(number, boot)
            ]
            taken.extend(row[1:] for row in islice(merge(*old), limit - len(taken)))
        removed = self._take(channel, sorted(Taken(*row) for row in taken), Reason.EXPIRED)
        return records.RemoveResult(removed, more=self._next_expiry(number, stamp) == 0.0)

    def _next_expiry(self, channel: int, stamp: Stamp) -> float | None:
        boot = self._boot(stamp.boot)
        first = self._connection.execute(
            "SELECT min(boot_expiry) FROM outbox WHERE channel = ? AND boot = ?", (channel, boot)
        ).fetchone()[0]
        waits = [] if first is None else [first - stamp.boottime]
        for other in self._other_boots(channel, boot):
            moment = self._connection.execute(
                "SELECT min(wall_expiry) FROM outbox WHERE channel = ? AND boot = ?", (channel, other)
            ).fetchone()[0]
            waits.append(moment - stamp.wall)
        return max(0.0, min(waits)) if waits else None

    def find_expiry(self, operation: records.FindExpiry) -> records.NextExpiry:
        self._channels.get(operation.channel)
        return records.NextExpiry(self._next_expiry(operation.channel, operation.stamp))

    def trim(self, operation: records.Trim) -> records.RemoveResult:
        channel = self._channels.get(operation.channel, change=True)
        count, size = channel.record.out_count, channel.record.out_bytes
        taken: list[Taken] = []
        more = False
        rows = self._connection.execute(
            f"SELECT {_TAKEN} FROM outbox WHERE channel = ? AND kind <> 0 ORDER BY seq",  # noqa: S608 - a constant
            (operation.channel,),
        )
        for row in rows:
            over_count = operation.max_count is not None and count > operation.max_count
            if not over_count and (operation.max_bytes is None or size <= operation.max_bytes):
                break
            if len(taken) == self._limits.slice_rows:
                more = True
                break
            taken.append(Taken(*row))
            count, size = count - 1, size - row[1]
        rows.close()
        return records.RemoveResult(self._take(channel, taken, Reason.OVERFLOW), more)

    def remove(self, operation: records.Remove) -> records.RemoveResult:
        channel = self._channels.get(operation.channel, change=True)
        limit = self._limits.slice_rows
        rows = self._connection.execute(
            f"SELECT {_TAKEN} FROM outbox WHERE channel = ? AND seq >= ? AND seq < ? AND kind >= ?"  # noqa: S608 - a constant
            " ORDER BY seq LIMIT ?",
            (operation.channel, operation.first, operation.next, int(operation.keep_closing), limit + 1),
        ).fetchall()
        removed = self._take(channel, [Taken(*row) for row in rows[:limit]], operation.reason)
        return records.RemoveResult(removed, more=len(rows) > limit)

    def oldest(self, channel: ChannelState) -> float | None:
        """When the oldest message that is held was accepted, seconds since 1970; None where nobody knows."""
        row = self._connection.execute(
            "SELECT accepted FROM outbox WHERE channel = ? AND seq >= ? ORDER BY seq LIMIT 1",
            (channel.record.id, channel.base),
        ).fetchone()
        return row[0] if row is not None and isinstance(row[0], float) else None

    # --- reading ---------------------------------------------------------------------------------------------------

    def read_out(self, operation: records.ReadOut) -> records.OutPage:
        channel = self._channels.get(operation.channel)
        start, end = max(operation.first, channel.base), channel.record.next
        damaged: list[Removed] = []
        for _ in range(2 * self._limits.page_messages):  # again after damage was replaced by removals
            rows, removals, horizon = self._page(channel, start)
            good: list[OutMessage] = []
            bad: list[Any] = []
            behind = start
            for row in rows:
                if not message_intact(row):
                    bad.append(row)
                    continue
                if row[0] != operation.channel or row[1] < behind:  # an intact row, and not the one that was asked for
                    raise damage(f"an index of the outbox leads astray, to message {row[1]} of channel {row[0]}")
                good.append(OutMessage(row[1], decode_payload(row[2], row[3])))
                behind = row[1] + 1
            found = self._bury(channel, bad)
            items = _in_line([*good, *removals])
            if not bad:
                holes = _holes(items, start, horizon)
                if holes and not self.trusted:
                    raise damage(f"the outbox of channel {operation.channel} seems to lack the number {holes[0][0]}")
                found = [self._fill(channel, *hole) for hole in holes]
            if not bad and not found:
                break
            damaged.extend(found)
        else:
            raise damage(f"the outbox of channel {operation.channel} cannot be read from {start} on")
        items = items[: self._limits.page_messages]
        behind = _behind(items[-1]) if items else start
        self.moved += sum(weight(row[3]) for row in rows)
        return records.OutPage(items, behind, behind >= end, sorted(damaged))

    def _page(self, channel: ChannelState, start: int) -> tuple[list[Any], list[Removal], int]:
        """Rows and removals of one page from `start` on, and the number up to which nothing is missing from it."""
        number, limit = channel.record.id, self._limits.page_messages
        horizon = channel.record.next
        removals = self._removals_since(number, start)
        if len(removals) == limit:
            horizon = removals[-1].next
        cursor = self._connection.execute(
            "SELECT * FROM outbox WHERE channel = ? AND seq >= ? AND seq < ? ORDER BY seq LIMIT ?",
            (number, start, horizon, limit),
        )
        rows: list[Any] = []
        size = 0
        for row in cursor:
            size += weight(row[3])
            if rows and size > self._limits.page_bytes:
                horizon = rows[-1][1] + 1
                break
            rows.append(row)
        else:
            if len(rows) == limit:
                horizon = rows[-1][1] + 1
        cursor.close()
        return rows, [removal for removal in removals if removal.first < horizon], horizon

    def _bury(self, channel: ChannelState, rows: Iterable[Any]) -> list[Removed]:
        """Replace damaged messages by removals. Their producers are told as the rows name them."""
        taken: list[Taken] = []
        for row in rows:
            logger.error("message %s in the outbox of channel %d is damaged", row[1], channel.record.id)
            state = self._producers.find(row[4]) if isinstance(row[4], int) else None
            known = state is not None and state.channel == channel.record.id
            taken.append(Taken(row[1], weight(row[3]), *(row[4:6] if known else (0, 0))))
        if taken:
            self._channels.get(channel.record.id, change=True)
        return self._take(channel, taken, Reason.DAMAGED)

    def _fill(self, channel: ChannelState, first: int, behind: int) -> Removed:
        """Write a removal for a hole: of as many messages as numbers if that can be, else of an unknown count."""
        self._channels.get(channel.record.id, change=True)
        count = behind - first
        possible = count <= channel.record.out_count
        logger.error("the outbox of channel %d lacks the numbers %d to %d", channel.record.id, first, behind - 1)
        self._add_removal(channel.record.id, Removal(first, behind, Reason.DAMAGED, count if possible else None))
        messages = count if possible else 0
        channel.totals.damaged += self._count_off(channel, messages, 0)
        return Removed(first, behind, Reason.DAMAGED, messages, 0, ())


def _behind(item: OutItem) -> int:
    return item.seq + 1 if isinstance(item, OutMessage) else item.next


def _in_line(items: list[OutItem]) -> list[OutItem]:
    """The items in order; what another one covers already is left out (damage can make rows reappear)."""
    line: list[OutItem] = []
    for item in sorted(items, key=lambda item: item[0]):
        if not line or item[0] >= _behind(line[-1]):
            line.append(item)
    return line


def _holes(items: list[OutItem], start: int, horizon: int) -> list[tuple[int, int]]:
    """Ranges between `start` and `horizon` that are in no item."""
    holes: list[tuple[int, int]] = []
    number = start
    for item in items:
        if item[0] > number:
            holes.append((number, item[0]))
        number = max(number, _behind(item))
    if number < horizon:
        holes.append((number, horizon))
    return holes
