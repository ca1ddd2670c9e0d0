"""A channel over a store, without a link: its queues, its limits, and who is told."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import pytest

from rondevud.durable import outbox
from rondevud.durable.channel import DurableChannel
from rondevud.durable.incoming import InboxLimits
from rondevud.durable.lanes import Lanes
from rondevud.durable.settings import ChannelSettings, OutboxLimits
from rondevud.errors import StoreError, StoreFailed
from rondevud.records import (
    Acknowledge,
    Durability,
    Expire,
    FindExpiry,
    LoadSessions,
    OpenProducer,
    OutMessage,
    Put,
    ReadIn,
    ReadOut,
    Reason,
    Receive,
)
from rondevud.store.base import Limits
from rondevud.store.memory import MemoryStore, MemoryTables
from rondevud.transport.base import RELIABLE
from tests.unit.store.kit import NOW, PEER, make_channel


class Session:
    """The session, as its channel sees it; `clock` is moved by hand."""

    connection_id = "conn-1"
    max_message = 1_000_000
    refusal = None

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.clock = 100.0
        self.events: list[tuple[str, dict]] = []
        self.failures: list[StoreError] = []
        """Outcomes of the next operations of `failing` types."""
        self.failing: tuple[type, ...] = ()
        self.channel: DurableChannel
        self.lanes: Lanes

    def now(self) -> float:
        return self.clock

    def stamp(self):
        return NOW

    def execute(self, operation, done=None) -> None:
        def completed(outcome) -> None:
            in_doubt = self.lanes.completed(operation, outcome)
            self.channel.completed(operation, outcome, in_doubt)
            if done is not None:
                done(outcome)

        self.channel.submitted(operation)
        if isinstance(operation, self.failing) and self.failures:
            asyncio.get_running_loop().call_soon(completed, self.failures.pop())
        else:
            self.store.submit(operation, completed)

    async def run(self, operation):
        answer = asyncio.get_running_loop().create_future()
        self.execute(operation, answer.set_result)
        outcome = await answer
        if isinstance(outcome, StoreError):
            raise outcome
        return outcome

    def put(self, label, payloads, **facts):
        return self.lanes.put(label, payloads, NOW, **facts)

    def inbox_taken(self, label, count, size) -> None:
        self.lanes.taken(label, count, size)

    def event(self, name, data, label=None) -> None:
        self.events.append((name, data))

    def store_failing(self, durability) -> None:
        return None

    def of(self, name: str) -> list[dict]:
        return [data for event, data in self.events if event == name]


class Program:
    """Hears a producer and a receiver."""

    def __init__(self) -> None:
        self.answers: list[tuple] = []
        self.got: list[tuple[int, str, int]] = []
        self.missing: list[dict] = []
        self.ends: list[str] = []
        self.news = asyncio.Event()

    def accepted(self, upto_seq) -> None:
        self._add(("accepted", upto_seq))

    def rejected(self, seq, code, message) -> None:
        self._add(("rejected", seq, code))

    def removed(self, from_seq, upto_seq, reason) -> None:
        self._add(("removed", from_seq, upto_seq, reason))

    def sent(self, upto_seq) -> None:
        self._add(("sent", upto_seq))

    def acknowledged(self, upto_seq) -> None:
        self._add(("acknowledged", upto_seq))

    def _add(self, answer) -> None:
        self.answers.append(answer)
        self.news.set()

    def messages(self, tag, rows) -> None:
        self.got += [(tag + i, payload, attempt) for i, (payload, _, _, attempt) in enumerate(rows)]
        self.news.set()

    def gap(self, tag, gap) -> None:
        self.missing.append(gap)
        self.news.set()

    def missed(self, count) -> None:
        pass

    def detached(self, reason) -> None:
        self.ends.append(reason)
        self.news.set()

    async def until(self, condition) -> None:
        """Wait until `condition` holds; something this program hears must make it so."""
        while not condition():
            self.news.clear()
            await self.news.wait()


@pytest.fixture
async def store():
    store = MemoryStore(asyncio.get_running_loop(), MemoryTables(limits=Limits(slice_rows=4)))
    yield store
    await store.close()


async def open_channel(store, **limits) -> tuple[Session, DurableChannel]:
    """A channel of a new session, or what another left in the store."""
    if not (await store.execute(LoadSessions())).channels:
        await make_channel(store)
    record = (await store.execute(LoadSessions())).channels[0]
    session = Session(store)
    emitted: list = []
    session.lanes = Lanes(
        [(record, InboxLimits(), RELIABLE)], 10, clock_us=1_000, random=lambda n: b"r" * n, emit=emitted.append
    )
    settings = ChannelSettings(Durability.MEMORY, OutboxLimits(**limits), InboxLimits(), b"")
    session.channel = DurableChannel(record, session.lanes["main"], settings, session)
    return session, session.channel


async def sender(channel, name=b"program") -> tuple:
    program = Program()
    return await channel.open_producer(name, program, takeover=True), program


# --- emptying the outbox ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "events"), [(Reason.PURGED, [{"count": 10, "direction": "out"}]), (Reason.EXPIRED, [])]
)
async def test_all_is_removed_however_many_slices_it_takes_told_and_logged_once(store, caplog, reason, events):
    session, channel = await open_channel(store)
    producer, program = await sender(channel)
    producer.send(1, ["text"] * 10, None)
    await program.until(lambda: ("accepted", 10) in program.answers)
    with caplog.at_level(logging.WARNING, "rondevud"):
        assert await channel.remove_all(reason) == 10
    assert channel.outbox.count == 0
    assert session.of("purged") == events
    assert [record.getMessage() for record in caplog.records] == [f"conn-1/main: removed 10 messages unsent: {reason}"]
    channel.stop()


async def test_what_a_limit_removes_is_logged(store, caplog):
    _, channel = await open_channel(store, max_count=3, overflow="drop_oldest")
    producer, program = await sender(channel)
    producer.send(1, ["text"] * 3, None)
    await program.until(lambda: ("accepted", 3) in program.answers)
    with caplog.at_level(logging.WARNING, "rondevud"):
        producer.send(4, ["text"] * 2, None)
        await program.until(lambda: ("accepted", 5) in program.answers)
    assert [record.getMessage() for record in caplog.records] == ["conn-1/main: removed 2 messages unsent: overflow"]
    channel.stop()


# --- the policy of a full outbox -------------------------------------------------------------------------------------


def open_link(channel) -> None:
    """The channel flows, as after both [8] of a link."""
    channel._lane.out.flowing = True
    channel.opened(Durability.MEMORY)


@pytest.mark.parametrize("overflow", ["drop_oldest", "reject"])
async def test_a_burst_after_idleness_on_a_healthy_link_waits_for_room(store, overflow):
    session, channel = await open_channel(store, max_count=3, overflow=overflow)
    open_link(channel)
    session.clock += 3_600
    producer, program = await sender(channel)
    producer.send(1, ["text"] * 5, None)
    await program.until(lambda: ("accepted", 3) in program.answers)
    assert channel.outbox.parked == 1
    assert not session.of("queue_overflow")
    channel.stop()


# --- a store that fails ----------------------------------------------------------------------------------------------


async def receive(session, *payloads) -> None:
    """The peer's next messages are stored."""
    incoming = session.lanes["main"].incoming
    first = incoming.recv_next or 1
    items = tuple(OutMessage(seq, payload) for seq, payload in enumerate(payloads, first))
    receive = Receive(session.channel.id, incoming.epoch, incoming.recv_next, PEER, first + len(items), items, NOW)
    incoming._storing = receive
    await session.run(receive)


