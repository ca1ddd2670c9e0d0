"""Messages that share a row: what a pack says of them, and what becomes of it when a part of it leaves or is damaged."""

from __future__ import annotations

import logging
import os
import sqlite3
import struct
from contextlib import closing, suppress
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rondevud.accounts import ReadAccounts
from rondevud.errors import StoreConflict
from rondevud.failed import CountTry, FreeFailed, ReadFailed, SetAside
from rondevud.records import (
    AckIn,
    Acknowledge,
    Expire,
    InMessage,
    LoadSessions,
    OpenProducer,
    OutMessage,
    Put,
    ReadIn,
    ReadOut,
    Reason,
    Receive,
    Removal,
    Remove,
    Stamp,
    Trim,
    TrimIn,
)
from rondevud.store.base import Limits
from rondevud.store.database import connect, is_damage
from rondevud.store.examination import KINDS
from rondevud.store.marks import Marks
from rondevud.store.pack_table import PackTable
from rondevud.store.packs import (
    PACK_BYTES,
    PACK_MESSAGES,
    InPack,
    OutPack,
    claimed,
    contents,
    encode,
    intact,
    part,
    payloads,
    runs,
    sealed,
    sizes,
)
from rondevud.store.rows import message_crc, received_crc
from rondevud.store.sqlite import SqliteStore
from rondevud.store.tables import SqlTables
from tests.unit.store.kit import NOW, PEER, later, make_channel
from tests.unit.store.mending import edit, examine, mend

EMPTY = {
    OutPack: OutPack(3, 70, 0, 0, 9, 500, 2, 50.0, 60.0, 1000.0, b"", b"", 0, b""),
    InPack: InPack(3, 70, 0, 0, b"an epoch", 500, 1000.0, b"", b"", 0, b""),
}
bodies = st.lists(st.text(max_size=20) | st.binary(max_size=20), min_size=2, max_size=12)


def make(kind: Any, held: list[str | bytes]) -> Any:
    return sealed(EMPTY[kind], encode(held))


# --- packs alone -----------------------------------------------------------------------------------------------------


@given(st.sampled_from([OutPack, InPack]), bodies, st.data())
def test_a_pack_cut_anywhere_holds_the_same_messages(kind, held, data):
    pack = make(kind, held)
    assert (payloads(pack), pack.behind, sizes(pack)) == (held, 70 + len(held), [len(_bytes(body)) for body in held])
    at = data.draw(st.integers(1, len(held) - 1))
    left, right = part(pack, 0, at), part(pack, at, len(held))
    assert intact(left)
    assert intact(right)
    assert (left.first, left.behind, right.first, right.behind) == (70, 70 + at, 70 + at, 70 + len(held))
    assert (payloads(left), payloads(right)) == (held[:at], held[at:])
    assert left.size + right.size == pack.size
    assert left[4:6] == pack[4:6]
    assert (right.seq if kind is InPack else right.producer_seq) == 500 + at


def _bytes(body: str | bytes) -> bytes:
    return body.encode() if isinstance(body, str) else body


@given(
    st.lists(
        st.text(max_size=9) | st.binary(max_size=9) | st.sampled_from([bytes(PACK_BYTES), "x" * 9000]), max_size=300
    )
)
@settings(deadline=None)
def test_what_shares_a_row_is_bounded_and_nothing_is_left_out(held):
    encoded = encode(held)
    places = list(runs(encoded))
    assert list(chain.from_iterable(range(*place) for place in places)) == list(range(len(held)))
    for first, behind in places:
        assert behind - first <= PACK_MESSAGES
        assert behind - first == 1 or sum(map(len, encoded.datas[first:behind])) <= PACK_BYTES


def test_a_closing_message_has_a_row_of_its_own():
    assert list(runs(encode(["a", "b", None]))) == [(0, 2), (2, 3)]


def flips(value: Any) -> list[Any]:
    """The value with one other bit, for each of its bits."""
    if isinstance(value, bytes):
        number = int.from_bytes(value, "big")
        return [(number ^ 1 << bit).to_bytes(len(value), "big") for bit in range(8 * len(value))]
    form = "<d" if isinstance(value, float) else "<q"
    (number,) = struct.unpack("<Q", struct.pack(form, value))
    return [struct.unpack(form, struct.pack("<Q", number ^ 1 << bit))[0] for bit in range(64)]


@pytest.mark.parametrize("kind", [OutPack, InPack])
def test_each_bit_of_each_column_but_the_payload_is_covered(kind):
    pack = make(kind, ["one", b"two", ""])
    assert intact(pack)
    for name in kind._fields[:-1]:
        for other in flips(getattr(pack, name)):
            assert not intact(pack._replace(**{name: other})), (name, other)


@pytest.mark.parametrize("kind", [OutPack, InPack])
@pytest.mark.parametrize("other", [None, "text", b"blob", 1.5, -1, "", b""])
def test_a_column_that_holds_another_type_is_damage_and_no_error(kind, other):
    pack = make(kind, ["one", b"two", ""])
    for name in kind._fields[:-1]:
        assert not intact(pack._replace(**{name: other})), name


