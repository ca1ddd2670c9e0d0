"""The inbox of a channel over a store that takes its time."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rondevud.durable.inbox import SHARED_RUN, Inbox
from rondevud.durable.receiver import Receiver
from rondevud.durable.settings import OutboxLimits
from rondevud.errors import RequestError, StoreFailed
from rondevud.records import AckIn, LoadSessions, OutMessage, Receive
from rondevud.store.base import Limits
from rondevud.store.memory import MemoryStore, MemoryTables
from tests.unit.store.kit import NOW, PEER, make_channel


class Host:
    """The channel, as the inbox sees it: the store behind a door that can be held closed for deletions."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.held: list | None = None
        self.failures = 0
        """How many of the next deletions fail."""
        self.counters: Counter[str] = Counter()
        self.operations: Counter[str] = Counter()
        self.events: list[tuple[str, dict]] = []
        self.clock = 0.0

    def execute(self, operation, done=None) -> None:
        self.operations[type(operation).__name__] += 1
        if isinstance(operation, AckIn) and self.held is not None:
            self.held.append((operation, done))
        elif isinstance(operation, AckIn) and self.failures:
            self.failures -= 1
            asyncio.get_running_loop().call_soon(done, StoreFailed("no"))
        else:
            self.store.submit(operation, done)

    async def run(self, operation):
        return await self.store.execute(operation)

    def release(self) -> None:
        held, self.held = self.held, None
        for operation, done in held:
            self.store.submit(operation, done)

    def count(self, counter: str, amount: int = 1) -> None:
        self.counters[counter] += amount

    def event(self, name: str, data: dict) -> None:
        self.events.append((name, data))

    def now(self) -> float:
        return self.clock

    def stamp(self):
        return NOW


class Program:
    """Which messages it got, with their attempts."""

    def __init__(self) -> None:
        self.got: asyncio.Queue[tuple[str, int]] = asyncio.Queue()
        self.runs: list[int] = []
        self.ends: list[str] = []

    def detached(self, reason: str) -> None:
        self.ends.append(reason)

    def messages(self, tag: int, rows: list) -> None:
        self.runs.append(len(rows))
        for payload, _, _, attempt in rows:
            self.got.put_nowait((payload, attempt))

    async def take(self, count: int) -> list[tuple[str, int]]:
        return [await self.got.get() for _ in range(count)]


@pytest.fixture
async def host():
    store = MemoryStore(asyncio.get_running_loop())
    yield Host(store)
    await store.close()


async def make_inbox(host: Host, count: int) -> tuple[Inbox, asyncio.Event]:
    """An inbox in which ``m1 … m<count>`` wait, and what is set when it is empty."""
    channel = await make_channel(host.store)
    items = tuple(OutMessage(number, f"m{number}") for number in range(1, count + 1))
    await host.store.execute(Receive(channel, b"", 0, PEER, count + 1, items, NOW))
    record = (await host.store.execute(LoadSessions())).channels[0]
    empty = asyncio.Event()
    inbox = Inbox(record, host, lambda _count, _size: inbox.count or empty.set(), lambda: None)
    return inbox, empty


async def attach(inbox: Inbox, mode: str = "exclusive", credit: int = 100) -> tuple[Receiver, Program]:
    program = Program()
    receiver = await inbox.open(mode, program, takeover=False)
    if credit:
        receiver.credit(credit)
    return receiver, program


async def test_what_is_acknowledged_while_a_deletion_runs_is_deleted_though_the_program_leaves(host):
    inbox, empty = await make_inbox(host, 10)
    host.held = []
    first, program = await attach(inbox)
    await program.take(10)
    first.ack(3)
    first.ack(10)
    first.close()
    host.release()
    await empty.wait()
    assert (await host.store.execute(LoadSessions())).channels[0].in_count == 0


async def test_the_next_program_begins_behind_what_was_acknowledged_whether_deleted_yet_or_not(host):
    inbox, _ = await make_inbox(host, 10)
    host.held = []
    first, program = await attach(inbox)
    await program.take(10)
    first.ack(3)
    first.ack(6)
    first.close()
    _, next_program = await attach(inbox)
    assert await next_program.take(4) == [("m7", 2), ("m8", 2), ("m9", 2), ("m10", 2)]
    host.release()


class Broken(Program):
    """Cannot be given the third message the first time."""

    broken = False

    def messages(self, tag: int, rows: list) -> None:
        if not self.broken and rows[0][0] == "m3":
            self.broken = True
            raise RuntimeError("a bug")
        super().messages(tag, rows)


