"""Numbers, window and what becomes of messages, without a socket."""

from __future__ import annotations

import asyncio

import pytest

from rondevu_client.errors import Detached, MessageRejected
from rondevu_client.outbox import FRAME_MESSAGES, REMOVED_KEPT, Entry, Outbox


@pytest.fixture
async def outbox():
    outbox = Outbox()
    assert outbox.begin(0, {}, 0, 0, 1024) == []
    return outbox


def put(outbox, data, size=1, max_age=None):
    entry = Entry([data], [size], max_age, asyncio.get_running_loop().create_future())
    outbox.put(entry)
    return entry.future


async def test_neighbours_with_one_age_limit_share_a_frame(outbox):
    for data, age in [("a", None), ("b", None), ("c", 5), ("d", 5), ("e", None)]:
        put(outbox, data, max_age=age)
    assert outbox.take() == [(1, ["a", "b"], None), (3, ["c", "d"], 5), (5, ["e"], None)]
    assert outbox.take() == []


async def test_a_frame_has_bounds(outbox):
    for _ in range(FRAME_MESSAGES + 1):
        put(outbox, "x")
    put(outbox, "big", size=100_000)
    assert [len(frame.payloads) for frame in outbox.take()] == [FRAME_MESSAGES, 1, 1]


def put_many(outbox, payloads, size=1, max_age=None):
    entry = Entry(list(payloads), [size] * len(payloads), max_age, asyncio.get_running_loop().create_future())
    outbox.put(entry)
    return entry.future


async def test_what_is_sent_together_has_one_outcome_the_number_of_its_last_message(outbox):
    before, batch, after = put(outbox, "a"), put_many(outbox, "bcd"), put(outbox, "e")
    assert outbox.take() == [(1, ["a", "b", "c", "d", "e"], None)]
    outbox.accept(3)
    assert (before.done(), batch.done(), after.done(), outbox.undecided) == (True, False, False, 2)
    outbox.accept(5)
    assert (before.result(), batch.result(), after.result(), outbox.undecided) == (1, 4, 5, 0)
    assert outbox.unacknowledged == 5


async def test_a_batch_goes_in_as_many_frames_as_it_needs(outbox):
    put_many(outbox, "x" * (FRAME_MESSAGES + 2))
    put_many(outbox, "yz", size=60_000)
    assert [(frame.seq, len(frame.payloads)) for frame in outbox.take()] == [(1, 256), (257, 3), (260, 1)]


async def test_a_batch_larger_than_the_window_goes_in_parts(outbox):
    batch = put_many(outbox, "x" * 1500)
    assert sum(len(frame.payloads) for frame in outbox.take()) == 1024
    assert (outbox.take(), outbox.undecided, outbox.undecided_bytes) == ([], 1500, 1500)
    outbox.accept(10)
    assert outbox.take() == [(1025, ["x"] * 10, None)]
    outbox.accept(1034)
    assert [frame.seq for frame in outbox.take()] == [1035, 1291]
    assert not batch.done()
    outbox.accept(1500)
    assert (batch.result(), outbox.undecided, outbox.undecided_bytes) == (1500, 0, 0)


async def test_bytes_fill_the_window_too_and_one_message_always_fits(outbox):
    batch = put_many(outbox, "abc", size=3 * 1024 * 1024)
    assert outbox.take() == [(1, ["a"], None)]
    outbox.accept(1)
    assert outbox.take() == [(2, ["b"], None)]
    outbox.accept(2)
    assert outbox.take() == [(3, ["c"], None)]
    outbox.accept(3)
    assert batch.result() == 3
    put(outbox, "huge", size=64 * 1024 * 1024)
    assert outbox.take() == [(4, ["huge"], None)]


async def test_the_first_refusal_within_a_batch_is_told_when_all_of_it_is_decided(outbox):
    batch = put_many(outbox, "abcde")
    outbox.take()
    outbox.reject(4, "queue_full", "no room for it")
    outbox.reject(2, "too_large", "")
    outbox.accept(3)
    assert not batch.done()
    assert outbox.undecided == 1
    outbox.accept(5)
    with pytest.raises(MessageRejected) as caught:
        batch.result()
    assert (caught.value.seq, caught.value.code) == (4, "queue_full")
    assert outbox.unacknowledged == 3


async def test_of_a_batch_only_what_is_not_decided_is_sent_again(outbox):
    batch = put_many(outbox, "abcdef")
    outbox.take()
    outbox.accept(2)
    assert outbox.begin(4, {3: "queue_full"}, 0, 0, 1024) == [(5, ["e", "f"], None)]
    outbox.accept(6)
    with pytest.raises(MessageRejected):
        batch.result()


async def test_a_batch_whose_sender_has_gone_ends_where_it_was(outbox):
    batch = put_many(outbox, "x" * 1100)
    outbox.take()
    batch.cancel()
    after = put(outbox, "after")
    outbox.accept(1024)
    assert outbox.take() == [(1025, ["after"], None)]
    outbox.accept(1025)
    assert after.result() == 1025