@given(st.sampled_from([OutPack, InPack]), bodies.filter(any), st.data())
def test_a_flipped_bit_of_the_payload_damages_one_message(kind, held, data):
    pack = make(kind, held)
    place = data.draw(st.integers(0, 8 * pack.size - 1))
    content = bytearray(pack.payload)
    content[place // 8] ^= 1 << place % 8
    damaged = pack._replace(payload=bytes(content))
    assert intact(damaged)
    assert payloads(damaged) is None
    found = contents(damaged)
    ends = [sum(sizes(pack)[: number + 1]) for number in range(len(held))]
    hit = next(number for number, end in enumerate(ends) if place // 8 < end)
    assert [number for number, message in enumerate(found) if not message.whole] == [hit]
    assert [m.data for m in found if m.whole] == [_bytes(body) for n, body in enumerate(held) if n != hit]


@given(st.sampled_from([OutPack, InPack]), bodies, st.data())
def test_a_payload_that_is_too_short_or_no_bytes_damages_what_lacks_and_keeps_its_size(kind, held, data):
    pack = make(kind, held)
    short = data.draw(st.integers(0, pack.size) | st.none())
    damaged = pack._replace(payload="text" if short is None else pack.payload[:short])  # type: ignore[arg-type]
    found = contents(damaged)
    assert (payloads(damaged) is None) == any(not message.whole for message in found)
    assert [len(message.data) for message in found] == sizes(pack)
    ends = [sum(sizes(pack)[: number + 1]) for number in range(len(held))]
    whole = [end <= (short or 0) or not size for end, size in zip(ends, sizes(pack), strict=True)]
    assert [message.whole for message in found] == whole


def test_a_damaged_pack_claims_what_two_of_its_columns_agree_on():
    pack = make(OutPack, ["a"] * 7)
    for damage in (
        {"messages": 8},
        {"messages": "x"},
        {"messages": None},
        {"sizes": b""},
        {"checks": "text"},
        {"crc": 1},
    ):
        assert claimed(pack._replace(**damage)) == 7, damage
    assert claimed(pack._replace(messages=8, sizes=b"")) == PACK_MESSAGES
    assert claimed(pack._replace(messages=0, sizes=b"", checks=b"")) == PACK_MESSAGES


# --- in a store ------------------------------------------------------------------------------------------------------

OUT = {number: f"out {number}" if number % 3 else f"out {number}".encode() for number in range(1, 31)}
IN = {number: f"in {number}" if number % 3 else f"in {number}".encode() for number in range(1, 31)}
THIRDS = [range(1, 11), range(11, 21), range(21, 31)]
"""What shares a row."""


@pytest.fixture
async def filled(path: Path) -> Path:
    """Both queues of one channel, with three packs each; the second ones are damaged by most tests."""
    path.parent.mkdir()
    store = await SqliteStore.open(path)
    channel = await make_channel(store)
    producer = (await store.execute(OpenProducer(channel, b"app", NOW))).id
    for third in THIRDS:
        age = 50.0 if third[0] == 11 else 90.0
        body = tuple(OUT[number] for number in third)
        await store.execute(Put(channel, body, NOW, producer=producer, first_seq=100 + third[0], max_age=age))
        items = tuple(OutMessage(number + 1000, IN[number]) for number in third)
        expected = (PEER, third[0] + 1000) if third[0] > 1 else (b"", 0)
        await store.execute(Receive(channel, *expected, PEER, third[-1] + 1001, items, NOW))
    await store.close()
    assert counts(path) == (0, 3, 0, 3)
    return path


def counts(path: Path) -> tuple[int, ...]:
    """Rows of the four tables."""
    tables = ("outbox", "outbox_packs", "inbox", "inbox_packs")
    with closing(sqlite3.connect(path)) as connection:
        return tuple(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables)


async def read_out(store, channel: int = 1) -> tuple[dict[int, Any], list[tuple[int, int, int]]]:
    """What each number is, and what is told to be damaged: first, next, messages."""
    found: dict[int, Any] = {}
    told = []
    number, end = 0, False
    while not end:
        page = await store.execute(ReadOut(channel, number))
        told += [(gone.first, gone.next, gone.messages) for gone in page.damaged]
        for item in page.items:
            numbers = range(item.seq, item.seq + 1) if isinstance(item, OutMessage) else range(item.first, item.next)
            assert not found.keys() & set(numbers)
            found.update(dict.fromkeys(numbers, item.payload if isinstance(item, OutMessage) else item.reason))
        number, end = page.next, page.end
    assert list(found) == sorted(found)
    return found, told


async def read_in(store, channel: int = 1) -> tuple[dict[int, Any], int, int]:
    """What each row is, how many are told to be damaged, and how many more gaps there are."""
    found: dict[int, Any] = {}
    row = damaged = gaps = 0
    while (page := await store.execute(ReadIn(channel, row))).items or page.damaged:
        for item in page.items:
            assert item.row not in found
            found[item.row] = item.payload if isinstance(item, InMessage) else item.removal.reason
        row, damaged, gaps = page.next_row, damaged + page.damaged, gaps + page.gaps
    assert list(found) == sorted(found)
    return found, damaged, gaps


async def record_of(store, channel: int = 1):
    (record,) = [row for row in (await store.execute(LoadSessions())).channels if row.id == channel]
    books = await store.execute(ReadAccounts(channel))
    assert books.totals.mistakes(record) == []
    return record


def harm(path: Path) -> list[tuple[str, str]]:
    """What the doctor finds, but for what is harmless."""
    return [found for found in examine(path) if not KINDS[found[0]].harmless]


async def emptied(store) -> None:
    """All leaves both queues, and then nothing is counted."""
    await store.execute(Acknowledge(1, 31))
    await store.execute(AckIn(1, 31))
    record = await record_of(store)
    assert (record.out_count, record.out_bytes, record.in_count, record.in_bytes, record.in_gaps) == (0, 0, 0, 0, 0)


def damaged(numbers: range, whole: dict[int, Any]) -> dict[int, Any]:
    return whole | dict.fromkeys(numbers, Reason.DAMAGED)


def size(numbers: Any, held: dict[int, Any]) -> int:
    return sum(len(held[number]) for number in numbers)


HEADERS = {
    "messages": [3, 11, 0, -5, 10**12, "x", b"xx", 2.5],
    "size": [1, -1, "x"],
    "sizes": [b"", bytes(40), bytes(39), "x"],
    "checks": [b"", bytes(40), bytes(44), 5],
    "crc": [0, "x"],
}
OUT_HEADERS = HEADERS | {
    "producer": [2, 0, -1, "x"],
    "producer_seq": [5, "x"],
    "boot": [7, "x"],
    "boot_expiry": [1.0, "x"],
    "wall_expiry": [1.0, b"x"],
    "accepted": [3.0, "x"],
}
IN_HEADERS = HEADERS | {"epoch": [b"", b"epoch-xx", "epoch-pe", 5], "seq": [5, "x"], "enqueued": [3.0, "x"]}


def short(value: Any) -> str:
    """The name of a case."""
    return repr(value)[:12]


def each(headers: dict[str, list[Any]]) -> list[tuple[str, Any]]:
    return [(column, value) for column, values in headers.items() for value in values]


@pytest.mark.parametrize(("column", "value"), each(OUT_HEADERS), ids=short)
async def test_a_damaged_header_in_the_outbox_takes_its_messages_and_no_others(filled, column, value):
    edit(filled, f"UPDATE outbox_packs SET {column} = ? WHERE seq = 11", values=(value,))
    found = examine(filled)
    assert ("damaged_row", "outbox_packs of channel 1, seq 11") in found
    assert ("missing", "the outbox of channel 1") in found
    store = await SqliteStore.open(filled)
    assert await read_out(store) == (damaged(THIRDS[1], OUT), [(11, 21, 10)])
    record = await record_of(store)
    assert (record.out_count, record.out_bytes) == (20, size([*THIRDS[0], *THIRDS[2]], OUT))
    await store.close()
    assert harm(filled) == []
    store = await SqliteStore.open(filled)
    assert await read_out(store) == (damaged(THIRDS[1], OUT), [])  # told once
    await emptied(store)
    await store.close()


@pytest.mark.parametrize(("column", "value"), each(IN_HEADERS), ids=short)
async def test_a_damaged_header_in_the_inbox_takes_its_messages_and_no_others(filled, column, value):
    edit(filled, f"UPDATE inbox_packs SET {column} = ? WHERE row = 11", values=(value,))
    found = examine(filled)
    assert ("damaged_row", "inbox_packs of channel 1, row 11") in found
    assert ("missing", "the inbox of channel 1") in found
    store = await SqliteStore.open(filled)
    assert await read_in(store) == (damaged(THIRDS[1], IN), 10, 10)
    record = await record_of(store)
    assert (record.in_count, record.in_bytes, record.in_gaps) == (30, size(IN, IN), 10)
    await store.close()
    assert harm(filled) == []
    store = await SqliteStore.open(filled)
    assert await read_in(store) == (damaged(THIRDS[1], IN), 0, 0)
    await emptied(store)
    await store.close()


async def test_the_producer_of_a_damaged_pack_is_told(filled):
    edit(filled, "UPDATE outbox_packs SET accepted = 1.0 WHERE seq = 11")
    store = await SqliteStore.open(filled)
    (gone,) = (await store.execute(ReadOut(1, 0))).damaged
    assert [(told.first, told.last, told.messages) for told in gone.producers] == [(111, 120, 10)]
    assert gone.size == size(THIRDS[1], OUT)
    record = await store.execute(OpenProducer(1, b"app", NOW))
    assert (record.removed, record.unreported) == (10, 10)
    await store.close()


async def test_neighbours_that_are_damaged_are_told_each_once(filled):
    edit(filled, "UPDATE outbox_packs SET accepted = 1.0", "UPDATE inbox_packs SET enqueued = 1.0")
    store = await SqliteStore.open(filled)
    everything = range(1, 31)
    assert await read_out(store) == (damaged(everything, OUT), [(1, 11, 10), (11, 21, 10), (21, 31, 10)])
    assert await read_in(store) == (damaged(everything, IN), 30, 30)
    record = await record_of(store)
    assert (record.out_count, record.out_bytes, record.in_bytes) == (0, 0, size(IN, IN))
    await store.close()
    assert harm(filled) == []


async def test_any_number_of_damaged_packs_is_told(path):
    path.parent.mkdir()
    store = await SqliteStore.open(path)
    channel, count = await make_channel(store), 1_500
    for number in range(1, count, 2):
        store.submit(Put(channel, ("a", "b"), NOW))
        expected = (PEER, number) if number > 1 else (b"", 0)
        items = (OutMessage(number, "a"), OutMessage(number + 1, "b"))
        store.submit(Receive(channel, *expected, PEER, number + 2, items, NOW))
    await store.close()
    assert counts(path) == (0, count // 2, 0, count // 2)
    edit(path, "UPDATE outbox_packs SET messages = 'x'", "UPDATE inbox_packs SET messages = 'x'")
    store = await SqliteStore.open(path)
    found, told = await read_out(store)
    assert (set(found.values()), len(found), sum(gone[2] for gone in told)) == ({Reason.DAMAGED}, count, count)
    rows, lost, gaps = await read_in(store)
    assert (set(rows.values()), len(rows), lost, gaps) == ({Reason.DAMAGED}, count, count, count)
    await store.close()


PAYLOADS = {
    "one bit": ("payload = CAST(x'00' || substr(payload, 2) AS BLOB)", range(11, 12)),
    "too short": ("payload = substr(payload, 1, length(payload) - 1)", range(20, 21)),
    "half of it": ("payload = substr(payload, 1, 20)", None),
    "text": ("payload = CAST(payload AS TEXT)", range(11, 21)),
    "a number": ("payload = 7", range(11, 21)),
    "empty": ("payload = x''", range(11, 21)),
    "too long": ("payload = CAST(payload || 'more' AS BLOB)", range(0)),
}


@pytest.mark.parametrize("what", PAYLOADS)
async def test_a_damaged_payload_takes_the_messages_it_concerns(filled, what):
    change, concerned = PAYLOADS[what]
    edit(filled, f"UPDATE outbox_packs SET {change} WHERE seq = 11", f"UPDATE inbox_packs SET {change} WHERE row = 11")
    gone_out = concerned or range(next(n for n in THIRDS[1] if size(range(11, n + 1), OUT) > 20), 21)
    gone_in = concerned or range(next(n for n in THIRDS[1] if size(range(11, n + 1), IN) > 20), 21)
    gone_out, gone_in = (range(0), range(0)) if what == "too long" else (gone_out, gone_in)
    found = [where for kind, where in examine(filled) if kind == "damaged_row"]
    assert found == [
        *(f"outbox of channel 1, number {number}" for number in gone_out),
        *(f"inbox of channel 1, row {number}" for number in gone_in),
    ]
    store = await SqliteStore.open(filled)
    out, told = await read_out(store)
    assert (out, sum(gone[2] for gone in told)) == (damaged(gone_out, OUT), len(gone_out))
    assert await read_in(store) == (damaged(gone_in, IN), len(gone_in), len(gone_in))
    record = await record_of(store)
    assert (record.out_count, record.out_bytes) == (30 - len(gone_out), size(OUT.keys() - set(gone_out), OUT))
    assert (record.in_count, record.in_bytes, record.in_gaps) == (30, size(IN, IN), len(gone_in))
    await store.close()
    assert harm(filled) == []


@pytest.mark.parametrize("payload", ["''", "0", "x'00'", "NULL"])
async def test_empty_messages_need_no_payload(path, payload):
    path.parent.mkdir()
    store = await SqliteStore.open(path)
    channel = await make_channel(store)
    await store.execute(Put(channel, ("", b""), NOW))
    await store.execute(Receive(channel, b"", 0, PEER, 3, (OutMessage(1, ""), OutMessage(2, b"")), NOW))
    await store.close()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        for table in ("outbox_packs", "inbox_packs"):
            value = "x''" if payload == "NULL" else payload
            connection.execute(f"UPDATE {table} SET payload = {value}")
    store = await SqliteStore.open(path)
    assert await read_out(store) == ({1: "", 2: b""}, [])
    assert await read_in(store) == ({1: "", 2: b""}, 0, 0)
    await store.close()


async def test_a_pack_that_is_not_there_is_told(filled):
    edit(filled, "DELETE FROM outbox_packs WHERE seq = 11", "DELETE FROM inbox_packs WHERE row = 11")
    store = await SqliteStore.open(filled)
    assert await read_out(store) == (damaged(THIRDS[1], OUT), [(11, 21, 10)])
    assert await read_in(store) == (damaged(THIRDS[1], IN), 10, 10)
    await record_of(store)
    await emptied(store)
    await store.close()


@pytest.mark.parametrize("other", [2, 77])
async def test_a_pack_that_got_into_another_channel_is_nobodys(filled, other):
    store = await SqliteStore.open(filled)
    second = await make_channel(store, label="second")
    body = tuple(f"second {number}" for number in range(25))
    await store.execute(Put(second, body, NOW))
    items = tuple(OutMessage(number, text) for number, text in enumerate(body, 1))
    await store.execute(Receive(second, b"", 0, PEER, 26, items, NOW))
    await store.close()
    edit(
        filled,
        f"UPDATE outbox_packs SET channel = {other} WHERE channel = 1 AND seq = 11",
        f"UPDATE inbox_packs SET channel = {other} WHERE channel = 1 AND row = 11",
    )
    store = await SqliteStore.open(filled)
    everything = dict(enumerate(body, 1))
    assert await read_out(store, second) == (everything, [])
    assert await read_in(store, second) == (everything, 0, 0)
    assert (await read_out(store))[0] == damaged(THIRDS[1], OUT)
    assert (await read_in(store))[0] == damaged(THIRDS[1], IN)
    await store.close()


async def test_an_index_that_leads_astray_costs_no_pack(filled):
    with closing(connect(filled)) as connection:
        table = PackTable(connection, OutPack, lambda pack: pytest.fail(f"lost {pack}"))
        rowid = connection.execute("SELECT rowid FROM outbox_packs WHERE seq = 11").fetchone()[0]
        wrong = EMPTY[OutPack]
        with pytest.raises(sqlite3.DatabaseError, match="leads astray") as raised:
            table._give_up(rowid, wrong)
        assert is_damage(raised.value)
        assert connection.execute("SELECT count(*) FROM outbox_packs").fetchone() == (3,)


# --- what leaves out of the middle of a damaged pack -------------------------------------------------------------------

SPOIL_OUT = "UPDATE outbox_packs SET crc = crc + 1 WHERE seq = 11"
SPOIL_IN = "UPDATE inbox_packs SET crc = crc + 1 WHERE row = 11"


async def spoilt(path: Path, statement: str) -> SqliteStore:
    edit(path, statement)
    return await SqliteStore.open(path)


async def test_what_the_peer_has_acknowledged_is_not_told_to_be_damaged(filled):
    store = await spoilt(filled, SPOIL_OUT)
    done = await store.execute(Acknowledge(1, 16))
    assert (done.messages, done.producers[0].last) == (15, 115)
    assert await read_out(store) == ({n: OUT[n] if n > 20 else Reason.DAMAGED for n in range(16, 31)}, [(16, 21, 5)])
    record = await record_of(store)
    assert (record.out_count, record.out_bytes, record.acked_count) == (10, size(THIRDS[2], OUT), 15)
    assert (await store.execute(ReadAccounts(1))).totals.acknowledged == 15
    await emptied(store)
    await store.close()


async def test_a_damaged_pack_that_the_peer_has_is_acknowledged(filled):
    store = await spoilt(filled, SPOIL_OUT)
    done = await store.execute(Acknowledge(1, 25))
    assert (done.messages, done.size) == (24, size(range(1, 25), OUT))
    assert await read_out(store) == ({n: OUT[n] for n in range(25, 31)}, [])
    await store.close()
    assert harm(filled) == []


@pytest.mark.parametrize(("first", "upto"), [(0, 16), (14, 17), (13, 25), (0, 25)])
async def test_what_a_program_has_acknowledged_is_not_told_to_be_damaged(filled, first, upto):
    store = await spoilt(filled, SPOIL_IN)
    taken = range(max(1, first), upto)
    done = await store.execute(AckIn(1, upto, first))
    assert (done.messages, done.gaps) == (len(taken), 0)
    left = {n: Reason.DAMAGED if n in THIRDS[1] else IN[n] for n in IN if n not in taken}
    lost = sum(reason is Reason.DAMAGED for reason in left.values())
    assert await read_in(store) == (left, lost, lost)
    record = await record_of(store)
    assert (record.in_count, record.in_gaps) == (30 - len(taken), lost)
    assert (await store.execute(ReadAccounts(1))).totals.taken == len(taken)
    await store.close()
    assert harm(filled) == []


@pytest.mark.parametrize(
    ("operation", "gone"),
    [
        (Trim(1, 15, None), range(1, 6)),
        (Remove(1, 5, 16, Reason.PURGED), range(5, 16)),
        (Remove(1, 13, 14, Reason.PURGED), range(13, 14)),
        (Expire(1, later(60)), range(11, 21)),
        (Expire(1, Stamp("boot-2", 1.0, NOW.wall + 60)), range(11, 21)),
    ],
    ids=str,
)
async def test_a_limit_that_meets_a_damaged_pack_tells_of_it(filled, operation, gone):
    store = await spoilt(filled, SPOIL_OUT)
    done = await store.execute(operation)
    lost = [item for item in done.removed if item.reason is Reason.DAMAGED]
    assert [(item.first, item.next, item.messages) for item in lost] == [(11, 21, 10)]
    found, told = await read_out(store)
    assert told == []
    kept = OUT.keys() - set(gone) - set(THIRDS[1])
    assert {n: what for n, what in found.items() if not isinstance(what, Reason)} == {n: OUT[n] for n in sorted(kept)}
    record = await record_of(store)
    assert sum(item.messages for item in done.removed) == 30 - record.out_count == 30 - len(kept)
    await store.close()
    assert harm(filled) == []


async def test_what_a_full_inbox_drops_may_be_damaged(filled):
    store = await spoilt(filled, SPOIL_IN)
    done = await store.execute(TrimIn(1, 15, None))
    assert (done.messages, done.more) == (15, False)
    left = {n: Reason.DAMAGED if n in THIRDS[1] else IN[n] for n in range(16, 31)}
    assert (await read_in(store))[0] == left
    await record_of(store)
    await emptied(store)
    await store.close()


async def test_a_message_is_set_aside_out_of_a_pack(filled):
    store = await SqliteStore.open(filled)
    await store.execute(CountTry(1, 14, 2))
    page = await store.execute(ReadIn(1, 13))
    assert [(item.row, item.payload, item.tries) for item in page.items[:3]] == [
        (13, IN[13], 0),
        (14, IN[14], 2),
        (15, IN[15], 0),
    ]
    aside = await store.execute(SetAside(1, 14, 3, NOW))
    assert (aside.seq, aside.size) == (1014, len(IN[14]))
    assert await store.execute(SetAside(1, 14, 3, NOW)) is None
    assert await read_in(store) == ({n: body for n, body in IN.items() if n != 14}, 0, 0)
    (kept,) = (await store.execute(ReadFailed(1, 0))).messages
    assert (kept.row, kept.payload) == (14, IN[14])
    assert (await store.execute(FreeFailed(1, None, put_back=True))).first_row == 31
    assert (await read_in(store))[0] == {n: body for n, body in IN.items() if n != 14} | {31: IN[14]}
    await record_of(store)
    await store.close()
    assert harm(filled) == []


async def test_a_damaged_message_is_not_set_aside_and_takes_no_other_with_it(filled):
    edit(filled, "UPDATE inbox_packs SET payload = CAST(x'00' || substr(payload, 2) AS BLOB) WHERE row = 11")
    store = await SqliteStore.open(filled)
    assert await store.execute(SetAside(1, 11, 3, NOW)) is None
    assert await read_in(store) == (damaged(range(11, 12), IN), 1, 1)
    assert await store.execute(SetAside(1, 12, 3, NOW)) is not None
    await record_of(store)
    await store.close()
    assert harm(filled) == []


async def test_a_row_that_has_left_is_not_set_aside(filled):
    store = await SqliteStore.open(filled)
    await store.execute(AckIn(1, 15, 14))
    await store.close()
    with closing(sqlite3.connect(filled)) as connection, connection:  # an older page of the table
        stale = sealed(InPack(1, 14, 0, 0, PEER, 1014, NOW.wall, b"", b"", 0, b""), encode([IN[14]]))
        insert(connection, stale)
    store = await SqliteStore.open(filled)
    assert await store.execute(SetAside(1, 14, 3, NOW)) is None
    await store.close()


# --- files of different times ----------------------------------------------------------------------------------------


def insert(connection: sqlite3.Connection, pack: Any) -> None:
    table = "outbox_packs" if isinstance(pack, OutPack) else "inbox_packs"
    connection.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(pack))})", pack)


