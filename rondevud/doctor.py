"""``rondevud doctor``: whether a state directory is as it should be, and mending what is not, while no daemon runs."""

from __future__ import annotations

import shutil
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

from rondevud.errors import ConfigError, StateDirectoryError, StoreError
from rondevud.signalling.identity import Identities
from rondevud.statedir import DATABASE, StateDirectory
from rondevud.store.backup import back_up
from rondevud.store.database import check_integrity, connect, is_damage
from rondevud.store.examination import KINDS, Examination, Finding, Kind
from rondevud.store.marks import SUFFIX, Marks
from rondevud.store.repair import repair

KEYS = "keys"

SPACE_KEPT = 64 * 1024 * 1024
"""Bytes that should be free beside twice the size of the store, which a repair needs."""

OWN_KINDS = {
    "corrupt": Kind(
        "SQLite finds the file damaged; what is in the damaged part is lost", "run `rondevud doctor --repair`"
    ),
    "went_back": Kind(
        "the store does not know of messages that it had confirmed: its log was damaged or lost, or it is an older copy",
        "nothing is needed: at the next start this is reported to the peer",
        harmless=True,
    ),
    "open_key": Kind("other users of this machine can be this user name", "run `chmod 600` on it"),
    "bad_key": Kind("the user name of this key cannot be used", "import the key anew, or remove the file"),
    "little_space": Kind("when the disk is full new messages are rejected, and a repair needs room", "free some"),
    "file_aside": Kind(
        "it was kept when the store was damaged, mended, replaced or upgraded; nothing uses it",
        "remove it when it is not needed any more",
        harmless=True,
    ),
}


@dataclass
class Report:
    """What was found; `copy` is where the store was kept before it was mended, `remaining` what is found after that."""

    findings: list[Finding] = field(default_factory=list)
    mended: list[str] = field(default_factory=list)
    copy: Path | None = None
    remaining: list[Finding] | None = None

    @property
    def clean(self) -> bool:
        """Whether nothing, or nothing any more, is wrong."""
        findings = self.findings if self.remaining is None else self.remaining
        return all(kind_of(finding).harmless for finding in findings)

    def as_map(self) -> dict[str, Any]:
        return {
            "clean": self.clean,
            "findings": [as_row(finding) for finding in self.findings],
            "copy": None if self.copy is None else str(self.copy),
            "mended": self.mended,
            "remaining": None if self.remaining is None else [as_row(finding) for finding in self.remaining],
        }


def kind_of(finding: Finding) -> Kind:
    return KINDS.get(finding.kind) or OWN_KINDS[finding.kind]


def as_row(finding: Finding) -> dict[str, Any]:
    """A finding with what it means, for programs."""
    kind = kind_of(finding)
    return {
        "kind": finding.kind,
        "where": finding.where,
        "found": finding.found,
        "meaning": kind.meaning,
        "advice": kind.advice,
        "harmless": kind.harmless,
    }


def as_line(finding: Finding) -> str:
    """A finding with what it means, for people."""
    kind = kind_of(finding)
    return f"{finding.where}: {finding.found}: {kind.meaning}; {kind.advice}"


def examine(directory: Path, *, mend: bool) -> Report:
    """Look at a state directory that no daemon uses, and with `mend` mend its store.

    Raises `StateDirectoryError` when there is none, when a daemon has it or it cannot be read, and `StoreError` when the
    store cannot be looked at or mended.
    """
    if not directory.is_dir():
        raise StateDirectoryError(f"state directory {directory}: there is none")
    with StateDirectory(directory):
        path = directory / DATABASE
        try:
            in_store = list(_examine_store(path))
            report = Report(findings=[*in_store, *_examine_directory(directory)])
            if not mend:
                return report
            if any(not kind_of(finding).harmless for finding in in_store):
                _mend(path, in_store, report)
            report.remaining = [*_examine_store(path), *_examine_directory(directory)]
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"{path}: {error}") from error
        return report


def _mend(path: Path, findings: list[Finding], report: Report) -> None:
    if not any(finding.kind == "refused" for finding in findings):  # such a file is moved, and so kept, whole
        copy = path.with_name(f"{path.name}.before-repair-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
        back_up(path, copy)
        report.copy = copy
    repair(path, report.mended.append)


def _examine_store(path: Path) -> Iterator[Finding]:
    if not path.exists():
        return
    try:
        connection = connect(path)
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        yield Finding("refused", path.name, str(error))
        return
    with closing(connection):
        for line in check_integrity(connection):
            yield Finding("corrupt", path.name, line)
        yield from _lacking(path, connection)
        examination = Examination()
        while (found := examination.next_slice(connection)) is not None:
            yield from found


def _lacking(path: Path, connection: sqlite3.Connection) -> Iterator[Finding]:
    """Channels that had come further than the database knows."""
    with closing(Marks(path)) as marks:
        marked = marks.read()
    try:
        there = {row[0]: row[1:] for row in connection.execute("SELECT id, next, next_row FROM channels")}
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        return  # told as corrupt
    for number, mark in sorted(marked.items()):
        place = there.get(number, (0, 0))
        for queue, known, had in zip(("outbox", "inbox"), place, mark[1:3], strict=True):
            if isinstance(known, int) and known < had and had > 1:
                yield Finding(
                    "went_back", f"the {queue} of channel {number}", f"ends before {known}, and ended before {had}"
                )


def _examine_directory(directory: Path) -> Iterator[Finding]:
    yield from _examine_keys(directory / KEYS)
    kept = (directory.glob(f"{DATABASE}.{what}-*") for what in ("damaged", "before", "version"))
    for path in sorted(chain.from_iterable(kept)):
        if not path.name.endswith(("-wal", "-shm", SUFFIX)):
            yield Finding("file_aside", path.name, f"{path.stat().st_size} bytes")
    free = shutil.disk_usage(directory).free
    store = directory / DATABASE
    if free < SPACE_KEPT + 2 * (store.stat().st_size if store.exists() else 0):
        yield Finding("little_space", str(directory), f"{free} bytes are free")


def _examine_keys(directory: Path) -> Iterator[Finding]:
    keys = Identities(directory)
    for username in keys.names():
        path = keys.file(username)
        if mode := stat.S_IMODE(path.stat().st_mode) & 0o077:
            yield Finding(
                "open_key", f"{KEYS}/{path.name}", f"mode {stat.S_IMODE(path.stat().st_mode):04o}, {mode:03o} too much"
            )
        try:
            keys.load(username)
        except (ConfigError, StateDirectoryError) as error:
            yield Finding("bad_key", f"{KEYS}/{path.name}", str(error))
