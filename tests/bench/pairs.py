"""Pairs of worker processes, driven through one run: raw ends, programs on daemons, programs on a broker."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rondevu_client import Daemon as Client
from tests.acceptance.processes import CONNECTION, Daemon, Process, Stage

PATIENCE = 300.0
LEAD = 0.2
"""Seconds until everybody begins."""

CONFIG = """
[signalling]
url = "{url}"
[transport]
engine = "{engine}"
[queue]
durability = "{durability}"
overflow = "block"
max_queue_size = {size}
max_queue_bytes = {bytes}
"""

WAITING = 5_000, 16 * 1024 * 1024
"""Messages and bytes that may wait in a daemon while as much as possible is sent: a program then waits for its turn."""


@dataclass(frozen=True)
class Timing:
    """Seconds."""

    warm: float
    measured: float


@dataclass(frozen=True)
class Flow:
    """What one worker does on one label or data channel; `size` in bytes, `interval` in seconds, 0 for all it can."""

    label: str
    size: int
    interval: float = 0.0


@dataclass
class Result:
    """What arrived of one direction, for each flow, and what the sender saw."""

    streams: list[dict[str, Any]]
    sender: dict[str, Any]


class Worker:
    def __init__(self, process: Process) -> None:
        self.process = process
        self._seen: dict[str, int] = {}

    @classmethod
    async def start(cls, stage: Stage, module: str, job: dict[str, Any]) -> Worker:
        stage._programs += 1
        command = [sys.executable, "-m", f"tests.bench.{module}", json.dumps(job)]
        return cls(await stage.start(f"{module}-{stage._programs}", command))

    async def hear(self, word: str, within: float = PATIENCE) -> dict[str, Any]:
        """The next line that begins with that word."""
        self._seen[word] = self._seen.get(word, 0) + 1
        await self.process.until_count(word, self._seen[word], within)
        lines = [words for words in self.process.lines if words[0] == word]
        answer: dict[str, Any] = json.loads(" ".join(lines[self._seen[word] - 1][1:]))
        return answer

    def tell(self, **order: Any) -> None:
        self.process.type(json.dumps(order))

    async def stop(self) -> None:
        await self.process.kill()


async def run_pair(
    one: Worker, other: Worker, timing: Timing, *, both: bool, sizes: list[int] | None = None
) -> list[Result]:
    """Have `one` send to `other`, with `both` also back. Everything sent must arrive.

    `sizes` turns counts of sends into the bytes that the other end waits for.
    """
    begin = time.monotonic() + LEAD
    window = {"begin": begin, "first": begin + timing.warm, "end": begin + timing.warm + timing.measured}
    one.tell(do="run", send=True, **window)
    other.tell(do="run", send=both, **window)
    results = []
    for sender, receiver in ((one, other), (other, one))[: 2 if both else 1]:
        sent = await sender.hear("sent")
        counts = sent["counts"]
        if sizes is not None:
            counts = [count * size for count, size in zip(counts, sizes, strict=True)]
        receiver.tell(do="arrived", counts=counts)
        results.append(Result((await receiver.hear("arrived"))["streams"], sent))
    return results


async def raw_pair(stage: Stage, engine: str, flows: list[Flow]) -> tuple[Worker, Worker]:
    """Two processes with the engine and nothing else, connected."""
    streams = [{"unit": each.size, "interval": each.interval} for each in flows]
    one, other = [
        await Worker.start(stage, "raw", {"engine": engine, "offers": offers, "streams": streams})
        for offers in (True, False)
    ]
    other.tell(sdp=(await one.hear("offer"))["sdp"])
    one.tell(sdp=(await other.hear("answer"))["sdp"])
    await one.hear("ready")
    await other.hear("ready")
    return one, other


class Daemons:
    """A signalling server and two daemons of one engine and durability, linked."""

    def __init__(self, stage: Stage, engine: str, durability: str, limits: tuple[int, int] = WAITING) -> None:
        self.stage = stage
        self._settings = {"engine": engine, "durability": durability, "size": limits[0], "bytes": limits[1]}
        self._name = f"{engine[0]}{durability[0]}{limits[0] % 997}"
        self.service = (f"user-{self._name}", "com.example.bench@1.0.0")
        """A name of its own: several pairs share a signalling server."""
        self._labels = 0

    def declare(self, service: str = "", connection: str = "") -> None:
        """Make both daemons without starting them; more of their configuration can be given."""
        username, fqn = self.service
        text = CONFIG.format(url=self.stage.rendezvous.url, **self._settings)
        target = f'username = "{username}"\nfqn = "{fqn}"\n'
        self.home = Daemon(
            self.stage, f"h{self._name}", f"{text}[[service]]\n{target}polling_interval = 0.2\n{service}"
        )
        self.visitor = Daemon(
            self.stage, f"v{self._name}", f'{text}[[connection]]\nname = "{CONNECTION}"\n{target}{connection}'
        )

    async def start(self) -> None:
        if self.stage.rendezvous.process is None:
            await self.stage.rendezvous.start()
        self.declare()
        await self.home.start()
        await self.visitor.start()
        await self.linked()

    async def linked(self) -> None:
        async with self.visitor.client() as client:
            await client.wait(CONNECTION, "connected", PATIENCE)
        self.far = await self.home.connection_id()

    async def stop(self) -> None:
        for daemon in (self.visitor, self.home):
            await daemon.stop()

    def new_labels(self, count: int) -> list[str]:
        self._labels += count
        return [f"label{self._labels - number}" for number in range(count)]

    async def visiting(self, flows: list[Flow], *, send: bool = True, receive: bool = False) -> Worker:
        """A program beside the daemon that made the connection."""
        return await self._worker(self.visitor, CONNECTION, flows, send=send, receive=receive)

    async def at_home(self, flows: list[Flow], *, send: bool = False, receive: bool = True) -> Worker:
        """A program beside the daemon that has the service."""
        return await self._worker(self.home, self.far, flows, send=send, receive=receive)

    async def _worker(self, daemon: Daemon, target: str, flows: list[Flow], **ways: bool) -> Worker:
        making = daemon is self.visitor
        job = {"socket": str(daemon.socket), "target": target, "streams": [asdict(each) for each in flows], **ways}
        return await Worker.start(self.stage, "app", {**job, "options": {} if making else None})

    async def programs(self, flows: list[Flow], *, both: bool = False) -> tuple[Worker, Worker]:
        """One on each side, attached."""
        one = await self.visiting(flows, receive=both)
        other = await self.at_home(flows, send=both)
        await one.hear("ready")
        await other.hear("ready")
        return one, other

    @property
    def pids(self) -> tuple[int, int]:
        """Of the daemon that sends in one direction, and the other."""
        assert self.visitor.process is not None
        assert self.home.process is not None
        return self.visitor.process.pid, self.home.process.pid


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_kib(pid: int) -> int:
    """Resident memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise RuntimeError(f"process {pid} has no memory")


async def cpu_within(pids: tuple[int, ...], delay: float, seconds: float) -> list[float]:
    """The share of a core that each takes, of `seconds` from `delay` on."""
    await asyncio.sleep(delay)
    before, begun = [cpu_seconds(pid) for pid in pids], time.monotonic()
    await asyncio.sleep(seconds)
    passed = time.monotonic() - begun
    return [(cpu_seconds(pid) - used) / passed for pid, used in zip(pids, before, strict=True)]


async def settled(client: Client, count: int) -> None:
    """Wait until so many connections are connected."""
    async with asyncio.timeout(PATIENCE + count):
        while sum(row["state"] == "connected" for row in await client.connections()) < count:
            await asyncio.sleep(0.2)
