"""One table of packs: finding, cutting and deleting them, and what becomes of one that cannot be used."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterable
from typing import Any, Generic, NamedTuple

from rondevud.store.database import damage
from rondevud.store.packs import PACK_MESSAGES, InPack, OutPack, Pack, columns, heads, intact, part, placeholders, sizes
from rondevud.store.rows import is_number, set_aside

logger = logging.getLogger(__name__)

TABLES = {OutPack: ("outbox_packs", "seq"), InPack: ("inbox_packs", "row")}
"""Their tables, and by which column they are counted."""


class Found(NamedTuple, Generic[Pack]):
    """Packs in the order of their numbers."""

    packs: list[Pack]
    unusable: list[tuple[int, Pack]]
    """Rowids, and what is there and not as it was written, payloads aside."""
    behind: int
    """The number up to which these are all."""


def scan(
    connection: sqlite3.Connection,
    kind: type[Pack],
    wanted: str,
    channel: int,
    bounds: tuple[int, int],
    most: int | None = None,
    most_bytes: int | None = None,
) -> Found[Pack]:
    """Packs that hold something within `bounds`, with the columns `wanted`. Raises `damage`.

    They end with the one that brings more than `most` messages or more than `most_bytes`.
    """
    table, key = TABLES[kind]
    first, end = bounds
    cursor = connection.execute(
        f"SELECT rowid, {wanted} FROM {table} WHERE channel = ? AND {key} > ? AND {key} < ? ORDER BY {key}",  # noqa: S608
        (channel, first - PACK_MESSAGES, end),
    )
    found: Found[Pack] = Found([], [], end)
    count = size = 0
    last = first - PACK_MESSAGES
    for rowid, *row in cursor:
        pack = kind._make(row)
        if not intact(pack):
            found.unusable.append((rowid, pack))
            continue
        if pack.channel != channel or not last < pack.first < end:  # intact, and not what was asked for
            raise damage(f"an index of {table} leads astray, to {pack.first} of channel {pack.channel}")
        last = pack.first
        if pack.behind <= first:
            continue
        found.packs.append(pack)
        lengths = sizes(pack)[max(0, first - pack.first) :]
        count, size = count + len(lengths), size + sum(lengths)
        if (most is not None and count > most) or (most_bytes is not None and size > most_bytes):
            cursor.close()
            return found._replace(behind=pack.behind)
    return found


class PackTable(Generic[Pack]):
    """Of one kind. `lost` hears of a pack that is not as it was written, after it has been set aside."""

    def __init__(self, connection: sqlite3.Connection, kind: type[Pack], lost: Callable[[Pack], None]) -> None:
        self._connection = connection
        self._kind: type[Pack] = kind
        self._lost: Callable[[Pack], None] = lost
        self.table, self._key = TABLES[kind]
        self._insert = f"INSERT OR REPLACE INTO {self.table} VALUES ({placeholders(kind)})"  # noqa: S608 - constants

    def insert(self, packs: Iterable[Pack]) -> None:
        self._connection.executemany(self._insert, packs)

    def heads(self, channel: int, first: int, behind: int, most: int | None = None) -> list[Pack]:
        """Packs that hold something of ``first … behind - 1``, without payloads; they end with the one that brings more
        than `most` messages. Raises `damage`."""
        return self._fetch(heads(self._kind), channel, first, behind, most, None)[0]

    def read(self, channel: int, first: int, behind: int, most: int, most_bytes: int) -> tuple[list[Pack], int]:
        """The same with payloads, and the number up to which these are all; they end as well with the one that brings more
        than so many bytes."""
        return self._fetch(columns(self._kind), channel, first, behind, most, most_bytes)

    def _fetch(
        self, wanted: str, channel: int, first: int, behind: int, most: int | None, most_bytes: int | None
    ) -> tuple[list[Pack], int]:
        found = scan(self._connection, self._kind, wanted, channel, (first, behind), most, most_bytes)
        for rowid, pack in found.unusable:
            self._give_up(rowid, pack)
        return found.packs, found.behind

    def _give_up(self, rowid: int, pack: Pack) -> None:
        logger.error("messages %s to about %s in %s of channel %s are damaged", pack.first, *self._about(pack))
        row = self._connection.execute(f"SELECT * FROM {self.table} WHERE rowid = ?", (rowid,)).fetchone()  # noqa: S608
        set_aside(self._connection, self.table, row)
        self._connection.execute(f"DELETE FROM {self.table} WHERE rowid = ?", (rowid,))  # noqa: S608 - a constant
        self._lost(pack)

    def _about(self, pack: Pack) -> tuple[Any, str, Any]:
        whole = is_number(pack.first) and is_number(pack.messages)
        return (pack.behind - 1 if whole else pack.messages), self.table, pack.channel

    def cut(self, channel: int, *numbers: int) -> None:
        """Afterwards no pack holds a number on both sides of one of `numbers`."""
        for number in numbers:
            row = self._connection.execute(
                f"SELECT {self._key}, messages FROM {self.table} WHERE channel = ? AND {self._key} > ?"  # noqa: S608
                f" AND {self._key} < ? ORDER BY {self._key} DESC LIMIT 1",
                (channel, number - PACK_MESSAGES, number),
            ).fetchone()
            if row is None or (isinstance(row[1], int) and sum(row) <= number):
                continue
            for pack in self._fetch(columns(self._kind), channel, number - 1, number, None, None)[0]:
                if number < pack.behind:
                    self.delete(channel, pack.first, pack.first + 1)
                    at = number - pack.first
                    self.insert([part(pack, 0, at), part(pack, at, pack.messages)])

    def delete(self, channel: int, first: int, behind: int) -> None:
        """Packs that begin within ``first … behind - 1``."""
        self._connection.execute(
            f"DELETE FROM {self.table} WHERE channel = ? AND {self._key} >= ? AND {self._key} < ?",  # noqa: S608 - constants
            (channel, first, behind),
        )

    def expired(self, channel: int, boot: int, column: str, moment: float, most: int) -> list[Pack]:
        """Packs of the outbox of one boot whose `column` is not above `moment`, the earliest first, `most` of them."""
        rows = self._connection.execute(
            f"SELECT rowid, {heads(self._kind)} FROM {self.table} WHERE channel = ? AND boot = ? AND {column} <= ?"  # noqa: S608 - constants
            f" ORDER BY {column}, {self._key} LIMIT ?",
            (channel, boot, moment, most),
        ).fetchall()
        found: list[Pack] = []
        for rowid, *row in rows:
            pack = self._kind._make(row)
            if intact(pack):
                found.append(pack)
            else:
                self._give_up(rowid, pack)
        return found

    def reaches(self, channel: int, number: int) -> bool:
        """Whether a pack holds `number`, or begins behind it."""
        row = self._connection.execute(
            f"SELECT max({self._key} + messages) FROM {self.table} WHERE channel = ? AND {self._key} > ?",  # noqa: S608 - constants
            (channel, number - PACK_MESSAGES),
        ).fetchone()
        return isinstance(row[0], int) and row[0] > number
