"""Two daemons with a relay between them, and what they themselves say of it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, NamedTuple

from tests.acceptance.processes import CONNECTION, PATIENCE, Daemon, Stage
from tests.engines import TRANSPORT
from tests.faults.relay import Relay, SignallingProxy

FQN = "com.example.test@1.0.0"

CONFIG = (
    TRANSPORT
    + """
[daemon]
log_level = "info"
[signalling]
url = "{url}"
[queue]
inbox_size = 1_000_000
"""
)
"""Heartbeat, polling and everything that has to do with time are the defaults: they are what is judged."""

HEARD = 2.0
"""Seconds of silence up to which a peer is heard."""

LOOK = 0.05
"""Seconds between two looks at a daemon."""

_LINE = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) \w+ +\S+: (.*)$", re.MULTILINE)


class Line(NamedTuple):
    """Of a daemon's log."""

    at: float
    """Seconds since 1970."""
    text: str


def read_lines(daemon: Daemon, pattern: str, since: float = 0.0) -> list[Line]:
    """What the present process of a daemon has logged since then."""
    assert daemon.process is not None
    lines = [
        Line(datetime.fromisoformat(at.replace(",", ".")).timestamp(), text)
        for at, text in _LINE.findall(daemon.process.log.read_text(errors="replace"))
    ]
    return [line for line in lines if line.at >= since and re.search(pattern, line.text)]


async def until_line(daemon: Daemon, pattern: str, since: float, within: float = PATIENCE) -> Line:
    """The first such line since then."""
    try:
        async with asyncio.timeout(within):
            while not (found := read_lines(daemon, pattern, since)):
                await asyncio.sleep(LOOK)
    except TimeoutError:
        raise AssertionError(f"{daemon.name} does not log {pattern!r} within {within:.0f} s") from None
    return found[0]


def declare(stage: Stage, url: str, name: str = "") -> tuple[Daemon, Daemon]:
    """A daemon with a service and one with a connection to it, not started yet."""
    target = f'username = "alice{name}"\nfqn = "{FQN}"\n'
    config = CONFIG.format(url=url)
    service = f"{config}[[service]]\n{target}"
    connection = f'{config}[[connection]]\nname = "{CONNECTION}"\n{target}channels = ["main"]\n'
    return Daemon(stage, f"alice{name}", service), Daemon(stage, f"bob{name}", connection)


class Pair:
    """A service and a connection to it; all that passes between the two goes through `relay`."""

    def __init__(self, service: Daemon, connection: Daemon, relay: Relay) -> None:
        self.service = service
        self.connection = connection
        self.relay = relay

    async def start(self) -> None:
        """Both daemons, and wait for the link."""
        await asyncio.gather(self.service.start(), self.connection.start())
        async with self.connection.client() as client:
            await client.wait(CONNECTION, "connected", PATIENCE)
        await self.settled()

    async def row(self, daemon: Daemon) -> dict[str, Any]:
        """How that daemon sees the connection."""
        async with daemon.client() as client:
            (row,) = await client.connections()
        return row

    async def settled(self) -> None:
        """Wait until both sides are connected and hear each other."""
        async with asyncio.timeout(PATIENCE):
            while not all([await self._is_settled(daemon) for daemon in (self.service, self.connection)]):
                await asyncio.sleep(LOOK)

    async def _is_settled(self, daemon: Daemon) -> bool:
        row = await self.row(daemon)
        if row["state"] != "connected" or row["suspect"]:
            return False
        async with daemon.client() as client:
            link = (await client.why(row["connection_id"]))["link"]
        return link is not None and link["silence"] is not None and link["silence"] < HEARD


@contextlib.asynccontextmanager
async def open_pair(stage: Stage, name: str = "", seed: object = 0) -> AsyncIterator[Pair]:
    """A pair whose daemons are not started yet; the signalling server of the stage must run."""
    relay = Relay(f"{seed} {name}")
    try:
        async with SignallingProxy(relay, lambda: stage.rendezvous.url) as proxy:
            yield Pair(*declare(stage, proxy.url, name), relay)
    finally:
        relay.close()


class Lag:
    """How late this process, relay included, gets its turn: what a loaded machine adds to every time that is measured."""

    def __init__(self) -> None:
        self._late: list[tuple[float, float]] = []
        """When a turn came, in seconds since 1970, and by how much it was late."""

    @classmethod
    @contextlib.asynccontextmanager
    async def measured(cls) -> AsyncIterator[Lag]:
        lag = cls()
        task = asyncio.create_task(lag._measure(), name="measure the lag")
        try:
            yield lag
        finally:
            task.cancel()
            await asyncio.wait({task})

    def since(self, moment: float) -> float:
        """The longest since then, in seconds."""
        return max((late for at, late in self._late if at >= moment), default=0.0)

    async def _measure(self) -> None:
        while True:
            due = time.time() + LOOK
            await asyncio.sleep(LOOK)
            now = time.time()
            self._late.append((now, max(0.0, now - due)))
