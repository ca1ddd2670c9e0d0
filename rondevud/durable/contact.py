"""The way to a connection with a plain peer: candidates are exchanged until it is up.

Its texts may come without candidates: some clients trickle them, and some never say any and are found by their checks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple

from rondevud.errors import SignallingError, TransportError
from rondevud.signalling.base import Candidate
from rondevud.transport.base import ConnectionState, DataChannel, PeerConnection

logger = logging.getLogger(__name__)

INTERVAL = 1.0
"""Seconds between two looks for candidates of the other side: what the seed's clients take."""


class Trickle(NamedTuple):
    """How candidates of one offer are exchanged."""

    own: list[Candidate]
    post: Callable[[list[Candidate]], Awaitable[None]]
    read: Callable[[], Awaitable[list[Candidate]]]


class Contact:
    """A connection that is being made; set before the first await after it was made."""

    def __init__(self, connection: PeerConnection, channels: Iterable[DataChannel] = ()) -> None:
        self.channels = list(channels)
        """The data channels that there are; the engine keeps what comes on them."""
        self._connection = connection
        self._changed = asyncio.Event()
        connection.on_state = lambda _state: self._changed.set()
        connection.on_data_channel = self.channels.append

    async def connected(self, trickle: Trickle) -> None:
        """Wait until the connection is up; the caller bounds the time. Raises `TransportError` when it ends instead."""
        task = asyncio.get_running_loop().create_task(self._exchange(trickle), name="exchange candidates")
        try:
            while self._connection.state not in {ConnectionState.CONNECTED, ConnectionState.CLOSED}:
                await self._changed.wait()
                self._changed.clear()
        finally:
            task.cancel()
            await asyncio.wait({task})
        if self._connection.state is ConnectionState.CLOSED:
            raise TransportError("the WebRTC connection ended before it was up")

    async def _exchange(self, trickle: Trickle) -> None:
        """What fails is tried again as long as it is of use: the texts themselves may do."""
        with contextlib.suppress(SignallingError):
            await trickle.post(trickle.own)
        while True:
            try:
                for candidate in await trickle.read():
                    await self._connection.add_candidate(
                        candidate.candidate, candidate.sdp_mid, candidate.sdp_m_line_index
                    )
            except SignallingError as error:
                logger.debug("candidates: %s", error)
            await asyncio.sleep(INTERVAL)
