"""Messages set aside in SQLite, and what is counted against those of the inbox before."""

from __future__ import annotations

import logging
import sqlite3
from typing import Any

from rondevud import failed
from rondevud.store.base import Limits
from rondevud.store.inbox_table import InboxTable
from rondevud.store.packs import decode_payload
from rondevud.store.rows import ChannelRows, ChannelState, intact, sealed, set_aside, weight

logger = logging.getLogger(__name__)


class FailedTable:
    """The table ``failed``. Each method is one operation, inside a transaction."""

    def __init__(
        self, connection: sqlite3.Connection, channels: ChannelRows, inbox: InboxTable, limits: Limits
    ) -> None:
        self._connection = connection
        self._channels = channels
        self._inbox = inbox
        self._limits = limits

    def count_try(self, operation: failed.CountTry) -> None:
        row = self._inbox.find(self._channels.get(operation.channel), operation.row)
        if row is not None:
            self._inbox.rewrite((*row[:8], operation.tries, row[9]))

    def set_aside(self, operation: failed.SetAside) -> failed.Aside | None:
        channel = self._channels.get(operation.channel)
        row = self._inbox.find(channel, operation.row)
        if row is None:
            return None
        channel = self._channels.get(operation.channel, change=True)
        number, place, epoch, seq, kind, payload, *_, enqueued, _ = row
        fields = (number, place, epoch, seq, kind, payload, operation.tries, enqueued, float(operation.stamp.wall))
        self._connection.execute("INSERT INTO failed VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", sealed(fields))
        self._inbox.take(channel, place)
        record = channel.record
        channel.change(failed=record.failed + 1, failed_bytes=record.failed_bytes + len(payload))
        return failed.Aside(seq, len(payload))

    @staticmethod
    def _count_off(channel: ChannelState, messages: int, size: int) -> int:
        """Answers how many of the messages had been counted: all of them, unless damage made some reappear."""
        record = channel.record
        counted = min(record.failed, messages)
        channel.change(failed=record.failed - counted, failed_bytes=max(0, record.failed_bytes - size))
        return counted

    def read(self, operation: failed.ReadFailed) -> failed.FailedPage:
        channel = self._channels.get(operation.channel)
        rows, whole = self._page(channel, operation.row)
        messages = [_message(row) for row in self._intact(channel, rows)]
        return failed.FailedPage(messages, 0 if whole else rows[-1][1] + 1)

    def _page(self, channel: ChannelState, first: int) -> tuple[list[Any], bool]:
        """Rows from `first` on, and whether those are all."""
        cursor = self._connection.execute(
            "SELECT * FROM failed WHERE channel = ? AND row >= ? ORDER BY row", (channel.record.id, first)
        )
        rows: list[Any] = []
        size = 0
        for row in cursor:
            size += weight(row[5])
            if rows and (len(rows) == self._limits.page_messages or size > self._limits.page_bytes):
                cursor.close()
                return rows, False
            rows.append(row)
        return rows, True

    def _intact(self, channel: ChannelState, rows: list[Any]) -> list[Any]:
        """Those that are as they were written; the others are kept in ``damaged_rows`` and are not held any more."""
        damaged = [row for row in rows if not intact(row)]
        for row in damaged:
            logger.error("row %s that was set aside in channel %d is damaged", row[1], channel.record.id)
            set_aside(self._connection, "failed", row)
            self._connection.execute("DELETE FROM failed WHERE channel = ? AND row = ?", row[:2])
            self._channels.get(channel.record.id, change=True)
            channel.totals.damaged_in += self._count_off(channel, 1, weight(row[5]))
        return [row for row in rows if intact(row)]

    def free(self, operation: failed.FreeFailed) -> failed.Freed:
        channel = self._channels.get(operation.channel, change=True)
        rows, whole = self._chosen(channel, operation.row)
        fine = self._intact(channel, rows)
        size = sum(weight(row[5]) for row in fine)
        first_row = channel.next_row
        counted = self._count_off(channel, len(fine), size)
        if operation.put_back:
            first_row = self._inbox.append(channel, [(*row[2:6], row[7]) for row in fine])
        else:
            channel.totals.purged_in += counted
        self._connection.executemany("DELETE FROM failed WHERE channel = ? AND row = ?", [row[:2] for row in fine])
        if operation.row is None and whole:  # nothing is left, whatever damage did to the counts
            channel.totals.damaged_in += channel.record.failed
            channel.change(failed=0, failed_bytes=0)
        return failed.Freed(len(fine), size, first_row, channel.record.failed, more=not whole)

    def _chosen(self, channel: ChannelState, row: int | None) -> tuple[list[Any], bool]:
        if row is None:
            return self._page(channel, 0)
        query = "SELECT * FROM failed WHERE channel = ? AND row = ?"
        return self._connection.execute(query, (channel.record.id, row)).fetchall(), True


def _message(row: Any) -> failed.FailedMessage:
    _, number, epoch, seq, kind, payload, tries, enqueued, when, _ = row
    return failed.FailedMessage(number, epoch, seq, decode_payload(kind, payload), tries, enqueued, when)
