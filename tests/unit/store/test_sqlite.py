"""What only the SQLite store has: the file, its damage, failing commits, the writer's thread."""

from __future__ import annotations

import asyncio
import errno
import sqlite3
import stat
import threading
from contextlib import closing

import pytest

from rondevud.errors import StoreConflict, StoreError, StoreFailed
from rondevud.records import (
    AckIn,
    Acknowledge,
    Declaration,
    DeclarationKind,
    DeleteSession,
    InGap,
    InMessage,
    LoadDeclarations,
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
    Removed,
    SaveDeclaration,
)
from rondevud.store import sqlite, upgrades
from rondevud.store.sqlite import SqliteStore
from tests.unit.store.kit import NOW, PEER, SMALL, make_channel, put_singly, receive_singly, session


@pytest.fixture(autouse=True)
def directory(path):
    path.parent.mkdir()


class Hooked(sqlite3.Connection):
    """A connection of which a test sees the statements, and whose commits it can hold up or let fail."""

    statements: list[str] = []  # noqa: RUF012 - each test has its own class, see `hooked`
    fail_commits = 0
    commit_reached: threading.Event
    go_on: threading.Event
    pages = 0

    def execute(self, sql, *args):
        cls = type(self)
        cls.statements.append(sql)
        if sql.startswith("BEGIN") and cls.pages:
            super().execute(f"PRAGMA max_page_count = {cls.pages}")
        if sql == "COMMIT":
            cls.commit_reached.set()
            assert cls.go_on.wait(20)
            if cls.fail_commits:
                cls.fail_commits -= 1
                error = sqlite3.OperationalError("disk I/O error")
                error.sqlite_errorcode = sqlite3.SQLITE_IOERR
                raise error
        return super().execute(sql, *args)


@pytest.fixture
def hooked():
    class Mine(Hooked):
        statements: list[str] = []  # noqa: RUF012
        commit_reached = threading.Event()
        go_on = threading.Event()

    Mine.go_on.set()
    return Mine


@pytest.fixture
async def opened(path):
    """Opens stores at `path` and closes them; each call closes the one before, so that it is a restart."""
    stores = []

    async def open_store(**options):
        if stores:
            await stores.pop().close()
        stores.append(await SqliteStore.open(path, pause=0.001, **options))
        return stores[-1]

    yield open_store
    if stores:
        await stores.pop().close()


def edit(path, statement, *values):
    """Change the file behind the store's back."""
    with closing(sqlite3.connect(path)) as connection, connection:
        return connection.execute(statement, values).fetchall()


async def until_tidy(store):
    """Upkeep runs behind the answer, and not at all when more is queued by then."""
    while store._busy:
        await asyncio.sleep(0)


async def fill(store, *payloads, **fields):
    channel = await make_channel(store)
    await store.execute(Put(channel, payloads, NOW, **fields))
    return channel


# --- the file --------------------------------------------------------------------------------------------------


async def test_everything_is_there_after_a_restart(opened):
    store = await opened()
    channel = await make_channel(store)
    producer = await store.execute(OpenProducer(channel, b"app", NOW))
    await store.execute(
        Put(
            channel, ("ä", b"b", None), NOW, floor=7, max_age=5, producer=producer.id, first_seq=1, rejected=((9, "x"),)
        )
    )
    gap = Removal(3, 4, Reason.LOST, None)
    await store.execute(Receive(channel, b"", 0, PEER, 4, (OutMessage(1, "m"), OutMessage(2, b"n"), gap), NOW))
    await store.execute(SaveDeclaration(Declaration(DeclarationKind.SERVICE, "a/b", b"o")))
    questions = [LoadSessions(), LoadDeclarations(), ReadOut(channel, 0), ReadIn(channel, 0)]
    before = [await store.execute(question) for question in questions]
    store = await opened()
    assert [await store.execute(question) for question in questions] == before
    assert (await store.execute(OpenProducer(channel, b"app", NOW))).last_seq == 3
    assert store.moved_aside is None


async def test_the_files_are_private(path, opened):
    store = await opened()
    await fill(store, "secret")
    modes = {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in path.parent.iterdir()}
    assert modes == dict.fromkeys([path.name, *(f"{path.name}{end}" for end in ("-shm", "-wal", "-marks"))], 0o600)


