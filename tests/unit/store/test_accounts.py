"""The books of a channel: every operation that moves messages enters them, and they are there after a crash."""

from __future__ import annotations

import dataclasses

import pytest

from rondevud.accounts import ReadAccounts, Totals
from rondevud.failed import CountTry, FreeFailed, ReadFailed, SetAside
from rondevud.records import (
    AckIn,
    Acknowledge,
    DeleteSession,
    Expire,
    InMessage,
    LoadSessions,
    OutMessage,
    Put,
    ReadIn,
    Reason,
    Receive,
    Removal,
    Remove,
    Trim,
    TrimIn,
)
from tests.unit.store.kit import NOW, PEER, later, make_channel


async def put(store, channel, count, **more):
    return await store.execute(Put(channel, tuple(f"m{number}" for number in range(count)), NOW, **more))


async def receive(store, channel, count, *gaps):
    items = tuple(OutMessage(number, f"m{number}") for number in range(1, count + 1))
    await store.execute(Receive(channel, b"", 0, PEER, count + 1, (*items, *gaps), NOW))


async def totals(store, channel):
    """Those that are not 0, once they have been seen to add up."""
    accounts = await store.execute(ReadAccounts(channel))
    (record,) = [record for record in (await store.execute(LoadSessions())).channels if record.id == channel]
    assert accounts.totals.mistakes(record) == []
    assert accounts[1:5] == (record.out_count, record.in_count, record.in_gaps, record.failed)
    return {name: count for name, count in dataclasses.asdict(accounts.totals).items() if count}


async def test_what_leaves_the_outbox_is_counted_by_its_reason(store):
    channel = await make_channel(store)
    await put(store, channel, 2, max_age=5.0)
    result = await put(store, channel, 8)
    assert await totals(store, channel) == {"accepted": 10}
    await store.execute(Expire(channel, later(6)))
    await store.execute(Acknowledge(channel, result.first + 1))
    await store.execute(Trim(channel, 6, None))
    for number, reason in enumerate((Reason.PURGED, Reason.TOO_LARGE, Reason.LOST), result.first + 3):
        await store.execute(Remove(channel, number, number + 1, reason))
    assert await totals(store, channel) == {
        "accepted": 10, "expired": 2, "acknowledged": 1, "overflow": 1, "purged": 1, "too_large": 1, "lost": 1,
    }  # fmt: skip


async def test_a_closing_message_counts_where_it_is_sent(store):
    channel = await make_channel(store)
    result = await store.execute(Put(channel, ("last", None), NOW))
    await store.execute(Acknowledge(channel, result.next))
    await store.execute(Receive(channel, b"", 0, PEER, 3, (OutMessage(1, "last"), OutMessage(2, None)), NOW))
    assert await totals(store, channel) == {"accepted": 2, "acknowledged": 2, "received": 1}


async def test_what_leaves_the_inbox_is_counted_by_who_took_it(store):
    channel = await make_channel(store)
    await receive(store, channel, 7, Removal(8, 9, Reason.EXPIRED, 1))
    await store.execute(AckIn(channel, 3))
    await store.execute(TrimIn(channel, 5, None))
    await store.execute(AckIn(channel, 5, 4, purge=True))
    await store.execute(AckIn(channel, 9, 8))
    assert await totals(store, channel) == {"received": 7, "taken": 2, "overflow_in": 1, "purged_in": 1}


async def test_ages_are_of_what_is_held(store):
    channel = await make_channel(store)
    empty = await store.execute(ReadAccounts(channel))
    assert (empty.out_oldest, empty.in_oldest) == (None, None)
    first = await put(store, channel, 1)
    await store.execute(Put(channel, ("later",), later(7)))
    await receive(store, channel, 1)
    held = await store.execute(ReadAccounts(channel))
    assert (held.out_oldest, held.in_oldest) == (NOW.wall, NOW.wall)
    await store.execute(Acknowledge(channel, first.next))
    assert (await store.execute(ReadAccounts(channel))).out_oldest == NOW.wall + 7


async def test_a_message_is_set_aside_and_put_back(store):
    channel = await make_channel(store)
    await receive(store, channel, 3)
    await store.execute(CountTry(channel, 2, 4))
    assert [item.tries for item in (await store.execute(ReadIn(channel, 0))).items] == [0, 4, 0]
    assert await store.execute(SetAside(channel, 2, 5, later(1))) == (2, 2)
    assert await store.execute(SetAside(channel, 2, 5, later(1))) is None
    assert [item.row for item in (await store.execute(ReadIn(channel, 0))).items] == [1, 3]
    page = await store.execute(ReadFailed(channel, 0))
    assert page == ([(2, PEER, 2, "m2", 5, NOW.wall, NOW.wall + 1)], 0)
    assert await totals(store, channel) == {"received": 3}
    assert await store.execute(FreeFailed(channel, 7, put_back=True)) == (0, 0, 4, 1, False)
    assert await store.execute(FreeFailed(channel, 2, put_back=True)) == (1, 2, 4, 0, False)
    last = (await store.execute(ReadIn(channel, 3))).items[-1]
    assert last == InMessage(4, PEER, 2, "m2", NOW.wall)
    await store.execute(AckIn(channel, 5))
    assert await totals(store, channel) == {"received": 3, "taken": 3}


async def test_what_is_set_aside_comes_in_pages_and_is_deleted_in_slices(store):
    channel = await make_channel(store)
    await receive(store, channel, 12)
    for row in range(12, 0, -1):
        await store.execute(SetAside(channel, row, 1, NOW))
    page = await store.execute(ReadFailed(channel, 0))
    assert ([message.row for message in page.messages], page.next_row) == ([1, 2, 3, 4, 5], 6)
    assert (await store.execute(ReadFailed(channel, 11)))[1] == 0
    freed = await store.execute(FreeFailed(channel, None, put_back=False))
    assert (freed.messages, freed.held, freed.more) == (5, 7, True)
    while freed.more:
        freed = await store.execute(FreeFailed(channel, None, put_back=False))
    assert await totals(store, channel) == {"received": 12, "purged_in": 12}


async def test_a_gap_is_not_set_aside(store):
    channel = await make_channel(store)
    await receive(store, channel, 0, Removal(1, 2, Reason.LOST, 1))
    await store.execute(CountTry(channel, 1, 2))
    assert await store.execute(SetAside(channel, 1, 2, NOW)) is None


async def test_what_is_set_aside_goes_with_its_session(store):
    channel = await make_channel(store)
    await receive(store, channel, 1)
    await store.execute(SetAside(channel, 1, 1, NOW))
    await store.execute(DeleteSession("conn-1"))
    await make_channel(store, connection_id="conn-2")
    assert (await store.execute(LoadSessions())).channels[0].failed == 0


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_has_its_place(reason):
    books = Totals()
    books.remove(reason, 2)
    assert sum(dataclasses.asdict(books).values()) == 2
