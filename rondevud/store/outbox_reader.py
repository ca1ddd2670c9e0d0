"""Reading the outbox in SQLite page by page; what is damaged or lacks becomes removals."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from operator import itemgetter
from typing import Any, NamedTuple, TypeAlias

from rondevud import records
from rondevud.records import OutMessage, Reason, Removal, Removed
from rondevud.store.base import Taken
from rondevud.store.database import damage
from rondevud.store.outbox_rows import OutboxRows, behind_of, find_holes, in_line
from rondevud.store.packs import decode_payload
from rondevud.store.packs import payloads as payloads_of
from rondevud.store.packs import sizes as sizes_of
from rondevud.store.rows import ChannelState, message_intact, weight

logger = logging.getLogger(__name__)

_Entry: TypeAlias = tuple[int, int, OutMessage]
"""A message that is held, behind its number and its payload bytes."""


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


class OutboxReader:
    """The operation `ReadOut`, inside a transaction."""

    def __init__(self, rows: OutboxRows) -> None:
        self._rows = rows
        self._connection = rows.connection
        self._limits = rows.limits
        self.trusted = False
        """Whether what an index does not lead to is not there: its indexes have been made anew."""

    def read_out(self, operation: records.ReadOut) -> records.OutPage:
        channel = self._rows.channels.get(operation.channel)
        start, end = max(operation.first, channel.base), channel.record.next
        damaged: list[Removed] = []
        for _ in range(2 * self._limits.page_messages):  # again after damage was replaced by removals
            page = self._page(channel, start)
            items = in_line([*page.messages, *page.removals])
            found = [*self._rows.take_lost(operation.channel), *self._rows.bury(channel, page.damaged)]
            if not page.damaged and not found:
                holes = [Removal(*hole, Reason.DAMAGED, None) for hole in find_holes(items, start, page.horizon)]
                items = sorted([*items, *holes], key=itemgetter(0))[: self._limits.page_messages]
                lacking = [hole for hole in holes if hole in items]
                if lacking and not self.trusted:
                    raise damage(
                        f"the outbox of channel {operation.channel} seems to lack the number {lacking[0].first}"
                    )
                found = [
                    self._rows.fill(channel, Taken(hole.first, 0, 0, 0, hole.next - hole.first)) for hole in lacking
                ]
                if not found:
                    break
            damaged.extend(found)
        else:
            raise damage(f"the outbox of channel {operation.channel} cannot be read from {start} on")
        behind = behind_of(items[-1]) if items else start
        self._rows.moved += page.size
        return records.OutPage(items, behind, behind >= end, sorted(damaged))

    def _page(self, channel: ChannelState, start: int) -> _Page:
        """One page from `start` on."""
        number, limits = channel.record.id, self._limits
        packed, horizon = self._packed(channel, start)
        removals = self._rows.removals.since(number, start, limits.page_messages)
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
            packs, horizon = self._rows.packs.read(
                number, start, channel.record.next, limits.page_messages, limits.page_bytes
            )
            contents = list(map(payloads_of, packs))
            if None not in contents:
                break
            for pack, payloads in zip(packs, contents, strict=True):
                if payloads is None:
                    self._rows.single_out(pack)
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
