"""What both stores promise; see `rondevud.records`. The limits are small: slices of 4, pages of 5 rows and 100 bytes."""

from __future__ import annotations

import asyncio

import pytest

from rondevud.errors import StoreConflict, StoreError, StoreFailed
from rondevud.records import (
    AckIn,
    Acknowledge,
    Acknowledged,
    CreateChannel,
    Declaration,
    DeclarationKind,
    DeleteDeclaration,
    DeleteSession,
    Durability,
    Expire,
    FindExpiry,
    ForgetProducers,
    InGap,
    InMessage,
    InRemoved,
    LoadDeclarations,
    LoadSessions,
    MarkAttached,
    OpenProducer,
    OutMessage,
    OutPage,
    ProducerRange,
    Put,
    PutResult,
    ReadIn,
    ReadOut,
    Reason,
    Receive,
    Removal,
    Remove,
    Removed,
    SaveDeclaration,
    SaveSession,
    SetChannelOptions,
    SetEpoch,
    Stamp,
    Trim,
    TrimIn,
)
from tests.unit.store.kit import EPOCH, NOW, PEER, later, make_channel, session


async def channel_row(store, channel):
    return next(row for row in (await store.execute(LoadSessions())).channels if row.id == channel)


async def put(store, channel, *payloads, **fields):
    return await store.execute(Put(channel, payloads, fields.pop("stamp", NOW), **fields))


async def receive(store, channel, *items, expect=0, expect_epoch=PEER, epoch=PEER, recv_next):
    return await store.execute(Receive(channel, expect_epoch, expect, epoch, recv_next, items, NOW))


def outbox(page: OutPage) -> list[int | tuple[int, int, str]]:
    return [
        item.seq if isinstance(item, OutMessage) else (item.first, item.next, str(item.reason)) for item in page.items
    ]


# --- the order of answers -----------------------------------------------------------------


async def test_answers_come_in_the_order_of_submission_and_never_at_once(store):
    channel = await make_channel(store)
    answers = []
    for number in range(50):
        store.submit(
            Put(channel if number % 7 else 999, ("m",), NOW), lambda result, n=number: answers.append((n, result))
        )
    assert answers == []
    await store.execute(LoadSessions())
    assert [number for number, _ in answers] == list(range(50))
    assert [number for number, result in answers if isinstance(result, StoreConflict)] == list(range(0, 50, 7))


async def test_a_callback_may_submit_and_is_answered_later(store):
    channel = await make_channel(store)
    done = asyncio.Event()
    order = []

    def second(result):
        order.append(result.first)
        done.set()

    def first(result):
        store.submit(Put(channel, ("b",), NOW), second)
        order.append(result.first)

    store.submit(Put(channel, ("a",), NOW), first)
    await done.wait()
    assert order == [1, 2]


async def test_a_callback_that_fails_withholds_no_other_answer(store):
    channel = await make_channel(store)
    told = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))
    store.submit(Put(channel, ("a",), NOW), lambda _: 1 / 0)
    assert (await put(store, channel, "b")).first == 2
    assert [type(error) for error in told] == [ZeroDivisionError]


async def test_a_cancelled_wait_leaves_the_operation_done(store):
    channel = await make_channel(store)
    waiting = asyncio.ensure_future(store.execute(Put(channel, ("a",), NOW)))
    await asyncio.sleep(0)
    waiting.cancel()
    assert (await put(store, channel, "b")).first == 2


async def test_a_closed_store_refuses(store):
    await store.close()
    with pytest.raises(StoreFailed, match="closed"):
        await store.execute(LoadSessions())
    await store.close()


async def test_an_idle_store_has_no_age_and_does_not_fail(store):
    await store.execute(LoadSessions())
    assert store.failing is None
    while store.alive():  # the writer is between its answer and its rest
        await asyncio.sleep(0)


# --- sessions, declarations, channels -----------------------------------------------------------------


