"""Results on stdout: tables on a terminal, aligned columns elsewhere, JSON where it was asked for.

Text of peers is shown with its control characters escaped on a terminal, where they could do harm.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Without tab and line feed; with what changes the direction of writing."""

Row = Mapping[str, Any]


def is_terminal() -> bool:
    return sys.stdout.isatty()


def terminal_width() -> int:
    """Columns of the terminal; 80 where there is none, unless ``COLUMNS`` says otherwise."""
    import shutil  # noqa: PLC0415 - loads every compression there is

    return shutil.get_terminal_size().columns


def printable(text: str) -> str:
    """`text` with its control characters escaped."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def show_json(value: Any) -> None:
    """One document on one line, or indented on a terminal."""
    click.echo(_as_json(value, indent=2 if is_terminal() else None))


def show_json_line(value: Any) -> None:
    """One document of a stream of them, written at once."""
    click.echo(_as_json(value))


def _as_json(value: Any, indent: int | None = None) -> str:
    import json  # noqa: PLC0415 - most of what is shown to people needs none

    return json.dumps(value, ensure_ascii=False, indent=indent, default=_encode)


def _encode(value: Any) -> str:
    import base64  # noqa: PLC0415 - as above

    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def show_record(data: Row, *, as_json: bool) -> None:
    """One answer: its keys and values, one to a line."""
    if as_json:
        show_json(data)
        return
    show_pairs([(key, one_line(key, value)) for key, value in data.items()])


def show_rows(rows: Sequence[Row], columns: Iterable[str], *, as_json: bool, none: str) -> None:
    """Several: of the columns those that any row has. `none` is the message when there are no rows.

    On a terminal columns with nothing in them are left out, and rows that are too wide for it are shown as records.
    """
    if as_json:
        show_json(rows)
        return
    if not rows:
        click.echo(none, err=True)
        return
    chosen = [column for column in columns if any(column in row for row in rows)]
    if is_terminal():
        chosen = [column for column in chosen if any(not _is_nothing(row.get(column)) for row in rows)]
    cells = [[one_line(column, row.get(column)) for column in chosen] for row in rows]
    widths = [max(len(text) for text in texts) for texts in zip(chosen, *cells, strict=True)]
    if is_terminal() and sum(widths) + 2 * len(widths) - 2 > terminal_width():
        _show_records(chosen, cells)
        return
    heading = _aligned([column.upper() for column in chosen], widths)
    click.echo(click.style(heading, bold=True))  # plain where nobody looks
    for row in cells:
        click.echo(_aligned(row, widths))


def with_service(rows: Iterable[Row]) -> list[Row]:
    """For people: the service of a connection, whichever side it is on (the connecting one calls it its target)."""
    return [{**row, "service": row["service"] or row["target"]} if "target" in row else row for row in rows]


def _aligned(cells: list[str], widths: list[int]) -> str:
    return "  ".join(f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()


def _show_records(columns: list[str], cells: list[list[str]]) -> None:
    for number, row in enumerate(cells):
        if number:
            click.echo()
        show_pairs(list(zip(columns, row, strict=True)))


def show_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    """Names and texts, one to a line, the texts below each other."""
    width = max((len(name) for name, _ in pairs), default=0)
    for name, text in pairs:
        click.echo(f"{name:{width}}  {text}")


def _is_nothing(value: Any) -> bool:
    return value is None or value in ("", [], {})


def one_line(key: str, value: Any) -> str:
    """A value in one line; nothing is a dash. Keys ending in ``_at`` or ``_since`` are times."""
    if _is_nothing(value):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float) and key.endswith(("_at", "_since")):
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value))
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping | list | tuple):
        return printable(_compact(value))
    return printable(str(value)).replace("\n", "\\n").replace("\t", "\\t")


def span(seconds: float) -> str:
    """A length of time, to three digits or so."""
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = seconds / 60
    if minutes < 120:
        return f"{minutes:.3g} min"
    hours = minutes / 60
    return f"{hours:.3g} h" if hours < 48 else f"{hours / 24:,.1f} d"


def _compact(value: Any) -> str:
    """Something nested: labels or names where it consists of those, else JSON."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    if isinstance(value, list) and all(isinstance(item, Mapping) and "label" in item for item in value):
        return ", ".join(str(item["label"]) for item in value)
    if isinstance(value, Mapping) and not any(isinstance(item, Mapping | list) for item in value.values()):
        return ", ".join(f"{key} {one_line(key, item)}" for key, item in value.items())
    return _as_json(value)
