"""What both stores share: their interface, their limits, and the rules that need no table.

Rules that `rondevud.records` leaves to the stores:

- A closing message (payload None) is a message in every count, of size 0; it neither expires nor is it trimmed.
- ``in_count`` counts the rows of the inbox, gaps included, so that it says whether something waits.
- A message has expired when its age is at least its ``max_age``.
- `ProducerRange`s stand in the order of the producers' ids; sessions in that of their connection ids, channels of ids.
- A range of removed numbers that is cut keeps its count, unless each of its numbers was a message.
- `SetEpoch` with a `floor` above ``next`` writes the `restart` removal that `Put` would write.
- A row of the inbox that is damaged or lacking stays as a gap; its number is 0 where nobody knows it.
- `ForgetProducers` forgets `SLICE` producers at most; an answer of that many says that there may be more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias, TypeVar

from rondevud.errors import StoreConflict, StoreError, StoreFailed
from rondevud.records import (
    PAGE_BYTES,
    PAGE_MESSAGES,
    REJECTED_KEPT,
    SLICE,
    Operation,
    Payload,
    ProducerRange,
    Reason,
    Removal,
    Removed,
    payload_sizes,
)

Result = TypeVar("Result")

#: Called with the result of an operation, or with the error that kept it from being done.
Done: TypeAlias = Callable[[Result | StoreError], None]


class Store(Protocol):
    """A store in use: `SqliteStore` or `MemoryStore`. All methods belong to the event loop's thread."""

    @property
    def failing(self) -> StoreFailed | None:
        """Why commits fail at present; None while they do not."""

    def submit(self, operation: Operation[Result], done: Done[Result] | None = None) -> None:
        """Queue an operation. Never blocks and never calls `done` before it returns.

        `done` is called in the order of submission, after the commit that made the operation durable. Errors are values:
        `StoreConflict` for an operation that does not fit what is stored, `StoreFailed` for one that could not be
        committed.
        """

    async def execute(self, operation: Operation[Result]) -> Result:
        """Submit an operation and wait for its result. Raises `StoreError`."""

    def alive(self) -> float:
        """Seconds since the store last made progress while it has work; 0.0 when it has none."""

    async def close(self) -> None:
        """Commit everything submitted, within a bounded time, and release the store. Idempotent."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one operation; see the constants of `rondevud.records`."""

    slice_rows: int = SLICE
    page_messages: int = PAGE_MESSAGES
    page_bytes: int = PAGE_BYTES


class Taken(NamedTuple):
    """What is told of messages that leave the outbox: of one, or of `messages` with consecutive numbers."""

    seq: int
    size: int
    producer: int
    producer_seq: int
    messages: int = 1


def count_messages(taken: Iterable[Taken]) -> int:
    return sum(item.messages for item in taken)


def sizes_of(payloads: Sequence[Payload]) -> list[int]:
    """Bytes of each payload. Raises `StoreConflict` for text that UTF-8 cannot carry."""
    try:
        return payload_sizes(payloads)
    except UnicodeEncodeError as error:
        raise not_unicode(error) from None


def encode_text(text: str) -> bytes:
    """Raises `StoreConflict` for text that UTF-8 cannot carry (a lone surrogate)."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise not_unicode(error) from None


def not_unicode(error: UnicodeEncodeError) -> StoreConflict:
    return StoreConflict(f"text that is not valid Unicode: {error.reason} at {error.start}")


def check_closing(payloads: tuple[Payload, ...]) -> None:
    """Raises `StoreConflict` when a closing message is not the last one."""
    if None in payloads[:-1]:
        raise StoreConflict("a closing message with messages behind it")


def check_numbers(*numbers: int) -> None:
    """Raises `StoreConflict` for a number or count that is negative or does not fit a row."""
    for number in numbers:
        if not 0 <= number < 2**63:
            raise StoreConflict(f"{number} is not between 0 and 2**63 - 1")


def expiry(moment: float, max_age: float) -> float:
    """The time on the clock of `moment` from which a message stored at it has expired."""
    return moment + max_age if max_age > 0 else float("-inf")


def cut_removal(removal: Removal, first: int) -> Removal:
    """The part of a removal from `first` on; its count is exact if each number was a message, else that of the whole."""
    if first <= removal.first:
        return removal
    messages = removal.messages
    if messages is not None:
        messages = min(messages, removal.next - first)
    return removal._replace(first=first, messages=messages)


def join_removals(left: Removal, right: Removal) -> Removal | None:
    """Both as one removal if they are neighbours with one reason."""
    if left.next != right.first or left.reason is not right.reason:
        return None
    known = left.messages is not None and right.messages is not None
    messages = (left.messages or 0) + (right.messages or 0) if known else None
    return Removal(left.first, right.next, left.reason, messages)


def oldest_over(
    rows: Iterable[tuple[int, int]], count: int, size: int, max_count: int | None, max_bytes: int | None
) -> int:
    """The row behind the oldest ones of an inbox that exceed its limits; 0 = none do.

    `rows` are numbers and payload bytes, the oldest first; `count` and `size` are those of all of them.
    """
    behind = 0
    for row, weight in rows:
        if (max_count is None or count <= max_count) and (max_bytes is None or size <= max_bytes):
            break
        behind, count, size = row + 1, count - 1, size - weight
    return behind


def producer_ranges(rows: Iterable[Taken]) -> tuple[ProducerRange, ...]:
    """The producers' view of messages that leave together."""
    return join_ranges(
        ProducerRange(row.producer, row.producer_seq, row.producer_seq + row.messages - 1, row.messages)
        for row in rows
        if row.producer
    )


def join_ranges(ranges: Iterable[ProducerRange]) -> tuple[ProducerRange, ...]:
    """One range for each producer."""
    joined: dict[int, ProducerRange] = {}
    for new in ranges:
        old = joined.get(new.producer)
        if old is not None:
            first, last = min(old.first, new.first), max(old.last, new.last)
            new = ProducerRange(new.producer, first, last, old.messages + new.messages)  # noqa: PLW2901
        joined[new.producer] = new
    return tuple(joined[producer] for producer in sorted(joined))


def group_removed(rows: Iterable[Taken], reason: Reason) -> list[Removed]:
    """Messages in the order of their numbers as ranges of consecutive ones."""
    runs: list[list[Taken]] = []
    for row in rows:
        if runs and runs[-1][-1].seq + runs[-1][-1].messages == row.seq:
            runs[-1].append(row)
        else:
            runs.append([row])
    return [
        Removed(
            run[0].seq,
            run[-1].seq + run[-1].messages,
            reason,
            sum(row.messages for row in run),
            sum(row.size for row in run),
            producer_ranges(run),
        )
        for run in runs
    ]


def merge_rejected(
    known: tuple[tuple[int, str], ...], added: tuple[tuple[int, str], ...], last_seq: int
) -> tuple[tuple[int, str], ...]:
    """Rejections among the last `REJECTED_KEPT` numbers, in their order; a later word on a number replaces an older one."""
    merged = dict(known)
    merged.update(added)
    return tuple(sorted(item for item in merged.items() if item[0] > last_seq - REJECTED_KEPT))[-REJECTED_KEPT:]
