"""Commands that go on until they are interrupted: Ctrl-C and a reader that goes away end them cleanly."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from rondevu_client.client import Daemon
from rondevud.ctl.common import Settings, is_pipe, run, say


def follow(settings: Settings, work: Callable[[Daemon], Awaitable[None]]) -> None:
    """Do `work`, also over restarts of the daemon, until it ends, Ctrl-C, or nobody reads our output.

    Raises what `work` raises; `BrokenPipeError` when writing finds out.
    """
    speak_of_restarts()
    with contextlib.suppress(KeyboardInterrupt):
        run(settings, lambda daemon: _until_unread(work(daemon)), reconnect=True)


async def _until_unread(work: Awaitable[None]) -> None:
    """Writing shows too late that the reader is gone, when nothing is to be written for hours."""
    loop = asyncio.get_running_loop()
    unread: asyncio.Future[None] = loop.create_future()

    def end() -> None:
        loop.remove_reader(output)
        unread.set_result(None)

    output = sys.stdout.fileno()
    if is_pipe(output):
        loop.add_reader(output, end)  # the write end of a pipe becomes readable only by its error
    working: asyncio.Future[Any] = asyncio.ensure_future(work)
    try:
        await asyncio.wait([working, unread], return_when=asyncio.FIRST_COMPLETED)
    finally:
        working.cancel()
        await asyncio.wait([working])
        loop.remove_reader(output)
    with contextlib.suppress(asyncio.CancelledError):
        working.result()


class _ToStderr(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


def speak_of_restarts() -> None:
    """The client library logs that the daemon went away and came back."""
    logger = logging.getLogger("rondevu_client")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    if not any(isinstance(handler, _ToStderr) for handler in logger.handlers):
        logger.addHandler(_ToStderr())
