"""A table that is redrawn in place, with lines that scroll away above it."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.live import Live
from rich.table import Table
from rich.text import Text


class LiveTable:
    """For a terminal; a context manager. The last table stays."""

    def __init__(self) -> None:
        self._live = Live(refresh_per_second=8)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()

    def tell(self, text: str) -> None:
        """A line that stays."""
        self._live.console.print(Text(text))

    def show(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """The table, in place of the one before."""
        # A line for each column: there are more of those than rows, and a terminal may be 80 characters wide.
        table = Table(header_style="bold", border_style="dim")
        for index, heading in enumerate([columns[0], *(row[0] for row in rows)]):
            table.add_column(heading, justify="right" if index else "left")
        for index, column in enumerate(columns[1:], 1):
            table.add_row(column, *(Text(row[index]) for row in rows))
        self._live.update(table)
