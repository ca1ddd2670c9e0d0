"""What a worker process and the benchmark say to each other: lines of one word and one JSON value without spaces."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any


def say(word: str, **fields: Any) -> None:
    """Print a line for the benchmark."""
    sys.stdout.write(f"{word} {json.dumps(fields, separators=(',', ':'))}\n")
    sys.stdout.flush()


@contextlib.asynccontextmanager
async def at_most(seconds: float, what: Callable[[], str]) -> AsyncIterator[None]:
    """Raises `TimeoutError` that says `what` was waited for."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise TimeoutError(f"not in {seconds:.0f} s: {what()}") from None


class Orders:
    """What the benchmark wants, line by line."""

    def __init__(self) -> None:
        self._reader = asyncio.StreamReader(limit=1 << 20)

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(self._reader), sys.stdin)

    async def take(self) -> dict[str, Any]:
        """The next one. Raises `SystemExit` when the benchmark is gone."""
        line = await self._reader.readline()
        if not line:
            raise SystemExit(1)
        order: dict[str, Any] = json.loads(line)
        return order


@dataclass
class Window:
    """When to send, and what of it is measured; in seconds of the machine's monotonic clock, which all processes share."""

    begin: float
    first: float
    """What comes before is warming up."""
    end: float

    @classmethod
    def of(cls, order: dict[str, Any]) -> Window:
        return cls(order["begin"], order["first"], order["end"])

    async def until_begin(self) -> None:
        await asyncio.sleep(max(0.0, self.begin - time.monotonic()))


class Arrivals:
    """What came on one stream: how much of it within the window, and when; delays where the messages carry their time."""

    def __init__(self) -> None:
        self.window = Window(0.0, 0.0, 0.0)
        self.total = 0
        """Bytes, whenever they came."""
        self.messages = 0
        self.counted = 0
        """Bytes within the window, behind the first arrival in it."""
        self.begun = 0.0
        """When the very first message came."""
        self.ended = 0.0
        """When the last one came, whenever that was."""
        self.first = 0.0
        self.last = 0.0
        self.delays: list[float] = []

    def note(self, size: int) -> None:
        now = time.monotonic()
        if not self.messages:
            self.begun = now
        self.ended = now
        self.total += size
        self.messages += 1
        if self.window.first <= now < self.window.end:
            if self.first:
                self.counted += size
            else:
                self.first = now
            self.last = now

    def note_delay(self, sent_at: float) -> None:
        """Of a message that was sent at that time of the monotonic clock."""
        now = time.monotonic()
        if self.window.first <= now < self.window.end:
            self.delays.append(now - sent_at)

    def result(self) -> dict[str, Any]:
        return {
            "bytes_per_second": self._rate(),
            "total": self.total,
            "messages": self.messages,
            "ended": self.ended,
            **percentiles(self.delays),
        }

    def _rate(self) -> float:
        """Within the window; of all that came, where nothing came twice within it."""
        if self.last > self.first:
            return self.counted / (self.last - self.first)
        if self.ended <= self.begun:
            return 0.0
        return self.total * (self.messages - 1) / self.messages / (self.ended - self.begun)


def percentiles(values: list[float]) -> dict[str, float]:
    """``p50`` and ``p99`` of seconds, in milliseconds; nothing of nothing."""
    if not values:
        return {}
    ordered = sorted(values)
    return {f"p{share}": 1e3 * ordered[min(len(ordered) - 1, len(ordered) * share // 100)] for share in (50, 99)}
