"""A process that stores messages is killed at any moment: what it had confirmed is there, once and in order."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from pathlib import Path

import pytest

from rondevud.records import LoadSessions, OpenProducer, OutMessage, ReadOut, Stamp
from rondevud.store.sqlite import SqliteStore

KILLS = 10

WRITER = """
import asyncio, sys
from pathlib import Path
from rondevud.records import *
from rondevud.store.sqlite import SqliteStore

NOW = Stamp("boot", 1.0, 1.0)

async def main():
    store = await SqliteStore.open(Path(sys.argv[1]))
    sessions = await store.execute(LoadSessions())
    if sessions.channels:
        channel = sessions.channels[0].id
    else:
        await store.execute(SaveSession(SessionRecord("conn", Role.SERVICE, "a/b", b"s" * 16, b"t" * 32)))
        channel = (await store.execute(CreateChannel("conn", "main", Durability.DISK, b"e" * 8))).id
    producer = await store.execute(OpenProducer(channel, b"app", NOW))
    number = producer.last_seq
    room = asyncio.Semaphore(200)

    def done(first, last, result):
        room.release()
        print(first, last, result.first, flush=True)

    while True:
        await room.acquire()
        first, number = number + 1, number + 1 + number % 7
        payloads = tuple(f"message {n}" for n in range(first, number + 1))
        put = Put(channel, payloads, NOW, producer=producer.id, first_seq=first)
        store.submit(put, lambda result, first=first, last=number: done(first, last, result))
        if number % 50 == 0:
            await asyncio.sleep(0)

asyncio.run(main())
"""


async def confirm_and_kill(path: Path, confirmations: int) -> dict[int, int]:
    """Run the writer until it has printed so many confirmations; answers each confirmed number with its place."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WRITER, str(path), stdout=asyncio.subprocess.PIPE
    )
    places: dict[int, int] = {}

    def note(line: bytes) -> None:
        if line.endswith(b"\n"):
            first, last, place = (int(word) for word in line.split())
            places.update((number, place + number - first) for number in range(first, last + 1))

    try:
        for _ in range(confirmations):
            note(await process.stdout.readline())
    finally:
        process.send_signal(signal.SIGKILL)
    async for line in process.stdout:
        note(line)
    await process.wait()
    return places


async def stored(path: Path) -> tuple[dict[int, str], int]:
    """Messages by their place, and the last number of the producer."""
    store = await SqliteStore.open(path)
    try:
        channel = (await store.execute(LoadSessions())).channels[0]
        found: dict[int, str] = {}
        number, end = 0, False
        while not end:
            page = await store.execute(ReadOut(channel.id, number))
            assert page.damaged == []
            assert all(isinstance(item, OutMessage) for item in page.items)
            found.update(page.items)
            number, end = page.next, page.end
        assert len(found) == channel.out_count
        last_seq = (await store.execute(OpenProducer(channel.id, b"app", Stamp("boot", 1.0, 1.0)))).last_seq
    finally:
        await store.close()
    return found, last_seq


@pytest.mark.acceptance
@pytest.mark.timeout(120)
async def test_everything_confirmed_before_a_kill_is_there(tmp_path):
    path = tmp_path / "store.sqlite3"
    confirmed: dict[int, int] = {}
    for kill in range(KILLS):
        confirmed |= await confirm_and_kill(path, 5 + 37 * kill + time.monotonic_ns() % 23)
        found, last_seq = await stored(path)
        assert {number: found.get(place) for number, place in confirmed.items()} == {
            number: f"message {number}" for number in confirmed
        }
        assert list(found.values()) == [f"message {number}" for number in range(1, last_seq + 1)]