async def test_sessions_are_replaced_and_deleted_with_their_channels(store):
    channel = await make_channel(store)
    await put(store, channel, "a")
    changed = session(link=7, welcomed=True, contacted=True, peer_name="böb", closed=True, absent=1.5)
    await store.execute(SaveSession(changed))
    loaded = await store.execute(LoadSessions())
    assert (loaded.sessions, [row.id for row in loaded.channels], loaded.damaged) == ([changed], [channel], [])
    await store.execute(DeleteSession("conn-1"))
    await store.execute(DeleteSession("conn-1"))
    assert await store.execute(LoadSessions()) == ([], [], [], ())
    with pytest.raises(StoreConflict, match=f"channel {channel}"):
        await put(store, channel, "b")


@pytest.mark.parametrize("closed", [False, True])
async def test_a_session_is_blocked_whether_or_not_it_is_closed(store, closed):
    blocked = session(blocked=True, closed=closed)
    await store.execute(SaveSession(blocked))
    assert (await store.execute(LoadSessions())).sessions == [blocked]
    await store.execute(SaveSession(session(closed=closed)))
    assert (await store.execute(LoadSessions())).sessions == [session(closed=closed)]


async def test_a_channel_needs_its_session_and_a_free_label(store):
    with pytest.raises(StoreConflict, match="conn-9"):
        await store.execute(CreateChannel("conn-9", "main", Durability.DISK, EPOCH))
    channel = await make_channel(store)
    with pytest.raises(StoreConflict, match="'main'"):
        await store.execute(CreateChannel("conn-1", "main", Durability.DISK, EPOCH))
    await store.execute(DeleteSession("conn-1"))
    await store.execute(SaveSession(session()))
    again = await store.execute(CreateChannel("conn-1", "main", Durability.MEMORY, EPOCH, b"o"))
    assert again.id != channel
    assert (again.durability, again.options, again.next, again.acked) == (Durability.MEMORY, b"o", 1, 0)


async def test_small_changes_of_a_channel_are_kept(store):
    channel = await make_channel(store)
    await store.execute(SetChannelOptions(channel, b"new"))
    await store.execute(MarkAttached(channel))
    row = await channel_row(store, channel)
    assert (row.options, row.attached, row.epoch, row.label) == (b"new", True, EPOCH, "main")


async def test_declarations_are_saved_replaced_and_deleted(store):
    first = Declaration(DeclarationKind.SERVICE, "alice/chat@1", b"1")
    second = Declaration(DeclarationKind.CONNECTION, "alice/chat@1", b"2")
    for declaration in (first, second, first._replace(options=b"3")):
        await store.execute(SaveDeclaration(declaration))
    assert await store.execute(LoadDeclarations()) == [second, first._replace(options=b"3")]
    await store.execute(DeleteDeclaration(DeclarationKind.CONNECTION, "alice/chat@1"))
    assert await store.execute(LoadDeclarations()) == [first._replace(options=b"3")]


# --- putting -----------------------------------------------------------------


async def test_messages_are_numbered_from_one_and_read_back_as_they_were(store):
    channel = await make_channel(store)
    assert await put(store, channel, "ä", b"\xff\x00", "") == PutResult(1, 4, 4, jumped=False)
    page = await store.execute(ReadOut(channel, 0))
    assert page == OutPage([OutMessage(1, "ä"), OutMessage(2, b"\xff\x00"), OutMessage(3, "")], 4, True, [])
    row = await channel_row(store, channel)
    assert (row.next, row.out_count, row.out_bytes) == (4, 3, 4)


async def test_a_floor_above_the_next_number_is_announced_as_restart(store):
    channel = await make_channel(store)
    assert await put(store, channel, "a", floor=100) == PutResult(100, 101, 1, jumped=True)
    assert await put(store, channel, "b", floor=100) == PutResult(101, 102, 1, jumped=False)
    page = await store.execute(ReadOut(channel, 0))
    assert page.items[0] == Removal(1, 100, Reason.RESTART, 0)
    assert outbox(page)[1:] == [100, 101]