def pack_of(path: Path, kind: Any, first: int) -> Any:
    table, key = ("outbox_packs", "seq") if kind is OutPack else ("inbox_packs", "row")
    with closing(sqlite3.connect(path)) as connection:
        return kind._make(connection.execute(f"SELECT * FROM {table} WHERE {key} = ?", (first,)).fetchone())


def stale(kind: Any, first: int, count: int) -> Any:
    """A pack of a later moment, or of an earlier one that has left."""
    head = (
        OutPack(1, first, 0, 0, 1, 900, None, None, None, 1.0, b"", b"", 0, b"")
        if kind is OutPack
        else InPack(1, first, 0, 0, PEER, 5000, 1.0, b"", b"", 0, b"")
    )
    return sealed(head, encode([f"stale {number}" for number in range(count)]))


@pytest.mark.parametrize("place", [(31, 5), (33, 2), (33, 40), (40, 3), (100, 20)], ids=str)
@pytest.mark.parametrize("spoilt", [False, True])
async def test_packs_ahead_of_the_next_number_give_way(filled, place, spoilt):
    with closing(sqlite3.connect(filled)) as connection, connection:
        for kind in (OutPack, InPack):
            pack = stale(kind, *place)
            insert(connection, pack._replace(messages=1) if spoilt else pack)
    store = await SqliteStore.open(filled)
    out, rows = dict(OUT), dict(IN)
    for number in range(31, 51, 4):
        bodies = tuple(f"new {number + place}" for place in range(4))
        put = await store.execute(Put(1, bodies, NOW))
        assert put.first == number
        items = tuple(OutMessage(1000 + number + place, body) for place, body in enumerate(bodies))
        received = await store.execute(Receive(1, PEER, 1000 + number, PEER, 1004 + number, items, NOW))
        assert received.first_row == number
        new = dict(enumerate(bodies, number))
        out, rows = out | new, rows | new
        assert await read_out(store) == (out, [])
        assert await read_in(store) == (rows, 0, 0)
    await store.execute(Acknowledge(1, 51))
    await store.execute(AckIn(1, 51))
    record = await record_of(store)
    assert (record.out_bytes, record.in_bytes, record.acked_count) == (0, 0, 50)
    await store.close()


