"""Send numbered messages: sender.py SOCKET TARGET LABEL LOG NAME COUNT.

Goes on behind the last number that stands in its log, and sends none twice, whatever became of it.
"""

from __future__ import annotations

import asyncio
import sys

from log import Log
from traffic import at_once, producer_name, send_all

from rondevu_client import Daemon


async def main(socket: str, target: str, label: str, log_path: str, name: str, count: str) -> None:
    log = Log(log_path)
    begun = max((int(words[1]) for words in log.lines if words[0] == "sending"), default=0)
    async with Daemon(socket, client=name) as daemon:
        channel = await daemon.attach(target, label, mode="send", producer=producer_name(name), takeover=True)
        log.write("attached")
        await send_all(channel, log, name, begun + 1, int(count), at_once)


asyncio.run(main(*sys.argv[1:]))
