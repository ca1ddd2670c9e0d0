"""The service's side of a new connection, from the answer to the hello (before it is a link of a session)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from rondevud import failpoints
from rondevud.durable import frames
from rondevud.durable.frames import Goodbye, GoodbyeCode, Refuse
from rondevud.durable.link import GOODBYE_TIMEOUT, HELLO_TIMEOUT
from rondevud.durable.pool import SERVICE_LABEL
from rondevud.errors import PeerError, TransportError
from rondevud.transport.base import ConnectionState, DataChannel, Message, PeerConnection

logger = logging.getLogger(__name__)

CONNECTING = 10.0
"""Seconds that an answered offer gets to become a connection."""


def send_frame(channel: DataChannel, data: bytes) -> None:
    """Hand an encoded frame to the data channel of a link. Raises `TransportError`."""
    failpoints.hit_frame("send.before", data)
    channel.send(data)
    failpoints.hit_frame("send.after", data)


class Greeting:
    """Waits, on a connection that was just made, for the data channel of the link and the hello on it."""

    def __init__(self, connection: PeerConnection, count: Callable[[str], None]) -> None:
        loop = asyncio.get_running_loop()
        self._connection = connection
        self._channel: DataChannel | None = None
        self._count = count
        self._connected: asyncio.Future[None] = loop.create_future()
        self._arrived: asyncio.Future[tuple[DataChannel, frames.Hello]] = loop.create_future()
        connection.on_state = self._on_state
        connection.on_data_channel = self._on_data_channel

    def _on_state(self, state: ConnectionState) -> None:
        if state is ConnectionState.CONNECTED and not self._connected.done():
            self._connected.set_result(None)
        elif state is ConnectionState.CLOSED:
            for future in (self._connected, self._arrived):
                if not future.done():
                    future.set_exception(TransportError("the connection ended before hello"))
                    future.exception()

    def _on_data_channel(self, channel: DataChannel) -> None:
        if channel.label == frames.LABEL and channel.protocol == frames.PROTOCOL:
            self._channel = channel
            channel.on_message = lambda message: _take_hello(self._arrived, channel, message)
        elif channel.label != SERVICE_LABEL:
            logger.info("A data channel %r that no link announced is closed", channel.label)
            self._count("stray_channels")
            channel.close()

    async def hello(self) -> tuple[DataChannel, frames.Hello]:
        """Raises `TransportError` or `PeerError`, the latter when the peer has been told."""
        try:
            async with asyncio.timeout(CONNECTING):
                await self._connected
            async with asyncio.timeout(2 * HELLO_TIMEOUT):
                return await self._arrived
        except (TimeoutError, PeerError) as error:
            raise await _part(self._connection, self._channel, error) from None

    @staticmethod
    async def again(connection: PeerConnection, channel: DataChannel) -> frames.Hello:
        """The next hello on a channel whose first one was refused. Raises `TransportError` or `PeerError`."""
        arrived: asyncio.Future[tuple[DataChannel, frames.Hello]] = asyncio.get_running_loop().create_future()
        channel.on_message = lambda message: _take_hello(arrived, channel, message)

        def closed(state: ConnectionState) -> None:
            if state is ConnectionState.CLOSED and not arrived.done():
                arrived.set_exception(TransportError("the connection ended before hello"))

        connection.on_state = closed
        try:
            async with asyncio.timeout(HELLO_TIMEOUT):
                return (await arrived)[1]
        except (TimeoutError, PeerError) as error:
            raise await _part(connection, channel, error) from None


def _take_hello(
    arrived: asyncio.Future[tuple[DataChannel, frames.Hello]], channel: DataChannel, message: Message
) -> None:
    if arrived.done():
        return
    failpoints.hit_frame("receive.before", message)
    try:
        frame = frames.decode(message)
        if not isinstance(frame, frames.Hello):
            raise PeerError(f"{type(frame).__name__} instead of hello")
    except PeerError as error:
        arrived.set_exception(error)
    else:
        arrived.set_result((channel, frame))
    failpoints.hit_frame("receive.after", message)


async def refuse(connection: PeerConnection, channel: DataChannel, why: Refuse) -> None:
    """Say why not, and give the peer time to read it; the caller closes the connection then."""
    await _say_last(connection, channel, why)


async def _part(connection: PeerConnection, channel: DataChannel | None, error: Exception) -> PeerError:
    """Say goodbye to a peer that said no hello, or a wrong one; answers what there is to raise."""
    code, reason = GoodbyeCode.PROTOCOL, str(error)
    if isinstance(error, TimeoutError):
        code, reason = GoodbyeCode.TIMEOUT, "no hello in time"
    if channel is not None:
        await _say_last(connection, channel, Goodbye(code, reason))
    return PeerError(reason)


async def _say_last(connection: PeerConnection, channel: DataChannel, frame: Goodbye | Refuse) -> None:
    """Send a last frame; wait until the peer has answered goodbye or closed, or its time is over."""
    over = asyncio.Event()
    connection.on_state = lambda state: over.set() if state is ConnectionState.CLOSED else None
    channel.on_message = lambda message: over.set() if _is_goodbye(message) else None
    with contextlib.suppress(TransportError, TimeoutError):
        send_frame(channel, frames.encode(frame))
        async with asyncio.timeout(GOODBYE_TIMEOUT):
            await over.wait()


def _is_goodbye(message: Message) -> bool:
    with contextlib.suppress(PeerError):
        return isinstance(frames.decode(message), Goodbye)
    return False
