"""Progress on a terminal."""

from __future__ import annotations

import sys
import threading
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from rondevud.ctl.files.progress import Facts
from rondevud.ctl.output import printable


class Bars:
    """One bar for each file under way, on standard error; what is done scrolls away above."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._tasks: dict[bytes, TaskID] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, key: bytes, facts: Facts) -> None:
        name = printable(facts["name"])
        with self._lock:
            if key not in self._tasks:
                self._tasks[key] = self._progress.add_task(name, total=None)
            self._progress.update(
                self._tasks[key],
                description=f"{name}: {facts['state']}",
                completed=facts["received"],
                total=facts["size"],
            )

    def end(self, key: bytes, facts: Facts, line: str) -> None:
        del facts
        with self._lock:
            task = self._tasks.pop(key, None)
            if task is not None:
                self._progress.remove_task(task)
        if sys.stdout.isatty():
            self._progress.console.print(Text(line))
        else:
            print(line, flush=True)

    def tell(self, text: str) -> None:
        self._progress.console.print(Text(f"rondevuctl: {text}"))
