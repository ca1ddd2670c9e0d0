"""Looking whether a store is as it was written: every row's checksum, the counts of queues, numbers without holes.

An examination goes in slices, each inside a transaction of whoever calls it, and nothing is kept between them but where it
is and how much a queue has held so far. So it fits between the commits of a running daemon; what changes meanwhile is
looked at as it is when its turn comes, and a queue that changed is not compared with counts of before.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from rondevud.ranges import Ranges
from rondevud.records import PAGE_BYTES, PAGE_MESSAGES, Operation
from rondevud.store.database import is_damage
from rondevud.store.inbox_rows import GAP
from rondevud.store.pack_table import TABLES, Found, scan
from rondevud.store.packs import InPack, OutPack, Pack, columns, contents, sizes
from rondevud.store.rows import (
    CHANNEL_COLUMNS,
    ChannelState,
    channel_of_row,
    intact,
    is_number,
    message_intact,
    received_intact,
    weight,
)

MOST_FINDINGS = 1_000
"""Findings that one examination tells; of more it says that there are more."""

QUEUE_TABLES = ("outbox", "outbox_packs", "removals", "inbox", "inbox_packs", "inbox_holes", "failed", "producers")
"""Tables whose rows belong to a channel."""


class Kind(NamedTuple):
    """What a finding means and what can be done about it."""

    meaning: str
    advice: str
    harmless: bool = False


_REPAIR = "stop the daemon and run `rondevud doctor --repair`"

KINDS = {
    "refused": Kind(
        "SQLite cannot use the file; the daemon would set its schema right if it is that, or else move it aside and start"
        " with an empty store",
        "`--repair` does that now; a backup can be put in its place",
    ),
    "unreadable": Kind(
        "a part of the file cannot be read; a daemon that meets it copies what can be read into a new file",
        "nothing is needed, or " + _REPAIR,
    ),
    "damaged_row": Kind("this row is not what was written; it will not be used", f"nothing is needed, or {_REPAIR}"),
    "missing": Kind("messages that are counted are not there; they are lost", f"nothing is needed, or {_REPAIR}"),
    "wrong_count": Kind("limits and `queue` go by this count", _REPAIR),
    "wrong_books": Kind("what `queue` says became of messages is not the whole truth", _REPAIR),
    "stray": Kind("these rows are outside of what their queue holds, and nobody gets them", _REPAIR),
    "twice": Kind("a message is stored twice; one of both is used", f"nothing is needed, or {_REPAIR}"),
    "producer": Kind("a program that sends again after a crash could have a message sent twice", _REPAIR),
    "too_many": Kind("there is more than is told here", _REPAIR),
    "orphans": Kind(
        "the channel's own row was damaged and has been set aside; these rows stay for whoever wants to look",
        "nothing is needed",
        harmless=True,
    ),
    "set_aside": Kind(
        "this was found damaged earlier and kept for whoever wants to look; nothing uses it",
        "remove it when it is not needed any more",
        harmless=True,
    ),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be, or worth knowing; `kind` is a key of `KINDS` or of who made it."""

    kind: str
    where: str
    found: str


Slices: TypeAlias = Iterator[list[Finding]]


@dataclass(frozen=True, slots=True)
class ExamineSlice(Operation["list[Finding] | None"]):
    """The next slice of an examination; None at its end. Of the SQLite store only."""

    examination: Examination


