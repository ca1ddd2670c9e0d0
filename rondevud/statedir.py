"""The state directory: ours alone, and of one daemon at a time.

The lock is an flock on the file ``lock``, which also holds the pid for people. The kernel drops it with the process,
however that ends, so a lock file that is left over never keeps a daemon from starting.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import stat
from pathlib import Path
from types import TracebackType
from typing import Self

from rondevud.errors import StateDirectoryError
from rondevud.syncing import sync

LOCK_NAME = "lock"
DATABASE = "rondevud.sqlite3"


class StateDirectory:
    """A state directory that this process holds, from `__init__` to `close`.

    Made with mode 0700 when there is none. Raises `StateDirectoryError` when another daemon holds it (naming its pid),
    when it is somebody else's or open to others, and when it cannot be made or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        _prepare(path)
        self._lock: int | None = _take_lock(path / LOCK_NAME)

    def close(self) -> None:
        """Let the directory go. Idempotent."""
        lock, self._lock = self._lock, None
        if lock is not None:
            # The file stays: removing it would let two daemons hold locks on two files of one name.
            os.ftruncate(lock, 0)
            os.close(lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _prepare(path: Path) -> None:
    try:
        made = _make(path)
        found = path.stat()
    except OSError as error:
        raise StateDirectoryError(f"state directory {path}: cannot be made: {error.strerror or error}") from error
    if not stat.S_ISDIR(found.st_mode):
        raise StateDirectoryError(f"state directory {path}: is not a directory")
    if found.st_uid != os.geteuid():
        raise StateDirectoryError(
            f"state directory {path}: belongs to uid {found.st_uid}, and this runs as uid {os.geteuid()}",
            path,
            _name_of(found.st_uid),
        )
    if mode := stat.S_IMODE(found.st_mode) & 0o077:
        raise StateDirectoryError(
            f"state directory {path}: is open to others (mode {stat.S_IMODE(found.st_mode):04o}, {mode:03o} too much); "
            f"it holds private keys: chmod 700 {path}"
        )
    if made:
        _sync_directory(path.parent)


def _name_of(uid: int) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


def _make(path: Path) -> bool:
    """Make the directory with mode 0700 whatever the umask; its parents as usual. Answers whether it was made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        return False
    path.chmod(0o700)
    return True


def _sync_directory(path: Path) -> None:
    """Make the entry of a new directory survive a power cut; SQLite syncs only the directory its file is in."""
    try:
        sync(path)
    except OSError as error:
        raise StateDirectoryError(f"{path}: cannot be synced: {error.strerror or error}") from error


def _take_lock(path: Path) -> int:
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StateDirectoryError(f"state directory {path.parent}: no lock: {error.strerror or error}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
        os.close(lock)
        who = f"process {holder}" if holder.isdigit() else "another process"
        raise StateDirectoryError(
            f"state directory {path.parent} is in use by {who}; one daemon at a time can have it"
        ) from None
    except OSError as error:
        os.close(lock)
        raise StateDirectoryError(f"state directory {path.parent}: no lock: {error.strerror or error}") from error
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock
