"""What all queues may hold together: who gets how much of it, and who is woken when some of it is free again."""

from __future__ import annotations

import asyncio

import pytest

from rondevud.durable import frames
from rondevud.durable.budget import Budget
from rondevud.durable.channel import DurableChannel
from rondevud.durable.incoming import RENEWALS, ROOM, InboxLimits, Incoming
from rondevud.durable.lanes import Lanes
from rondevud.durable.outgoing import Direction
from rondevud.durable.settings import ChannelSettings, OutboxLimits
from rondevud.errors import PeerError
from rondevud.records import Acknowledge, ChannelRecord, Durability, LoadSessions, OutMessage, ReceiveResult
from rondevud.store.memory import MemoryStore
from rondevud.transport.base import RELIABLE
from tests.unit.durable.test_channel import Program, Session
from tests.unit.store.kit import NOW, PEER, make_channel

IN, OUT = Direction.IN, Direction.OUT
KIB = 1024


# --- the budget ------------------------------------------------------------------------------------------------------


def test_without_a_limit_there_is_always_room():
    budget = Budget()
    budget.share(IN).set(2**50)
    assert (budget.room(IN), budget.room(OUT), budget.offer(), budget.lenient) == (None, None, None, True)


def test_neither_direction_can_take_the_eighth_that_is_kept_for_the_other():
    budget = Budget(800)
    assert (budget.room(IN), budget.room(OUT)) == (700, 700)
    out = budget.share(OUT)
    out.set(700)
    assert (budget.room(IN), budget.room(OUT)) == (100, 0)
    out.set(300)
    budget.share(IN).set(200)
    assert (budget.room(IN), budget.room(OUT)) == (300, 300)


def test_what_nobody_here_uses_counts():
    budget = Budget(800)
    budget.unused = 600
    assert (budget.held, budget.room(OUT)) == (600, 100)


def test_a_little_room_is_not_offered_and_beyond_the_limit_not_even_one_message():
    budget = Budget(16 * KIB)
    share = budget.share(IN)
    for held, offer in ((13 * KIB, KIB), (13 * KIB + 1, 0), (18 * KIB - 1, 0), (18 * KIB, -1)):
        share.set(held)
        assert budget.offer() == offer


async def test_whoever_waits_is_woken_once_when_something_leaves_or_the_limit_changes():
    budget, woken = Budget(200), []
    share = budget.share(OUT)
    share.set(90)
    budget.wait(lambda: woken.append("one"))
    share.set(95)
    await asyncio.sleep(0)
    assert woken == []
    share.set(94)
    share.set(93)
    await asyncio.sleep(0)
    budget.wait(lambda: woken.append("two"))
    budget.set_limit(300)
    await asyncio.sleep(0)
    share.set(0)
    await asyncio.sleep(0)
    assert woken == ["one", "two"]


async def test_whoever_offered_room_is_woken_when_there_is_none_any_more():
    budget, woken = Budget(100), []
    budget.wait(lambda: woken.append("look"))
    budget.share(OUT).set(95)
    await asyncio.sleep(0)
    assert woken == ["look"]


def test_the_log_says_once_that_the_store_is_full(caplog):
    budget = Budget(800)
    share = budget.share(OUT)
    for size in (700, 690, 700, 100, 700):
        share.set(size)
    assert [record.args for record in caplog.records] == [(700, 800), (700, 800)]


# --- outboxes --------------------------------------------------------------------------------------------------------


@pytest.fixture
async def store():
    store = MemoryStore(asyncio.get_running_loop())
    yield store
    await store.close()


async def open_channel(store, budget, **limits) -> tuple[Session, DurableChannel]:
    await make_channel(store)
    (record,) = (await store.execute(LoadSessions())).channels
    session = Session(store)
    session.lanes = Lanes(
        [(record, InboxLimits(), RELIABLE)], 10, clock_us=1_000, random=lambda n: b"r" * n, emit=lambda _effect: None
    )
    settings = ChannelSettings(Durability.DISK, OutboxLimits(**limits), InboxLimits(), b"")
    session.channel = DurableChannel(record, session.lanes["main"], settings, session, budget)
    return session, session.channel


async def sender(channel):
    program = Program()
    return await channel.open_producer(b"program", program, takeover=False), program


def open_link(session):
    """As if both [8] of a link were there."""
    session.lanes.attach(10_000)
    session.channel._lane.out.flowing = True


async def test_reject_says_that_the_store_is_full_and_not_the_outbox(store):
    session, channel = await open_channel(store, Budget(80))
    producer, program = await sender(channel)
    producer.send(1, ["x" * 35, "y" * 35, "z"], None)
    await program.until(lambda: ("accepted", 3) in program.answers)
    assert ("rejected", 3, "store_full") in program.answers
    assert session.of("queue_overflow") == [{"count": 1, "policy": "reject"}]
    assert channel.counters["overflow_rejected"] == 1


async def test_drop_oldest_drops_its_own_and_is_refused_when_it_has_none(store):
    budget = Budget(80)
    _, channel = await open_channel(store, budget, overflow="drop_oldest")
    others = budget.share(OUT)
    producer, program = await sender(channel)
    producer.send(1, ["x" * 30, "y" * 30, "z" * 30], None)
    await program.until(lambda: ("accepted", 3) in program.answers)
    assert ("removed", 1, 1, "overflow") in program.answers
    assert (channel.outbox.count, budget.held) == (2, 60)
    others.set(40)
    producer.send(4, ["w" * 61], None)
    await program.until(lambda: ("rejected", 4, "store_full") in program.answers)
    assert channel.outbox.count == 2


