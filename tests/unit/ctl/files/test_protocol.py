"""What is a message of a file transfer, and what is none."""

from __future__ import annotations

import contextlib

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rondevud.ctl.files.protocol import (
    CHUNK,
    KINDS,
    OVERHEAD,
    Cancel,
    Chunk,
    Done,
    End,
    Lost,
    NotAMessage,
    Offer,
    Progress,
    Refused,
    Resume,
    Unknown,
    pack,
    parse,
    transfer_id,
)

ID, RUN, HASH = b"i" * 16, b"r" * 8, b"h" * 32
ALL = [
    Offer(ID, RUN, "a.txt", 2**40, HASH),
    Chunk(ID, 2**40, b"data"),
    End(ID),
    Cancel(ID),
    Resume(ID, RUN, 0, CHUNK),
    Progress(ID, RUN, 5),
    Done(ID, RUN, "a (2).txt"),
    Refused(ID, RUN, "hash", "another one"),
    Unknown(ID),
    Lost(),
]


@pytest.mark.parametrize("message", ALL, ids=lambda message: type(message).__name__)
def test_what_is_packed_is_parsed(message):
    assert parse(pack(message)) == message


def test_every_kind_is_tested():
    assert {type(message) for message in ALL} == set(KINDS.values())


def test_unknown_keys_are_passed_over():
    assert parse(msgpack.packb({"kind": "end", "id": ID, "mood": "good"})) == End(ID)


def test_a_chunk_is_little_longer_than_its_data():
    assert len(pack(Chunk(ID, 2**63 - 1, b"x" * CHUNK))) <= CHUNK + OVERHEAD


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("text", "text where"),
        (b"", "no msgpack"),
        (b"\xc1", "no msgpack"),
        (b"\x93\x01", "no msgpack"),
        (b"\x91" * 100_000, "no msgpack"),
        (msgpack.packb([1]), "a list where a map is due"),
        (msgpack.packb({"kind": ["x"]}), "unknown kind"),
        (msgpack.packb({"kind": "offers"}), "unknown kind"),
        (msgpack.packb({"kind": "end"}), "end without a valid id"),
        (msgpack.packb({"kind": "end", "id": b"short"}), "end without a valid id"),
        (msgpack.packb({"kind": "chunk", "id": ID, "offset": -1, "data": b"x"}), "a valid offset"),
        (msgpack.packb({"kind": "chunk", "id": ID, "offset": True, "data": b"x"}), "a valid offset"),
        (msgpack.packb({"kind": "chunk", "id": ID, "offset": 2**63, "data": b"x"}), "a valid offset"),
        (msgpack.packb({"kind": "chunk", "id": ID, "offset": 0, "data": b""}), "a valid data"),
        (msgpack.packb({"kind": "chunk", "id": ID, "offset": 0, "data": "text"}), "a valid data"),
        (pack(Offer(ID, RUN, "n" * 4097, 1, HASH)), "a valid name"),
        (pack(Offer(ID, RUN, "n", -1, HASH)), "a valid size"),
        (pack(Offer(ID, RUN, "n", 1, b"")), "a valid sha256"),
        (pack(Resume(ID, RUN, 0, 0)), "a valid chunk"),
    ],
)
def test_what_is_no_message_is_named(data, said):
    with pytest.raises(NotAMessage, match=said):
        parse(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_refused(data):
    with contextlib.suppress(NotAMessage):
        parse(data)


def test_a_transfer_has_the_id_of_its_file():
    assert transfer_id("a", 1, HASH) == transfer_id("a", 1, HASH)
    assert len({transfer_id("a", 1, HASH), transfer_id("b", 1, HASH), transfer_id("a", 2, HASH)}) == 3
