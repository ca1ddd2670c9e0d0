"""Damaging a store by SQL, examining it and repairing it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from rondevud.store import repair
from rondevud.store.database import check_integrity, connect
from rondevud.store.examination import Examination


def edit(path: Path, *statements: str, values: tuple[Any, ...] = ()) -> None:
    """Carry out statements, each with the same values."""
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in statements:
            connection.execute(statement, values)


def examine(path: Path, **options) -> list[tuple[str, str]]:
    """Kinds and places of what is found."""
    found = []
    with closing(connect(path)) as connection:
        assert check_integrity(connection) == []
        looking = Examination(**options)
        while (findings := looking.next_slice(connection)) is not None:
            found += findings
    return [(finding.kind, finding.where) for finding in found]


def mend(path: Path) -> list[str]:
    done: list[str] = []
    repair.repair(path, done.append)
    return done
