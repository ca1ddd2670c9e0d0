"""A store of about 1 MB in which everything is: what it holds, and whether a damaged copy of it tells the truth.

`make` writes the store as a daemon does and answers what is in it, as read from the undamaged file. `Inspection` opens a
damaged copy, reads everything through the operations of the daemon, and compares. What is read must be what was
written; what is not read must be told: in its place (a gap, a removal), with its session, by the database having been moved
aside or refused, or in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from unittest import mock

from rondevud.errors import StoreError
from rondevud.records import (
    AckIn,
    Acknowledge,
    ChannelRecord,
    CreateChannel,
    Declaration,
    DeclarationKind,
    Durability,
    Expire,
    InItem,
    InMessage,
    LoadDeclarations,
    LoadSessions,
    OpenProducer,
    OutItem,
    OutMessage,
    Payload,
    Put,
    ReadIn,
    ReadOut,
    Reason,
    Receive,
    Removal,
    Remove,
    Role,
    SaveDeclaration,
    SaveSession,
    SessionRecord,
    Sessions,
)
from rondevud.store import upkeep
from rondevud.store.sqlite import SqliteStore
from tests.unit.store.kit import NOW, later
from tests.unit.store.pages import Row

ENDS = ("", "-wal", "-marks")
"""Files of a store, by how their names end; a -shm is made anew."""

SESSIONS = 2
LABELS = ("main", "files", "bye")
MESSAGES = 40
"""In each queue of each label."""

PRODUCERS = (b"one", b"two")
FIRST_JUMP = 1_700_000_000_000_000
"""Where the numbers of a daemon begin: microseconds since 1970."""


@dataclass
class Queues:
    """One channel."""

    record: ChannelRecord
    out: list[OutItem] = field(default_factory=list)
    inbox: list[InItem] = field(default_factory=list)
    producers: dict[bytes, int] = field(default_factory=dict)
    """Last number by name."""


@dataclass
class Content:
    sessions: list[SessionRecord] = field(default_factory=list)
    declarations: list[Declaration] = field(default_factory=list)
    channels: dict[tuple[str, str], Queues] = field(default_factory=dict)
    """By connection id and label."""


# --- making ----------------------------------------------------------------------------------------------------------


def payload(random: Random, number: int) -> Payload:
    """Text and binary, most of it short, every 20th longer than a page."""
    size = random.randrange(5_000, 16_000) if number % 20 == 17 else random.randrange(8, 2_600)
    if number % 3:
        return f"message {number} " + "".join(
            random.choices("abcdefghijklmnopqrstuvwxyz" if number % 2 else "aäoöuü€", k=size)
        )
    return random.randbytes(size)


async def make(path: Path, *, log: bool) -> Content:
    """Write the store. With `log` it is left as a killed daemon leaves it: half in the database, half in its -wal."""
    with mock.patch.object(upkeep, "RESERVED", 0):  # zeros behind the log would be most of its bytes
        return await _make(path, log=log)


async def _make(path: Path, *, log: bool) -> Content:
    random = Random(7)
    store = await SqliteStore.open(path)
    for number in range(SESSIONS):
        await fill(store, random, f"conn-{number}", number)
        if number == 0 and log:
            await store.close()
            store = await SqliteStore.open(path)
    found = await read(store)
    if log:
        frozen = path.with_name("frozen")
        copy(path, frozen)
        await store.close()
        for end in ENDS:
            shutil.move(f"{frozen}{end}", f"{path}{end}")
    else:
        await store.close()
    return found


async def fill(store: SqliteStore, random: Random, connection_id: str, number: int) -> None:
    role = Role.CONNECTING if number % 2 else Role.SERVICE
    await store.execute(
        SaveSession(
            SessionRecord(
                connection_id,
                role,
                f"declared-{number}",
                random.randbytes(16),
                random.randbytes(32),
                link=5,
                welcomed=True,
            )
        )
    )
    kind = DeclarationKind.CONNECTION if number % 2 else DeclarationKind.SERVICE
    await store.execute(SaveDeclaration(Declaration(kind, f"declared-{number}", random.randbytes(60))))
    for label in LABELS:
        record = await store.execute(CreateChannel(connection_id, label, Durability.DISK, random.randbytes(8)))
        await fill_outbox(store, random, record.id, closing=label == "bye")
        await fill_inbox(store, random, record.id)


async def fill_outbox(store: SqliteStore, random: Random, channel: int, *, closing: bool) -> None:
    """Messages of two producers and of nobody; some acknowledged, some expired, some purged."""
    producers = [(await store.execute(OpenProducer(channel, name, NOW))).id for name in PRODUCERS]
    sent = dict.fromkeys([*producers, 0], 0)
    for start in range(0, MESSAGES, 5):
        producer = [*producers, 0][start // 5 % 3]
        payloads = tuple(payload(random, start + offset) for offset in range(5))
        max_age = 10.0 if start == 20 else 1e6 if start % 2 else None
        put = Put(
            channel, payloads, NOW, floor=FIRST_JUMP, max_age=max_age, producer=producer, first_seq=sent[producer] + 1
        )
        await store.execute(put)
        sent[producer] += 5
    await store.execute(Expire(channel, later(20)))
    await store.execute(Remove(channel, FIRST_JUMP + 30, FIRST_JUMP + 33, Reason.PURGED))
    await store.execute(Acknowledge(channel, FIRST_JUMP + 7))
    if closing:
        await store.execute(Put(channel, (None,), NOW))


async def fill_inbox(store: SqliteStore, random: Random, channel: int) -> None:
    """Messages and a gap from the peer; some acknowledged at the front, some in the middle."""
    epoch = random.randbytes(8)
    numbers = range(FIRST_JUMP, FIRST_JUMP + MESSAGES)
    items: list[OutItem] = [OutMessage(number, payload(random, number)) for number in numbers]
    items[27:30] = [Removal(FIRST_JUMP + 27, FIRST_JUMP + 30, Reason.EXPIRED, 3)]
    half = len(items) // 2
    middle = items[half][0]
    await store.execute(Receive(channel, b"", 0, epoch, middle, tuple(items[:half]), NOW))
    await store.execute(Receive(channel, epoch, middle, epoch, numbers[-1] + 1, tuple(items[half:]), NOW))
    await store.execute(AckIn(channel, 6))
    await store.execute(AckIn(channel, 20, 15))
    await store.execute(AckIn(channel, 32, 30))


# --- reading ---------------------------------------------------------------------------------------------------------


async def read(store: SqliteStore, loaded: Sessions | None = None) -> Content:
    """Everything, as the daemon reads it. Raises `StoreError`."""
    loaded = loaded or await store.execute(LoadSessions())
    content = Content(loaded.sessions, await store.execute(LoadDeclarations()))
    queues = await asyncio.gather(*(read_channel(store, record) for record in loaded.channels))
    content.channels = {(found.record.connection_id, found.record.label): found for found in queues}
    return content


async def read_channel(store: SqliteStore, record: ChannelRecord) -> Queues:
    return Queues(
        record,
        [item async for item in read_out(store, record.id)],
        [item async for item in read_in(store, record.id)],
        {name: (await store.execute(OpenProducer(record.id, name, NOW))).last_seq for name in PRODUCERS},
    )


async def read_out(store: SqliteStore, channel: int) -> AsyncIterator[OutItem]:
    number, end = 0, False
    while not end:
        page = await store.execute(ReadOut(channel, number))
        for item in page.items:
            yield item
        assert page.end or page.next > number, "reading the outbox does not get on"
        number, end = page.next, page.end


async def read_in(store: SqliteStore, channel: int) -> AsyncIterator[InItem]:
    row = 0
    while items := (await store.execute(ReadIn(channel, row))).items:
        for item in items:
            yield item
        assert items[-1].row >= row, "reading the inbox does not get on"
        row = items[-1].row + 1


# --- damaging --------------------------------------------------------------------------------------------------------


def copy(path: Path, target: Path) -> None:
    """The files of a store that nobody closes, under another name."""
    for end in ENDS:
        if (source := Path(f"{path}{end}")).exists():
            shutil.copyfile(source, f"{target}{end}")


def remove(path: Path) -> None:
    """The files of a store, and all that was kept or made beside it."""
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()


class Complaints(logging.Handler):
    """What the store says in the log."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())

    def mention(self, *words: str) -> bool:
        return any(word in line for line in self.said for word in words)


