"""What most of these tests begin with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.daemons import Pair, World, open_pair, open_world


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A signalling server, and the daemons that a test starts."""
    async with open_world(tmp_path) as world:
        yield world


@pytest.fixture
async def pair(world: World) -> Pair:
    """A service and a connection to it, on two daemons, with the channel "main"."""
    return await open_pair(world)