async def test_packs_ahead_of_the_next_row_give_way_to_what_is_put_back(filled):
    store = await SqliteStore.open(filled)
    await store.execute(SetAside(1, 14, 3, NOW))
    await store.close()
    with closing(sqlite3.connect(filled)) as connection, connection:
        insert(connection, stale(InPack, 31, 2))
    store = await SqliteStore.open(filled)
    await store.execute(FreeFailed(1, None, put_back=True))
    await store.execute(Receive(1, PEER, 1031, PEER, 1032, (OutMessage(1031, "new"),), NOW))
    assert (await read_in(store))[0] == {n: body for n, body in IN.items() if n != 14} | {31: IN[14], 32: "new"}
    await store.close()
    assert harm(filled) == []


def test_what_gave_way_in_a_transaction_that_was_rolled_back_gives_way_again(filled):
    with closing(sqlite3.connect(filled)) as connection, connection:
        insert(connection, stale(OutPack, 31, 2))
        insert(connection, stale(InPack, 31, 2))
    with closing(connect(filled)) as connection:
        marks = Marks(filled)
        tables = SqlTables(connection, Limits(), marks)
        for end in ("ROLLBACK", "COMMIT"):
            connection.execute("BEGIN IMMEDIATE")
            for number in (31, 32, 33):
                tables.execute(Put(1, ("new",), NOW))
                tables.execute(
                    Receive(1, PEER, 1000 + number, PEER, 1001 + number, (OutMessage(1000 + number, "new"),), NOW)
                )
            tables.flush()
            connection.execute(end)
            if end == "ROLLBACK":
                tables.clear()
        marks.close()
    assert counts(filled) == (3, 3, 3, 3)


