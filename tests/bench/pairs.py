"""Pairs of worker processes, driven through one run: raw ends, programs on daemons, programs on a broker."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.acceptance.processes import CONNECTION, Daemon, Process, Stage
from tests.bench.scene import ENVIRONMENT
from tests.bench.usage import cpu_seconds

PATIENCE = 120.0
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
max_queue_size = {messages}
max_queue_bytes = {bytes}
"""

WAITING = 5_000, 16 * 1024 * 1024
"""Messages and bytes that may wait in a daemon while as much as possible is sent: a program then waits for its turn."""

_numbers = itertools.count(1)
"""Of the pairs of this process: each has names of its own."""


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

    @property
    def bytes_per_second(self) -> float:
        return sum(stream["bytes_per_second"] for stream in self.streams)


@dataclass
class Run:
    """One run of a pair: a result for each direction, and the cores that watched processes took meanwhile."""

    results: list[Result]
    cores: dict[str, float] = field(default_factory=dict)

    @property
    def bytes_per_second(self) -> float:
        return sum(result.bytes_per_second for result in self.results)


class Worker:
    """A process that takes orders and answers line by line, see `tests.bench.talk`."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._seen: dict[str, int] = {}

    @classmethod
    async def start(cls, stage: Stage, module: str, job: dict[str, Any]) -> Worker:
        stage._programs += 1
        command = [sys.executable, "-m", f"tests.bench.{module}", json.dumps(job)]
        return cls(await stage.start(f"{module}-{stage._programs}", command, env=ENVIRONMENT))

    async def hear(self, word: str, within: float = PATIENCE) -> dict[str, Any]:
        """The next line that begins with that word. Raises `AssertionError` when it does not come."""
        self._seen[word] = self._seen.get(word, 0) + 1
        await self.process.until_count(word, self._seen[word], within)
        lines = [words for words in self.process.lines if words and words[0] == word]
        answer: dict[str, Any] = json.loads(" ".join(lines[self._seen[word] - 1][1:]))
        return answer

    def tell(self, **order: Any) -> None:
        self.process.type(json.dumps(order))

    async def stop(self) -> None:
        await self.process.kill()


async def run_pair(
    one: Worker,
    other: Worker,
    timing: Timing,
    *,
    both: bool = False,
    sizes: list[int] | None = None,
    watched: dict[str, int] | None = None,
) -> Run:
    """Have `one` send to `other`, with `both` also back. Everything sent must arrive.

    `sizes` turns counts of sends into the bytes that the other end waits for. `watched` are process ids by a name, beside
    the two workers, whose processor time within the measured window is looked at.
    """
    begin = time.monotonic() + LEAD
    window = {"begin": begin, "first": begin + timing.warm, "end": begin + timing.warm + timing.measured}
    one.tell(do="run", send=True, **window)
    other.tell(do="run", send=both, **window)
    pids = {"sender": one.process.pid, "receiver": other.process.pid, **(watched or {})}
    cores = await _cores_within(pids, LEAD + timing.warm, timing.measured)
    results = []
    patience = PATIENCE + timing.warm + timing.measured + 10
    for sender, receiver in ((one, other), (other, one))[: 2 if both else 1]:
        sent = await sender.hear("sent", patience)
        counts = sent["counts"]
        if sizes is not None:
            counts = [count * size for count, size in zip(counts, sizes, strict=True)]
        receiver.tell(do="arrived", counts=counts)
        results.append(Result((await receiver.hear("arrived", patience))["streams"], sent))
    return Run(results, cores)


async def _cores_within(pids: dict[str, int], delay: float, seconds: float) -> dict[str, float]:
    """The cores that each takes, of `seconds` from `delay` on; a process that ends meanwhile is left out."""
    await asyncio.sleep(delay)
    before, begun = {name: cpu_seconds(pid) for name, pid in pids.items()}, time.monotonic()
    await asyncio.sleep(seconds)
    passed = time.monotonic() - begun
    return {name: (cpu_seconds(pid) - before[name]) / passed for name, pid in pids.items()}


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
    """Two daemons of one engine and durability, linked; the stage has the signalling server."""

    def __init__(self, stage: Stage, engine: str, durability: str, limits: tuple[int, int] = WAITING) -> None:
        self.stage = stage
        self._settings = {"engine": engine, "durability": durability, "messages": limits[0], "bytes": limits[1]}
        self._name = f"{engine[0]}{durability[0]}{next(_numbers)}"
        self.service = (f"user-{self._name}", "com.example.bench@1.0.0")
        self._labels = 0

    @property
    def target(self) -> str:
        """How a configuration names the service."""
        return f'username = "{self.service[0]}"\nfqn = "{self.service[1]}"\n'

    def daemon(self, name: str, sections: str = "") -> Daemon:
        """One more daemon with these settings, not started."""
        text = CONFIG.format(url=self.stage.rendezvous.url, **self._settings)
        daemon = Daemon(self.stage, f"{name}{self._name}", text + sections)
        if self.stage._fresh:
            daemon.env |= ENVIRONMENT
        return daemon

    def declare(self, service: str = "polling_interval = 0.2\n") -> None:
        """Make both daemons without starting them; `service` is more of the service's configuration."""
        limits = "max_channels = 10000\nmax_connections = 10000\nmax_sessions = 10000\n"
        self.home = self.daemon("h", f"[[service]]\n{self.target}{limits}{service}")
        self.visitor = self.daemon("v", f'[[connection]]\nname = "{CONNECTION}"\n{self.target}')

    async def start(self) -> None:
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

    async def visiting(self, flows: list[Flow], *, receive: bool = False) -> Worker:
        """A program beside the daemon that made the connection, which sends and makes the labels."""
        return await self._worker(self.visitor, CONNECTION, flows, send=True, receive=receive)

    async def at_home(self, flows: list[Flow], *, send: bool = False) -> Worker:
        """A program beside the daemon that has the service, which receives."""
        return await self._worker(self.home, self.far, flows, send=send, receive=True)

    async def _worker(self, daemon: Daemon, target: str, flows: list[Flow], **ways: Any) -> Worker:
        job = {"socket": str(daemon.socket), "target": target, "streams": [asdict(each) for each in flows], **ways}
        return await Worker.start(self.stage, "app", job)

    async def programs(self, flows: list[Flow], *, both: bool = False) -> tuple[Worker, Worker]:
        """One on each side, attached."""
        one = await self.visiting(flows, receive=both)
        other = await self.at_home(flows, send=both)
        await one.hear("ready")
        await other.hear("ready")
        return one, other

    @property
    def pids(self) -> dict[str, int]:
        """Of the daemon that sends in one direction, and the other."""
        assert self.visitor.process is not None
        assert self.home.process is not None
        return {"sending daemon": self.visitor.process.pid, "receiving daemon": self.home.process.pid}
