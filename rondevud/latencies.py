"""How long messages take, counted into histograms that cost an addition and a search per batch."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque

BOUNDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0, 3_600.0, 86_400.0,
)  # fmt: skip
"""Upper bounds of the buckets, in seconds, the bound included: from one commit to a day of a peer's absence."""

MARKED = 1_024
"""Batches of one channel whose acknowledgement is timed at once; messages beyond are counted as untimed."""


class Histogram:
    """Observations in seconds. `counts` has one entry for each of `BOUNDS` and one for what lies beyond the last."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.sum = 0.0

    def observe(self, seconds: float, times: int = 1) -> None:
        """`times` messages took so long; a span below 0 (a clock was put back) counts as 0."""
        seconds = max(0.0, seconds)
        self.counts[bisect_left(BOUNDS, seconds)] += times
        self.sum += seconds * times


class Latencies:
    """Of all channels of a daemon, since it started."""

    __slots__ = ("accept", "acknowledge", "deliver", "untimed")

    def __init__(self) -> None:
        self.accept = Histogram()
        """From the daemon's reading of a message to its commit; the time that it was held back included."""
        self.acknowledge = Histogram()
        """From that commit to the peer's acknowledgement; messages that were accepted by this run of the daemon only."""
        self.deliver = Histogram()
        """From the commit of a received message to its first delivery to a program."""
        self.untimed = 0
        """Acknowledged messages whose commit was not noted, because too much was waiting then."""


class AcceptTimes:
    """When the batches of one outbox were accepted, until they are acknowledged or removed."""

    __slots__ = ("_batches", "_latencies")

    def __init__(self, latencies: Latencies) -> None:
        self._latencies = latencies
        self._batches: deque[tuple[int, int, float | None]] = deque()
        """The number behind each, how many messages it has, when it was accepted; None: not noted, neighbours merged."""

    def accepted(self, next_: int, count: int, now: float) -> None:
        """A batch of `count` messages, the last one numbered `next_` - 1, was stored. `now` is monotonic."""
        if len(self._batches) < MARKED:
            self._batches.append((next_, count, now))
            return
        if self._batches[-1][2] is None:
            count += self._batches.pop()[1]
        self._batches.append((next_, count, None))

    def acknowledged(self, below: int, now: float) -> None:
        """Everything numbered below was acknowledged."""
        while self._batches and self._batches[0][0] <= below:
            _, count, at = self._batches.popleft()
            if at is None:
                self._latencies.untimed += count
            else:
                self._latencies.acknowledge.observe(now - at, count)

    def removed(self, first: int, next_: int) -> None:
        """The oldest messages, `first` up to `next_`, will not be acknowledged. Holes behind them are not looked for."""
        while self._batches and first <= self._batches[0][0] - self._batches[0][1] and self._batches[0][0] <= next_:
            self._batches.popleft()
