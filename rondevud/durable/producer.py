"""Who sends into a channel: numbers that survive handles, sockets and daemons, and what became of each.

A number is *decided* when it was stored or rejected. Decisions are told in order: `accepted` passes a number only when all
before it are decided. What was decided before is answered again in the same way and not stored again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from rondevud.records import REJECTED_KEPT, Payload, ProducerRange, ProducerRecord, payload_sizes


class ProducerListener(Protocol):
    """Hears what became of a producer's messages."""

    def accepted(self, upto_seq: int) -> None: ...

    def rejected(self, seq: int, code: str, message: str) -> None: ...

    def removed(self, from_seq: int, upto_seq: int, reason: str) -> None: ...

    def sent(self, upto_seq: int) -> None: ...

    def acknowledged(self, upto_seq: int) -> None: ...

    def detached(self, reason: str) -> None: ...


UNSENT_KEPT = 1_024
"""Submissions at most whose hand-over is told one by one; beyond, the last of them are told together."""


class Submission:
    """Messages of one producer with consecutive numbers, on their way into the outbox."""

    __slots__ = ("count", "decided", "first_seq", "max_age", "payloads", "producer", "size", "submitted_at")

    def __init__(
        self, producer: Producer, first_seq: int, payloads: tuple[Payload, ...], max_age: float | None
    ) -> None:
        self.producer = producer
        self.first_seq = first_seq
        self.payloads = payloads
        """Empty once they are decided."""
        self.count = len(payloads)
        self.max_age = max_age
        self.size = sum(payload_sizes(payloads))
        self.decided = False
        self.submitted_at: float | None = None
        """When the outbox got it, monotonic; None before."""

    @property
    def last_seq(self) -> int:
        return self.first_seq + self.count - 1

    def split(self, count: int) -> Submission:
        """Cut off the first `count` messages as a submission of their own; this one keeps the rest."""
        head = Submission(self.producer, self.first_seq, self.payloads[:count], self.max_age)
        self.first_seq += count
        self.payloads = self.payloads[count:]
        self.count -= count
        self.size -= head.size
        head.submitted_at = self.submitted_at
        self.producer.was_split(self, head)
        return head


class Unsaved:
    """Rejections of a named producer that no stored message has carried into the store so far; they outlive its handles."""

    __slots__ = ("entries", "last_seq")

    def __init__(self) -> None:
        self.entries: list[tuple[int, str]] = []
        self.last_seq = 0
        """The last number that was decided, in the order of the numbers, through any handle."""

    def put_back(self, entries: tuple[tuple[int, str], ...]) -> None:
        """The message that was to carry them could not be stored."""
        self.entries[:0] = entries
        del self.entries[:-REJECTED_KEPT]


