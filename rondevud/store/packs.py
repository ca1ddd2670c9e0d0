"""Messages that were stored together, many to a row: the tables ``outbox_packs`` and ``inbox_packs``.

A row costs SQLite as much as some hundred bytes, so small messages with consecutive numbers share one. A pack's checksum
covers all but the payloads; each payload has one of its own, so that a damaged message takes no other with it. Whatever
concerns a part of a pack cuts it first: afterwards each pack is wholly inside or wholly outside of what is concerned, and
most operations need not read payloads at all.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple, TypeVar
from zlib import crc32

from rondevud.records import Payload
from rondevud.store.base import encode_text, not_unicode

CLOSING, TEXT, BINARY = 0, 1, 2
"""Kinds of messages, in rows and packs."""

PACK_MESSAGES = 128
PACK_BYTES = 16 * 1024
"""Messages and payload bytes of one pack at most; a larger message has a row of its own. The first is part of the format: no
pack that some version wrote may hold more."""

_OUT = struct.Struct("<qqqqqqqddd")
_IN = struct.Struct("<qqqqqdH")


class Encoded(NamedTuple):
    """Messages as they are stored."""

    kinds: Sequence[int]
    datas: Sequence[bytes]

    def part(self, first: int, behind: int) -> Encoded:
        return Encoded(self.kinds[first:behind], self.datas[first:behind])


def encode_payload(payload: Payload) -> tuple[int, bytes]:
    """Kind and bytes of a payload. Raises `StoreConflict` for text that UTF-8 cannot carry."""
    if payload is None:
        return CLOSING, b""
    if isinstance(payload, str):
        return TEXT, encode_text(payload)
    return BINARY, payload


def decode_payload(kind: int, data: bytes) -> Payload:
    """The payload of an intact message."""
    if kind == CLOSING:
        return None
    return data.decode() if kind == TEXT else data


def encode(payloads: Sequence[Payload]) -> Encoded:
    """Raises `StoreConflict` for text that UTF-8 cannot carry."""
    types = set(map(type, payloads))
    if types == {bytes}:
        return Encoded([BINARY] * len(payloads), payloads)  # type: ignore[arg-type]
    if types == {str}:
        try:
            return Encoded([TEXT] * len(payloads), list(map(str.encode, payloads)))  # type: ignore[arg-type]
        except UnicodeEncodeError as error:
            raise not_unicode(error) from None
    pairs = [encode_payload(payload) for payload in payloads]
    return Encoded([kind for kind, _ in pairs], [data for _, data in pairs])


def runs(messages: Encoded) -> Iterator[tuple[int, int]]:
    """Ranges ``(first, behind)`` of messages that share a row; the closing one, which is the last, has its own."""
    lengths = list(map(len, messages.datas))
    end = len(lengths) - (bool(lengths) and messages.kinds[-1] == CLOSING)
    first = 0
    while first < end:
        behind = min(first + PACK_MESSAGES, end)
        if sum(lengths[first:behind]) > PACK_BYTES:
            fitting = sum(1 for size in accumulate(lengths[first:behind]) if size <= PACK_BYTES)
            behind = first + max(1, fitting)
        yield first, behind
        first = behind
    if end < len(lengths):
        yield end, len(lengths)


class Body(NamedTuple):
    """What a pack says of its messages: both with 4 bytes for each of them."""

    sizes: bytes
    """Twice the length of a payload, and 1 more for a binary one."""
    checks: bytes
    """CRC-32 of each payload."""


def _body(messages: Encoded) -> Body:
    count = len(messages.datas)
    lengths = map(len, messages.datas)
    if BINARY not in messages.kinds or TEXT not in messages.kinds:
        binary = int(TEXT not in messages.kinds)
        sizes = [2 * length + binary for length in lengths]
    else:
        sizes = [2 * length + (kind == BINARY) for kind, length in zip(messages.kinds, lengths, strict=True)]
    return Body(struct.pack(f"<{count}I", *sizes), struct.pack(f"<{count}I", *map(crc32, messages.datas)))


def _numbers(count: int, data: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{count}I", data)


def _slices(pack: OutPack | InPack) -> list[bytes]:
    """The bytes that stand where each message of an intact pack should: fewer where the payload is too short."""
    stored: Any = pack.payload
    payload = stored if isinstance(stored, bytes) else b""
    ends = list(accumulate(sizes(pack)))
    return [payload[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def payloads(pack: OutPack | InPack) -> list[Payload] | None:
    """The payloads of an intact pack; None when one of them is damaged."""
    stored: Any = pack.payload
    if len(stored if isinstance(stored, bytes) else b"") < pack.size:
        return None
    datas = _slices(pack)
    if tuple(map(crc32, datas)) != _numbers(pack.messages, pack.checks):
        return None
    coded = _numbers(pack.messages, pack.sizes)
    return [data if size & 1 else data.decode() for data, size in zip(datas, coded, strict=True)]


class Message(NamedTuple):
    """One of a pack; what is not `whole` is not what was written."""

    kind: int
    data: bytes
    whole: bool


class OutPack(NamedTuple):
    """A row of ``outbox_packs``: messages ``seq … seq + messages - 1`` of one `Put`."""

    channel: int
    seq: int
    messages: int
    size: int
    producer: int
    producer_seq: int
    boot: int | None
    boot_expiry: float | None
    wall_expiry: float | None
    accepted: float
    sizes: bytes
    checks: bytes
    crc: int
    payload: bytes

    @property
    def first(self) -> int:
        return self.seq

    @property
    def behind(self) -> int:
        return self.seq + self.messages

    def moved(self, offset: int) -> OutPack:
        return self._replace(seq=self.seq + offset, producer_seq=self.producer_seq + offset)

    def checksum(self) -> int:
        """CRC-32 of all but the payloads."""
        boot, boot_expiry, wall_expiry = self[6:9]
        ages = (boot or 0, boot_expiry or 0.0, wall_expiry or 0.0)
        return crc32(self.checks, crc32(self.sizes, crc32(_OUT.pack(*self[:6], *ages, self.accepted))))


class InPack(NamedTuple):
    """A row of ``inbox_packs``: rows ``row … row + messages - 1`` of an inbox, consecutive numbers from `seq` on."""

    channel: int
    row: int
    messages: int
    size: int
    epoch: bytes
    seq: int
    enqueued: float
    sizes: bytes
    checks: bytes
    crc: int
    payload: bytes

    @property
    def first(self) -> int:
        return self.row

    @property
    def behind(self) -> int:
        return self.row + self.messages

    def moved(self, offset: int) -> InPack:
        return self._replace(row=self.row + offset, seq=self.seq + offset)

    def checksum(self) -> int:
        """CRC-32 of all but the payloads."""
        head = _IN.pack(*self[:4], self.seq, self.enqueued, len(self.epoch))
        return crc32(self.checks, crc32(self.sizes, crc32(self.epoch, crc32(head))))


Pack = TypeVar("Pack", OutPack, InPack)


def sealed(pack: Pack, messages: Encoded) -> Pack:
    """`pack` with these messages in it."""
    body, payload = _body(messages), b"".join(messages.datas)
    return _seal(pack._replace(messages=len(messages.datas), size=len(payload), **body._asdict(), payload=payload))


def _seal(pack: Pack) -> Pack:
    return pack._replace(crc=pack.checksum())


def intact(pack: OutPack | InPack) -> bool:
    """Whether all but the payloads is as it was written."""
    try:
        return pack.checksum() == pack.crc and 0 < pack.messages <= PACK_MESSAGES
    except (struct.error, TypeError):  # a column that holds another type now
        return False


def sizes(pack: OutPack | InPack) -> list[int]:
    """Payload bytes of each message of an intact pack."""
    return [size >> 1 for size in _numbers(pack.messages, pack.sizes)]


def contents(pack: OutPack | InPack) -> list[Message]:
    """The messages of an intact pack. Each has as many bytes as it was written with, so that counts stay true."""
    coded, checks = _numbers(pack.messages, pack.sizes), _numbers(pack.messages, pack.checks)
    found = []
    for data, size, check in zip(_slices(pack), coded, checks, strict=True):
        length = size >> 1
        whole = len(data) == length and crc32(data) == check
        found.append(Message(BINARY if size & 1 else TEXT, data.ljust(length, b"\0"), whole))
    return found


def claimed(pack: OutPack | InPack) -> int:
    """How many messages a pack that is not intact held: what two of its columns agree on, else as many as can be."""
    columns: tuple[Any, ...] = (pack.sizes, pack.checks)
    counts = [pack.messages, *(len(column) / 4 for column in columns if isinstance(column, bytes))]
    agreed = [count for count in counts if counts.count(count) > 1]
    return int(agreed[0]) if agreed and 0 < agreed[0] <= PACK_MESSAGES else PACK_MESSAGES


def heaviness(pack: OutPack | InPack) -> int:
    """Payload bytes of a pack that is not intact."""
    payload: Any = pack.payload
    if isinstance(payload, bytes):
        return len(payload)
    size: Any = pack.size
    return size if isinstance(size, int) and 0 <= size <= PACK_BYTES else 0


def part(pack: Pack, first: int, behind: int) -> Pack:
    """Messages ``first … behind - 1`` of an intact pack, counted from 0, as a pack of their own."""
    ends = [0, *accumulate(sizes(pack))]
    stored: Any = pack.payload
    payload = stored[ends[first] : ends[behind]] if isinstance(stored, bytes) else b""
    cut = slice(4 * first, 4 * behind)
    moved = pack.moved(first)._replace(
        messages=behind - first,
        size=ends[behind] - ends[first],
        sizes=pack.sizes[cut],
        checks=pack.checks[cut],
        payload=payload,
    )
    return _seal(moved)


def columns(kind: type[OutPack | InPack]) -> str:
    return ", ".join(kind._fields)


def heads(kind: type[OutPack | InPack]) -> str:
    """The columns without the payloads, which stand last, so that SQLite need not read them."""
    return columns(kind).replace(", payload", ", x''")


def placeholders(kind: type[Any]) -> str:
    return ", ".join("?" * len(kind._fields))
