"""Both directions of one channel at once: input to messages, messages to output."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import Any, BinaryIO

from rondevu_client.channel import Channel
from rondevu_client.errors import Detached, NotAcknowledged
from rondevu_client.inbox import Message
from rondevud.ctl.common import say
from rondevud.ctl.framing import Framing
from rondevud.ctl.output import is_terminal, printable
from rondevud.ctl.sending import Sending
from rondevud.ctl.tail import show_gap, show_message


class Piping:
    """Sends what is read and prints what arrives on `channel`, which acknowledges nothing by itself."""

    def __init__(self, channel: Channel, framing: Framing, *, as_json: bool) -> None:
        self._channel = channel
        self._framing = framing
        self._as_json = as_json
        self._escape = is_terminal()
        channel.on("gap", lambda gap: show_gap(channel, gap, as_json=as_json))

    async def run(self, stream: BinaryIO, linger: float) -> None:
        """Until `stream` has ended, the peer has everything, and `linger` seconds are over; or the channel has ended.

        Raises `Detached` when the channel ended before everything that was read had been accepted, and what `Sending`
        raises.
        """
        sending = asyncio.create_task(self._send(stream, linger), name="send")
        receiving = asyncio.create_task(self._receive(), name="receive")
        try:
            await asyncio.wait({sending, receiving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, receiving):
                task.cancel()
            outcomes = await asyncio.gather(sending, receiving, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome

    async def _send(self, stream: BinaryIO, linger: float) -> None:
        sending = Sending(self._channel, binary=self._framing.binary, timeout=None)
        with contextlib.suppress(NotAcknowledged):  # but everything has been handed over
            await sending.send(self._framing.split(stream), "acknowledged")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(linger):
                await asyncio.Event().wait()

    async def _receive(self) -> None:
        async for message in self._channel:
            self._print(message)
            await message.ack()
        if self._channel.buffered_amount:
            raise Detached(self._channel.end_reason or "closed")
        say(f"the channel has ended ({self._channel.end_reason})")

    def _print(self, message: Message) -> None:
        if self._as_json:
            show_message(self._channel.label, message)
            return
        data: Any = message.data
        if self._escape:
            data = printable(data if isinstance(data, str) else data.decode("utf-8", "backslashreplace"))
        output = sys.stdout.buffer
        output.write(self._framing.join(data.encode() if isinstance(data, str) else data))
        output.flush()