class Producer:
    """One live producer of a channel. `submit` is the channel's; an id below 0 is unnamed and nothing of it is kept."""

    def __init__(
        self,
        record: ProducerRecord,
        listener: ProducerListener,
        submit: Callable[[Submission], None],
        closed: Callable[[Producer], None],
        unsaved: Unsaved,
        unsent_below: int = 0,
    ) -> None:
        """`unsent_below`: what waits in the outbox from before is handed over when the numbers below it are; 0 = it is."""
        self.id = record.id
        self.name = record.name
        self.last_seq = max(record.last_seq, unsaved.last_seq)
        self.acknowledged_seq = record.acknowledged_seq
        self.removed = record.removed
        self.unreported = record.unreported
        """How many messages were removed between the last handle's opening and this one's."""
        self._rejected: deque[tuple[int, str]] = deque(record.rejected, maxlen=REJECTED_KEPT)
        unsaved.entries = [entry for entry in unsaved.entries if entry[0] <= self.last_seq]
        self._rejected.extend(entry for entry in unsaved.entries if entry not in record.rejected)
        self._unsaved = unsaved
        self._undecided: deque[Submission] = deque()
        self._base = record.last_seq
        self._highest = self.last_seq
        self._before_done = record.acknowledged_seq >= record.last_seq
        """Whether everything stored before this handle is known to have left the outbox."""
        if self._before_done:
            self.acknowledged_seq = max(self.acknowledged_seq, self.last_seq)
        self._unsent_below = unsent_below
        self._unsent: deque[tuple[int, int]] | None = None
        """For each submission in the outbox that was not handed over the store's number behind it, and its last own one."""
        self._sent_seq = 0
        self._unconfirmed = 0
        """Messages stored through this handle that are neither acknowledged nor removed."""
        self._listener: ProducerListener | None = listener
        self._submit = submit
        self._closed = closed

    @property
    def rejected(self) -> list[tuple[int, str]]:
        """Which of the last 1,024 decided numbers were rejected, and with which code."""
        return [(seq, code) for seq, code in self._rejected if seq <= self.last_seq]

    @property
    def live(self) -> bool:
        return self._listener is not None

    def tells(self, listener: object) -> bool:
        """Whether `listener` is who hears what becomes of the messages."""
        return self._listener is listener

    # --- from the socket -------------------------------------------------------------------------------------------

    def send(self, first_seq: int, payloads: list[str | bytes], max_age: float | None) -> None:
        """Take messages; numbers at or below the highest taken are answered again, the others go to the channel."""
        known = min(len(payloads), max(0, self._highest + 1 - first_seq))
        if known:
            self._answer_again(first_seq, first_seq + known - 1)
        if known < len(payloads):
            submission = Submission(self, first_seq + known, tuple(payloads[known:]), max_age)
            self._highest = submission.last_seq
            self._undecided.append(submission)
            self._submit(submission)

    def reject(self, first_seq: int, count: int, code: str, message: str) -> None:
        """These numbers were refused before they came here: they are spent; decided ones are answered again."""
        first, last = max(first_seq, self._highest + 1), first_seq + count - 1
        if first_seq < first:
            self._answer_again(first_seq, min(first - 1, last))
        if first > last:
            return
        self._highest = last
        self._refuse(first, last, code, message)
        if not self._undecided or not self._undecided[-1].decided:
            self._undecided.append(Submission(self, first, (), None))
        tail = self._undecided[-1]  # decided, behind one that is not: all that counts is its last number
        tail.count = last - tail.first_seq + 1
        self._decide(tail)

    def close(self) -> None:
        """The client is gone."""
        if self._listener is not None:
            self._listener = None
            self._closed(self)

    def detach(self, reason: str) -> None:
        """The handle is taken away."""
        listener = self._listener
        self.close()
        if listener is not None:
            listener.detached(reason)

    def confirm_sent(self) -> None:
        """Tell the listener from now on what has been `sent`. To be called before the first `send`."""
        self._unsent = deque()
        if self._unsent_below and not self._before_done:
            self._unsent.append((self._unsent_below, self.last_seq))
            self._tell_sent(self.acknowledged_seq)
        self._pass_sent()

    def _answer_again(self, first: int, last: int) -> None:
        for seq, code in self._rejected:
            if first <= seq <= last and self._listener is not None:
                self._listener.rejected(seq, code, "rejected before")
        if self._listener is not None and first <= self.last_seq:
            self._listener.accepted(self.last_seq)

    # --- from the channel ------------------------------------------------------------------------------------------

    def take_unsaved(self, last_seq: int) -> tuple[tuple[int, str], ...]:
        """Rejections up to `last_seq` that no stored message has carried into the store so far."""
        entries = self._unsaved.entries
        taken = tuple(entry for entry in entries if entry[0] <= last_seq)
        if taken:
            self._unsaved.entries = [entry for entry in entries if entry[0] > last_seq]
        return taken

    def was_split(self, rest: Submission, head: Submission) -> None:
        self._undecided.insert(self._undecided.index(rest), head)

    def accept(self, submission: Submission, behind: int) -> None:
        """The messages are stored; `behind` is the number behind the last of them in the store."""
        self._unconfirmed += len(submission.payloads)
        if self._unsent is not None:
            if len(self._unsent) >= UNSENT_KEPT:
                self._unsent.pop()
            self._unsent.append((behind, submission.last_seq))
        self._decide(submission)

    def refuse(self, submission: Submission, code: str, message: str) -> None:
        """The messages are not stored and never will be."""
        self._refuse(submission.first_seq, submission.last_seq, code, message)
        self._decide(submission)

    def _refuse(self, first: int, last: int, code: str, message: str) -> None:
        for seq in range(first, last + 1):
            self._rejected.append((seq, code))
            if self.id > 0:
                self._unsaved.entries.append((seq, code))
            if self._listener is not None:
                self._listener.rejected(seq, code, message)
        del self._unsaved.entries[:-REJECTED_KEPT]

    def _decide(self, submission: Submission) -> None:
        submission.decided = True
        submission.payloads = ()
        before = self.last_seq
        while self._undecided and self._undecided[0].decided:
            self.last_seq = self._undecided.popleft().last_seq
        self._unsaved.last_seq = max(self._unsaved.last_seq, self.last_seq)
        if self.last_seq > before and self._listener is not None:
            self._listener.accepted(self.last_seq)
        self._pass_sent()
        self._pass()

    def tell_removed(self, gone: ProducerRange, reason: str) -> None:
        """Messages were taken out of the outbox."""
        self.removed += gone.messages
        self._left(gone)
        if self._listener is not None:
            self._listener.removed(gone.first, gone.last, reason)
        self._pass()

    def tell_acknowledged(self, done: ProducerRange) -> None:
        """The peer's store has these messages."""
        self._left(done)
        self._before_done |= done.last > self._base
        self._acknowledge(done.last)
        self._pass()

    def tell_sent(self, below: int) -> None:
        """Messages with the store's numbers below have been handed to a data channel."""
        if self._unsent is None:
            return
        upto = 0
        while self._unsent and self._unsent[0][0] <= below:
            upto = self._unsent.popleft()[1]
        self._tell_sent(upto if self._unsent else self.last_seq)

    def _pass_sent(self) -> None:
        """With everything stored handed over, what was rejected behind it is passed, too."""
        if self._unsent is not None and not self._unsent:
            self._tell_sent(self.last_seq)

    def _tell_sent(self, upto: int) -> None:
        if upto > self._sent_seq and self._listener is not None:
            self._sent_seq = upto
            self._listener.sent(upto)

    def tell_empty(self) -> None:
        """Nothing is left in the outbox."""
        self._before_done = True
        if self._unsent is not None:
            self._unsent.clear()
            self._pass_sent()
        self._pass()

    def _left(self, gone: ProducerRange) -> None:
        self._unconfirmed -= (
            gone.messages if gone.first > self._base else max(0, min(gone.messages, gone.last - self._base))
        )

    def _pass(self) -> None:
        """With nothing of this producer left in the outbox, what was removed or rejected behind it is passed, too."""
        if self._before_done and self._unconfirmed <= 0 and not self._undecided:
            self._acknowledge(self.last_seq)

    def _acknowledge(self, upto: int) -> None:
        if upto > self.acknowledged_seq:
            self.acknowledged_seq = upto
            if self._unsent is not None:
                while self._unsent and self._unsent[0][1] <= upto:
                    self._unsent.popleft()
                self._tell_sent(upto)
            if self._listener is not None:
                self._listener.acknowledged(upto)
