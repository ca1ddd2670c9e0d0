"""The text of a file's schema: whether it is as it should be, and setting it right.

What tables there are is text in the table ``sqlite_schema``, a row for each table and index, the same in every file of one
version. Only the pages at which they begin can differ: in a file that came from an earlier version. So what damage has
done to one of these rows can be undone from what it should be, while SQLite refuses the whole file for one wrong letter.
See https://sqlite.org/schematab.html and https://sqlite.org/pragma.html#pragma_writable_schema.
"""

from __future__ import annotations

import contextlib
import functools
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rondevud.store.upgrades import APPLICATION_ID, STEPS, upgrade, version

HEADER = 100
"""Bytes of a database's header, https://sqlite.org/fileformat2.html section 1.3."""


class Entry(NamedTuple):
    """A row of ``sqlite_schema``."""

    rowid: int
    type: str
    name: str
    table: str
    root: int
    """The page at which it begins."""
    sql: str | None

    @property
    def text(self) -> tuple[Any, ...]:
        return self.type, self.name, self.table, self.sql


_QUERY = "SELECT rowid, type, name, tbl_name, rootpage, sql FROM sqlite_schema"


@functools.cache
def expected() -> tuple[Entry, ...]:
    """The rows of a new file."""
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as fresh:
        upgrade(fresh)
        return tuple(map(Entry._make, fresh.execute(_QUERY)))


def wrong_names(connection: sqlite3.Connection) -> list[str]:
    """What is not as it should be in a file of this version; what somebody has added does not matter."""
    present = {entry.name: entry for entry in map(Entry._make, connection.execute(_QUERY))}
    wrong = [entry.name for entry in expected() if entry.name not in present or present[entry.name].text != entry.text]
    return wrong or [entry.name for entry in _flipped_roots(list(present.values()))]


def mend(path: Path, timeout: float) -> list[str]:
    """Set right what can be in the file at `path`; answers the names of what that was.

    Only a file whose header says that it is ours and of this version is opened, and it is changed only if every row but
    one is certain. Raises errors of sqlite3.
    """
    with path.open("rb") as file:
        header = file.read(HEADER)
    if not header.startswith(b"SQLite format 3\0") or header[68:72] != APPLICATION_ID.to_bytes(4, "big"):
        return []
    connection = sqlite3.connect(path, timeout=timeout, isolation_level=None)
    try:
        connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
        connection.execute("PRAGMA writable_schema = ON")  # from now on SQLite does without what it cannot understand
        owner = connection.execute("PRAGMA application_id").fetchone()[0]
        if owner != APPLICATION_ID or version(connection) != len(STEPS):
            return []
        connection.execute("BEGIN IMMEDIATE")
        right = _right(_read(connection))
        if right:
            _write(connection, right)
        connection.execute("COMMIT")
        return [entry.name for entry in right]
    finally:
        with contextlib.suppress(AttributeError):  # Python 3.12 or newer: the log may be what is wrong, so it stays one
            connection.setconfig(sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, True)
        connection.close()


def _read(connection: sqlite3.Connection) -> list[Entry]:
    """The rows in their order; of one that cannot be read only the rowid."""
    with contextlib.suppress(sqlite3.DatabaseError):
        return [Entry._make(row) for row in connection.execute(_QUERY)]
    found: list[Entry] = []
    for (rowid,) in connection.execute("SELECT rowid FROM sqlite_schema").fetchall():
        row = None
        with contextlib.suppress(sqlite3.DatabaseError):
            row = connection.execute(f"{_QUERY} WHERE rowid = ?", (rowid,)).fetchone()
        found.append(Entry(rowid, "", "", "", 0, None) if row is None else Entry._make(row))
    return found


def _right(present: Sequence[Entry]) -> list[Entry]:
    """What is to be written in place of one wrong row; nothing if none is wrong, or if it is not certain what is right."""
    texts = {entry.text for entry in expected()}
    fine = {entry.text: entry.root for entry in present if entry.text in texts}
    wrong = [entry for entry in present if entry.text not in texts]
    lacking = [entry for entry in expected() if entry.text not in fine]
    if not wrong and not lacking:
        return _flipped_roots(present)
    if len(wrong) != 1 or len(lacking) != 1 or len(present) != len(expected()):
        return []
    (old,), (new,) = wrong, lacking
    if is_root(old.root) and old.root not in fine.values():
        return [new._replace(rowid=old.rowid, root=old.root)]
    known = all(fine[entry.text] == entry.root for entry in expected() if entry is not new)
    return [new._replace(rowid=old.rowid)] if known else []


def is_root(value: object) -> bool:
    """Whether a table or index can begin there: the first page is that of the schema itself."""
    return isinstance(value, int) and value > 1


def _flipped_roots(present: Sequence[Entry]) -> list[Entry]:
    """The one that begins elsewhere while all others begin where they do in a new file, if one bit makes the difference."""
    by_name = {entry.name: entry.root for entry in present}
    moved = [entry for entry in expected() if by_name.get(entry.name) != entry.root]
    if len(moved) != 1 or not isinstance(root := by_name.get(moved[0].name), int):
        return []
    rowids = {entry.name: entry.rowid for entry in present}
    one_bit = (root ^ moved[0].root).bit_count() == 1
    return [moved[0]._replace(rowid=rowids[moved[0].name])] if one_bit else []


def _write(connection: sqlite3.Connection, right: Sequence[Entry]) -> None:
    for entry in right:
        changed = connection.execute(
            "UPDATE sqlite_schema SET type = ?2, name = ?3, tbl_name = ?4, rootpage = ?5, sql = ?6 WHERE rowid = ?1",
            entry,
        ).rowcount
        if changed != 1:
            raise sqlite3.DatabaseError(f"row {entry.rowid} of the schema cannot be found")
