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
