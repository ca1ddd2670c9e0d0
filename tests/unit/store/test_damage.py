"""Flipped bits anywhere in the file, and a repair: every queue answers, and what is lost is told."""

from __future__ import annotations

import contextlib
import logging
import os
import random

import pytest

from rondevud.records import (
    Acknowledge,
    InMessage,
    LoadSessions,
    OpenProducer,
    OutMessage,
    Put,
    ReadIn,
    ReadOut,
    Reason,
    Receive,
    TrimIn,
)
from rondevud.store.database import check_integrity, connect
from rondevud.store.examination import KINDS, Examination
from rondevud.store.repair import repair
from rondevud.store.sqlite import SqliteStore
from tests.unit.store.kit import NOW, PEER, make_channel, receive_singly

FLIPS = int(os.environ.get("RONDEVUD_STORE_FLIPS", "120"))
"""How many files with one flipped bit are tried; a long run asks for more."""

COUNT = 60


def text(number: int) -> str:
    return f"message {number} " + "x" * (number % 50 * 3)


@pytest.fixture
async def intact(tmp_path):
    path = tmp_path / "intact.sqlite3"
    store = await SqliteStore.open(path)
    payloads = tuple(text(number) for number in range(1, COUNT + 1))
    items = tuple(OutMessage(number, payload) for number, payload in enumerate(payloads, 1))
    for connection_id, max_age in (("conn-1", None), ("conn-2", 1e6)):
        channel = await make_channel(store, connection_id=connection_id)
        producer = (await store.execute(OpenProducer(channel, b"app", NOW))).id
        await store.execute(Put(channel, payloads, NOW, producer=producer, first_seq=1, max_age=max_age))
        await store.execute(Receive(channel, b"", 0, PEER, COUNT + 1, items, NOW))
    await store.close()
    return path.read_bytes()


async def check_outbox(store, channel: int) -> int:
    """How many of its messages are told to be damaged."""
    told: list[int] = []
    lost = 0
    number, end = 0, False
    while not end:
        page = await store.execute(ReadOut(channel, number))
        for item in page.items:
            if isinstance(item, OutMessage):
                assert item.payload == text(item.seq)
                told.append(item.seq)
            else:
                assert item.reason is Reason.DAMAGED
                told.extend(range(item.first, item.next))
                lost += item.next - item.first
        assert page.end or page.next > number
        number, end = page.next, page.end
    assert told == list(range(1, COUNT + 1))
    await store.execute(Acknowledge(channel, number))
    return lost


async def check_inbox(store, channel: int) -> int:
    """How many of its messages are told to be damaged."""
    rows: list[int] = []
    row = lost = 0
    while items := (await store.execute(ReadIn(channel, row))).items:
        for item in items:
            if isinstance(item, InMessage):
                assert item.payload == text(item.row)
            else:
                assert item.removal.reason is Reason.DAMAGED
                lost += 1
            rows.append(item.row)
        row = items[-1].row + 1
    assert rows == list(range(1, COUNT + 1))
    return lost


def flipped(intact, directory):
    """Files with one flipped bit each."""
    drawn = random.Random(20240229)
    for number in range(FLIPS):
        content = bytearray(intact)
        content[drawn.randrange(len(content))] ^= 1 << drawn.randrange(8)
        path = directory / f"{number}.sqlite3"
        path.write_bytes(content)
        yield path


def find_harm(path) -> list:
    """What the doctor finds, but for what is harmless."""
    with contextlib.closing(connect(path)) as connection:
        found = check_integrity(connection)
        examination = Examination()
        while (findings := examination.next_slice(connection)) is not None:
            found += [finding for finding in findings if not KINDS[finding.kind].harmless]
    return found


@pytest.mark.timeout(600)
async def test_after_a_repair_every_queue_answers_and_at_most_one_table_has_lost_anything(intact, tmp_path, caplog):
    caplog.set_level(logging.CRITICAL)
    kept = 0
    for path in flipped(intact, tmp_path):
        done: list[str] = []
        repair(path, done.append)
        assert find_harm(path) == []
        store = await SqliteStore.open(path)
        try:
            loaded = await store.execute(LoadSessions())
            assert (store.moved_aside, loaded.damaged) == (None, [])
            lost = {"outbox": 0, "inbox": 0}
            for channel in loaded.channels:
                lost["outbox"] += await check_outbox(store, channel.id)
                lost["inbox"] += await check_inbox(store, channel.id)
            assert min(lost.values()) == 0
            assert max(lost.values()) == 0 or done
            kept += 2 * COUNT * len(loaded.channels) - sum(lost.values())
        finally:
            await store.close()
    assert kept > 0.9 * 4 * COUNT * FLIPS


async def test_a_row_whose_number_is_none_any_more_does_not_keep_others_from_being_trimmed(tmp_path):
    path = tmp_path / "store.sqlite3"
    store = await SqliteStore.open(path)
    channel = await make_channel(store)
    await receive_singly(store, channel, *(OutMessage(number, text(number)) for number in range(1, 5)))
    await store.close()
    with contextlib.closing(connect(path)) as connection:
        connection.execute("UPDATE inbox SET row = x'02' WHERE row = 2")
    store = await SqliteStore.open(path)
    trimmed = await store.execute(TrimIn(channel, 1, None))
    assert (trimmed.next, trimmed.more) == (5, False)
    await store.close()
