"""The conformance vectors of docs/: JSON in which ``{"$bin": "00ff"}`` stands for binary."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"


def load(name: str) -> Any:
    """The vectors in that file of docs/."""
    return json.loads((DOCS / name).read_text(encoding="utf-8"))


def revive(value: Any) -> Any:
    """The value that a vector shows."""
    if isinstance(value, list):
        return [revive(item) for item in value]
    if isinstance(value, dict):
        if value.keys() == {"$bin"}:
            return bytes.fromhex(value["$bin"])
        return {key: revive(item) for key, item in value.items()}
    return value


def sections(name: str) -> dict[str, str]:
    """The text under each heading of a document, by the heading's words; deeper headings are part of it."""
    found: dict[str, str] = {}
    open_: list[tuple[int, str]] = []
    for line in (DOCS / name).read_text(encoding="utf-8").splitlines():
        heading = re.match(r"(#+) (.+)", line)
        if heading:
            open_ = [(level, words) for level, words in open_ if level < len(heading[1])]
            open_.append((len(heading[1]), heading[2]))
            found[heading[2]] = ""
        else:
            for _, words in open_:
                found[words] += line + "\n"
    return found


def rows(section: str, header: str) -> list[list[str]]:
    """The cells of the tables in a section whose first heading cell is `header`, without backquotes around a whole cell."""
    table: list[list[str]] = []
    inside = False
    for line in section.splitlines():
        if not line.startswith("|"):
            inside = False
            continue
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not inside and cells[0] == header:
            inside = True
        elif inside and not set(line) <= set("|-: "):
            table.append([re.sub(r"^`([^`]*)`$", r"\1", cell) for cell in cells])
    return table
