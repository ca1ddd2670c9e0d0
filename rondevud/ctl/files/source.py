"""A file that is sent, and whether it stays what it was."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

from rondevud.ctl.files.folder import hash_file


class SourceChanged(Exception):
    """The file is not what it was when it was offered."""


class Source:
    """An open file. Raises `OSError`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._facts = self._look()
        self.size = self._facts[0]

    def sha256(self) -> bytes:
        """Of the whole file. Raises `SourceChanged`."""
        digest = hash_file(self._fd)
        self.check()
        return digest

    def read(self, offset: int, length: int) -> bytes:
        """Raises `SourceChanged`: what is read after a change may be anything."""
        data = os.pread(self._fd, length, offset)
        self.check()
        if len(data) < length:
            raise SourceChanged(f"{self.path} ends at {offset + len(data)}")
        return data

    def check(self) -> None:
        """Raises `SourceChanged` if it was written since it was opened."""
        if self._look() != self._facts:
            raise SourceChanged(f"{self.path} has changed while it was being sent")

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _look(self) -> tuple[int, int]:
        facts = os.fstat(self._fd)
        return facts.st_size, facts.st_mtime_ns
