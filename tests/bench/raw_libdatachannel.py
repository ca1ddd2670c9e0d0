"""libdatachannel-py with nothing around it, as `tests.bench.raw` drives it; messages are counted in its threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import libdatachannel

BUFFER = 256 * 1024
LOOK = 0.001
"""Seconds between looks at a full buffer. The library's own callback for it deadlocks with a sender in another thread."""


class Lane:
    """One data channel."""

    def __init__(self, channel: libdatachannel.DataChannel, wake: Callable[[], None]) -> None:
        self._channel = channel
        self._wake = wake
        self.opened = channel.is_open()
        channel.on_open(self._on_open)
        self.opened |= channel.is_open()
        self.send = channel.send

    def listen(self, take: Callable[[bytes], None]) -> None:
        self._channel.on_message(take)

    def is_full(self) -> bool:
        return self._channel.buffered_amount() >= BUFFER

    async def room(self) -> None:
        while self._channel.buffered_amount() > BUFFER // 2:
            await asyncio.sleep(LOOK)

    def _on_open(self) -> None:
        self.opened = True
        self._wake()


class Peer:
    def __init__(self, count: int) -> None:
        self._count = count
        self._loop = asyncio.get_running_loop()
        self._pc = libdatachannel.PeerConnection(libdatachannel.Configuration())
        self._lanes: dict[str, Lane] = {}
        self._changed = asyncio.Event()
        self._pc.on_gathering_state_change(lambda _: self._wake())
        self._pc.on_data_channel(self._add)

    async def offer(self) -> str:
        for number in range(self._count):
            self._add(self._pc.create_data_channel(str(number)))
        return await self._described()

    async def answer(self, offer: str) -> str:
        self._pc.set_remote_description(libdatachannel.Description(offer, "offer"))
        return await self._described()

    async def accept(self, answer: str) -> None:
        self._pc.set_remote_description(libdatachannel.Description(answer, "answer"))

    async def lanes(self) -> list[Lane]:
        """All channels, once they are open."""
        await self._until(lambda: len(self._lanes) == self._count and all(each.opened for each in self._lanes.values()))
        return [self._lanes[str(number)] for number in range(self._count)]

    async def _described(self) -> str:
        complete = libdatachannel.PeerConnection.GatheringState.Complete
        await self._until(lambda: self._pc.gathering_state() == complete and self._pc.local_description() is not None)
        return str(self._pc.local_description())

    async def _until(self, what: Callable[[], bool]) -> None:
        while not what():
            self._changed.clear()
            if not what():
                await self._changed.wait()

    def _add(self, channel: libdatachannel.DataChannel) -> None:
        self._lanes[channel.label()] = Lane(channel, self._wake)
        self._wake()

    def _wake(self) -> None:
        """From any thread."""
        self._loop.call_soon_threadsafe(self._changed.set)