async def test_what_could_not_be_delivered_is_not_acknowledged_with_what_comes_behind_it(host):
    """Tags are acknowledged up to one: the program would pass over a message that it has never seen."""
    inbox, _ = await make_inbox(host, 6)
    program = Broken()
    receiver = await inbox.open("exclusive", program, takeover=False)
    receiver.credit(2)
    await program.take(2)
    with pytest.raises(RuntimeError, match="a bug"):
        receiver.credit(1)
    receiver.credit(3)
    receiver.ack(6)
    assert await in_store(host) == 6
    _, next_program = await attach(inbox)
    assert [payload for payload, _ in await next_program.take(6)] == ["m1", "m2", "m3", "m4", "m5", "m6"]


# --- shared ----------------------------------------------------------------------------------------------------------


async def in_store(host: Host) -> int:
    return (await host.store.execute(LoadSessions())).channels[0].in_count


async def test_shared_receivers_take_turns_in_short_runs_and_each_message_goes_to_one(host):
    inbox, _ = await make_inbox(host, 100)
    (first, one), (second, other) = [await attach(inbox, "shared", 0) for _ in range(2)]
    first.credit(70)
    second.credit(70)
    while one.got.qsize() + other.got.qsize() < 100:
        await in_store(host)
    assert abs(one.got.qsize() - other.got.qsize()) <= SHARED_RUN
    got = await one.take(one.got.qsize()) + await other.take(other.got.qsize())
    assert sorted(got) == sorted((f"m{number}", 1) for number in range(1, 101))
    assert max(one.runs + other.runs) <= SHARED_RUN


async def test_a_shared_receiver_without_credit_or_that_does_not_read_holds_up_nobody(host):
    inbox, _ = await make_inbox(host, 30)
    _, poor = await attach(inbox, "shared", 0)
    slow, deaf = await attach(inbox, "shared", 0)
    slow.pause()
    slow.credit(100)
    _, program = await attach(inbox, "shared")
    await program.take(30)
    assert (poor.got.qsize(), deaf.got.qsize()) == (0, 0)


async def test_what_a_shared_receiver_leaves_goes_to_another_and_nothing_else_comes_again(host):
    inbox, empty = await make_inbox(host, 20)
    first, leaver = await attach(inbox, "shared", 0)
    second, stayer = await attach(inbox, "shared", 0)
    first.credit(10)
    second.credit(100)
    theirs = await leaver.take(10)
    assert [attempt for _, attempt in await stayer.take(10)] == [1] * 10
    first.ack(4)
    first.close()
    assert await stayer.take(6) == [(payload, 2) for payload, _ in theirs[4:]]
    assert stayer.got.empty()
    second.ack(16)
    await empty.wait()
    assert await in_store(host) == 0


async def test_what_is_acknowledged_out_of_order_does_not_come_again_after_a_restart(host):
    inbox, _ = await make_inbox(host, 20)
    first, _ = await attach(inbox, "shared", 10)
    second, quick = await attach(inbox, "shared", 10)
    done = await quick.take(10)
    second.ack(10)
    assert await in_store(host) == 10
    record = (await host.store.execute(LoadSessions())).channels[0]
    again = Inbox(record, host, lambda _count, _size: None, lambda: None)
    _, program = await attach(again)
    left = [f"m{number}" for number in range(1, 21) if (f"m{number}", 1) not in done]
    assert await program.take(10) == [(payload, 2) for payload in left]
    first.close()


async def test_what_is_being_deleted_when_a_shared_receiver_leaves_is_not_given_to_another(host):
    inbox, _ = await make_inbox(host, 10)
    host.held = []
    first, leaver = await attach(inbox, "shared", 5)
    await leaver.take(5)
    second, program = await attach(inbox, "shared", 5)
    await program.take(5)
    second.ack(2)
    second.ack(5)
    second.credit(100)
    first.close()
    assert await program.take(5) == [("m1", 2), ("m2", 2), ("m3", 2), ("m4", 2), ("m5", 2)]
    assert await in_store(host) == 10
    assert program.got.empty()
    host.release()
    assert await in_store(host) == 8
    assert await in_store(host) == 5


async def test_a_deletion_that_fails_is_tried_again(host, monkeypatch):
    monkeypatch.setattr("rondevud.durable.inbox.STORE_RETRY", 0)
    inbox, empty = await make_inbox(host, 3)
    host.failures = 2
    receiver, program = await attach(inbox)
    await program.take(3)
    receiver.ack(3)
    await empty.wait()
    assert (host.failures, await in_store(host)) == (0, 0)


