"""Small pieces to fill a store with."""

from __future__ import annotations

from rondevud.records import (
    CreateChannel,
    Durability,
    OutItem,
    Payload,
    Put,
    Receive,
    Role,
    SaveSession,
    SessionRecord,
    Stamp,
)
from rondevud.store.base import Limits, Store

EPOCH, PEER = b"epoch-me", b"epoch-pe"
NOW = Stamp("boot-1", 100.0, 1_000_000.0)
SMALL = Limits(slice_rows=4, page_messages=5, page_bytes=100)


def later(seconds: float, stamp: Stamp = NOW) -> Stamp:
    return Stamp(stamp.boot, stamp.boottime + seconds, stamp.wall + seconds)


def session(connection_id: str = "conn-1", **fields) -> SessionRecord:
    return SessionRecord(connection_id, Role.SERVICE, "alice/chat@1", b"s" * 16, b"t" * 32, **fields)


async def put_singly(store: Store, channel: int, *payloads: Payload, first_seq: int = 1, **options) -> None:
    """Messages that each get a row of their own."""
    for number, payload in enumerate(payloads, first_seq):
        await store.execute(Put(channel, (payload,), NOW, first_seq=number, **options))


async def receive_singly(store: Store, channel: int, *items: OutItem, expect_next: int = 0) -> None:
    """Items that each get a row of their own; a removal ends at its `next`."""
    epoch, expected = (PEER, expect_next) if expect_next else (b"", 0)
    for item in items:
        behind = getattr(item, "next", item[0] + 1)
        await store.execute(Receive(channel, epoch, expected, PEER, behind, (item,), NOW))
        epoch, expected = PEER, behind


async def make_channel(store: Store, label: str = "main", connection_id: str = "conn-1") -> int:
    await store.execute(SaveSession(session(connection_id)))
    record = await store.execute(CreateChannel(connection_id, label, Durability.DISK, EPOCH))
    return record.id