async def test_closing_leaves_no_log(path, opened):
    store = await opened()
    await fill(store, "a")
    await store.close()
    assert sorted(entry.name for entry in path.parent.iterdir()) == [path.name, f"{path.name}-marks"]


async def test_a_newer_schema_is_refused_by_both_versions(path, opened):
    await (await opened()).close()
    edit(path, "PRAGMA user_version = 77")
    with pytest.raises(StoreError, match=r"77.*up to 3"):
        await SqliteStore.open(path)


async def test_a_database_of_another_program_is_refused_and_left_alone(path):
    edit(path, "CREATE TABLE theirs (x)")
    with pytest.raises(StoreError, match="another program"):
        await SqliteStore.open(path)
    assert edit(path, "SELECT name FROM sqlite_schema") == [("theirs",)]


async def test_a_place_that_does_not_exist_is_a_clear_error(path):
    with pytest.raises(StoreError, match="nowhere"):
        await SqliteStore.open(path.parent / "nowhere" / "store.sqlite3")


async def test_a_file_that_is_no_database_is_moved_aside(path, caplog):
    path.write_bytes(b"no database at all, " * 500)
    store = await SqliteStore.open(path)
    try:
        assert (await store.execute(LoadSessions())).sessions == []
        assert store.moved_aside is not None
        assert store.moved_aside.name.startswith("store.sqlite3.damaged-")
        assert store.moved_aside.read_bytes() == b"no database at all, " * 500
        assert str(store.moved_aside) in caplog.text
    finally:
        await store.close()


async def test_an_emptied_file_is_moved_aside_with_its_log(path, opened):
    log = path.with_name(path.name + "-wal")
    path.touch()
    log.write_bytes(b"all there is")
    store = await opened()
    assert store.moved_aside.with_name(store.moved_aside.name + "-wal").read_bytes() == b"all there is"


async def test_two_damaged_files_of_one_second_do_not_overwrite_each_other(path, opened, monkeypatch):
    names = set()
    for content in (b"x" * 5000, b"y" * 5000):
        path.write_bytes(content)
        store = await SqliteStore.open(path)
        names.add((store.moved_aside, store.moved_aside.read_bytes()[:1]))
        await store.close()
    assert {content for _, content in names} == {b"x", b"y"}


async def test_a_step_of_the_schema_that_fails_changes_nothing(path, monkeypatch):
    class Broken:
        @staticmethod
        def joinpath(_name):
            return Broken

        @staticmethod
        def read_text(**_):
            return "CREATE TABLE one (x); CREATE TABLE one (y);"

    monkeypatch.setattr(upgrades, "files", lambda _: Broken)
    with pytest.raises(StoreError, match="already exists"):
        await SqliteStore.open(path)
    assert edit(path, "SELECT name FROM sqlite_schema") == []


# --- damage ----------------------------------------------------------------------------------------------------


async def test_a_damaged_message_is_replaced_by_a_removal_and_told_once(path, opened):
    store = await opened()
    channel = await make_channel(store)
    producer = (await store.execute(OpenProducer(channel, b"app", NOW))).id
    await put_singly(store, channel, "one", "two", "six", producer=producer)
    edit(path, "UPDATE outbox SET payload = x'74776e' WHERE seq = 2")
    page = await store.execute(ReadOut(channel, 0))
    removal = Removal(2, 3, Reason.DAMAGED, 1)
    assert page.items == [OutMessage(1, "one"), removal, OutMessage(3, "six")]
    assert [item[:5] for item in page.damaged] == [(2, 3, Reason.DAMAGED, 1, 3)]
    assert page.damaged[0].producers == ((producer, 2, 2, 1),)
    again = await store.execute(ReadOut(channel, 0))
    assert (again.items, again.damaged) == (page.items, [])
    assert (await store.execute(OpenProducer(channel, b"app", NOW))).removed == 1
    row = (await store.execute(LoadSessions())).channels[0]
    assert (row.out_count, row.out_bytes) == (2, 6)


@pytest.mark.parametrize(
    "change", ["kind = 2", "producer_seq = 9", "wall_expiry = 5.0", "crc = 1", "payload = NULL || 5"]
)
async def test_every_column_of_a_message_is_covered(path, opened, change):
    store = await opened()
    channel = await fill(store, "one", max_age=5)
    edit(path, f"UPDATE OR IGNORE outbox SET {change}")
    if "NULL" in change:
        edit(path, "UPDATE outbox SET payload = 'text'")
    page = await store.execute(ReadOut(channel, 0))
    assert [item.reason for item in page.damaged] == [Reason.DAMAGED]
    assert page.items == [Removal(1, 2, Reason.DAMAGED, 1)]


