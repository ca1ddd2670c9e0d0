"""A program on a daemon's socket: python -m tests.bench.app JOB, a JSON map.

`socket`, `target` and `streams` (each `label`, `size` in bytes, `interval` in seconds or 0 for as fast as it goes), `send`,
`receive`, `options` of the channels where it makes them. Sends and receives as fast as the library's documented calls
allow: many sends under way, generous credit, one acknowledgement for many messages.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import struct
import sys
import time
from typing import Any

import uvloop

from rondevu_client import Channel, Daemon, RequestRefused
from tests.bench.talk import Arrivals, Orders, Window, percentiles, say

AHEAD_MESSAGES = 1_024
AHEAD_BYTES = 4 * 1024 * 1024
"""What the library keeps under way; more would wait in this process."""

PATIENCE = 120.0
"""Seconds for everything to arrive."""

HEAD = struct.Struct(">Qd")


class Stream:
    """One label. A message begins with its number and the time at which it was sent."""

    def __init__(self, channel: Channel, size: int, interval: float, share: int) -> None:
        self._channel = channel
        self._interval = interval
        self._pad = bytes(size - HEAD.size)
        self._ahead = max(2, min(AHEAD_MESSAGES, AHEAD_BYTES // size) // share)
        self._ack_every = max(1, self._ahead // 4)
        self.sent = 0
        self.accepting: list[float] = []
        """Seconds from each send to its acceptance."""
        self.arrivals = Arrivals()

    async def send_all(self, window: Window) -> None:
        await window.until_begin()
        if self._interval:
            await self._send_slowly(window)
        else:
            numbers = itertools.count(1)
            await asyncio.gather(*(self._send_fast(window, numbers) for _ in range(self._ahead)))
        await self._channel.flush()

    async def _send_fast(self, window: Window, numbers: itertools.count[int]) -> None:
        send, pad, end = self._channel.send, self._pad, window.end
        while (now := time.monotonic()) < end:
            self.sent = next(numbers)
            await send(HEAD.pack(self.sent, now) + pad)

    async def _send_slowly(self, window: Window) -> None:
        due = time.monotonic()
        while (now := time.monotonic()) < window.end:
            self.sent += 1
            await self._channel.send(HEAD.pack(self.sent, now) + self._pad)
            if now >= window.first:
                self.accepting.append(time.monotonic() - now)
            due += self._interval
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def send_count(self, count: int) -> float:
        """Send so many; seconds until the last one is accepted."""
        numbers = itertools.count(self.sent + 1)
        last = self.sent + count

        async def send_some() -> None:
            while (number := next(numbers)) <= last:
                await self._channel.send(HEAD.pack(number, 0.0) + self._pad)

        begun = time.monotonic()
        await asyncio.gather(*(send_some() for _ in range(min(count, self._ahead))))
        self.sent = last
        return time.monotonic() - begun

    async def receive_forever(self) -> None:
        arrivals, unpack, unacknowledged = self.arrivals, HEAD.unpack_from, 0
        async for message in self._channel:
            data = message.data
            number, sent_at = unpack(data)  # type: ignore[arg-type]
            if number != arrivals.messages + 1:
                raise AssertionError(f"{self._channel.label}: message {number} after {arrivals.messages}")
            arrivals.note(len(data))
            if self._interval:
                arrivals.note_delay(sent_at)
            unacknowledged += 1
            if self._interval or unacknowledged >= self._ack_every:
                await message.ack()
                unacknowledged = 0

    async def until_arrived(self, count: int) -> None:
        while self.arrivals.messages < count:
            await asyncio.sleep(0.01)


async def attach(daemon: Daemon, job: dict[str, Any], stream: dict[str, Any]) -> Channel:
    """The one that does not make the channel waits until the other has."""
    mode = "send" if job["send"] and not job["receive"] else "exclusive"
    credit = max(4, min(4 * AHEAD_MESSAGES, AHEAD_BYTES // stream["size"]))
    while True:
        try:
            return await daemon.attach(
                job["target"], stream["label"], mode=mode, credit=credit, auto_ack=False, options=job.get("options")
            )
        except RequestRefused as error:
            if error.code not in {"unknown_channel", "unknown_target"}:
                raise
            await asyncio.sleep(0.05)


async def main(job: dict[str, Any]) -> None:
    orders = Orders()
    await orders.open()
    async with Daemon(job["socket"], client="bench") as daemon:
        streams = [
            Stream(await attach(daemon, job, each), each["size"], each["interval"], len(job["streams"]))
            for each in job["streams"]
        ]
        receiving = [asyncio.create_task(each.receive_forever(), name="receive") for each in streams if job["receive"]]
        for task in receiving:
            task.add_done_callback(_end_with)
        say("ready")
        while True:
            await obey(await orders.take(), streams)


async def obey(order: dict[str, Any], streams: list[Stream]) -> None:
    what = order["do"]
    if what == "count":  # messages on the first label, without a window
        say("accepted", seconds=await streams[0].send_count(order["count"]))
    elif what == "flush":
        await streams[0]._channel.flush()
        say("flushed")
    elif what == "run":
        window = Window.of(order)
        for each in streams:
            each.arrivals.window = window
        if order["send"]:
            async with asyncio.timeout(window.end - time.monotonic() + PATIENCE):
                await asyncio.gather(*(each.send_all(window) for each in streams))
        say("sent", counts=[each.sent for each in streams], **percentiles(streams[0].accepting))
    elif what == "arrived":
        async with asyncio.timeout(order.get("within", PATIENCE)):
            await asyncio.gather(
                *(each.until_arrived(count) for each, count in zip(streams, order["counts"], strict=True))
            )
        say("arrived", at=time.monotonic(), streams=[each.arrivals.result() for each in streams])


def _end_with(task: asyncio.Task[None]) -> None:
    """A receiver that failed is the end of the process: the benchmark shows why."""
    if not task.cancelled() and (error := task.exception()) is not None:
        asyncio.get_running_loop().stop()
        raise error


if __name__ == "__main__":
    uvloop.run(main(json.loads(sys.argv[1])))
