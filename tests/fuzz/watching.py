"""What must not happen while something is fuzzed: errors in logs, exceptions that nobody took, memory that grows."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import Iterator

from tests.fuzz.mutator import resident_bytes

LOGGERS = ("rondevud", "rondevu_client", "aiohttp", "asyncio")


class Watch(logging.Handler):
    """Collects complaints; `check` raises them."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.complaints: list[str] = []
        self._began = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.complaints.append(logging.Formatter("%(name)s: %(message)s").format(record))

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
        assert grown <= most, f"memory has grown by {grown / 2**20:.1f} MiB"


@contextlib.contextmanager
def watching() -> Iterator[Watch]:
    """To be used in a running loop."""
    watch = Watch()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: watch.complaints.append(f"in the loop: {context}"))
    loggers = [logging.getLogger(name) for name in LOGGERS]
    for logger in loggers:
        logger.addHandler(watch)
    try:
        yield watch
    finally:
        gc.unfreeze()
        gc.collect()  # "exception was never retrieved" is said by finalisers
        for logger in loggers:
            logger.removeHandler(watch)
        loop.set_exception_handler(None)
    watch.check()
