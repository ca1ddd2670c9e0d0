"""Examining and repairing stores with one thing wrong at a time."""

from __future__ import annotations

from contextlib import closing

import pytest

from rondevud.errors import StoreError
from rondevud.records import (
    AckIn,
    Expire,
    InMessage,
    LoadDeclarations,
    LoadSessions,
    OpenProducer,
    OutMessage,
    Put,
    ReadIn,
    ReadOut,
    Reason,
)
from rondevud.store import examination
from rondevud.store.backup import BackupExists, back_up
from rondevud.store.database import check_integrity, connect
from rondevud.store.examination import Examination, ExamineSlice
from rondevud.store.rows import ChannelRows, sealed
from rondevud.store.salvage import rebuild
from rondevud.store.sqlite import SqliteStore
from tests.unit.store.kit import NOW, later, make_channel, put_singly, receive_singly
from tests.unit.store.mending import edit, examine, mend

OUT = tuple(f"out {number}" for number in range(1, 11))
ITEMS = tuple(OutMessage(number, f"in {number}") for number in range(1, 11))


@pytest.fixture(autouse=True)
async def filled(path):
    """One channel: 1 to 10 in the outbox, of which 3 has expired; rows 1 to 10 in the inbox, without 4."""
    path.parent.mkdir()
    store = await SqliteStore.open(path)
    channel = await make_channel(store)
    producer = (await store.execute(OpenProducer(channel, b"app", NOW))).id
    for number, text in enumerate(OUT, 1):
        age = 1.0 if number == 3 else None
        await store.execute(Put(channel, (text,), NOW, producer=producer, first_seq=number, max_age=age))
    await store.execute(Expire(channel, later(2)))
    await receive_singly(store, channel, *ITEMS)
    await store.execute(AckIn(channel, 5, 4))
    await store.close()


async def held(path):
    """Outbox and inbox of the channel: payloads, and reasons where messages are lacking."""
    store = await SqliteStore.open(path)
    out = (await store.execute(ReadOut(1, 0))).items
    rows = (await store.execute(ReadIn(1, 0))).items
    await store.close()
    return (
        {item[0]: item.payload if isinstance(item, OutMessage) else item.reason for item in out},
        {item.row: item.payload if isinstance(item, InMessage) else item.removal.reason for item in rows},
    )


WHOLE_OUT = dict(enumerate(OUT, 1)) | {3: Reason.EXPIRED}
WHOLE_IN = {item.seq: item.payload for item in ITEMS if item.seq != 4}


@pytest.mark.parametrize("page", [1, 2, 3, 256])
async def test_a_store_in_order_is_left_as_it_is(path, page):
    assert examine(path, page_messages=page) == []
    assert mend(path) == []
    assert await held(path) == (WHOLE_OUT, WHOLE_IN)


WRONG = {
    "a message that waits to be sent": (
        "UPDATE outbox SET payload = x'00' WHERE seq = 5",
        [("damaged_row", "outbox of channel 1, number 5"), ("wrong_count", "out_bytes of channel 1")],
        {5: Reason.DAMAGED},
        {},
    ),
    "a message that waits for a program": (
        "UPDATE inbox SET payload = x'00' WHERE row = 5",
        [("damaged_row", "inbox of channel 1, row 5"), ("wrong_count", "in_bytes of channel 1")],
        {},
        {5: Reason.DAMAGED},
    ),
    "a message that is not there": (
        "DELETE FROM outbox WHERE seq = 5",
        [
            ("missing", "the outbox of channel 1"),
            ("wrong_count", "out_count of channel 1"),
            ("wrong_count", "out_bytes of channel 1"),
        ],
        {5: Reason.DAMAGED},
        {},
    ),
    "a row of the inbox that is not there": (
        "DELETE FROM inbox WHERE row = 5",
        [
            ("missing", "the inbox of channel 1"),
            ("wrong_count", "in_count of channel 1"),
            ("wrong_count", "in_bytes of channel 1"),
        ],
        {},
        {5: Reason.DAMAGED},
    ),
    "a removal": (
        "UPDATE removals SET messages = 9",
        [("missing", "the outbox of channel 1"), ("damaged_row", "removals of channel 1, number 3")],
        {3: Reason.DAMAGED},
        {},
    ),
    "the holes of the inbox": (
        "UPDATE inbox_holes SET next = 9",
        [("damaged_row", "inbox_holes of channel 1")],
        {},
        {},
    ),
    "a message that had left": (
        "INSERT INTO outbox SELECT channel, 99, kind, payload, producer, 1, NULL, NULL, NULL, 7, 8.0 FROM outbox LIMIT 1",
        [("stray", "the outbox of channel 1"), ("wrong_count", "out_count of channel 1")],
        {},
        {},
    ),
    "a producer": ("UPDATE producers SET last_seq = 3", [("damaged_row", "producers, key 1")], {}, {}),
}