async def test_a_closing_message_comes_last_and_is_remembered(store):
    channel = await make_channel(store)
    with pytest.raises(StoreConflict, match="closing"):
        await put(store, channel, "a", None, "b")
    await put(store, channel, "a", None)
    row = await channel_row(store, channel)
    assert (row.out_closed, row.out_count, row.next) == (2, 2, 3)
    assert (await store.execute(ReadOut(channel, 2))).items == [OutMessage(2, None)]


async def test_text_that_is_no_unicode_is_refused_and_the_rest_of_its_batch_is_stored(store):
    channel = await make_channel(store)
    with pytest.raises(StoreConflict, match="Unicode"):
        await put(store, channel, "good", "\ud800")
    assert (await put(store, channel, "next")).first == 1


async def test_a_producer_goes_on_where_it_was(store):
    channel = await make_channel(store)
    opened = await store.execute(OpenProducer(channel, b"app", NOW))
    await put(store, channel, "a", "b", producer=opened.id, first_seq=5, rejected=((3, "window"), (4, "full")))
    await put(store, channel, "c", producer=opened.id, first_seq=9, rejected=((4, "window"), (8, "x")))
    again = await store.execute(OpenProducer(channel, b"app", NOW))
    assert (again.id, again.last_seq) == (opened.id, 9)
    assert again.rejected == ((3, "window"), (4, "window"), (8, "x"))


async def test_rejections_fall_out_behind_the_last_thousand_numbers(store):
    channel = await make_channel(store)
    producer = (await store.execute(OpenProducer(channel, b"app", NOW))).id
    await put(store, channel, "a", producer=producer, first_seq=3, rejected=((1, "x"), (2, "x")))
    await put(store, channel, "b", producer=producer, first_seq=1025)
    assert (await store.execute(OpenProducer(channel, b"app", NOW))).rejected == ((2, "x"),)


async def test_a_producer_of_another_channel_is_refused(store):
    one, two = await make_channel(store), await make_channel(store, "two")
    producer = (await store.execute(OpenProducer(two, b"app", NOW))).id
    with pytest.raises(StoreConflict, match="producer"):
        await put(store, one, "a", producer=producer, first_seq=1)
    assert (await channel_row(store, one)).next == 1


async def test_producers_are_forgotten_when_unused_except_those_in_use(store):
    channel = await make_channel(store)
    old, kept, used = [(await store.execute(OpenProducer(channel, name, NOW))).id for name in (b"o", b"k", b"u")]
    await put(store, channel, "a", producer=used, first_seq=1, stamp=later(60))
    assert await store.execute(ForgetProducers(100, later(100), frozenset({kept}))) == 1
    assert (await store.execute(OpenProducer(channel, b"o", NOW))).id != old
    assert (await store.execute(OpenProducer(channel, b"u", NOW))).last_seq == 1


# --- acknowledging -----------------------------------------------------------------


async def test_an_acknowledgement_deletes_counts_and_tells_the_producers(store):
    channel = await make_channel(store)
    producer = (await store.execute(OpenProducer(channel, b"app", NOW))).id
    await put(store, channel, "a", "bb", producer=producer, first_seq=10)
    await put(store, channel, "c", producer=-7, first_seq=1)
    result = await store.execute(Acknowledge(channel, 3))
    assert result == Acknowledged(3, 2, 3, (ProducerRange(producer, 10, 11, 2),), more=False)
    result = await store.execute(Acknowledge(channel, 4))
    assert result.producers == (ProducerRange(-7, 1, 1, 1),)
    row = await channel_row(store, channel)
    assert (row.acked, row.acked_count, row.out_count, row.out_bytes) == (4, 3, 0, 0)
    assert (await store.execute(OpenProducer(channel, b"app", NOW))).acknowledged_seq == 11


async def test_an_old_acknowledgement_changes_nothing(store):
    channel = await make_channel(store)
    await put(store, channel, "a", "b")
    await store.execute(Acknowledge(channel, 3))
    assert await store.execute(Acknowledge(channel, 2)) == Acknowledged(3, 0, 0, (), more=False)


