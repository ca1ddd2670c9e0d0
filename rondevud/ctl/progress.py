"""How far a long send has come, on a terminal's standard error."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import sys
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, BinaryIO

from rondevud.ctl.sending import Sending, Until

if TYPE_CHECKING:
    from rich.progress import Progress

PATIENCE = 0.5
"""Seconds before anything is shown: what is done by then needs no bar."""

INTERVAL = 0.1

CHUNK = 256 * 1024


def is_wanted() -> bool:
    """Whether somebody looks, and nothing is typed: who types knows how far it is."""
    return sys.stderr.isatty() and not sys.stdin.isatty()


def size_of_input() -> int | None:
    """Bytes that standard input has, where it is a file; None: nobody knows."""
    found = os.fstat(sys.stdin.fileno())
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def read_whole(source: BinaryIO) -> bytes:
    """All that is to be read, with a bar if that takes long and is wanted."""
    if not is_wanted():
        return source.read()
    read, began = bytearray(), time.monotonic()
    with contextlib.ExitStack() as stack:
        progress: Progress | None = None
        while piece := source.read1(CHUNK):  # type: ignore[attr-defined]  # of every buffered stream
            read += piece
            if progress is None and time.monotonic() - began > PATIENCE:
                progress = stack.enter_context(_progress())
                progress.add_task("reading", total=size_of_input())
            if progress is not None:
                progress.update(progress.task_ids[0], completed=len(read))
    return bytes(read)


@contextlib.asynccontextmanager
async def shown(sending: Sending, total: int | None, until: Until) -> AsyncIterator[None]:
    """While the body runs, show how far `sending` (of `total` bytes; None: nobody knows) has come, if that is wanted."""
    if not is_wanted():
        yield
        return
    showing = asyncio.get_running_loop().create_task(_show(sending, total, until), name="progress")
    try:
        yield
    finally:
        showing.cancel()
        await asyncio.wait([showing])


async def _show(sending: Sending, total: int | None, until: Until) -> None:
    await asyncio.sleep(PATIENCE)
    with _progress() as progress:
        task = progress.add_task("", total=total)
        while True:
            progress.update(task, completed=sending.accepted_size, description=describe(sending, until))
            await asyncio.sleep(INTERVAL)


def describe(sending: Sending, until: Until) -> str:
    """How many messages have come how far, in words."""
    words = f"{sending.accepted} accepted"
    return f"{words}, {sending.acknowledged} acknowledged" if until == "acknowledged" else words


def _progress() -> Progress:
    """A bar on standard error that goes away in the end."""
    # Loaded when a bar is drawn: most sends are over before.
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TransferSpeedColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
