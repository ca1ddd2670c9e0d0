"""Who wants to know when little is left of what is under way to the peer (sans-I/O)."""

from __future__ import annotations

from collections.abc import Callable


class BufferWatch:
    """`heard` is called with the bytes under way each time they have fallen from above `threshold` to it or below."""

    def __init__(self, threshold: int, heard: Callable[[int], None], closed: Callable[[BufferWatch], None]) -> None:
        self.threshold = threshold
        self._heard = heard
        self._closed = closed
        self._above = False

    def see(self, amount: int) -> None:
        """So many bytes are under way."""
        if amount > self.threshold:
            self._above = True
        elif self._above:
            self._above = False
            self._heard(amount)

    def reset(self) -> None:
        """There is no link: what was under way is queued again, and has not fallen."""
        self._above = False

    def close(self) -> None:
        """Nothing more is heard. Idempotent."""
        self._closed(self)
