"""The log of a program under test: one event a line, in a file that is the truth after a kill, and on standard output."""

from __future__ import annotations

import os
import sys
from pathlib import Path


class Log:
    """Append-only. A line is in the file when `write` returns; a kill leaves whole lines, except perhaps the last."""

    def __init__(self, path: str) -> None:
        self.lines = _whole_lines(Path(path))
        """What earlier runs of the program have written, split into words."""
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, *words: object) -> None:
        line = (" ".join(str(word) for word in words) + "\n").encode()
        os.write(self._file, line)
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()


def _whole_lines(path: Path) -> list[list[str]]:
    if not path.exists():
        return []
    text = path.read_text()
    if text and not text.endswith("\n"):
        path.write_text(text[: text.rfind("\n") + 1])
    return [line.split() for line in text.split("\n")[:-1]]