async def test_a_large_acknowledgement_goes_in_slices(store):
    channel = await make_channel(store)
    await put(store, channel, *"abcdefghij")
    seen = []
    while True:
        result = await store.execute(Acknowledge(channel, 11))
        seen.append((result.acked, result.messages))
        if not result.more:
            break
    assert seen == [(5, 4), (9, 4), (11, 2)]


async def test_an_acknowledgement_cuts_a_removal_that_goes_on(store):
    channel = await make_channel(store)
    await put(store, channel, "a", "b", "c", "d")
    await store.execute(Remove(channel, 2, 4, Reason.PURGED))
    await store.execute(Acknowledge(channel, 3))
    page = await store.execute(ReadOut(channel, 0))
    assert page.items == [Removal(3, 4, Reason.PURGED, 1), OutMessage(4, "d")]


async def test_an_acknowledgement_of_a_store_that_was_put_back_raises_the_next_number(store):
    channel = await make_channel(store)
    await put(store, channel, "a")
    assert (await store.execute(Acknowledge(channel, 50))).acked == 50
    assert (await put(store, channel, "b")).first == 50
    assert outbox(await store.execute(ReadOut(channel, 0))) == [50]


async def test_a_new_epoch_keeps_what_is_held_and_acknowledges_nothing(store):
    channel = await make_channel(store)
    await put(store, channel, "a", "b", None)
    await store.execute(Acknowledge(channel, 2))
    await store.execute(SetEpoch(channel, b"new-epoc", 10, reopen=True))
    row = await channel_row(store, channel)
    assert (row.epoch, row.next, row.acked, row.acked_count, row.out_closed) == (b"new-epoc", 10, 0, 0, 0)
    assert outbox(await store.execute(ReadOut(channel, 0))) == [2, 3, (4, 10, "restart")]


async def test_a_label_opened_anew_does_not_count_as_closed_by_the_epoch_before(store):
    channel = await make_channel(store)
    await store.execute(SetEpoch(channel, b"new-epoc", 1, reopen=True))
    assert (await channel_row(store, channel)).in_closed == 0
    await store.execute(Receive(channel, b"", 0, PEER, 2, (OutMessage(1, None),), NOW))
    await store.execute(SetEpoch(channel, b"epoch-2 ", 1, reopen=False))
    assert (await channel_row(store, channel)).in_closed == 1
    await store.execute(SetEpoch(channel, b"epoch-3 ", 1, reopen=True))
    row = await channel_row(store, channel)
    assert (row.in_closed, row.peer_epoch, row.recv_next) == (2, PEER, 2)
    await store.execute(Receive(channel, PEER, 2, b"peer-two", 2, (OutMessage(1, "new"),), NOW))
    assert (await channel_row(store, channel)).in_closed == 0


# --- removing -----------------------------------------------------------------


async def test_messages_expire_by_the_boot_clock_whatever_the_wall_clock_says(store):
    channel = await make_channel(store)
    await put(store, channel, "a", max_age=10)
    await put(store, channel, "b", max_age=5)
    await put(store, channel, "c")
    jumped = Stamp(NOW.boot, NOW.boottime + 4, NOW.wall + 86_400)
    assert await store.execute(FindExpiry(channel, jumped)) == (1.0,)
    assert (await store.execute(Expire(channel, jumped))).removed == []
    result = await store.execute(Expire(channel, later(5)))
    assert result.removed == [Removed(2, 3, Reason.EXPIRED, 1, 1, ())]
    assert outbox(await store.execute(ReadOut(channel, 0))) == [1, (2, 3, "expired"), 3]


