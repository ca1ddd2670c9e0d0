"""The inbox of a channel: what waits for local programs, and who gets it.

    store ──pages, or straight from the commit──► loaded ──credit──► delivered ──ack──► AckIn ──► gone

One receiver is exclusive: it gets everything in order and acknowledges it. Observers get a copy of what comes while they
have credit, and are told how much they missed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from rondevud.durable import frames
from rondevud.durable.outbox import Host
from rondevud.errors import RequestError, StoreError, StoreFailed
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
)

_EVERYTHING = 2**62
"""Above every row."""

LOADED = 1_024
LOADED_BYTES = 4 * 1024 * 1024
"""Items and bytes kept in memory for delivery; what comes beyond stays in the store until they are delivered."""

READ_AHEAD = 64
"""Loaded items below which the next page is read."""

READ_RETRY = 0.1
"""Seconds after a failed read before the next one."""

RUN_BYTES = 256 * 1024
"""Bytes of messages after which one notification ends; it holds one message at least."""

RECEIVERS_KEPT = 1_000
"""Earlier receivers whose deliveries count in the attempts of what they left."""

MAX_CREDIT = 2**31


class ReceiverListener(Protocol):
    """Hears what a receiver delivers."""

    def messages(self, tag: int, rows: list[list[Any]]) -> None: ...

    def gap(self, tag: int, gap: dict[str, Any]) -> None: ...

    def missed(self, count: int) -> None: ...

    def detached(self, reason: str) -> None: ...


class Receiver:
    """One receiving attachment. Tags count 1, 2, … over messages and gaps."""

    def __init__(self, inbox: Inbox, listener: ReceiverListener) -> None:
        self.left = 0
        """Credit."""
        self.paused = False
        self.held = False
        """Whether the store must first learn that somebody has attached."""
        self.next_tag = 1
        self.listener: ReceiverListener | None = listener
        self._inbox = inbox

    @property
    def ready(self) -> bool:
        return self.listener is not None and self.left > 0 and not self.paused and not self.held

    def credit(self, n: int) -> None:
        """`n` more messages or gaps may be delivered."""
        self.left = min(MAX_CREDIT, self.left + n)
        self._inbox.pump()

    def ack(self, upto_tag: int) -> None:
        """Everything up to `upto_tag` needs no more delivery."""
        self._inbox.acknowledge(self, upto_tag)

    def pause(self) -> None:
        """Deliver nothing until `resume`."""
        self.paused = True

    def resume(self) -> None:
        self.paused = False
        self._inbox.pump()

    def close(self) -> None:
        """The client is gone: what it had not acknowledged goes back."""
        self._inbox.leave(self)

    def detach(self, reason: str) -> None:
        """The handle is taken away."""
        listener = self.listener
        self._inbox.leave(self, replaced=reason == "taken_over")
        if listener is not None:
            listener.detached(reason)

    def take_tags(self, count: int) -> int:
        tag = self.next_tag
        self.next_tag += count
        self.left -= count
        return tag


class Inbox:
    """What waits, and the delivery of it."""

    def __init__(
        self, record: ChannelRecord, host: Host, taken: Callable[[int, int], None], became_free: Callable[[], None]
    ) -> None:
        self.count = record.in_count
        self.size = record.in_bytes
        self.gaps = record.in_gaps
        """How many of the rows that wait are gaps."""
        self.exclusive: Receiver | None = None
        self._observers: list[Receiver] = []
        self._id = record.id
        self._attached = record.attached
        self._attached_before = record.attached
        self._host = host
        self._taken = taken
        self._became_free = became_free
        self._fresh_from: float = float("inf")
        """Rows from this one on were stored by this run of the daemon."""
        self._delivered_below: list[int] = []
        """For each earlier receiver the row behind the last it was given."""
        self._loaded: deque[InItem] = deque()
        self._loaded_bytes = 0
        self._loaded_row = 0
        self._caught_up = False
        self._reading = False
        self._stale_reads = 0
        self._delivered: deque[tuple[int, int]] = deque()
        self._acking = False
        self._ack_row = 0
        self._acked_row = 0

    # --- receivers -------------------------------------------------------------------------------------------------

    async def open(self, mode: str, listener: ReceiverListener, *, takeover: bool) -> Receiver:
        """A receiver in ``exclusive`` or ``observe`` mode. Raises `RequestError` ``in_use``."""
        if mode == "observe":
            return self.observe(Receiver(self, listener))
        if self.exclusive is not None and not takeover:
            raise RequestError("in_use", "the channel has a receiver already; attach with takeover to take its place")
        if self.exclusive is not None:
            self.exclusive.detach("taken_over")
        receiver = self.exclusive = Receiver(self, listener)
        self._rewind()
        if not self._attached:
            await self._mark_attached(receiver)
        return receiver

    def observe(self, receiver: Receiver) -> Receiver:
        """Give `receiver` a copy of what comes from now on."""
        self._observers.append(receiver)
        return receiver

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
        """`receiver` is gone; when it is `replaced`, what waits is not offered to others."""
        receiver.listener = None
        if receiver in self._observers:
            self._observers.remove(receiver)
        if receiver is self.exclusive:
            self.exclusive = None
            if self._delivered:
                self._delivered_below.append(self._delivered[-1][1] + 1)
                del self._delivered_below[:-RECEIVERS_KEPT]
            self._rewind()
            if not replaced:
                self._became_free()

    def _rewind(self) -> None:
        """Delivery begins again at the first row that waits."""
        self._stale_reads += self._reading
        self._reading = False
        self._loaded.clear()
        self._loaded_bytes = 0
        self._loaded_row = max(self._acked_row, self._ack_row)  # the rows between are about to be deleted
        self._caught_up = False
        self._delivered.clear()

    def detach_all(self, reason: str) -> None:
        for receiver in [*self._observers, *([self.exclusive] if self.exclusive else [])]:
            receiver.detach(reason)

    # --- what comes ------------------------------------------------------------------------------------------------

    def received(self, operation: Receive, result: ReceiveResult) -> None:
        """The store has taken a batch of the peer's."""
        first_wait = not self.count and result.rows
        self.count += result.rows
        self.size += result.size
        if not result.rows:
            return
        self._fresh_from = min(self._fresh_from, result.first_row)
        items = _rows(operation, result.first_row)
        gaps = sum(isinstance(item, InGap) for item in items)
        self.gaps += gaps
        self._host.count("received", len(items) - gaps)
        fits = len(self._loaded) + len(items) <= LOADED and self._loaded_bytes + result.size <= LOADED_BYTES
        if self.exclusive is not None and self._caught_up and fits:
            self._loaded.extend(items)
            self._loaded_bytes += result.size
            self._loaded_row = items[-1].row + 1
        else:
            self._caught_up = False
        for observer in list(self._observers):
            self._copy(observer, items)
        if first_wait and self.exclusive is None:
            self._became_free()
        self.pump()

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

    # --- delivery --------------------------------------------------------------------------------------------------

    def pump(self) -> None:
        """Deliver what the exclusive receiver has credit for; read ahead."""
        receiver = self.exclusive
        if receiver is None:
            return
        while receiver.ready and self._loaded:
            self._hand_over(receiver, self._next_run(receiver.left), attempts=None)
        full = len(self._loaded) >= READ_AHEAD or self._loaded_bytes >= LOADED_BYTES
        if self._caught_up or self._reading or full or not self.count:
            return
        self._reading = True
        self._host.execute(ReadIn(self._id, self._loaded_row), self._page_read)

    def _next_run(self, most: int) -> list[InItem]:
        """Messages that go in one notification, or one gap."""
        first = self._loaded.popleft()
        run: list[InItem] = [first]
        size = _size(first)
        if isinstance(first, InMessage):
            while self._loaded and len(run) < most and size < RUN_BYTES and isinstance(self._loaded[0], InMessage):
                run.append(self._loaded.popleft())
                size += _size(run[-1])
        self._loaded_bytes -= size
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
            asyncio.get_running_loop().call_later(READ_RETRY, self.pump)
            return
        if isinstance(page, StoreError):
            return
        if page.items:
            self._loaded.extend(page.items)
            self._loaded_bytes += sum(map(_size, page.items))
            self._loaded_row = page.next_row
        else:
            self._caught_up = True
        self.pump()

    def _hand_over(self, receiver: Receiver, items: list[InItem], attempts: int | None) -> None:
        """Deliver a run of messages or one gap; `attempts` None = as counted."""
        tag = receiver.take_tags(len(items))
        if receiver is self.exclusive:
            self._delivered.extend((tag + i, item.row) for i, item in enumerate(items))
        listener = receiver.listener
        if listener is None:
            return
        if isinstance(items[0], InGap):
            listener.gap(tag, _gap(items[0]))
            return
        rows = []
        redelivered = 0
        for item in items:
            attempt = self._attempt(item.row) if attempts is None else attempts
            redelivered += attempt > 1
            if isinstance(item, InMessage):
                rows.append([item.payload, f"{item.epoch.hex()}-{item.seq}", item.enqueued, attempt])
        self._host.count("delivered", len(rows))
        if redelivered:
            self._host.count("redelivered", redelivered)
        listener.messages(tag, rows)

    def _attempt(self, row: int) -> int:
        old = row < self._fresh_from and self._attached_before
        return 1 + old + sum(row < below for below in self._delivered_below)

    # --- acknowledgement -------------------------------------------------------------------------------------------

    def acknowledge(self, receiver: Receiver, upto_tag: int) -> None:
        if receiver is not self.exclusive:
            return
        while self._delivered and self._delivered[0][0] <= upto_tag:
            self._ack_row = self._delivered.popleft()[1] + 1
        self._send_ack()

    def _send_ack(self) -> None:
        if not self._acking and self._ack_row > self._acked_row:
            self._acking = True
            row = self._ack_row
            self._host.execute(AckIn(self._id, row), lambda outcome: self._acknowledged(row, outcome))

    async def purge(self) -> int:
        """Delete everything that waits; answers how many rows that were. Raises `RequestError` when the store fails."""
        count, more = 0, True
        while more:
            answer: asyncio.Future[InRemoved | StoreError] = asyncio.get_running_loop().create_future()
            self._host.execute(AckIn(self._id, _EVERYTHING), partial(self._purged, answer))
            outcome = await answer
            if isinstance(outcome, StoreError):
                raise RequestError(getattr(outcome, "code", "store_failed"), str(outcome))
            count += outcome.messages
            more = outcome.more
        return count

    def _purged(self, answer: asyncio.Future[InRemoved | StoreError], outcome: InRemoved | StoreError) -> None:
        """Forget the rows that are gone before any later operation completes; rows behind them stay as they are."""
        if isinstance(outcome, InRemoved):
            self._deleted_below(outcome.next)
            while self._loaded and self._loaded[0].row < outcome.next:
                self._loaded_bytes -= _size(self._loaded.popleft())
            while self._delivered and self._delivered[0][1] < outcome.next:
                self._delivered.popleft()
            self._loaded_row = max(self._loaded_row, outcome.next)
            self.took(outcome)
            self.pump()
        if not answer.done():
            answer.set_result(outcome)

    def _deleted_below(self, row: int) -> None:
        self._acked_row = max(self._acked_row, row)
        self._delivered_below = [below for below in self._delivered_below if below > row]

    def _acknowledged(self, row: int, outcome: InRemoved | StoreError) -> None:
        self._acking = False
        if isinstance(outcome, StoreError):
            self._send_ack()
            return
        if not outcome.more:
            self._deleted_below(row)
        self.took(outcome)
        self._send_ack()

    def took(self, outcome: InRemoved) -> None:
        """Rows left the inbox."""
        self.count -= outcome.messages
        self.size -= outcome.size
        self.gaps -= outcome.gaps
        self._taken(outcome.messages, outcome.size)


def _rows(operation: Receive, first_row: int) -> list[InItem]:
    """The rows that the store made of a batch (see `rondevud.records.Receive`)."""
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


def _size(item: InItem) -> int:
    """Payload bytes."""
    return frames.payload_size(item.payload) if isinstance(item, InMessage) else 0


def _gap(item: InGap) -> dict[str, Any]:
    removal = item.removal
    return {
        "first": removal.first or None,
        "next": removal.next or None,
        "count": removal.messages,
        "reason": str(removal.reason),
    }