async def test_a_hole_without_a_removal_is_damage(path, opened):
    store = await opened(limits=SMALL)
    channel = await make_channel(store)
    await put_singly(store, channel, *"abcdefgh", floor=50)
    edit(path, "DELETE FROM outbox WHERE seq IN (51, 52, 57)")
    edit(path, "DELETE FROM removals")
    first = await store.execute(ReadOut(channel, 0))
    assert first.items == [
        Removal(1, 50, Reason.DAMAGED, None),
        OutMessage(50, "a"),
        Removal(51, 53, Reason.DAMAGED, 2),
        OutMessage(53, "d"),
        OutMessage(54, "e"),
    ]
    assert first.damaged == [
        Removed(1, 50, Reason.DAMAGED, 0, 0, ()),
        Removed(51, 53, Reason.DAMAGED, 2, 0, ()),
    ]
    second = await store.execute(ReadOut(channel, first.next))
    assert second.items == [OutMessage(55, "f"), OutMessage(56, "g"), Removal(57, 58, Reason.DAMAGED, 1)]
    assert second.end
    while (await store.execute(Acknowledge(channel, 58))).more:
        pass
    row = (await store.execute(LoadSessions())).channels[0]
    assert (row.out_count, row.out_bytes) == (0, 0)


async def test_a_damaged_removal_becomes_a_damaged_range(path, opened):
    store = await opened()
    channel = await fill(store, "a", floor=50)
    edit(path, "UPDATE removals SET next = 49")
    assert (await store.execute(ReadOut(channel, 0))).items[0] == Removal(1, 50, Reason.DAMAGED, None)


async def test_a_damaged_message_that_waits_becomes_a_gap(path, opened):
    store = await opened()
    channel = await make_channel(store)
    await receive_singly(store, channel, OutMessage(1, "one"), OutMessage(2, "two"))
    edit(path, "UPDATE inbox SET payload = x'6f6e66' WHERE row = 1")
    page = await store.execute(ReadIn(channel, 0))
    assert page.damaged == 1
    assert page.items[0] == InGap(1, PEER, Removal(1, 2, Reason.DAMAGED, 1), NOW.wall)
    assert page.items[1] == InMessage(2, PEER, 2, "two", NOW.wall)
    assert (await store.execute(ReadIn(channel, 0)))[2:] == (0, 0)
    store = await opened()
    (row,) = (await store.execute(LoadSessions())).channels
    assert (page.gaps, row.in_gaps) == (1, 1)
    assert await store.execute(AckIn(channel, 3)) == (2, 6, 1, 3, False)


@pytest.mark.parametrize(
    ("damage", "gaps"),
    [
        ("UPDATE inbox SET seq = 9 WHERE row = 2", 0),  # the gap itself
        ("DELETE FROM inbox WHERE row = 2", 0),
        ("DELETE FROM inbox WHERE row = 1", 1),
        ("UPDATE inbox SET kind = 3 WHERE row = 1", 1),  # looks like a gap, but is none
        ("UPDATE inbox SET kind = 1 WHERE row = 2", 0),  # does not look like one, and is
        ("UPDATE inbox SET enqueued = 1", 2),
    ],
)
async def test_damage_never_makes_the_count_of_gaps_wrong(path, opened, damage, gaps):
    store = await opened()
    channel = await make_channel(store)
    items = (OutMessage(1, "one"), Removal(2, 4, Reason.EXPIRED, 2), OutMessage(4, "four"))
    await store.execute(Receive(channel, b"", 0, PEER, 5, items, NOW))
    edit(path, damage)
    page = await store.execute(ReadIn(channel, 0))
    assert (page.gaps, sum(isinstance(item, InGap) for item in page.items)) == (gaps, 1 + gaps)
    (row,) = (await store.execute(LoadSessions())).channels
    assert row.in_gaps == 1 + gaps
    taken = [(await store.execute(AckIn(channel, behind))).gaps for behind in (2, 3, 4)]
    assert taken == [isinstance(item, InGap) for item in page.items]


