"""Print what comes to alice's service, line by line, and whether it came before."""

import asyncio

from rondevu_client import Daemon


async def main() -> None:
    async with Daemon(client="receiver", request_timeout=300) as daemon:

        async def take(channel, connection_id):
            async for message in channel:
                print("got", message.data, message.id, flush=True)

        service = await daemon.expose_service("alice", "com.example.chat@1.0.0", handler=take)
        await service.wait_closed()


asyncio.run(main())
