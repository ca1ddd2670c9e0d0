"""A client of a daemon that may not be there yet."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from rondevu_client import Daemon, DaemonUnavailable

PAUSE = 0.05
"""Seconds between two attempts to find the daemon."""


@contextlib.asynccontextmanager
async def patient_client(socket: str | Path, name: str) -> AsyncIterator[Daemon]:
    """The open client, once the daemon answers; who calls bounds the time."""
    daemon = Daemon(socket, client=name)
    while True:
        try:
            await daemon.open()
            break
        except DaemonUnavailable:
            await asyncio.sleep(PAUSE)
    try:
        yield daemon
    finally:
        await daemon.close()
