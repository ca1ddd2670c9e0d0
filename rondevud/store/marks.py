"""How far each queue had come at its last commit, in a file beside the database: what tells that the database went back.

SQLite ends a damaged log before the first damaged frame, and takes a log that is missing for one that never was. Commits
that had been confirmed are gone then, and nothing in the database says so. The marks do: a channel is at its mark or
behind it, or its database went back.

A mark is written after the commit it tells of, in place and without a sync of its own, so that it never claims what is not
durable. A killed process leaves every mark; after a loss of power some may be old, which hides a second fault of the same
moment and never invents one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

logger = logging.getLogger(__name__)

SUFFIX = "-marks"
"""How the name of the file ends, behind that of the database."""

_MARK = struct.Struct("<qqqq")
_CRC = struct.Struct("<q")
_SIZE = _MARK.size + _CRC.size
"""Bytes of a mark; that of channel N stands at N times as many."""


class Mark(NamedTuple):
    channel: int
    next: int
    """The number behind the last one given in the outbox."""
    next_row: int
    """The row behind the last one given in the inbox."""
    taken: int
    """How many rows have left the inbox."""


class Marks:
    """The marks of one database. Never raises: without its file nothing is told, and that is logged once."""

    def __init__(self, database: Path) -> None:
        self._path = database.with_name(database.name + SUFFIX)
        self._file: int | None = None
        self._failed = False
        try:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            self._fail(error)

    def read(self) -> dict[int, Mark]:
        """By channel; one that was torn or damaged is not among them."""
        if self._file is None:
            return {}
        try:
            content = os.pread(self._file, os.fstat(self._file).st_size, 0)
        except OSError as error:
            self._fail(error)
            return {}
        marks: dict[int, Mark] = {}
        for place in range(_SIZE, len(content) - _SIZE + 1, _SIZE):
            mark = Mark(*_MARK.unpack_from(content, place))
            if mark.channel * _SIZE == place and _CRC.unpack_from(content, place + _MARK.size)[0] == _crc(mark):
                marks[mark.channel] = mark
        return marks

    def write(self, marks: Iterable[Mark]) -> None:
        """After the commit that they tell of."""
        for mark in marks:
            self._put(mark.channel, _MARK.pack(*mark) + _CRC.pack(_crc(mark)))

    def forget(self, channel: int) -> None:
        """Before the commit that deletes the channel."""
        self._put(channel, bytes(_SIZE))

    def close(self) -> None:
        """Idempotent."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    def _put(self, channel: int, content: bytes) -> None:
        if self._file is None:
            return
        try:
            os.pwrite(self._file, content, channel * _SIZE)
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        """Old marks must go: one of a channel that is deleted meanwhile would tell of a loss that there was not."""
        if not self._failed:
            self._failed = True
            logger.warning("%s cannot be used: that the store went back may go unnoticed: %s", self._path, error)
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, 0)


def _crc(mark: Mark) -> int:
    return crc32(_MARK.pack(*mark))
