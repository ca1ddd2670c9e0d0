"""An echo service, and a caller for it.

    python echo_service.py              the service: runs until Ctrl-C
    python echo_service.py hello there  the caller: sends each word, prints each echo

The service can be stopped, or its daemon: what is sent meanwhile waits, and is echoed when both are back.
"""

import asyncio
import contextlib
import sys

from rondevu_client import Channel, Daemon

USER, FQN = "echo", "com.example.echo@1.0.0"


async def echo(channel: Channel, connection_id: str) -> None:
    """Runs once for each channel of each caller."""
    print(f"{connection_id} has opened {channel.label!r}")
    async for message in channel:  # asking for the next message acknowledges this one
        await channel.send(message.data)


async def serve() -> None:
    async with Daemon() as daemon:
        service = await daemon.expose_service(USER, FQN, handler=echo, public=True)
        print(f"{USER}/{FQN} is exposed")
        await service.wait_closed()


async def call(words: list[str]) -> None:
    async with Daemon() as daemon:
        # The name is this program's own. Under the same name a later run goes on with what an earlier one left.
        connection = await daemon.connect(USER, FQN, name="to-echo")
        channel = await connection.create_channel("words")
        for word in words:
            await channel.send(word)  # returns when our daemon has stored it
        for _ in words:
            message = await channel.receive()
            print("echo:", message.data)
            await message.ack()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(call(sys.argv[1:]) if sys.argv[1:] else serve())
