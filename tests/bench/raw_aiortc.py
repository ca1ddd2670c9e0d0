"""aiortc with nothing around it, as `tests.bench.raw` drives it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiortc import RTCConfiguration, RTCDataChannel, RTCPeerConnection, RTCSessionDescription

BUFFER = 256 * 1024


class Lane:
    """One data channel."""

    def __init__(self, channel: RTCDataChannel) -> None:
        self._channel = channel
        self._low = asyncio.Event()
        self.opened = asyncio.Event()
        channel.bufferedAmountLowThreshold = BUFFER // 2
        channel.on("bufferedamountlow", self._low.set)
        channel.on("open", self.opened.set)
        if channel.readyState == "open":
            self.opened.set()
        self.send = channel.send

    def listen(self, take: Callable[[bytes], None]) -> None:
        self._channel.on("message", take)

    def is_full(self) -> bool:
        return self._channel.bufferedAmount >= BUFFER

    async def room(self) -> None:
        """Wait until the buffer has fallen to half."""
        self._low.clear()
        await self._low.wait()


class Peer:
    def __init__(self, count: int) -> None:
        self._count = count
        self._pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self._lanes: dict[str, Lane] = {}
        self._complete = asyncio.Event()

    async def offer(self) -> str:
        for number in range(self._count):
            self._add(self._pc.createDataChannel(str(number)))
        await self._pc.setLocalDescription(await self._pc.createOffer())
        return self._pc.localDescription.sdp

    async def answer(self, offer: str) -> str:
        self._pc.on("datachannel", self._add)
        await self._pc.setRemoteDescription(RTCSessionDescription(offer, "offer"))
        await self._pc.setLocalDescription(await self._pc.createAnswer())
        return self._pc.localDescription.sdp

    async def accept(self, answer: str) -> None:
        await self._pc.setRemoteDescription(RTCSessionDescription(answer, "answer"))

    async def lanes(self) -> list[Lane]:
        """All channels, once they are open."""
        await self._complete.wait()
        for lane in self._lanes.values():
            await lane.opened.wait()
        return [self._lanes[str(number)] for number in range(self._count)]

    def _add(self, channel: RTCDataChannel) -> None:
        self._lanes[channel.label] = Lane(channel)
        if len(self._lanes) == self._count:
            self._complete.set()
