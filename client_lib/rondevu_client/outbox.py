"""What a program sends on one channel: numbers, the window, and what the daemon has decided. No I/O.

A message waits for room in the window, gets its number when it is first sent, and is undecided until an `accepted` passes
it. From then on only its number is kept, until the peer has acknowledged it, for `flush`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import accumulate, takewhile
from typing import NamedTuple, TypeAlias

from rondevu_client.errors import MessageRejected, MessagesRemoved, RemovedRange
from rondevu_client.messages import SEND_WINDOW_BYTES

FRAME_BYTES = 64 * 1024
"""Payload bytes after which a send frame ends; it holds one message at least."""

FRAME_MESSAGES = 256

REMOVED_KEPT = 1_024
"""Ranges of removed numbers kept for `flush`; more are only counted."""

Payload: TypeAlias = str | bytes


class Entry:
    """Messages that are sent together. The future's result is the number of the last one, once all are decided."""

    __slots__ = ("_error", "_last", "_taken", "_undecided", "future", "max_age", "payloads", "size", "sizes")

    def __init__(
        self, payloads: list[Payload], sizes: list[int], max_age: float | None, future: asyncio.Future[int]
    ) -> None:
        self.payloads = payloads
        self.sizes = sizes
        self.max_age = max_age
        self.future = future
        self.size = sum(sizes)
        """Bytes of those that have no number so far."""
        self._taken = 0
        self._undecided = len(payloads)
        self._last = 0
        self._error: MessageRejected | None = None

    def __len__(self) -> int:
        """How many have no number so far."""
        return len(self.payloads) - self._taken

    def fitting(self, count: int, size: int) -> int:
        """How many of them are within `count` and `size`, from the first one on that has no number."""
        if len(self) <= count and self.size <= size:
            return len(self)
        sizes = accumulate(self.sizes[self._taken : self._taken + max(0, count)])
        return sum(1 for _ in takewhile(lambda total: total <= size, sizes))

    def take(self, count: int, first: int) -> _Run:
        """Give so many of them the numbers from `first` on."""
        end = self._taken + count
        whole = count == len(self.payloads)
        sizes = self.sizes if whole else self.sizes[self._taken : end]
        run = _Run(first, self.payloads if whole else self.payloads[self._taken : end], sizes, self)
        self._taken = end
        self.size -= run.size
        return run

    def decide(self, count: int, last: int, error: MessageRejected | None = None) -> None:
        """So many more are decided, up to the number `last`."""
        self._undecided -= count
        self._last = max(last, self._last)
        self._error = self._error or error
        if self._undecided or self.future.done():
            return
        if self._error is None:
            self.future.set_result(self._last)
        else:
            self.future.set_exception(self._error)


class _Run:
    """Messages of one entry with consecutive numbers that the daemon has not decided."""

    __slots__ = ("entry", "first", "payloads", "size", "sizes")

    def __init__(self, first: int, payloads: list[Payload], sizes: list[int], entry: Entry) -> None:
        self.first = first
        self.payloads = payloads
        self.sizes = sizes
        self.size = sum(sizes)
        self.entry = entry

    @property
    def last(self) -> int:
        return self.first + len(self.payloads) - 1

    def part(self, start: int, end: int) -> _Run:
        """Those at the places ``start … end - 1``."""
        return _Run(self.first + start, self.payloads[start:end], self.sizes[start:end], self.entry)


class SendFrame(NamedTuple):
    seq: int
    payloads: list[Payload]
    max_age: float | None


