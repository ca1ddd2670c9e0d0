"""What name a file gets that somebody else has named. No I/O."""

from __future__ import annotations

import re
import unicodedata

LONGEST = 200
"""Bytes of a name; file systems take 255, and a number has to fit."""

NAMELESS = "file"

_SUFFIX = re.compile(r"(?:\.tar)?\.[^. ]{1,20}$")


def safe_name(name: str) -> str:
    """A name for a visible file in one directory, as near to `name` as is safe.

    The last part of a path of whatever system; no control characters, nothing invisible or that turns the direction of
    writing round; no dot in front and no dot or blank behind; at most `LONGEST` bytes of UTF-8, the suffix kept; `NAMELESS`
    where nothing is left.
    """
    last = re.split(r"[/\\]", name.rstrip("/\\"))[-1]
    shown = "".join(" " if char.isspace() else char for char in last)
    shown = "".join(char for char in shown if char == " " or unicodedata.category(char)[0] not in "CZ")
    shown = _strip(shown)
    suffix = suffix_of(shown)
    stem = shown.removesuffix(suffix)
    short = _cut(stem, LONGEST - len(suffix.encode()))
    return _strip(short + suffix) or NAMELESS


def _strip(name: str) -> str:
    return name.lstrip(". ").rstrip(". ")


def _cut(text: str, length: int) -> str:
    return text.encode()[:length].decode(errors="ignore")


def suffix_of(name: str) -> str:
    """``.txt``, ``.tar.gz``; empty without one."""
    found = _SUFFIX.search(name, 1)
    return found[0] if found else ""


def numbered(name: str, number: int) -> str:
    """``name.txt``, ``name (2).txt``, …"""
    if number == 1:
        return name
    suffix = suffix_of(name)
    return f"{name.removesuffix(suffix)} ({number}){suffix}"
