"""Many messages through one channel, as fast as they are stored."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import CancelledError
from typing import Any, Literal, TypeAlias

import click

from rondevu_client.channel import Channel

Until: TypeAlias = Literal["accepted", "sent", "acknowledged"]
"""How far messages have come: our daemon has stored them, has handed them to a data channel, the peer's has stored them."""

UNDECIDED = 256
"""Messages on their way to the daemon's store at once."""


class Sending:
    """Sends to `channel`, within `timeout` seconds (None: without end), and counts."""

    def __init__(self, channel: Channel, *, binary: bool, timeout: float | None) -> None:
        self._channel = channel
        self._binary = binary
        self._timeout = timeout
        self._undecided: deque[asyncio.Task[int]] = deque()
        self.messages = 0
        self.size = 0
        self.accepted = 0
        """Messages that our daemon has stored."""
        self.accepted_size = 0
        """Their bytes."""

    @property
    def acknowledged(self) -> int:
        """Messages that the peer's daemon has stored."""
        return max(0, self.messages - self._channel.queue_size)

    async def send(self, messages: Iterable[bytes], until: Until) -> None:
        """Send each message as it comes; returns when all are `until`. For ``sent`` the channel has `confirm_sent`.

        Getting them may block: it is done in a thread.

        Raises `MessageRejected`, `MessagesRemoved`, `TimeoutError`, `click.UsageError` for text that is none.
        """
        try:
            async with asyncio.timeout(self._timeout):
                await self._send_all(messages)
                if until == "acknowledged":
                    await self._channel.flush()
                elif until == "sent":
                    await self._channel.wait_sent()
        except TimeoutError as error:
            raise TimeoutError(
                f"not {until} in {self._timeout:g} s: {self._left(until)} of {self.messages} messages"
            ) from error
        finally:
            for task in self._undecided:
                task.cancel()
            await asyncio.gather(*self._undecided, return_exceptions=True)

    async def _send_all(self, messages: Iterable[bytes]) -> None:
        async for message in _in_thread(messages):
            await self._begin(message)
        while self._undecided:
            await self._undecided.popleft()

    def _left(self, until: Until) -> str:
        """How many are not, as far as that is known here."""
        return "some" if until == "sent" else str(self._channel.queue_size)

    async def _begin(self, message: bytes) -> None:
        """Hand one over; waits while too many are undecided."""
        data = message if self._binary else _decode(message)
        self._undecided.append(asyncio.create_task(self._store(data, len(message)), name="send"))
        self.messages += 1
        self.size += len(message)
        while self._undecided and (len(self._undecided) > UNDECIDED or self._undecided[0].done()):
            await self._undecided.popleft()

    async def _store(self, data: str | bytes, size: int) -> int:
        number = await self._channel.send(data)
        self.accepted += 1
        self.accepted_size += size
        return number

    def result(self, state: Until) -> dict[str, Any]:
        return {
            "connection_id": self._channel.connection_id,
            "label": self._channel.label,
            "messages": self.messages,
            "bytes": self.size,
            "state": state,
        }


def _decode(message: bytes) -> str:
    try:
        return message.decode()
    except UnicodeDecodeError as error:
        raise click.UsageError(f"this is not UTF-8 text (byte {error.start}); --binary sends bytes") from error


async def _in_thread(messages: Iterable[bytes]) -> AsyncIterator[bytes]:
    """`messages`, got in a thread that nobody has to wait for: it may block in a terminal for ever.

    Raises the `OSError` or `click.UsageError` that it ended with.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[bytes | Exception | None] = asyncio.Queue(UNDECIDED)

    def put(item: bytes | Exception | None) -> None:
        asyncio.run_coroutine_threadsafe(queue.put(item), loop).result()

    def get() -> None:
        end: Exception | None = None
        with contextlib.suppress(RuntimeError, CancelledError):  # the loop has ended without taking more
            try:
                for message in messages:
                    put(message)
            except (OSError, click.UsageError) as error:
                end = error
            put(end)

    threading.Thread(target=get, name="standard input", daemon=True).start()
    while (item := await queue.get()) is not None:
        if isinstance(item, Exception):
            raise item
        yield item
