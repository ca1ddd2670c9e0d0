"""A store that knows less than it had confirmed: its log was damaged, cut or lost, or it is an older copy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rondevud.records import (
    Acknowledge,
    DeleteSession,
    InMessage,
    LoadSessions,
    OutMessage,
    Put,
    ReadIn,
    ReadOut,
    Reason,
    Receive,
    Removal,
)
from rondevud.store.marks import Mark, Marks
from rondevud.store.repair import repair
from rondevud.store.sqlite import SqliteStore
from tests.unit.store.full_store import copy
from tests.unit.store.kit import NOW, PEER, make_channel, put_singly

ENDS = ("", "-wal", "-marks")


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "store.sqlite3"


async def killed(path: Path, *, then: tuple[str, ...] = ()) -> int:
    """Two messages each way in the database; what `then` holds was accepted later and is in its log."""
    made = path.with_name("made")
    store = await SqliteStore.open(made)
    channel = await make_channel(store)
    await store.execute(Put(channel, ("one", "two"), NOW))
    await store.execute(Receive(channel, b"", 0, PEER, 3, (OutMessage(1, "eins"), OutMessage(2, "zwei")), NOW))
    await store.close()
    store = await SqliteStore.open(made)
    await store.execute(LoadSessions())
    if then:
        await put_singly(store, channel, *then)
        await store.execute(Receive(channel, PEER, 3, PEER, 4, (OutMessage(3, "drei"),), NOW))
    copy(made, path)
    await store.close()
    return channel


async def load(path: Path):
    store = await SqliteStore.open(path)
    loaded = await store.execute(LoadSessions())
    out = (await store.execute(ReadOut(1, 0))).items if loaded.channels else []
    return store, loaded, out


async def test_nothing_lacks_after_a_kill(path):
    await killed(path, then=("three",))
    store, loaded, out = await load(path)
    assert loaded.lacking == ()
    assert out == [OutMessage(1, "one"), OutMessage(2, "two"), OutMessage(3, "three")]
    await store.close()


async def test_what_was_in_a_lost_log_is_told_and_its_numbers_are_not_given_again(path, caplog):
    channel = await killed(path, then=("three", "four"))
    Path(f"{path}-wal").unlink()
    store, loaded, out = await load(path)
    (lack,) = loaded.lacking
    assert (lack.connection_id, lack.label, lack.first, lack.next, lack.rows) == ("conn-1", "main", 3, 5, 1)
    assert "does not know the numbers 3 to 4 of its outbox, 1 rows of its inbox" in caplog.text
    assert out == [OutMessage(1, "one"), OutMessage(2, "two"), Removal(3, 5, Reason.DAMAGED, None)]
    assert (await store.execute(Put(channel, ("new",), NOW))).first == 5
    await store.execute(Receive(channel, PEER, 3, PEER, 4, (OutMessage(3, "drei"),), NOW))
    items = (await store.execute(ReadIn(channel, 0))).items
    assert [(item.row, item.payload) for item in items if isinstance(item, InMessage)] == [
        (1, "eins"), (2, "zwei"), (4, "drei"),
    ]  # fmt: skip
    await store.close()
    store, loaded, _ = await load(path)
    assert loaded.lacking == ()
    await store.close()


async def test_a_channel_of_which_nothing_is_left_is_told(path):
    await killed(path)
    path.write_bytes(b"")
    Path(f"{path}-wal").unlink(missing_ok=True)
    store, loaded, _ = await load(path)
    (lack,) = loaded.lacking
    assert (lack.connection_id, lack.channel, lack.next, lack.rows) == ("", 1, 3, 2)
    await store.close()


async def test_a_deleted_session_lacks_nowhere(path):
    await killed(path)
    store = await SqliteStore.open(path)
    await store.execute(DeleteSession("conn-1"))
    await store.close()
    store, loaded, _ = await load(path)
    assert loaded.lacking == ()
    await store.close()


async def test_an_emptied_outbox_lacks_nothing(path):
    channel = await killed(path, then=("three",))
    store = await SqliteStore.open(path)
    await store.execute(Acknowledge(channel, 4))
    await store.close()
    store, loaded, out = await load(path)
    assert (loaded.lacking, out) == ((), [])
    await store.close()


async def test_messages_that_are_there_behind_the_end_are_kept(path):
    """The log ends early, and a checkpoint had brought later pages into the database."""
    channel = await killed(path, then=("three", "four"))
    store = await SqliteStore.open(path)
    await store.close()
    import sqlite3

    from rondevud.store.rows import ChannelRows

    connection = sqlite3.connect(path, isolation_level=None)
    rows = ChannelRows(connection)
    rows.get(channel, change=True).change(next=3, out_count=2, out_bytes=6)
    rows.flush()
    connection.execute("DELETE FROM outbox WHERE seq = 3")
    connection.close()
    store, loaded, out = await load(path)
    assert [(lack.first, lack.next) for lack in loaded.lacking] == [(3, 5)]
    assert out[2:] == [Removal(3, 4, Reason.DAMAGED, None), OutMessage(4, "four")]
    assert loaded.channels[0].out_count == 3
    await store.close()


async def test_repairing_tells_it_too(path):
    await killed(path, then=("three",))
    Path(f"{path}-wal").unlink()
    said: list[str] = []
    repair(path, said.append)
    assert any(
        "the store went back: channel 'main' of conn-1 does not know the numbers 3 to 3" in line for line in said
    ), said
    store, loaded, _ = await load(path)
    assert loaded.lacking == ()
    await store.close()


async def test_marks_that_cannot_be_written_tell_nothing_false(path, caplog):
    await killed(path)
    marks = Path(f"{path}-marks")
    shutil.copy(marks, f"{marks}.old")
    marks.unlink()
    marks.mkdir()
    store, loaded, _ = await load(path)
    assert loaded.lacking == ()
    assert "cannot be used" in caplog.text
    await store.close()


def test_a_torn_mark_is_none(tmp_path):
    marks = Marks(tmp_path / "store")
    marks.write([Mark(1, 5, 6, 0), Mark(3, 7, 8, 1)])
    file = tmp_path / "store-marks"
    content = bytearray(file.read_bytes())
    content[60] ^= 1
    file.write_bytes(content)
    assert marks.read() == {3: Mark(3, 7, 8, 1)}
    marks.forget(3)
    assert marks.read() == {}
    marks.close()
