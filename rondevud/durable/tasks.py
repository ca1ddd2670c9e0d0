"""Tasks of one owner: named, kept, and with their errors in the log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterator
from typing import Any

from rondevud.errors import RondevuError

logger = logging.getLogger(__name__)


class Tasks:
    """What `owner` has running beside its main work."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[asyncio.Task[None]]:
        return iter(self._tasks)

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run `work` in a task of that name; an error ends up in the log."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, RondevuError):
            logger.warning("%s: %s: %s", self._owner, task.get_name(), error)
        elif error is not None:
            logger.error("%s: %s failed", self._owner, task.get_name(), exc_info=error)

    def cancel(self) -> None:
        """Cancel all of them, without waiting."""
        for task in self._tasks:
            task.cancel()

    async def finished(self, timeout: float) -> None:
        """Wait until there are none, also none that were begun meanwhile; give up when one takes `timeout` seconds."""
        while self._tasks:
            _, left = await asyncio.wait(self._tasks, timeout=timeout)
            if left:
                return
