"""What goes to one client: gathered per turn of the loop, bounded, and honest about a client that does not read.

Three marks: past `HIGH_WATER` the writer is congested: receivers pause, events are dropped and counted. What must be said
all the same (answers, confirmations) goes on; when that alone passes `STOP_READING`, no more requests are read; past
`HOPELESS` the socket is closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

HIGH_WATER = 1024 * 1024
"""Bytes unsent past which nothing is produced for this client until it has read."""

LOW_WATER = 256 * 1024

STOP_READING = 256 * 1024
"""Bytes written while congested past which the client's requests wait."""

HOPELESS = 8 * 1024 * 1024
"""Bytes written while congested past which the client is given up."""

GATHER = 256 * 1024
"""Bytes gathered before they are handed to the transport within a turn of the loop."""


class Writer:
    """Frames to one transport, in order. `on_hopeless` is called at most once, from the loop."""

    def __init__(self, transport: asyncio.Transport, on_hopeless: Callable[[], None]) -> None:
        self.congested = False
        self.hopeless = False
        """Whether the client has been given up; its socket is closed before the loop's next turn."""
        self._transport = transport
        self._on_hopeless = on_hopeless
        self._loop = asyncio.get_running_loop()
        self._gathered: list[bytes] = []
        self._gathered_bytes = 0
        self._overdue = 0
        transport.set_write_buffer_limits(high=HIGH_WATER, low=LOW_WATER)

    @property
    def unsent(self) -> int:
        """Bytes the client has not taken yet."""
        return self._gathered_bytes + self._transport.get_write_buffer_size()

    def write(self, frame: bytes) -> None:
        """Send `frame` behind everything written before. Never blocks; nothing happens on a closed transport."""
        if not self._gathered:
            self._loop.call_soon(self.flush)
        self._gathered.append(frame)
        self._gathered_bytes += len(frame)
        if self.congested:
            self._count_overdue(len(frame))
        elif self._gathered_bytes >= GATHER:
            self.flush()

    def flush(self) -> None:
        """Hand what was gathered to the transport."""
        if not self._gathered:
            return
        data = b"".join(self._gathered)
        self._gathered.clear()
        self._gathered_bytes = 0
        if not self._transport.is_closing():
            self._transport.write(data)

    def pause(self) -> None:
        """The transport's buffer is past the high mark."""
        self.congested = True
        self._overdue = 0

    def resume(self) -> None:
        """The client has read: below the low mark."""
        self.congested = False
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def _count_overdue(self, size: int) -> None:
        self._overdue += size
        if self._overdue > STOP_READING and self._transport.is_reading():
            self._transport.pause_reading()
        if self._overdue > HOPELESS and not self.hopeless:
            self.hopeless = True
            self._loop.call_soon(self._on_hopeless)