async def test_gaps_that_only_damage_made_are_never_counted_off(path, opened):
    store = await opened()
    channel = await make_channel(store)
    items = (OutMessage(1, "one"), OutMessage(2, "two"), Removal(3, 4, Reason.EXPIRED, 1))
    await receive_singly(store, channel, *items)
    edit(path, "UPDATE inbox SET kind = 3")
    assert [(await store.execute(AckIn(channel, behind))).gaps for behind in (3, 4)] == [1, 0]
    (row,) = (await store.execute(LoadSessions())).channels
    assert row.in_gaps == 0


@pytest.mark.parametrize(
    ("damage", "left"),
    [
        ("UPDATE inbox_holes SET next = 4", [1, 3, 5]),
        ("UPDATE inbox_holes SET channel = 77 WHERE first = 2", [1, 3, 5]),
        ("DELETE FROM inbox_holes", [1, 3, 5]),
        ("DELETE FROM inbox WHERE row = 3", [1, 3, 5]),
        ("DELETE FROM inbox WHERE row = 1", [1, 3, 5]),
    ],
)
async def test_what_left_an_inbox_does_not_come_back_when_its_holes_are_damaged(path, opened, damage, left):
    store = await opened()
    channel = await make_channel(store)
    items = tuple(OutMessage(number, str(number)) for number in range(1, 7))
    await store.execute(Receive(channel, b"", 0, PEER, 7, items, NOW))
    for row in (2, 4, 6):
        await store.execute(AckIn(channel, row + 1, first_row=row))
    edit(path, damage)
    assert [item.row for item in (await store.execute(ReadIn(channel, 0))).items] == left
    store = await opened()
    assert (await store.execute(LoadSessions())).channels[0].in_count == len(left)
    assert [item.row for item in (await store.execute(ReadIn(channel, 0))).items] == left
    assert sum([(await store.execute(AckIn(channel, 6, row))).messages for row in (3, 1)]) == len(left)


async def test_what_is_unreported_is_known_after_a_restart(opened):
    store = await opened()
    channel = await make_channel(store)
    producer = (await store.execute(OpenProducer(channel, b"app", NOW))).id
    await store.execute(Put(channel, ("a", "b"), NOW, producer=producer, first_seq=1))
    await store.execute(Remove(channel, 1, 2, Reason.PURGED))
    store = await opened()
    assert (await store.execute(OpenProducer(channel, b"app", NOW))).unreported == 1
    store = await opened()
    record = await store.execute(OpenProducer(channel, b"app", NOW))
    assert (record.unreported, record.removed) == (0, 1)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE sessions SET link = link + 1 WHERE connection_id = 'conn-1'",
        "UPDATE sessions SET token = x'00' WHERE connection_id = 'conn-1'",
        "UPDATE channels SET acked = 5 WHERE connection_id = 'conn-1'",
        "UPDATE channels SET base = 5 WHERE connection_id = 'conn-1'",
        "DELETE FROM sessions WHERE connection_id = 'conn-1'",
    ],
)
async def test_a_damaged_session_is_set_aside_with_its_channels_and_named(path, opened, damage):
    store = await opened()
    await fill(store, "kept")
    await make_channel(store, connection_id="conn-2")
    await store.close()
    edit(path, damage)
    store = await opened()
    loaded = await store.execute(LoadSessions())
    assert loaded.damaged == ["conn-1"]
    assert loaded.sessions == [session("conn-2")]
    assert [row.connection_id for row in loaded.channels] == ["conn-2"]
    assert (await store.execute(LoadSessions())).damaged == []
    aside = edit(path, "SELECT source FROM damaged_rows")
    assert ("channels",) in aside
    assert edit(path, "SELECT count(*) FROM outbox") == [(1,)]


async def test_text_that_is_no_utf8_in_a_damaged_row_does_not_stop_the_others(path, opened):
    store = await opened()
    await make_channel(store)
    await make_channel(store, connection_id="conn-2")
    await store.close()
    edit(path, "UPDATE sessions SET peer_name = CAST(x'ff41' AS TEXT) WHERE connection_id = 'conn-1'")
    store = await opened()
    assert (await store.execute(LoadSessions())).damaged == ["conn-1"]


