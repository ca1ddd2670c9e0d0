"""What a program sends on one channel: numbers, the window, and what the daemon has decided. No I/O.

A message waits for room in the window, gets its number when it is first sent, and is undecided until an `accepted` passes
it. From then on only its number is kept, until the peer has acknowledged it, for `flush`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
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
    """One message on its way into the daemon. The future's result is its number."""

    __slots__ = ("data", "future", "max_age", "size")

    def __init__(self, data: Payload, size: int, max_age: float | None, future: asyncio.Future[int]) -> None:
        self.data = data
        self.size = size
        self.max_age = max_age
        self.future = future


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
        self._undecided: dict[int, Entry] = {}
        self._undecided_bytes = 0
        self._never_decided: int | None = None
        """The first number of which nobody will say any more what became of it."""
        self._unacknowledged: list[list[int]] = []
        self._removed: list[RemovedRange] = []
        self._removed_unnumbered = 0

    @property
    def undecided(self) -> int:
        """Messages the daemon has not decided, those that wait for the window included."""
        return len(self._waiting) + len(self._undecided)

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
        """Of every message that is not decided."""
        return [entry.future for entry in (*self._undecided.values(), *self._waiting)]

    def put(self, entry: Entry) -> None:
        self._waiting.append(entry)

    def take(self) -> list[SendFrame]:
        """What fits into the window now, numbered and packed. Messages whose sender has gone away are left out."""
        entries: list[Entry] = []
        while self._waiting:
            entry = self._waiting[0]
            if entry.future.done():
                self._waiting.popleft()
                continue
            if self._undecided and (
                len(self._undecided) >= self._window or self._undecided_bytes + entry.size > SEND_WINDOW_BYTES
            ):
                break
            self._waiting.popleft()
            self.last_given += 1
            self._undecided[self.last_given] = entry
            self._undecided_bytes += entry.size
            entries.append(entry)
        return _pack(zip(range(self.last_given - len(entries) + 1, self.last_given + 1), entries, strict=True))

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
        for seq in [seq for seq in self._undecided if seq <= last_seq]:
            if seq in rejected:
                self.reject(seq, rejected[seq], "rejected while the socket was closed")
        self.accept(last_seq)
        self.acknowledge(acknowledged)
        if not first_time:
            self._remove_unnumbered(max(0, removed - self.removed_known))
        if last_seq < self.last_accepted:
            self.remove(last_seq + 1, self.last_accepted, "lost")
        self.removed_known = removed
        return _pack(self._undecided.items())

    def accept(self, upto: int) -> None:
        while self._undecided and (seq := next(iter(self._undecided))) <= upto:
            entry = self._settle(seq)
            self._note_unacknowledged(seq)
            self.last_accepted = seq
            if not entry.future.done():
                entry.future.set_result(seq)

    def reject(self, seq: int, code: str, message: str) -> None:
        if seq in self._undecided:
            entry = self._settle(seq)
            if not entry.future.done():
                entry.future.set_exception(MessageRejected(seq, code, message))

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
        first = next(iter(self._undecided), self._never_decided)
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
        for entry in [*self._undecided.values(), *self._waiting]:
            if not entry.future.done():
                entry.future.set_exception(error)
        self._never_decided = next(iter(self._undecided), None)
        self._undecided.clear()
        self._waiting.clear()
        self._undecided_bytes = 0

    def _settle(self, seq: int) -> Entry:
        entry = self._undecided.pop(seq)
        self._undecided_bytes -= entry.size
        return entry

    def _note_removed(self, first: int, last: int, reason: str) -> None:
        if self._removed and self._removed[-1].reason == reason and self._removed[-1].last + 1 == first:
            self._removed[-1] = RemovedRange(self._removed[-1].first, last, reason)
        elif len(self._removed) < REMOVED_KEPT:
            self._removed.append(RemovedRange(first, last, reason))
        else:
            self._removed_unnumbered += last - first + 1

    def _note_unacknowledged(self, seq: int) -> None:
        if self._unacknowledged and self._unacknowledged[-1][1] == seq - 1:
            self._unacknowledged[-1][1] = seq
        else:
            self._unacknowledged.append([seq, seq])


def _pack(entries: Iterable[tuple[int, Entry]]) -> list[SendFrame]:
    """Neighbours with one age limit share a frame."""
    frames: list[SendFrame] = []
    size = 0
    for seq, entry in entries:
        last = frames[-1] if frames else None
        if (
            last is not None
            and last.max_age == entry.max_age
            and last.seq + len(last.payloads) == seq
            and len(last.payloads) < FRAME_MESSAGES
            and size + entry.size <= FRAME_BYTES
        ):
            last.payloads.append(entry.data)
            size += entry.size
        else:
            frames.append(SendFrame(seq, [entry.data], entry.max_age))
            size = entry.size
    return frames
