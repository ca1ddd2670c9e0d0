"""What an inbox holds in SQLite, its holes, and what becomes of damage; `InboxTable` and its reader work on that."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from rondevud.errors import StoreConflict
from rondevud.ranges import Ranges
from rondevud.store.base import Limits
from rondevud.store.packs import PACK_MESSAGES, InPack, claimed, heaviness
from rondevud.store.packs import contents as contents_of
from rondevud.store.queue_table import QueueTable
from rondevud.store.rows import ChannelRows, ChannelState, intact, is_number, received_crc, set_aside
from rondevud.store.rows import sealed as sealed_row

logger = logging.getLogger(__name__)

GAP, DAMAGED = 3, 4  # kinds beside those of the outbox


class InboxRows:
    """The tables ``inbox``, ``inbox_packs`` and ``inbox_holes``. Each method is a part of an operation, inside a
    transaction."""

    def __init__(self, connection: sqlite3.Connection, channels: ChannelRows, limits: Limits) -> None:
        self.connection = connection
        self.channels = channels
        self.limits = limits
        self.queue = QueueTable(connection, InPack, self._lose)
        self.packs = self.queue.packs
        self._lost: dict[int, tuple[int, int]] = {}
        """By channel how many rows were lost with packs, and how many more gaps there are, since a reading has told."""
        self._leaving = range(0)
        """Rows of which nothing is told if they are lost: a program has taken them."""
        self._left_bytes = 0
        self.moved = 0
        """Payload bytes written and read since whoever watches it set it to 0."""

    def clear(self) -> None:
        """Forget what a rollback may have undone."""
        self._lost.clear()
        self.queue.clear()

    def take_lost(self, channel: int) -> tuple[int, int]:
        """How many rows were lost with packs, and how many more gaps there are, for an answer that tells of it."""
        return self._lost.pop(channel, (0, 0))

    def cut(self, channel: int, first: int, upto: int) -> int:
        """Cut packs at both ends of rows that leave; answers bytes of those rows that are lost meanwhile."""
        self._leaving, self._left_bytes = range(first, upto), 0
        try:
            self.packs.cut(channel, first, upto)
        finally:
            self._leaving = range(0)
        return self._left_bytes

    # --- damage ----------------------------------------------------------------------------------------------------

    def single_out(self, pack: InPack) -> None:
        """Give each damaged message of a pack a row of its own, which fails its checksum as well."""
        for place, (kind, data, whole) in enumerate(contents_of(pack)):
            if whole:
                continue
            row = pack.row + place
            self.packs.cut(pack.channel, row, row + 1)
            self.packs.delete(pack.channel, row, row + 1)
            fields = (pack.channel, row, pack.epoch, pack.seq + place, kind, data)
            wrong = ~received_crc(*fields, None, pack.enqueued) & 0xFFFFFFFF
            self.queue.write([(*fields, None, None, None, pack.enqueued, wrong)])

    def _lose(self, pack: InPack) -> None:
        """Mark the rows of a pack that is not as it was written as damaged: all that lack where it was.

        The first one gets the pack's bytes, so that those counted in the channel's row stay true.
        """
        if not is_number(pack.channel) or not is_number(pack.row):
            return
        try:
            channel = self.channels.get(pack.channel, change=True)
        except StoreConflict:
            return
        stored: Any = pack.payload
        content = stored if isinstance(stored, bytes) else bytes(heaviness(pack))
        lacking = self._lacking(channel, pack.row, pack.row + claimed(pack))
        marked = [row for row in lacking if row not in self._leaving]
        for row in marked:
            self.mark_damaged((pack.channel, row, channel.record.peer_epoch, None, None, content, *(None,) * 5))
            content = b""
        if len(marked) < len(lacking):
            self._left_bytes += len(content)
        gaps = self.count_gaps(pack.channel)
        lost, more_gaps = self._lost.get(pack.channel, (0, 0))
        self._lost[pack.channel] = lost + len(marked), more_gaps + gaps

    def _lacking(self, channel: ChannelState, first: int, behind: int) -> list[int]:
        """Rows of a pack that are neither held nor in a hole. Where it is known how many they are, they were in no hole."""
        number, (holes, _) = channel.record.id, self._read_holes(channel)
        if holes is None:
            holes = self.holes(channel) if behind - first == PACK_MESSAGES else Ranges()
        first, behind = max(first, channel.front), min(behind, channel.next_row)
        rows = self.connection.execute(
            "SELECT row FROM inbox WHERE channel = ? AND row >= ? AND row < ?", (number, first, behind)
        ).fetchall()
        held = {row for (row,) in rows}
        for pack in self.packs.heads(number, first, behind):
            held.update(range(pack.row, pack.behind))
        return [row for row in holes.outside(first, behind) if row not in held]

    def mark_damaged(self, row: Sequence[Any]) -> tuple[Any, ...]:
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
        self.queue.write([fields])
        return fields

    def count_gaps(self, number: int) -> int:
        """Count the channel's gaps anew; answers how many more they are. What a damaged row was before, nobody knows."""
        channel = self.channels.get(number, change=True)
        record = channel.record
        gaps = self.connection.execute(
            "SELECT count(*) FROM inbox WHERE channel = ? AND row >= ? AND kind >= ?",
            (number, channel.front, GAP),
        ).fetchone()[0]
        channel.change(in_gaps=gaps)
        channel.totals.damaged_in += gaps - record.in_gaps
        return int(gaps - record.in_gaps)

    # --- holes -----------------------------------------------------------------------------------------------------

    def holes(self, channel: ChannelState) -> Ranges:
        """Rows behind the front that are not there because they were acknowledged."""
        holes, rows = self._read_holes(channel)
        if holes is not None:
            return holes
        for row in rows:
            set_aside(self.connection, "inbox_holes", row)
        return self._find_holes(channel.record.id)

    def _read_holes(self, channel: ChannelState) -> tuple[Ranges | None, list[Any]]:
        """The holes as they are stored, None if these are damaged, and their rows."""
        if not channel.in_holes:
            return Ranges(), []
        rows = self.connection.execute(
            "SELECT channel, first, next, crc FROM inbox_holes WHERE channel = ? ORDER BY first", (channel.record.id,)
        ).fetchall()
        if all(map(intact, rows)) and sum(row[2] - row[1] for row in rows) == channel.in_holes:
            return Ranges(row[1:3] for row in rows), rows
        return None, rows

    def dig(self, channel: ChannelState, holes: Ranges, first: int, upto: int) -> None:
        """Make the rows ``first … upto - 1`` a hole, or move the front if nothing is left before them."""
        number, front = channel.record.id, channel.front
        first, upto = holes.add(first, upto)
        if channel.in_holes:
            self.connection.execute(
                "DELETE FROM inbox_holes WHERE channel = ? AND first >= ? AND first < ?", (number, first, upto)
            )
        if first > front:
            self.connection.execute(
                "INSERT OR REPLACE INTO inbox_holes VALUES (?, ?, ?, ?)", sealed_row((number, first, upto))
            )
        channel.in_holes = holes.count(upto if first == front else front, channel.next_row)

    def _find_holes(self, number: int) -> Ranges:
        """What is known of the holes is damaged: whatever lacks between the front and the next row is taken for one."""
        channel = self.channels.get(number, change=True)
        front = channel.front
        packs = Ranges(
            (max(front, pack.row), pack.behind) for pack in self.packs.all_heads(number, front, channel.next_row)
        )
        rows = self.connection.execute(
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
        self.connection.execute("DELETE FROM inbox_holes WHERE channel = ?", (number,))
        self.connection.executemany(
            "INSERT OR REPLACE INTO inbox_holes VALUES (?, ?, ?, ?)",  # what is damaged need not have gone by its channel
            [sealed_row((number, *hole)) for hole in holes],
        )
        channel.in_holes += lost
        channel.totals.damaged_in += lost
        if lost:
            size = self.connection.execute(
                "SELECT ifnull(sum(length(payload)), 0) FROM inbox WHERE channel = ? AND row >= ?", (number, front)
            ).fetchone()[0]
            channel.change(in_count=count, in_bytes=size + self.packs.weigh(number, front, channel.next_row))
            self.count_gaps(number)
        return holes
