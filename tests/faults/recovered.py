"""A state directory after a power failure: opened by the real store, read to its end, and described."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import shutil
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rondevud.records import ChannelRecord, InGap, LoadSessions, ReadIn, ReadOut
from rondevud.store.database import check_integrity, connect
from rondevud.store.examination import KINDS, Examination
from rondevud.store.sqlite import SqliteStore
from tests.faults.crash_model import SHARED_MEMORY, Tree
from tests.jury.dump import dump
from tests.jury.trial import DATABASE

GARBAGE = b"\xa5" * 32_768
DOCTOR_LOOKS = 4
"""The doctor looks at every so many of the states."""


@dataclass
class Recovered:
    """What a store holds. `wrong` is what should not be, whatever had been promised."""

    dump: dict[str, dict[str, Any]]
    channels: dict[str, ChannelRecord]
    wrong: list[str] = field(default_factory=list)


def write(tree: Tree, directory: Path) -> None:
    """Make `directory` what a machine finds after its start."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    for name, content in tree.items():
        path = directory / name
        path.parent.mkdir(mode=0o700, exist_ok=True, parents=True)
        path.write_bytes(content)
        path.chmod(0o600)


def database_of(tree: Tree) -> dict[str, bytes]:
    """The files of the database, by their names."""
    return {Path(name).name: data for name, data in tree.items() if Path(name).name.startswith(DATABASE)}


@functools.lru_cache(maxsize=16)
def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content).digest()


class Reopening:
    """Opens states in `directory`; remembers those it has seen. States that hold the same share one answer."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._known: dict[bytes, Recovered] = {}
        self._distinct: dict[bytes, Recovered] = {}
        self.opened = 0

    async def reopen(self, tree: Tree) -> Recovered:
        files = database_of(tree)
        digest = hashlib.blake2b()
        for name, content in sorted(files.items()):
            digest.update(f"{name} {len(content)} ".encode())
            digest.update(_digest(content))
        key = digest.digest()
        if key not in self._known:
            garbage = {DATABASE + SHARED_MEMORY: GARBAGE} if key[0] % 2 else {}
            write(files | garbage, self._directory)
            found = await examine(self._directory / DATABASE, doctor=key[0] % DOCTOR_LOOKS == 0)
            self._known[key] = self._distinct.setdefault(_digest(repr(found).encode()), found)
            self.opened += 1
        return self._known[key]


async def examine(path: Path, *, doctor: bool = True) -> Recovered:
    """Open a database, read all its queues, look at it with the doctor's eyes if wanted, and close it again."""
    wrong: list[str] = []
    store = await SqliteStore.open(path, pause=0.001)
    try:
        if store.moved_aside is not None:
            wrong.append("SQLite refused the file")
        sessions = await store.execute(LoadSessions())
        wrong += [f"session {name} is damaged" for name in sessions.damaged]
        for channel in sessions.channels:
            wrong += await _read(store, channel)
    finally:
        await store.close()
    if doctor:
        wrong += look(path)
    try:
        held = dump(path)
    except sqlite3.DatabaseError as error:
        held, wrong = {}, [*wrong, str(error)]
    return Recovered(held, {channel.label: channel for channel in sessions.channels}, wrong)


def look(path: Path) -> list[str]:
    """What the doctor finds in a database that nobody has open."""
    with contextlib.closing(connect(path)) as connection:
        wrong = check_integrity(connection)
        examination = Examination()
        while (found := examination.next_slice(connection)) is not None:
            wrong += [str(finding) for finding in found if not KINDS[finding.kind].harmless]
    return wrong


async def _read(store: SqliteStore, channel: ChannelRecord) -> list[str]:
    """Read both queues as the daemon does; what is wrong with them."""
    wrong: list[str] = []
    number, end = 0, False
    while not end:
        page = await store.execute(ReadOut(channel.id, number))
        wrong += [f"{channel.label}: damaged in the outbox: {damaged}" for damaged in page.damaged]
        number, end = page.next, page.end
    row = 0
    while items := (await store.execute(ReadIn(channel.id, row))).items:
        wrong += [f"{channel.label}: a gap in the inbox: {item}" for item in items if isinstance(item, InGap)]
        row = items[-1].row + 1
    return wrong
