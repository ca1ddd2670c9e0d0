"""What the programs under test say to each other: content that can be told from its number alone."""

from __future__ import annotations

import hashlib

LARGE = 200 * 1024
"""Bytes of every 500th message: longer than a frame of the link, and than what the engine's buffer may hold."""


def payload(sender: str, number: int) -> str | bytes:
    """Message `number` (from 1) of `sender`; every third one is binary, every 500th is `LARGE`."""
    head = f"{sender} {number} "
    seed = hashlib.sha256(head.encode()).hexdigest()
    text = head + seed * (LARGE // 64 if number % 500 == 250 else 1 + number % 7)
    return text.encode() if number % 3 == 0 else text


def number_of(data: str | bytes) -> int:
    """The number in a message."""
    head = data[:64] if isinstance(data, str) else data[:64].decode()
    return int(head.split()[1])


def digest(data: str | bytes) -> str:
    """A short word for content and kind, text or binary."""
    kind = "t" if isinstance(data, str) else "b"
    return kind + hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()[:16]


LABELS = ("one", "two", "three")
AHEAD = 12
"""The labels of short streams, and how many messages are sent there beyond what was received."""

FRAGMENTED = 40 * 1024
"""Bytes of every tenth message of a short stream: some pieces of the link, and no more than they must be."""


def stream_payload(sender: str, label: str, number: int) -> str | bytes:
    """Message `number` (from 1) of a short stream; every third one is binary, every tenth `FRAGMENTED`."""
    head = f"{sender} {number} {label} "
    seed = hashlib.sha256(head.encode()).hexdigest()
    text = head + seed * (FRAGMENTED // 64 if number % 10 == 5 else 1 + number % 5)
    return text.encode() if number % 3 == 0 else text