@pytest.mark.parametrize("joined", [False, True])
async def test_packs_that_hold_the_same_numbers_deliver_each_once(filled, joined):
    with closing(sqlite3.connect(filled)) as connection, connection:
        for kind in (OutPack, InPack):
            second = pack_of(filled, kind, 11)
            if joined:  # a pack before it was cut, beside its parts
                first = pack_of(filled, kind, 1)
                bodies = [message.data for message in [*contents(first), *contents(second)]][4:16]
                texts = [body if number % 3 == 0 else body.decode() for number, body in enumerate(bodies, 5)]
                insert(connection, sealed(first.moved(4), encode(texts)))
            else:
                insert(connection, part(second, 3, 8))
                insert(connection, part(second, 5, 10))
    kinds = {kind for kind, _ in examine(filled)}
    assert kinds == {"twice"}
    copy = filled.with_name("copy.sqlite3")
    copy.write_bytes(filled.read_bytes())
    mend(copy)
    assert harm(copy) == []
    store = await SqliteStore.open(filled)
    assert await read_out(store) == (OUT, [])
    assert await read_in(store) == (IN, 0, 0)
    done = await store.execute(Acknowledge(1, 17))
    assert (done.messages, done.size) == (16, size(range(1, 17), OUT))
    taken = await store.execute(AckIn(1, 17))
    assert (taken.messages, taken.size) == (16, size(range(1, 17), IN))
    assert await read_out(store) == ({n: OUT[n] for n in range(17, 31)}, [])
    assert await read_in(store) == ({n: IN[n] for n in range(17, 31)}, 0, 0)
    await record_of(store)
    await store.close()
    assert harm(filled) == []


