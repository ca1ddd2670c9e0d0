"""Removals of the outbox in SQLite: ranges of numbers that will not come, and why."""

from __future__ import annotations

import logging
import sqlite3

from rondevud.records import Reason, Removal
from rondevud.store.base import cut_removal, join_removals
from rondevud.store.rows import fields_crc, intact

logger = logging.getLogger(__name__)


class RemovalTable:
    """The table ``removals``. Each method is a part of an operation, inside a transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def add(self, channel: int, removal: Removal) -> None:
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

    def since(self, channel: int, number: int, most: int) -> list[Removal]:
        """`most` removals that reach `number` or begin behind it, the first one cut; damaged ones are deleted."""
        rows = self._connection.execute(
            "SELECT channel, first, next, reason, messages, crc FROM removals WHERE channel = ?1 AND first >="
            " ifnull((SELECT max(first) FROM removals WHERE channel = ?1 AND first <= ?2), ?2) ORDER BY first LIMIT ?3",
            (channel, number, most + 1),
        ).fetchall()
        removals: list[Removal] = []
        for row in rows:
            if not intact(row):
                logger.error("a removal in channel %d is damaged, at about number %s", channel, row[1])
                self._connection.execute("DELETE FROM removals WHERE channel = ? AND first = ?", (channel, row[1]))
            elif row[2] > number:
                removals.append(cut_removal(Removal(row[1], row[2], Reason(row[3]), row[4]), number))
        return removals[:most]

    def drop(self, channel: int, number: int) -> None:
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
            self.add(channel, cut_removal(Removal(last[1], last[2], Reason(last[3]), last[4]), number))