async def test_after_a_reboot_ages_follow_the_wall_clock(store):
    channel = await make_channel(store)
    await put(store, channel, "a", max_age=10)
    after = Stamp("boot-2", 5.0, NOW.wall + 9)
    assert await store.execute(FindExpiry(channel, after)) == (1.0,)
    assert (await store.execute(Expire(channel, after))).removed == []
    back = Stamp("boot-2", 500.0, NOW.wall - 1_000)
    assert (await store.execute(Expire(channel, back))).removed == []
    result = await store.execute(Expire(channel, Stamp("boot-2", 6.0, NOW.wall + 10)))
    assert [item.first for item in result.removed] == [1]
    assert await store.execute(FindExpiry(channel, after)) == (None,)


async def test_neither_expiry_nor_trimming_removes_a_closing_message(store):
    channel = await make_channel(store)
    await put(store, channel, "a", None, max_age=1)
    await store.execute(Expire(channel, later(100)))
    await store.execute(Trim(channel, 0, 0))
    assert outbox(await store.execute(ReadOut(channel, 0))) == [(1, 2, "expired"), 2]
    await store.execute(Remove(channel, 1, 3, Reason.PURGED))
    assert outbox(await store.execute(ReadOut(channel, 0)))[-1] == 2
    await store.execute(Remove(channel, 1, 3, Reason.PURGED, keep_closing=False))
    assert outbox(await store.execute(ReadOut(channel, 0)))[-1] == (2, 3, "purged")


@pytest.mark.parametrize(
    ("count", "size", "left"), [(2, None, [4, 5]), (None, 3, [5]), (4, 9, [3, 4, 5]), (None, None, [1, 2, 3, 4, 5])]
)
async def test_trimming_removes_the_oldest_until_both_limits_hold(store, count, size, left):
    channel = await make_channel(store)
    await put(store, channel, *["aaa"] * 5)
    result = await store.execute(Trim(channel, count, size))
    removed = 5 - len(left)
    told = [Removed(1, 1 + removed, Reason.OVERFLOW, removed, 3 * removed, ())] if removed else []
    assert (result.removed, result.more) == (told, False)
    assert [
        item.seq for item in (await store.execute(ReadOut(channel, 0))).items if isinstance(item, OutMessage)
    ] == left


async def test_removing_goes_in_slices_and_neighbours_become_one_removal(store):
    channel = await make_channel(store)
    producer = (await store.execute(OpenProducer(channel, b"app", NOW))).id
    await put(store, channel, *"abcdefg", producer=producer, first_seq=1)
    first = await store.execute(Remove(channel, 2, 7, Reason.PURGED))
    assert (first.removed[0][:4], first.more) == ((2, 6, Reason.PURGED, 4), True)
    assert first.removed[0].producers == (ProducerRange(producer, 2, 5, 4),)
    second = await store.execute(Remove(channel, 2, 7, Reason.PURGED))
    assert (second.removed[0][:4], second.more) == ((6, 7, Reason.PURGED, 1), False)
    page = await store.execute(ReadOut(channel, 0))
    assert page.items[1] == Removal(2, 7, Reason.PURGED, 5)
    assert outbox(page) == [1, (2, 7, "purged"), 7]
    assert (await store.execute(OpenProducer(channel, b"app", NOW))).removed == 5
    assert (await channel_row(store, channel)).out_count == 2


async def test_what_was_removed_is_unreported_until_the_producer_is_opened_again(store):
    channel = await make_channel(store)
    ids = [(await store.execute(OpenProducer(channel, name, NOW))).id for name in (b"app", b"other")]
    await put(store, channel, *"abcd", producer=ids[0], first_seq=1)
    await put(store, channel, "e", producer=ids[1], first_seq=1)

    async def unreported(name):
        record = await store.execute(OpenProducer(channel, name, NOW))
        return record.unreported, record.removed

    assert await unreported(b"app") == (0, 0)
    await store.execute(Remove(channel, 1, 3, Reason.PURGED))
    await store.execute(Acknowledge(channel, 4))
    await store.execute(Trim(channel, 1, None))
    assert await unreported(b"app") == (3, 3)
    assert await unreported(b"app") == (0, 3)
    assert await unreported(b"other") == (0, 0)
    await store.execute(Remove(channel, 1, 9, Reason.PURGED))
    assert await unreported(b"app") == (0, 3)
    assert await unreported(b"other") == (1, 1)


