"""What must not happen while something is fuzzed: errors in logs, exceptions that nobody took, memory that grows."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections import deque
from collections.abc import Iterator

from tests.fuzz.mutator import resident_bytes

LOGGERS = ("rondevud", "rondevu_client", "aiohttp", "asyncio")


class Watch(logging.Handler):
    """Collects complaints; `check` raises them. It is the only one that hears the log: others keep what they hear."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        self.complaints: list[str] = []
        self.said: deque[str] = deque(maxlen=8)
        """The last lines of the log."""
        self._began = self._grown = 0

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        self.said.append(line)
        if record.levelno >= logging.ERROR:
            self.complaints.append(line)

    def check(self) -> None:
        """Whatever was complained of so far."""
        if self.complaints:
            complaints, self.complaints = self.complaints, []
            raise AssertionError("\n".join(complaints))

    def begin_memory(self) -> None:
        """From here on memory is not to grow: caches are full, and what is loaded late is loaded.

        What there is by now is not looked through by the collector again until the end: it is most of the work.
        """
        gc.collect()
        gc.freeze()
        self._began = resident_bytes()

    def check_memory(self, most: int) -> None:
        """At most `most` bytes more than at the beginning."""
        gc.collect()
        grown = resident_bytes() - self._began
        self._grown = max(self._grown, grown)
        assert grown <= most, f"memory has grown by {grown / 2**20:.1f} MiB"

    def report(self) -> None:
        """What the run had to say."""
        print(f"memory grew by {self._grown / 2**20:.1f} MiB; the log said last:", *self.said, sep="\n  ")


@contextlib.contextmanager
def watching() -> Iterator[Watch]:
    """To be used in a running loop."""
    watch = Watch()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: watch.complaints.append(f"in the loop: {context}"))
    loggers = [logging.getLogger(name) for name in LOGGERS]
    for logger in loggers:
        logger.addHandler(watch)
        logger.propagate = False
    try:
        yield watch
    finally:
        gc.unfreeze()
        gc.collect()  # "exception was never retrieved" is said by finalisers
        for logger in loggers:
            logger.removeHandler(watch)
            logger.propagate = True
        watch.report()
        loop.set_exception_handler(None)
    watch.check()
