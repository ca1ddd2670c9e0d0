from __future__ import annotations

import pytest

from rondevud.ipc.server import Server
from tests.unit.ipc.house import MemoryHouse
from tests.unit.ipc.raw import raw_client


@pytest.fixture
def path(tmp_path):
    return tmp_path / "rondevud.sock"


@pytest.fixture
async def house():
    house = MemoryHouse()
    house.add_connection("conn-a", "alice-chat")
    return house


@pytest.fixture
async def server(house, path):
    server = Server(house, path=path)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def client(server, path):
    async with raw_client(path) as client:
        yield client