@contextlib.contextmanager
def complaints() -> Iterator[Complaints]:
    """Collected from the store's loggers, which say nothing elsewhere meanwhile."""
    logger, handler = logging.getLogger("rondevud.store"), Complaints()
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


class Untold(AssertionError):
    """Something is wrong or lacks, and nobody was told."""


@dataclass
class Outcome:
    """What became of one damaged store."""

    kind: str
    """``whole``, ``told`` (something lacks), ``moved aside`` or ``refused`` (at the start, with a reason)."""
    told: int = 0
    """Messages that are told to be damaged in their place."""


async def inspect(
    path: Path, content: Content, *, deliver: bool = False, damaged: Collection[Row] | None = None
) -> Outcome:
    """Open the store at `path`, read all of it and compare it with `content`. Raises `Untold`.

    With `deliver` both queues are also emptied and used again, as a daemon with a peer and a program would. With `damaged`
    it is untold, too, if anything but these rows is not as it was, or one of them is.
    """
    with complaints() as log:
        try:
            store = await SqliteStore.open(path, pause=0.001)
        except StoreError as error:
            if not str(error):
                raise Untold("refused without a word") from error
            return Outcome("refused")
        try:
            loaded = await store.execute(LoadSessions())
            found = await read(store, loaded)
            if deliver:
                await use(store, found)
        finally:
            await store.close()
    if store.moved_aside is not None:
        if found.sessions or found.channels or not store.moved_aside.exists():
            raise Untold("moved aside, and yet there")
        return Outcome("moved aside")
    comparison = Comparison(content, found, loaded.damaged, [lack.channel for lack in loaded.lacking], log)
    outcome = comparison.outcome()
    if damaged is not None:
        comparison.check_exactly(damaged)
    return outcome


