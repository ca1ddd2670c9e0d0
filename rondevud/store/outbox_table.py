"""The outbox in SQLite: messages, removals, and what reading does about damage."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable, Iterator
from heapq import merge
from itertools import starmap
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple, TypeAlias

from rondevud import records
from rondevud.errors import StoreConflict
from rondevud.records import OutItem, OutMessage, ProducerRange, Reason, Removal, Removed, Stamp
from rondevud.store.base import (
    Limits,
    Taken,
    check_closing,
    check_numbers,
    expiry,
    group_removed,
    join_ranges,
    producer_ranges,
)
from rondevud.store.database import damage
from rondevud.store.pack_table import PackTable
from rondevud.store.packs import (
    CLOSING,
    PACK_MESSAGES,
    TEXT,
    Encoded,
    OutPack,
    claimed,
    decode_payload,
    encode,
    heaviness,
    part,
    runs,
    sealed,
)
from rondevud.store.packs import contents as contents_of
from rondevud.store.packs import payloads as payloads_of
from rondevud.store.packs import sizes as sizes_of
from rondevud.store.removal_table import RemovalTable
from rondevud.store.rows import (
    ChannelRows,
    ChannelState,
    ProducerRows,
    is_number,
    message_crc,
    message_intact,
    weight,
)

logger = logging.getLogger(__name__)

_TAKEN = "seq, ifnull(length(payload), 0), producer, producer_seq"

_DATED = ("outbox", "outbox_packs")
"""Tables of what can expire."""

_Entry: TypeAlias = tuple[int, int, OutMessage]
"""A message that is held, behind its number and its payload bytes."""

_Expired: TypeAlias = tuple[float, int, Taken | OutPack]
"""When it expired, and its number."""


class _Page(NamedTuple):
    """What one reading of the outbox has found."""

    messages: list[OutMessage]
    removals: list[Removal]
    damaged: list[Any]
    """Rows that fail their checksum."""
    horizon: int
    """The number up to which nothing is missing from it."""
    size: int
    """Payload bytes."""


class OutboxTable:
    """The tables ``outbox``, ``outbox_packs``, ``removals`` and ``boots``. Each method is one operation, inside a
    transaction."""

    def __init__(
        self, connection: sqlite3.Connection, channels: ChannelRows, producers: ProducerRows, limits: Limits
    ) -> None:
        self._connection = connection
        self._channels = channels
        self._producers = producers
        self._limits = limits
        self.packs = PackTable(connection, OutPack, self._lose)
        self._removals = RemovalTable(connection)
        self._lost: dict[int, list[Removed]] = {}
        """By channel what was lost with packs and has not been told in an answer."""
        self._had_by_peer: list[Taken] = []
        """What was lost with packs and the peer has: it is below `_leaving`."""
        self._leaving = 0
        self._clear_from: set[int] = set()
        """Channels that hold nothing at or above their next number."""
        self._boots: dict[str, int] = {}
        self.trusted = False
        """Whether what an index does not lead to is not there: its indexes have been made anew."""
        self.moved = 0
        """Payload bytes written and read since whoever watches it set it to 0."""

    def clear(self) -> None:
        """Forget what a rollback may have undone."""
        self._boots.clear()
        self._lost.clear()
        self._had_by_peer.clear()
        self._clear_from.clear()
        self.packs.clear()

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
        self._removals.add(channel.record.id, Removal(first, floor, Reason.RESTART, 0))
        channel.change(next=floor)
        return True

    def skip(self, channel: ChannelState, behind: int) -> None:
        """Numbers up to `behind` were given before the store went back: say `damaged` of those that are not there."""
        number, first = channel.record.id, channel.record.next
        self.packs.cut(number, first, behind)
        messages = size = 0
        while first < behind:
            held = list(self._walk(number, first, behind, self._limits.slice_rows))
            for item in held:
                if item.seq > first:
                    self._removals.add(number, Removal(first, item.seq, Reason.DAMAGED, None))
                first = item.seq + item.messages
                messages, size = messages + item.messages, size + item.size
            if not held:
                self._removals.add(number, Removal(first, behind, Reason.DAMAGED, None))
                first = behind
        record = channel.record
        channel.totals.accepted += messages
        channel.change(next=behind, out_count=record.out_count + messages, out_bytes=record.out_bytes + size)

    def _walk(
        self, channel: int, first: int, behind: int, most: int, *, closing: bool = True
    ) -> Iterator[Taken | OutPack]:
        """What is held from `first` to `behind`, in the order of the numbers: single messages, and packs without payloads.

        It may end behind `most` messages; with `closing` false it leaves closing messages out.
        """
        packs, end = self.packs.some_heads(channel, first, behind, most)
        rows = self._connection.execute(
            f"SELECT {_TAKEN} FROM outbox WHERE channel = ? AND seq >= ? AND seq < ? AND kind >= ?"  # noqa: S608 - a constant
            " ORDER BY seq LIMIT ?",
            (channel, first, min(behind, end), CLOSING if closing else TEXT, most + 1),
        ).fetchall()
        if len(rows) > most:
            packs = [pack for pack in packs if pack.seq < rows[-1][0]]
        items: Iterable[Taken | OutPack] = merge(starmap(Taken, rows), packs, key=attrgetter("seq"))
        for item in items:
            last = item.seq + item.messages
            start, end = max(first, item.seq), min(behind, last)
            if start >= end:  # another one holds it as well
                continue
            first = end
            if isinstance(item, OutPack) and (start, end) != (item.seq, last):
                yield part(item, start - item.seq, end - item.seq)
            else:
                yield item

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
        self._make_room(channel, channel.record.next + count)
        record = channel.record
        first, size = record.next, sum(map(len, encoded.datas))
        self._insert(operation, first, encoded)
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
        self.moved += size
        return records.PutResult(first, first + count, size, jumped)

    def _make_room(self, channel: ChannelState, behind: int) -> None:
        """Delete what is in the way of the numbers up to `behind`.

        Files of different times put together can leave messages of a later one behind the last of this one.
        """
        number, first = channel.record.id, channel.record.next
        if number in self._clear_from:
            return
        row = self._connection.execute(
            "SELECT 1 FROM outbox WHERE channel = ? AND seq >= ? LIMIT 1", (number, first)
        ).fetchone()
        if row is None and not self.packs.reaches(number, first):
            self._clear_from.add(number)
            return
        self.packs.cut(number, first, behind)
        self._delete(number, first, behind)

    def _delete(self, channel: int, first: int, behind: int) -> None:
        """Messages ``first … behind - 1``; no pack reaches over either end."""
        self._connection.execute(
            "DELETE FROM outbox WHERE channel = ? AND seq >= ? AND seq < ?", (channel, first, behind)
        )
        self.packs.delete(channel, first, behind)

    def _insert(self, operation: records.Put, first: int, encoded: Encoded) -> None:
        boot: int | None = None
        boot_expiry: float | None = None
        wall_expiry: float | None = None
        if operation.max_age is not None:
            boot = self._boot(operation.stamp.boot)
            boot_expiry = float(expiry(operation.stamp.boottime, operation.max_age))
            wall_expiry = float(expiry(operation.stamp.wall, operation.max_age))
        rows: list[tuple[Any, ...]] = []
        packs: list[OutPack] = []
        number, producer = operation.channel, operation.producer
        accepted = float(operation.stamp.wall)
        for start, behind in runs(encoded):
            seq, producer_seq = first + start, operation.first_seq + start
            if behind - start > 1:
                head = (number, seq, 0, 0, producer, producer_seq, boot, boot_expiry, wall_expiry, accepted)
                packs.append(sealed(OutPack(*head, b"", b"", 0, b""), encoded.part(start, behind)))
                continue
            kind, data = encoded.kinds[start], encoded.datas[start]
            age = (boot, boot_expiry, wall_expiry) if kind != CLOSING else (None, None, None)
            crc = message_crc(number, seq, kind, data, producer, producer_seq, *age, accepted)
            rows.append((number, seq, kind, data, producer, producer_seq, *age, crc, accepted))
        self._write(rows)
        self.packs.insert(packs)

    def _write(self, rows: Iterable[tuple[Any, ...]]) -> None:
        self._connection.executemany("INSERT OR REPLACE INTO outbox VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def _single_out(self, pack: OutPack) -> None:
        """Give each damaged message of a pack a row of its own, which fails its checksum as well."""
        held = contents_of(pack)
        for place in (place for place, message in enumerate(held) if not message.whole):
            seq, producer_seq = pack.seq + place, pack.producer_seq + place
            kind, data, _ = held[place]
            self.packs.cut(pack.channel, seq, seq + 1)
            self.packs.delete(pack.channel, seq, seq + 1)
            fields = (pack.channel, seq, kind, data, pack.producer, producer_seq, *pack[6:9], pack.accepted)
            wrong = ~message_crc(*fields) & 0xFFFFFFFF
            self._write([(*fields[:9], wrong, pack.accepted)])

    def _lose(self, pack: OutPack) -> None:
        """Say that the messages of a pack that is not as it was written are damaged: all that lack where it was."""
        if not is_number(pack.channel) or not is_number(pack.seq):
            return
        try:
            channel = self._channels.get(pack.channel, change=True)
        except StoreConflict:
            return
        count, size = claimed(pack), heaviness(pack)
        for first, behind in self._lacking(channel, pack.seq, pack.seq + count):
            sender = self._sender(channel, pack) if (first, behind) == (pack.seq, pack.seq + count) else (0, 0)
            lost = Taken(first, size, *sender, behind - first)
            size = 0
            if first < self._leaving:
                left = _first(lost, min(behind, self._leaving) - first)
                self._had_by_peer.append(left)
                lost = Taken(
                    left.seq + left.messages, 0, sender[0], sender[1] + left.messages, behind - first - left.messages
                )
            if lost.messages:
                self._lost.setdefault(channel.record.id, []).append(self._fill(channel, lost))

    def _lacking(self, channel: ChannelState, first: int, behind: int) -> list[tuple[int, int]]:
        """Which of `PACK_MESSAGES` numbers at most are neither held nor removed."""
        number, first, behind = channel.record.id, max(first, channel.base), min(behind, channel.record.next)
        rows = self._connection.execute(
            "SELECT seq FROM outbox WHERE channel = ? AND seq >= ? AND seq < ?", (number, first, behind)
        ).fetchall()
        items: list[OutItem] = [Removal(seq, seq + 1, Reason.DAMAGED, 1) for (seq,) in rows if is_number(seq)]
        packs = self.packs.heads(number, first, behind)
        items += [Removal(pack.seq, pack.behind, Reason.DAMAGED, pack.messages) for pack in packs]
        removals = self._removals.since(number, first, PACK_MESSAGES + 1)
        items += [removal for removal in removals if removal.first < behind]
        return _holes(_in_line(items), first, behind)

    def _sender(self, channel: ChannelState, pack: OutPack) -> tuple[int, int]:
        """Producer and its first number, as a pack that is not as it was written names them; zeros if that cannot be."""
        if not (is_number(pack.producer) and is_number(pack.producer_seq)):
            return 0, 0
        state = self._producers.find(pack.producer)
        known = state is not None and state.channel == channel.record.id
        return (pack.producer, pack.producer_seq) if known else (0, 0)

    def _take_lost(self, channel: int) -> list[Removed]:
        """What was lost with packs, for an answer that tells of it."""
        return self._lost.pop(channel, [])

    # --- messages that leave ---------------------------------------------------------------------------------------

    def acknowledge(self, operation: records.Acknowledge) -> records.Acknowledged:
        channel = self._channels.get(operation.channel, change=True)
        check_numbers(operation.recv_next)
        self.raise_next(channel, operation.recv_next)
        record = channel.record
        if operation.recv_next <= record.acked:
            return records.Acknowledged(record.acked, 0, 0, (), more=False)
        upto = self._slice_end(channel, operation.recv_next)
        packs, upto = self._acknowledged(record.id, upto)
        self.packs.cut(record.id, upto)
        rows = self._connection.execute(
            "SELECT producer, min(producer_seq), max(producer_seq), count(*), ifnull(sum(length(payload)), 0) FROM outbox"
            " WHERE channel = ? AND seq < ? GROUP BY producer ORDER BY producer",
            (record.id, upto),
        ).fetchall()
        messages = sum(row[3] for row in rows) + sum(pack.messages for pack in packs)
        size = sum(row[4] for row in rows) + sum(pack.size for pack in packs)
        known = [row for row in rows if row[0] and all(map(is_number, row[:3]))]  # damage leaves anything
        ranges = join_ranges([*producer_ranges(packs), *(ProducerRange(*row[:4]) for row in known)])
        self._delete(record.id, 0, upto)
        self._removals.drop(record.id, upto)
        channel.totals.acknowledged += self._count_off(channel, messages, size)
        self._producers.tell(ranges, acknowledged=True)
        channel.base = max(channel.base, upto)
        channel.change(acked=upto, acked_count=record.acked_count + messages)
        if upto == record.next:  # nothing is left, whatever damage did to the counts
            channel.totals.damaged += channel.record.out_count
            channel.change(out_count=0, out_bytes=0)
        return records.Acknowledged(upto, messages, size, ranges, more=upto < operation.recv_next)

    def _acknowledged(self, channel: int, upto: int) -> tuple[list[Taken], int]:
        """What packs hold below `upto`, and the number up to which one operation deletes: `upto`, unless a count is wrong.

        What is damaged there is acknowledged like the rest: the peer has it.
        """
        self._leaving = upto
        try:
            packs, behind = self.packs.some_heads(channel, 0, upto, self._limits.slice_rows)
            had = self._had_by_peer.copy()
        finally:
            self._leaving = 0
            self._had_by_peer.clear()
        return [*(_first(pack, min(pack.behind, upto) - pack.seq) for pack in packs), *had], min(upto, behind)

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
        for item in self._walk(channel, 0, upto, most):
            if item.messages > most:
                return min(upto, item.seq + most) if most else behind
            most -= item.messages
            behind = item.seq + item.messages
        return upto

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
            self.packs.cut(number, item.first, item.next)
            self._delete(number, item.first, item.next)
            self._removals.add(number, Removal(item.first, item.next, reason, item.messages))
            self._producers.tell(item.producers, acknowledged=False)
            channel.totals.remove(reason, self._count_off(channel, item.messages, item.size))
        return removed

    def _other_boots(self, channel: int, boot: int) -> list[int]:
        """Boots other than `boot` from which messages that can expire are held; each is one look into the index."""
        boots: set[int] = set()
        for table in _DATED:
            last = -1
            while True:
                row = self._connection.execute(
                    f"SELECT min(boot) FROM {table} WHERE channel = ? AND boot > ?",  # noqa: S608 - constants
                    (channel, last),
                ).fetchone()
                if row[0] is None:
                    break
                last = row[0]
                boots.update({last} if is_number(last) else ())  # damage leaves anything
        return sorted(boots - {boot})

    def expire(self, operation: records.Expire) -> records.RemoveResult:
        channel = self._channels.get(operation.channel, change=True)
        stamp, number = operation.stamp, operation.channel
        boot = self._boot(stamp.boot)
        limit = self._limits.slice_rows
        taken = _most(self._expired(number, boot, "boot_expiry", stamp.boottime), limit)
        left = limit - sum(item.messages for item in taken)
        if left:
            old = [self._expired(number, other, "wall_expiry", stamp.wall) for other in self._other_boots(number, boot)]
            taken += _most(merge(*old, key=itemgetter(0, 1)), left)
        removed = self._take(channel, sorted(taken), Reason.EXPIRED)
        return self._removed(number, removed, more=self._next_expiry(number, stamp) == 0.0)

    def _removed(self, channel: int, removed: list[Removed], *, more: bool) -> records.RemoveResult:
        """The answer, with what was lost by the way."""
        return records.RemoveResult(sorted([*removed, *self._take_lost(channel)]), more)

    def _expired(self, channel: int, boot: int, column: str, moment: float) -> list[_Expired]:
        """What has expired of one boot, the earliest first; more than one operation takes."""
        limit = self._limits.slice_rows
        rows = self._connection.execute(
            f"SELECT {column}, {_TAKEN} FROM outbox WHERE channel = ? AND boot = ? AND {column} <= ?"  # noqa: S608 - constants
            f" ORDER BY {column}, seq LIMIT ?",
            (channel, boot, moment, limit),
        ).fetchall()
        packs = self.packs.expired(channel, boot, column, moment, limit)
        found = [(row[0], row[1], Taken(*row[1:])) for row in rows]
        return sorted([*found, *((getattr(pack, column), pack.seq, pack) for pack in packs)], key=itemgetter(0, 1))

    def _next_expiry(self, channel: int, stamp: Stamp) -> float | None:
        boot = self._boot(stamp.boot)
        waits = []
        for table in _DATED:
            first = self._connection.execute(
                f"SELECT min(boot_expiry) FROM {table} WHERE channel = ? AND boot = ?",  # noqa: S608 - constants
                (channel, boot),
            ).fetchone()[0]
            waits += [] if first is None else [first - stamp.boottime]
            for other in self._other_boots(channel, boot):
                moment = self._connection.execute(
                    f"SELECT min(wall_expiry) FROM {table} WHERE channel = ? AND boot = ?",  # noqa: S608 - constants
                    (channel, other),
                ).fetchone()[0]
                waits += [] if moment is None else [moment - stamp.wall]
        return max(0.0, min(waits)) if waits else None

    def find_expiry(self, operation: records.FindExpiry) -> records.NextExpiry:
        self._channels.get(operation.channel)
        return records.NextExpiry(self._next_expiry(operation.channel, operation.stamp))

    def trim(self, operation: records.Trim) -> records.RemoveResult:
        channel = self._channels.get(operation.channel, change=True)
        taken: list[Taken] = []
        left = self._limits.slice_rows
        items = list(self._walk(operation.channel, 0, channel.record.next, left, closing=False))
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
                taken.append(_first(item, messages))
            if messages < item.messages:
                break
        return self._removed(operation.channel, self._take(channel, taken, Reason.OVERFLOW), more=more)

    def remove(self, operation: records.Remove) -> records.RemoveResult:
        channel = self._channels.get(operation.channel, change=True)
        left = self._limits.slice_rows
        taken: list[Taken] = []
        more = False
        closing = not operation.keep_closing
        for item in self._walk(operation.channel, operation.first, operation.next, left, closing=closing):
            more = item.messages > left
            if left:
                taken.append(_first(item, min(left, item.messages)))
            if more:
                break
            left -= item.messages
        return self._removed(operation.channel, self._take(channel, taken, operation.reason), more=more)

    def oldest(self, channel: ChannelState) -> float | None:
        """When the oldest message that is held was accepted, seconds since 1970; None where nobody knows."""
        place = (channel.record.id, channel.base)
        rows = [
            self._connection.execute(
                f"SELECT seq, accepted FROM {table} WHERE channel = ? AND seq >= ? ORDER BY seq LIMIT 1",  # noqa: S608
                place,
            ).fetchone()
            for table in _DATED
        ]
        first = min((row for row in rows if row is not None and isinstance(row[0], int)), default=None)
        return first[1] if first is not None and isinstance(first[1], float) else None

    # --- reading ---------------------------------------------------------------------------------------------------

    def read_out(self, operation: records.ReadOut) -> records.OutPage:
        channel = self._channels.get(operation.channel)
        start, end = max(operation.first, channel.base), channel.record.next
        damaged: list[Removed] = []
        for _ in range(2 * self._limits.page_messages):  # again after damage was replaced by removals
            page = self._page(channel, start)
            items = _in_line([*page.messages, *page.removals])
            found = [*self._take_lost(operation.channel), *self._bury(channel, page.damaged)]
            if not page.damaged and not found:
                holes = [Removal(*hole, Reason.DAMAGED, None) for hole in _holes(items, start, page.horizon)]
                items = sorted([*items, *holes], key=itemgetter(0))[: self._limits.page_messages]
                lacking = [hole for hole in holes if hole in items]
                if lacking and not self.trusted:
                    raise damage(
                        f"the outbox of channel {operation.channel} seems to lack the number {lacking[0].first}"
                    )
                found = [self._fill(channel, Taken(hole.first, 0, 0, 0, hole.next - hole.first)) for hole in lacking]
                if not found:
                    break
            damaged.extend(found)
        else:
            raise damage(f"the outbox of channel {operation.channel} cannot be read from {start} on")
        behind = _behind(items[-1]) if items else start
        self.moved += page.size
        return records.OutPage(items, behind, behind >= end, sorted(damaged))

    def _page(self, channel: ChannelState, start: int) -> _Page:
        """One page from `start` on."""
        number, limits = channel.record.id, self._limits
        packed, horizon = self._packed(channel, start)
        removals = self._removals.since(number, start, limits.page_messages)
        if len(removals) == limits.page_messages:
            horizon = min(horizon, removals[-1].next)
        singles, damaged, horizon = self._singles(number, start, horizon)
        entries = [entry for entry in packed if entry[0] < horizon]
        if entries and (singles or damaged):
            twice = {seq for seq, *_ in entries}.intersection(
                [*(seq for seq, *_ in singles), *(row[1] for row in damaged)]
            )
            if twice:
                self._keep_packed(number, twice)
                return self._page(channel, start)
        if singles:
            entries = sorted([*entries, *singles], key=itemgetter(0))
        size = 0
        for place, (seq, length, _) in enumerate(entries):
            if place and (size + length > limits.page_bytes or place == limits.page_messages):
                horizon = seq
                del entries[place:]
                break
            size += length
        removals = [removal for removal in removals if removal.first < horizon]
        return _Page([message for _, _, message in entries], removals, damaged, horizon, size)

    def _keep_packed(self, channel: int, numbers: Iterable[int]) -> None:
        """Delete single messages that are in a pack as well: files of different times have been put together."""
        for number in numbers:
            logger.error("message %d in the outbox of channel %d is there twice", number, channel)
            self._connection.execute("DELETE FROM outbox WHERE channel = ? AND seq = ?", (channel, number))

    def _packed(self, channel: ChannelState, start: int) -> tuple[list[_Entry], int]:
        """What a page has of packs, and the number up to which that is all of them."""
        number, limits = channel.record.id, self._limits
        while True:
            packs, horizon = self.packs.read(
                number, start, channel.record.next, limits.page_messages, limits.page_bytes
            )
            contents = list(map(payloads_of, packs))
            if None not in contents:
                break
            for pack, payloads in zip(packs, contents, strict=True):
                if payloads is None:
                    self._single_out(pack)
        entries: list[_Entry] = []
        for pack, payloads in zip(packs, contents, strict=True):
            numbers = range(pack.seq, pack.behind)
            held = list(zip(numbers, sizes_of(pack), map(OutMessage, numbers, payloads or ()), strict=True))
            entries += held[max(0, start - pack.seq) :]
        return entries, horizon

    def _singles(self, channel: int, start: int, horizon: int) -> tuple[list[_Entry], list[Any], int]:
        """What a page has of rows of their own, those that are damaged, and the number up to which that is all of them."""
        limits = self._limits
        cursor = self._connection.execute(
            "SELECT * FROM outbox WHERE channel = ? AND seq >= ? AND seq < ? ORDER BY seq LIMIT ?",
            (channel, start, horizon, limits.page_messages + 1),
        )
        rows: list[Any] = []
        size = 0
        for row in cursor:
            size += weight(row[3])
            if rows and (size > limits.page_bytes or len(rows) == limits.page_messages):
                horizon = row[1] if message_intact(row) else rows[-1][1] + 1
                break
            rows.append(row)
        cursor.close()
        entries: list[_Entry] = []
        damaged: list[Any] = []
        behind = start
        for row in rows:
            if not message_intact(row):
                damaged.append(row)
                continue
            if row[0] != channel or row[1] < behind:  # an intact row, and not the one that was asked for
                raise damage(f"an index of the outbox leads astray, to message {row[1]} of channel {row[0]}")
            entries.append((row[1], len(row[3]), OutMessage(row[1], decode_payload(row[2], row[3]))))
            behind = row[1] + 1
        return entries, damaged, horizon

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

    def _fill(self, channel: ChannelState, lost: Taken) -> Removed:
        """Write a removal for a hole: of as many messages as numbers if that can be, else of an unknown count."""
        self._channels.get(channel.record.id, change=True)
        first, behind = lost.seq, lost.seq + lost.messages
        possible = lost.messages <= channel.record.out_count
        logger.error("the outbox of channel %d lacks the numbers %d to %d", channel.record.id, first, behind - 1)
        messages = lost.messages if possible else None
        self._removals.add(channel.record.id, Removal(first, behind, Reason.DAMAGED, messages))
        if messages is None:
            return Removed(first, behind, Reason.DAMAGED, 0, 0, ())
        producers = producer_ranges([lost])
        self._producers.tell(producers, acknowledged=False)
        channel.totals.damaged += self._count_off(channel, messages, lost.size)
        return Removed(first, behind, Reason.DAMAGED, messages, lost.size, producers)


def _sizes(item: Taken | OutPack) -> list[int]:
    """Payload bytes of each of its messages."""
    return sizes_of(item) if isinstance(item, OutPack) else [item.size]


def _first(item: Taken | OutPack, messages: int) -> Taken:
    """Its first so many messages."""
    if isinstance(item, Taken):
        return item._replace(messages=messages)
    size = item.size if messages == item.messages else sum(sizes_of(item)[:messages])
    return Taken(item.seq, size, item.producer, item.producer_seq, messages)


def _most(expired: Iterable[_Expired], messages: int) -> list[Taken]:
    """The first so many messages."""
    taken: list[Taken] = []
    for _, _, item in expired:
        if not messages:
            break
        taken.append(_first(item, min(messages, item.messages)))
        messages -= taken[-1].messages
    return taken


def _behind(item: OutItem) -> int:
    return item.seq + 1 if isinstance(item, OutMessage) else item.next


def _in_line(items: Iterable[OutItem]) -> list[OutItem]:
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
