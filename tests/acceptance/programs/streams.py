"""Both ways on several labels, short: streams.py SOCKET TARGET LOG NAME COUNT SECONDS.

Sends messages 1 … COUNT on each of `LABELS`, never more than `AHEAD` beyond what it has received there, and receives until
the peer's COUNTth has come; ends when the peer's daemon has all it sent. After a kill it goes on where its producers stand.
Gives up after SECONDS. Its log is what the jury reads (see ``tests/jury/checker.py``).
"""

from __future__ import annotations

import asyncio
import sys

from content import AHEAD, LABELS, digest, number_of, stream_payload
from log import Log
from patient import patient_client
from traffic import producer_name, until_read

from rondevu_client import Channel, MessageRejected, MessagesRemoved

CREDIT = 4
"""Messages that the daemon may deliver beyond what was acknowledged: others wait in its inbox."""
TIMED_OUT = 3
"""Exit code of a program that gave up."""


class Stream:
    """One label: what it sends, what it takes."""

    def __init__(self, channel: Channel, log: Log, name: str, count: int) -> None:
        self._channel = channel
        self._log = log
        self._name = name
        self._count = count
        self._label = channel.label
        taken = [int(words[3]) for words in log.lines if words[:2] == ["received", channel.label]]
        self._highest = max(taken, default=0)
        self._moved = asyncio.Condition()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._receive_all(), name=f"receive {self._label}")
            group.create_task(self._send_all(), name=f"send {self._label}")
        try:
            await self._channel.flush()
        except MessagesRemoved as error:
            for gone in error.ranges:
                self._log.write("removed", self._label, gone.first, gone.last, gone.reason)
            if error.unnumbered:
                self._log.write("removed", self._label, 0, 0, error.unnumbered)
        else:
            self._log.write("acknowledged", self._label, self._count)

    async def _send_all(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(self._channel.last_seq + 1, self._count + 1):
                async with self._moved:
                    await self._moved.wait_for(lambda number=number: number <= self._highest + AHEAD)
                group.create_task(self._send(number), name=f"send {self._label} {number}")

    async def _send(self, number: int) -> None:
        data = stream_payload(self._name, self._label, number)
        self._log.write("sending", self._label, number, digest(data))
        try:
            await self._channel.send(data)
        except MessageRejected as error:
            self._log.write("rejected", self._label, number, error.code)
        else:
            self._log.write("accepted", self._label, number)

    async def _receive_all(self) -> None:
        while self._highest < self._count:
            message = await anext(self._channel)
            number = number_of(message.data)
            words = (message.id, number, message.attempt, digest(message.data))
            self._log.write("received", self._label, *words)
            await message.ack()
            async with self._moved:
                self._highest = max(self._highest, number)
                self._moved.notify_all()


async def main(socket: str, target: str, log_path: str, name: str, count: str, seconds: str) -> int:
    log = Log(log_path)
    try:
        async with asyncio.timeout(float(seconds)), patient_client(socket, name) as daemon:
            async with asyncio.TaskGroup() as group:
                for label in LABELS:
                    producer = producer_name(f"{name}/{label}")
                    channel = await daemon.attach(
                        target, label, producer=producer, credit=CREDIT, auto_ack=False, takeover=True
                    )
                    channel.on("gap", lambda data, label=label: log.write("gap", label, data.get("reason")))
                    log.write("attached", label)
                    group.create_task(Stream(channel, log, name, int(count)).run(), name=label)
            await until_read(daemon)
    except TimeoutError:
        log.write("timeout")
        return TIMED_OUT
    log.write("done")
    return 0


sys.exit(asyncio.run(main(*sys.argv[1:])))