async def test_a_damaged_channel_is_refused_while_in_use(path, opened):
    store = await opened()
    channel = await fill(store, "a")
    await store.close()
    edit(path, "UPDATE channels SET next = 99")
    store = await opened()
    with pytest.raises(StoreConflict, match=f"channel {channel} is damaged"):
        await store.execute(ReadOut(channel, 0))


async def test_a_damaged_declaration_is_set_aside(path, opened):
    store = await opened()
    for name in ("a/a", "b/b"):
        await store.execute(SaveDeclaration(Declaration(DeclarationKind.SERVICE, name, b"o")))
    edit(path, "UPDATE declarations SET options = x'00' WHERE name = 'a/a'")
    assert [item.name for item in await store.execute(LoadDeclarations())] == ["b/b"]
    assert edit(path, "SELECT source FROM damaged_rows") == [("declarations",)]


async def test_a_damaged_producer_goes_on_behind_what_is_held(path, opened):
    store = await opened()
    channel = await make_channel(store)
    producer = (await store.execute(OpenProducer(channel, b"app", NOW))).id
    await store.execute(Put(channel, ("a", "b"), NOW, producer=producer, first_seq=8))
    await store.close()
    edit(path, "UPDATE producers SET last_seq = 1")
    store = await opened()
    record = await store.execute(OpenProducer(channel, b"app", NOW))
    assert (record.id, record.last_seq, record.rejected) == (producer, 9, ())


async def with_a_malformed_page(path, opened, table="sqlite_autoindex_inbox_1"):
    """A store with one channel, whose outbox holds a message, and the channel."""
    store = await opened()
    channel = await fill(store, "fine")
    [(size,)] = edit(path, "PRAGMA page_size")
    [(page,)] = edit(path, f"SELECT rootpage FROM sqlite_schema WHERE name = '{table}'")
    await store.close()
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
    return await opened(), channel


async def test_a_malformed_page_is_left_behind_and_everything_else_goes_on_in_a_new_file(path, opened):
    store, channel = await with_a_malformed_page(path, opened)
    damaged = path.read_bytes()
    reading = asyncio.ensure_future(store.execute(ReadIn(channel, 0)))
    putting = asyncio.ensure_future(store.execute(Put(channel, ("more",), NOW)))
    assert (await reading).items == []
    assert (await putting).first == 2
    assert store.failing is None
    (kept,) = path.parent.glob(f"{path.name}.damaged-*")
    assert kept.read_bytes()[4096:] == damaged[4096:]  # behind the header, which says how the log is kept
    store = await opened()
    assert [item.payload for item in (await store.execute(ReadOut(channel, 0))).items] == ["fine", "more"]


async def test_messages_in_a_malformed_page_are_reported_and_those_behind_them_delivered(path, opened):
    store, channel = await with_a_malformed_page(path, opened, "outbox")
    assert (await store.execute(Put(channel, ("more",), NOW))).first == 2
    page = await store.execute(ReadOut(channel, 0))
    assert page.items == [Removal(1, 2, Reason.DAMAGED, 1), OutMessage(2, "more")]
    assert page.damaged == [Removed(1, 2, Reason.DAMAGED, 1, 0, ())]


async def test_an_index_that_is_found_malformed_at_a_commit_is_made_anew(path, opened):
    store, channel = await with_a_malformed_page(path, opened, "sqlite_autoindex_channels_1")
    assert (await store.execute(Put(channel, ("more",), NOW))).first == 2  # its channel's row goes through the index
    store = await opened()
    assert [item.payload for item in (await store.execute(ReadOut(channel, 0))).items] == ["fine", "more"]


async def test_a_malformed_page_fails_its_operation_and_no_other_while_there_is_no_new_file(path, opened, monkeypatch):
    def fail(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sqlite, "rebuild", fail)
    store, channel = await with_a_malformed_page(path, opened)
    reading = asyncio.ensure_future(store.execute(ReadIn(channel, 0)))
    putting = asyncio.ensure_future(store.execute(Put(channel, ("more",), NOW)))
    with pytest.raises(StoreFailed, match="malformed"):
        await reading
    assert (await putting).first == 2
    assert store.failing is None
    monkeypatch.undo()
    monkeypatch.setattr(store, "_next_rebuild", 0.0)  # as after a minute
    assert (await store.execute(ReadIn(channel, 0))).items == []


# --- the writer ------------------------------------------------------------------------------------------------


