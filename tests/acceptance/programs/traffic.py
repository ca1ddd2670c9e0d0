"""What the programs under test do on a channel: send numbered messages, take what comes."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable

from content import digest, number_of, payload
from log import Log

from rondevu_client import Channel, Daemon, Message

UNDECIDED = 200
"""Messages a sender has under way at most."""


async def send_all(
    channel: Channel, log: Log, sender: str, first: int, last: int, wait_for: Callable[[int], Awaitable[None]]
) -> None:
    """Send ``first … last`` of `sender` in order, each after ``wait_for(number)``.

    Logs ``sending NUMBER`` and, once the daemon has stored it, ``accepted NUMBER``.
    """
    room = asyncio.Semaphore(UNDECIDED)

    async def send(number: int) -> None:
        log.write("sending", number)
        await channel.send(payload(sender, number))
        log.write("accepted", number)
        room.release()

    async with asyncio.TaskGroup() as group:
        for number in range(first, last + 1):
            await wait_for(number)
            await room.acquire()
            group.create_task(send(number), name=f"send {number}")
    log.write("all-accepted")


async def at_once(number: int) -> None:
    """For `send_all`: no waiting."""


class Taken:
    """What a receiving program has taken, over all its runs: the log is the truth, ids that stand in it are dropped."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.ids = {words[1] for words in log.lines if words[0] == "received"}

    def take(self, message: Message) -> None:
        """Logs ``received ID NUMBER ATTEMPT DIGEST``; ``again ID NUMBER ATTEMPT DIGEST`` for one that was taken before."""
        word = "again" if message.id in self.ids else "received"
        self.ids.add(message.id)
        self._log.write(word, message.id, number_of(message.data), message.attempt, digest(message.data))


async def until_read(daemon: Daemon) -> None:
    """Wait until the daemon has read what was sent before, acknowledgements too."""
    await asyncio.sleep(0)  # the library writes them at the end of the loop's turn
    await daemon.call("ping")


def producer_name(sender: str) -> bytes:
    """The fixed producer of a sender, the same in every run."""
    return hashlib.sha256(sender.encode()).digest()[:16]
