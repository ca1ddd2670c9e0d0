"""DurableChannel: one label of one session, with its queues, whether or not a link is up.

It joins what programs see (producers, receivers, events, states) to the numbers of the link and the rows of the store.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from rondevud.accounts import Accounts, ReadAccounts
from rondevud.durable.budget import Budget
from rondevud.durable.buffer_watch import BufferWatch
from rondevud.durable.inbox import Inbox
from rondevud.durable.lanes import Lane, Lanes
from rondevud.durable.outbox import Outbox
from rondevud.durable.outgoing import Direction, Verdict, VerdictKind
from rondevud.durable.producer import Producer, ProducerListener, Unsaved
from rondevud.durable.receiver import Receiver, ReceiverListener
from rondevud.durable.settings import ChannelSettings, OutboxLimits
from rondevud.durable.states import ChannelState
from rondevud.errors import RequestError, StoreError
from rondevud.latencies import Latencies
from rondevud.logs import fields
from rondevud.records import (
    Acknowledge,
    ChannelRecord,
    Durability,
    Expire,
    OpenProducer,
    Operation,
    OutPage,
    Payload,
    ProducerRecord,
    Put,
    PutResult,
    ReadOut,
    Reason,
    Receive,
    Removal,
    Remove,
    Removed,
    RemoveResult,
    Stamp,
    Trim,
)

logger = logging.getLogger(__name__)

UNSAVED_KEPT = 100
"""Named producers of a channel whose rejections are remembered while the store does not have them."""

_EVERYTHING = 2**62
"""Above every number and every row."""


class SessionPort(Protocol):
    """What a channel needs of its session."""

    connection_id: str

    @property
    def lanes(self) -> Lanes: ...

    @property
    def max_message(self) -> int: ...

    @property
    def refusal(self) -> tuple[str, str] | None: ...

    def now(self) -> float: ...

    def stamp(self) -> Stamp: ...

    def execute(self, operation: Operation[Any], done: Callable[[Any], None] | None = None) -> None: ...

    async def run(self, operation: Operation[Any]) -> Any: ...

    def put(self, label: str, payloads: tuple[Payload, ...], **facts: Any) -> Put: ...

    def close_label(self, label: str) -> None: ...

    def inbox_taken(self, label: str, count: int, size: int) -> None: ...

    def event(self, name: str, data: dict[str, Any], label: str | None = None) -> None: ...

    def store_failing(self, durability: Durability) -> StoreError | None: ...

    @property
    def ephemeral(self) -> bool: ...


class DurableChannel:
    """A labelled, durable stream of messages in both directions."""

    def __init__(
        self,
        record: ChannelRecord,
        lane: Lane,
        settings: ChannelSettings,
        session: SessionPort,
        budget: Budget | None = None,
        latencies: Latencies | None = None,
    ) -> None:
        """`budget` is what the queues of its store may hold together; without one that is unlimited.

        `latencies` hear how long messages take.
        """
        budget = budget or Budget()
        self.label = record.label
        self.id = record.id
        self.settings = settings
        self.counters: Counter[str] = Counter()
        self.link_verdicts: dict[Direction, Verdict] = {}
        self.peer_durability: Durability | None = None
        self.acknowledged_at: float | None = None
        """When the peer last acknowledged something, in the time of `now`."""
        self._lane = lane
        self._session = session
        self._ended = False
        self._unsaved: dict[int, Unsaved] = {}
        """What the store does not know of named producers, of those opened last; for live ones shared with the handle."""
        self.made_by_attach = False
        """Whether the next `verdict` belongs to the attach that made the channel."""
        self._watches: set[BufferWatch] = set()
        self.outbox = Outbox(record, settings.outbox, self, budget.share(Direction.OUT), latencies)
        self.inbox = Inbox(
            record,
            self,
            self._inbox_taken,
            self._announce_waiting,
            self._inbox_bound,
            budget.share(Direction.IN),
            latencies,
        )
        self.inbox.failures.limit = settings.inbox.max_deliveries

    # --- what programs see -----------------------------------------------------------------------------------------

    @property
    def connection_id(self) -> str:
        return self._session.connection_id

    @property
    def state(self) -> ChannelState:
        if self._ended or self._lane.closed:
            return ChannelState.CLOSED
        if self.closing:
            return ChannelState.CLOSING
        return ChannelState.OPEN if self.open else ChannelState.CONNECTING

    @property
    def closing(self) -> bool:
        """Whether either side has closed: nothing new is taken."""
        return bool(self._lane.closing or self._lane.out.closed or self._lane.incoming.closed)

    @property
    def open(self) -> bool:
        return self._lane.out.flowing

    @property
    def waiting(self) -> int:
        return self.inbox.count

    @property
    def waiting_bytes(self) -> int:
        return self.inbox.size

    @property
    def queue_bytes(self) -> int:
        return self.outbox.size

    @property
    def keeps(self) -> bool:
        """Whether it holds something for programs here: what waits, and what is set aside."""
        return bool(self.inbox.count or self.inbox.failures.count)

    @property
    def refusal(self) -> tuple[str, str] | None:
        """Why new messages are refused; None = they are taken."""
        if self._ended or self.closing:
            return "closed", "the channel is closed"
        return self._failing or self._session.refusal

    @property
    def _failing(self) -> tuple[str, str] | None:
        """Code and message of a store that fails at present."""
        failing = self._session.store_failing(self.settings.durability)
        return None if failing is None else (getattr(failing, "code", "store_failed"), str(failing))

    @property
    def max_message(self) -> int:
        """Bytes of the largest message taken here."""
        return self._session.max_message

    @property
    def ephemeral(self) -> bool:
        """Whether its connection ends with the programs that declared it, and with the daemon."""
        return self._session.ephemeral

    @property
    def acknowledges(self) -> bool | None:
        """Whether the peer acknowledges; None before the first contact."""
        if self.plain:
            return False
        return True if self._lane.incoming.epoch or self._lane.out.acked else None

    @property
    def plain(self) -> bool:
        """Whether messages go without numbers: to a plain peer, or because the label is unreliable."""
        return self._session.lanes.plain or self._lane.unreliable

    def verdict(self, producer: bytes | None) -> dict[str, str]:
        """What became of either direction since this producer was last attached; to be asked once per attach."""
        made, self.made_by_attach = self.made_by_attach, False
        kind = VerdictKind.NEW if made else VerdictKind.RESUMED
        lost = any(p.unreported for p in self.outbox.producers.values() if p.name == producer)
        return {
            "in": str(VerdictKind.GAP if self.inbox.gaps else kind),
            "out": str(VerdictKind.GAP if lost else kind),
        }

    async def open_producer(self, name: bytes | None, listener: ProducerListener, takeover: bool) -> Producer:
        """The producer of that name; one of which nothing is kept without a name.

        Raises ``producer_in_use``, and the store's error while it fails: what it is asked then waits until it recovers.
        """
        if name is None:
            return self._add_producer(ProducerRecord(-1 - secrets.randbits(61), b""), listener)
        if (failing := self._failing) is not None:
            raise RequestError(*failing)
        self._clear_name(name, takeover=takeover)
        record = await self._session.run(OpenProducer(self.id, name, self.stamp()))
        self._clear_name(name, takeover=takeover)  # somebody may have been faster
        return self._add_producer(record, listener)

    def _clear_name(self, name: bytes, *, takeover: bool) -> None:
        for producer in list(self.outbox.producers.values()):
            if producer.name == name:
                if not takeover:
                    raise RequestError("producer_in_use", "this producer has a live handle on the channel already")
                producer.detach("taken_over")

    def _add_producer(self, record: ProducerRecord, listener: ProducerListener) -> Producer:
        unsaved = Unsaved()
        if record.id > 0:
            unsaved = self._unsaved.pop(record.id, unsaved)
            self._unsaved[record.id] = unsaved
            if len(self._unsaved) > UNSAVED_KEPT:
                del self._unsaved[next(iter(self._unsaved))]
        out = self._lane.out
        unsent_below = out.next if self.outbox.count and out.handed < out.next else 0
        producer = Producer(record, listener, self.outbox.submit, self._producer_closed, unsaved, unsent_below)
        self.outbox.producers[record.id] = producer
        if not self.outbox.count:
            producer.acknowledged_seq = producer.last_seq
        return producer

    def _producer_closed(self, producer: Producer) -> None:
        if self.outbox.producers.get(producer.id) is producer:
            del self.outbox.producers[producer.id]
        if producer.id in self._unsaved and not self._unsaved[producer.id].entries:
            del self._unsaved[producer.id]
        self.outbox.settle()

    async def open_receiver(self, mode: str, listener: ReceiverListener, takeover: bool) -> Receiver:
        """A receiver in ``exclusive``, ``shared`` or ``observe`` mode. Raises ``in_use``."""
        receiver = await self.inbox.open(mode, listener, takeover=takeover)
        asyncio.get_running_loop().call_soon(self._end_if_done)  # there may be nothing to read, and nothing to come
        return receiver

    def close(self) -> None:
        """End the label for both sides: what is queued is still delivered. Idempotent."""
        self._session.close_label(self.label)

    async def purge(self, direction: str) -> dict[str, int]:
        """Empty the ``out``box, the ``in``box or ``both``; answers how many messages that were."""
        counts = {"out": 0, "in": 0}
        if direction in {"out", "both"}:
            counts["out"] = await self.remove_all(Reason.PURGED)
        if direction in {"in", "both"}:
            counts["in"] = await self.inbox.purge()
            self.count("purged_in", counts["in"])
            if counts["in"]:
                self.event("purged", {"count": counts["in"], "direction": "in"})
        return counts

    async def purge_failed(self, id_: str | None) -> int:
        """Delete what is set aside: the message with that id, or (None) all. Raises ``unknown_message``."""
        row = None if id_ is None else await self.inbox.failures.find(id_)
        return await self.inbox.delete_failed(row, self._end_if_done)

    async def put_back(self, id_: str | None) -> int:
        """Let what is set aside wait for programs again, behind all others. Raises ``unknown_message``."""
        return await self.inbox.put_back(None if id_ is None else await self.inbox.failures.find(id_))

    async def remove_all(self, reason: Reason, *, keep_closing: bool = True) -> int:
        """Empty the outbox; answers how many messages that were. Raises `RequestError` when the store fails.

        Publishes `purged`, except for `Reason.EXPIRED`, of which `message_expired` tells. Without `keep_closing` a
        closing message that waits goes, too; it does not count.
        """
        count, more = 0, True
        closing = 0 if keep_closing else self._lane.out.closed
        try:
            while more:
                operation = Remove(self.id, 1, _EVERYTHING, reason, keep_closing=keep_closing)
                result: RemoveResult = await self._session.run(operation)
                count += sum(gone.messages - (gone.first <= closing < gone.next) for gone in result.removed)
                more = result.more
        finally:
            if count:
                self._warn_of_removed(count, reason)
                if reason is not Reason.EXPIRED:
                    self.event("purged", {"count": count, "direction": "out"})
        return count

    def facts(self) -> dict[str, Any]:
        """A row for `channels` and `queue`."""
        return {
            "connection_id": self.connection_id,
            "label": self.label,
            "state": str(self.state),
            "acknowledges": self.acknowledges,
            "durability": str(self.settings.durability),
            "queue_size": self.outbox.count,
            "queue_bytes": self.outbox.size,
            "parked": self.outbox.parked,
            "buffered_amount": self._lane.out.in_flight_bytes,
            "waiting": self.waiting,
            "waiting_bytes": self.waiting_bytes,
            "failed": self.inbox.failures.count,
            "attached": self.inbox.attached,
            "producers": len(self.outbox.producers),
            "counters": self.counted(),
        }

    def counted(self) -> dict[str, int]:
        """What was counted since the start of the daemon. Messages that were sent again count again."""
        sent = self.counters["sent"] + self._lane.out.sent
        return dict(self.counters) | {"sent": sent, "duplicates_dropped": self._lane.incoming.duplicates}

    async def accounts(self) -> dict[str, Any]:
        """What `queue` adds to `facts`: ages in seconds, and what became of all messages so far. Raises `RequestError`."""
        books = await self.books()
        now = self.stamp().wall
        ages = (None if at is None else max(0.0, now - at) for at in (books.out_oldest, books.in_oldest))
        return {**dict(zip(("queue_age", "waiting_age"), ages, strict=True)), "totals": asdict(books.totals)}

    async def books(self) -> Accounts:
        """What became of its messages so far, as the store has it. Raises `RequestError`."""
        books: Accounts = await self._session.run(ReadAccounts(self.id))
        return books

    def reconfigure(self, settings: ChannelSettings) -> None:
        """Other limits, for what is accepted from now on."""
        self.settings = settings
        self.outbox.limits = settings.outbox
        self._lane.incoming.limits = settings.inbox
        self.inbox.failures.limit = settings.inbox.max_deliveries
        self.outbox.settle()

    # --- from the session ------------------------------------------------------------------------------------------

    def submitted(self, operation: Operation[Any]) -> None:
        """One of this channel's operations goes to the store."""
        if _closes(operation):
            self.outbox.closing_submitted()

    def completed(self, operation: Operation[Any], outcome: Any, in_doubt: int) -> None:
        """The store has done one of this channel's operations; the link machine knows already."""
        if _closes(operation):
            self.outbox.closing_decided(stored=not isinstance(outcome, StoreError))
        if isinstance(outcome, StoreError):
            self._failed(operation)
            return
        match operation:
            case Receive():
                self.inbox.received(operation, outcome)
                for item in operation.items:
                    if isinstance(item, Removal):
                        self._report_gap_in(item)
                self._end_if_done()
            case Acknowledge():
                self.acknowledged_at = self.now()
                self.outbox.acknowledged(outcome, "sent" if self.plain else "acknowledged")
            case Remove() | Expire() | Trim():
                if not isinstance(operation, Remove) or operation.reason is Reason.TOO_LARGE:
                    self._log_removed(outcome.removed)  # of the others `remove_all` tells
                self.outbox.removed(outcome.removed, in_doubt)
            case ReadOut():
                self._read_out(outcome)
            case _:
                pass

    def _failed(self, operation: Operation[Any]) -> None:
        if isinstance(operation, Put) and operation.producer in self._unsaved:
            self._unsaved[operation.producer].put_back(operation.rejected)

    def _read_out(self, page: OutPage) -> None:
        if page.damaged:
            self._log_removed(page.damaged)
            self.outbox.removed(page.damaged)

    def _log_removed(self, removed: Sequence[Removed]) -> None:
        count = sum(gone.messages for gone in removed)
        if count:
            self._warn_of_removed(count, removed[0].reason)

    def _warn_of_removed(self, count: int, reason: Reason) -> None:
        what = (self.connection_id, self.label, count, reason)
        extra = fields("removed", self.connection_id, self.label)
        logger.warning("%s/%s: removed %d messages unsent: %s", *what, extra=extra)

    def _report_gap_in(self, removal: Removal) -> None:
        if removal.reason is Reason.RESTART or removal.messages == 0:
            return
        facts = {"first": removal.first or None, "next": removal.next or None}
        self.count(f"gaps_{removal.reason}")
        self.event("gap", {"direction": "in", "count": removal.messages, "reason": str(removal.reason), **facts})

    def opened(self, peer_durability: Durability | None) -> None:
        """Messages flow: both [8] of the current link are there; or (None) a data channel without frames is open."""
        self.peer_durability = peer_durability
        self.outbox.progressed()
        self.event(
            "open", {"acknowledges": not self.plain, "peer_durability": peer_durability and str(peer_durability)}
        )
        self.outbox.settle()

    def in_doubt(self, count: int) -> None:
        """So many messages, which are not held any more, may not have reached a plain peer."""
        self.count("in_doubt", count)
        logger.warning(
            "%s/%s: the connection ended; %d messages may be lost",
            self.connection_id,
            self.label,
            count,
            extra=fields("in_doubt", self.connection_id, self.label),
        )

    def link_verdict(self, verdict: Verdict) -> None:
        self.link_verdicts[verdict.direction] = verdict
        data = {"direction": str(verdict.direction)}
        if verdict.kind is VerdictKind.GAP:
            count = "?" if verdict.messages is None else verdict.messages
            logger.warning(
                "%s/%s: gap %s: the new link lacks %s messages",
                self.connection_id,
                self.label,
                verdict.direction,
                count,
            )
        if verdict.kind is VerdictKind.RESUMED:
            self.event("resumed", data)
        elif verdict.kind is VerdictKind.GAP and verdict.direction is Direction.OUT:
            self.count("gaps_out")
            facts = {"first": verdict.first or None, "next": verdict.next or None, "count": verdict.messages}
            self.event("gap", {**data, **facts, "reason": str(Reason.LOST)})

    def link_closed(self) -> None:
        """Both closing messages are stored and acknowledged."""
        self.event("close", {})
        self._detach_producers()
        self._end_if_done()

    def flushed(self) -> None:
        """What could go out by now has been handed over."""
        self.outbox.handed_over(self._lane.out.handed)
        for watch in list(self._watches):
            watch.see(self._lane.out.in_flight_bytes)

    def watch_buffer(self, threshold: int, heard: Callable[[int], None]) -> BufferWatch:
        """Call `heard` whenever the bytes sent and not acknowledged have fallen to `threshold`."""
        watch = BufferWatch(threshold, heard, self._watches.discard)
        self._watches.add(watch)
        watch.see(self._lane.out.in_flight_bytes)
        return watch

    def link_lost(self) -> None:
        """There is no link now: the policy decides about what is parked."""
        for watch in self._watches:
            watch.reset()
        self.outbox.settle()

    def end(self) -> None:
        """The session has ended: nothing more is sent; what waits is still delivered."""
        self._ended = True
        self._detach_producers()
        self.outbox.close()
        self._end_if_done()

    def stop(self) -> None:
        """The daemon stops: no more timers."""
        self.outbox.close()

    def forget(self) -> None:
        """The channel is deleted from the store with what is in it."""
        self.outbox.forget()
        self.inbox.forget()

    def _detach_producers(self) -> None:
        """Nothing can be sent any more; a handle that has something left to read ends with that (`_end_if_done`)."""
        reading = [receiver.listener for receiver in self.inbox.receivers] if self.inbox.count else []
        for producer in list(self.outbox.producers.values()):
            if not any(map(producer.tells, reading)):
                producer.detach("closed")

    def _end_if_done(self) -> None:
        """End receiving handles with the last message; not before their own messages are out (they may wait for that)."""
        if (self._ended or (self._peer_closed and self._lane.closed)) and not self.inbox.count:
            self.inbox.detach_all("closed")

    @property
    def _peer_closed(self) -> bool:
        """Whether nothing more will come. Without frames nobody says so: there the end of this side is the end of both."""
        return self._lane.closed if self.plain else self._lane.incoming.closed

    def _inbox_taken(self, count: int, size: int) -> None:
        self._session.inbox_taken(self.label, count, size)
        self._end_if_done()

    def _inbox_bound(self) -> OutboxLimits | None:
        """No back-pressure reaches a peer without frames: its inbox has the limits and the policy of the queue."""
        return self.settings.outbox if self.plain else None

    def _announce_waiting(self) -> None:
        if self.waiting or not (self._ended or self._peer_closed):
            self.event("channel", {"waiting": self.waiting})

    # --- host of the queues ----------------------------------------------------------------------------------------

    def now(self) -> float:
        return self._session.now()

    def stamp(self) -> Stamp:
        return self._session.stamp()

    def execute(self, operation: Operation[Any], done: Callable[[Any], None] | None = None) -> None:
        self._session.execute(operation, done)

    async def run(self, operation: Operation[Any]) -> Any:
        return await self._session.run(operation)

    def put(
        self, payloads: tuple[Payload, ...], max_age: float | None, producer: Producer, first_seq: int
    ) -> Operation[PutResult]:
        rejected = producer.take_unsaved(first_seq + len(payloads) - 1)
        return self._session.put(
            self.label, payloads, max_age=max_age, producer=producer.id, first_seq=first_seq, rejected=rejected
        )

    def event(self, name: str, data: dict[str, Any]) -> None:
        self._session.event(name, data, self.label)

    def count(self, counter: str, amount: int = 1) -> None:
        self.counters[counter] += amount


def _closes(operation: Operation[Any]) -> bool:
    return isinstance(operation, Put) and operation.payloads[-1] is None
