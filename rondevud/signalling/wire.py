"""Reading the members of a signalling server's answers; what is not there, or not of its type, is named."""

from __future__ import annotations

from typing import Any

from rondevud.errors import SignallingGarbled
from rondevud.signalling.base import Candidate

MAX_TIME = 10**14
"""Milliseconds since 1970 that still are a time (the year 5138)."""

MAX_IDENTIFIER = 256
"""Characters of an id or a credential; those of known servers have 32 to 80."""

MAX_CANDIDATE = 1_024
"""Characters of a candidate; those of browsers have about 100 to 250."""


class Members:
    """A JSON map of an answer. `where` begins the messages of `SignallingGarbled`, which every method may raise."""

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise SignallingGarbled(f"{where}: expected a JSON map, got {_kind(value)}")
        self._members = value
        self._where = where

    def has(self, name: str) -> bool:
        return self._members.get(name) is not None

    def _get(self, name: str, kind: type, expected: str) -> Any:
        if name not in self._members:
            raise SignallingGarbled(f"{self._where}: member {name} is missing")
        value = self._members[name]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise SignallingGarbled(f"{self._where}: member {name} is {_kind(value)} instead of {expected}")
        return value

    def text(self, name: str) -> str:
        return self._text(name).encode("utf-8", "replace").decode()  # JSON can carry half a character, nothing else can

    def identifier(self, name: str) -> str:
        """A text that can stand in a URL, a header and a log: an id or a credential."""
        value = self._text(name)
        if len(value) > MAX_IDENTIFIER:
            raise SignallingGarbled(f"{self._where}: member {name} is longer than {MAX_IDENTIFIER} characters")
        if not (value.isascii() and value.isprintable()) or " " in value:
            raise SignallingGarbled(f"{self._where}: member {name} has characters that no id has")
        return value

    def _text(self, name: str) -> str:
        value: str = self._get(name, str, "a text")
        if not value:
            raise SignallingGarbled(f"{self._where}: member {name} is empty")
        return value

    def flag(self, name: str) -> bool:
        value: bool = self._get(name, bool, "true or false")
        return value

    def seconds(self, name: str) -> float:
        """A time, milliseconds on the wire."""
        value: int = self._get(name, int, "a time in milliseconds")
        if not 0 < value < MAX_TIME:
            raise SignallingGarbled(f"{self._where}: member {name} is {value}, which is no time in milliseconds")
        return value / 1000

    def items(self, name: str) -> list[Members]:
        values: list[Any] = self._get(name, list, "a list")
        return [Members(value, f"{self._where}: {name}[{index}]") for index, value in enumerate(values)]

    def value(self, name: str) -> Any:
        return self._members.get(name)


def _kind(value: Any) -> str:
    if value is None:
        return "null or not JSON"
    names = {bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list", dict: "a map"}
    return names[type(value)]


def candidate_to_json(candidate: Candidate) -> dict[str, Any]:
    """As browsers write it."""
    return {
        "candidate": candidate.candidate,
        "sdpMid": candidate.sdp_mid,
        "sdpMLineIndex": candidate.sdp_m_line_index,
    }


def candidate_from_json(value: Any) -> Candidate | None:
    """None for what is not a candidate: the server relays whatever a peer posts, and an empty one marks the end."""
    if not isinstance(value, dict):
        return None
    text, mid, index = value.get("candidate"), value.get("sdpMid"), value.get("sdpMLineIndex")
    if not isinstance(text, str) or not text or not isinstance(mid, str | None):
        return None
    if len(text) > MAX_CANDIDATE or not (text.isprintable() and (mid or "").isprintable()):
        return None
    if isinstance(index, bool) or not isinstance(index, int | None):
        return None
    return Candidate(text, mid, index)
