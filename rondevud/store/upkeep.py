"""What the writer of the SQLite store does between its transactions: repair, checkpoints, rows of deleted channels."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from rondevud import failpoints
from rondevud.store.database import BUSY_TIMEOUT
from rondevud.store.tables import SqlTables

logger = logging.getLogger(__name__)

CHECKPOINT_RETRY = 5.0
"""Seconds after a failed checkpoint before the next one."""

RESERVED = 4 * 1024 * 1024
"""Bytes that a log in use is given: a commit within them changes no length, and is synced in half the time (ext4: 0.7 ms
instead of 1.2 to 1.9)."""

LOG_HEADER, FRAME_HEADER = 32, 24
LOG_FRAME = FRAME_HEADER + 4096
"""Bytes of the log's header and of a frame, a page of the database and what stands before it."""

STEPS_OF_LIFE = 1_000_000
"""Instructions of SQLite's machine between two signs of life in long work; some milliseconds."""


class Upkeep:
    """Belongs to the writer's thread. `live` is called when something begins and again while it takes long."""

    def __init__(self, path: Path, connection: sqlite3.Connection, tables: SqlTables, live: Callable[[], None]) -> None:
        self._log = f"{path}-wal"
        self._connection = connection
        self._tables = tables
        self._live = live
        self._next_checkpoint = 0.0
        self._reader = -1
        """Of the log, opened when it is first looked at. SQLite has no locks on that file, which closing would lift."""

    def close(self) -> None:
        if self._reader >= 0:
            os.close(self._reader)
            self._reader = -1

    def roll_back(self) -> None:
        """End a transaction that failed, if it did not end by itself, and forget what it changed."""
        self._tables.clear()
        with contextlib.suppress(sqlite3.Error):
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    def _transact(self, work: Callable[[], object]) -> sqlite3.Error | None:
        """Do something in a transaction of its own; answers the error that kept it from being committed."""
        self._live()
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            work()
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            self.roll_back()
            return error
        return None

    def repair(self, *, make_room: bool = False) -> bool:
        """Commit a small transaction, which overwrites what a failed one left in the log; whether that succeeded.

        `make_room`: bring the log into the file before. Then the log begins anew, in the room that it has already.
        """
        change = "UPDATE meta SET value = value + 1 WHERE name = 'repairs'"
        if make_room:
            with contextlib.suppress(sqlite3.Error):
                self._checkpoint_now("PASSIVE")
        if error := self._transact(lambda: self._connection.execute(change)):
            logger.debug("commits still fail: %s", error)
        return error is None

    def reindex(self) -> bool:
        """Make the indexes anew, which mends half of the damage that SQLite can find; whether that succeeded.

        Takes seconds for a large store, and shows life meanwhile.
        """
        self._connection.set_progress_handler(self._live, STEPS_OF_LIFE)
        try:
            error = self._transact(lambda: self._connection.execute("REINDEX"))
        finally:
            self._connection.set_progress_handler(None, 0)
        if error is None:
            logger.error("the store was damaged; its indexes have been made anew")
        else:
            logger.error("the store is damaged, and its indexes cannot be made anew: %s", error)
        return error is None

    def collect(self) -> bool:
        """Remove one slice of the rows of deleted channels; whether that succeeded."""
        if error := self._transact(self._tables.collect):
            logger.warning("rows of deleted channels stay for now: %s", error)
        return error is None

    def log_size(self) -> int:
        """Bytes of the write-ahead log, those included that it only keeps."""
        try:
            return os.stat(self._log).st_size  # noqa: PTH116 - after each commit
        except OSError:
            return 0

    def log_reaches(self, size: int) -> bool:
        """Whether what is in the log goes beyond so many bytes; what it only keeps does not count."""
        try:
            if self._reader < 0:
                self._reader = os.open(self._log, os.O_RDONLY | os.O_CLOEXEC)
            header = os.pread(self._reader, LOG_HEADER, 0)
            frame = os.pread(self._reader, FRAME_HEADER, LOG_HEADER + size // LOG_FRAME * LOG_FRAME)
        except OSError:
            return False
        # The salts of the header stand in each frame since the log began anew: https://www.sqlite.org/fileformat2.html §4.1
        return len(header) == LOG_HEADER and len(frame) == FRAME_HEADER and header[16:24] == frame[8:16]

    def reserve_log(self) -> None:
        """Give the log the length `RESERVED`. SQLite takes zeros for its end."""
        try:
            with open(self._log, "r+b") as log:  # noqa: PTH123
                end = log.seek(0, os.SEEK_END)
                try:
                    log.write(bytes(max(0, RESERVED - end)))
                    log.flush()
                    os.fsync(log.fileno())
                except OSError:
                    log.truncate(end)
                    raise
        except OSError as error:
            logger.debug("the log gets no room beforehand: %s", error)

    def checkpoint(self, mode: str) -> sqlite3.Error | None:
        """Bring the log into the file; a failure is logged, answered, and tried again after `CHECKPOINT_RETRY`.

        A reader (a backup) that keeps the log from being cut is not waited for: commits go on meanwhile.
        """
        if time.monotonic() < self._next_checkpoint:
            return None
        self._live()
        try:
            failpoints.hit("checkpoint.before")
            busy = self._checkpoint_now(mode)
            failpoints.hit("checkpoint.after")
        except sqlite3.Error as error:
            self._next_checkpoint = time.monotonic() + CHECKPOINT_RETRY
            logger.warning("the checkpoint failed, the log grows: %s", error)
            return error
        if busy:
            self._next_checkpoint = time.monotonic() + CHECKPOINT_RETRY
        return None

    def _checkpoint_now(self, mode: str) -> bool:
        """Whether a reader kept it from being finished."""
        self._connection.execute("PRAGMA busy_timeout = 0")
        try:
            return bool(self._connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()[0])
        finally:
            self._connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT * 1_000:.0f}")