class Examination:
    """One examination of one store: call `next_slice` until it answers None."""

    def __init__(self, *, page_messages: int = PAGE_MESSAGES) -> None:
        self._page = page_messages
        self._slices: Slices | None = None
        self._told = 0
        self._connection: sqlite3.Connection

    def next_slice(self, connection: sqlite3.Connection) -> list[Finding] | None:
        """What one more slice of the work found. Raises errors of sqlite3 that are no damage."""
        self._connection = connection
        if self._slices is None:
            self._slices = self._examine()
        found = next(self._slices, None)
        if found is None or not found:
            return found
        room = MOST_FINDINGS - self._told
        self._told += len(found)
        if len(found) > room:
            self._slices = iter(())
            found = [*found[:room], Finding("too_many", "the store", f"more than {MOST_FINDINGS} findings")]
        return found

    # --- the order of the work -------------------------------------------------------------------------------------

    def _examine(self) -> Slices:
        yield from self._guarded("sessions", self._plain_rows("sessions", ("connection_id",)))
        yield from self._guarded("declarations", self._plain_rows("declarations", ("kind", "name")))
        yield from self._guarded("producers", self._plain_rows("producers", ("id",)))
        yield from self._guarded("channels", self._channels())
        for table in QUEUE_TABLES:
            yield from self._guarded(table, self._orphans(table))
        yield from self._guarded("damaged_rows", self._set_aside())

    def _guarded(self, where: str, slices: Slices) -> Slices:
        """The same slices, with damage that SQLite meets as a finding at which they end."""
        try:
            yield from slices
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            yield [Finding("unreadable", where, str(error))]

    # --- rows that stand alone -------------------------------------------------------------------------------------

    def _plain_rows(self, table: str, key: Sequence[str]) -> Slices:
        """Checksums of a table, by its primary key."""
        columns, marks = ", ".join(key), ", ".join("?" * len(key))
        last: tuple[Any, ...] | None = None
        while True:
            condition = "" if last is None else f" WHERE ({columns}) > ({marks})"
            rows = self._connection.execute(
                f"SELECT {columns}, * FROM {table}{condition} ORDER BY {columns} LIMIT ?",  # noqa: S608 - constants
                (*(last or ()), self._page),
            ).fetchall()
            yield [
                _damaged(f"{table}, key {', '.join(map(str, row[: len(key)]))}")
                for row in rows
                if not intact(row[len(key) :])
            ]
            if len(rows) < self._page:
                return
            last = rows[-1][: len(key)]

    def _orphans(self, table: str) -> Slices:
        """Rows of channels that there are not, other than those that are being deleted."""
        number = -1
        while True:
            found = self._connection.execute(
                f"SELECT min(channel) FROM {table} WHERE channel > ?",  # noqa: S608 - a constant
                (number,),
            ).fetchone()[0]
            if not isinstance(found, int):
                return
            number = found
            known = self._connection.execute(
                "SELECT EXISTS (SELECT 1 FROM channels WHERE id = ?1) OR EXISTS (SELECT 1 FROM garbage WHERE channel = ?1)",
                (number,),
            ).fetchone()[0]
            if not known:
                count = self._connection.execute(
                    f"SELECT count(*) FROM {table} WHERE channel = ?",  # noqa: S608 - a constant
                    (number,),
                ).fetchone()[0]
                yield [Finding("orphans", f"{table} of channel {number}", f"{count} rows without a channel")]

    def _set_aside(self) -> Slices:
        rows = self._connection.execute("SELECT source, count(*) FROM damaged_rows GROUP BY source").fetchall()
        yield [Finding("set_aside", f"damaged_rows of {source}", f"{count} rows") for source, count in rows]

    # --- channels --------------------------------------------------------------------------------------------------

    def _channels(self) -> Slices:
        query = "SELECT min(id) FROM channels WHERE id > ?"
        number = 0
        while (number := self._connection.execute(query, (number,)).fetchone()[0]) is not None:
            yield from self._guarded(f"channel {number}", self._channel(number))

    def _channel(self, number: int) -> Slices:
        row = self._row_of_channel(number)
        if row is None:
            return
        if not intact(row):
            yield [_damaged(f"channels, key {number}")]
            return
        if not self._connection.execute("SELECT 1 FROM sessions WHERE connection_id = ?", (row[1],)).fetchone():
            yield [Finding("missing", f"channel {number}", f"its session {row[1]} is not there")]
        yield self._stray(channel_of_row(row))
        yield from self._guarded(f"the outbox of channel {number}", self._outbox(number))
        yield from self._guarded(f"the removals of channel {number}", self._removals(number))
        yield from self._guarded(f"the inbox of channel {number}", self._inbox(number))
        yield from self._guarded(f"what is set aside in channel {number}", self._failed(number))
        if (state := self._state(number)) is not None:
            yield self._books(state)

    def _row_of_channel(self, number: int) -> Any:
        return self._connection.execute(
            f"SELECT {CHANNEL_COLUMNS} FROM channels WHERE id = ?",  # noqa: S608 - a constant
            (number,),
        ).fetchone()

    def _state(self, number: int) -> ChannelState | None:
        """None for a channel that has been deleted, or damaged, since it was looked at."""
        row = self._row_of_channel(number)
        return channel_of_row(row) if row is not None and intact(row) else None

    def _stray(self, state: ChannelState) -> list[Finding]:
        number, findings = state.record.id, []
        for table, key, first, behind in state.bounds():
            count = self._connection.execute(
                f"SELECT count(*) FROM {table} WHERE channel = ?1 AND ({key} < ?2 OR {key} >= ?3)",  # noqa: S608 - constants
                (number, first, behind),
            ).fetchone()[0]
            if count:
                where = f"the {table} of channel {number}"
                findings.append(Finding("stray", where, f"{count} rows outside of {first} to {behind - 1}"))
        return findings

    def _books(self, state: ChannelState) -> list[Finding]:
        wrong = state.totals.mistakes(state.record)
        return [Finding("wrong_books", f"channel {state.record.id}", text) for text in wrong]

    def _walk(self, number: int, look: Callable[[ChannelState, int, Tally, list[Finding]], int | None]) -> Slices:
        """Take `look` from page to page, and compare what it tallied with the channel's row if that stayed as it was.

        `look` answers where the next page begins, None at the end.
        """
        tally, before = Tally(), self._state(number)
        place: int | None = 0
        while place is not None and (state := self._state(number)) is not None:
            findings: list[Finding] = []
            place = look(state, place, tally, findings)
            if place is None and state == before:
                findings += tally.differences(number)
            yield findings

    def _outbox(self, number: int) -> Slices:
        return self._walk(number, self._look_out)

    def _look_out(self, state: ChannelState, place: int, tally: Tally, findings: list[Finding]) -> int | None:
        channel, end = state.record.id, state.record.next
        tally.expect("out_count", state.record.out_count)
        tally.expect("out_bytes", state.record.out_bytes)
        number = max(place, state.base)
        packed = self._packs(OutPack, channel, number, end, findings)
        rows, whole = self._rows("outbox", "seq", channel, number, packed.behind)
        behind = _behind(rows, whole, number, packed.behind)
        findings += self._singles_apart(packed.packs, rows, f"outbox of channel {channel}, number")
        findings += _damaged_in(packed.packs, number, behind, f"outbox of channel {channel}, number")
        held: list[tuple[int, int]] = []
        sent: dict[int, int] = {}
        for row in rows:
            tally.add("out_count", 1)
            tally.add("out_bytes", weight(row[3]))
            if not message_intact(row):
                findings.append(_damaged(f"outbox of channel {channel}, number {row[1]}"))
            else:
                sent[row[4]] = max(row[5], sent.get(row[4], 0))
            if is_number(row[1]) and number <= row[1] < end:
                held.append((row[1], row[1] + 1))
        for pack in packed.packs:
            first, last = max(number, pack.first), min(behind, pack.behind)
            if first >= last:
                continue
            held.append((first, last))
            tally.add("out_count", last - first)
            tally.add("out_bytes", sum(sizes(pack)[first - pack.first : last - pack.first]))
            sent[pack.producer] = max(pack.producer_seq + last - 1 - pack.first, sent.get(pack.producer, 0))
        for first, last in sorted(held):
            findings += self._missing(channel, number, first)
            number = max(number, last)
        findings += self._missing(channel, number, behind)
        findings += self._compare_producers(sent)
        return None if behind >= end else behind

    def _packs(self, kind: type[Pack], channel: int, first: int, end: int, findings: list[Finding]) -> Found[Pack]:
        """One page of packs of a queue; one that cannot be used is a finding of the page in which it begins."""
        found = scan(self._connection, kind, columns(kind), channel, (first, end), self._page, PAGE_BYTES)
        table, key = TABLES[kind]
        for _, pack in found.unusable:
            if not is_number(pack.first) or pack.first >= first:
                findings.append(_damaged(f"{table} of channel {channel}, {key} {pack.first}"))
        for _, pack, behind in found.twice:
            if behind > first:
                findings.append(_twice(f"{table} of channel {channel}, {key} {pack.first}"))
        return found

    def _singles_apart(self, packs: Sequence[OutPack | InPack], rows: list[Any], where: str) -> Iterator[Finding]:
        """Take rows out of `rows` that are in a pack as well."""
        inside = Ranges((pack.first, pack.behind) for pack in packs)
        twice = [row for row in rows if is_number(row[1]) and row[1] in inside]
        rows[:] = [row for row in rows if row not in twice]
        yield from (_twice(f"{where} {row[1]}") for row in twice)

    def _missing(self, channel: int, first: int, behind: int) -> Iterator[Finding]:
        for start, end in self._uncovered(channel, first, behind):
            yield Finding("missing", f"the outbox of channel {channel}", f"numbers {start} to {end - 1} are not there")

    def _rows(self, table: str, key: str, channel: int, first: int, behind: int) -> tuple[list[Any], bool]:
        """One page of a queue, and whether it reaches its end."""
        cursor = self._connection.execute(
            f"SELECT * FROM {table} WHERE channel = ? AND {key} >= ? AND {key} < ? ORDER BY {key}",  # noqa: S608 - constants
            (channel, first, behind),
        )
        rows: list[Any] = []
        size = 0
        for row in cursor:
            if len(rows) >= self._page or (rows and size > PAGE_BYTES):
                cursor.close()
                return rows, False
            size += sum(map(weight, row))
            rows.append(row)
        return rows, True

    def _uncovered(self, channel: int, first: int, behind: int) -> Iterator[tuple[int, int]]:
        """Ranges between `first` and `behind` that are in no removal."""
        if first >= behind:
            return
        cursor = self._connection.execute(
            "SELECT * FROM removals WHERE channel = ?1 AND first < ?3 AND first >="
            " ifnull((SELECT max(first) FROM removals WHERE channel = ?1 AND first <= ?2), ?2) ORDER BY first",
            (channel, first, behind),
        )
        for row in cursor:
            if intact(row):
                if row[1] > first:
                    yield first, row[1]
                first = max(first, row[2])
        if first < behind:
            yield first, behind

    def _compare_producers(self, sent: dict[int, int]) -> Iterator[Finding]:
        """Producers that do not know of messages they sent. One that is forgotten knows nothing and is none of them."""
        for producer, number in sent.items():
            known = self._connection.execute("SELECT * FROM producers WHERE id = ?", (producer,)).fetchone()
            if known is not None and intact(known) and known[3] < number:
                yield Finding("producer", f"producer {producer}", f"ends at {known[3]}, and message {number} is held")

    def _removals(self, number: int) -> Slices:
        def look(_state: ChannelState, place: int, _tally: Tally, findings: list[Finding]) -> int | None:
            rows, whole = self._rows("removals", "first", number, place, 2**63 - 1)
            findings += [_damaged(f"removals of channel {number}, number {row[1]}") for row in rows if not intact(row)]
            return None if whole else _behind(rows, whole, place, place)

        return self._walk(number, look)

    def _inbox(self, number: int) -> Slices:
        return self._walk(number, self._look_in)

    def _look_in(self, state: ChannelState, place: int, tally: Tally, findings: list[Finding]) -> int | None:
        record, where = state.record, f"the inbox of channel {state.record.id}"
        for name in ("in_count", "in_bytes", "in_gaps"):
            tally.expect(name, getattr(record, name))
        holes, whole_holes = self._holes(state)
        if place == 0 and not whole_holes:
            findings.append(Finding("damaged_row", f"inbox_holes of channel {record.id}", "do not add up"))
        first = max(place, state.front)
        packed = self._packs(InPack, record.id, first, state.next_row, findings)
        rows, whole = self._rows("inbox", "row", record.id, first, packed.behind)
        behind = _behind(rows, whole, first, packed.behind)
        findings += self._singles_apart(packed.packs, rows, f"inbox of channel {record.id}, row")
        findings += _damaged_in(packed.packs, first, behind, f"inbox of channel {record.id}, row")
        held = {row[1] for row in rows}
        for pack in packed.packs:
            start, end = max(first, pack.first), min(behind, pack.behind)
            lengths = sizes(pack)[start - pack.first : max(start, end) - pack.first]
            held.update(range(start, end))
            tally.add("in_count", len(lengths))
            tally.add("in_bytes", sum(lengths))
        lacking = sum(number not in held for number in holes.outside(first, behind))
        if lacking and whole_holes:
            findings.append(Finding("missing", where, f"{lacking} rows from {first} to {behind - 1} are not there"))
        for row in rows:
            tally.add("in_count", 1)
            tally.add("in_bytes", weight(row[5]))
            tally.add("in_gaps", int(not isinstance(row[4], int) or row[4] >= GAP))
            if not received_intact(row):
                findings.append(_damaged(f"inbox of channel {record.id}, row {row[1]}"))
        return None if behind >= state.next_row else behind

    def _failed(self, number: int) -> Slices:
        def look(state: ChannelState, place: int, tally: Tally, findings: list[Finding]) -> int | None:
            tally.expect("failed", state.record.failed)
            tally.expect("failed_bytes", state.record.failed_bytes)
            rows, whole = self._rows("failed", "row", number, place, 2**63 - 1)
            for row in rows:
                tally.add("failed", 1)
                tally.add("failed_bytes", weight(row[5]))
            findings += [_damaged(f"failed of channel {number}, row {row[1]}") for row in rows if not intact(row)]
            return None if whole else _behind(rows, whole, place, place)

        return self._walk(number, look)

    def _holes(self, state: ChannelState) -> tuple[Ranges, bool]:
        """What left the inbox behind its front, and whether that is as it was written."""
        rows = self._connection.execute(
            "SELECT * FROM inbox_holes WHERE channel = ? ORDER BY first", (state.record.id,)
        ).fetchall()
        fine = [row for row in rows if intact(row)]
        holes = Ranges(row[1:3] for row in fine)
        return holes, len(fine) == len(rows) and sum(row[2] - row[1] for row in fine) == state.in_holes