async def test_block_waits_until_another_channel_has_made_room(store):
    budget = Budget(80)
    others = budget.share(OUT)
    others.set(70)
    _, channel = await open_channel(store, budget, overflow="block")
    producer, program = await sender(channel)
    producer.send(1, ["x" * 30], None)
    await asyncio.sleep(0)
    assert (channel.outbox.parked, program.answers) == (1, [])
    others.set(40)
    await program.until(lambda: ("accepted", 1) in program.answers)
    assert budget.held == 70


async def test_an_open_channel_with_nothing_queued_takes_one_message_at_a_time_from_a_full_store(store):
    budget = Budget(80)
    budget.share(OUT).set(70)
    session, channel = await open_channel(store, budget)
    open_link(session)
    producer, program = await sender(channel)
    producer.send(1, ["x", "y"], None)
    await program.until(lambda: ("accepted", 1) in program.answers)
    assert channel.outbox.parked == 1
    session.execute(Acknowledge(channel.id, session.lanes["main"].out.next))
    await program.until(lambda: ("accepted", 2) in program.answers)
    assert channel.outbox.count == 1


async def test_a_store_far_beyond_its_limit_takes_not_even_that(store):
    budget = Budget(80)
    budget.share(IN).set(90)
    session, channel = await open_channel(store, budget)
    open_link(session)
    producer, program = await sender(channel)
    producer.send(1, ["x"], None)
    await program.until(lambda: ("rejected", 1, "store_full") in program.answers)


async def test_a_deleted_channel_gives_back_what_it_held(store):
    budget = Budget(80)
    _, channel = await open_channel(store, budget)
    producer, program = await sender(channel)
    producer.send(1, ["x" * 30], None)
    await program.until(lambda: ("accepted", 1) in program.answers)
    channel.forget()
    assert budget.held == 0


# --- what peers are told ---------------------------------------------------------------------------------------------


class Receiving:
    """The receiving half of a channel on a link whose store commits when told to."""

    def __init__(self, offer=lambda: None, **limits):
        self.incoming = Incoming(ChannelRecord(1, "conn-1", "main", Durability.DISK), InboxLimits(**limits))
        self.incoming.offer = offer
        self.link()

    def link(self, epoch=PEER):
        self.incoming.link_lost()
        self.announce(epoch)
        self.incoming.told()

    def announce(self, epoch):
        self.incoming.peer_channel(frames.Channel("main", epoch, b"", 0, 0, ROOM, Durability.DISK))

    def send(self, seq, *sizes):
        self.incoming.data(frames.Data("main", seq, tuple(b"x" * size for size in sizes)))

    def commit(self):
        """Store what came; answers the [11] that is due."""
        while (operation := self.incoming.wanted(NOW)) is not None:
            items = [item for item in operation.items if isinstance(item, OutMessage)]
            size = sum(len(item.payload) for item in items)
            self.incoming.stored(ReceiveResult(1, len(items), size))
        return self.incoming.ack()


def test_the_room_of_the_store_is_the_room_that_is_told():
    for offer, room in ((None, ROOM), (100_000, 100_000), (0, 1), (-1, 0)):
        assert Receiving(lambda offer=offer: offer).incoming.room == room


def test_an_inbox_that_holds_something_is_offered_nothing_by_a_full_store():
    receiving = Receiving(lambda: 0)
    receiving.send(1, 10)
    assert receiving.commit() == (2, 0)
    receiving.incoming.taken(1, 10)
    assert receiving.incoming.ack() == (2, 1)


def test_a_peer_hears_at_once_that_the_store_has_become_full():
    offer = [None]
    receiving = Receiving(lambda: offer[0])
    assert receiving.incoming.ack() is None
    offer[0] = 0
    assert receiving.incoming.ack() == (0, 1)
    offer[0] = None
    receiving.send(1, 10)
    assert receiving.commit() == (2, ROOM)


# --- rooms are kept --------------------------------------------------------------------------------------------------


def test_more_than_the_room_that_was_told_is_refused():
    receiving = Receiving(max_bytes=100)
    receiving.send(1, 60, 40)
    with pytest.raises(PeerError, match="beyond the room"):
        receiving.send(3, 1)


def test_one_message_is_taken_whatever_its_size_while_nothing_is_under_way():
    receiving = Receiving(max_bytes=100)
    receiving.send(1, 5_000)
    assert receiving.commit() == (2, 0)
    receiving.incoming.taken(1, 5_000)
    assert receiving.incoming.ack() == (2, 100)
    receiving.send(2, 5_000)
    with pytest.raises(PeerError, match="beyond the room"):
        receiving.send(3, 1)


def test_a_full_inbox_is_not_filled_further():
    receiving = Receiving(max_bytes=100)
    receiving.send(1, 100)
    assert receiving.commit() == (2, 0)
    with pytest.raises(PeerError, match="beyond the room"):
        receiving.send(2, 1)


def test_what_was_sent_before_the_room_went_is_taken():
    offer = [None]
    receiving = Receiving(lambda: offer[0])
    offer[0] = -1
    assert receiving.incoming.ack() == (0, 0)
    receiving.send(1, ROOM)
    with pytest.raises(PeerError, match="beyond the room"):
        receiving.send(2, 1)


def test_each_link_begins_with_the_room_that_is_told_on_it():
    receiving = Receiving(max_bytes=100)
    receiving.send(1, 90)
    receiving.commit()
    receiving.link()
    with pytest.raises(PeerError, match="beyond the room"):
        receiving.send(2, 5, 6)


def test_new_epochs_on_one_link_give_no_room_without_end():
    receiving = Receiving(max_bytes=100)
    for number in range(RENEWALS):
        receiving.send(number + 1, 50)
        receiving.announce(bytes([number]) * 8)
    receiving.send(1, 50)
    with pytest.raises(PeerError, match="too many new epochs"):
        receiving.announce(b"one more")
