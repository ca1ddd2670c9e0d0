"""The end of a session for good: what is queued gets some time, then it is removed and reported."""

from __future__ import annotations

import asyncio
import logging
import math

from rondevud.durable.session import DurableSession
from rondevud.errors import RequestError, StoreError
from rondevud.records import Reason

logger = logging.getLogger(__name__)


class Drain:
    """The time that a session's queues get before it ends."""

    def __init__(self, session: DurableSession) -> None:
        self.until = math.inf
        """When what is not acknowledged is given up, in the time of the loop."""
        self._session = session
        self._timeout: asyncio.Timeout | None = None

    @property
    def running(self) -> bool:
        return self._timeout is not None

    def hurry(self, seconds: float) -> None:
        """Drain for so many seconds from now on at most."""
        self.until = min(self.until, asyncio.get_running_loop().time() + seconds)
        if self._timeout is not None and not self._timeout.expired():
            self._timeout.reschedule(self.until)

    async def run(self) -> None:
        """Close all labels, and wait until the peer has everything or the time is over."""
        for label in list(self._session.channels):
            self._session.close_label(label)
        try:
            async with asyncio.timeout_at(self.until) as self._timeout:
                await self._session.drained()
        except TimeoutError:
            pass
        finally:
            self._timeout = None


async def store_end(session: DurableSession, name: str) -> None:
    """Take what was not acknowledged out of the store, and remember that the session is over.

    A store that fails keeps nothing open: it is logged, for `name`.
    """
    for channel in list(session.channels.values()):
        try:
            await channel.remove_all(Reason.PURGED, keep_closing=False)
        except (RequestError, StoreError) as error:
            logger.warning("%s: closing: messages of %r stay in the store: %s", name, channel.label, error)
    try:
        await session.mark_closed()
    except (RequestError, StoreError) as error:
        logger.warning("%s: closing: the end is not stored: %s", name, error)
