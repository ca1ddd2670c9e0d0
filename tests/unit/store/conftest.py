"""Both stores, and small pieces to fill them with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from rondevud.records import (
    CreateChannel,
    Durability,
    Role,
    SaveSession,
    SessionRecord,
    Stamp,
)
from rondevud.store.base import Limits, Store
from rondevud.store.memory import MemoryStore, MemoryTables
from rondevud.store.sqlite import SqliteStore

EPOCH, PEER = b"epoch-me", b"epoch-pe"
NOW = Stamp("boot-1", 100.0, 1_000_000.0)
SMALL = Limits(slice_rows=4, page_messages=5, page_bytes=100)


def later(seconds: float, stamp: Stamp = NOW) -> Stamp:
    return Stamp(stamp.boot, stamp.boottime + seconds, stamp.wall + seconds)


def session(connection_id: str = "conn-1", **fields) -> SessionRecord:
    return SessionRecord(connection_id, Role.SERVICE, "alice/chat@1", b"s" * 16, b"t" * 32, **fields)


async def make_channel(store: Store, label: str = "main", connection_id: str = "conn-1") -> int:
    await store.execute(SaveSession(session(connection_id)))
    record = await store.execute(CreateChannel(connection_id, label, Durability.DISK, EPOCH))
    return record.id


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "store.sqlite3"


@pytest.fixture(params=["memory", "sqlite"])
async def store(request, path) -> AsyncIterator[Store]:
    if request.param == "memory":
        made: Store = MemoryStore(asyncio.get_running_loop(), MemoryTables(limits=SMALL))
    else:
        path.parent.mkdir()
        made = await SqliteStore.open(path, limits=SMALL)
    yield made
    await made.close()
