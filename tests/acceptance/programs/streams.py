"""Both ways on several labels, short: streams.py SOCKET TARGET LOG NAME COUNT[+] SECONDS.

Sends messages 1 … COUNT on each of `LABELS`, never more than `AHEAD` beyond what it has received there, and receives until
the peer's COUNTth has come; ends when the peer's daemon has all it sent. After a kill it goes on where its producers stand.
With a plus behind COUNT there will be more: lines of standard input say how many, ``NUMBER+`` or, for the last time, a
larger ``NUMBER``. Gives up after SECONDS. Its log is what the jury reads (see ``tests/jury/checker.py``).
"""

from __future__ import annotations

import asyncio
import itertools
import sys

from content import AHEAD, LABELS, digest, number_of, stream_payload
from log import Log
from patient import PAUSE, patient_client
from traffic import producer_name, until_read

from rondevu_client import Channel, Daemon, MessageRejected, MessagesRemoved, RequestRefused

CREDIT = 4
"""Messages that the daemon may deliver beyond what was acknowledged: others wait in its inbox."""
TIMED_OUT = 3
"""Exit code of a program that gave up."""


class Count:
    """How many messages there are on each label, as far as is known."""

    def __init__(self, text: str) -> None:
        self.moved = asyncio.Condition()
        """Notified whenever a stream or the count has moved on."""
        self._set(text)

    def _set(self, text: str) -> None:
        self.final = not text.endswith("+")
        """Whether it stays at that."""
        self.now = int(text.rstrip("+"))

    async def follow_input(self) -> None:
        """Until the count is final."""
        if self.final:
            return
        lines = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
        while not self.final:
            text = (await lines.readline()).decode().strip()
            async with self.moved:
                self._set(text or str(self.now))
                self.moved.notify_all()


class Stream:
    """One label: what it sends, what it takes."""

    def __init__(self, channel: Channel, log: Log, name: str, count: Count) -> None:
        self._channel = channel
        self._log = log
        self._name = name
        self._count = count
        self._label = channel.label
        taken = [int(words[3]) for words in log.lines if words[:2] == ["received", channel.label]]
        self._highest = max(taken, default=0)

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
            self._log.write("acknowledged", self._label, self._count.now)

    async def _send_all(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in itertools.count(self._channel.last_seq + 1):
                async with self._count.moved:
                    await self._count.moved.wait_for(lambda number=number: self._may_send(number) or self._ends(number))
                if self._ends(number):
                    break
                group.create_task(self._send(number), name=f"send {self._label} {number}")

    def _may_send(self, number: int) -> bool:
        return number <= min(self._count.now, self._highest + AHEAD)

    def _ends(self, number: int) -> bool:
        """Whether `number` is behind the last one."""
        return self._count.final and number > self._count.now

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
        while not self._ends(self._highest + 1):
            message = await anext(self._channel)
            number = number_of(message.data)
            words = (message.id, number, message.attempt, digest(message.data))
            self._log.write("received", self._label, *words)
            await message.ack()
            async with self._count.moved:
                self._highest = max(self._highest, number)
                self._count.moved.notify_all()


async def attach(daemon: Daemon, target: str, label: str, producer: bytes, log: Log) -> Channel:
    """Again and again, until the daemon can do it."""
    while True:
        try:
            return await daemon.attach(target, label, producer=producer, credit=CREDIT, auto_ack=False, takeover=True)
        except RequestRefused as error:
            log.write("refused", label, error.code)
            await asyncio.sleep(PAUSE)


async def main(socket: str, target: str, log_path: str, name: str, text: str, seconds: str) -> int:
    log, count = Log(log_path), Count(text)
    try:
        async with asyncio.timeout(float(seconds)), patient_client(socket, name) as daemon:
            async with asyncio.TaskGroup() as group:
                group.create_task(count.follow_input(), name="input")
                for label in LABELS:
                    producer = producer_name(f"{name}/{label}")
                    channel = await attach(daemon, target, label, producer, log)
                    channel.on("gap", lambda data, label=label: log.write("gap", label, data.get("reason")))
                    log.write("attached", label)
                    group.create_task(Stream(channel, log, name, count).run(), name=label)
            await until_read(daemon)
    except TimeoutError:
        log.write("timeout")
        return TIMED_OUT
    log.write("done")
    return 0


sys.exit(asyncio.run(main(*sys.argv[1:])))
