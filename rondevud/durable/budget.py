"""The bytes that all queues of the store may hold together: ``[queue] max_store_bytes``.

Outboxes and inboxes draw on one budget, but neither direction can take all of it: an eighth is kept for each, so that
what comes cannot keep programs from sending, nor what waits to be sent the peers. When it is used up, an open channel that
holds nothing in a direction may still take one message there at a time: somebody else's backlog slows it down and does not
stop it. That ends when the limit is passed by an eighth, else strangers could pass it as far as they like; what peers had
under way by then is taken.

Nothing is scanned: each queue tells what it holds by its `Share`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from rondevud.durable.outgoing import Direction

logger = logging.getLogger(__name__)

KEPT = 8
"""One part in so many is kept for either direction."""

LEAST_ROOM = 64 * 1024
"""Bytes below which peers are told that there is no room; a sixteenth of a budget that is smaller than that."""

RELIEF = 4
"""The store counts as full until one part in so many is free again: one line in the log for each time."""


class Budget:
    """What is held, and how much more may be. `limit` is in bytes of payload; None = unlimited."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.unused = 0
        """Bytes in the store that belong to nothing that this daemon uses, and cannot be got rid of by it."""
        self._held = {Direction.IN: 0, Direction.OUT: 0}
        self._waiting: set[Callable[[], object]] = set()
        self._wake_due = False
        self._full = False

    @property
    def held(self) -> int:
        """Bytes in all queues."""
        return self._held[Direction.IN] + self._held[Direction.OUT] + self.unused

    def share(self, direction: Direction) -> Share:
        """What one queue holds; of size 0 at first."""
        return Share(self, direction)

    def room(self, direction: Direction) -> int | None:
        """Bytes that may be added in this direction, below 0 when too much is held already; None = as many as one likes."""
        if self.limit is None:
            return None
        other = Direction.IN if direction is Direction.OUT else Direction.OUT
        return self.limit - self.unused - self._held[direction] - max(self._held[other], self.limit // KEPT)

    @property
    def lenient(self) -> bool:
        """Whether a channel that holds nothing may take one message although there is no room."""
        return self.limit is None or self.held < self.limit + self.limit // KEPT

    def offer(self) -> int | None:
        """Bytes that a peer may be told to send; 0 where nothing but one message may come, -1 where not even that."""
        room = self.room(Direction.IN)
        if room is None or self.limit is None:
            return None
        if room >= min(LEAST_ROOM, self.limit // 16):
            return room
        return 0 if self.lenient else -1

    def set_limit(self, limit: int | None) -> None:
        """Another limit from now on: what is held stays, whoever waits looks again."""
        self.limit = limit
        self._wake()

    def wait(self, look_again: Callable[[], object]) -> None:
        """Call `look_again` once, soon after the room has changed in a way that may matter."""
        self._waiting.add(look_again)

    def change(self, direction: Direction, amount: int) -> None:
        """A share has grown by `amount` bytes, or become smaller."""
        before = self.offer()
        self._held[direction] += amount
        now = self.offer()
        gone = now is not None and before is not None and now <= 0 and now < before
        if amount < 0 or gone:
            self._wake()
        self._tell()

    def _tell(self) -> None:
        """Say in the log when the store becomes full."""
        if self.limit is None:
            return
        if not self._full and self.held >= self.limit - self.limit // KEPT:
            self._full = min(self.room(Direction.IN) or 0, self.room(Direction.OUT) or 0) <= 0
            if self._full:
                logger.warning("the queues hold %d bytes: max_store_bytes (%d) is reached", self.held, self.limit)
        elif self._full and self.held < self.limit - self.limit // RELIEF:
            self._full = False

    def _wake(self) -> None:
        if self._waiting and not self._wake_due:
            self._wake_due = True
            asyncio.get_running_loop().call_soon(self._look_again)

    def _look_again(self) -> None:
        self._wake_due = False
        waiting, self._waiting = self._waiting, set()
        for look_again in waiting:
            look_again()


class Share:
    """What one queue holds of the budget."""

    def __init__(self, budget: Budget, direction: Direction) -> None:
        self._budget = budget
        self._direction = direction
        self._size = 0

    @property
    def room(self) -> int | None:
        """Bytes that may be added; see `Budget.room`."""
        return self._budget.room(self._direction)

    @property
    def lenient(self) -> bool:
        """See `Budget.lenient`."""
        return self._budget.lenient

    def set(self, size: int) -> None:
        """The queue holds so many bytes now."""
        change, self._size = size - self._size, size
        if change:
            self._budget.change(self._direction, change)

    def wait(self, look_again: Callable[[], object]) -> None:
        """See `Budget.wait`."""
        self._budget.wait(look_again)
