"""What of a running daemon's writes and syncs is to fail or to last: the block that ``recorder.c`` looks at."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

FIELDS = (
    "write_errno", "sync_errno", "sync_passes", "sync_fails", "sync_delay",
    "failed_writes", "failed_syncs", "delayed_syncs",
)  # fmt: skip


class Control:
    """Its keys are `FIELDS`; all are 0 at first, and then nothing fails. See ``struct control``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(bytes(4 * len(FIELDS)))
        with path.open("r+b") as file:
            self._block = mmap.mmap(file.fileno(), 0)

    def __getitem__(self, field: str) -> int:
        return int(struct.unpack_from("=i", self._block, 4 * FIELDS.index(field))[0])

    def set(self, **values: int) -> None:
        """One after the other, in the order in which they stand there."""
        for field, value in values.items():
            struct.pack_into("=i", self._block, 4 * FIELDS.index(field), value)

    def close(self) -> None:
        self._block.close()
