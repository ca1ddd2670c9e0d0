"""The messages of a file transfer: what they carry, how they are packed, what is no such message. No I/O.

docs/files.md describes them for other implementations. The sender says `Offer`, `Chunk`, `End` and `Cancel`, the receiver
`Resume`, `Progress`, `Done`, `Refused`, `Unknown` and `Lost`; all but the last carry the id of their transfer.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import msgpack

CHUNK: Final = 128 * 1024
"""Bytes of a file in one message: few enough that a broken link costs little, many enough that stores and links keep up."""

OVERHEAD: Final = 256
"""What packing a chunk adds to it at most, in bytes."""

WINDOW: Final = 4 * 1024 * 1024
"""Bytes that a sender sends beyond what the receiver has on its disk: all that ever lies in the queues of both daemons."""

LARGEST: Final = 2**63 - 1
"""Bytes of a file: what an offset of Linux can say."""

NAME_BYTES: Final = 4096
TEXT_BYTES: Final = 1024

DISK_FULL = "disk_full"
WRITE_FAILED = "write_failed"
TOO_MANY = "too_many"
TOO_LARGE = "too_large"
HASH = "hash"
BEYOND = "beyond_end"
CONFLICT = "conflict"

RESUMABLE = frozenset({DISK_FULL, WRITE_FAILED, TOO_MANY})
"""Reasons for refusing that may pass: what was received is kept, and the same offer goes on from there."""


class NotAMessage(Exception):
    """What came is no message of a file transfer; the text says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Offer:
    """Begins a transfer, or goes on with it."""

    id: bytes
    run: bytes
    """Drawn by each run of the sending program; its answers carry it."""
    name: str
    size: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of the file."""

    id: bytes
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class End:
    """Everything was sent: check it."""

    id: bytes


@dataclass(frozen=True, slots=True)
class Cancel:
    """The file is not what was offered any more: forget it."""

    id: bytes


@dataclass(frozen=True, slots=True)
class Resume:
    """Send from there on; answers an offer, and anything behind a hole."""

    id: bytes
    run: bytes
    received: int
    chunk: int
    """The longest piece that is taken."""


@dataclass(frozen=True, slots=True)
class Progress:
    """So many bytes are on the receiver's disk."""

    id: bytes
    run: bytes
    received: int


@dataclass(frozen=True, slots=True)
class Done:
    """The hash is right, and the file has its name."""

    id: bytes
    run: bytes
    name: str
    """The name it got."""


@dataclass(frozen=True, slots=True)
class Refused:
    """It is not taken (any further)."""

    id: bytes
    run: bytes
    why: str
    text: str
    """The same for people."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """A piece or an end of something that was never offered here, or was given up: offer it again."""

    id: bytes


@dataclass(frozen=True, slots=True)
class Lost:
    """Messages were lost on their way here, perhaps an offer: offer again whatever is under way."""


Request: TypeAlias = Offer | Chunk | End | Cancel
Answer: TypeAlias = Resume | Progress | Done | Refused | Unknown | Lost
Message: TypeAlias = Request | Answer

KINDS: dict[str, type[Message]] = {
    kind.__name__.lower(): kind for kind in (Offer, Chunk, End, Cancel, Resume, Progress, Done, Refused, Unknown, Lost)
}


def _bytes_of(length: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, bytes) and len(value) == length


def _text_upto(length: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and len(value.encode(errors="surrogatepass")) <= length


def _number_from(least: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= LARGEST


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "id": _bytes_of(16),
    "run": _bytes_of(8),
    "sha256": _bytes_of(32),
    "name": _text_upto(NAME_BYTES),
    "why": _text_upto(64),
    "text": _text_upto(TEXT_BYTES),
    "size": _number_from(0),
    "offset": _number_from(0),
    "received": _number_from(0),
    "chunk": _number_from(1),
    "data": lambda value: isinstance(value, bytes) and bool(value),
}


def pack(message: Message) -> bytes:
    """A map of the message's fields, and `kind`."""
    fields = {field.name: getattr(message, field.name) for field in dataclasses.fields(message)}
    packed: bytes = msgpack.packb({"kind": type(message).__name__.lower(), **fields})
    return packed


def parse(data: str | bytes) -> Message:
    """The message that `data` is; keys that nobody knows are passed over. Raises `NotAMessage`."""
    if isinstance(data, str):
        raise NotAMessage("text where a message of a file transfer is binary")
    try:
        fields = msgpack.unpackb(data)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise NotAMessage(f"no msgpack: {error or type(error).__name__}") from error
    if not isinstance(fields, dict):
        raise NotAMessage(f"a {type(fields).__name__} where a map is due")
    kind = fields.get("kind")
    cls = KINDS.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise NotAMessage(f"of unknown kind {str(kind)[:40]!r}")
    names = [field.name for field in dataclasses.fields(cls)]
    for name in names:
        if not _CHECKS[name](fields.get(name)):
            raise NotAMessage(f"{kind} without a valid {name}")
    return cls(**{name: fields[name] for name in names})


def transfer_id(name: str, size: int, sha256: bytes) -> bytes:
    """The same for the same file, so that another run of the sender goes on where the last one stopped."""
    facts: bytes = msgpack.packb([name, size, sha256])
    return hashlib.sha256(b"rondevu file" + facts).digest()[:16]
