"""How many messages a second the SQLite store takes: Put and Acknowledge of 64-byte messages, in batches.

Run: ``python tests/bench/store_rate.py [MESSAGES] [BATCH] [SIZE]``
"""

from __future__ import annotations

import asyncio
import resource
import sys
import tempfile
import time
from pathlib import Path

from rondevud.records import (
    Acknowledge,
    CreateChannel,
    Durability,
    OpenProducer,
    Put,
    Role,
    SaveSession,
    SessionRecord,
    Stamp,
)
from rondevud.store.sqlite import SqliteStore

NOW = Stamp("boot", 1.0, 1.0)


async def run(messages: int, batch: int, size: int) -> None:
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as directory:
        store = await SqliteStore.open(Path(directory) / "store.sqlite3")
        await store.execute(SaveSession(SessionRecord("conn", Role.SERVICE, "a/b", b"s" * 16, b"t" * 32)))
        channel = (await store.execute(CreateChannel("conn", "main", Durability.DISK, b"e" * 8))).id
        producer = (await store.execute(OpenProducer(channel, b"p", NOW))).id
        payloads = (b"x" * size,) * batch
        begun = time.perf_counter()
        for first in range(1, messages + 1, batch):
            put = Put(channel, payloads, NOW, producer=producer, first_seq=first)
            result = await store.execute(put)
            store.submit(Acknowledge(channel, result.next))
        await store.execute(Acknowledge(channel, result.next))
        seconds = time.perf_counter() - begun
        await store.close()
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{messages / seconds:,.0f} messages/s of {size} bytes in batches of {batch}; {rss} MiB")


if __name__ == "__main__":
    asyncio.run(run(*(int(word) for word in sys.argv[1:]), *(100_000, 500, 64)[len(sys.argv) - 1 :]))
