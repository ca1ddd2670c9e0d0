"""Both stores, empty."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from rondevud.store.base import Store
from rondevud.store.memory import MemoryStore, MemoryTables
from rondevud.store.sqlite import SqliteStore
from tests.unit.store.kit import SMALL


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
