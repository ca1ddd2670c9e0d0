"""One table of packs: finding, cutting and deleting them, and what becomes of one that cannot be used."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, NamedTuple

from rondevud.store.database import damage
from rondevud.store.packs import PACK_MESSAGES, InPack, OutPack, Pack, columns, heads, intact, part, placeholders, sizes
from rondevud.store.rows import is_number, set_aside

PAGE = 2_048
"""Messages whose packs are looked at together where a whole queue is gone through."""

logger = logging.getLogger(__name__)

TABLES = {OutPack: ("outbox_packs", "seq"), InPack: ("inbox_packs", "row")}
"""Their tables, and by which column they are counted."""


class Found(NamedTuple, Generic[Pack]):
    """Packs in the order of their numbers; no two of them hold the same one."""

    packs: list[Pack]
    unusable: list[tuple[int, Pack]]
    """Rowids, and what is there and not as it was written, payloads aside."""
    twice: list[tuple[int, Pack, int]]
    """Rowids, packs that begin with numbers that one before them holds, and the number behind that one.

    Files of different times put together can leave a pack beside the parts it was cut into.
    """
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
    found: Found[Pack] = Found([], [], [], end)
    count = size = behind = 0
    last = first - PACK_MESSAGES
    for rowid, *row in cursor:
        pack = kind._make(row)
        if not intact(pack):
            found.unusable.append((rowid, pack))
            continue
        if pack.channel != channel or not last < pack.first < end:  # intact, and not what was asked for
            raise damage(f"an index of {table} leads astray, to {pack.first} of channel {pack.channel}")
        last = pack.first
        if pack.first < behind:
            found.twice.append((rowid, pack, behind))
            continue
        behind = pack.behind
        if behind <= first:
            continue
        found.packs.append(pack)
        lengths = sizes(pack)[max(0, first - pack.first) :]
        count, size = count + len(lengths), size + sum(lengths)
        if (most is not None and count > most) or (most_bytes is not None and size > most_bytes):
            cursor.close()
            return found._replace(behind=pack.behind)
    return found


class PackTable(Generic[Pack]):
    """Of one kind. `lost` hears of each pack that is not as it was written, after it has been set aside."""

    def __init__(self, connection: sqlite3.Connection, kind: type[Pack], lost: Callable[[Pack], None]) -> None:
        self._connection = connection
        self._kind: type[Pack] = kind
        self._lost: Callable[[Pack], None] = lost
        self._to_tell: list[Pack] = []
        self._telling = False
        self.table, self._key = TABLES[kind]
        self._insert = f"INSERT OR REPLACE INTO {self.table} VALUES ({placeholders(kind)})"  # noqa: S608 - constants

    def clear(self) -> None:
        """Forget what a rollback may have undone."""
        self._to_tell.clear()

    def insert(self, packs: Iterable[Pack]) -> None:
        self._connection.executemany(self._insert, packs)

    def heads(self, channel: int, first: int, behind: int) -> list[Pack]:
        """Packs that hold something of ``first … behind - 1``, without payloads. Raises `damage`."""
        return self._fetch(heads(self._kind), channel, first, behind, None, None)[0]

    def some_heads(self, channel: int, first: int, behind: int, most: int) -> tuple[list[Pack], int]:
        """The same up to the one that brings more than `most` messages, and the number up to which these are all."""
        return self._fetch(heads(self._kind), channel, first, behind, most, None)

    def all_heads(self, channel: int, first: int, behind: int) -> Iterator[Pack]:
        """The same, of any number of packs; they are not changed meanwhile. Raises `damage`."""
        while first < behind:
            packs, first = self.some_heads(channel, first, behind, PAGE)
            yield from packs

    def read(self, channel: int, first: int, behind: int, most: int, most_bytes: int) -> tuple[list[Pack], int]:
        """The same with payloads; they end as well with the one that brings more than so many bytes."""
        return self._fetch(columns(self._kind), channel, first, behind, most, most_bytes)

    def _fetch(
        self, wanted: str, channel: int, first: int, behind: int, most: int | None, most_bytes: int | None
    ) -> tuple[list[Pack], int]:
        while True:
            found = scan(self._connection, self._kind, wanted, channel, (first, behind), most, most_bytes)
            for rowid, pack in found.unusable:
                self._give_up(rowid, pack)
            for place in found.twice:
                self._keep_once(*place)
            self._tell()
            if not found.unusable and not found.twice:
                return found.packs, found.behind

    def _give_up(self, rowid: int, pack: Pack) -> None:
        row = self._row(rowid)
        if intact(row):
            raise damage(f"an index of {self.table} leads astray, to {row.first} of channel {row.channel}")
        logger.error("messages %s to about %s in %s of channel %s are damaged", pack.first, *self._about(pack))
        set_aside(self._connection, self.table, row)
        self._remove(rowid)
        self._to_tell.append(pack._replace(payload=row.payload))

    def _row(self, rowid: int) -> Pack:
        query = f"SELECT * FROM {self.table} WHERE rowid = ?"  # noqa: S608 - a constant
        return self._kind._make(self._connection.execute(query, (rowid,)).fetchone())

    def _remove(self, rowid: int) -> None:
        self._connection.execute(f"DELETE FROM {self.table} WHERE rowid = ?", (rowid,))  # noqa: S608 - a constant

    def _about(self, pack: Pack) -> tuple[Any, str, Any]:
        whole = is_number(pack.first) and is_number(pack.messages)
        return (pack.behind - 1 if whole else pack.messages), self.table, pack.channel

    def _keep_once(self, rowid: int, pack: Pack, behind: int) -> None:
        """Take the numbers below `behind` out of a pack: another one holds them."""
        logger.error(
            "numbers %d to %d in %s of channel %d are there twice", pack.first, behind - 1, *self._about(pack)[1:]
        )
        row = self._row(rowid)
        self._remove(rowid)
        self._insert_rest(row, behind)

    def _insert_rest(self, pack: Pack, number: int) -> None:
        """Store what a pack that is not stored any more holds from `number` on, but for what begins there already."""
        query = f"SELECT {heads(self._kind)} FROM {self.table} WHERE channel = ? AND {self._key} = ?"  # noqa: S608 - constants
        while number < pack.behind:
            row = self._connection.execute(query, (pack.channel, number)).fetchone()
            if row is None or not intact(other := self._kind._make(row)):
                self.insert([part(pack, number - pack.first, pack.messages)])
                return
            number = other.behind

    def _tell(self) -> None:
        """Tell of packs that were given up, one after the other: who hears of one may find more."""
        if self._telling:
            return
        self._telling = True
        try:
            while self._to_tell:
                self._lost(self._to_tell.pop(0))
        finally:
            self._telling = False
            self._to_tell.clear()

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
                    self.insert([part(pack, 0, number - pack.first)])
                    self._insert_rest(pack, number)

    def delete(self, channel: int, first: int, behind: int) -> None:
        """Packs that begin within ``first … behind - 1``."""
        self._connection.execute(
            f"DELETE FROM {self.table} WHERE channel = ? AND {self._key} >= ? AND {self._key} < ?",  # noqa: S608 - constants
            (channel, first, behind),
        )

    def expired(self, channel: int, boot: int, column: str, moment: float, most: int) -> list[Pack]:
        """Packs of the outbox of one boot whose `column` is not above `moment`, the earliest first, up to the one with which
        they hold `most` messages."""
        cursor = self._connection.execute(
            f"SELECT rowid, {heads(self._kind)} FROM {self.table} WHERE channel = ? AND boot = ? AND {column} <= ?"  # noqa: S608 - constants
            f" ORDER BY {column}, {self._key}",
            (channel, boot, moment),
        )
        found: list[Pack] = []
        unusable: list[tuple[int, Pack]] = []
        for rowid, *row in cursor:
            pack = self._kind._make(row)
            if not intact(pack):
                unusable.append((rowid, pack))
                continue
            found.append(pack)
            most -= pack.messages
            if most <= 0:
                break
        cursor.close()
        for place in unusable:
            self._give_up(*place)
        self._tell()
        return found

    def weigh(self, channel: int, first: int, behind: int) -> int:
        """Payload bytes of packs that begin within ``first … behind - 1``, as they are, intact or not."""
        row = self._connection.execute(
            f"SELECT ifnull(sum(length(payload)), 0) FROM {self.table}"  # noqa: S608 - constants
            f" WHERE channel = ? AND {self._key} >= ? AND {self._key} < ?",
            (channel, first, behind),
        ).fetchone()
        return int(row[0])

    def reaches(self, channel: int, number: int) -> bool:
        """Whether a pack holds `number`, or begins behind it."""
        row = self._connection.execute(
            f"SELECT max({self._key} + messages), max({self._key}) + 1 FROM {self.table}"  # noqa: S608 - constants
            f" WHERE channel = ? AND {self._key} > ?",
            (channel, number - PACK_MESSAGES),
        ).fetchone()
        return any(isinstance(behind, int) and behind > number for behind in row)
