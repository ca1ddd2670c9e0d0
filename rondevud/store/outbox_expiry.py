"""Expiry in the outbox in SQLite: what is too old, and when the next message will be."""

from __future__ import annotations

from collections.abc import Iterable
from heapq import merge
from operator import itemgetter
from typing import TypeAlias

from rondevud import records
from rondevud.records import Reason, Stamp
from rondevud.store.base import Taken, expiry
from rondevud.store.outbox_rows import TAKEN, Age, OutboxRows, first_messages
from rondevud.store.packs import OutPack
from rondevud.store.rows import is_number

_DATED = ("outbox", "outbox_packs")
"""Tables of what can expire."""

_Expired: TypeAlias = tuple[float, int, Taken | OutPack]
"""When it expired, and its number."""


class OutboxExpiry:
    """The table ``boots``, and the operations `Expire` and `FindExpiry`. Each is inside a transaction."""

    def __init__(self, rows: OutboxRows) -> None:
        self._rows = rows
        self._connection = rows.connection
        self._boots: dict[str, int] = {}

    def clear(self) -> None:
        """Forget what a rollback may have undone."""
        self._boots.clear()

    def age(self, operation: records.Put) -> Age:
        """When the messages of `operation` expire."""
        if operation.max_age is None:
            return None, None, None
        stamp, max_age = operation.stamp, operation.max_age
        boot = self._boot(stamp.boot)
        return boot, float(expiry(stamp.boottime, max_age)), float(expiry(stamp.wall, max_age))

    def _boot(self, boot: str) -> int:
        """The small id of a boot, given at its first use."""
        if (number := self._boots.get(boot)) is None:
            self._connection.execute("INSERT OR IGNORE INTO boots (boot) VALUES (?)", (boot,))
            number = self._connection.execute("SELECT id FROM boots WHERE boot = ?", (boot,)).fetchone()[0]
            self._boots[boot] = number
        return number

    def expire(self, operation: records.Expire) -> records.RemoveResult:
        channel = self._rows.channels.get(operation.channel, change=True)
        stamp, number = operation.stamp, operation.channel
        boot = self._boot(stamp.boot)
        limit = self._rows.limits.slice_rows
        taken = _most(self._expired(number, boot, "boot_expiry", stamp.boottime), limit)
        left = limit - sum(item.messages for item in taken)
        if left:
            old = [self._expired(number, other, "wall_expiry", stamp.wall) for other in self._other_boots(number, boot)]
            taken += _most(merge(*old, key=itemgetter(0, 1)), left)
        removed = self._rows.take(channel, sorted(taken), Reason.EXPIRED)
        return self._rows.answer(number, removed, more=self._next_expiry(number, stamp) == 0.0)

    def find_expiry(self, operation: records.FindExpiry) -> records.NextExpiry:
        self._rows.channels.get(operation.channel)
        return records.NextExpiry(self._next_expiry(operation.channel, operation.stamp))

    def _other_boots(self, channel: int, boot: int) -> list[int]:
        """Boots other than `boot` from which messages that can expire are held; each is one look into the index."""
        boots: set[int] = set()
        for table in _DATED:
            last = -1
            while True:
                row = self._connection.execute(
                    f"SELECT min(boot) FROM {table} WHERE channel = ? AND boot > ?",  # noqa: S608 - constants
                    (channel, last),
                ).fetchone()
                if row[0] is None:
                    break
                last = row[0]
                boots.update({last} if is_number(last) else ())  # damage leaves anything
        return sorted(boots - {boot})

    def _expired(self, channel: int, boot: int, column: str, moment: float) -> list[_Expired]:
        """What has expired of one boot, the earliest first; more than one operation takes."""
        limit = self._rows.limits.slice_rows
        rows = self._connection.execute(
            f"SELECT {column}, {TAKEN} FROM outbox WHERE channel = ? AND boot = ? AND {column} <= ?"  # noqa: S608 - constants
            f" ORDER BY {column}, seq LIMIT ?",
            (channel, boot, moment, limit),
        ).fetchall()
        packs = self._rows.packs.expired(channel, boot, column, moment, limit)
        found = [(row[0], row[1], Taken(*row[1:])) for row in rows]
        return sorted([*found, *((getattr(pack, column), pack.seq, pack) for pack in packs)], key=itemgetter(0, 1))

    def _next_expiry(self, channel: int, stamp: Stamp) -> float | None:
        boot = self._boot(stamp.boot)
        waits = []
        for table in _DATED:
            first = self._connection.execute(
                f"SELECT min(boot_expiry) FROM {table} WHERE channel = ? AND boot = ?",  # noqa: S608 - constants
                (channel, boot),
            ).fetchone()[0]
            waits += [] if first is None else [first - stamp.boottime]
            for other in self._other_boots(channel, boot):
                moment = self._connection.execute(
                    f"SELECT min(wall_expiry) FROM {table} WHERE channel = ? AND boot = ?",  # noqa: S608 - constants
                    (channel, other),
                ).fetchone()[0]
                waits += [] if moment is None else [moment - stamp.wall]
        return max(0.0, min(waits)) if waits else None


def _most(expired: Iterable[_Expired], messages: int) -> list[Taken]:
    """The first so many messages."""
    taken: list[Taken] = []
    for _, _, item in expired:
        if not messages:
            break
        taken.append(first_messages(item, min(messages, item.messages)))
        messages -= taken[-1].messages
    return taken
