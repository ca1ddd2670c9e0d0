"""Messages that programs die of, over a store that takes its time."""

from __future__ import annotations

import asyncio

import pytest

from rondevud.accounts import ReadAccounts
from rondevud.durable.budget import Budget
from rondevud.durable.inbox import Inbox
from rondevud.durable.outgoing import Direction
from rondevud.errors import RequestError, StoreFailed
from rondevud.failed import CountTry, SetAside
from rondevud.records import LoadSessions, OutMessage, Receive
from rondevud.store.memory import MemoryStore
from tests.unit.durable.test_inbox import Host, attach, make_inbox
from tests.unit.store.kit import NOW


class Store(Host):
    """It can refuse, or hold back, what is asked about messages that are to be given."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store)
        self.refused: set[type] = set()
        self.asked: list | None = None

    def execute(self, operation, done=None) -> None:
        if type(operation) in self.refused:
            asyncio.get_running_loop().call_soon(done or (lambda _outcome: None), StoreFailed("no"))
        elif isinstance(operation, CountTry | SetAside) and self.asked is not None:
            self.asked.append((operation, done))
        else:
            super().execute(operation, done)

    def answer(self) -> None:
        asked, self.asked = self.asked, None
        for operation, done in asked:
            self.store.submit(operation, done)


@pytest.fixture
async def host():
    store = MemoryStore(asyncio.get_running_loop())
    yield Store(store)
    await store.close()


async def limited(host: Host, count: int, limit: int = 3) -> Inbox:
    inbox, _ = await make_inbox(host, count)
    inbox.failures.limit = limit
    return inbox


async def restarted(host: Host, inbox: Inbox) -> Inbox:
    """The inbox as another run of the daemon finds it; nobody has told the old one."""
    record = (await host.store.execute(LoadSessions())).channels[0]
    other = Inbox(record, host, lambda _count, _size: None, lambda: None)
    other.failures.limit = inbox.failures.limit
    return other


async def die_of_the_first(inbox: Inbox, times: int, credit: int = 100) -> list[tuple[str, int]]:
    """A program gets something and goes away, so many times; the first message of each."""
    firsts = []
    for _ in range(times):
        receiver, program = await attach(inbox, credit=credit)
        firsts.append((await program.take(1))[0])
        receiver.close()
    return firsts


async def totals(host: Host) -> tuple[int, int]:
    """Messages that are set aside, and those that wait; the books have been seen to add up."""
    (record,) = (await host.store.execute(LoadSessions())).channels
    books = await host.store.execute(ReadAccounts(record.id))
    assert books.totals.mistakes(record) == []
    return record.failed, record.in_count


async def test_a_program_goes_on_with_the_next_when_it_died_of_one_too_often(host):
    inbox = await limited(host, 3)
    assert await die_of_the_first(inbox, 3) == [("m1", 1), ("m1", 2), ("m1", 3)]
    receiver, program = await attach(inbox)
    assert await program.take(2) == [("m2", 4), ("m3", 4)]
    receiver.ack(2)
    await inbox_is_empty(inbox)
    assert await totals(host) == (1, 0)
    assert (inbox.failures.count, host.counters["failed"]) == (1, 1)
    ((_, facts),) = [event for event in host.events if event[0] == "message_failed"]
    assert facts == {"id": f"{b'epoch-pe'.hex()}-1", "attempts": 3, "size": 2}


async def inbox_is_empty(inbox: Inbox) -> None:
    while inbox.count:
        await asyncio.sleep(0)


async def test_what_was_given_behind_the_one_it_died_of_is_not_to_blame(host):
    inbox = await limited(host, 3, limit=1)
    await die_of_the_first(inbox, 1)
    receiver, program = await attach(inbox)
    assert await program.take(2) == [("m2", 2), ("m3", 2)]
    receiver.ack(1)
    receiver.close()
    receiver, program = await attach(inbox)
    await inbox_is_empty(inbox)
    assert program.got.empty()
    assert await totals(host) == (2, 0)


async def test_without_a_limit_nothing_is_counted(host):
    inbox = await limited(host, 1, limit=None)
    host.refused = {CountTry, SetAside}
    assert (await die_of_the_first(inbox, 9))[-1] == ("m1", 9)


async def test_tries_survive_a_start_of_the_daemon(host):
    inbox = await limited(host, 2, limit=2)
    await die_of_the_first(inbox, 1)
    inbox = await restarted(host, inbox)
    assert await die_of_the_first(inbox, 1) == [("m1", 2)]
    inbox = await restarted(host, inbox)
    _, program = await attach(inbox)
    assert await program.take(1) == [("m2", 2)]
    assert await totals(host) == (1, 1)


async def test_a_message_that_ends_the_daemon_comes_once_more_at_most(host):
    """The first delivery is not stored before it is made, all others are."""
    inbox = await limited(host, 2, limit=3)
    deliveries = []
    for _ in range(9):
        _, program = await attach(inbox)
        (first, *_) = await program.take(1)
        if first[0] != "m1":
            break
        deliveries.append(first)
        inbox = await restarted(host, inbox)  # without a word: as after a kill
    assert deliveries == [("m1", 1)] + [("m1", 2)] * 3


async def test_one_of_several_programs_dies(host):
    inbox = await limited(host, 4, limit=2)
    for attempt in (1, 2):
        first, doomed = await attach(inbox, "shared", credit=1)
        assert await doomed.take(1) == [("m1", attempt)]
        first.close()
    other, program = await attach(inbox, "shared", credit=100)
    assert [name for name, _ in await program.take(3)] == ["m2", "m3", "m4"]
    other.ack(3)
    await inbox_is_empty(inbox)
    assert await totals(host) == (1, 0)


async def test_a_purge_while_the_store_is_asked_leaves_the_program_ready(host):
    inbox = await limited(host, 1)
    await die_of_the_first(inbox, 1)
    host.asked = []
    _, program = await attach(inbox)
    while not host.asked:
        await asyncio.sleep(0)
    assert await inbox.purge() == 1
    host.answer()
    await put_in(host, inbox, 1)
    assert await program.take(1) == [("n1", 1)]


async def put_in(host: Host, inbox: Inbox, count: int) -> None:
    """More messages of the peer."""
    (record,) = (await host.store.execute(LoadSessions())).channels
    first = record.recv_next
    items = tuple(OutMessage(first + number, f"n{number + 1}") for number in range(count))
    operation = Receive(record.id, record.peer_epoch, first, record.peer_epoch, first + count, items, NOW)
    host.store.submit(operation, lambda result: inbox.received(operation, result))


async def test_a_program_that_leaves_while_the_store_is_asked_leaves_the_message_to_others(host):
    inbox = await limited(host, 1)
    await die_of_the_first(inbox, 1)
    host.asked = []
    receiver, _ = await attach(inbox)
    while not host.asked:
        await asyncio.sleep(0)
    receiver.close()
    _, program = await attach(inbox)
    host.answer()
    assert await program.take(1) == [("m1", 2)]


@pytest.mark.parametrize("refused", [CountTry, SetAside])
async def test_a_store_that_fails_keeps_nobody_from_a_message(host, refused):
    inbox = await limited(host, 2, limit=2)
    host.refused = {refused}
    assert await die_of_the_first(inbox, 2) == [("m1", 1), ("m1", 2)]
    assert await die_of_the_first(inbox, 1) in ([("m1", 3)], [("m2", 3)])


async def test_what_is_set_aside_is_put_back_behind_all_others(host):
    inbox = await limited(host, 2, limit=1)
    await die_of_the_first(inbox, 1)
    receiver, program = await attach(inbox)
    assert await program.take(1) == [("m2", 2)]
    (described,) = await inbox.failures.read(10)
    assert (described["attempts"], described["size"], described["text"], described["head"]) == (1, 2, True, b"m1")
    with pytest.raises(RequestError, match="set aside"):
        await inbox.failures.find("nothing")
    assert await inbox.put_back(await inbox.failures.find(described["id"])) == 1
    assert await program.take(1) == [("m1", 2)]
    receiver.ack(2)
    await inbox_is_empty(inbox)
    assert (await totals(host), inbox.failures.count) == ((0, 0), 0)


async def test_what_is_set_aside_is_put_back_where_nobody_receives(host):
    inbox = await limited(host, 1, limit=1)
    await die_of_the_first(inbox, 1)
    receiver, _ = await attach(inbox)
    while inbox.count:
        await asyncio.sleep(0)
    receiver.close()
    assert await inbox.put_back(None) == 1
    assert (inbox.count, inbox.size) == (1, 2)
    _, program = await attach(inbox)
    assert await program.take(1) == [("m1", 2)]


async def test_what_is_set_aside_is_deleted(host):
    inbox = await limited(host, 1, limit=1)
    await die_of_the_first(inbox, 1)
    await attach(inbox)
    while not inbox.failures.count:
        await asyncio.sleep(0)
    assert await inbox.delete_failed(None, lambda: None) == 1
    assert (await totals(host), inbox.failures.count) == ((0, 0), 0)


async def test_what_is_set_aside_counts_against_what_the_store_may_hold(host):
    budget = Budget(1_000)
    made, _ = await make_inbox(host, 3)
    record = (await host.store.execute(LoadSessions())).channels[0]
    inbox = Inbox(record, host, lambda _count, _size: None, lambda: None, share=budget.share(Direction.IN))
    inbox.failures.limit = 1
    assert budget.held == made.size == 6
    await die_of_the_first(inbox, 2)
    receiver, program = await attach(inbox)
    assert (await program.take(1))[0][0] == "m3"
    receiver.ack(3)
    await inbox_is_empty(inbox)
    assert (inbox.failures.size, budget.held) == (4, 4)
    (described, _) = await inbox.failures.read(10)
    assert await inbox.put_back(await inbox.failures.find(described["id"])) == 1
    assert (inbox.failures.size, inbox.size, budget.held) == (2, 2, 4)
    assert await inbox.delete_failed(None, lambda: None) == 1
    assert (inbox.failures.size, budget.held) == (0, 2)
