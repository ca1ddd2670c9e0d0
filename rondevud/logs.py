"""Where the log goes, and what its lines look like.

ERROR is a bug or a handler that failed, WARNING something lost, INFO the life cycle, DEBUG the wire. Under systemd the
lines go to the journal with their priority and without a time of their own; elsewhere to stderr. Control characters in a
message (a label that a peer chose, say) are escaped, so that one message is one line.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import sys
from collections.abc import Mapping
from typing import Any, TextIO

try:
    from systemd.journal import JournalHandler
except ImportError:  # the extra is not installed
    JournalHandler = None

logger = logging.getLogger(__name__)

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

CHATTY = ("aioice", "aiortc", "aiohttp", "asyncio")
"""Libraries that tell at INFO what is DEBUG here."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class LineFormatter(logging.Formatter):
    """One line per message, then the traceback if there is one."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is of logging
        return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", super().formatMessage(record))


class PriorityFormatter(LineFormatter):
    """For a stderr that the journal reads: each line begins with its syslog priority, ``<4>`` (sd-daemon(3))."""

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{_priority(record.levelno)}>"
        return "\n".join(prefix + line for line in super().format(record).splitlines())


def fields(event: str, connection: str | None = None, label: str | None = None) -> dict[str, str]:
    """For the ``extra`` of a message: in the journal they are ``RONDEVU_EVENT``, ``_CONNECTION`` and ``_LABEL``.

    `event` is the name that subscribers hear the same thing by, or a word of its own; `connection` a name where there
    is one, else an id.
    """
    found = {"RONDEVU_EVENT": event, "RONDEVU_CONNECTION": connection, "RONDEVU_LABEL": label}
    return {key: value for key, value in found.items() if value is not None}


class UnhandledExceptions:
    """The handler for exceptions that nobody took out of a task or callback: logs and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def install(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.set_exception_handler(self)

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.count += 1
        error = context.get("exception")
        task = context.get("task") or context.get("future")
        name = f" in task {task.get_name()}" if isinstance(task, asyncio.Task) else ""
        logger.error("unhandled%s: %s", name, context.get("message") or error, exc_info=error)


def set_up(level: str, environ: Mapping[str, str] = os.environ, stream: TextIO | None = None) -> None:
    """Send the log of the whole process to the journal or to `stream` (stderr). `level` is a key of `LEVELS`.

    May be called again; the last call counts.
    """
    handler = _make_handler(environ, stream or sys.stderr)
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    set_level(level)


def set_level(level: str) -> None:
    """Change the level of a log that is set up."""
    number = LEVELS[level]
    logging.getLogger().setLevel(number)
    for name in CHATTY:
        logging.getLogger(name).setLevel(number if number != logging.INFO else logging.WARNING)


def _make_handler(environ: Mapping[str, str], stream: TextIO) -> logging.Handler:
    if not _is_journal(environ.get("JOURNAL_STREAM", ""), stream):
        handler: logging.Handler = logging.StreamHandler(stream)
        handler.setFormatter(LineFormatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    elif JournalHandler is not None:
        handler = JournalHandler(SYSLOG_IDENTIFIER="rondevud")
        handler.setFormatter(LineFormatter("%(message)s"))
    else:
        handler = logging.StreamHandler(stream)
        handler.setFormatter(PriorityFormatter("%(name)s: %(message)s"))
    return handler


def _is_journal(journal_stream: str, stream: TextIO) -> bool:
    """Whether `stream` is the very socket systemd connected to the journal (``DEVICE:INODE``), not one put in between."""
    with contextlib.suppress(OSError, ValueError):
        found = os.fstat(stream.fileno())
        return journal_stream == f"{found.st_dev}:{found.st_ino}"
    return False


def _priority(level: int) -> int:
    """The syslog priority of a level of logging."""
    for floor, priority in ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6)):
        if level >= floor:
            return priority
    return 7
