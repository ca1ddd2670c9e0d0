"""A service that sends back what it gets: echo.py SOCKET USER FQN LOG. Runs until it is killed."""

from __future__ import annotations

import asyncio
import sys

from content import digest, number_of
from log import Log

from rondevu_client import Channel, Daemon


async def main(socket: str, username: str, fqn: str, log_path: str) -> None:
    log = Log(log_path)

    async def echo(channel: Channel, connection_id: str) -> None:
        log.write("serving", connection_id, channel.label)
        async for message in channel:
            log.write("echo", message.id, number_of(message.data), message.attempt, digest(message.data))
            await channel.send(message.data)

    async with Daemon(socket, client="echo") as daemon:
        service = await daemon.expose_service(username, fqn, handler=echo)
        log.write("exposed")
        await service.wait_closed()


asyncio.run(main(*sys.argv[1:]))