@pytest.mark.parametrize(("there", "comes"), [("exclusive", "shared"), ("shared", "exclusive")])
async def test_an_exclusive_receiver_tolerates_no_other_and_a_takeover_takes_from_all(host, there, comes):
    inbox, _ = await make_inbox(host, 5)
    former = [(await attach(inbox, there))[1] for _ in range(2 if there == "shared" else 1)]
    with pytest.raises(RequestError, match="has a receiver already"):
        await attach(inbox, comes)
    program = Program()
    (await inbox.open(comes, program, takeover=True)).credit(10)
    assert [other.ends for other in former] == [["taken_over"]] * len(former)
    assert [payload for payload, _ in await program.take(5)] == ["m1", "m2", "m3", "m4", "m5"]
    assert [receiver.mode for receiver in inbox.receivers] == [comes]


async def test_a_channel_is_offered_when_the_last_shared_receiver_leaves(host):
    inbox, _ = await make_inbox(host, 5)
    offers = []
    inbox._became_free = lambda: offers.append(inbox.count)
    (first, _), (second, _) = [await attach(inbox, "shared") for _ in range(2)]
    first.close()
    assert (offers, inbox.attached) == ([], True)
    second.close()
    assert (offers, inbox.attached) == ([5], False)


async def test_a_purge_takes_from_shared_receivers_what_they_have(host):
    inbox, _ = await make_inbox(host, 10)
    (first, one), (second, other) = [await attach(inbox, "shared", 4) for _ in range(2)]
    await one.take(4)
    await other.take(4)
    assert (await inbox.purge(), inbox.count, inbox.size) == (10, 0, 0)
    first.ack(4)
    second.close()
    first.credit(10)
    assert (await in_store(host), one.got.qsize()) == (0, 0)


# --- overflow --------------------------------------------------------------------------------------------------------


async def make_bounded(host: Host, limits: OutboxLimits) -> Inbox:
    await make_channel(host.store)
    record = (await host.store.execute(LoadSessions())).channels[0]
    return Inbox(record, host, lambda _count, _size: None, lambda: None, lambda: limits)


async def receive(host: Host, inbox: Inbox, first: int, count: int) -> None:
    items = tuple(OutMessage(number, f"m{number}") for number in range(first, first + count))
    expected = (PEER, first) if first > 1 else (b"", 0)
    operation = Receive(inbox._id, *expected, PEER, first + count, items, NOW)
    inbox.received(operation, await host.store.execute(operation))


async def test_the_oldest_of_an_inbox_without_back_pressure_go_whoever_has_them(host, caplog):
    inbox = await make_bounded(host, OutboxLimits(max_count=5, max_bytes=None, overflow="drop_oldest"))
    receiver, program = await attach(inbox, credit=2)
    await receive(host, inbox, 1, 4)
    assert await program.take(2) == [("m1", 1), ("m2", 1)]
    await receive(host, inbox, 5, 4)
    await receive(host, inbox, 9, 1)
    assert await in_store(host) == 5
    assert (inbox.count, host.counters["inbox_overflow"]) == (5, 4)
    assert sum(data["count"] for _, data in host.events) == 4
    assert {(name, data["policy"], data["direction"]) for name, data in host.events} == {
        ("queue_overflow", "drop_oldest", "in")
    }
    receiver.ack(2)
    receiver.credit(10)
    assert await program.take(5) == [(f"m{number}", 1) for number in range(5, 10)]
    assert caplog.text.count("the inbox is full") == 1


@pytest.mark.parametrize("policy", ["reject", "block"])
async def test_a_full_inbox_without_back_pressure_refuses_the_new_message(host, caplog, policy):
    inbox = await make_bounded(host, OutboxLimits(max_count=4, max_bytes=9, overflow=policy))
    await receive(host, inbox, 1, 3)
    assert not inbox.refuses(1, 3)
    assert inbox.refuses(2, 2)
    assert inbox.refuses(1, 4)
    await host.store.execute(LoadSessions())
    assert host.events == [("queue_overflow", {"count": 2, "policy": policy, "direction": "in"})]
    assert (inbox.count, host.counters["inbox_overflow"]) == (3, 2)
    host.clock = 61.0
    assert inbox.refuses(2, 2)
    assert caplog.text.count("the inbox is full") == 2


async def test_an_inbox_with_back_pressure_refuses_nothing(host):
    inbox, _ = await make_inbox(host, 10)
    assert not inbox.refuses(10**9, 10**12)


# --- shared, at random -----------------------------------------------------------------------------------------------


