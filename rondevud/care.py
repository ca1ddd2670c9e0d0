"""Looking at and copying the store of a running daemon, as the methods of the socket see it (`rondevud.ipc.ports.Care`)."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

from rondevud.doctor import as_row
from rondevud.errors import RequestError, StoreError
from rondevud.store.backup import BackupExists, back_up
from rondevud.store.examination import Examination, ExamineSlice, Finding
from rondevud.store.sqlite import SqliteStore

Data = dict[str, Any]


class Care:
    """Of one store. Both methods end with the task that runs them."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self._turn = asyncio.Lock()

    async def examine(self) -> list[Data]:
        """What is not as it should be, in slices between commits; see `rondevud.doctor.as_row`. One at a time.

        What only SQLite itself can find needs the daemon to be stopped.
        """
        findings: list[Finding] = []
        async with self._turn:
            examination = Examination()
            while (found := await self._store.execute(ExamineSlice(examination))) is not None:
                findings += found
        return [as_row(finding) for finding in findings]

    async def back_up(self, path: str, *, force: bool) -> Data:
        """Copy the store as it is now into a new file: ``{path, bytes}``. One at a time.

        Raises ``bad_params``, ``file_exists`` (without `force`) and ``backup_failed``.
        """
        target = Path(path)
        if not target.is_absolute():
            raise RequestError("bad_params", f"{path!r} is no absolute path")
        async with self._turn:
            cancelled = threading.Event()
            work = asyncio.create_task(
                asyncio.to_thread(back_up, self._store.path, target, force=force, cancelled=cancelled), name="backup"
            )
            try:
                size = await asyncio.shield(work)
            except BackupExists as error:
                raise RequestError("file_exists", str(error)) from error
            except StoreError as error:
                raise RequestError("backup_failed", str(error)) from error
            except asyncio.CancelledError:
                cancelled.set()
                await asyncio.wait({work})
                raise
        return {"path": path, "bytes": size}