def _damaged(where: str) -> Finding:
    return Finding("damaged_row", where, "fails its checksum")


def _twice(where: str) -> Finding:
    return Finding("twice", where, "is held by another row as well")


def _damaged_in(packs: Sequence[OutPack | InPack], first: int, behind: int, where: str) -> Iterator[Finding]:
    """Messages ``first … behind - 1`` that are damaged within intact packs."""
    for pack in packs:
        for number, message in enumerate(contents(pack), pack.first):
            if not message.whole and first <= number < behind:
                yield _damaged(f"{where} {number}")


def _behind(rows: Sequence[Any], whole: bool, first: int, end: int) -> int:
    """The number behind a page that begins at `first`; `end` for the last page. A damaged key leads on, never back."""
    if whole:
        return end
    last = rows[-1][1]
    return last + 1 if isinstance(last, int) and last >= first else first + 1


class Tally:
    """What a queue holds, counted, beside what its channel's row says."""

    def __init__(self) -> None:
        self._expected: dict[str, int] = {}
        self._counted: dict[str, int] = {}

    def expect(self, name: str, count: int) -> None:
        self._expected[name] = count

    def add(self, name: str, count: int) -> None:
        self._counted[name] = self._counted.get(name, 0) + count

    def differences(self, channel: int) -> list[Finding]:
        return [
            Finding("wrong_count", f"{name} of channel {channel}", f"says {expected}, and there are {counted}")
            for name, expected in self._expected.items()
            if (counted := self._counted.get(name, 0)) != expected
        ]