@pytest.mark.parametrize("what", WRONG)
async def test_what_is_wrong_is_found_and_mended_and_nothing_else_is_touched(path, what):
    statement, found, out, into = WRONG[what]
    edit(path, statement)
    assert set(found) >= set(examine(path))
    assert set(examine(path)) >= set(found[:1])
    assert mend(path)
    assert [kind for kind, _ in examine(path) if kind != "set_aside"] == []
    assert await held(path) == (WHOLE_OUT | out, WHOLE_IN | into)


async def test_wrong_counts_are_made_true(path):
    with closing(connect(path)) as connection:
        channels = ChannelRows(connection)
        channels.get(1, change=True).change(out_count=3, out_bytes=0, in_bytes=7, in_gaps=1)
        channels.flush()
    found = examine(path)
    wrong = [("wrong_count", f"{name} of channel 1") for name in ("out_count", "out_bytes", "in_bytes", "in_gaps")]
    assert found == [*wrong, ("wrong_books", "channel 1"), ("wrong_books", "channel 1")]
    assert mend(path) == ["made the counts of channel 1 true: out_count, out_bytes, in_bytes, in_gaps"]
    assert examine(path) == []


async def test_a_producer_never_ends_before_a_message_that_is_held(path):
    store = await SqliteStore.open(path)
    record = await store.execute(OpenProducer(1, b"app", NOW))
    await store.close()
    assert record.last_seq == 10
    edit(path, "UPDATE producers SET last_seq = 3")
    assert mend(path) == [
        "producer 1 of channel 1 remembers only what its channel holds",
        "keeps 1 rows of producers in the table damaged_rows",
    ]
    store = await SqliteStore.open(path)
    assert (await store.execute(OpenProducer(1, b"app", NOW))).last_seq == 10
    await store.close()


async def test_a_producer_that_ends_before_its_messages_is_found(path):
    with closing(connect(path)) as connection:
        row = connection.execute("SELECT * FROM producers WHERE id = 1").fetchone()
        earlier = sealed((*row[:3], 3, *row[4:-1]))
        connection.execute("UPDATE producers SET last_seq = 3, crc = ? WHERE id = 1", earlier[-1:])
    assert examine(path) == [("producer", "producer 1")]
    assert mend(path) == ["producer 1 goes on behind its message 10"]
    assert examine(path) == []


async def test_a_damaged_session_is_set_aside_and_its_queues_stay_for_whoever_looks(path):
    edit(path, "UPDATE sessions SET peer_name = 'x'")
    assert examine(path) == [("damaged_row", "sessions, key conn-1")]
    assert mend(path) == [
        "set the session conn-1 aside; its peer is told of a gap when it comes back",
        "keeps 1 rows of channels in the table damaged_rows",
        "keeps 1 rows of sessions in the table damaged_rows",
    ]
    found = examine(path)
    assert {kind for kind, _ in found} == {"orphans", "set_aside"}
    assert all(examination.KINDS[kind].harmless for kind, _ in found)
    store = await SqliteStore.open(path)
    assert (await store.execute(LoadSessions())).sessions == []
    await store.close()