async def test_messages_expire_though_the_store_failed_when_they_were_looked_for(store, monkeypatch):
    monkeypatch.setattr(outbox, "EXPIRY_LATEST", 0.0)
    session, channel = await open_channel(store)
    producer, program = await sender(channel)
    session.failing, session.failures = (Expire, FindExpiry), [StoreFailed("no"), StoreFailed("no")]
    producer.send(1, ["text"], 0.0)
    await program.until(lambda: ("removed", 1, 1, "expired") in program.answers)
    assert not session.failures
    channel.stop()


async def test_what_waits_is_delivered_though_reading_it_failed_once(store):
    session, channel = await open_channel(store)
    await receive(session, "waiting")
    session.failing, session.failures = (ReadIn,), [StoreFailed("no")]
    program = Program()
    receiver = await channel.open_receiver("exclusive", program, takeover=False)
    receiver.credit(10)
    await program.until(lambda: program.got)
    assert program.got == [(1, "waiting", 1)]
    assert not session.failures


async def test_waiting_in_vain_for_an_empty_outbox_leaves_nothing_behind(store):
    _, channel = await open_channel(store)
    producer, program = await sender(channel)
    producer.send(1, ["text"], None)
    await program.until(lambda: ("accepted", 1) in program.answers)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(channel.outbox.drained(), 0)
    task = asyncio.ensure_future(channel.outbox.drained())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert channel.outbox._drained == []


