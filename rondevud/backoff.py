"""Delays between attempts that grow, with jitter so that many peers do not come back in step."""

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
