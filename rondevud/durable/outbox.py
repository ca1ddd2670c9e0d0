"""The outbox of a channel: what may enter it, what leaves it, and who is told.

Submissions wait in `_parked`, in order, until there is room. While the channel makes progress a full outbox holds its
producers back whatever the policy says: nothing is dropped for speed. When it makes none, the policy decides: ``reject``
refuses what is parked, ``drop_oldest`` stores it and removes the oldest, ``block`` goes on waiting.

The outbox is full, too, when all queues together hold what the store may hold (`rondevud.durable.budget`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from rondevud.durable.budget import Budget, Share
from rondevud.durable.outgoing import Direction
from rondevud.durable.producer import Producer, Submission
from rondevud.durable.settings import OutboxLimits
from rondevud.errors import StoreError, StoreFailed
from rondevud.latencies import AcceptTimes, Latencies
from rondevud.records import (
    Acknowledged,
    ChannelRecord,
    Expire,
    FindExpiry,
    NextExpiry,
    Operation,
    Payload,
    PutResult,
    Reason,
    Removed,
    RemoveResult,
    Stamp,
    Trim,
    payload_size,
)

PROGRESS = 5.0
"""Seconds without an acknowledgement after which a channel with a link counts as making no progress."""

EXPIRY_LATEST = 60.0
"""Seconds between two looks for expired messages at most: timers stand still while the machine sleeps, ages do not."""


class Host(Protocol):
    """What an outbox needs of its channel."""

    @property
    def open(self) -> bool:
        """Whether there is a link on which the channel flows."""

    @property
    def refusal(self) -> tuple[str, str] | None:
        """Code and message with which everything new is refused at present; None = it is taken."""

    def now(self) -> float: ...

    def stamp(self) -> Stamp: ...

    def execute(self, operation: Operation[Any], done: Callable[[Any], None] | None = None) -> None: ...

    def put(
        self, payloads: tuple[Payload, ...], max_age: float | None, producer: Producer, first_seq: int
    ) -> Operation[PutResult]: ...

    async def run(self, operation: Operation[Any]) -> Any:
        """`execute`, and wait. Raises `RequestError` when the store fails."""

    def event(self, name: str, data: dict[str, Any]) -> None: ...

    def count(self, counter: str, amount: int = 1) -> None: ...


class Outbox:
    """Counts what is stored and not acknowledged, and keeps it within `limits`."""

    def __init__(
        self,
        record: ChannelRecord,
        limits: OutboxLimits,
        host: Host,
        share: Share | None = None,
        latencies: Latencies | None = None,
    ) -> None:
        """`share` is its part of what the store may hold; without one that is unlimited. `latencies` hear of times."""
        self.limits = limits
        self.count = record.out_count
        self.size = record.out_bytes
        self.producers: dict[int, Producer] = {}
        self._id = record.id
        self._host = host
        self._handed = 0
        self._latencies = latencies or Latencies()
        self._accept_times = AcceptTimes(self._latencies)
        self._storing_count = 0
        self._storing_size = 0
        self._parked: deque[Submission] = deque()
        self._progress_at = float("-inf")
        self._look: asyncio.TimerHandle | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._expiry_at = float("inf")
        self._drained: list[asyncio.Future[None]] = []
        self._share = share or Budget().share(Direction.OUT)
        self._share.set(self.size)
        if self.count:
            self._find_expiry()

    @property
    def parked(self) -> int:
        """Submissions that wait for room."""
        return len(self._parked)

    # --- in --------------------------------------------------------------------------------------------------------

    def submit(self, submission: Submission) -> None:
        """Take messages of a producer: store them, park them, or refuse them."""
        submission.submitted_at = self._host.now()
        self._parked.append(submission)
        self.settle()

    def settle(self) -> None:
        """Do with parked submissions what can be done now; called whenever something changed."""
        while self._parked:
            submission = self._parked[0]
            if not submission.producer.live:
                self._parked.popleft()
                continue
            refusal = self._host.refusal
            if refusal is not None:
                self._parked.popleft()
                submission.producer.refuse(submission, *refusal)
                continue
            largest = self._never_fits(submission)
            if largest is not None:
                self._refuse_largest(submission, largest)
                continue
            fitting = self._fitting(submission)
            if 0 < fitting < len(submission.payloads):
                self._store(submission.split(fitting))
            elif fitting:
                self._store(self._parked.popleft())
            elif self._holds_back():
                self._share.wait(self.settle)
                return
            else:
                most = self._most(submission)  # what is larger than the outbox goes through it in parts
                parted = self.limits.overflow == "drop_oldest" and 0 < most < len(submission.payloads)
                self._overflow(submission.split(most) if parted else self._parked.popleft())

    def _never_fits(self, submission: Submission) -> int | None:
        """The place of its first message that is over the limit all by itself; None = there is none."""
        limit = self.limits.max_bytes
        if limit is None or submission.size <= limit:
            return None
        sizes = map(payload_size, submission.payloads)
        return next((place for place, size in enumerate(sizes) if size > limit), None)

    def _refuse_largest(self, submission: Submission, place: int) -> None:
        """Refuse the message at `place` of the first parked submission; what stands before it comes first."""
        if place:
            self._parked.appendleft(submission.split(place))
            return
        alone = submission.split(1) if len(submission.payloads) > 1 else self._parked.popleft()
        text = f"a message of {alone.size} bytes is over max_queue_bytes ({self.limits.max_bytes})"
        alone.producer.refuse(alone, "queue_full", text)

    def _fitting(self, submission: Submission) -> int:
        """How many messages of it fit, from the first on."""
        return min(self._fitting_here(submission), self._fitting_in_store(submission))

    def _fitting_here(self, submission: Submission) -> int:
        """The same by this outbox's own limits."""
        return self._room(submission, self.count + self._storing_count, self.size + self._storing_size)

    def _fitting_in_store(self, submission: Submission) -> int:
        """The same by what the store may hold; what others have in it never stops a channel that is open and empty."""
        room = self._share.room
        if room is None or submission.size <= room:
            return len(submission.payloads)
        alone = self._share.lenient and self._host.open and not self.busy
        return _count_within(submission.payloads, room) or int(alone)

    def _most(self, submission: Submission) -> int:
        """How many messages of it would fit, from the first on, if nothing else were in this outbox."""
        most, room = self._room(submission, 0, 0), self._share.room
        return most if room is None else min(most, _count_within(submission.payloads, room + self._held))

    def _lacking(self, submission: Submission) -> int:
        """Bytes that have to leave the store before it fits there."""
        room = self._share.room
        return 0 if room is None else max(0, submission.size - room)

    def _room(self, submission: Submission, count: int, size: int) -> int:
        """How many messages of it fit beside `count` messages of `size` bytes, from the first on."""
        limits = self.limits
        room = len(submission.payloads) if limits.max_count is None else limits.max_count - count
        if limits.max_bytes is None or size + submission.size <= limits.max_bytes:
            return max(0, min(room, len(submission.payloads)))
        return _count_within(submission.payloads[: max(0, room)], limits.max_bytes - size)

    def _holds_back(self) -> bool:
        if self.limits.overflow == "block":
            return True
        if not self._host.open:
            return False
        left = self._progress_at + PROGRESS - self._host.now()
        if left <= 0:
            return False
        if self._look is None:
            self._look = asyncio.get_running_loop().call_later(left + 0.01, self._look_again)
        return True

    def _look_again(self) -> None:
        self._look = None
        self.settle()

    def _overflow(self, submission: Submission) -> None:
        lacking = self._lacking(submission)
        if self.limits.overflow != "drop_oldest" or lacking > self._held:
            self._refuse(submission)
            return
        count, limits = len(submission.payloads), self.limits
        left = None if limits.max_count is None else max(0, limits.max_count - count)
        room = None if limits.max_bytes is None else max(0, limits.max_bytes - submission.size)
        if lacking:
            room = min(self._held - lacking, self._held if room is None else room)
        self._host.execute(Trim(self._id, left, room), self._trimmed)
        self._store(submission)

    def _refuse(self, submission: Submission) -> None:
        count = len(submission.payloads)
        code, text = "queue_full", "the outbox is full and nothing leaves it"
        if self._fitting_here(submission):
            code, text = "store_full", "the queues hold all that they may together (max_store_bytes)"
        self._host.count("overflow_rejected", count)
        self._host.event("queue_overflow", {"count": count, "policy": self.limits.overflow})
        submission.producer.refuse(submission, code, text)

    def _trimmed(self, outcome: RemoveResult | StoreError) -> None:
        if isinstance(outcome, RemoveResult):
            count = sum(gone.messages for gone in outcome.removed)
            self._host.event("queue_overflow", {"count": count, "policy": "drop_oldest"})

    def _store(self, submission: Submission) -> None:
        if not self.busy:
            self.progressed()  # there was nothing to acknowledge until now
        count, size, producer = len(submission.payloads), submission.size, submission.producer
        max_age = min((age for age in (submission.max_age, self.limits.max_age) if age is not None), default=None)
        operation = self._host.put(submission.payloads, max_age, producer, submission.first_seq)
        self._storing_count += count
        self._storing_size += size
        self._tell_size()

        def stored(outcome: PutResult | StoreError) -> None:
            self._storing_count -= count
            self._storing_size -= size
            if isinstance(outcome, StoreError):
                self._tell_size()
                code = outcome.code if isinstance(outcome, StoreFailed) else "store_failed"
                producer.refuse(submission, code, str(outcome))
                self.settle()
                return
            self._host.count("accepted", count)
            self._time(submission, outcome, count)
            self._added(count, size, max_age)
            producer.accept(submission, outcome.next)

        self._host.execute(operation, stored)

    def _time(self, submission: Submission, stored: PutResult, count: int) -> None:
        now = self._host.now()
        if submission.submitted_at is not None:
            self._latencies.accept.observe(now - submission.submitted_at, count)
        self._accept_times.accepted(stored.next, count, now)

    def closing_submitted(self) -> None:
        """The closing message is on its way into the store: nothing is drained before it has left, too."""
        self._storing_count += 1

    def closing_decided(self, *, stored: bool) -> None:
        """The closing message has been stored, or not."""
        self._storing_count -= 1
        if stored:
            self._host.count("accepted")
            self._added(1, 0, None)
        self.settle()
        self._tell_drained()

    def _added(self, count: int, size: int, max_age: float | None) -> None:
        self.count += count
        self.size += size
        self._tell_size()
        if max_age is not None:
            self._look_for_expiry(max_age)

    @property
    def _held(self) -> int:
        """Bytes, those included that are on their way into the store."""
        return self.size + self._storing_size

    def _tell_size(self) -> None:
        self._share.set(self._held)

    # --- out -------------------------------------------------------------------------------------------------------

    def progressed(self) -> None:
        """The link came up, or something was acknowledged."""
        self._progress_at = self._host.now()

    def handed_over(self, below: int) -> None:
        """Everything numbered below has been handed to a data channel, or has left the outbox."""
        if below > self._handed:
            self._handed = below
            for producer in self.producers.values():
                producer.tell_sent(below)

    def acknowledged(self, result: Acknowledged, counter: str = "acknowledged") -> None:
        """The peer's store has what `result` says; or, with another `counter`, it was handed to a plain peer."""
        self.count -= result.messages
        self.size -= result.size
        self._tell_size()
        self._host.count(counter, result.messages)
        if result.messages and counter == "acknowledged":
            self._accept_times.acknowledged(result.acked, self._host.now())
        for done in result.producers:
            if done.producer in self.producers:
                self.producers[done.producer].tell_acknowledged(done)
        if result.messages:
            self.progressed()
        self.settle()
        self._tell_drained()

    def removed(self, removed: Iterable[Removed], in_doubt: int = 0) -> None:
        """Messages were taken out by a limit or a purge, or found damaged."""
        for gone in removed:
            self.count -= gone.messages
            self.size -= gone.size
            self._host.count(f"removed_{gone.reason}", gone.messages)
            self._accept_times.removed(gone.first, gone.next)
            if gone.reason is Reason.EXPIRED:
                self._host.event("message_expired", {"count": gone.messages, "first": gone.first, "next": gone.next})
            elif gone.reason in {Reason.TOO_LARGE, Reason.DAMAGED}:
                facts = {"first": gone.first, "next": gone.next, "count": gone.messages, "reason": str(gone.reason)}
                self._host.event("gap", {"direction": "out", **facts})
            for lost in gone.producers:
                if lost.producer in self.producers:
                    self.producers[lost.producer].tell_removed(lost, str(gone.reason))
        if in_doubt:
            self._host.count("in_doubt", in_doubt)
        self._tell_size()
        self.settle()
        self._tell_drained()

    @property
    def busy(self) -> bool:
        """Whether something stored, or being stored, has not been acknowledged or removed."""
        return bool(self.count or self._storing_count)

    async def drained(self) -> None:
        """Wait until everything stored has been acknowledged or removed."""
        if self.busy:
            waiter = asyncio.get_running_loop().create_future()
            self._drained.append(waiter)
            try:
                await waiter
            finally:
                if waiter in self._drained:
                    self._drained.remove(waiter)

    def _tell_drained(self) -> None:
        if not self.busy:
            for producer in list(self.producers.values()):
                producer.tell_empty()
            waiting, self._drained = self._drained, []
            for waiter in waiting:
                if not waiter.done():
                    waiter.set_result(None)

    # --- ages ------------------------------------------------------------------------------------------------------

    def _look_for_expiry(self, delay: float) -> None:
        loop = asyncio.get_running_loop()
        delay = min(max(delay, 0.0), EXPIRY_LATEST)
        if self._expiry is not None:
            if self._expiry_at <= loop.time() + delay:
                return
            self._expiry.cancel()
        self._expiry_at = loop.time() + delay
        self._expiry = loop.call_at(self._expiry_at, self._expire)

    def _expire(self) -> None:
        self._expiry = None
        self._host.execute(Expire(self._id, self._host.stamp()), self._expired)

    def _expired(self, outcome: RemoveResult | StoreError) -> None:
        if isinstance(outcome, RemoveResult) and outcome.more:
            self._expire()
        else:
            self._find_expiry()

    def _find_expiry(self) -> None:
        self._host.execute(FindExpiry(self._id, self._host.stamp()), self._found_expiry)

    def _found_expiry(self, outcome: NextExpiry | StoreError) -> None:
        if isinstance(outcome, StoreFailed):
            self._look_for_expiry(EXPIRY_LATEST)
        elif isinstance(outcome, NextExpiry) and outcome.seconds is not None:
            self._look_for_expiry(outcome.seconds)

    def close(self) -> None:
        """No more timers; parked submissions are forgotten with their sockets."""
        for timer in (self._look, self._expiry):
            if timer is not None:
                timer.cancel()
        self._look = self._expiry = None
        self._parked.clear()
        self._tell_drained()

    def forget(self) -> None:
        """The channel is deleted from the store with what is in it."""
        self._share.set(0)


def _count_within(payloads: Sequence[Payload], room: int) -> int:
    """How many of them, from the first on, are within `room` bytes."""
    for count, payload in enumerate(payloads):
        room -= payload_size(payload)
        if room < 0:
            return count
    return len(payloads)