# --- delivery --------------------------------------------------------------------------------------------------------


async def reader(channel, credit=1_000) -> tuple:
    program = Program()
    receiver = await channel.open_receiver("exclusive", program, takeover=True)
    receiver.credit(credit)
    return receiver, program


async def test_a_purge_beside_traffic_delivers_nothing_twice_and_takes_only_what_it_counts(store):
    session, channel = await open_channel(store)
    receiver, program = await reader(channel)
    await receive(session, "one", "two")
    await program.until(lambda: len(program.got) == 2)
    purging = asyncio.ensure_future(channel.purge("in"))
    await asyncio.sleep(0)
    await receive(session, "three")
    await receive(session, "four")
    assert await purging == {"out": 0, "in": 2}
    await program.until(lambda: len(program.got) >= 4)
    await store.execute(LoadSessions())
    assert program.got == [(1, "one", 1), (2, "two", 1), (3, "three", 1), (4, "four", 1)]
    assert channel.inbox.count == 2
    receiver.ack(4)
    await store.execute(LoadSessions())
    assert (channel.inbox.count, channel.inbox.size) == (0, 0)


async def test_a_purge_of_what_is_read_ahead_leaves_what_comes_later_in_its_order(store):
    session, channel = await open_channel(store)
    await receive(session, *(f"m{number}" for number in range(1, 11)))
    receiver, program = await reader(channel, credit=2)
    await program.until(lambda: len(program.got) == 2)
    assert (await channel.purge("in"))["in"] == 10
    await receive(session, "later")
    receiver.credit(10)
    await program.until(lambda: len(program.got) == 3)
    assert program.got[2] == (3, "later", 1)


async def test_what_is_loaded_for_a_slow_reader_is_bounded_in_bytes_and_comes_in_order(store):
    session, channel = await open_channel(store)
    receiver, program = await reader(channel, credit=0)
    large = "x" * (1024 * 1024)
    for number in range(12):
        await receive(session, f"{number}{large}")
        assert channel.inbox._loaded_bytes <= 6 * len(large)
    receiver.credit(100)
    await program.until(lambda: len(program.got) == 12)
    assert [payload.rstrip("x") for _, payload, _ in program.got] == [str(number) for number in range(12)]
    assert channel.inbox._loaded_bytes == 0


async def test_one_notification_is_bounded_in_bytes(store):
    session, channel = await open_channel(store)
    _, program = await reader(channel, credit=0)
    runs = []
    program.messages = lambda tag, rows: runs.append(len(rows))
    await receive(session, *["x" * 100_000] * 7)
    channel.inbox.receivers[0].credit(100)
    assert runs == [3, 3, 1]


async def test_a_takeover_does_not_offer_the_channel_to_others(store):
    session, channel = await open_channel(store)
    await receive(session, "waiting")
    session.events.clear()
    _, former = await reader(channel)
    await former.until(lambda: former.got)
    _, latter = await reader(channel)
    await latter.until(lambda: latter.got)
    assert former.ends == ["taken_over"]
    assert session.of("channel") == []
    latter_receiver = channel.inbox.receivers[0]
    latter_receiver.close()
    assert session.of("channel") == [{"waiting": 1}]


# --- the end ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["exclusive", "observe"])
async def test_attaching_to_an_ended_and_empty_channel_ends_soon(store, mode):
    _, channel = await open_channel(store)
    channel.end()
    program = Program()
    await channel.open_receiver(mode, program, takeover=False)
    assert program.ends == []
    await program.until(lambda: program.ends)
    assert program.ends == ["closed"]


async def test_a_handle_outlives_the_peer_s_close_until_its_own_messages_are_acknowledged(store):
    session, channel = await open_channel(store)
    _, program = await reader(channel)
    producer = await channel.open_producer(b"program", program, takeover=False)
    producer.send(1, ["mine"], None)
    await program.until(lambda: ("accepted", 1) in program.answers)
    await receive(session, None)
    assert channel.closing
    assert program.ends == []
    session.execute(session.lanes.close("main", NOW))
    session.execute(Acknowledge(channel.id, session.lanes["main"].out.next + 1))
    await program.until(lambda: ("acknowledged", 1) in program.answers)
    session.lanes._settle(session.lanes["main"], NOW)
    channel.link_closed()
    assert set(program.ends) == {"closed"}


