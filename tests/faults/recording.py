"""The log of ``recorder.c``: made by processes that it was preloaded into, read here record by record."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).with_name("recorder.c")
HEAD = struct.Struct("<IB3xiiiiqq")

OPEN, CLOSE, WRITE, TRUNCATE, SYNC_BEGINS, SYNC_ENDS = "O", "C", "W", "T", "B", "S"
UNLINK, RENAME, LINK, MAKE, REMOVE = "U", "R", "L", "M", "D"
SHARED, UNKNOWN = "A", "X"
SAYING, SAID, MARK = "P", "Q", "K"

FILE_OPERATIONS = frozenset({WRITE, TRUNCATE, SYNC_BEGINS, SYNC_ENDS, UNLINK, RENAME, LINK, MAKE, REMOVE})


class Record(NamedTuple):
    """One record. What `first` and `second` mean depends on the kind.

    OPEN: the flags, whether the file was made. WRITE: the offset. TRUNCATE: the length. SAYING, SAID: which socket.
    """

    kind: str
    pid: int
    tid: int
    fd: int
    result: int
    first: int
    second: int
    data: bytes

    @property
    def paths(self) -> list[str]:
        """Of OPEN one, of RENAME and LINK two."""
        return [word.decode() for word in self.data.split(b"\0") if word]


def build(directory: Path) -> Path:
    """Compile the library that is preloaded."""
    library = directory / "recorder.so"
    command = ["cc", "-Wall", "-Werror", "-O2", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl", "-pthread"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return library


def environment(
    library: Path, paths: Sequence[Path], log: Path | None = None, control: Path | None = None
) -> dict[str, str]:
    """For the process that is to be recorded, below `paths` (they are taken as beginnings of names)."""
    return {
        "LD_PRELOAD": str(library),
        "RECORDER_PATHS": ":".join(map(str, paths)),
        "RECORDER_LOG": str(log or ""),
        "RECORDER_CONTROL": str(control or ""),
    }


def read(log: Path) -> list[Record]:
    """All records. Raises `AssertionError` for something that the model does not know."""
    records = list(_split(log.read_bytes()))
    unknown = {record.data.decode() for record in records if record.kind == UNKNOWN}
    assert not unknown, f"files were changed by {unknown}"
    return records


def _split(content: bytes) -> Iterator[Record]:
    place = 0
    while place + HEAD.size <= len(content):
        size, kind, *fields = HEAD.unpack_from(content, place)
        place += HEAD.size
        yield Record(chr(kind), *fields, content[place : place + size])
        place += size
