"""Send and receive on one channel: both_ways.py SOCKET TARGET LABEL LOG NAME COUNT AHEAD [HOLD].

Sends COUNT messages, never more than AHEAD beyond what it has received, and receives COUNT; ends when the peer's daemon
has all it sent. What comes behind the first HOLD messages is sent when a line comes on standard input.
"""

from __future__ import annotations

import asyncio
import sys

from log import Log
from traffic import Taken, producer_name, send_all, until_read

from rondevu_client import Channel, Daemon


class Pace:
    """Holds the sending half back by what the receiving half has seen."""

    def __init__(self, taken: Taken, ahead: int, hold: int | None) -> None:
        self._taken = taken
        self._ahead = ahead
        self._hold = hold
        self.moved = asyncio.Condition()

    async def wait_for(self, number: int) -> None:
        if self._hold is not None and number > self._hold:
            self._hold = None
            await asyncio.to_thread(sys.stdin.readline)
        async with self.moved:
            await self.moved.wait_for(lambda: number <= len(self._taken.ids) + self._ahead)


async def receive_all(channel: Channel, taken: Taken, pace: Pace, count: int) -> None:
    async for message in channel:
        taken.take(message)
        await message.ack()
        async with pace.moved:
            pace.moved.notify_all()
        if len(taken.ids) == count:
            return


async def main(
    socket: str, target: str, label: str, log_path: str, name: str, count: str, ahead: str, hold: str | None = None
) -> None:
    log = Log(log_path)
    taken = Taken(log)
    pace = Pace(taken, int(ahead), int(hold) if hold else None)
    async with Daemon(socket, client=name) as daemon:
        channel = await daemon.attach(target, label, producer=producer_name(name), auto_ack=False)
        log.write("attached", channel.connection_id)
        async with asyncio.TaskGroup() as group:
            group.create_task(receive_all(channel, taken, pace, int(count)), name="receive")
            group.create_task(send_all(channel, log, name, 1, int(count), pace.wait_for), name="send")
        log.write("all-received")
        await channel.flush()
        await until_read(daemon)
    log.write("done")


asyncio.run(main(*sys.argv[1:]))