# --- submissions larger than the limits ------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [{"max_count": 3}, {"max_bytes": 6}])
async def test_dropping_the_oldest_keeps_the_limit_for_a_submission_larger_than_it(store, limits):
    _, channel = await open_channel(store, overflow="drop_oldest", **limits)
    producer, program = await sender(channel)
    producer.send(1, [f"m{number}" for number in range(1, 9)], None)
    await program.until(lambda: ("accepted", 8) in program.answers)
    await store.execute(LoadSessions())
    page = await store.execute(ReadOut(channel.id, 0))
    assert [item.payload for item in page.items if isinstance(item, OutMessage)] == ["m6", "m7", "m8"]
    assert (channel.outbox.count, channel.counters["removed_overflow"]) == (3, 5)
    assert [answer for answer in program.answers if answer[0] == "rejected"] == []
    channel.stop()


async def test_a_message_over_the_limit_is_refused_without_its_neighbours(store):
    _, channel = await open_channel(store, max_bytes=100)
    producer, program = await sender(channel)
    producer.send(1, ["one", "two", "x" * 101, "four", "y" * 101], None)
    await program.until(lambda: ("accepted", 5) in program.answers)
    assert [answer for answer in program.answers if answer[0] == "rejected"] == [
        ("rejected", 3, "queue_full"),
        ("rejected", 5, "queue_full"),
    ]
    assert channel.outbox.count == 3
    channel.stop()


# --- what was sent ---------------------------------------------------------------------------------------------------


async def confirming(channel, name=b"p") -> tuple:
    producer, program = await sender(channel, name)
    producer.confirm_sent()
    return producer, program


async def numbers(store, channel) -> list[int]:
    """The store's numbers behind the messages that wait."""
    return [
        item.seq + 1 for item in (await store.execute(ReadOut(channel.id, 0))).items if isinstance(item, OutMessage)
    ]


def sent(program) -> list[int]:
    return [answer[1] for answer in program.answers if answer[0] == "sent"]


async def test_what_was_handed_over_is_told_to_who_asked_in_the_producer_s_own_numbers(store):
    _, channel = await open_channel(store)
    producer, program = await confirming(channel)
    quiet, other = await sender(channel, b"quiet")
    producer.send(10, ["a", "b"], None)
    quiet.send(1, ["c"], None)
    producer.send(20, ["d"], None)
    await program.until(lambda: ("accepted", 20) in program.answers)
    behind = await numbers(store, channel)
    channel.outbox.handed_over(behind[0])
    assert sent(program) == []
    channel.outbox.handed_over(behind[1])
    assert sent(program) == [11]
    channel.outbox.handed_over(behind[2])
    channel.outbox.handed_over(behind[3])
    assert sent(program) == [11, 20]
    assert sent(other) == []
    channel.stop()


async def test_a_rejected_number_is_passed_with_what_was_handed_over_before_it(store):
    _, channel = await open_channel(store)
    producer, program = await confirming(channel)
    producer.send(1, ["a"], None)
    producer.reject(2, 1, "too_large", "too large")
    await program.until(lambda: ("accepted", 2) in program.answers)
    assert sent(program) == []
    channel.outbox.handed_over((await numbers(store, channel))[0])
    assert sent(program) == [2]
    producer.reject(3, 1, "too_large", "too large")
    assert program.answers[-2:] == [("accepted", 3), ("sent", 3)]
    channel.stop()


async def test_what_is_purged_counts_as_sent_when_nothing_is_left(store):
    _, channel = await open_channel(store)
    producer, program = await confirming(channel)
    producer.send(1, ["a", "b"], None)
    await program.until(lambda: ("accepted", 2) in program.answers)
    await channel.purge("out")
    assert program.answers.index(("removed", 1, 2, "purged")) < program.answers.index(("sent", 2))
    channel.stop()


