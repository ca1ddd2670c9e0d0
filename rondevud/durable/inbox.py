"""The inbox of a channel: what waits for local programs, and who gets it.

    store ──pages, or straight from the commit──► loaded ──credit──► a receiver's own ──ack──► AckIn ──► gone

One exclusive receiver gets everything in order. Shared ones take turns: each row goes to one of them, and what it had not
acknowledged goes to another when it leaves, so rows leave the inbox in any order. Observers get a copy of what comes while
they have credit, and are told how much they missed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate, compress, islice
from operator import attrgetter
from typing import Any

from rondevud import failpoints
from rondevud.durable.attempts import Attempts
from rondevud.durable.budget import Budget, Share
from rondevud.durable.failures import Answer, Failures, message_ids
from rondevud.durable.outbox import Host
from rondevud.durable.outgoing import Direction
from rondevud.durable.receiver import Receiver, ReceiverListener
from rondevud.durable.settings import OutboxLimits
from rondevud.errors import RequestError, StoreError, StoreFailed
from rondevud.failed import Freed
from rondevud.latencies import Latencies
from rondevud.ranges import Ranges
from rondevud.records import (
    AckIn,
    ChannelRecord,
    InGap,
    InItem,
    InMessage,
    InPage,
    InRemoved,
    MarkAttached,
    OutMessage,
    ReadIn,
    Reason,
    Receive,
    ReceiveResult,
    TrimIn,
    in_messages,
    payload_size,
    payload_sizes,
)

logger = logging.getLogger(__name__)

_EVERYTHING = 2**62
"""Above every row."""

LOADED = 16_384
LOADED_BYTES = 4 * 1024 * 1024
"""Items and bytes kept in memory for delivery; what comes beyond stays in the store until they are delivered."""

READ_AHEAD = 8_192
"""Loaded items below which the next page is read: many, so that reading comes to the end of what waits."""

STORE_RETRY = 0.1
"""Seconds after a failed read or deletion before the next one."""

RUN_BYTES = 256 * 1024
"""Bytes of messages after which one notification ends; it holds one message at least."""

SHARED_RUN = 16
"""Messages that a shared receiver gets at most before it is another one's turn."""


BURST = 60.0
"""Seconds without a dropped message after which the next one is worth a line in the log."""


