"""What a daemon's store holds, read with sqlite3 alone. As a program: dump.py FILE prints it as JSON."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import struct
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

CLOSING, TEXT, BINARY = 0, 1, 2

TOTALS = (
    "accepted", "acknowledged", "expired", "overflow", "purged", "too_large", "damaged", "lost",
    "received", "taken", "purged_in", "overflow_in", "damaged_in",
)  # fmt: skip
"""Columns of the channel's row that say what became of messages."""


def dump(path: Path) -> dict[str, dict[str, Any]]:
    """By label: counts of the channel's row, producers' last numbers, and the messages in both queues and set aside.

    A message is ``[number, digest]``, the number being the one that its sender wrote into it. The daemon may be running.
    """
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        connection.execute("BEGIN")  # one view of it all: the daemon may be writing
        channels = connection.execute("SELECT * FROM channels ORDER BY id").fetchall()
        return {row["label"]: _channel(connection, row) for row in channels}


def _channel(connection: sqlite3.Connection, row: sqlite3.Row) -> dict[str, Any]:
    number = (row["id"],)
    outbox = _held(connection, "outbox", "seq", number)
    inbox = _held(connection, "inbox", "row", number)
    failed = connection.execute("SELECT * FROM failed WHERE channel = ? ORDER BY row", number).fetchall()
    last = connection.execute("SELECT ifnull(max(last_seq), 0) FROM producers WHERE channel = ?", number)
    return {
        "out_count": row["out_count"],
        "in_count": row["in_count"],
        "totals": {word: row[word] for word in TOTALS},
        "last_seq": last.fetchone()[0],
        "outbox": [_message(*message) for message in outbox if message[0] != CLOSING],
        "inbox": [_message(*message) for message in inbox if message[0] in {TEXT, BINARY}],
        "failed": [_message(message["kind"], message["payload"]) for message in failed],
        "gaps": sum(kind not in {TEXT, BINARY} for kind, _ in inbox),
    }


def _held(connection: sqlite3.Connection, table: str, key: str, channel: tuple[int]) -> list[tuple[int, bytes]]:
    """Kind and payload of each row of a queue, and of each message of its packs, in their order."""
    held: dict[int, tuple[int, bytes]] = {}
    for row in connection.execute(f"SELECT * FROM {table} WHERE channel = ?", channel):
        held[row[key]] = row["kind"], row["payload"]
    for pack in connection.execute(f"SELECT * FROM {table}_packs WHERE channel = ?", channel):
        start = 0
        for place, size in enumerate(struct.unpack(f"<{pack['messages']}I", pack["sizes"])):
            end = start + size // 2
            held[pack[key] + place] = (BINARY if size % 2 else TEXT), pack["payload"][start:end]
            start = end
    return [held[number] for number in sorted(held)]


def _message(code: int, data: bytes) -> tuple[int, str]:
    payload = bytes(data)
    words = payload[:64].decode(errors="replace").split()
    number = int(words[1]) if len(words) > 1 and words[1].isdecimal() else 0
    kind = "t" if code == TEXT else "b"
    return number, kind + hashlib.sha256(payload).hexdigest()[:16]


if __name__ == "__main__":
    print(json.dumps(dump(Path(sys.argv[1])), indent=1))
