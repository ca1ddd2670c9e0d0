"""Which sessions hold messages to be sent, read from the file without opening a store: also while a daemon runs."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from rondevud.errors import StoreFailed
from rondevud.records import Role

TIMEOUT = 2.0
"""Seconds to wait for a lock."""

_QUERY = """
SELECT role, declaration, target, sum(out_count) FROM sessions JOIN channels USING (connection_id)
WHERE NOT closed & 1 AND NOT EXISTS (
    SELECT 1 FROM declarations WHERE name = declaration
    AND kind = CASE role WHEN 'service' THEN 'service' ELSE 'connection' END
) GROUP BY connection_id HAVING sum(out_count) > 0 ORDER BY role, declaration
"""


class Unsent(NamedTuple):
    """A session that no program has declared: it stands in the configuration file, or is held."""

    role: Role
    declaration: str
    target: str
    messages: int


def read_unsent(path: Path) -> list[Unsent]:
    """Sessions with messages to be sent, but for those of what programs have declared. Raises `StoreFailed`."""
    log = path.with_name(f"{path.name}-wal")
    mode = "mode=ro" if log.exists() else "immutable=1"  # without a log nobody has it open: create none
    try:
        with contextlib.closing(
            sqlite3.connect(f"file:{quote(str(path))}?{mode}", uri=True, timeout=TIMEOUT)
        ) as connection:
            return [Unsent(Role(role), *rest) for role, *rest in connection.execute(_QUERY)]
    except (sqlite3.Error, ValueError) as error:
        raise StoreFailed(f"{path}: cannot be read: {error}") from error