class Worker(Program):
    """A shared receiver that notes which messages it has, and complains when another has them, too."""

    def __init__(self, owners: Counter[str], done: set[str], complaints: list[str]) -> None:
        super().__init__()
        self.owners = owners
        self.done = done
        self.complaints = complaints
        self.has: list[str] = []
        self.tag = 0

    def messages(self, tag: int, rows: list) -> None:
        if tag != self.tag + 1:
            self.complaints.append(f"tag {tag} after {self.tag}")
        self.tag += len(rows)
        for payload, *_ in rows:
            if self.owners[payload] or payload in self.done:
                self.complaints.append(f"{payload} came again")
            self.owners[payload] += 1
            self.has.append(payload)

    def let_go(self, count: int) -> None:
        for payload in self.has[:count]:
            self.owners[payload] -= 1
        del self.has[:count]


steps = st.lists(
    st.one_of(
        st.tuples(st.just("attach"), st.integers(0, 9)),
        st.tuples(st.sampled_from(["ack", "credit"]), st.integers(0, 5), st.integers(1, 9)),
        st.tuples(st.just("leave"), st.integers(0, 5)),
        st.tuples(st.just("receive"), st.integers(1, 12)),
        st.tuples(st.just("fail"), st.integers(1, 2)),
        st.just(("turn",)),
        st.just(("turn",)),
    ),
    max_size=60,
)


async def play(script: list) -> None:
    store = MemoryStore(asyncio.get_running_loop(), MemoryTables(limits=Limits(slice_rows=3, page_messages=4)))
    host = Host(store)
    channel = await make_channel(store)
    record = (await store.execute(LoadSessions())).channels[0]
    inbox = Inbox(record, host, lambda _count, _size: None, lambda: None)
    owners: Counter[str] = Counter()
    done: set[str] = set()
    complaints: list[str] = []
    workers: list[tuple[Receiver, Worker]] = []
    sent = 0

    def receive(count: int) -> None:
        nonlocal sent
        items = tuple(OutMessage(number, f"m{number}") for number in range(sent + 1, sent + count + 1))
        operation = Receive(channel, PEER if sent else b"", sent + 1 if sent else 0, PEER, sent + count + 1, items, NOW)
        sent += count
        store.submit(operation, lambda result: inbox.received(operation, result))

    async def add(credit: int) -> None:
        worker = Worker(owners, done, complaints)
        receiver = await inbox.open("shared", worker, takeover=False)
        workers.append((receiver, worker))
        receiver.credit(credit)

    def acknowledge(receiver: Receiver, worker: Worker, count: int) -> None:
        done.update(worker.has[:count])
        receiver.ack(worker.tag - len(worker.has) + min(count, len(worker.has)))
        worker.let_go(count)

    for step, *values in script:
        if step == "attach":
            await add(values[0])
        elif step == "receive":
            receive(values[0])
        elif step == "fail":
            host.failures = values[0]
        elif step == "turn":
            await store.execute(LoadSessions())
        elif workers:
            receiver, worker = workers[values[0] % len(workers)]
            if step == "credit":
                receiver.credit(values[1])
            elif step == "ack":
                acknowledge(receiver, worker, values[1])
            else:
                workers.remove((receiver, worker))
                worker.let_go(len(worker.has))
                receiver.close()
    await add(10_000)
    while inbox.count or len(done) < sent:
        for receiver, worker in workers:
            acknowledge(receiver, worker, len(worker.has))
        await asyncio.sleep(0)
    record = (await store.execute(LoadSessions())).channels[0]
    assert complaints == []
    assert (record.in_count, record.in_bytes, inbox.size) == (0, 0, 0)
    assert done == {f"m{number}" for number in range(1, sent + 1)}
    assert len(inbox._attempts) == 0
    await store.close()


@given(steps)
def test_every_message_is_one_receiver_s_at_a_time_until_it_is_acknowledged(script):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rondevud.durable.inbox.STORE_RETRY", 0)
        asyncio.run(play(script))


async def test_a_page_up_to_the_last_row_that_was_stored_is_the_last_one_that_is_read(host):
    """Under load there is always another row when the next page is read: reading would never end."""
    inbox, _ = await make_inbox(host, 3)
    channel = (await host.store.execute(LoadSessions())).channels[0].id
    _, program = await attach(inbox)
    for number in range(4, 8):
        operation = Receive(channel, PEER, number, PEER, number + 1, (OutMessage(number, f"m{number}"),), NOW)
        host.store.submit(operation, partial(inbox.received, operation))
    assert await program.take(7) == [(f"m{number}", 1) for number in range(1, 8)]
    assert host.operations["ReadIn"] == 2