class Outbox:
    def __init__(self) -> None:
        self.last_given = 0
        """The highest number used, by this process or one before it."""
        self.last_accepted = 0
        """The highest number of this process that the daemon has accepted; 0 = none."""
        self.sent_upto = 0
        """The highest number up to which the daemon has handed everything to a data channel, as far as it was asked."""
        self.removed_known = 0
        self._first_own: int | None = None
        self._rejected_earlier: frozenset[int] = frozenset()
        self._window = 1
        self._waiting: deque[Entry] = deque()
        self._undecided: deque[_Run] = deque()
        """In the order of their numbers."""
        self._undecided_count = 0
        self._undecided_bytes = 0
        self._never_decided: int | None = None
        """The first number of which nobody will say any more what became of it."""
        self._unacknowledged: list[list[int]] = []
        self._removed: list[RemovedRange] = []
        self._removed_unnumbered = 0

    @property
    def undecided(self) -> int:
        """Messages the daemon has not decided, those that wait for the window included."""
        return self._undecided_count + sum(map(len, self._waiting))

    @property
    def undecided_bytes(self) -> int:
        return self._undecided_bytes + sum(entry.size for entry in self._waiting)

    @property
    def unacknowledged(self) -> int:
        """Accepted messages the peer has not acknowledged."""
        return sum(last - first + 1 for first, last in self._unacknowledged)

    @property
    def unsent(self) -> int:
        """Accepted messages that were not handed to a data channel, acknowledged or removed."""
        return sum(max(0, last - max(first, self.sent_upto + 1) + 1) for first, last in self._unacknowledged)

    def futures(self) -> list[asyncio.Future[int]]:
        """Of all messages that are not decided; each once."""
        entries = dict.fromkeys([*(run.entry for run in self._undecided), *self._waiting])
        return [entry.future for entry in entries]

    def put(self, entry: Entry) -> None:
        self._waiting.append(entry)

    def take(self) -> list[SendFrame]:
        """What fits into the window now, numbered and packed. Messages whose sender has gone away are left out."""
        runs: list[_Run] = []
        while self._waiting:
            entry = self._waiting[0]
            if entry.future.done():
                self._waiting.popleft()
                continue
            room, room_bytes = self._window - self._undecided_count, SEND_WINDOW_BYTES - self._undecided_bytes
            count = entry.fitting(room, room_bytes) or int(not self._undecided_count)
            if not count:
                break
            run = entry.take(count, self.last_given + 1)
            self.last_given = run.last
            self._keep(run)
            runs.append(run)
            if not len(entry):
                self._waiting.popleft()
        return _pack(runs)

    def _keep(self, run: _Run) -> None:
        self._undecided.append(run)
        self._undecided_count += len(run.payloads)
        self._undecided_bytes += run.size

    def begin(
        self, last_seq: int, rejected: dict[int, str], removed: int, acknowledged: int, window: int
    ) -> list[SendFrame]:
        """Attached, for the first time or again; what has to be sent again, with the numbers it had.

        What the daemon decided while nobody listened is settled: rejected or else accepted. Where it has forgotten what it
        had accepted (its store was lost or in memory), what the peer had not acknowledged is lost.
        """
        first_time = self._first_own is None
        if self._first_own is None:
            self._first_own = last_seq + 1
            self._rejected_earlier = frozenset(rejected)
        self.last_given = max(last_seq, self.last_given)
        self._window = window
        for seq in sorted(rejected):
            if seq <= last_seq:
                self.reject(seq, rejected[seq], "rejected while the socket was closed")
        self.accept(last_seq)
        self.acknowledge(acknowledged)
        if not first_time:
            self._remove_unnumbered(max(0, removed - self.removed_known))
        if last_seq < self.last_accepted:
            self.remove(last_seq + 1, self.last_accepted, "lost")
        self.removed_known = removed
        return _pack(self._undecided)

    def accept(self, upto: int) -> None:
        while self._undecided and self._undecided[0].first <= upto:
            run = self._undecided.popleft()
            if run.last > upto:
                self._undecided.appendleft(run.part(upto + 1 - run.first, len(run.payloads)))
                run = run.part(0, upto + 1 - run.first)
            self._note_unacknowledged(run.first, run.last)
            self.last_accepted = run.last
            self._settle(run)

    def reject(self, seq: int, code: str, message: str) -> None:
        place = next((n for n, run in enumerate(self._undecided) if run.first <= seq <= run.last), None)
        if place is None:
            return
        run = self._undecided[place]
        at = seq - run.first
        del self._undecided[place]
        for part in (run.part(at + 1, len(run.payloads)), run.part(0, at)):
            if part.payloads:
                self._undecided.insert(place, part)
        self._settle(run.part(at, at + 1), MessageRejected(seq, code, message))

    def _settle(self, run: _Run, error: MessageRejected | None = None) -> None:
        """What is not in `_undecided` any more is decided."""
        self._undecided_count -= len(run.payloads)
        self._undecided_bytes -= run.size
        run.entry.decide(len(run.payloads), run.last, error)

    def remove(self, first: int, last: int, reason: str) -> None:
        """Of these numbers, what was accepted and is not settled otherwise will not reach the peer."""
        kept: list[list[int]] = []
        for low, high in self._unacknowledged:
            gone_low, gone_high = max(low, first), min(high, last)
            if gone_low > gone_high:
                kept.append([low, high])
                continue
            if low < gone_low:
                kept.append([low, gone_low - 1])
            if high > gone_high:
                kept.append([gone_high + 1, high])
            self.removed_known += gone_high - gone_low + 1
            self._note_removed(gone_low, gone_high, reason)
        self._unacknowledged = kept
        earlier = range(first, min(last + 1, self._first_own or 1))
        self.removed_known += len(earlier) - sum(seq in earlier for seq in self._rejected_earlier)

    def _remove_unnumbered(self, count: int) -> None:
        """So many were removed while nobody listened; where that is all there was, nothing is waited for any more."""
        self._removed_unnumbered += count
        if self._first_own == 1 and count >= self.unacknowledged:
            self._unacknowledged.clear()

    def acknowledge(self, upto: int) -> None:
        while self._unacknowledged and self._unacknowledged[0][0] <= upto:
            if self._unacknowledged[0][1] <= upto:
                del self._unacknowledged[0]
            else:
                self._unacknowledged[0][0] = upto + 1

    def is_decided(self, upto: int) -> bool:
        """Whether the daemon has decided every number up to that one, of messages whose senders have gone away, too."""
        first = self._undecided[0].first if self._undecided else self._never_decided
        return first is None or first > upto

    def is_acknowledged(self, upto: int) -> bool:
        """Whether every accepted message up to that number is acknowledged or removed."""
        return not self._unacknowledged or self._unacknowledged[0][0] > upto

    def is_sent(self, upto: int) -> bool:
        """Whether every accepted message up to that number was handed to a data channel, acknowledged or removed."""
        return not any(max(low, self.sent_upto + 1) <= min(high, upto) for low, high in self._unacknowledged)

    def take_removed(self) -> MessagesRemoved | None:
        """What was removed since this was last asked."""
        if not self._removed and not self._removed_unnumbered:
            return None
        error = MessagesRemoved(self._removed, self._removed_unnumbered)
        self._removed, self._removed_unnumbered = [], 0
        return error

    def fail(self, error: Exception) -> None:
        """Nothing more will be decided here: every sender gets `error`."""
        for future in self.futures():
            if not future.done():
                future.set_exception(error)
        self._never_decided = self._undecided[0].first if self._undecided else None
        self._undecided.clear()
        self._waiting.clear()
        self._undecided_count = self._undecided_bytes = 0

    def _note_removed(self, first: int, last: int, reason: str) -> None:
        if self._removed and self._removed[-1].reason == reason and self._removed[-1].last + 1 == first:
            self._removed[-1] = RemovedRange(self._removed[-1].first, last, reason)
        elif len(self._removed) < REMOVED_KEPT:
            self._removed.append(RemovedRange(first, last, reason))
        else:
            self._removed_unnumbered += last - first + 1

    def _note_unacknowledged(self, first: int, last: int) -> None:
        if self._unacknowledged and self._unacknowledged[-1][1] == first - 1:
            self._unacknowledged[-1][1] = last
        else:
            self._unacknowledged.append([first, last])


def _pack(runs: Iterable[_Run]) -> list[SendFrame]:
    """Neighbours with one age limit share a frame."""
    frames: list[SendFrame] = []
    size = 0
    for run in runs:
        for part in _bounded(run):
            last = frames[-1] if frames else None
            if (
                last is not None
                and last.max_age == run.entry.max_age
                and last.seq + len(last.payloads) == part.first
                and len(last.payloads) + len(part.payloads) <= FRAME_MESSAGES
                and size + part.size <= FRAME_BYTES
            ):
                last.payloads.extend(part.payloads)
                size += part.size
            else:
                frames.append(SendFrame(part.first, list(part.payloads), run.entry.max_age))
                size = part.size
    return frames


def _bounded(run: _Run) -> Iterator[_Run]:
    """The run in parts that fit into a frame each, or are one message."""
    if len(run.payloads) == 1 or (len(run.payloads) <= FRAME_MESSAGES and run.size <= FRAME_BYTES):
        yield run
        return
    start = size = 0
    for place, length in enumerate(run.sizes):
        if place > start and (place - start == FRAME_MESSAGES or size + length > FRAME_BYTES):
            yield run.part(start, place)
            start, size = place, 0
        size += length
    yield run.part(start, len(run.payloads))
