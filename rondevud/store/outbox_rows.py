"""What an outbox holds in SQLite, and what becomes of damage; `OutboxTable`, its reader and its expiry work on that."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable, Iterator
from heapq import merge
from itertools import starmap
from operator import attrgetter
from typing import Any, TypeAlias

from rondevud import records
from rondevud.errors import StoreConflict
from rondevud.records import OutItem, OutMessage, Reason, Removal, Removed
from rondevud.store.base import Limits, Taken, group_removed, producer_ranges
from rondevud.store.packs import (
    CLOSING,
    PACK_MESSAGES,
    TEXT,
    Encoded,
    OutPack,
    claimed,
    heaviness,
    part,
    runs,
    sealed,
)
from rondevud.store.packs import contents as contents_of
from rondevud.store.packs import sizes as sizes_of
from rondevud.store.queue_table import QueueTable
from rondevud.store.removal_table import RemovalTable
from rondevud.store.rows import ChannelRows, ChannelState, ProducerRows, is_number, message_crc, weight

logger = logging.getLogger(__name__)

TAKEN = "seq, ifnull(length(payload), 0), producer, producer_seq"
"""What the table ``outbox`` has of a `Taken`."""

Age: TypeAlias = tuple[int | None, float | None, float | None]
"""Boot, and when a message expires on that boot's clock and on the wall clock; Nones for one that does not."""