async def test_what_is_queued_together_is_committed_together(opened, hooked):
    store = await opened(factory=hooked)
    channel = await make_channel(store)
    while store.alive():  # what the writer tidies up behind an answer has commits of its own
        await asyncio.sleep(0)
    hooked.go_on.clear()
    hooked.commit_reached.clear()
    first = asyncio.ensure_future(store.execute(Put(channel, ("m",), NOW)))
    await asyncio.to_thread(hooked.commit_reached.wait, 20)
    commits = hooked.statements.count("COMMIT")
    rest = [asyncio.ensure_future(store.execute(Put(channel, ("m",), NOW))) for _ in range(500)]
    await asyncio.sleep(0)
    hooked.go_on.set()
    results = await asyncio.gather(first, *rest)
    assert [result.first for result in results] == list(range(1, 502))
    assert hooked.statements.count("COMMIT") == commits + 1


async def test_answers_come_in_the_loops_thread_in_order_under_load(opened):
    store = await opened()
    channel = await make_channel(store)
    answers = []
    finished = asyncio.Event()

    def done(number, result):
        answers.append((number, threading.get_ident(), isinstance(result, StoreError)))
        if len(answers) == 3_000:
            finished.set()

    for number in range(3_000):
        operation = ReadOut(channel, 0) if number % 5 == 0 else Put(channel if number % 3 else 77, ("m" * 100,), NOW)
        store.submit(operation, lambda result, n=number: done(n, result))
        if number % 100 == 0:
            await asyncio.sleep(0)
    await finished.wait()
    assert [number for number, _, _ in answers] == list(range(3_000))
    assert {thread for _, thread, _ in answers} == {threading.get_ident()}


async def test_an_operation_that_sqlite_cannot_take_is_refused_alone(opened, hooked):
    store = await opened(factory=hooked)
    channel = await make_channel(store)
    hooked.go_on.clear()
    hooked.commit_reached.clear()
    waiting = [asyncio.ensure_future(store.execute(Put(channel, ("a",), NOW)))]
    await asyncio.to_thread(hooked.commit_reached.wait, 20)
    for seq in (1, 2**70, 2):
        put = Put(channel, ("a", "b"), NOW, producer=-1, first_seq=seq)
        waiting.append(asyncio.ensure_future(store.execute(put)))
    await asyncio.sleep(0)
    hooked.go_on.set()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(results[2], StoreError)
    assert not isinstance(results[2], StoreFailed)
    assert [result.first for result in (results[0], results[1], results[3])] == [1, 2, 4]


async def test_closing_commits_everything_that_was_submitted(path, opened):
    store = await opened()
    channel = await make_channel(store)
    answers = []
    for _ in range(2_500):
        store.submit(Put(channel, ("m",), NOW), answers.append)
    await store.close()
    assert [answer.first for answer in answers] == list(range(1, 2_501))
    assert edit(path, "SELECT count(*) FROM outbox") == [(2_500,)]
    assert not any(thread.name == "store-writer" for thread in threading.enumerate())


async def test_starting_reads_no_message(opened, hooked):
    store = await opened()
    await fill(store, *["m"] * 20)
    store = await opened(factory=hooked)
    hooked.statements.clear()
    assert len((await store.execute(LoadSessions())).channels) == 1
    assert not [sql for sql in hooked.statements if "outbox" in sql or "inbox" in sql or "removals" in sql]


async def test_queries_of_the_queues_use_their_indexes(path, opened):
    store = await opened()
    await fill(store, "a", max_age=5)
    for query in (
        "SELECT min(boot) FROM outbox WHERE channel = 1 AND boot > 0",
        "SELECT min(boot_expiry) FROM outbox WHERE channel = 1 AND boot = 1",
        "SELECT seq FROM outbox WHERE channel = 1 AND boot = 1 AND boot_expiry <= 5 ORDER BY boot_expiry, seq",
        "SELECT seq FROM outbox WHERE channel = 1 AND boot = 1 AND wall_expiry <= 5 ORDER BY wall_expiry, seq",
        "SELECT * FROM outbox WHERE channel = 1 AND seq >= 5 ORDER BY seq",
        "SELECT * FROM inbox WHERE channel = 1 AND row >= 5 ORDER BY row",
        "SELECT count(*) FROM inbox WHERE channel = 1 AND row >= 5 AND kind >= 3",
    ):
        plan = " ".join(row[3] for row in edit(path, f"EXPLAIN QUERY PLAN {query}"))
        assert "SEARCH" in plan, query
        assert "TEMP B-TREE" not in plan, query


