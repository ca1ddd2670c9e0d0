"""The sending half of a channel by itself: what counts as handed over."""

from __future__ import annotations

import pytest

from rondevud.durable import frames
from rondevud.durable.outgoing import Outgoing
from rondevud.records import ChannelRecord, Durability, PutResult
from tests.unit.store.kit import EPOCH, PEER


def open_channel() -> Outgoing:
    out = Outgoing(ChannelRecord(1, "conn-1", "main", Durability.DISK, epoch=EPOCH), 1)
    out.peer_channel(frames.Channel("main", PEER, b"", 0, 0, 2**30, Durability.DISK), 2**24)
    return out


def put(out: Outgoing, *payloads: str) -> None:
    out.stored(PutResult(out.next, out.next + len(payloads), sum(map(len, payloads)), jumped=False), payloads)


def test_a_message_in_pieces_is_handed_over_with_its_last_piece():
    out = open_channel()
    out._loaded_next = 1
    put(out, "small", "x" * (2 * frames.PACK + 1))
    handed = []
    while out.frame() is not None:
        handed.append(out.handed)
    assert handed == [2, 2, 2, 3]


def test_half_a_message_is_not_handed_over_when_its_link_is_lost():
    out = open_channel()
    out._loaded_next = 1
    put(out, "x" * (2 * frames.PACK))
    assert out.frame() is not None
    out.link_lost()
    assert (out.handed, out.sent_high) == (0, 2)


def test_after_a_start_only_what_is_acknowledged_counts_as_handed_over():
    record = ChannelRecord(1, "conn-1", "main", Durability.DISK, epoch=EPOCH, next=9, acked=4, peer_epoch=PEER)
    assert Outgoing(record, 1).handed == 4


@pytest.mark.parametrize(
    ("sizes", "packed"),
    [
        ([64] * 600, [frames.PACK // (64 + 5)] * 2),
        ([8_000] + [64] * 200, [1 + (frames.PACK - 8_000) // (64 + 5), 200 - (frames.PACK - 8_000) // (64 + 5)]),
        ([64] * 100 + [8_000] * 3, [101, 2]),
        ([0] * 1_000, [512, 488]),
        ([frames.PACK] * 3, [1, 1, 1]),
    ],
)
def test_a_frame_takes_as_many_messages_as_it_has_room_for(sizes, packed):
    out = open_channel()
    out._loaded_next = 1
    put(out, *("x" * size for size in sizes))
    taken = []
    while (data := out.frame()) is not None:
        taken.append(len(frames.decode(data).payloads))
    assert taken[: len(packed)] == packed
    assert sum(taken) == len(sizes)
