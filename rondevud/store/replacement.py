"""A copy that `back_up` made, put in the place of a store that nobody has open."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from rondevud.errors import StoreError
from rondevud.store.database import check_integrity, connect, is_damage
from rondevud.store.upgrades import APPLICATION_ID, STEPS
from rondevud.syncing import sync


def put_back(copy: Path, path: Path) -> Path | None:
    """Replace the store at `path` by `copy`, which stays. Answers where the replaced one is kept, None if there was none.

    At no moment is there no store at `path`, but for the first one. The marks beside it stay: at the next start they tell
    the peers what had been accepted since the copy was made. Raises `StoreError` for a file that is no whole copy of a
    store, or has a newer schema; nothing has been changed then.
    """
    check_copy(copy)
    fresh = path.with_name(f"{path.name}.restored")
    try:
        _copy(copy, fresh)
        kept = _keep(path)
        fresh.replace(path)
        sync(path.parent)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise StoreError(f"{path}: cannot be replaced: {error.strerror or error}") from error
    return kept


def _copy(copy: Path, fresh: Path) -> None:
    fresh.unlink(missing_ok=True)
    fresh.touch(0o600, exist_ok=False)
    with fresh.open("wb") as target, copy.open("rb") as source:
        shutil.copyfileobj(source, target)
        target.flush()
        os.fsync(target.fileno())


def check_copy(copy: Path) -> None:
    """Whether the file can be put in the place of a store. Reads all of it. Raises `StoreError`."""
    if not copy.is_file():
        raise StoreError(f"{copy}: there is no such file")
    log = copy.with_name(f"{copy.name}-wal")
    if log.exists() and log.stat().st_size:
        raise StoreError(f"{copy}: has a log beside it, {log.name}, so it is no copy but a store in use")
    try:
        with contextlib.closing(
            sqlite3.connect(f"file:{quote(str(copy))}?mode=ro&immutable=1", uri=True, isolation_level=None)
        ) as connection:
            owner = connection.execute("PRAGMA application_id").fetchone()[0]
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            found = check_integrity(connection)
    except sqlite3.Error as error:
        raise StoreError(f"{copy}: is no copy of a store: {error}") from error
    if found and owner == APPLICATION_ID:
        raise StoreError(f"{copy}: is damaged: {found[0]}")
    if owner != APPLICATION_ID or not version:
        raise StoreError(f"{copy}: is no copy of a store")
    if version > len(STEPS):
        raise StoreError(f"{copy}: has schema version {version}; this program knows versions up to {len(STEPS)}")


def _keep(path: Path) -> Path | None:
    """Give the store at `path` a second name, with all that its log holds: one that stayed would be taken for the copy's."""
    if not path.exists():
        return None
    kept = path.with_name(f"{path.name}.before-restore-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
    try:
        with contextlib.closing(connect(path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            connection.execute("PRAGMA journal_mode = DELETE").fetchone()
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise StoreError(f"{path}: cannot be replaced: {error}") from error
    os.link(path, kept)
    for suffix in ("-wal", "-shm"):  # of a store that SQLite refuses
        log = path.with_name(path.name + suffix)
        if log.exists():
            log.rename(kept.with_name(kept.name + suffix))
    return kept
