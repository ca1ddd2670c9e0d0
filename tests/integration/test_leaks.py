"""Connections come and go, and leave nothing behind: no descriptor, no thread, no task, no memory."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import re
import threading
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.integration.daemons import FQN, PATIENCE, SCALE, SERVICE, open_world, take

POOL_SIZE = 2
MEMORY = 10 * 1024 * 1024
"""Bytes of Pss that two daemons and their programs may have grown by, after their warm-up."""


class Footprint(NamedTuple):
    """What this process holds."""

    descriptors: Counter[str]
    """By what they are: sockets, pipes, files by their path."""
    threads: int
    tasks: Counter[str]
    """By name without its numbers."""

    @classmethod
    def take(cls) -> Footprint:
        names = []
        for entry in Path("/proc/self/fd").iterdir():
            try:
                names.append(re.sub(r"\d+", "N", str(entry.readlink())))
            except FileNotFoundError:  # the descriptor of this listing
                continue
        tasks = [re.sub(r"(conn-)?[0-9a-f]*\d[0-9a-f]*", "N", task.get_name()) for task in asyncio.all_tasks()]
        return cls(Counter(names), threading.active_count(), Counter(tasks))

    def within(self, other: Footprint) -> bool:
        """Whether this holds nothing more than the other: idle HTTP connections come and go."""
        return self.descriptors <= other.descriptors and self.threads <= other.threads and self.tasks <= other.tasks


def pss() -> int:
    """Bytes of this process's own memory in use (Pss_Anon).

    Pages of files are left out: this process's part of them changes as others that share them come and go. What was freed
    is given back first: the C library keeps some of it, here and there, for what comes next.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    (line,) = re.findall(r"^Pss_Anon: +(\d+) kB$", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)
    return int(line) * 1024


async def echo(channel: Any, _connection_id: str) -> None:
    async for message in channel:
        await channel.send(message.data)


class Visitors:
    """Connections, one after another, from one daemon to a service of another."""

    def __init__(self, home: Any, away: Any) -> None:
        self._home = home
        self._away = away
        self._number = 0

    async def start(self) -> None:
        self._program, self._visitor = await self._home.client(), await self._away.client()
        await self._program.expose_service("alice", FQN, handler=echo, pool_size=POOL_SIZE, **SERVICE)

    async def come_and_go(self, times: int) -> None:
        for _ in range(times):
            self._number += 1
            connection = await self._visitor.connect("alice", FQN, name=f"visit-{self._number}")
            channel = await connection.create_channel("main")
            await channel.send("hello")
            await take(channel, 1)
            await connection.close()

    async def settle(self, wanted: Footprint | None = None) -> Footprint:
        """Wait until everybody has left and the pool is full, and, if one is given, for that footprint."""
        async with asyncio.timeout(PATIENCE):
            while await self._left() or (wanted is not None and not Footprint.take().within(wanted)):
                pass
        return Footprint.take()

    async def _left(self) -> bool:
        """Whether something is still on its way out; looking is what lets the daemons go on."""
        (service,) = await self._program.services()
        connections = [*await self._program.connections(), *await self._visitor.connections()]
        held = len(self._home.house._engine._connections) + len(self._away.house._engine._connections)
        return bool(connections) or service["offers"] != POOL_SIZE or held != POOL_SIZE


@pytest.mark.webrtc
@pytest.mark.parametrize(
    ("before", "cycles"),
    [
        pytest.param(5, 20, marks=pytest.mark.timeout(120 * SCALE)),
        pytest.param(100, 500, marks=[pytest.mark.soak, pytest.mark.timeout(1_800 * SCALE)]),
    ],
)
async def test_connections_that_come_and_go_leave_nothing_behind(tmp_path: Path, before: int, cycles: int) -> None:
    async with open_world(tmp_path) as world:
        visitors = Visitors(await world.daemon("home"), await world.daemon("away"))
        await visitors.start()
        await visitors.come_and_go(before)
        footprint, memory = await visitors.settle(), pss()
        await visitors.come_and_go(cycles)
        try:
            await visitors.settle(footprint)
        except TimeoutError:
            now = Footprint.take()
            print(
                "NEW",
                now.descriptors - footprint.descriptors,
                footprint.descriptors - now.descriptors,
                now.tasks - footprint.tasks,
                footprint.tasks - now.tasks,
            )
            raise
        grown = pss() - memory
        print(f"{cycles} cycles: {grown / 1024:+.0f} KiB of Pss")
        assert grown < MEMORY
