"""Where received files go: the directory, and in it a hidden one with what is unfinished and what is known of the rest.

``.rondevu-files`` (mode 0700) holds for each file ``KEY.record``, and until it is done ``KEY.part`` with its bytes. A
finished file gets its name by a hard link, which never takes the place of another file, and is then unlinked there. A
record that names the finished file, beside a part that is still there, was interrupted in between: whether both are one
file decides.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import msgpack

from rondevud.ctl.files.incoming import Part, Record
from rondevud.ctl.files.names import numbered

HIDDEN = ".rondevu-files"

UNFINISHED_KEPT = 7 * 86_400.0
"""Seconds for which a file that nobody goes on with is kept."""

DONE_REMEMBERED = 30 * 86_400.0
"""Seconds for which it is known that a file was received."""

HASHED_AT_ONCE = 1024 * 1024

_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
"""Of file systems that have no hard links."""


class Folder:
    """A directory that takes files. Raises `OSError` when it is none, or cannot be written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.hidden = path / HIDDEN
        self.hidden.mkdir(mode=0o700, exist_ok=True)
        if self.hidden.is_symlink():
            raise NotADirectoryError(errno.ENOTDIR, "is a link, and should be a directory", str(self.hidden))
        mask = os.umask(0o077)
        os.umask(mask)
        self.mode = 0o666 & ~mask
        """Of finished files: what any new file of this user has; never executable."""
        self._expire()

    def shelf(self, connection_id: str, label: str) -> FolderShelf:
        """What one channel has in it."""
        return FolderShelf(self, connection_id, label)

    def _expire(self) -> None:
        """Remove what was left for too long, of whatever connection."""
        now = time.time()
        for path in self.hidden.glob("*.record"):
            part = path.with_suffix(".part")
            with contextlib.suppress(OSError):
                if part.exists():
                    if now - max(part.stat().st_mtime, path.stat().st_mtime) > UNFINISHED_KEPT:
                        part.unlink()
                        path.unlink()
                elif now - path.stat().st_mtime > DONE_REMEMBERED:
                    path.unlink()


class FolderShelf:
    """See `incoming.Shelf`. Several may be used by several threads at once."""

    def __init__(self, folder: Folder, connection_id: str, label: str) -> None:
        self._folder = folder
        self._owner = [connection_id, label]
        self._prefix = hashlib.sha256(msgpack.packb(self._owner)).hexdigest()[:24]

    def load(self) -> list[Record]:
        found = []
        for path in self._folder.hidden.glob(f"{self._prefix}-*.record"):
            record = _read_record(path)
            if record is None:
                path.unlink(missing_ok=True)
                path.with_suffix(".part").unlink(missing_ok=True)
            else:
                found.append((path.stat().st_mtime_ns, path.name, self._repair(record)))
        return [record for _, _, record in sorted(found, key=lambda item: item[:2])]

    def _repair(self, record: Record) -> Record:
        """Finish a publication that was interrupted, or take it back."""
        part = self._path(record, "part")
        if record.final is None or not part.exists():
            return record
        final = self._folder.path / record.final
        if final.exists() and final.samefile(part):
            part.unlink()
            return record
        record = replace(record, final=None)
        self.save(record)
        return record

    def save(self, record: Record) -> None:
        path = self._path(record, "record")
        new = path.with_suffix(".new")
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            _write_all(fd, msgpack.packb({"owner": self._owner, **asdict(record)}), 0)
            os.fsync(fd)
        except OSError:
            new.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)
        new.replace(path)
        _sync_directory(self._folder.hidden)

    def open(self, record: Record) -> Part:
        return FilePart(self._path(record, "part"))

    def publish(self, record: Record) -> Record:
        part = self._path(record, "part")
        part.chmod(self._folder.mode)
        facts = part.stat()
        for number in itertools.count(1):
            name = numbered(record.name, number)
            final = self._folder.path / name
            if os.path.lexists(final):
                continue
            named = replace(record, final=name, inode=facts.st_ino, modified=facts.st_mtime_ns)
            self.save(named)
            if _give_name(part, final):
                break
        try:
            _sync_directory(self._folder.path)
        except OSError:
            final.unlink(missing_ok=True) if part.exists() else final.rename(part)
            raise
        part.unlink(missing_ok=True)
        return named

    def has(self, record: Record) -> bool:
        try:
            facts = os.lstat(self._folder.path / (record.final or ""))
        except FileNotFoundError:
            return False
        return (facts.st_ino, facts.st_mtime_ns, facts.st_size) == (record.inode, record.modified, record.size)

    def remove(self, record: Record) -> None:
        self._path(record, "part").unlink(missing_ok=True)
        self._path(record, "record").unlink(missing_ok=True)

    def free(self) -> int:
        facts = os.statvfs(self._folder.hidden)
        return facts.f_bavail * facts.f_frsize

    def expire(self, records: list[Record]) -> list[Record]:
        latest = time.time() - UNFINISHED_KEPT
        return [record for record in records if self._touched(record) < latest]

    def _touched(self, record: Record) -> float:
        times = [0.0]
        for suffix in ("part", "record"):
            with contextlib.suppress(FileNotFoundError):
                times.append(self._path(record, suffix).stat().st_mtime)
        return max(times)

    def _path(self, record: Record, suffix: str) -> Path:
        return self._folder.hidden / f"{self._prefix}-{record.id.hex()}.{suffix}"


class FilePart:
    """See `incoming.Part`."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    @property
    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def write(self, offset: int, data: bytes) -> None:
        _write_all(self._fd, data, offset)

    def sync(self) -> None:
        os.fsync(self._fd)

    def truncate(self, size: int) -> None:
        os.ftruncate(self._fd, size)

    def sha256(self) -> bytes:
        return hash_file(self._fd)

    def close(self) -> None:
        os.close(self._fd)


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def hash_file(fd: int) -> bytes:
    """SHA-256 of a file from its beginning."""
    digest, offset = hashlib.sha256(), 0
    while data := os.pread(fd, HASHED_AT_ONCE, offset):
        digest.update(data)
        offset += len(data)
    return digest.digest()


def _give_name(part: Path, final: Path) -> bool:
    """Link `part` to a name that nobody has; False when somebody was faster."""
    try:
        final.hardlink_to(part)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if os.path.lexists(final):
            return False
        part.rename(final)
    return True


def _read_record(path: Path) -> Record | None:
    """None for a file that is no record: it was damaged."""
    try:
        fields: dict[str, Any] = msgpack.unpackb(path.read_bytes())
        fields.pop("owner")
        return Record(**fields)
    except (ValueError, TypeError, KeyError, AttributeError, msgpack.UnpackException):
        return None


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
