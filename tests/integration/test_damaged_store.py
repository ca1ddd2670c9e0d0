"""Messages are damaged in the store of a daemon: it skips them with `damaged` and goes on, and both sides are told."""

from __future__ import annotations

import asyncio
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from rondevud.statedir import DATABASE
from tests.integration.daemons import PATIENCE, open_pair, open_world

pytestmark = [pytest.mark.webrtc, pytest.mark.once, pytest.mark.timeout(120)]

COUNT = 60
"""Messages each way on each label."""

LABELS = ("main", "more")
HIT = 12
"""Messages that are damaged in one store."""


def text(way: str, label: str, number: int) -> str:
    return f"{way} {label} {number:04} " + "x" * (number * 37 % 900)


async def send_all(channel: Any, way: str) -> None:
    await asyncio.gather(*(channel.send(text(way, channel.label, number)) for number in range(COUNT)))


@pytest.fixture
async def full(tmp_path) -> Path:
    """State directories of two daemons, stopped; both queues of the connecting one are full."""
    (tmp_path / "made").mkdir()
    async with open_world(tmp_path / "made") as world:
        pair = await open_pair(world)
        more = await pair.connection.create_channel("more")
        await more.send("here I am")
        far_more = await pair.next_offered()
        async with asyncio.timeout(PATIENCE):
            await (await anext(far_more)).ack()
        target = (await pair.ids())[1]
        await pair.visitor.close()
        await pair.leave()
        for label in LABELS:
            channel = await pair.program.attach(target, label, mode="send")
            await send_all(channel, "back")
            await channel.flush()
        await pair.home.stop()
        visitor = await pair.away.client()
        for label in LABELS:
            await send_all(await visitor.attach("chat", label, mode="send"), "there")
        await pair.away.stop()
    return tmp_path / "made" / "daemons"


def damage(database: Path, drawn: random.Random) -> set[str]:
    """Flip one bit in each of some messages; answers the heads of those that were hit."""
    content = bytearray(database.read_bytes())
    hit: set[str] = set()
    while len(hit) < HIT:
        way, label, number = drawn.choice(("there", "back")), drawn.choice(LABELS), drawn.randrange(COUNT)
        head = text(way, label, number)[:16]
        place = content.rfind(head.encode())  # the youngest copy of the page, if there are several
        if head in hit or place < 0:
            continue
        content[place + drawn.randrange(len(head))] ^= 1 << drawn.randrange(8)
        hit.add(head.strip())
    database.write_bytes(content)
    return hit


async def take(program: Any, target: str, label: str, count: int) -> tuple[list[str], int]:
    """So many messages or gaps: texts in order, and how many messages the gaps say they were."""
    channel = await program.attach(target, label)
    gaps: list[int] = []
    texts: list[str] = []
    moved = asyncio.Event()

    def gap(data: dict[str, Any]) -> None:
        assert data["reason"] == "damaged"
        gaps.append(data["count"])
        moved.set()

    channel.on("gap", gap)

    async def read() -> None:
        async for message in channel:
            texts.append(message.data)
            moved.set()

    reading = asyncio.create_task(read())
    try:
        async with asyncio.timeout(PATIENCE):
            while len(texts) + sum(gaps) < count:
                await moved.wait()
                moved.clear()
    finally:
        reading.cancel()
    return texts, sum(gaps)


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(2, 22))])
async def test_damaged_messages_are_skipped_and_told_and_all_others_arrive(full, tmp_path, seed):
    (tmp_path / "again").mkdir()
    async with open_world(tmp_path / "again", expected="rondevud.store") as world:
        shutil.copytree(full, tmp_path / "again" / "daemons", ignore=shutil.ignore_patterns("*.sock"))
        hit = damage(tmp_path / "again" / "daemons" / "away" / DATABASE, random.Random(seed))
        home, away = await world.daemon("home"), await world.daemon("away")
        visitor, program = await away.client(), await home.client()
        async with asyncio.timeout(PATIENCE):
            await visitor.wait("chat", "connected")
            await visitor.wait("chat", "drained")
        (row,) = await program.connections()
        for label in LABELS:
            for way, reader, target in (("back", visitor, "chat"), ("there", program, row["connection_id"])):
                texts, lost = await take(reader, target, label, COUNT)
                whole = [text(way, label, number) for number in range(COUNT)]
                assert texts == [body for body in whole if body[:16].strip() not in hit]
                assert lost == COUNT - len(texts)
        # And new ones go as if nothing had been.
        channel = await visitor.attach("chat", "main", mode="send")
        await channel.send("afterwards")
        async with asyncio.timeout(PATIENCE):
            await channel.flush()
