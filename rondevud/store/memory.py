"""The store in memory: plain synchronous state, and the interface of a store around it.

`MemoryTables` does no I/O and imports no event loop, so a test can keep as many copies of it as it likes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

from rondevud import accounts, failed, records
from rondevud.accounts import Totals
from rondevud.errors import StoreConflict, StoreError, StoreFailed
from rondevud.records import (
    ChannelRecord,
    InGap,
    InItem,
    InMessage,
    Operation,
    OutItem,
    OutMessage,
    ProducerRange,
    ProducerRecord,
    Reason,
    Removal,
    SessionRecord,
    Stamp,
    in_messages,
    payload_size,
    payload_sizes,
)
from rondevud.store.base import (
    Done,
    Limits,
    Taken,
    check_closing,
    check_numbers,
    count_messages,
    group_removed,
    merge_rejected,
    oldest_over,
    producer_ranges,
    sizes_of,
)
from rondevud.store.queues import Outbox, Rows, hold

if TYPE_CHECKING:
    import asyncio

Result = TypeVar("Result")

FIRST_ID = 2**40
"""First id of channels and of producers in memory; SQLite gives ids from 1 up, so that the two never meet."""


@dataclass(slots=True)
class _Channel:
    """A channel with its queues; `record` is replaced, never changed."""

    record: ChannelRecord
    outbox: Outbox
    inbox: Rows[InItem]
    base: int = 1
    """Numbers below it left by acknowledgement, in this epoch or an earlier one."""
    next_row: int = 1
    totals: Totals = field(default_factory=Totals)
    aside: dict[int, failed.FailedMessage] = field(default_factory=dict)
    """By the row they had; their order is that in which they were set aside."""

    def change(self, **fields: Any) -> None:
        self.record = self.record._replace(**fields)

    def copy(self) -> _Channel:
        queues = self.outbox.copy(), self.inbox.copy()
        return _Channel(self.record, *queues, self.base, self.next_row, replace(self.totals), self.aside.copy())


@dataclass(frozen=True, slots=True)
class _Producer:
    channel: int
    record: ProducerRecord
    used: Stamp


def _age(then: Stamp, now: Stamp) -> float:
    return max(0.0, now.boottime - then.boottime if then.boot == now.boot else now.wall - then.wall)


def _holds_payload(item: OutItem) -> bool:
    """Whether it is a message, and not a closing one."""
    return isinstance(item, OutMessage) and item.payload is not None


class MemoryTables:
    """Everything a store holds. `execute` carries out an operation wholly or raises `StoreConflict` and changes nothing."""

    _handlers: ClassVar[dict[type[Operation[Any]], Callable[[Any, Any], Any]]] = {}

    def __init__(self, first_id: int = FIRST_ID, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._next_channel = first_id
        self._next_producer = first_id
        self._sessions: dict[str, SessionRecord] = {}
        self._declarations: dict[tuple[str, str], records.Declaration] = {}
        self._channels: dict[int, _Channel] = {}
        self._labels: dict[str, dict[str, int]] = {}  # by connection id: label → channel
        self._producers: dict[int, _Producer] = {}
        self._names: dict[int, dict[bytes, int]] = {}  # by channel: name → producer

    def copy(self) -> MemoryTables:
        """An independent copy; what is never changed is shared."""
        other = MemoryTables(limits=self._limits)
        other._next_channel = self._next_channel
        other._next_producer = self._next_producer
        other._sessions = self._sessions.copy()
        other._declarations = self._declarations.copy()
        other._channels = {number: channel.copy() for number, channel in self._channels.items()}
        other._labels = {connection: labels.copy() for connection, labels in self._labels.items()}
        other._producers = self._producers.copy()
        other._names = {channel: names.copy() for channel, names in self._names.items()}
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> MemoryTables:
        return self.copy()

    def execute(self, operation: Operation[Result]) -> Result:
        """Carry out one operation. Raises `StoreConflict` when it does not fit; nothing has changed then."""
        return cast("Result", self._handlers[type(operation)](self, operation))

    def _channel(self, number: int) -> _Channel:
        if (channel := self._channels.get(number)) is None:
            raise StoreConflict(f"no channel {number}")
        return channel

    # --- sessions and declarations ---------------------------------------------------------------------------------

    def _save_session(self, operation: records.SaveSession) -> None:
        self._sessions[operation.session.connection_id] = operation.session

    def _delete_session(self, operation: records.DeleteSession) -> None:
        self._sessions.pop(operation.connection_id, None)
        for channel in list(self._labels.get(operation.connection_id, {}).values()):
            self._drop_channel(channel)

    def _load_sessions(self, _operation: records.LoadSessions) -> records.Sessions:
        sessions = [self._sessions[connection] for connection in sorted(self._sessions)]
        return records.Sessions(sessions, [self._channels[number].record for number in sorted(self._channels)], [])

    def _save_declaration(self, operation: records.SaveDeclaration) -> None:
        declaration = operation.declaration
        self._declarations[declaration.kind, declaration.name] = declaration

    def _delete_declaration(self, operation: records.DeleteDeclaration) -> None:
        self._declarations.pop((operation.kind, operation.name), None)

    def _load_declarations(self, _operation: records.LoadDeclarations) -> list[records.Declaration]:
        return [self._declarations[key] for key in sorted(self._declarations)]

    # --- channels --------------------------------------------------------------------------------------------------

    def _create_channel(self, operation: records.CreateChannel) -> ChannelRecord:
        if operation.connection_id not in self._sessions:
            raise StoreConflict(f"no session {operation.connection_id}")
        labels = self._labels.setdefault(operation.connection_id, {})
        if operation.label in labels:
            raise StoreConflict(f"{operation.connection_id} has a channel {operation.label!r} already")
        record = ChannelRecord(
            self._next_channel,
            operation.connection_id,
            operation.label,
            operation.durability,
            operation.options,
            operation.epoch,
        )
        self._next_channel += 1
        labels[operation.label] = record.id
        self._channels[record.id] = _Channel(record, Outbox(), Rows())
        return record

    def _set_channel_options(self, operation: records.SetChannelOptions) -> None:
        self._channel(operation.channel).change(options=operation.options)

    def _set_epoch(self, operation: records.SetEpoch) -> None:
        channel = self._channel(operation.channel)
        check_numbers(operation.floor)
        self._raise_next(channel, operation.floor)
        channel.change(epoch=operation.epoch, acked=0, acked_count=0)
        if operation.reopen:
            channel.change(out_closed=0, in_closed=2 if channel.record.in_closed else 0)

    def _drop_channel(self, number: int) -> None:
        record = self._channels.pop(number).record
        del self._labels[record.connection_id][record.label]
        if not self._labels[record.connection_id]:
            del self._labels[record.connection_id]
        for producer in self._names.pop(number, {}).values():
            del self._producers[producer]

    def _mark_attached(self, operation: records.MarkAttached) -> None:
        self._channel(operation.channel).change(attached=True)

    # --- the outbox ------------------------------------------------------------------------------------------------

    @staticmethod
    def _raise_next(channel: _Channel, floor: int) -> bool:
        """Raise the channel's next number to `floor`, saying so with a `restart` removal; whether it was below."""
        first = channel.record.next
        if floor <= first:
            return False
        channel.outbox.removals.add(Removal(first, floor, Reason.RESTART, 0))
        channel.change(next=floor)
        return True

    def _put(self, operation: records.Put) -> records.PutResult:
        channel = self._channel(operation.channel)
        check_closing(operation.payloads)
        check_numbers(operation.floor, operation.first_seq)
        sizes = sizes_of(operation.payloads)
        self._check_producer(operation.channel, operation.producer)
        jumped = bool(sizes) and self._raise_next(channel, operation.floor)
        record = channel.record
        first = record.next
        sender = (operation.producer, operation.first_seq)
        channel.outbox.extend(first, hold(operation.payloads, sizes, *sender, operation.stamp, operation.max_age))
        closing = bool(sizes) and operation.payloads[-1] is None
        channel.change(
            next=first + len(sizes),
            out_count=record.out_count + len(sizes),
            out_bytes=record.out_bytes + sum(sizes),
            out_closed=first + len(sizes) - 1 if closing else record.out_closed,
        )
        channel.totals.accepted += len(sizes)
        if operation.producer > 0:
            self._advance_producer(operation)
        return records.PutResult(first, first + len(sizes), sum(sizes), jumped)

    def _check_producer(self, channel: int, producer: int) -> None:
        if producer > 0 and (producer not in self._producers or self._producers[producer].channel != channel):
            raise StoreConflict(f"no producer {producer} in channel {channel}")

    def _advance_producer(self, operation: records.Put) -> None:
        producer = self._producers[operation.producer]
        record = producer.record
        last_seq = max(record.last_seq, operation.first_seq + len(operation.payloads) - 1)
        rejected = merge_rejected(record.rejected, operation.rejected, last_seq)
        record = record._replace(last_seq=last_seq, rejected=rejected)
        self._producers[record.id] = replace(producer, record=record, used=operation.stamp)

    def _tell_producers(self, ranges: tuple[ProducerRange, ...], *, acknowledged: bool) -> None:
        """Set what producers remember of their messages that left the outbox."""
        for told in ranges:
            if (producer := self._producers.get(told.producer)) is None:
                continue
            record = producer.record
            if acknowledged:
                record = record._replace(acknowledged_seq=max(record.acknowledged_seq, told.last))
            else:
                removed, unreported = record.removed + told.messages, record.unreported + told.messages
                record = record._replace(removed=removed, unreported=unreported)
            self._producers[told.producer] = replace(producer, record=record)

    @staticmethod
    def _left_outbox(channel: _Channel, taken: list[Taken]) -> None:
        record = channel.record
        count, size = count_messages(taken), sum(row.size for row in taken)
        channel.change(out_count=record.out_count - count, out_bytes=record.out_bytes - size)

    def _acknowledge(self, operation: records.Acknowledge) -> records.Acknowledged:
        channel = self._channel(operation.channel)
        check_numbers(operation.recv_next)
        self._raise_next(channel, operation.recv_next)
        record, outbox = channel.record, channel.outbox
        if operation.recv_next <= record.acked:
            return records.Acknowledged(record.acked, 0, 0, (), more=False)
        limit = self._limits.slice_rows
        upto = outbox.removals.first_end_over(limit, operation.recv_next)
        numbers = outbox.messages.keys(0, upto, limit + 1)
        if len(numbers) > limit:
            upto = numbers[limit - 1] + 1
        taken = outbox.take(numbers[:limit])
        count, size = count_messages(taken), sum(row.size for row in taken)
        outbox.removals.drop_below(upto)
        ranges = producer_ranges(taken)
        self._left_outbox(channel, taken)
        channel.totals.acknowledged += count
        self._tell_producers(ranges, acknowledged=True)
        channel.base = max(channel.base, upto)
        channel.change(acked=upto, acked_count=record.acked_count + count)
        return records.Acknowledged(upto, count, size, ranges, more=upto < operation.recv_next)

    def _removed(self, channel: _Channel, taken: list[Taken], reason: Reason) -> list[records.Removed]:
        """Write removals for messages that were taken, in the order of their numbers."""
        removed = group_removed(taken, reason)
        for item in removed:
            channel.outbox.removals.add(Removal(item.first, item.next, reason, item.messages))
            self._tell_producers(item.producers, acknowledged=False)
        self._left_outbox(channel, taken)
        channel.totals.remove(reason, count_messages(taken))
        return removed

    def _expire(self, operation: records.Expire) -> records.RemoveResult:
        channel = self._channel(operation.channel)
        taken = channel.outbox.take_expired(operation.stamp, self._limits.slice_rows)
        removed = self._removed(channel, taken, Reason.EXPIRED)
        return records.RemoveResult(removed, more=channel.outbox.next_expiry(operation.stamp) == 0.0)

    def _trim(self, operation: records.Trim) -> records.RemoveResult:
        channel = self._channel(operation.channel)
        count, size = channel.record.out_count, channel.record.out_bytes
        numbers: list[int] = []
        more = False
        for seq, message in channel.outbox.messages.since(0):
            over_count = operation.max_count is not None and count > operation.max_count
            if not over_count and (operation.max_bytes is None or size <= operation.max_bytes):
                break
            if message.payload is None:
                continue
            if len(numbers) == self._limits.slice_rows:
                more = True
                break
            numbers.append(seq)
            count, size = count - 1, size - message.size
        taken = channel.outbox.take(numbers)
        return records.RemoveResult(self._removed(channel, taken, Reason.OVERFLOW), more)

    def _remove(self, operation: records.Remove) -> records.RemoveResult:
        channel = self._channel(operation.channel)
        limit = self._limits.slice_rows
        numbers: list[int] = []
        for seq, message in channel.outbox.messages.since(operation.first):
            if seq >= operation.next or len(numbers) > limit:
                break
            if message.payload is not None or not operation.keep_closing:
                numbers.append(seq)
        taken = channel.outbox.take(numbers[:limit])
        return records.RemoveResult(self._removed(channel, taken, operation.reason), more=len(numbers) > limit)

    def _read_out(self, operation: records.ReadOut) -> records.OutPage:
        channel = self._channel(operation.channel)
        end = channel.record.next
        number = max(operation.first, channel.base)
        removals = channel.outbox.removals.since(number)
        removal = next(removals, None)
        items: list[OutItem] = []
        size, carries = 0, False
        while number < end and len(items) < self._limits.page_messages:
            if (message := channel.outbox.messages.get(number)) is not None:
                size += message.size
                if size > self._limits.page_bytes and carries:
                    break
                carries = True
                items.append(OutMessage(number, message.payload))
                number += 1
            elif removal is not None and removal.first == number:
                items.append(removal)
                number = removal.next
                removal = next(removals, None)
            else:
                raise StoreError(f"number {number} of channel {channel.record.id} is neither held nor removed")
        return records.OutPage(items, number, end=number >= end, damaged=[])

    def _find_expiry(self, operation: records.FindExpiry) -> records.NextExpiry:
        return records.NextExpiry(self._channel(operation.channel).outbox.next_expiry(operation.stamp))

    # --- the inbox -------------------------------------------------------------------------------------------------

    def _receive(self, operation: records.Receive) -> records.ReceiveResult:
        channel = self._channel(operation.channel)
        record = channel.record
        if (record.peer_epoch, record.recv_next) != (operation.expect_epoch, operation.expect_next):
            raise StoreConflict(f"channel {record.id} is at {record.peer_epoch.hex()}-{record.recv_next}")
        counts = [item.messages or 0 for item in operation.items if isinstance(item, Removal)]
        check_numbers(operation.recv_next, *counts, record.recv_count + sum(counts))
        first_row, gaps = channel.next_row, 0
        same_epoch = operation.epoch == record.peer_epoch
        count, closed = (record.recv_count, record.in_closed) if same_epoch else (0, 0)
        sizes = sizes_of([item.payload for item in operation.items if isinstance(item, OutMessage)])
        count, size = count + len(sizes), sum(sizes)
        for is_message, group in groupby(operation.items, _holds_payload):
            if is_message:
                run = cast("list[OutMessage]", list(group))
                rows = list(in_messages(channel.next_row, operation.epoch, run, operation.stamp.wall))
                channel.inbox.extend(channel.next_row, rows)
                channel.next_row += len(run)
                continue
            for item in group:
                if isinstance(item, OutMessage):
                    closed = 1
                    continue
                count += (item.messages or 0) if item.reason is Reason.LOST else 0
                if item.messages == 0 or item.reason is Reason.RESTART:
                    continue
                channel.inbox.append(
                    channel.next_row, InGap(channel.next_row, operation.epoch, item, operation.stamp.wall)
                )
                channel.next_row += 1
                gaps += 1
        added = channel.next_row - first_row
        channel.totals.received += added - gaps
        channel.change(
            peer_epoch=operation.epoch,
            recv_next=operation.recv_next,
            recv_count=count,
            in_closed=closed,
            in_count=record.in_count + added,
            in_bytes=record.in_bytes + size,
            in_gaps=record.in_gaps + gaps,
        )
        return records.ReceiveResult(first_row, added, size)

    def _read_in(self, operation: records.ReadIn) -> records.InPage:
        channel = self._channel(operation.channel)
        items: list[InItem] = []
        size = 0
        for _, item in islice(channel.inbox.since(operation.row), self._limits.page_messages):
            size += payload_size(item.payload) if isinstance(item, InMessage) else 0
            if items and size > self._limits.page_bytes:
                break
            items.append(item)
        return records.InPage(items, items[-1].row + 1 if items else operation.row, damaged=0, gaps=0)

    def _ack_in(self, operation: records.AckIn) -> records.InRemoved:
        channel = self._channel(operation.channel)
        removed = self._delete(channel, operation.first_row, operation.upto_row)
        if operation.purge:
            channel.totals.purged_in += removed.messages - removed.gaps
        else:
            channel.totals.taken += removed.messages - removed.gaps
        return removed

    def _delete(self, channel: _Channel, first_row: int, upto_row: int) -> records.InRemoved:
        """Delete one slice of the rows ``first_row … upto_row - 1``; the caller accounts for them."""
        end = min(upto_row, channel.next_row)
        first, _ = next(channel.inbox.since(first_row), (end, None))
        if first >= end:
            return records.InRemoved(0, 0, 0, 0, more=False)
        upto = min(end, first + self._limits.slice_rows)
        gone = channel.inbox.delete(channel.inbox.keys(first, upto, self._limits.slice_rows))
        messages = [item.payload for item in gone if isinstance(item, InMessage)]
        gaps, size = len(gone) - len(messages), sum(payload_sizes(messages))
        record = channel.record
        channel.change(
            in_count=record.in_count - len(gone), in_bytes=record.in_bytes - size, in_gaps=record.in_gaps - gaps
        )
        return records.InRemoved(len(gone), size, gaps, upto, more=upto < end)

    def _trim_in(self, operation: records.TrimIn) -> records.InRemoved:
        channel = self._channel(operation.channel)
        behind = self._over(channel, operation, self._limits.slice_rows)
        removed = self._delete(channel, 0, behind)
        channel.totals.overflow_in += removed.messages - removed.gaps
        return removed._replace(more=bool(self._over(channel, operation, 1)))

    @staticmethod
    def _over(channel: _Channel, limits: records.TrimIn, most: int) -> int:
        """The row behind the oldest ones, `most` of them at most, that exceed the limits; 0 = none do."""
        oldest = islice(channel.inbox.since(0), most)
        sizes = ((row, payload_size(item.payload) if isinstance(item, InMessage) else 0) for row, item in oldest)
        record = channel.record
        return oldest_over(sizes, record.in_count, record.in_bytes, limits.max_count, limits.max_bytes)

    # --- messages that programs die of -----------------------------------------------------------------------------

    def _message(self, channel: _Channel, row: int) -> InMessage | None:
        item = channel.inbox.get(row)
        return item if isinstance(item, InMessage) else None

    def _count_try(self, operation: failed.CountTry) -> None:
        channel = self._channel(operation.channel)
        if (message := self._message(channel, operation.row)) is not None:
            channel.inbox.replace(operation.row, message._replace(tries=operation.tries))

    def _set_aside(self, operation: failed.SetAside) -> failed.Aside | None:
        channel = self._channel(operation.channel)
        if (message := self._message(channel, operation.row)) is None:
            return None
        size = payload_size(message.payload)
        self._delete(channel, operation.row, operation.row + 1)
        fields = (message.row, message.epoch, message.seq, message.payload, operation.tries, message.enqueued)
        channel.aside[message.row] = failed.FailedMessage(*fields, operation.stamp.wall)
        record = channel.record
        channel.change(failed=record.failed + 1, failed_bytes=record.failed_bytes + size)
        return failed.Aside(message.seq, size)

    def _failed_from(self, channel: _Channel, first: int) -> tuple[list[failed.FailedMessage], bool]:
        """One page of what is set aside, and whether that is all."""
        page: list[failed.FailedMessage] = []
        size = 0
        for row in sorted(row for row in channel.aside if row >= first):
            size += payload_size(channel.aside[row].payload)
            if page and (len(page) == self._limits.page_messages or size > self._limits.page_bytes):
                return page, False
            page.append(channel.aside[row])
        return page, True

    def _read_failed(self, operation: failed.ReadFailed) -> failed.FailedPage:
        page, whole = self._failed_from(self._channel(operation.channel), operation.row)
        return failed.FailedPage(page, 0 if whole else page[-1].row + 1)

    def _free_failed(self, operation: failed.FreeFailed) -> failed.Freed:
        channel = self._channel(operation.channel)
        if operation.row is None:
            freed, whole = self._failed_from(channel, 0)
        else:
            freed, whole = [channel.aside[row] for row in (operation.row,) if row in channel.aside], True
        first_row, size = channel.next_row, sum(payload_size(message.payload) for message in freed)
        for message in freed:
            del channel.aside[message.row]
            if operation.put_back:
                row = InMessage(channel.next_row, message.epoch, message.seq, message.payload, message.enqueued)
                channel.inbox.append(channel.next_row, row)
                channel.next_row += 1
        record, back = channel.record, len(freed) if operation.put_back else 0
        channel.totals.purged_in += len(freed) - back
        channel.change(
            failed=record.failed - len(freed),
            failed_bytes=record.failed_bytes - size,
            in_count=record.in_count + back,
            in_bytes=record.in_bytes + (size if back else 0),
        )
        return failed.Freed(len(freed), size, first_row, channel.record.failed, more=not whole)

    def _read_accounts(self, operation: accounts.ReadAccounts) -> accounts.Accounts:
        channel = self._channel(operation.channel)
        record = channel.record
        counts = (record.out_count, record.in_count, record.in_gaps, record.failed)
        _, out = next(channel.outbox.messages.since(0), (0, None))
        _, in_ = next(channel.inbox.since(0), (0, None))
        ages = (None if out is None else out.accepted, None if in_ is None else in_.enqueued)
        return accounts.Accounts(replace(channel.totals), *counts, *ages)

    # --- producers -------------------------------------------------------------------------------------------------

    def _open_producer(self, operation: records.OpenProducer) -> ProducerRecord:
        self._channel(operation.channel)
        names = self._names.setdefault(operation.channel, {})
        if (number := names.get(operation.name)) is None:
            number = names[operation.name] = self._next_producer
            self._next_producer += 1
            record = ProducerRecord(number, operation.name)
        else:
            record = self._producers[number].record
        self._producers[number] = _Producer(operation.channel, record._replace(unreported=0), operation.stamp)
        return record

    def _forget_producers(self, operation: records.ForgetProducers) -> int:
        unused = (
            (number, producer)
            for number, producer in sorted(self._producers.items(), key=lambda item: item[0])
            if number not in operation.keep and _age(producer.used, operation.stamp) >= operation.seconds
        )
        forgotten = list(islice(unused, self._limits.slice_rows))
        for number, producer in forgotten:
            del self._producers[number]
            del self._names[producer.channel][producer.record.name]
        return len(forgotten)

    _handlers.update(
        {
            records.SaveSession: _save_session,
            records.DeleteSession: _delete_session,
            records.LoadSessions: _load_sessions,
            records.SaveDeclaration: _save_declaration,
            records.DeleteDeclaration: _delete_declaration,
            records.LoadDeclarations: _load_declarations,
            records.CreateChannel: _create_channel,
            records.SetChannelOptions: _set_channel_options,
            records.SetEpoch: _set_epoch,
            records.MarkAttached: _mark_attached,
            records.Put: _put,
            records.Acknowledge: _acknowledge,
            records.Expire: _expire,
            records.Trim: _trim,
            records.Remove: _remove,
            records.ReadOut: _read_out,
            records.FindExpiry: _find_expiry,
            records.Receive: _receive,
            records.ReadIn: _read_in,
            records.AckIn: _ack_in,
            records.TrimIn: _trim_in,
            failed.CountTry: _count_try,
            failed.SetAside: _set_aside,
            failed.ReadFailed: _read_failed,
            failed.FreeFailed: _free_failed,
            accounts.ReadAccounts: _read_accounts,
            records.OpenProducer: _open_producer,
            records.ForgetProducers: _forget_producers,
        }
    )


