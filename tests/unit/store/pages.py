"""What the bytes of a database file are for, read from its pages by SQLite's file format.

Most bytes of a full store are values of messages' rows, of which each row's checksum tells, or no part of anything: the
room between rows, pages that nothing uses. All others hold the file together. See https://sqlite.org/fileformat2.html.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Sequence
from contextlib import closing
from itertools import islice
from typing import NamedTuple

PAGE = 4096
LOG_HEADER, FRAME_HEADER = 32, 24

INTERIOR_INDEX, INTERIOR_TABLE, LEAF_INDEX, LEAF_TABLE = 2, 5, 10, 13

VALUES = {
    "outbox": (2, 3, 4, 5, 9, 10),
    "inbox": (2, 3, 4, 5, 6, 7, 8, 9, 10),
    "outbox_packs": (13,),
    "inbox_packs": (10,),
}
"""Columns of messages' rows that stand in no index, by their places in the table: a change of one does nothing else. Of
packs only the payloads, each of which damages its own message."""


class Row(NamedTuple):
    """One message: its queue, its channel, and its number there (of the inbox: its row)."""

    table: str
    channel: int
    number: int


class Layout(NamedTuple):
    """Places in a file. What is in neither holds the file together."""

    values: dict[Row, list[int]]
    unused: list[int]


def logged(log: bytes) -> dict[int, bytes]:
    """The pages that an undamaged log holds, by their numbers, as they are behind its last commit."""
    pages: dict[int, bytes] = {}
    uncommitted: dict[int, bytes] = {}
    for start in range(LOG_HEADER, len(log), FRAME_HEADER + PAGE):
        number, committed = (int.from_bytes(log[place : place + 4], "big") for place in (start, start + 4))
        uncommitted[number] = log[start + FRAME_HEADER : start + FRAME_HEADER + PAGE]
        if committed:
            pages |= uncommitted
            uncommitted = {}
    assert not uncommitted, "the log ends within a commit"
    return pages


def layout(database: bytes, log: bytes = b"") -> Layout:
    """Of the file `database`, whose pages in `log` are newer than those in it: these are unused, but for the first one."""
    newer = logged(log)
    content = bytearray(database)
    for number, page in newer.items():
        content.extend(bytes(max(0, number * PAGE - len(content))))
        content[(number - 1) * PAGE : number * PAGE] = page
    found = _Pages(bytes(content)).layout()
    covered = [number for number in newer if 1 < number <= len(database) // PAGE]

    def held(places: Sequence[int]) -> list[int]:
        return [place for place in places if place < len(database) and place // PAGE + 1 not in newer]

    values = {row: here for row, places in found.values.items() if (here := held(places))}
    unused = held(found.unused)
    for number in covered:
        unused += range((number - 1) * PAGE, number * PAGE)
    return Layout(values, sorted(unused))


def _varint(content: bytes, place: int) -> tuple[int, int]:
    """A number, and the place behind it."""
    number = 0
    for count in range(9):
        byte = content[place + count]
        if count == 8:
            return number << 8 | byte, place + 9
        number = number << 7 | byte & 127
        if byte < 128:
            return number, place + count + 1
    raise AssertionError


def _width(serial: int) -> int:
    """Bytes of a value by its serial type."""
    return (serial - 12) // 2 if serial >= 12 else (0, 1, 2, 3, 4, 6, 8, 8, 0, 0)[serial]


class _Pages:
    """All pages of a file."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        assert self._number(16, 2) == PAGE
        assert content[20] == 0, "room is reserved on each page"
        assert self._number(52) == 0, "a file that vacuums itself"
        self._values: dict[Row, list[int]] = {}
        self._unused: list[int] = []
        self._keys: dict[tuple[str, int], list[tuple[Row, int]]] = {}
        """By table and rowid the messages that are there, and their bytes of the values; -1: all of them."""

    def layout(self) -> Layout:
        with closing(sqlite3.connect(":memory:")) as connection:
            connection.deserialize(self._content[:18] + b"\1\1" + self._content[20:])  # without a log
            roots = connection.execute("SELECT name, type, rootpage FROM sqlite_schema WHERE rootpage > 0").fetchall()
            for table, number in (("outbox", "seq"), ("inbox", "row")):
                for key, *place in connection.execute(f"SELECT rowid, channel, {number} FROM {table}"):
                    self._keys[table, key] = [(Row(table, *place), -1)]
                query = f"SELECT rowid, channel, {number}, messages, sizes FROM {table}_packs"
                for key, channel, first, count, sizes in connection.execute(query):
                    lengths = [size >> 1 for size in struct.unpack(f"<{count}I", sizes)]
                    rows = [Row(table, channel, first + offset) for offset in range(count)]
                    self._keys[f"{table}_packs", key] = list(zip(rows, lengths, strict=True))
        for name, kind, root in [("sqlite_schema", "table", 1), *roots]:
            self._walk(root, name if kind == "table" else "")
        self._free()
        return Layout(self._values, self._unused)

    def _number(self, place: int, size: int = 4) -> int:
        return int.from_bytes(self._content[place : place + size], "big")

    def _walk(self, root: int, table: str) -> None:
        """A tree and all below."""
        left = [root]
        while left:
            number = left.pop()
            page = (number - 1) * PAGE
            start = page + (100 if number == 1 else 0)
            kind = self._content[start]
            assert kind in {INTERIOR_INDEX, INTERIOR_TABLE, LEAF_INDEX, LEAF_TABLE}
            interior = kind in {INTERIOR_INDEX, INTERIOR_TABLE}
            count, pointers = self._number(start + 3, 2), start + (12 if interior else 8)
            cells = [page + self._number(pointers + 2 * place, 2) for place in range(count)]
            self._unused += range(pointers + 2 * count, page + (self._number(start + 5, 2) or 65536))
            self._freeblocks(page, start)
            if interior:
                left += [self._number(start + 8), *(self._number(cell) for cell in cells)]
            elif kind == LEAF_TABLE and table in VALUES:
                for cell in cells:
                    self._row(cell, table)

    def _freeblocks(self, page: int, start: int) -> None:
        block = self._number(start + 1, 2)
        while block:
            self._unused += range(page + block + 4, page + block + self._number(page + block + 2, 2))
            block = self._number(page + block, 2)

    def _row(self, cell: int, table: str) -> None:
        size, place = _varint(self._content, cell)
        key, place = _varint(self._content, place)
        places = self._payload(place, size)
        header, at = _varint(self._content, place)
        behind, column, values = header, 0, []
        while at < place + header:
            serial, at = _varint(self._content, at)
            if column in VALUES[table]:
                values += places[behind : behind + _width(serial)]
            behind, column = behind + _width(serial), column + 1
        assert behind == size
        for row, length in self._keys[table, key]:
            end = len(values) if length < 0 else length
            self._values[row], values = values[:end], values[end:]
        assert not values

    def _payload(self, place: int, size: int) -> list[int]:
        """Where the bytes of a record are, those on overflow pages included; what these have to spare is unused."""
        local = size
        if size > PAGE - 35:
            least = (PAGE - 12) * 32 // 255 - 23
            local = least + (size - least) % (PAGE - 4)
            local = local if local <= PAGE - 35 else least
        places = list(range(place, place + local))
        number = self._number(place + local) if local < size else 0
        while number:
            page = (number - 1) * PAGE
            room = range(page + 4, page + PAGE)
            here = list(islice(room, size - len(places)))
            places += here
            self._unused += room[len(here) :]
            number = self._number(page)
        assert len(places) == size
        return places

    def _free(self) -> None:
        """Pages that nothing uses: only those that name the others say something."""
        trunk = self._number(32)
        while trunk:
            page = (trunk - 1) * PAGE
            count = self._number(page + 4)
            self._unused += range(page + 8 + 4 * count, page + PAGE)
            for place in range(count):
                leaf = (self._number(page + 8 + 4 * place) - 1) * PAGE
                self._unused += range(leaf, leaf + PAGE)
            trunk = self._number(page)


def purposes(layout: Layout) -> dict[int, Row | None]:
    """By place: the row whose value is there, None for a place that is unused."""
    by_place: dict[int, Row | None] = dict.fromkeys(layout.unused)
    for row, places in layout.values.items():
        by_place.update(dict.fromkeys(places, row))
    return by_place
