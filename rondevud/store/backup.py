"""A consistent copy of a store, also while a daemon writes to it.

The copy is of one moment, that of the beginning: a reader's snapshot, so that later commits neither disturb it nor begin it
anew. It goes in steps with a pause and a sync after each, so that the disk stays free for commits. Meanwhile the log of
the store cannot be cut, and grows.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import threading
import time
from pathlib import Path
from urllib.parse import quote

from rondevud.errors import StoreError
from rondevud.store.marks import SUFFIX
from rondevud.syncing import sync

STEP_PAGES = 256
"""Pages of 4 KiB between two pauses."""

STORE_FILES = ("", "-wal", "-shm", SUFFIX)
"""How the names of the files of a store end."""

PAUSE = 0.004
"""Seconds between two steps."""


class BackupExists(StoreError):
    """There is a file at the place of the copy."""


class BackupCancelled(StoreError):
    """Nobody wants the copy any more; nothing is left of it."""


def back_up(path: Path, target: Path, *, force: bool = False, cancelled: threading.Event | None = None) -> int:
    """Copy the store at `path` to `target` (mode 0600), and answer how many bytes that are.

    Blocks. `target` is there when the copy is whole and on the disk, and not before; with `force` it takes the place of
    what is there. Raises `BackupExists`, `BackupCancelled`, and `StoreError` naming the file for everything else.
    """
    if target.parent.resolve() == path.parent.resolve() and target.name in {path.name + end for end in STORE_FILES}:
        raise StoreError(f"{target} is the store itself")
    if not force and os.path.lexists(target):
        raise BackupExists(f"{target} is there already")
    part = target.with_name(f".{target.name[:64]}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _copy(path, part, descriptor, cancelled or threading.Event())
            os.fsync(descriptor)
            size = os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)
        _put_in_place(part, target, force=force)
    except FileExistsError:
        raise BackupExists(f"{target} is there already") from None
    except OSError as error:
        raise StoreError(f"{target}: cannot be written: {error.strerror or error}") from error
    except sqlite3.Error as error:
        raise StoreError(f"{target}: cannot be written: {error}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    return size


def _copy(path: Path, part: Path, descriptor: int, cancelled: threading.Event) -> None:
    def pause(_status: int, _left: int, _pages: int) -> None:
        if cancelled.is_set():
            raise BackupCancelled("the copy was given up")
        os.fdatasync(descriptor)
        time.sleep(PAUSE)

    with (
        contextlib.closing(
            sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, isolation_level=None)
        ) as source,
        contextlib.closing(sqlite3.connect(part, isolation_level=None)) as copy,
    ):
        copy.execute("PRAGMA journal_mode = OFF")  # a copy that was cut short is thrown away
        copy.execute("PRAGMA synchronous = OFF")
        source.execute("BEGIN")
        source.execute("SELECT count(*) FROM sqlite_schema").fetchone()  # here the snapshot begins
        source.backup(copy, pages=STEP_PAGES, progress=pause)


def _put_in_place(part: Path, target: Path, *, force: bool) -> None:
    if force:
        part.replace(target)
    else:
        os.link(part, target)
    sync(target.parent)
