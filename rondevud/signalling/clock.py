"""The signalling server's clock, learnt from its answers, so that a wrong local clock does no harm.

Every answer with a ``Date`` bounds the difference between the server's clock and a steady local one: the server wrote a
second ``D`` at some moment between sending and receiving, so the difference lies in [D - received, D + 1 - sent]. The
bounds of several answers are intersected; when they contradict each other (a clock was set, or one runs faster), the
latest answer wins.
"""

from __future__ import annotations

import time
from collections.abc import Callable


def boottime() -> float:
    """Seconds since the boot, time in suspend included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class ServerClock:
    def __init__(self, steady: Callable[[], float] = boottime, wall: Callable[[], float] = time.time) -> None:
        self._steady = steady
        self._wall = wall
        self._bounds: tuple[float, float] | None = None

    @property
    def known(self) -> bool:
        return self._bounds is not None

    def steady(self) -> float:
        return self._steady()

    def learn(self, earliest: float, latest: float, *, sent: float, received: float) -> None:
        """The server's clock was between `earliest` and `latest` at some moment between `sent` and `received` (steady)."""
        low, high = earliest - received, latest - sent
        if self._bounds is not None:
            old_low, old_high = self._bounds
            if max(low, old_low) <= min(high, old_high):
                low, high = max(low, old_low), min(high, old_high)
        self._bounds = (low, high)

    def now(self) -> float:
        """The best guess, seconds since 1970; the local wall clock as long as nothing was learnt."""
        if self._bounds is None:
            return self._wall()
        return self._steady() + sum(self._bounds) / 2

    def remaining(self, moment: float) -> float | None:
        """Seconds until the server's clock shows `moment`, rather too few than too many; None when nothing was learnt."""
        if self._bounds is None:
            return None
        return moment - (self._steady() + self._bounds[1])