async def test_rows_of_deleted_channels_are_removed_in_slices(path, opened, hooked):
    store = await opened(limits=SMALL, factory=hooked)
    await fill(store, *["m"] * 11, floor=9)
    other = await make_channel(store, "other", "conn-2")
    await store.execute(Put(other, ("kept",), NOW))
    await store.execute(DeleteSession("conn-1"))
    await store.execute(DeleteSession("conn-9"))
    await store.close()
    store = await opened(limits=SMALL)
    while edit(path, "SELECT count(*) FROM garbage") != [(0,)]:
        await store.execute(LoadDeclarations())
    assert edit(path, "SELECT channel FROM outbox") == [(other,)]
    assert edit(path, "SELECT channel FROM removals") == []


async def test_a_long_log_is_checkpointed_when_nothing_is_queued(opened, hooked, monkeypatch):
    monkeypatch.setattr(sqlite, "IDLE_CHECKPOINT", 100_000)
    monkeypatch.setattr(sqlite, "TRUNCATING_CHECKPOINT", 400_000)
    store = await opened(factory=hooked)
    channel = await fill(store, b"m" * 200_000)
    await until_tidy(store)
    assert "PRAGMA wal_checkpoint(PASSIVE)" in hooked.statements
    assert "PRAGMA wal_checkpoint(TRUNCATE)" not in hooked.statements
    await store.execute(Put(channel, (b"m" * 800_000,), NOW))
    await until_tidy(store)
    assert "PRAGMA wal_checkpoint(TRUNCATE)" in hooked.statements


async def test_a_hanging_disk_shows_in_alive(opened, hooked):
    store = await opened(factory=hooked)
    channel = await make_channel(store)
    hooked.go_on.clear()
    hooked.commit_reached.clear()
    waiting = asyncio.ensure_future(store.execute(Put(channel, ("m",), NOW)))
    await asyncio.to_thread(hooked.commit_reached.wait, 20)
    early = store.alive()
    assert 0 < early < store.alive()
    hooked.go_on.set()
    await waiting


# --- commits that fail -----------------------------------------------------------------------------------------


async def test_a_failed_commit_stays_undecided_until_one_succeeds(path, opened, hooked):
    store = await opened(factory=hooked)
    channel = await fill(store, "kept")
    order = []
    hooked.fail_commits = 4
    hooked.go_on.clear()
    hooked.commit_reached.clear()
    store.submit(Put(channel, ("lost",), NOW), lambda result: order.append(("put", result, hooked.fail_commits)))
    await asyncio.to_thread(hooked.commit_reached.wait, 20)
    store.submit(ReadOut(channel, 0), lambda result: order.append(("read", result, hooked.fail_commits)))
    hooked.go_on.set()
    while not order:
        await asyncio.sleep(0)
    assert [(name, type(result), failures_left) for name, result, failures_left in order] == [
        ("put", StoreFailed, 0),
        ("read", StoreFailed, 0),
    ]
    assert order[0][1].code == "store_failed"
    assert store.failing is None
    assert [item.payload for item in (await store.execute(ReadOut(channel, 0))).items] == ["kept"]
    assert (await store.execute(Put(channel, ("next",), NOW))).first == 2


async def test_what_only_reads_is_answered_while_commits_fail(path, opened, caplog):
    class Failing(sqlite3.Connection):
        broken: sqlite3.OperationalError | None = None

        def execute(self, sql, *args):
            if sql == "BEGIN IMMEDIATE" and self.broken is not None:
                raise self.broken
            return super().execute(sql, *args)

    store = await opened(factory=Failing)
    channel = await fill(store, "kept")
    Failing.broken = sqlite3.OperationalError("disk I/O error")
    Failing.broken.sqlite_errorcode = sqlite3.SQLITE_IOERR
    putting = asyncio.ensure_future(store.execute(Put(channel, ("undecided",), NOW)))
    for _ in range(3):
        assert [item.payload for item in (await store.execute(ReadOut(channel, 0))).items] == ["kept"]
    with pytest.raises(StoreConflict):
        await store.execute(ReadOut(77, 0))
    assert store.failing is not None
    assert not putting.done()
    Failing.broken = None
    with pytest.raises(StoreFailed):
        await putting
    assert (await store.execute(Put(channel, ("next",), NOW))).first == 2
    assert [record.levelname for record in caplog.records if "undecided" in record.message] == ["ERROR"]