@pytest.mark.parametrize("whole", [True, False])
async def test_a_message_that_is_in_a_pack_and_alone_is_delivered_once(filled, whole):
    body = OUT[14].encode(), IN[14].encode()
    out = (1, 14, 1, body[0], 1, 114, None, None, None)
    into = (1, 14, PEER, 1014, 1, body[1])
    with closing(sqlite3.connect(filled)) as connection, connection:
        crc = message_crc(*out, 1.0) if whole else 5
        connection.execute(f"INSERT INTO outbox VALUES ({', '.join('?' * 11)})", (*out, crc, 1.0))
        crc = received_crc(*into, 2, 1.0) if whole else 5
        connection.execute(f"INSERT INTO inbox VALUES ({', '.join('?' * 11)})", (*into, None, None, 2, 1.0, crc))
    assert {("twice", "outbox of channel 1, number 14"), ("twice", "inbox of channel 1, row 14")} <= set(
        examine(filled)
    )
    store = await SqliteStore.open(filled)
    assert await read_out(store) == (OUT, [])
    page = await store.execute(ReadIn(1, 14))
    assert (page.items[0].payload, page.items[0].tries) == (IN[14], 2 if whole else 0)
    assert await read_in(store) == (IN, 0, 0)
    done = await store.execute(Acknowledge(1, 31))
    assert (done.messages, done.size) == (30, size(OUT, OUT))
    await emptied(store)
    await store.close()
    assert counts(filled) == (0, 0, 0, 0)