async def test_removals_of_different_reasons_and_with_messages_between_stay_apart(store):
    channel = await make_channel(store)
    await put(store, channel, *"abcd")
    for number, reason in ((1, Reason.PURGED), (2, Reason.TOO_LARGE), (4, Reason.TOO_LARGE)):
        await store.execute(Remove(channel, number, number + 1, reason))
    expected = [(1, 2, "purged"), (2, 3, "too_large"), 3, (4, 5, "too_large")]
    assert outbox(await store.execute(ReadOut(channel, 0))) == expected


# --- pages -----------------------------------------------------------------


async def test_the_outbox_is_read_in_pages_of_rows(store):
    channel = await make_channel(store)
    await put(store, channel, *"abcdefghijkl")
    pages, number = [], 0
    while True:
        page = await store.execute(ReadOut(channel, number))
        pages.append(outbox(page))
        number = page.next
        if page.end:
            break
    assert pages == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10], [11, 12]]
    assert await store.execute(ReadOut(channel, 13)) == OutPage([], 13, True, [])


async def test_a_page_ends_by_bytes_but_holds_one_message_whatever_its_size(store):
    channel = await make_channel(store)
    await put(store, channel, "a" * 60, "b" * 60, "c" * 500, "d")
    pages, number = [], 0
    for _ in range(4):
        page = await store.execute(ReadOut(channel, number))
        pages.append(outbox(page))
        number = page.next
    assert pages == [[1], [2], [3], [4]]


async def test_a_page_may_begin_inside_a_removal(store):
    channel = await make_channel(store)
    await put(store, channel, *"abcd")
    await store.execute(Remove(channel, 1, 4, Reason.PURGED))
    assert (await store.execute(ReadOut(channel, 2))).items[0] == Removal(2, 4, Reason.PURGED, 2)


# --- the inbox -----------------------------------------------------------------


async def test_messages_and_gaps_wait_in_order(store):
    channel = await make_channel(store)
    gap, silent = Removal(7, 9, Reason.EXPIRED, 2), Removal(9, 10, Reason.RESTART, 0)
    result = await receive(
        store, channel, OutMessage(6, "ä"), gap, silent, OutMessage(10, b"b"), expect_epoch=b"", recv_next=11
    )
    assert result == (1, 3, 3)
    page = await store.execute(ReadIn(channel, 0))
    assert page.items == [
        InMessage(1, PEER, 6, "ä", NOW.wall),
        InGap(2, PEER, gap, NOW.wall),
        InMessage(3, PEER, 10, b"b", NOW.wall),
    ]
    row = await channel_row(store, channel)
    assert (row.peer_epoch, row.recv_next, row.recv_count, row.in_count, row.in_bytes) == (PEER, 11, 2, 3, 3)


async def test_a_batch_that_belongs_to_another_state_is_refused(store):
    channel = await make_channel(store)
    await receive(store, channel, OutMessage(1, "a"), expect_epoch=b"", recv_next=2)
    for expectation in ({"expect": 1}, {"expect": 2, "expect_epoch": b""}):
        with pytest.raises(StoreConflict, match=PEER.hex()):
            await receive(store, channel, OutMessage(2, "b"), recv_next=3, **expectation)
    assert len((await store.execute(ReadIn(channel, 0))).items) == 1


async def test_a_closing_message_closes_the_inbox_until_a_new_epoch(store):
    channel = await make_channel(store)
    assert await receive(store, channel, OutMessage(1, None), expect_epoch=b"", recv_next=2) == (1, 0, 0)
    row = await channel_row(store, channel)
    assert (row.in_closed, row.in_count, row.recv_count) == (True, 0, 1)
    lost = Removal(1, 40, Reason.LOST, 3)
    await receive(store, channel, lost, OutMessage(40, "x"), expect=2, epoch=b"peer-two", recv_next=41)
    row = await channel_row(store, channel)
    assert (row.in_closed, row.recv_count, row.in_count) == (False, 4, 2)