async def test_what_a_full_disk_kept_from_being_stored_is_refused_before_there_is_room(opened, caplog):
    class Full(sqlite3.Connection):
        full = False

        def execute(self, sql, *args):
            if sql == "COMMIT" and self.full and self.total_changes != self.before:
                error = sqlite3.OperationalError("database or disk is full")
                error.sqlite_errorcode = sqlite3.SQLITE_FULL
                raise error
            if sql.startswith("BEGIN"):
                self.before = self.total_changes
            return super().execute(sql, *args)

    store = await opened(factory=Full)
    channel = await fill(store, "kept")
    Full.full = True
    for _ in range(3):
        with pytest.raises(StoreFailed) as failed:
            await store.execute(Put(channel, ("refused",), NOW))
        assert failed.value.code == "disk_full"
        assert store.failing is not None
        assert [item.payload for item in (await store.execute(ReadOut(channel, 0))).items] == ["kept"]
    Full.full = False
    while store.failing is not None:
        await asyncio.sleep(0)
    assert (await store.execute(Put(channel, ("next",), NOW))).first == 2
    assert [record.levelname for record in caplog.records if "undecided" in record.message] == ["ERROR"]


async def test_failing_is_visible_while_nothing_is_answered(opened, hooked):
    store = await opened(factory=hooked)
    channel = await make_channel(store)
    hooked.fail_commits = 10**9
    waiting = asyncio.ensure_future(store.execute(Put(channel, ("m",), NOW)))
    while store.failing is None:
        await asyncio.sleep(0)
    assert store.failing.code == "store_failed"
    assert not waiting.done()
    hooked.fail_commits = 0
    with pytest.raises(StoreFailed):
        await waiting
    assert store.failing is None


async def test_closing_while_commits_fail_ends_and_answers(opened, hooked):
    store = await opened(factory=hooked)
    channel = await make_channel(store)
    hooked.fail_commits = 10**9
    waiting = asyncio.ensure_future(store.execute(Put(channel, ("m",), NOW)))
    while store.failing is None:
        await asyncio.sleep(0)
    await store.close()
    with pytest.raises(StoreFailed):
        await waiting


async def test_a_full_disk_rejects_and_keeps_and_recovers(path, opened, hooked):
    store = await opened(factory=hooked)
    channel = await fill(store, b"k" * 10_000)
    hooked.pages = 60
    small, large = Put(channel, (b"s",), NOW), Put(channel, (b"l" * 400_000,), NOW)
    results = await asyncio.gather(store.execute(large), store.execute(small), return_exceptions=True)
    assert isinstance(results[0], StoreFailed)
    assert results[0].code == "disk_full"
    page = await store.execute(ReadOut(channel, 0))
    assert page.items[0] == OutMessage(1, b"k" * 10_000)
    await store.execute(Acknowledge(channel, page.next))
    hooked.pages = 100_000
    assert (await store.execute(large)).size == 400_000
    store = await opened()
    assert [len(item.payload) for item in (await store.execute(ReadOut(channel, 0))).items] == [400_000]


async def test_a_store_is_broken_when_its_writer_dies(path, monkeypatch):
    store = await SqliteStore.open(path)
    broken = asyncio.create_task(store.broken())
    await store.execute(SaveDeclaration(Declaration(DeclarationKind.SERVICE, "a", b"")))
    assert not broken.done()
    monkeypatch.setattr(store, "_tidy", lambda: 1 / 0)
    store.submit(LoadDeclarations())
    await asyncio.wait_for(broken, 30)
    await store.close()


async def test_a_store_is_broken_when_somebody_cannot_take_an_answer(path):
    store = await SqliteStore.open(path)
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    broken = asyncio.create_task(store.broken())
    store.submit(LoadDeclarations(), lambda _: 1 / 0)
    await asyncio.wait_for(broken, 30)
    await store.close()


async def test_a_store_that_is_closed_is_not_broken(path):
    store = await SqliteStore.open(path)
    broken = asyncio.create_task(store.broken())
    await store.close()
    await asyncio.sleep(0)
    assert not broken.done()
    broken.cancel()