async def test_a_queue_that_begins_within_a_pack_is_trimmed_to_its_end(filled):
    """The channel's row is of a later moment than the packs."""
    with closing(connect(filled)) as connection:
        marks = Marks(filled)
        tables = SqlTables(connection, Limits(), marks)
        packs = [(kind, pack_of(filled, kind, 1)) for kind in (OutPack, InPack)]
        connection.execute("BEGIN IMMEDIATE")
        tables.execute(Acknowledge(1, 5))
        tables.execute(AckIn(1, 5))
        tables.flush()
        connection.execute("DELETE FROM outbox_packs WHERE seq < 11")
        connection.execute("DELETE FROM inbox_packs WHERE row < 11")
        for _, pack in packs:
            insert(connection, pack)
        connection.execute("COMMIT")
        marks.close()
    store = await SqliteStore.open(filled)
    assert await read_out(store) == ({n: OUT[n] for n in range(5, 31)}, [])
    assert await read_in(store) == ({n: IN[n] for n in range(5, 31)}, 0, 0)
    done = await store.execute(TrimIn(1, 20, None))
    assert (done.messages, done.more) == (6, False)
    assert await read_in(store) == ({n: IN[n] for n in range(11, 31)}, 0, 0)
    await store.close()


def test_a_batch_that_is_refused_leaves_nothing(filled):
    items = (
        OutMessage(1031, "a"),
        OutMessage(1032, "b"),
        Removal(1033, 1035, Reason.EXPIRED, 2),
        OutMessage(1035, "\ud800"),
    )
    with closing(connect(filled)) as connection:
        marks = Marks(filled)
        tables = SqlTables(connection, Limits(), marks)
        connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreConflict):
            tables.execute(Receive(1, PEER, 1031, PEER, 1036, items, NOW))
        tables.flush()
        connection.execute("COMMIT")
        marks.close()
    assert counts(filled) == (0, 3, 0, 3)


async def test_damaged_holes_of_an_inbox_with_a_damaged_pack_leave_counts_that_add_up(filled):
    store = await SqliteStore.open(filled)
    await store.execute(AckIn(1, 26, 24))
    await store.close()
    edit(filled, SPOIL_IN, "UPDATE inbox_holes SET next = 28")
    store = await SqliteStore.open(filled)
    found, _, _ = await read_in(store)
    assert {n: what for n, what in found.items() if what is not Reason.DAMAGED} == {
        n: IN[n] for n in IN if n not in THIRDS[1] and n not in {24, 25}
    }
    record = await record_of(store)
    assert record.in_count == len(found)
    await emptied(store)
    await store.close()
    assert harm(filled) == []


# --- examination and repair ------------------------------------------------------------------------------------------

WRONG = {
    "the header of a pack to be sent": ("UPDATE outbox_packs SET accepted = 9.0 WHERE seq = 11", THIRDS[1], range(0)),
    "the header of a pack received": ("UPDATE inbox_packs SET enqueued = 9.0 WHERE row = 11", range(0), THIRDS[1]),
    "a message to be sent": (
        "UPDATE outbox_packs SET payload = CAST(x'00' || substr(payload, 2) AS BLOB) WHERE seq = 11",
        range(11, 12),
        range(0),
    ),
    "a message received": (
        "UPDATE inbox_packs SET payload = CAST(x'00' || substr(payload, 2) AS BLOB) WHERE row = 11",
        range(0),
        range(11, 12),
    ),
    "a pack to be sent that is not there": ("DELETE FROM outbox_packs WHERE seq = 11", THIRDS[1], range(0)),
    "a pack received that is not there": ("DELETE FROM inbox_packs WHERE row = 11", range(0), THIRDS[1]),
    "a number": ("UPDATE outbox_packs SET seq = 15 WHERE seq = 11", THIRDS[1], range(0)),
    "a number of the wrong type": ("UPDATE outbox_packs SET seq = 'x' WHERE seq = 11", THIRDS[1], range(0)),
    "a row of the wrong type": ("UPDATE inbox_packs SET row = x'00' WHERE row = 11", range(0), THIRDS[1]),
    "a number that had left": ("UPDATE outbox_packs SET seq = 990 WHERE seq = 11", THIRDS[1], range(0)),
    "a channel": ("UPDATE inbox_packs SET channel = 9 WHERE row = 11", range(0), THIRDS[1]),
}


@pytest.mark.parametrize("page", [1, 3, 256])
@pytest.mark.parametrize("what", WRONG)
async def test_what_is_wrong_with_packs_is_found_and_mended_and_nothing_else_is_touched(filled, what, page):
    statement, out, into = WRONG[what]
    edit(filled, statement)
    found = examine(filled, page_messages=page)
    assert [kind for kind, _ in found if not KINDS[kind].harmless]
    assert len([where for kind, where in found if kind == "damaged_row"]) <= 1  # told in one page
    assert mend(filled)
    assert harm(filled) == []
    store = await SqliteStore.open(filled)
    assert await read_out(store) == (damaged(out, OUT), [])
    assert await read_in(store) == (damaged(into, IN), 0, 0)
    await record_of(store)
    await store.close()


@pytest.mark.parametrize("page", [1, 2, 7, 256])
async def test_packs_in_order_are_left_as_they_are(filled, page):
    store = await SqliteStore.open(filled)
    await store.execute(AckIn(1, 26, 24))
    await store.execute(AckIn(1, 4))
    await store.execute(Remove(1, 14, 16, Reason.PURGED))
    await store.execute(Acknowledge(1, 3))
    await store.close()
    before = filled.read_bytes()
    assert (examine(filled, page_messages=page), mend(filled)) == ([], [])
    assert filled.read_bytes() == before


@pytest.mark.parametrize("table", ["outbox_packs", "inbox_packs"])
async def test_a_page_of_packs_that_sqlite_cannot_read_is_left_behind_with_everything_else_kept(path, table):
    random = Random(5)
    bodies = {n: f"{n} " + "x" * random.randrange(300) for n in range(1, 601)}
    path.parent.mkdir()
    store = await SqliteStore.open(path)
    channel = await make_channel(store)
    for first in range(1, 601, 6):
        held = {number: bodies[number] for number in range(first, first + 6)}
        await store.execute(Put(channel, tuple(held.values()), NOW))
        expected = (PEER, first) if first > 1 else (b"", 0)
        items = tuple(OutMessage(number, body) for number, body in held.items())
        await store.execute(Receive(channel, *expected, PEER, first + 6, items, NOW))
    await store.close()
    leaf = leaf_of(path, table)
    content = bytearray(path.read_bytes())
    content[(leaf - 1) * 4096] = 0  # no kind of page
    path.write_bytes(content)
    done = mend(path)
    assert done[0] == f"copied what can be read into a new file; could not read all of: {table}"
    assert harm(path) == []
    store = await SqliteStore.open(path)
    out, _ = await read_out(store, channel)
    rows, _, _ = await read_in(store, channel)
    await record_of(store, channel)
    await store.close()
    for found, broken in ((out, table == "outbox_packs"), (rows, table == "inbox_packs")):
        lost = [number for number, what in found.items() if what is Reason.DAMAGED]
        assert found == damaged(range(0), bodies) | dict.fromkeys(lost, Reason.DAMAGED)
        assert (0 < len(lost) < 60) if broken else not lost


