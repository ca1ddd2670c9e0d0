"""Opening the SQLite file: its mode, its settings, its schema, and what happens to a file that SQLite refuses.

Also the place where errors of sqlite3 become errors of the store.
"""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from rondevud.errors import StoreError, StoreFailed
from rondevud.store import schema_text
from rondevud.store.marks import SUFFIX
from rondevud.store.upgrades import APPLICATION_ID, STEPS, upgrade, version
from rondevud.syncing import sync

logger = logging.getLogger(__name__)

BUSY_TIMEOUT = 5.0
"""Seconds to wait for a lock of another process (someone looks at the file with a tool)."""

WAL_KEPT = 16 * 1024 * 1024
"""Bytes to which the log is cut when it starts from its beginning again."""

LOGGED = b"\2\2"
"""Write and read version in the header of a database with a log."""

_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


def primary_code(error: sqlite3.Error) -> int | None:
    """SQLite's result code without its extension; None when the error did not come from the library."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def is_damage(error: sqlite3.Error) -> bool:
    """Whether SQLite found the file itself damaged."""
    return primary_code(error) in _DAMAGE


def damage(what: str) -> sqlite3.DatabaseError:
    """The error SQLite would raise, for damage that only we can see."""
    error = sqlite3.DatabaseError(what)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def failure(error: Exception) -> StoreFailed:
    """What a failed commit is called."""
    if isinstance(error, sqlite3.Error) and primary_code(error) == sqlite3.SQLITE_FULL:
        return StoreFailed(f"no room to store anything: {error}", "disk_full")
    return StoreFailed(f"the store failed: {error}")


def _nothing(_text: str) -> None:
    pass


def open_database(
    path: Path, factory: type[sqlite3.Connection] = sqlite3.Connection, note: Callable[[str], object] = _nothing
) -> tuple[sqlite3.Connection, Path | None]:
    """The database at `path`, made when there is none, and where a damaged one was moved to.

    One that is refused for the text of its schema alone is used with that set right, which `note` is told. Raises
    `StoreError` when it cannot be opened, belongs to another program or has a newer schema.
    """
    try:
        try:
            return connect(path, factory), None
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            if (connection := _with_its_schema(path, error, factory, note)) is not None:
                return connection, None
            moved = aside(path)
            _move(path, moved)
            logger.error("SQLite refuses %s (%s): moved to %s", path, error, moved)  # noqa: TRY400
            return _without_log(path, moved, factory) or _empty(path, factory), moved
    except (sqlite3.Error, OSError) as error:
        raise StoreError(f"cannot open {path}: {error}") from error


def _with_its_schema(
    path: Path, refusal: sqlite3.DatabaseError, factory: type[sqlite3.Connection], note: Callable[[str], object]
) -> sqlite3.Connection | None:
    """A database that is refused because of the text of its schema, with that set right; None if that is not the reason."""
    try:
        names = schema_text.mend(path, BUSY_TIMEOUT)
        if not names:
            return None
        logger.error("SQLite refuses %s (%s): set its schema right at %s", path, refusal, ", ".join(names))
        connection = connect(path, factory)
    except sqlite3.DatabaseError as error:
        logger.debug("its schema cannot be set right: %s", error)
        return None
    note(f"set the text of the schema right at {', '.join(names)}")
    return connection


def _without_log(path: Path, moved: Path, factory: type[sqlite3.Connection]) -> sqlite3.Connection | None:
    """A copy of a database that is refused together with its log, if it can be used alone.

    A log that belongs to another moment (somebody has put an older one there) makes nonsense of a file that is whole.
    """
    if _size(_beside(moved, "-wal")) == 0:
        return None
    try:
        shutil.copyfile(moved, path)
        path.chmod(0o600)
        connection = connect(path, factory)
    except (sqlite3.Error, OSError, StoreError) as error:
        logger.debug("without its log, too: %s", error)
        for suffix in ("", "-wal", "-shm"):
            _beside(path, suffix).unlink(missing_ok=True)
        return None
    logger.error("going on with what the file holds without its log: what was stored last is missing")
    return connection


def _empty(path: Path, factory: type[sqlite3.Connection]) -> sqlite3.Connection:
    logger.error("starting with an empty store")
    return connect(path, factory)


def connect(path: Path, factory: type[sqlite3.Connection] = sqlite3.Connection) -> sqlite3.Connection:
    """The database at `path` as it is, made when there is none.

    Raises `sqlite3.DatabaseError` (see `is_damage`) for one that SQLite refuses, `OSError`, and `StoreError` for one that
    belongs to another program or has a newer schema.
    """
    _make_file(path)
    _mend_header(path)
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None, factory=factory)
    try:
        # A damaged row may hold anything where text belongs; its checksum tells.
        connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
        _check_owner(path, connection)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute(f"PRAGMA journal_size_limit = {WAL_KEPT}")
        connection.execute("PRAGMA cell_size_check = ON")
        connection.execute("PRAGMA cache_size = -8000")
        upgrade(connection, path)
        _check_schema(connection)
    except UnicodeDecodeError as error:  # sqlite3 met garbage in the text of the schema
        _leave(connection)
        raise damage(f"its schema is damaged: {error}") from error
    except BaseException:
        _leave(connection)
        raise
    return connection


def _leave(connection: sqlite3.Connection) -> None:
    """Close without bringing the log into the file: one may be what is wrong with the other (Python 3.12 or newer)."""
    if sys.version_info >= (3, 12):
        connection.setconfig(sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, True)
    connection.close()


def check_integrity(connection: sqlite3.Connection) -> list[str]:
    """What SQLite finds wrong with the file, a line each, 100 at most. Reads all of it: some seconds for a gigabyte."""
    try:
        found = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(100)")]
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        return [str(error)]
    return [line for text in found if text != "ok" for line in text.splitlines()]


def _make_file(path: Path) -> None:
    """Make the file if there is none, private from its first moment, and make its directory entry durable."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        _check_log(path)
        path.chmod(0o600)
        return
    _check_log(path)
    for directory in (path.parent, path.parent.parent):
        sync(directory)


