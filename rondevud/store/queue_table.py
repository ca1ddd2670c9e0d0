"""One queue's rows beside its packs: what the outbox and the inbox do with them alike."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from typing import Any, Generic

from rondevud.store.pack_table import PackTable
from rondevud.store.packs import InPack, OutPack, Pack

QUEUES = {OutPack: ("outbox", "seq", "accepted"), InPack: ("inbox", "row", "enqueued")}
"""By their packs: the tables, by which column they are counted, and which one says since when a message waits."""


class QueueTable(Generic[Pack]):
    """The tables of one queue: `packs`, and the one of what has a row of its own. `lost` is what it is to `PackTable`."""

    def __init__(self, connection: sqlite3.Connection, kind: type[Pack], lost: Callable[[Pack], None]) -> None:
        self._connection = connection
        self.packs: PackTable[Pack] = PackTable(connection, kind, lost)
        self._clear_from: set[int] = set()
        """Channels that hold nothing at or above their next number."""
        table, key, since = QUEUES[kind]
        self._insert = f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 - constants
        self._delete = f"DELETE FROM {table} WHERE channel = ? AND {key} >= ? AND {key} < ?"  # noqa: S608 - constants
        self._reach = f"SELECT 1 FROM {table} WHERE channel = ? AND {key} >= ? LIMIT 1"  # noqa: S608 - constants
        self._oldest = [
            f"SELECT {key}, {since} FROM {each} WHERE channel = ? AND {key} >= ? ORDER BY {key} LIMIT 1"  # noqa: S608
            for each in (table, self.packs.table)
        ]

    def clear(self) -> None:
        """Forget what a rollback may have undone."""
        self._clear_from.clear()
        self.packs.clear()

    def write(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """Store rows; each takes the place of one that has its number."""
        self._connection.executemany(self._insert, rows)

    def delete(self, channel: int, first: int, behind: int) -> None:
        """What has the numbers ``first … behind - 1``; no pack reaches over either end."""
        self._connection.execute(self._delete, (channel, first, behind))
        self.packs.delete(channel, first, behind)

    def make_room(self, channel: int, first: int, behind: int) -> None:
        """Delete what is in the way of the numbers from the channel's next one, `first`, up to `behind`.

        Files of different times put together can leave what a later one holds behind the last of this one.
        """
        if channel in self._clear_from:
            return
        row = self._connection.execute(self._reach, (channel, first)).fetchone()
        if row is None and not self.packs.reaches(channel, first):
            self._clear_from.add(channel)
            return
        self.packs.cut(channel, first, behind)
        self.delete(channel, first, behind)

    def oldest(self, channel: int, first: int) -> float | None:
        """Since when what is held from `first` on waits, seconds since 1970; None where nothing does or nobody knows."""
        rows = [self._connection.execute(query, (channel, first)).fetchone() for query in self._oldest]
        oldest = min((row for row in rows if row is not None and isinstance(row[0], int)), default=None)
        return oldest[1] if oldest is not None and isinstance(oldest[1], float) else None