async def use(store: SqliteStore, found: Content) -> None:
    """Acknowledge everything, then store and read one message each way. Raises `Untold`, `StoreError`."""
    for queues in found.channels.values():
        channel, record = queues.record.id, queues.record
        behind = max([record.next, *(item[0] + 1 for item in queues.out)])
        while (await store.execute(Acknowledge(channel, behind))).more:
            pass
        put = await store.execute(Put(channel, ("new",), NOW))
        if (await store.execute(ReadOut(channel, 0))).items[-1:] != [OutMessage(put.first, "new")]:
            raise Untold("a new message does not come out of the outbox")
        while (await store.execute(AckIn(channel, 2**62))).more:
            pass
        fresh = (OutMessage(record.recv_next, "fresh"),)
        received = await store.execute(
            Receive(channel, record.peer_epoch, record.recv_next, record.peer_epoch, record.recv_next + 1, fresh, NOW)
        )
        items = (await store.execute(ReadIn(channel, 0))).items
        if [(item.row, item.payload) for item in items if isinstance(item, InMessage)] != [
            (received.first_row, "fresh")
        ]:
            raise Untold("a new message does not come out of the inbox")


class Comparison:
    """What a damaged store said, beside what had been written."""

    def __init__(
        self, written: Content, found: Content, damaged: list[str], lacking: list[int], log: Complaints
    ) -> None:
        self._written = written
        self._found = found
        self._log = log
        self._sessions_told = bool(damaged) or bool(lacking) or log.mention("the store was damaged")
        self._lacking = set(lacking)
        self._told = 0
        self._differs = bool(damaged or lacking)

    def outcome(self) -> Outcome:
        self._compare_records()
        for key, queues in self._found.channels.items():
            written = self._written.channels.get(key)
            if written is None:
                raise Untold(f"a channel that was never made: {key}")
            self._compare_channel(written.record, queues.record)
            self._compare_outbox(written, queues)
            self._compare_inbox(written, queues)
            self._compare_producers(written, queues)
        whole = not self._differs and not self._told
        return Outcome("whole" if whole else "told", self._told)

    def check_exactly(self, damaged: Collection[Row]) -> None:
        """These rows are told to be damaged, each once, and all else is what was written. Call `outcome` before."""
        lines = {"outbox": "message {2} in the outbox of channel {1} is damaged"}
        lines["inbox"] = "row {2} in the inbox of channel {1} is damaged"
        complaints = Counter(lines[row.table].format(*row) for row in damaged)
        if complaints != Counter(self._log.said):
            raise Untold(f"damaged are {damaged}, the log says {self._log.said}")
        written, found = self._written, self._found
        if self._differs or (written.sessions, written.declarations) != (found.sessions, found.declarations):
            raise Untold("more is not what it was than some messages")
        for key, queues in written.channels.items():
            left, channel = found.channels[key], queues.record.id
            if left.record != queues.record or left.producers != queues.producers:
                raise Untold(f"{key} is not what it was: {left.record}, {left.producers}")
            out = [item for item in queues.out if Row("outbox", channel, item[0]) not in damaged]
            if [item for item in left.out if isinstance(item, OutMessage) or item.reason is not Reason.DAMAGED] != out:
                raise Untold(f"the outbox of {key} lacks more than the damaged messages, or less")
            inbox = [item for item in queues.inbox if Row("inbox", channel, item.row) not in damaged]
            if [item for item in left.inbox if Row("inbox", channel, item.row) not in damaged] != inbox:
                raise Untold(f"the inbox of {key} lacks more than the damaged messages")
        if self._told != len(damaged):
            raise Untold(f"{self._told} are told to be damaged, and {len(damaged)} are")

    def _compare_records(self) -> None:
        """Sessions and declarations are what they were, or are told to be damaged."""
        known = {session.connection_id: session for session in self._written.sessions}
        for session in self._found.sessions:
            if known.get(session.connection_id) != session and not self._log.mention("went back"):
                raise Untold(f"another session: {session}")
        lacks = len(self._found.sessions) < len(known) or self._found.channels.keys() != self._written.channels.keys()
        if lacks:
            self._differs = True
            if not self._sessions_told:
                raise Untold("a session or channel lacks")
        for declaration in self._found.declarations:
            if declaration not in self._written.declarations:
                raise Untold(f"another declaration: {declaration}")
        if len(self._found.declarations) < len(self._written.declarations):
            self._differs = True
            if not self._log.mention("declaration", "the store was damaged", "went back"):
                raise Untold("a declaration lacks")

    def _compare_channel(self, written: ChannelRecord, found: ChannelRecord) -> None:
        went_back = found.id in self._lacking or self._log.mention("went back")
        for name in ("epoch", "next", "acked", "peer_epoch", "recv_next", "out_closed", "in_closed", "durability"):
            if getattr(written, name) != getattr(found, name) and not went_back:
                raise Untold(f"{name} of channel {found.id} is {getattr(found, name)}")
        if found.next < written.next:
            raise Untold(f"numbers of channel {found.id} would be given again")

    def _compare_outbox(self, written: Queues, found: Queues) -> None:
        messages = {item.seq: item.payload for item in written.out if isinstance(item, OutMessage)}
        held: set[int] = set()
        behind = 0
        for item in found.out:
            if item[0] < behind:
                raise Untold("the outbox is out of order")
            if isinstance(item, OutMessage):
                if item.seq not in messages and item.seq >= found.record.acked and not self._log.mention("went back"):
                    raise Untold(f"number {item.seq} was never given, or had left")
                if item.seq in messages and item.payload != messages[item.seq]:
                    raise Untold(f"number {item.seq} has another payload")
                held.add(item.seq)
                behind = item.seq + 1
            else:
                if item not in written.out and item.reason is not Reason.DAMAGED:
                    self._check_removal(item, written)
                gone = {seq for seq in messages if item.first <= seq < item.next}
                if gone and item.reason is not Reason.DAMAGED:
                    raise Untold(f"messages are said to be {item.reason}")
                self._told += len(gone)
                held |= gone
                behind = item.next
        if lost := messages.keys() - held:
            raise Untold(f"{len(lost)} messages of an outbox lack, and nobody is told: {sorted(lost)[:5]}")
        if behind < found.record.next and found.out:
            raise Untold("the outbox ends too early")

    def _check_removal(self, item: Removal, written: Queues) -> None:
        """A removal may have lost its neighbour, or what joined it, and be told in parts."""
        numbers = [(known.first, known.next, known.reason) for known in written.out if isinstance(known, Removal)]
        part = any(
            first <= item.first and item.next <= behind and item.reason is reason for first, behind, reason in numbers
        )
        if not part and not self._log.mention("went back"):
            raise Untold(f"another removal: {item}")

    def _compare_inbox(self, written: Queues, found: Queues) -> None:
        rows = {item.row: item for item in written.inbox}
        seen: set[int] = set()
        for item in found.inbox:
            if item.row in seen or (seen and item.row < max(seen)):
                raise Untold("the inbox is out of order")
            seen.add(item.row)
            known = rows.get(item.row)
            if known == item:
                continue
            damaged = not isinstance(item, InMessage) and item.removal.reason is Reason.DAMAGED
            if not damaged and (known is not None or not self._log.mention("went back")):
                raise Untold(f"row {item.row} is {item}")
            self._told += 1
        if lost := rows.keys() - seen:
            self._differs = True
            if not (found.record.id in self._lacking or self._log.mention("messages are lost with them")):
                raise Untold(f"{len(lost)} rows of an inbox lack, and nobody is told: {sorted(lost)[:5]}")

    def _compare_producers(self, written: Queues, found: Queues) -> None:
        for name, last in written.producers.items():
            if found.producers[name] == last:
                continue
            self._differs = True
            told = self._log.mention("the row of producer", "the store was damaged", "went back")
            if found.producers[name] > last or not told:
                raise Untold(f"producer {name!r} is at {found.producers[name]}, and was at {last}")