class Inbox:
    """What waits, and the delivery of it.

    `taken` hears what leaves it and `became_free` when something waits that nobody receives; `bound` tells the limits at
    present, None where back-pressure keeps it small.
    """

    def __init__(
        self,
        record: ChannelRecord,
        host: Host,
        taken: Callable[[int, int], None],
        became_free: Callable[[], None],
        bound: Callable[[], OutboxLimits | None] = lambda: None,
        share: Share | None = None,
        latencies: Latencies | None = None,
    ) -> None:
        """`share` is its part of what the store may hold; without one that is unlimited. `latencies` hear of times."""
        self.count = record.in_count
        self.size = record.in_bytes
        self._share = share or Budget().share(Direction.IN)
        self.gaps = record.in_gaps
        """How many of the rows that wait are gaps."""
        self.receivers: deque[Receiver] = deque()
        """One exclusive receiver, or shared ones in the order of their turns."""
        self._observers: list[Receiver] = []
        self._id = record.id
        self._name = f"{record.connection_id}/{record.label}"
        self._bound = bound
        self._trimming = False
        self._dropped: Counter[str] = Counter()
        """By policy, how many dropped messages are to be told."""
        self._dropped_at = float("-inf")
        self._attached = record.attached
        self._attached_before = record.attached
        self._host = host
        self._taken = taken
        self._latencies = latencies or Latencies()
        self._became_free = became_free
        self._fresh_from: float = float("inf")
        """Rows from this one on were stored by this run of the daemon."""
        self._attempts = Attempts()
        self.failures = Failures(record, host)
        self._draw()
        self._loaded: deque[InItem] = deque()
        self._loaded_bytes = 0
        self._next_row = 0
        """Where reading goes on."""
        self._stored_below = 0
        """Behind the last row that this run of the daemon knows of."""
        self._given_below = 0
        """Rows below may be some receiver's own, or acknowledged; those above are neither."""
        self._caught_up = False
        self._reading = False
        self._stale_reads = 0
        self._acknowledged = Ranges()
        """Rows whose deletion is to be asked for."""
        self._deleting = Ranges()
        """Rows whose deletion has been asked for."""
        self._deletions = 0

    # --- receivers -------------------------------------------------------------------------------------------------

    @property
    def attached(self) -> bool:
        """Whether a program receives what comes; observers do not count."""
        return bool(self.receivers)

    async def open(self, mode: str, listener: ReceiverListener, *, takeover: bool) -> Receiver:
        """A receiver in ``exclusive``, ``shared`` or ``observe`` mode. Raises `RequestError` ``in_use``.

        With `takeover` an exclusive receiver takes the place of all others, a shared one that of an exclusive one.
        """
        if mode == "observe":
            return self.observe(listener)
        if self.receivers and "exclusive" in {mode, self.receivers[0].mode}:
            if not takeover:
                raise RequestError(
                    "in_use", "the channel has a receiver already; attach with takeover to take its place"
                )
            for former in list(self.receivers):
                former.detach("taken_over")
        receiver = Receiver(self, mode, listener)
        self.receivers.append(receiver)
        if not self._attached:
            await self._mark_attached(receiver)
        return receiver

    def observe(self, listener: ReceiverListener) -> Receiver:
        """A receiver that gets a copy of what comes from now on."""
        observer = Receiver(self, "observe", listener)
        self._observers.append(observer)
        return observer

    async def _mark_attached(self, receiver: Receiver) -> None:
        """Before the first delivery: it decides at which attempt a message begins after a restart of the daemon."""
        receiver.held = True
        try:
            await self._host.run(MarkAttached(self._id))
        except BaseException:
            self.leave(receiver)
            raise
        self._attached = True
        receiver.held = False
        self.pump()

    def leave(self, receiver: Receiver, *, replaced: bool = False) -> None:
        """`receiver` is gone, and what is its own waits again; when it is `replaced`, that is not offered to others."""
        receiver.listener = None
        if receiver in self._observers:
            self._observers.remove(receiver)
        if receiver not in self.receivers:
            return
        self.receivers.remove(receiver)
        self._take_back(receiver)
        if replaced:
            return
        if self.receivers:
            self.pump()
        else:
            self._became_free()

    def _take_back(self, receiver: Receiver) -> None:
        returned = list(receiver.own())
        if returned and self.failures.limit is not None:
            self.failures.gave_up(returned[0][0])
        for first, behind in returned:
            self._attempts.add(first, behind)
        if returned or not self.receivers:
            self._read_again(min((first for first, _ in returned), default=self._next_row))

    def _read_again(self, row: int) -> None:
        """Load anew, beginning at `row` or before it with what is loaded."""
        if self._loaded:
            row = min(row, self._loaded[0].row)
        self._stale_reads += self._reading
        self._reading = False
        self._loaded.clear()
        self._loaded_bytes = 0
        self._next_row = min(row, self._next_row)
        self._caught_up = False

    def detach_all(self, reason: str) -> None:
        for receiver in [*self._observers, *self.receivers]:
            receiver.detach(reason)

    # --- what comes ------------------------------------------------------------------------------------------------

    def received(self, operation: Receive, result: ReceiveResult) -> None:
        """The store has taken a batch of the peer's."""
        first_wait = not self.count and result.rows
        self.count += result.rows
        self.size += result.size
        self._draw()
        if not result.rows:
            return
        self._fresh_from = min(self._fresh_from, result.first_row)
        self._stored_below = result.first_row + result.rows
        items = _rows(operation, result.first_row)
        gaps = list(map(type, items)).count(InGap)
        self.gaps += gaps
        self._host.count("received", len(items) - gaps)
        fits = len(self._loaded) + len(items) <= LOADED and self._loaded_bytes + result.size <= LOADED_BYTES
        if self.receivers and self._caught_up and fits:
            self._loaded.extend(items)
            self._loaded_bytes += result.size
            self._next_row = items[-1].row + 1
        else:
            self._caught_up = False
        for observer in list(self._observers):
            self._copy(observer, items)
        if first_wait and not self.receivers:
            self._became_free()
        self.pump()
        self._trim()

    def _copy(self, observer: Receiver, items: list[InItem]) -> None:
        """An observer gets what it has credit for, and the number of the rest."""
        missed = 0
        for item in items:
            if observer.ready:
                self._hand_over(observer, [item], attempts=1)
            else:
                missed += 1
        if missed and observer.listener is not None:
            observer.listener.missed(missed)

    # --- overflow --------------------------------------------------------------------------------------------------

    def refuses(self, count: int, size: int) -> bool:
        """Whether there is no room for `count` more messages of `size` bytes; then the last of them counts as dropped.

        The others are those on their way into the store. With ``drop_oldest`` there is always room.
        """
        limits = self._bound()
        if limits is None or limits.overflow == "drop_oldest" or not self._exceeds(limits, count, size):
            return False
        self._drop(1, limits.overflow)
        return True

    def _exceeds(self, limits: OutboxLimits, count: int, size: int) -> bool:
        too_many = limits.max_count is not None and self.count + count > limits.max_count
        too_much = limits.max_bytes is not None and self.size + size > limits.max_bytes
        alone = self._share.lenient and self.count + count <= 1
        return too_many or too_much or (self._lacking(size) > 0 and not alone)

    def _lacking(self, size: int) -> int:
        """Bytes that have to leave the store before `size` more may be in it."""
        room = self._share.room
        return 0 if room is None else max(0, size - room)

    def _trim(self) -> None:
        """Remove the oldest where the policy says so."""
        limits = self._bound()
        if self._trimming or limits is None or limits.overflow != "drop_oldest" or not self._exceeds(limits, 0, 0):
            return
        self._trimming = True
        room = limits.max_bytes
        if lacking := self._lacking(0):
            room = max(0, min(self.size - lacking, self.size if room is None else room))
        self._host.execute(TrimIn(self._id, limits.max_count, room), self._trimmed)

    def _trimmed(self, outcome: InRemoved | StoreError) -> None:
        self._trimming = False
        if isinstance(outcome, InRemoved):
            self._forget_below(outcome)
            self._drop(outcome.messages, "drop_oldest")
            self._trim()

    def _drop(self, count: int, policy: str) -> None:
        """Count dropped messages; what one turn of the loop drops is told in one event, a burst in one line of the log."""
        if not count:
            return
        now = self._host.now()
        if now - self._dropped_at > BURST:
            logger.warning("%s: the inbox is full: received messages are dropped (%s)", self._name, policy)
        self._dropped_at = now
        self._host.count("inbox_overflow", count)
        if not self._dropped:
            asyncio.get_running_loop().call_soon(self._tell_dropped)
        self._dropped[policy] += count

    def _tell_dropped(self) -> None:
        dropped, self._dropped = self._dropped, Counter()
        for policy, count in dropped.items():
            self._host.event("queue_overflow", {"count": count, "policy": policy, "direction": "in"})

    # --- delivery --------------------------------------------------------------------------------------------------

    def pump(self) -> None:
        """Deliver what receivers have credit for; read ahead."""
        if not self.receivers:
            return
        while self._loaded and (receiver := self._next_receiver()) is not None:
            if self.failures.limit is not None and not receiver.busy and not self._may_have_next(receiver):
                continue
            self._hand_over(receiver, self._next_run(self._turn(receiver)), attempts=None)
        full = len(self._loaded) >= READ_AHEAD or self._loaded_bytes >= LOADED_BYTES
        if self._caught_up or self._reading or full or not self.count:
            return
        self._reading = True
        self._host.execute(ReadIn(self._id, self._next_row), self._page_read)

    def _may_have_next(self, receiver: Receiver) -> bool:
        """Whether the first loaded item may go to `receiver`, which has nothing else; if not, it is not loaded any more."""
        item = self._loaded[0]
        if not isinstance(item, InMessage):
            return True
        redelivered = self._attempt(item.row) > 1
        if self.failures.judge(item, redelivered=redelivered, again=partial(self._judged, receiver, item)):
            return True
        self._loaded.popleft()
        self._loaded_bytes -= _size(item)
        self._given_below = max(self._given_below, item.row + 1)
        receiver.held = True
        return False

    def _judged(self, receiver: Receiver, message: InMessage, answer: Answer) -> None:
        """What the store was asked about a message is done: the next one, or it, is for `receiver`."""
        receiver.held = False
        if answer is Answer.ASIDE:
            self.took(InRemoved(1, _size(message), 0, 0, more=False))
        elif answer is Answer.DELIVER and receiver in self.receivers and receiver.ready:
            self._hand_over(receiver, [message], attempts=None)
        elif answer is not Answer.GONE:
            self._read_again(message.row)
        self.pump()

    def _next_receiver(self) -> Receiver | None:
        """Whose turn it is; None while nobody takes anything."""
        for _ in range(len(self.receivers)):
            receiver = self.receivers[0]
            self.receivers.rotate(-1)
            if receiver.ready:
                return receiver
        return None

    def _turn(self, receiver: Receiver) -> int:
        """How much it may get at once; shared receivers share what there is."""
        if receiver.mode == "exclusive":
            return receiver.left
        share = -(-len(self._loaded) // len(self.receivers))
        return min(receiver.left, SHARED_RUN, share)

    def _next_run(self, most: int) -> list[InItem]:
        """Messages of neighbouring rows that go in one notification, or one gap."""
        loaded = self._loaded
        run = list(islice(loaded, max(1, most)))
        if set(map(type, run)) != {InMessage} or run[-1].row != run[0].row + len(run) - 1:
            end = next((place for place in range(1, len(run)) if not _follows(run[place], run[place - 1])), len(run))
            del run[end:]
        sizes = _sizes(run)
        for place, size in enumerate(accumulate(sizes[:-1]), 1):
            if size >= RUN_BYTES:
                del run[place:], sizes[place:]
                break
        for _ in run:
            loaded.popleft()
        self._loaded_bytes -= sum(sizes)
        return run

    def _page_read(self, page: InPage | StoreError) -> None:
        if isinstance(page, InPage) and page.damaged:  # told once, also when nobody wants the page any more
            self.gaps += page.gaps
            self._host.count("damaged", page.damaged)
        if self._stale_reads:
            self._stale_reads -= 1
            return
        self._reading = False
        if isinstance(page, StoreFailed):
            asyncio.get_running_loop().call_later(STORE_RETRY, self.pump)
            return
        if isinstance(page, StoreError):
            return
        if page.items:
            items = self._unclaimed(page.items)
            self._loaded.extend(items)
            self._loaded_bytes += sum(_sizes(items))
            self._next_row = page.next_row
        self._caught_up = not page.items or page.next_row == self._stored_below
        self.pump()

    def _unclaimed(self, items: list[InItem]) -> list[InItem]:
        """Those that are no receiver's own and not acknowledged either (their deletion may not be stored yet)."""
        if items[0].row >= self._given_below:
            return items
        owned = Ranges(rows for receiver in self.receivers for rows in receiver.own())
        claims = (owned, self._acknowledged, self._deleting)
        free = (item for item in items if not any(item.row in claim for claim in claims))
        return [item for item in free if item.row not in self.failures]

    def _hand_over(self, receiver: Receiver, items: list[InItem], attempts: int | None) -> None:
        """Deliver a run of messages or one gap; `attempts` None = as counted."""
        tag = receiver.take_tags(len(items))
        if receiver.mode != "observe":
            receiver.has(tag, items[0].row, len(items))
            self._given_below = max(self._given_below, items[-1].row + 1)
        if receiver.listener is None:
            return
        try:
            self._tell(receiver.listener, tag, items, attempts)
        except BaseException:
            receiver.close()  # an acknowledgement of what comes later would cover what was not delivered
            raise

    def _tell(self, listener: ReceiverListener, tag: int, items: list[InItem], attempts: int | None) -> None:
        if isinstance(items[0], InGap):
            listener.gap(tag, _gap(items[0]))
            return
        messages = [item for item in items if isinstance(item, InMessage)]  # all of them: a gap comes alone
        tries = self._tries(messages) if attempts is None else [attempts] * len(messages)
        rows = list(zip(map(_payload, messages), message_ids(messages), map(_enqueued, messages), tries, strict=True))
        for message in messages:
            if message.tries:
                self.failures.given(message)
        if attempts is None:  # observers get copies
            moments = list(compress(map(_enqueued, messages), map((1).__eq__, tries)))
            once = moments and moments[0] == moments[-1]  # they never fall within a run
            fresh = {moments[0]: len(moments)} if once else Counter(moments)
            now = self._host.stamp().wall
            for enqueued, count in fresh.items():
                self._latencies.deliver.observe(now - enqueued, count)
        self._host.count("delivered", len(rows))
        if redelivered := len(tries) - tries.count(1):
            self._host.count("redelivered", redelivered)
        failpoints.hit("deliver.before")
        listener.messages(tag, rows)
        failpoints.hit("deliver.after")

    def _tries(self, messages: list[InMessage]) -> list[int]:
        """How many times each of these neighbouring rows has been given, this time included."""
        if not len(self._attempts) and (messages[0].row >= self._fresh_from or not self._attached_before):
            return [1] * len(messages)
        return [self._attempt(message.row) for message in messages]

    def _attempt(self, row: int) -> int:
        old = row < self._fresh_from and self._attached_before
        return 1 + old + self._attempts.of(row)

    # --- acknowledgement -------------------------------------------------------------------------------------------

    def acknowledge(self, receiver: Receiver, upto_tag: int) -> None:
        """Delete what `receiver` was given with tags up to `upto_tag`; nothing for one that has left."""
        if receiver.listener is None:
            return
        for first, behind in receiver.take_acknowledged(upto_tag):
            self._acknowledged.add(first, behind)
        self._delete()

    def _delete(self) -> None:
        """Ask for the deletion of what is acknowledged; what is acknowledged meanwhile is asked for together."""
        if self._deletions or not self._acknowledged:
            return
        self._deleting, self._acknowledged = self._acknowledged, Ranges()
        self._deletions = len(self._deleting)
        for first, behind in list(self._deleting):
            self._host.execute(AckIn(self._id, behind, first), partial(self._deleted, first, behind))

    def _deleted(self, first: int, behind: int, outcome: InRemoved | StoreError) -> None:
        self._deletions -= 1
        if isinstance(outcome, StoreFailed):
            self._acknowledged.add(first, behind)
        elif isinstance(outcome, InRemoved):
            if outcome.more:
                self._acknowledged.add(outcome.next, behind)
            self._attempts.forget(first, behind)
            self.failures.forget(first, behind)
            self.took(outcome)
        if self._deletions:
            return
        self._deleting = Ranges()
        if isinstance(outcome, StoreFailed):
            asyncio.get_running_loop().call_later(STORE_RETRY, self._delete)
        else:
            self._delete()

    async def purge(self) -> int:
        """Delete everything that waits; answers how many rows that were. Raises `RequestError` when the store fails."""
        count, more = 0, True
        while more:
            answer: asyncio.Future[InRemoved | StoreError] = asyncio.get_running_loop().create_future()
            self._host.execute(AckIn(self._id, _EVERYTHING, purge=True), partial(self._purged, answer))
            outcome = await answer
            if isinstance(outcome, StoreError):
                raise RequestError(getattr(outcome, "code", "store_failed"), str(outcome))
            count += outcome.messages
            more = outcome.more
        return count

    def _purged(self, answer: asyncio.Future[InRemoved | StoreError], outcome: InRemoved | StoreError) -> None:
        """Forget the rows that are gone before any later operation completes; rows behind them stay as they are."""
        if isinstance(outcome, InRemoved):
            self._forget_below(outcome)
        if not answer.done():
            answer.set_result(outcome)

    def _forget_below(self, outcome: InRemoved) -> None:
        """The oldest rows are gone, whoever has them."""
        self._attempts.forget(0, outcome.next)
        self.failures.forget(0, outcome.next)
        while self._loaded and self._loaded[0].row < outcome.next:
            self._loaded_bytes -= _size(self._loaded.popleft())
        for receiver in self.receivers:
            receiver.disown_below(outcome.next)
        self._next_row = max(self._next_row, outcome.next)
        self.took(outcome)
        self.pump()

    async def put_back(self, row: int | None) -> int:
        """Let a message that is set aside (None: all) wait again, behind all others; answers how many."""
        return await self.failures.free(row, put_back=True, heard=self._returned)

    async def delete_failed(self, row: int | None, heard: Callable[[], object]) -> int:
        """Delete a message that is set aside (None: all); answers how many. `heard` is called after each slice."""

        def freed(_freed: Freed) -> None:
            self._draw()
            heard()

        return await self.failures.free(row, put_back=False, heard=freed)

    def _returned(self, freed: Freed) -> None:
        if not freed.messages:
            return
        first_wait = not self.count
        self.count += freed.messages
        self.size += freed.size
        self._draw()
        self._taken(-freed.messages, -freed.size)
        self._fresh_from = min(self._fresh_from, freed.first_row)
        self._stored_below = max(self._stored_below, freed.first_row + freed.messages)
        self._attempts.add(freed.first_row, freed.first_row + freed.messages)
        self._caught_up = False
        if first_wait and not self.receivers:
            self._became_free()
        self.pump()

    def took(self, outcome: InRemoved) -> None:
        """Rows left the inbox."""
        self.count -= outcome.messages
        self.size -= outcome.size
        self._draw()
        self.gaps -= outcome.gaps
        self._taken(outcome.messages, outcome.size)

    def _draw(self) -> None:
        """Tell the budget what is held: what waits, and what is set aside."""
        self._share.set(self.size + self.failures.size)

    def forget(self) -> None:
        """The channel is deleted from the store with what is in it."""
        self._share.set(0)


_payload, _enqueued = attrgetter("payload"), attrgetter("enqueued")


def _rows(operation: Receive, first_row: int) -> list[InItem]:
    """The rows that the store made of a batch (see `rondevud.records.Receive`)."""
    items: tuple[Any, ...] = operation.items
    if set(map(type, items)) == {OutMessage} and items[-1].payload is not None:
        return list(in_messages(first_row, operation.epoch, items, operation.stamp.wall))
    rows: list[InItem] = []
    row, enqueued = first_row, operation.stamp.wall
    for item in operation.items:
        if isinstance(item, OutMessage):
            if item.payload is not None:
                rows.append(InMessage(row, operation.epoch, item.seq, item.payload, enqueued))
                row += 1
        elif item.messages != 0 and item.reason is not Reason.RESTART:
            rows.append(InGap(row, operation.epoch, item, enqueued))
            row += 1
    return rows


def _follows(item: InItem, before: InItem) -> bool:
    """Whether both are messages, of neighbouring rows."""
    return isinstance(item, InMessage) and isinstance(before, InMessage) and item.row == before.row + 1


def _size(item: InItem) -> int:
    """Payload bytes."""
    return payload_size(item.payload) if isinstance(item, InMessage) else 0


def _sizes(items: Sequence[InItem]) -> list[int]:
    """`_size` of each."""
    if set(map(type, items)) == {InMessage}:
        return payload_sizes([item.payload for item in items])  # type: ignore[union-attr]
    return list(map(_size, items))


def _gap(item: InGap) -> dict[str, Any]:
    removal = item.removal
    return {
        "first": removal.first or None,
        "next": removal.next or None,
        "count": removal.messages,
        "reason": str(removal.reason),
    }