async def test_the_inbox_is_read_in_pages_and_its_rows_never_start_again(store):
    channel = await make_channel(store)
    items = [OutMessage(number, "m" * 10) for number in range(1, 8)]
    await receive(store, channel, *items, expect_epoch=b"", recv_next=8)
    first = await store.execute(ReadIn(channel, 0))
    assert ([item.row for item in first.items], first.next_row) == ([1, 2, 3, 4, 5], 6)
    second = await store.execute(ReadIn(channel, 6))
    assert ([item.row for item in second.items], second.next_row) == ([6, 7], 8)
    assert (await store.execute(ReadIn(channel, 8))).next_row == 8
    assert await store.execute(AckIn(channel, 8)) == InRemoved(4, 40, 0, 5, more=True)
    assert await store.execute(AckIn(channel, 8)) == InRemoved(3, 30, 0, 8, more=False)
    assert await store.execute(AckIn(channel, 8)) == InRemoved(0, 0, 0, 0, more=False)
    assert (await channel_row(store, channel)).in_bytes == 0
    assert (await receive(store, channel, OutMessage(8, "n"), expect=8, recv_next=9)).first_row == 8


async def test_gaps_that_wait_are_counted_until_they_leave(store):
    channel = await make_channel(store)
    gaps = [Removal(number, number + 1, Reason.EXPIRED, 1) for number in (2, 4, 6)]
    items = [OutMessage(1, "a"), gaps[0], OutMessage(3, "b"), gaps[1], Removal(5, 6, Reason.RESTART, 0), gaps[2]]
    await receive(store, channel, *items, expect_epoch=b"", recv_next=7)
    assert (await channel_row(store, channel)).in_gaps == 3
    page = await store.execute(ReadIn(channel, 0))
    assert (len(page.items), page.damaged, page.gaps) == (5, 0, 0)
    assert await store.execute(AckIn(channel, 3)) == InRemoved(2, 1, 1, 3, more=False)
    assert (await channel_row(store, channel)).in_gaps == 2
    assert await store.execute(AckIn(channel, 9)) == InRemoved(3, 1, 2, 6, more=False)
    row = await channel_row(store, channel)
    assert (row.in_count, row.in_bytes, row.in_gaps) == (0, 0, 0)


async def test_each_slice_of_an_acknowledgement_says_how_many_gaps_it_took(store):
    channel = await make_channel(store)
    items = [Removal(number, number + 1, Reason.PURGED, 1) for number in range(1, 7)]
    await receive(store, channel, *items, OutMessage(7, "a"), expect_epoch=b"", recv_next=8)
    assert await store.execute(AckIn(channel, 8)) == InRemoved(4, 0, 4, 5, more=True)
    assert await store.execute(AckIn(channel, 8)) == InRemoved(3, 1, 2, 8, more=False)


async def test_rows_leave_in_any_order(store):
    channel = await make_channel(store)
    items = [OutMessage(number, "x" * number) for number in range(1, 9)]
    await receive(
        store, channel, *items[:3], Removal(4, 5, Reason.EXPIRED, 1), *items[4:], expect_epoch=b"", recv_next=9
    )
    assert await store.execute(AckIn(channel, 3, first_row=2)) == InRemoved(1, 2, 0, 3, more=False)
    assert await store.execute(AckIn(channel, 7, first_row=5)) == InRemoved(2, 11, 0, 7, more=False)
    assert await store.execute(AckIn(channel, 7, first_row=5)) == InRemoved(0, 0, 0, 0, more=False)
    assert [item.row for item in (await store.execute(ReadIn(channel, 0))).items] == [1, 3, 4, 7, 8]
    assert [item.row for item in (await store.execute(ReadIn(channel, 5))).items] == [7, 8]
    row = await channel_row(store, channel)
    assert (row.in_count, row.in_bytes, row.in_gaps) == (5, 19, 1)
    assert await store.execute(AckIn(channel, 4)) == InRemoved(2, 4, 0, 4, more=False)
    assert await store.execute(AckIn(channel, 9)) == InRemoved(2, 7, 1, 8, more=True)
    assert await store.execute(AckIn(channel, 9)) == InRemoved(1, 8, 0, 9, more=False)
    row = await channel_row(store, channel)
    assert (row.in_count, row.in_bytes, row.in_gaps) == (0, 0, 0)
    assert (await receive(store, channel, OutMessage(9, "n"), expect=9, recv_next=10)).first_row == 9


