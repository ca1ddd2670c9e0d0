"""Reading the inbox in SQLite page by page; a row that is damaged or lacks becomes a gap."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from itertools import islice
from typing import Any, TypeAlias

from rondevud import records
from rondevud.records import InGap, InItem, InMessage, Reason, Removal
from rondevud.store.database import damage
from rondevud.store.inbox_rows import DAMAGED, GAP, InboxRows
from rondevud.store.packs import decode_payload
from rondevud.store.packs import payloads as payloads_of
from rondevud.store.packs import sizes as sizes_of
from rondevud.store.rows import ChannelState, received_intact, weight

logger = logging.getLogger(__name__)

_Entry: TypeAlias = tuple[int, Any]
"""Payload bytes, and an item or a row that fails its checksum."""


class InboxReader:
    """The operation `ReadIn`, inside a transaction."""

    def __init__(self, rows: InboxRows) -> None:
        self._rows = rows
        self._connection = rows.connection
        self._limits = rows.limits
        self.trusted = False
        """Whether what an index does not lead to is not there: its indexes have been made anew."""

    def read_in(self, operation: records.ReadIn) -> records.InPage:
        channel = self._rows.channels.get(operation.channel)
        record = channel.record
        # Every row is there or in a hole, so one that is lacking is known.
        holes = self._rows.holes(channel)
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
                item = _item(self._rows.mark_damaged((record.id, number, record.peer_epoch, *(None,) * 8)))
            elif not isinstance(item, InMessage | InGap):  # a row that fails its checksum
                damaged += 1
                item = _item(self._rows.mark_damaged((record.id, number, *item[2:])))
            items.append(item)
        gaps = self._rows.count_gaps(operation.channel) if damaged else 0
        lost, more_gaps = self._rows.take_lost(operation.channel)
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
            self._rows.packs.cut(channel, row, row + 1)
            self._rows.packs.delete(channel, row, row + 1)
        else:
            self._connection.execute("DELETE FROM inbox WHERE channel = ? AND row = ?", (channel, row))

    def _packed(self, channel: ChannelState, start: int) -> tuple[dict[int, _Entry], int]:
        """What a page has of packs, by rows, and the row up to which that is all of them."""
        number, limits = channel.record.id, self._limits
        while True:
            packs, horizon = self._rows.packs.read(
                number, start, channel.next_row, limits.page_messages, limits.page_bytes
            )
            contents = list(map(payloads_of, packs))
            if None not in contents:
                break
            for pack, payloads in zip(packs, contents, strict=True):
                if payloads is None:
                    self._rows.single_out(pack)
        held: dict[int, _Entry] = {}
        for pack, payloads in zip(packs, contents, strict=True):
            fields = zip(
                itertools.count(pack.row), itertools.count(pack.seq), sizes_of(pack), payloads or (), strict=False
            )
            for row, seq, length, payload in fields:
                held[row] = length, InMessage(row, pack.epoch, seq, payload, pack.enqueued, 0)
        self._rows.moved += sum(pack.size for pack in packs)
        return held, horizon

    def _singles(self, channel: ChannelState, start: int, horizon: int) -> tuple[dict[Any, _Entry], int]:
        """What a page has of rows of their own, by their numbers, and the row up to which that is all of them."""
        rows, whole = self._read_rows(channel.record.id, start, horizon)
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

    def _read_rows(self, channel: int, start: int, end: int) -> tuple[list[Any], bool]:
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
        self._rows.moved += size
        return rows, whole


def _item(row: Sequence[Any]) -> InItem:
    """What an intact row says."""
    _, number, epoch, seq, kind, payload, behind, reason, messages, enqueued, _ = row
    if kind == GAP:
        return InGap(number, epoch, Removal(seq, behind, Reason(reason), messages), enqueued)
    if kind == DAMAGED:
        return InGap(number, epoch, Removal(seq, seq + 1, Reason.DAMAGED, 1), enqueued)
    return InMessage(number, epoch, seq, decode_payload(kind, payload), enqueued, messages or 0)