async def test_a_new_handle_hears_when_what_waits_from_before_has_been_handed_over(store):
    _, channel = await open_channel(store)
    first, program = await sender(channel, b"p")
    first.send(1, ["a", "b"], None)
    await program.until(lambda: ("accepted", 2) in program.answers)
    behind = await numbers(store, channel)
    producer, program = await confirming(channel)
    producer.send(3, ["c"], None)
    await program.until(lambda: ("accepted", 3) in program.answers)
    channel.outbox.handed_over(behind[0])
    assert sent(program) == []
    channel.outbox.handed_over(behind[1])
    assert sent(program) == [2]
    channel.stop()


async def test_more_submissions_than_are_remembered_are_told_together(store, monkeypatch):
    monkeypatch.setattr("rondevud.durable.producer.UNSENT_KEPT", 2)
    _, channel = await open_channel(store)
    producer, program = await confirming(channel)
    for number in range(1, 6):
        producer.send(number, ["x"], None)
    await program.until(lambda: ("accepted", 5) in program.answers)
    for behind in await numbers(store, channel):
        channel.outbox.handed_over(behind)
    assert sent(program) == [1, 5]
    channel.stop()


async def test_a_lost_link_does_not_count_as_an_empty_buffer(store):
    session, channel = await open_channel(store)
    out, heard = session.lanes["main"].out, []
    watch = channel.watch_buffer(0, heard.append)
    out.in_flight_bytes = 5
    channel.flushed()
    out.in_flight_bytes = 0
    channel.link_lost()
    channel.flushed()
    assert heard == []
    out.in_flight_bytes = 5
    channel.flushed()
    out.in_flight_bytes = 0
    channel.flushed()
    assert heard == [0]
    watch.close()
    assert not channel._watches
    channel.stop()


# --- what was rejected -----------------------------------------------------------------------------------------------


async def test_a_rejection_is_answered_again_to_the_next_handle_and_stored_with_its_next_message(store):
    _, channel = await open_channel(store)
    producer, program = await sender(channel)
    producer.send(1, ["one"], None)
    producer.reject(2, 2, "too_large", "too large")
    await program.until(lambda: ("accepted", 3) in program.answers)
    producer.close()
    producer, program = await sender(channel)
    assert (producer.last_seq, producer.rejected) == (3, [(2, "too_large"), (3, "too_large")])
    producer.send(2, ["small now"] * 3, None)
    await program.until(lambda: ("accepted", 4) in program.answers)
    assert program.answers[:3] == [("rejected", 2, "too_large"), ("rejected", 3, "too_large"), ("accepted", 3)]
    assert channel.outbox.count == 2
    record = await store.execute(OpenProducer(channel.id, b"program", NOW))
    assert (record.last_seq, record.rejected) == (4, ((2, "too_large"), (3, "too_large")))
    producer.close()
    assert channel._unsaved == {}


async def test_a_rejection_outlives_the_message_that_should_have_carried_it(store):
    session, channel = await open_channel(store)
    producer, program = await sender(channel)
    producer.reject(1, 1, "too_large", "too large")
    session.failing, session.failures = (Put,), [StoreFailed("no")]
    producer.send(2, ["two"], None)
    await program.until(lambda: ("rejected", 2, "store_failed") in program.answers)
    producer.send(3, ["three"], None)
    await program.until(lambda: ("accepted", 3) in program.answers)
    record = await store.execute(OpenProducer(channel.id, b"program", NOW))
    assert record.rejected == ((1, "too_large"), (2, "store_failed"))


async def test_numbers_refused_again_are_answered_again(store):
    _, channel = await open_channel(store)
    producer, program = await sender(channel)
    producer.reject(1, 2, "too_large", "too large")
    program.answers.clear()
    producer.reject(2, 2, "too_large", "too large")
    assert program.answers[:3] == [("rejected", 2, "too_large"), ("accepted", 2), ("rejected", 3, "too_large")]
    assert producer.last_seq == 3


async def test_rejections_behind_a_parked_message_take_no_room(store):
    _, channel = await open_channel(store, max_count=1, overflow="block")
    producer, program = await sender(channel)
    producer.send(1, ["one", "parked"], None)
    for seq in range(3, 5_003):
        producer.reject(seq, 1, "too_large", "too large")
    assert len(producer._undecided) <= 3
    await program.until(lambda: ("accepted", 1) in program.answers)
    assert producer.last_seq == 1
    await channel.purge("out")
    await program.until(lambda: ("accepted", 5_002) in program.answers)
    channel.stop()
