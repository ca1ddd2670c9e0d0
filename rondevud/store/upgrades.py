"""The steps from one version of the schema to the next. The version of a file is how many of them have run.

A step is a script and perhaps some code for what SQL cannot do: checksums. Each runs in one transaction, so a process that
dies in it leaves the version before. A file that holds something is copied before its first step, for whoever wants to go
back: to ``NAME.version-N`` beside it.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from rondevud import failpoints
from rondevud.store.backup import back_up
from rondevud.store.rows import CHANNEL_COLUMNS, fields_crc, intact

logger = logging.getLogger(__name__)

APPLICATION_ID = 0x726F6E64
"""Marks the file as ours ("rond")."""

BATCH = 256
"""Rows that are held in memory at once."""

_CHANNEL_COLUMNS_1 = (
    "id, connection_id, label, durability, options, epoch, next, acked, acked_count, peer_epoch, recv_next, recv_count, "
    "out_count, out_bytes, in_count, in_bytes, in_gaps, out_closed, in_closed, attached, base, next_row, in_holes, crc"
)
"""Those of version 1, which the checksums of its rows cover."""


def _open_accounts(connection: sqlite3.Connection) -> None:
    """What a channel holds is all that has been accepted and received so far. A damaged row stays one."""
    last = 0
    while True:
        rows = connection.execute(
            f"SELECT {_CHANNEL_COLUMNS_1} FROM channels WHERE id > ? ORDER BY id LIMIT ?",  # noqa: S608 - a constant
            (last, BATCH),
        ).fetchall()
        if not rows:
            return
        last = rows[-1][0]
        for row in filter(intact, rows):
            connection.execute(
                "UPDATE channels SET accepted = out_count, received = in_count - in_gaps WHERE id = ?", row[:1]
            )
            fields = connection.execute(
                f"SELECT {CHANNEL_COLUMNS} FROM channels WHERE id = ?",  # noqa: S608 - a constant
                row[:1],
            ).fetchone()[:-1]
            connection.execute("UPDATE channels SET crc = ? WHERE id = ?", (fields_crc(fields), row[0]))


class Step(NamedTuple):
    script: str
    work: Callable[[sqlite3.Connection], None] | None = None
    """What is done behind the script, in the same transaction."""


STEPS = (Step("schema.sql"), Step("schema-2.sql", _open_accounts), Step("schema-3.sql"))


def version(connection: sqlite3.Connection) -> int:
    """How many steps have run."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def upgrade(connection: sqlite3.Connection, path: Path | None = None) -> None:
    """Run the steps that are missing. Raises errors of sqlite3, and `StoreError` when the file cannot be copied."""
    old = version(connection)
    if old == len(STEPS):
        return
    if old and path is not None:
        kept = path.with_name(f"{path.name}.version-{old}")
        back_up(path, kept, force=True)  # one that is there is from an attempt that was cut short, or older still
        logger.warning("%s has schema version %d; it is kept as %s before it is made %d", path, old, kept, len(STEPS))
    for number, step in enumerate(STEPS[old:], start=old + 1):
        if old:
            failpoints.hit("upgrade.before")
        _run(connection, number, step, existing=bool(old))
        if old:
            failpoints.hit("upgrade.after")


def _run(connection: sqlite3.Connection, number: int, step: Step, *, existing: bool) -> None:
    script = files("rondevud.store").joinpath(step.script).read_text(encoding="utf-8")
    try:
        connection.executescript(f"BEGIN IMMEDIATE; PRAGMA application_id = {APPLICATION_ID}; {script}")
        if step.work is not None:
            step.work(connection)
        connection.execute(f"PRAGMA user_version = {number}")
        if existing:
            failpoints.hit("upgrade.within")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
