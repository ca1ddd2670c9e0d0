"""Small pieces to fill a store with."""

from __future__ import annotations

from rondevud.records import CreateChannel, Durability, Role, SaveSession, SessionRecord, Stamp
from rondevud.store.base import Limits, Store

EPOCH, PEER = b"epoch-me", b"epoch-pe"
NOW = Stamp("boot-1", 100.0, 1_000_000.0)
SMALL = Limits(slice_rows=4, page_messages=5, page_bytes=100)


def later(seconds: float, stamp: Stamp = NOW) -> Stamp:
    return Stamp(stamp.boot, stamp.boottime + seconds, stamp.wall + seconds)


def session(connection_id: str = "conn-1", **fields) -> SessionRecord:
    return SessionRecord(connection_id, Role.SERVICE, "alice/chat@1", b"s" * 16, b"t" * 32, **fields)


async def make_channel(store: Store, label: str = "main", connection_id: str = "conn-1") -> int:
    await store.execute(SaveSession(session(connection_id)))
    record = await store.execute(CreateChannel(connection_id, label, Durability.DISK, EPOCH))
    return record.id