def _check_log(path: Path) -> None:
    """SQLite would throw the log of an empty file away, and with it all there is. Raises `damage`."""
    if path.stat().st_size == 0 and _size(_beside(path, "-wal")) > 0:
        raise damage("the file is empty and its log is not")


def _mend_header(path: Path) -> None:
    """Say in the header that there is a log, where a damaged byte says something else.

    SQLite never writes a file whose header has an unknown write version, refuses one with an unknown read version, and
    does not look at the log of one that has none by its header (https://www.sqlite.org/fileformat2.html §1.3.3).
    """
    with path.open("rb") as file:
        header = file.read(72)
    ours = header.startswith(b"SQLite format 3\0") and header[68:72] == APPLICATION_ID.to_bytes(4, "big")
    versions = header[18:20]
    if not ours or versions == LOGGED or (max(versions) <= max(LOGGED) and _size(_beside(path, "-wal")) == 0):
        return
    logger.error("the header of %s is damaged: versions %d and %d; mended", path, *versions)
    with path.open("r+b") as file:
        file.seek(18)
        file.write(LOGGED)
        file.flush()
        os.fsync(file.fileno())


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _check_owner(path: Path, connection: sqlite3.Connection) -> None:
    found = version(connection)
    tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    owner = connection.execute("PRAGMA application_id").fetchone()[0]
    if tables and owner != APPLICATION_ID:
        raise StoreError(f"{path} is a database of another program")
    if found > len(STEPS):
        raise StoreError(f"{path} has schema version {found}; this program knows versions up to {len(STEPS)}")


def _check_schema(connection: sqlite3.Connection) -> None:
    """A flipped bit in a column's name would make every operation fail; take it for the damage that it is."""
    if wrong := schema_text.wrong_names(connection):
        raise damage(f"its schema is damaged at {', '.join(wrong)}")


def aside(path: Path) -> Path:
    """A name for a damaged database, beside its own, that nothing has."""
    stem = f"{path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    target, attempt = path.with_name(stem), 1
    while target.exists():
        attempt += 1
        target = path.with_name(f"{stem}-{attempt}")
    return target


def _move(path: Path, target: Path) -> None:
    """Rename the database with its -wal and -shm, and the marks, which tell nothing of the next one."""
    path.rename(target)
    for suffix in ("-wal", "-shm", SUFFIX):
        if (log := _beside(path, suffix)).exists():
            log.rename(_beside(target, suffix))
