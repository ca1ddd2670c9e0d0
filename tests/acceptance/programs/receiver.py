"""Receive messages: receiver.py SOCKET TARGET LABEL LOG COUNT ACK_EVERY.

Acknowledges with every ACK_EVERYth message (logged ``acknowledging`` before and ``acknowledged`` after the daemon has
read it); ends when it has taken COUNT different ones and acknowledged them. With ACK_EVERY 0 it never acknowledges.
"""

from __future__ import annotations

import asyncio
import sys

from content import number_of
from log import Log
from traffic import Taken, until_read

from rondevu_client import Daemon


async def main(socket: str, target: str, label: str, log_path: str, count: str, ack_every: str) -> None:
    log = Log(log_path)
    taken, every, number = Taken(log), int(ack_every), 0
    async with Daemon(socket, client="receiver") as daemon:
        channel = await daemon.attach(target, label, takeover=True, auto_ack=False)
        log.write("attached")
        async for message in channel:
            taken.take(message)
            number += 1
            done = len(taken.ids) == int(count) and number_of(message.data) == int(count)
            if every and (number % every == 0 or done):
                log.write("acknowledging", message.id)
                await message.ack()
                await until_read(daemon)
                log.write("acknowledged", message.id)
                if done:
                    break
    log.write("done")


asyncio.run(main(*sys.argv[1:]))
