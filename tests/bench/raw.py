"""One end of a raw connection: python -m tests.bench.raw JOB, a JSON map.

`engine`, `offers` (whether this end makes the offer) and `streams`: for each data channel `unit`, the bytes of each send,
and `interval` in seconds, or 0 for as fast as the buffer of 256 KiB allows. Nothing runs here but the engine and uvloop.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import struct
import sys
import time
from typing import Any

import uvloop

from tests.bench.talk import Arrivals, Orders, Window, at_most, say

PATIENCE = 120.0
BURST = 64
"""Sends between two turns of the loop, so that the engine comes to its work."""

STAMP = struct.Struct(">d")


class Stream:
    def __init__(self, lane: Any, unit: int, interval: float) -> None:
        self._lane = lane
        self._unit = unit
        self._interval = interval
        self.sent = 0
        self.arrivals = Arrivals()
        lane.listen(self._take_stamped if interval else self._take)

    def _take(self, data: bytes) -> None:
        self.arrivals.note(len(data))

    def _take_stamped(self, data: bytes) -> None:
        self.arrivals.note(len(data))
        self.arrivals.note_delay(STAMP.unpack_from(data)[0])

    async def send_all(self, window: Window) -> None:
        await window.until_begin()
        await (self._send_slowly(window) if self._interval else self._send_fast(window))

    async def _send_fast(self, window: Window) -> None:
        lane, data = self._lane, bytes(self._unit)
        now = 0.0
        while now < window.end:
            now = time.monotonic()
            if lane.is_full():
                await lane.room()
            for _ in range(BURST):
                lane.send(data)
                self.sent += 1
                if lane.is_full():
                    break
            await asyncio.sleep(0)

    async def _send_slowly(self, window: Window) -> None:
        due, pad = time.monotonic(), bytes(self._unit - STAMP.size)
        while (now := time.monotonic()) < window.end:
            self._lane.send(STAMP.pack(now) + pad)
            self.sent += 1
            due += self._interval
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def until_arrived(self, size: int) -> None:
        while self.arrivals.total < size:
            await asyncio.sleep(0.01)


async def main(job: dict[str, Any]) -> None:
    orders = Orders()
    await orders.open()
    peer = importlib.import_module(f"tests.bench.raw_{job['engine']}").Peer(len(job["streams"]))
    if job["offers"]:
        say("offer", sdp=await peer.offer())
        await peer.accept((await orders.take())["sdp"])
    else:
        say("answer", sdp=await peer.answer((await orders.take())["sdp"]))
    async with at_most(PATIENCE, lambda: "all data channels open"):
        lanes = await peer.lanes()
    streams = [Stream(lane, each["unit"], each["interval"]) for lane, each in zip(lanes, job["streams"], strict=True)]
    say("ready")
    while True:
        await obey(await orders.take(), streams)


async def obey(order: dict[str, Any], streams: list[Stream]) -> None:
    if order["do"] == "run":
        window = Window.of(order)
        for each in streams:
            each.arrivals.window = window
        if order["send"]:
            within = PATIENCE + window.end - time.monotonic()
            async with at_most(within, lambda: f"room in the buffers; sent {[each.sent for each in streams]}"):
                await asyncio.gather(*(each.send_all(window) for each in streams))
        say("sent", counts=[each.sent for each in streams])
    elif order["do"] == "arrived":
        sizes = order["counts"]
        async with at_most(
            PATIENCE, lambda: f"{sizes} bytes arrived; {[each.arrivals.total for each in streams]} have"
        ):
            await asyncio.gather(*(each.until_arrived(size) for each, size in zip(streams, sizes, strict=True)))
        say("arrived", streams=[each.arrivals.result() for each in streams])
    else:
        raise ValueError(f"unknown order {order['do']!r}")


if __name__ == "__main__":
    uvloop.run(main(json.loads(sys.argv[1])))