async def test_a_batch_fails_once_with_what_is_left_of_it(outbox):
    batch = put_many(outbox, "x" * 1100)
    outbox.take()
    outbox.fail(Detached("closed"))
    with pytest.raises(Detached):
        batch.result()
    assert (outbox.undecided, outbox.undecided_bytes) == (0, 0)
    assert not outbox.is_decided(1)


async def test_what_the_daemon_decided_meanwhile_is_not_sent_again(outbox):
    futures = [put(outbox, str(number)) for number in range(1, 6)]
    outbox.take()
    assert outbox.begin(3, {2: "queue_full"}, 0, 0, 1024) == [(4, ["4", "5"], None)]
    assert [futures[0].result(), futures[2].result()] == [1, 3]
    with pytest.raises(MessageRejected):
        futures[1].result()
    assert not futures[3].done()


async def test_what_a_daemon_has_forgotten_is_lost_unless_the_peer_has_it(outbox):
    futures = [put(outbox, str(number)) for number in range(1, 7)]
    outbox.take()
    outbox.accept(5)
    outbox.acknowledge(1)
    assert outbox.begin(3, {}, 0, 2, 1024) == [(6, ["6"], None)]
    assert not futures[5].done()
    assert outbox.take_removed().ranges == [(4, 5, "lost")]
    assert not outbox.is_acknowledged(3)
    outbox.accept(6)
    outbox.remove(6, 6, "expired")
    outbox.begin(6, {}, 1, 3, 1024)
    assert outbox.take_removed().ranges == [(6, 6, "expired")]
    assert outbox.is_acknowledged(6)


async def test_numbers_start_above_those_of_an_earlier_process(outbox):
    outbox = Outbox()
    outbox.begin(70, {}, 3, 60, 1024)
    put(outbox, "x")
    assert outbox.take() == [(71, ["x"], None)]
    outbox.remove(61, 65, "expired")
    assert outbox.take_removed() is None


async def test_a_message_whose_sender_has_gone_before_it_was_sent_takes_no_number(outbox):
    gone = put(outbox, "gone")
    gone.cancel()
    put(outbox, "there")
    assert outbox.take() == [(1, ["there"], None)]


async def test_acknowledged_and_removed_numbers_are_no_longer_waited_for(outbox):
    for _ in range(10):
        put(outbox, "x")
    outbox.take()
    outbox.reject(4, "queue_full", "")
    outbox.accept(10)
    assert outbox.unacknowledged == 9
    outbox.acknowledge(2)
    outbox.remove(5, 6, "overflow")
    assert not outbox.is_acknowledged(10)
    assert outbox.is_acknowledged(2)
    outbox.acknowledge(10)
    assert outbox.is_acknowledged(10)
    assert outbox.take_removed().ranges == [(5, 6, "overflow")]


async def test_removals_beyond_the_bound_are_counted(outbox):
    for number in range(1, 2 * REMOVED_KEPT + 6):
        put(outbox, "x")
        outbox.take()
        outbox.accept(number)
    for number in range(1, REMOVED_KEPT + 3):
        outbox.remove(2 * number, 2 * number, "expired")
    error = outbox.take_removed()
    assert (len(error.ranges), error.unnumbered) == (REMOVED_KEPT, 2)


async def test_a_removed_range_names_only_what_was_removed(outbox):
    """A range covers what stood between: rejected, acknowledged or removed before for another reason."""
    for _ in range(6):
        put(outbox, "x")
    outbox.take()
    outbox.reject(3, "queue_full", "")
    outbox.accept(6)
    outbox.acknowledge(1)
    outbox.remove(4, 4, "expired")
    outbox.remove(1, 5, "purged")
    assert outbox.take_removed().ranges == [(4, 4, "expired"), (2, 2, "purged"), (5, 5, "purged")]
    assert outbox.removed_known == 3
    outbox.begin(6, {3: "queue_full"}, 4, 1, 1024)
    assert outbox.take_removed().unnumbered == 1
    assert outbox.is_acknowledged(6)


async def test_what_an_earlier_process_had_rejected_does_not_count_as_removed():
    outbox = Outbox()
    outbox.begin(10, {5: "queue_full"}, 0, 0, 1024)
    outbox.remove(4, 6, "purged")
    outbox.begin(10, {5: "queue_full"}, 3, 0, 1024)
    assert outbox.take_removed().unnumbered == 1


async def test_a_failure_reaches_everybody_who_waits(outbox):
    sent = put(outbox, "x")
    outbox.take()
    waiting = put(outbox, "y")
    outbox.fail(Detached("closed"))
    for future in (sent, waiting):
        with pytest.raises(Detached):
            future.result()
    assert outbox.undecided == 0