async def test_the_oldest_rows_of_an_inbox_are_trimmed(store):
    channel = await make_channel(store)
    items = [OutMessage(number, "x" * 10) for number in range(1, 11)]
    await receive(store, channel, *items, expect_epoch=b"", recv_next=11)
    assert await store.execute(TrimIn(channel, 10, None)) == InRemoved(0, 0, 0, 0, more=False)
    assert await store.execute(TrimIn(channel, 4, None)) == InRemoved(4, 40, 0, 5, more=True)
    assert await store.execute(TrimIn(channel, 4, None)) == InRemoved(2, 20, 0, 7, more=False)
    await store.execute(AckIn(channel, 9, first_row=8))
    assert await store.execute(TrimIn(channel, None, 19)) == InRemoved(2, 20, 0, 10, more=False)
    assert [item.row for item in (await store.execute(ReadIn(channel, 0))).items] == [10]


async def test_a_page_passes_over_rows_that_left(store):
    channel = await make_channel(store)
    await receive(store, channel, *[OutMessage(n, "x") for n in range(1, 31)], expect_epoch=b"", recv_next=31)
    for first in range(2, 26, 4):
        await store.execute(AckIn(channel, first + 4, first_row=first))
    page = await store.execute(ReadIn(channel, 0))
    assert ([item.row for item in page.items], page.damaged) == ([1, 26, 27, 28, 29], 0)


async def test_numbers_that_fit_no_row_are_refused(store):
    channel = await make_channel(store)
    refused = [
        Acknowledge(channel, 2**63),
        SetEpoch(channel, EPOCH, 2**63),
        Put(channel, (), NOW, first_seq=2**63),
        Put(channel, ("a",), NOW, floor=-1),
        Receive(channel, b"", 0, PEER, 2**63, (), NOW),
        Receive(channel, b"", 0, PEER, 2, (Removal(1, 2, Reason.LOST, 2**63),), NOW),
    ]
    before = await channel_row(store, channel)
    for operation in refused:
        with pytest.raises(StoreConflict, match="2\\*\\*63"):
            await store.execute(operation)
    assert await channel_row(store, channel) == before


async def test_operations_on_unknown_channels_conflict(store):
    await make_channel(store)
    for operation in (Acknowledge(9, 1), ReadOut(9, 0), ReadIn(9, 0), AckIn(9, 1), FindExpiry(9, NOW), MarkAttached(9)):
        with pytest.raises(StoreError, match="no channel 9"):
            await store.execute(operation)


async def test_a_closing_message_with_messages_behind_it_is_no_row_of_the_inbox(store):
    channel = await make_channel(store)
    items = (OutMessage(1, "a"), OutMessage(2, None), OutMessage(3, "b"), OutMessage(4, "c"))
    received = await receive(store, channel, *items, expect_epoch=b"", recv_next=5)
    assert (received.first_row, received.rows) == (1, 3)
    page = await store.execute(ReadIn(channel, 0))
    assert [(item.row, item.seq, item.payload) for item in page.items] == [(1, 1, "a"), (2, 3, "b"), (3, 4, "c")]
    (record,) = (await store.execute(LoadSessions())).channels
    assert (record.recv_count, record.in_closed, record.in_count) == (4, 1, 3)