class MemoryStore:
    """A `rondevud.store.base.Store` over `MemoryTables`: what is stored lives as long as the process."""

    def __init__(self, loop: asyncio.AbstractEventLoop, tables: MemoryTables | None = None) -> None:
        self._loop = loop
        self._tables = tables or MemoryTables()
        self._answers: deque[Callable[[], None]] = deque()
        self._closed = False

    @property
    def failing(self) -> StoreFailed | None:
        return None

    def submit(self, operation: Operation[Result], done: Done[Result] | None = None) -> None:
        """See `rondevud.store.base.Store`."""
        result: Result | StoreError
        try:
            if self._closed:
                raise StoreFailed("the store is closed")
            result = self._tables.execute(operation)
        except StoreError as error:
            result = error
        if done is None:
            return
        if not self._answers:
            self._loop.call_soon(self._answer)
        self._answers.append(lambda: done(result))

    def _answer(self) -> None:
        """Give the answers that are there; those that they bring about come in another turn of the loop."""
        answers, self._answers = self._answers, deque()
        while answers:
            try:
                answers.popleft()()
            except Exception as error:  # noqa: BLE001 - a callback's error must not withhold the others' answers
                self._loop.call_exception_handler({"message": "a store callback failed", "exception": error})

    async def execute(self, operation: Operation[Result]) -> Result:
        """See `rondevud.store.base.Store`."""
        answer: asyncio.Future[Result] = self._loop.create_future()

        def done(result: Result | StoreError) -> None:
            if answer.done():
                return
            if isinstance(result, StoreError):
                answer.set_exception(result)
            else:
                answer.set_result(result)

        self.submit(operation, done)
        return await answer

    def alive(self) -> float:
        """Always 0.0: nothing is ever under way."""
        return 0.0

    async def close(self) -> None:
        """Refuse further operations; what was answered stays answered."""
        self._closed = True
