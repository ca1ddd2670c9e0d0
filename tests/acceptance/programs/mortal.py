"""Take messages, and die of one: mortal.py SOCKET TARGET LABEL LOG POISON LAST PID.

Kills the process PID (0: none), and then itself, when it gets POISON; ends when it has acknowledged LAST.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from log import Log
from traffic import until_read

from rondevu_client import Daemon


async def main(socket: str, target: str, label: str, log_path: str, poison: str, last: str, pid: str) -> None:
    log = Log(log_path)
    async with Daemon(socket, client="mortal") as daemon:
        channel = await daemon.attach(target, label, auto_ack=False)
        async for message in channel:
            log.write("received", message.id, message.data, message.attempt)
            if message.data == poison:
                for victim in filter(None, (int(pid), os.getpid())):
                    os.kill(victim, signal.SIGKILL)
            await message.ack()
            await until_read(daemon)
            if message.data == last:
                break
    log.write("done")


asyncio.run(main(*sys.argv[1:]))
