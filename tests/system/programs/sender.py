"""Send 0, 1, 2 … until the file STOP is there, then wait until all of them are acknowledged: sender.py STOP."""

import asyncio
import sys
from pathlib import Path

from rondevu_client import Daemon


async def main(stop: Path) -> None:
    number = 0
    async with Daemon(client="sender", request_timeout=300) as daemon:
        channel = await daemon.attach("alice-chat", "main")
        while not stop.exists():
            await channel.send(str(number))
            number += 1
        await channel.flush()
    print("sent", number, flush=True)


asyncio.run(main(Path(sys.argv[1])))