def leaf_of(path: Path, table: str) -> int:
    """The number of a page in the middle of a table that has an inner page at its root."""
    with closing(sqlite3.connect(path)) as connection:
        (root,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,)).fetchone()
    page = path.read_bytes()[(root - 1) * 4096 : root * 4096]
    assert page[0] == 5
    (cell,) = struct.unpack_from(">H", page, 12 + 2 * (struct.unpack_from(">H", page, 3)[0] // 2))
    return struct.unpack_from(">I", page, cell)[0]


# --- any damage ------------------------------------------------------------------------------------------------------

SEEDS = int(os.environ.get("RONDEVUD_STORE_EXAMPLES", "100")) // 5
"""Stores with some things wrong at once, each used for a while."""

VALUES = [0, 1, -1, 7, 300, 2**40, None, "x", "", b"", b"xx", bytes(40), 2.5]


def spoil(path: Path, random: Random, *, places: bool) -> None:
    """Some columns of some rows of packs, of their neighbours and of what else is in the queues.

    With `places` also those that say where they belong, and what was removed, or the whole row: what is lost then is told
    where it lacks, and nobody knows how many messages it was.
    """
    columns = {
        "outbox_packs": OutPack._fields,
        "inbox_packs": InPack._fields,
        "outbox": ("payload", "producer", "crc"),
        "inbox": ("payload", "kind", "crc"),
        "inbox_holes": ("next", "crc"),
        "removals": ("next", "messages", "crc"),
    }
    if not places:
        del columns["removals"]
        columns |= {"outbox_packs": OutPack._fields[2:], "inbox_packs": InPack._fields[2:]}
    with closing(sqlite3.connect(path)) as connection, connection:
        for _ in range(random.randrange(1, 6)):
            table = random.choice([*columns, "outbox_packs", "inbox_packs"])
            rowids = "first" if table in {"removals", "inbox_holes"} else "rowid"
            found = [row[0] for row in connection.execute(f"SELECT {rowids} FROM {table}")]
            for key in random.sample(found, min(len(found), random.randrange(1, 3))):
                if places and random.random() < 0.2:
                    connection.execute(f"DELETE FROM {table} WHERE {rowids} = ?", (key,))
                    continue
                column, value = random.choice(columns[table]), random.choice(VALUES)
                with suppress(sqlite3.IntegrityError):
                    connection.execute(f"UPDATE {table} SET {column} = ? WHERE {rowids} = ?", (value, key))


async def use(store: SqliteStore, random: Random, channel: int) -> None:
    """What daemons, peers and programs do, each with what is there."""
    for _ in range(random.randrange(1, 8)):
        record = await record_of(store, channel)
        number, row = random.randrange(1, record.next + 2), random.randrange(1, 120)
        count = random.choice([1, 2, 3, 9])
        received = tuple(OutMessage(record.recv_next + place, f"in {row}") for place in range(count))
        operation: Any = random.choice(
            [
                Put(
                    channel, tuple(f"later {place}" for place in range(count)), NOW, max_age=random.choice([None, 20.0])
                ),
                Receive(channel, record.peer_epoch, record.recv_next, PEER, record.recv_next + count, received, NOW),
                Acknowledge(channel, max(record.acked, min(number, record.next))),
                Trim(channel, random.randrange(60), None),
                Remove(channel, number, number + random.randrange(20), Reason.PURGED),
                Expire(channel, later(random.choice([10, 60]))),
                AckIn(channel, row),
                AckIn(channel, row + random.randrange(9), row),
                TrimIn(channel, random.randrange(60), None),
                CountTry(channel, row, 2),
                SetAside(channel, row, 3, NOW),
                FreeFailed(channel, None, put_back=random.random() < 0.5),
                ReadOut(channel, number),
                ReadIn(channel, row),
            ]
        )
        await store.execute(operation)


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_whatever_is_damaged_a_store_is_used_on_and_its_books_add_up(filled, seed, caplog):
    caplog.set_level(logging.CRITICAL)
    random, exact = Random(seed), seed % 4 < 2
    limits = Limits(slice_rows=7, page_messages=9, page_bytes=200) if seed % 2 else Limits()
    store = await SqliteStore.open(filled, limits=limits, pause=0.001)
    await use(store, random, 1)
    for _ in range(3):
        await store.close()
        spoil(filled, random, places=not exact)
        if seed % 3 == 0:
            mend(filled)
            assert harm(filled) == []
        store = await SqliteStore.open(filled, limits=limits, pause=0.001)
        await use(store, random, 1)
        before, _ = await read_out(store)
        assert (await read_out(store))[0] == before
        rows, _, _ = await read_in(store)
        assert (await read_in(store))[0] == rows
        record = await record_of(store)
        assert len(rows) == record.in_count
        if exact:
            assert sum(not isinstance(what, Reason) for what in before.values()) == record.out_count
            assert sum(isinstance(what, Reason) for what in rows.values()) == record.in_gaps
    while (await store.execute(Acknowledge(1, record.next))).more:
        pass
    while (await store.execute(AckIn(1, 2**40))).more:
        pass
    record = await record_of(store)
    assert (record.out_count, record.out_bytes, record.in_count, record.in_bytes, record.in_gaps) == (0, 0, 0, 0, 0)
    await store.close()
