"""A program on a daemon's socket: python -m tests.bench.app JOB, a JSON map.

`socket`, `target`, `send`, `receive` and `streams`: each `label`, `size` in bytes, `interval` in seconds or 0 for as fast as
it goes. Sends and receives as fast as the library's documented calls allow: many sends under way, generous credit, one
acknowledgement for many messages.
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

from rondevu_client import Channel, Daemon
from tests.bench.talk import Arrivals, Orders, Window, at_most, percentiles, say

AHEAD_MESSAGES = 1_024
AHEAD_BYTES = 4 * 1024 * 1024
"""What the library keeps under way; more would wait in this process."""

BATCH_BYTES = 16 * 1024
"""Bytes of the messages that one call sends; one message at least."""

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
        self._batch = max(1, min(self._ahead // 8, BATCH_BYTES // size))
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
            await asyncio.gather(*(self._send_fast(window, numbers) for _ in range(self._ahead // self._batch)))
        await self._channel.flush()

    async def _send_fast(self, window: Window, numbers: itertools.count[int]) -> None:
        send, pack, pad, end = self._channel.send_many, HEAD.pack, self._pad, window.end
        now = 0.0
        while now < end:
            now = time.monotonic()
            batch = list(itertools.islice(numbers, self._batch))
            self.sent = batch[-1]
            await send([pack(number, now) + pad for number in batch])

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
            while batch := [number for number in itertools.islice(numbers, self._batch) if number <= last]:
                await self._channel.send_many([HEAD.pack(number, 0.0) + self._pad for number in batch])

        begun = time.monotonic()
        await asyncio.gather(*(send_some() for _ in range(self._ahead // self._batch)))
        self.sent = last
        return time.monotonic() - begun

    async def receive_forever(self) -> None:
        arrivals, unpack, unacknowledged = self.arrivals, HEAD.unpack_from, 0
        most = 1 if self._interval else self._ack_every
        while True:
            received = await self._channel.receive_many(most)
            for message in received:
                data = message.data
                number, sent_at = unpack(data)  # type: ignore[arg-type]
                if number != arrivals.messages + 1:
                    raise AssertionError(f"{self._channel.label}: message {number} after {arrivals.messages}")
                arrivals.note(len(data))
                if self._interval:
                    arrivals.note_delay(sent_at)
            unacknowledged += len(received)
            if self._interval or unacknowledged >= self._ack_every:
                await received[-1].ack()
                unacknowledged = 0

    async def until_arrived(self, count: int) -> None:
        while self.arrivals.messages < count:
            await asyncio.sleep(0.01)


async def attach(daemon: Daemon, job: dict[str, Any], stream: dict[str, Any]) -> Channel:
    """Who comes first makes the channel; both say the same of it."""
    mode = "send" if job["send"] and not job["receive"] else "exclusive"
    credit = max(4, min(4 * AHEAD_MESSAGES, AHEAD_BYTES // stream["size"]))
    return await daemon.attach(job["target"], stream["label"], mode=mode, credit=credit, auto_ack=False)


async def main(job: dict[str, Any]) -> None:
    orders = Orders()
    await orders.open()
    async with Daemon(job["socket"], client="bench") as daemon, asyncio.TaskGroup() as group:
        streams = []
        async with at_most(PATIENCE, lambda: f"channels attached; {len(streams)} of {len(job['streams'])} are"):
            for each in job["streams"]:
                channel = await attach(daemon, job, each)
                streams.append(Stream(channel, each["size"], each["interval"], len(job["streams"])))
        for each in streams if job["receive"] else []:
            group.create_task(each.receive_forever(), name="receive")
        say("ready")
        while True:
            await obey(await orders.take(), streams)


async def obey(order: dict[str, Any], streams: list[Stream]) -> None:
    what, within = order["do"], order.get("within", PATIENCE)
    if what == "count":  # messages on the first label, without a window
        async with at_most(within, lambda: f"{order['count']} messages accepted"):
            say("accepted", seconds=await streams[0].send_count(order["count"]))
    elif what == "run":
        window = Window.of(order)
        for each in streams:
            each.arrivals.window = window
        if order["send"]:
            within += window.end - time.monotonic()
            async with at_most(within, lambda: f"all acknowledged; sent {[each.sent for each in streams]}"):
                await asyncio.gather(*(each.send_all(window) for each in streams))
        say("sent", counts=[each.sent for each in streams], **percentiles(streams[0].accepting))
    elif what == "arrived":
        counts = order["counts"]
        async with at_most(within, lambda: f"{counts} arrived; {[each.arrivals.messages for each in streams]} have"):
            await asyncio.gather(*(each.until_arrived(count) for each, count in zip(streams, counts, strict=True)))
        say("arrived", streams=[each.arrivals.result() for each in streams])
    else:
        raise ValueError(f"unknown order {what!r}")


if __name__ == "__main__":
    uvloop.run(main(json.loads(sys.argv[1])))
