"""The text side of the configuration: where a key stands in a file, and how a mistake is told.

Knows nothing of the models: a *location* is a tuple of keys and list indices, as in ``("service", 1, "queue", "overflow")``.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

Location: TypeAlias = tuple[str | int, ...]

_KEY = r"""(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')"""
_DOTTED = rf"{_KEY}(?:\s*\.\s*{_KEY})*"
_HEADER = re.compile(rf"\s*(\[\[?)\s*({_DOTTED})\s*\]")
_ASSIGNMENT = re.compile(rf"\s*({_DOTTED})\s*=")
_LONGEST_VALUE = 60
_SECRETS = frozenset({"credential"})
_KINDS = {
    "bool_type": "true or false",
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "model_type": "a table",
    "tuple_type": "a list",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number from {ge} on",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number up to {le}",
    "too_short": "at least {min_length}",
}

NO_LIST = "expected a list, found a table"


class Problem(NamedTuple):
    """One mistake: where, and what about it in words for people."""

    location: Location
    text: str


def dotted(location: Location) -> str:
    """The location as people write it: ``service[1].queue.overflow``, counted from 0."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in location]
    return "".join(parts).lstrip(".")


def shown(value: Any) -> str:
    """A value as it stands in a file, shortened; containers only by their kind, since they may hold secrets."""
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, (list, tuple)):
        return "a list"
    if isinstance(value, (bytes, bytearray)):
        return "binary"
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, (str, bool)) else str(value)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 1] + "…"


def problem_of(details: Mapping[str, Any], known: Iterable[str]) -> Problem:
    """The words for one entry of pydantic's ``errors()``; `known` are the keys of the table the key stands in."""
    location: Location = details["loc"]
    kind, context, value = details["type"], details.get("ctx", {}), details["input"]
    if kind == "extra_forbidden":
        return Problem(location, "unknown key" + near_miss(str(location[-1]), known))
    if kind == "missing":
        return Problem(location, "missing")
    if kind == "value_error":
        text = str(context["error"])
    elif kind in {"literal_error", "enum"}:
        text = "expected " + context["expected"].replace("'", '"')
    elif kind in _KINDS:
        text = "expected " + _KINDS[kind].format(**context)
    else:
        text = details["msg"]
    # A mistake of a whole table speaks for itself: there is nothing to show but "a table".
    hidden = _SECRETS.intersection(location) or (kind == "value_error" and isinstance(value, Mapping))
    return Problem(location, text if hidden or not text.startswith("expected") else f"{text}, found {shown(value)}")


def near_miss(key: str, known: Iterable[str]) -> str:
    """What to say behind an unknown key: the nearest known one, else all of them."""
    candidates = sorted(known)
    near = difflib.get_close_matches(key, candidates, n=1)
    if near:
        return f'; did you mean "{near[0]}"?'
    return f"; known here: {', '.join(candidates)}" if candidates else ""


def render(problems: Iterable[Problem], source: str, toml: str = "") -> str:
    """All problems, one per line, in the order of the file: ``FILE:LINE: KEY: TEXT`` (no line without `toml`)."""
    lines = find_lines(toml)
    placed = sorted(((_line_of(problem.location, lines), problem) for problem in problems), key=lambda item: item[0])
    texts, written = [], toml.splitlines()
    for line, problem in placed:
        place = f"{source}:{line}" if line else source
        key = dotted(problem.location)
        text = problem.text + (_missing_brackets(written[line - 1]) if line and problem.text == NO_LIST else "")
        texts.append(": ".join(part for part in (place, key, text) if part))
    return "\n".join(texts)


def _missing_brackets(line: str) -> str:
    """What to say behind `NO_LIST`: how each table of a list is headed, where `line` heads a single one."""
    header = _HEADER.match(line)
    return f": there can be several, write [[{header[2]}]]" if header and header[1] == "[" else ""


def find_lines(toml: str) -> dict[Location, int]:
    """The line (from 1) of each table and key of a valid TOML text. Keys of inline tables have none of their own."""
    found: dict[Location, int] = {}
    counts: dict[Location, int] = {}
    table: Location = ()
    quote = ""
    for number, line in enumerate(toml.splitlines(), start=1):
        inside = quote
        quote = _open_quote(line, quote)
        if inside:
            continue
        if header := _HEADER.match(line):
            table = _enter(_split(header[2]), counts, listed=header[1] == "[[")
            found.setdefault(table, number)
        elif assignment := _ASSIGNMENT.match(line):
            found.setdefault((*table, *_split(assignment[1])), number)
    return found


def _line_of(location: Location, lines: Mapping[Location, int]) -> int:
    for length in range(len(location), 0, -1):
        if line := lines.get(location[:length]):
            return line
    return 0


def _enter(keys: list[str], counts: dict[Location, int], *, listed: bool) -> Location:
    """The location of a table header; `counts` holds how many elements each list of tables has so far."""
    location: Location = ()
    for index, key in enumerate(keys):
        location = (*location, key)
        if listed and index == len(keys) - 1:
            counts[location] = counts.get(location, 0) + 1
        if location in counts:
            location = (*location, counts[location] - 1)
    return location


def _split(keys: str) -> list[str]:
    return [key.strip("\"'") for key in re.findall(_KEY, keys)]


def _open_quote(line: str, quote: str) -> str:
    """Which multi-line quote is open behind this line."""
    for mark in re.findall(r'"""|' + "'''", line):
        if not quote:
            quote = mark
        elif mark == quote:
            quote = ""
    return quote