class OutboxRows:
    """The tables ``outbox``, ``outbox_packs`` and ``removals``. Each method is a part of an operation, inside a
    transaction."""

    def __init__(
        self, connection: sqlite3.Connection, channels: ChannelRows, producers: ProducerRows, limits: Limits
    ) -> None:
        self.connection = connection
        self.channels = channels
        self.producers = producers
        self.limits = limits
        self.queue = QueueTable(connection, OutPack, self._lose)
        self.packs = self.queue.packs
        self.removals = RemovalTable(connection)
        self._lost: dict[int, list[Removed]] = {}
        """By channel what was lost with packs and has not been told in an answer."""
        self._had_by_peer: list[Taken] = []
        """What was lost with packs and the peer has: it is below `_leaving`."""
        self._leaving = 0
        self.moved = 0
        """Payload bytes written and read since whoever watches it set it to 0."""

    def clear(self) -> None:
        """Forget what a rollback may have undone."""
        self._lost.clear()
        self._had_by_peer.clear()
        self.queue.clear()

    def walk(
        self, channel: int, first: int, behind: int, most: int, *, closing: bool = True
    ) -> Iterator[Taken | OutPack]:
        """What is held from `first` to `behind`, in the order of the numbers: single messages, and packs without payloads.

        It may end behind `most` messages; with `closing` false it leaves closing messages out.
        """
        packs, end = self.packs.some_heads(channel, first, behind, most)
        rows = self.connection.execute(
            f"SELECT {TAKEN} FROM outbox WHERE channel = ? AND seq >= ? AND seq < ? AND kind >= ?"  # noqa: S608 - a constant
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

    def insert(self, operation: records.Put, first: int, encoded: Encoded, age: Age) -> None:
        """Store the messages of `operation`, from the number `first` on; a closing one has no age."""
        rows: list[tuple[Any, ...]] = []
        packs: list[OutPack] = []
        number, producer = operation.channel, operation.producer
        accepted = float(operation.stamp.wall)
        for start, behind in runs(encoded):
            seq, producer_seq = first + start, operation.first_seq + start
            if behind - start > 1:
                head = (number, seq, 0, 0, producer, producer_seq, *age, accepted)
                packs.append(sealed(OutPack(*head, b"", b"", 0, b""), encoded.part(start, behind)))
                continue
            kind, data = encoded.kinds[start], encoded.datas[start]
            ages = age if kind != CLOSING else (None, None, None)
            crc = message_crc(number, seq, kind, data, producer, producer_seq, *ages, accepted)
            rows.append((number, seq, kind, data, producer, producer_seq, *ages, crc, accepted))
        self.queue.write(rows)
        self.packs.insert(packs)

    def take(self, channel: ChannelState, taken: list[Taken], reason: Reason) -> list[Removed]:
        """Delete messages, given in the order of their numbers, and write removals for them."""
        removed = group_removed(taken, reason)
        number = channel.record.id
        for item in removed:
            self.packs.cut(number, item.first, item.next)
            self.queue.delete(number, item.first, item.next)
            self.removals.add(number, Removal(item.first, item.next, reason, item.messages))
            self.producers.tell(item.producers, acknowledged=False)
            channel.totals.remove(reason, self.count_off(channel, item.messages, item.size))
        return removed

    def answer(self, channel: int, removed: list[Removed], *, more: bool) -> records.RemoveResult:
        """The answer to an operation that removes, with what was lost by the way."""
        return records.RemoveResult(sorted([*removed, *self.take_lost(channel)]), more)

    @staticmethod
    def count_off(channel: ChannelState, messages: int, size: int) -> int:
        """Answers how many of the messages had been counted: all of them, unless damage made some reappear."""
        record = channel.record
        counted = min(record.out_count, messages)
        channel.change(out_count=record.out_count - counted, out_bytes=max(0, record.out_bytes - size))
        return counted

    def find_acknowledged(self, channel: int, upto: int) -> tuple[list[Taken], int]:
        """What packs hold below `upto`, and the number up to which one operation deletes: `upto`, unless a count is wrong.

        What is damaged there is acknowledged like the rest: the peer has it.
        """
        self._leaving = upto
        try:
            packs, behind = self.packs.some_heads(channel, 0, upto, self.limits.slice_rows)
            had = self._had_by_peer.copy()
        finally:
            self._leaving = 0
            self._had_by_peer.clear()
        return [*(first_messages(pack, min(pack.behind, upto) - pack.seq) for pack in packs), *had], min(upto, behind)

    # --- damage ----------------------------------------------------------------------------------------------------

    def single_out(self, pack: OutPack) -> None:
        """Give each damaged message of a pack a row of its own, which fails its checksum as well."""
        held = contents_of(pack)
        for place in (place for place, message in enumerate(held) if not message.whole):
            seq, producer_seq = pack.seq + place, pack.producer_seq + place
            kind, data, _ = held[place]
            self.packs.cut(pack.channel, seq, seq + 1)
            self.packs.delete(pack.channel, seq, seq + 1)
            fields = (pack.channel, seq, kind, data, pack.producer, producer_seq, *pack[6:9], pack.accepted)
            wrong = ~message_crc(*fields) & 0xFFFFFFFF
            self.queue.write([(*fields[:9], wrong, pack.accepted)])

    def _lose(self, pack: OutPack) -> None:
        """Say that the messages of a pack that is not as it was written are damaged: all that lack where it was."""
        if not is_number(pack.channel) or not is_number(pack.seq):
            return
        try:
            channel = self.channels.get(pack.channel, change=True)
        except StoreConflict:
            return
        count, size = claimed(pack), heaviness(pack)
        for first, behind in self._lacking(channel, pack.seq, pack.seq + count):
            sender = self._sender(channel, pack) if (first, behind) == (pack.seq, pack.seq + count) else (0, 0)
            lost = Taken(first, size, *sender, behind - first)
            size = 0
            if first < self._leaving:
                left = first_messages(lost, min(behind, self._leaving) - first)
                self._had_by_peer.append(left)
                lost = Taken(
                    left.seq + left.messages, 0, sender[0], sender[1] + left.messages, behind - first - left.messages
                )
            if lost.messages:
                self._lost.setdefault(channel.record.id, []).append(self.fill(channel, lost))

    def _lacking(self, channel: ChannelState, first: int, behind: int) -> list[tuple[int, int]]:
        """Which of `PACK_MESSAGES` numbers at most are neither held nor removed."""
        number, first, behind = channel.record.id, max(first, channel.base), min(behind, channel.record.next)
        rows = self.connection.execute(
            "SELECT seq FROM outbox WHERE channel = ? AND seq >= ? AND seq < ?", (number, first, behind)
        ).fetchall()
        items: list[OutItem] = [Removal(seq, seq + 1, Reason.DAMAGED, 1) for (seq,) in rows if is_number(seq)]
        packs = self.packs.heads(number, first, behind)
        items += [Removal(pack.seq, pack.behind, Reason.DAMAGED, pack.messages) for pack in packs]
        removals = self.removals.since(number, first, PACK_MESSAGES + 1)
        items += [removal for removal in removals if removal.first < behind]
        return find_holes(in_line(items), first, behind)

    def _sender(self, channel: ChannelState, pack: OutPack) -> tuple[int, int]:
        """Producer and its first number, as a pack that is not as it was written names them; zeros if that cannot be."""
        if not (is_number(pack.producer) and is_number(pack.producer_seq)):
            return 0, 0
        state = self.producers.find(pack.producer)
        known = state is not None and state.channel == channel.record.id
        return (pack.producer, pack.producer_seq) if known else (0, 0)

    def take_lost(self, channel: int) -> list[Removed]:
        """What was lost with packs, for an answer that tells of it."""
        return self._lost.pop(channel, [])

    def bury(self, channel: ChannelState, rows: Iterable[Any]) -> list[Removed]:
        """Replace damaged messages by removals. Their producers are told as the rows name them."""
        taken: list[Taken] = []
        for row in rows:
            logger.error("message %s in the outbox of channel %d is damaged", row[1], channel.record.id)
            state = self.producers.find(row[4]) if isinstance(row[4], int) else None
            known = state is not None and state.channel == channel.record.id
            taken.append(Taken(row[1], weight(row[3]), *(row[4:6] if known else (0, 0))))
        if taken:
            self.channels.get(channel.record.id, change=True)
        return self.take(channel, taken, Reason.DAMAGED)

    def fill(self, channel: ChannelState, lost: Taken) -> Removed:
        """Write a removal for a hole: of as many messages as numbers if that can be, else of an unknown count."""
        self.channels.get(channel.record.id, change=True)
        first, behind = lost.seq, lost.seq + lost.messages
        possible = lost.messages <= channel.record.out_count
        logger.error("the outbox of channel %d lacks the numbers %d to %d", channel.record.id, first, behind - 1)
        messages = lost.messages if possible else None
        self.removals.add(channel.record.id, Removal(first, behind, Reason.DAMAGED, messages))
        if messages is None:
            return Removed(first, behind, Reason.DAMAGED, 0, 0, ())
        producers = producer_ranges([lost])
        self.producers.tell(producers, acknowledged=False)
        channel.totals.damaged += self.count_off(channel, messages, lost.size)
        return Removed(first, behind, Reason.DAMAGED, messages, lost.size, producers)


def first_messages(item: Taken | OutPack, messages: int) -> Taken:
    """Its first so many messages."""
    if isinstance(item, Taken):
        return item._replace(messages=messages)
    size = item.size if messages == item.messages else sum(sizes_of(item)[:messages])
    return Taken(item.seq, size, item.producer, item.producer_seq, messages)


def behind_of(item: OutItem) -> int:
    return item.seq + 1 if isinstance(item, OutMessage) else item.next


def in_line(items: Iterable[OutItem]) -> list[OutItem]:
    """The items in order; what another one covers already is left out (damage can make rows reappear)."""
    line: list[OutItem] = []
    for item in sorted(items, key=lambda item: item[0]):
        if not line or item[0] >= behind_of(line[-1]):
            line.append(item)
    return line


def find_holes(items: list[OutItem], start: int, horizon: int) -> list[tuple[int, int]]:
    """Ranges between `start` and `horizon` that are in no item."""
    holes: list[tuple[int, int]] = []
    number = start
    for item in items:
        if item[0] > number:
            holes.append((number, item[0]))
        number = max(number, behind_of(item))
    if number < horizon:
        holes.append((number, horizon))
    return holes
