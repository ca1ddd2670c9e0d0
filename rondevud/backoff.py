"""Attempts that fail: delays that grow, with jitter so that many peers do not come back in step, and what is news."""

from __future__ import annotations

from collections.abc import Callable, Iterator


def delays(base: float, maximum: float, jitter: float, random: Callable[[], float]) -> Iterator[float]:
    """Seconds to wait before attempt 1, 2, …, without end: ``min(base * 2**n, maximum)``, each ± the share `jitter`.

    `random` gives numbers in [0, 1), as `random.random` does. Start again with a new generator.
    """
    delay = min(base, maximum)
    while True:
        yield delay * (1 + jitter * (2 * random() - 1))
        # Doubling the delay and not the exponent: 2**n leaves the range of floats after a night without a network.
        delay = min(delay * 2, maximum)


class Trouble:
    """What keeps failing at one piece of work: when to try again, and whether there is anything new to tell."""

    def __init__(self, new_delays: Callable[[], Iterator[float]]) -> None:
        """`new_delays` gives the delays of attempts that fail one after another."""
        self.message: str | None = None
        """Why the last attempt failed; None when it did not."""
        self._new_delays = new_delays
        self._delays = new_delays()

    def add(self, error: Exception) -> bool:
        """An attempt has failed; whether that is news: the one before did not, or for another reason."""
        before, self.message = self.message, str(error) or repr(error)
        return self.message != before

    def delay(self, error: Exception) -> float:
        """Seconds until the next attempt: no fewer than `error` asks for in its ``retry_after``, if it has one."""
        return max(next(self._delays), getattr(error, "retry_after", None) or 0.0)

    def end(self) -> bool:
        """An attempt has succeeded; whether that is news. Idempotent."""
        if self.message is None:
            return False
        self.message = None
        self._delays = self._new_delays()
        return True
