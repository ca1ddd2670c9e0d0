"""`rondevuctl` as a process, and a daemon without links in the loop of the test."""

from __future__ import annotations

import asyncio
import sys
from typing import NamedTuple

import pytest

from rondevud.errors import RequestError
from rondevud.ipc.server import Server
from rondevud.keys import Keys
from rondevud.signalling.identity import Identities
from tests.unit.ipc.house import MemoryChannel, MemoryHouse, Stored


class Done(NamedTuple):
    code: int
    out: str
    err: str


class ToldChannel(MemoryChannel):
    """Tells the house of observers and of what was decided, too."""

    async def open_receiver(self, mode, listener, takeover):
        receiver = await super().open_receiver(mode, listener, takeover)
        self.house.changed.set()
        return receiver

    async def open_producer(self, name, listener, takeover):
        producer = await super().open_producer(name, listener, takeover)
        decide = producer.decide

        def tell():
            decide()
            self.house.changed.set()

        producer.decide = tell
        return producer


class CtlHouse(MemoryHouse):
    published = True

    def services_of(self, username):
        return [name for name in self.disk.services if name.startswith(f"{username}/")]

    async def expose(self, *args):
        answer = await super().expose(*args)
        return answer if self.published else answer | {"service_id": None, "uuid": None, "expires_at": None}

    def get(self, connection_id, label):
        key = (connection_id, label)
        if key not in self.channels_by_key:
            stored = self.disk.channels.setdefault(key, Stored())
            self.channels_by_key[key] = ToldChannel(self, connection_id, label, stored)
        return self.channels_by_key[key]

    async def reload(self):
        return {"added": ["alice/a.b@1.0.0"], "changed": [], "removed": [], "restart_needed": ["daemon.socket"]}

    async def wait(self, target, what, timeout):
        try:
            return await super().wait(target, what, timeout)
        except TimeoutError:
            raise RequestError("timeout", f"{target} is not {what} yet") from None


async def start(path, *args, **streams):
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "rondevud.ctl.main",
        *(["--socket", str(path)] if path else []),
        *args,
        stdin=streams.get("stdin", asyncio.subprocess.PIPE),
        stdout=streams.get("stdout", asyncio.subprocess.PIPE),
        stderr=asyncio.subprocess.PIPE,
        env=streams.get("env"),
    )


async def run(path, *args, stdin=b"", env=None):
    process = await start(path, *args, env=env)
    out, err = await process.communicate(stdin)
    return Done(process.returncode, out.decode(), err.decode())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "rondevud.sock"


@pytest.fixture
async def house(tmp_path):
    house = CtlHouse()
    house.keys = Keys(Identities(tmp_path / "keys"), house.services_of)
    house.add_connection("conn-a", "alice-chat")
    return house


@pytest.fixture
async def server(house, path):
    server = Server(house, path=path)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
def ctl(server, path):
    """Run a command to its end."""

    async def ctl(*args, stdin=b""):
        return await run(path, *args, stdin=stdin)

    return ctl


@pytest.fixture
async def begin(server, path):
    """Start a command; what still runs at the end is killed."""
    processes = []

    async def begin(*args, **streams):
        process = await start(path, *args, **streams)
        processes.append(process)
        return process

    yield begin
    for process in processes:
        if process.returncode is None:
            process.kill()
        await process.communicate()