async def test_a_page_that_sqlite_cannot_read_is_left_behind_with_everything_else_kept(path):
    store = await SqliteStore.open(path)
    channel = await make_channel(store, label="long")
    texts = tuple(f"{number} " + "x" * 500 for number in range(1, 101))
    await put_singly(store, channel, *texts)
    await store.close()
    content = bytearray(path.read_bytes())
    page = content.index(b"50 xxx") // 4096
    content[page * 4096] = 0  # no kind of page
    path.write_bytes(content)
    with closing(connect(path)) as connection:
        assert check_integrity(connection)
    done = mend(path)
    assert done[0] == "copied what can be read into a new file; could not read all of: outbox"
    assert examine(path) == []
    store = await SqliteStore.open(path)
    items = []
    number, end = 0, False
    while not end:
        answer = await store.execute(ReadOut(channel, number))
        items, number, end = items + answer.items, answer.next, answer.end
    await store.close()
    assert [item.payload for item in items if isinstance(item, OutMessage)] == [
        text
        for number, text in enumerate(texts, 1)
        if not any(r.first <= number < r.next for r in items if len(r) == 4)
    ]
    assert sum(isinstance(item, OutMessage) for item in items) >= 90
    assert await held(path) == (WHOLE_OUT, WHOLE_IN)
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name, f"{path.name}-marks"]


async def test_ids_are_not_given_again_after_a_repair(path):
    edit(path, "DELETE FROM channels", "UPDATE sqlite_sequence SET seq = 0")
    with closing(connect(path)) as connection:
        rebuild(path, connection)
    store = await SqliteStore.open(path)
    assert await make_channel(store) == 2
    await store.close()


async def test_a_running_store_is_examined_between_its_commits(path):
    store = await SqliteStore.open(path)
    looking = Examination(page_messages=1)
    slices, sent = 0, 0
    while (found := await store.execute(ExamineSlice(looking))) is not None:
        assert found == []
        slices += 1
        sent += 1
        await store.execute(Put(1, (f"more {sent}",), NOW))
        await store.execute(AckIn(1, 0, 1 + sent))
        if sent > 30:
            break
    assert slices > 20
    await store.close()


async def test_a_declaration_that_is_damaged_is_found_and_set_aside(path):
    edit(path, "INSERT INTO declarations VALUES ('service', 'a/b', x'80', 1)")
    assert examine(path) == [("damaged_row", "declarations, key service, a/b")]
    assert mend(path) == ["keeps 1 rows of declarations in the table damaged_rows"]
    store = await SqliteStore.open(path)
    assert await store.execute(LoadDeclarations()) == []
    await store.close()


# --- copies ----------------------------------------------------------------------------------------------------


async def test_a_copy_is_of_one_moment_private_and_whole(path, tmp_path):
    store = await SqliteStore.open(path)
    copy = tmp_path / "copy"
    size = back_up(path, copy)
    await store.execute(Put(1, ("later",), NOW))
    await store.close()
    assert (copy.stat().st_size, copy.stat().st_mode & 0o777) == (size, 0o600)
    assert examine(copy) == []
    assert await held(copy) == (WHOLE_OUT, WHOLE_IN)


async def test_a_copy_takes_the_place_of_a_file_only_when_told(path, tmp_path):
    copy = tmp_path / "copy"
    copy.write_text("precious")
    with pytest.raises(BackupExists, match="is there already"):
        back_up(path, copy)
    assert copy.read_text() == "precious"
    back_up(path, copy, force=True)
    assert examine(copy) == []
    assert sorted(file.name for file in tmp_path.iterdir() if file.is_file()) == ["copy"]


@pytest.mark.parametrize("end", ["", "-wal", "-shm"])
def test_the_store_is_never_copied_onto_itself(path, end):
    with pytest.raises(StoreError, match="is the store itself"):
        back_up(path, path.with_name(path.name + end), force=True)
    assert examine(path) == []


def test_a_copy_that_cannot_be_written_names_the_file_and_the_reason(path, tmp_path):
    with pytest.raises(StoreError, match="nowhere/copy: cannot be written: No such file or directory"):
        back_up(path, tmp_path / "nowhere" / "copy")
