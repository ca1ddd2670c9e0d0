"""A stage whose daemons are forked from one process that has loaded their modules: for tests that start them many times.

Each is a process of its own with its own descriptors, environment and failpoints; only importing is not done again.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self, cast

from tests.acceptance.processes import PATIENCE, PROGRAMS, ROOT, Process, Stage

RUN = ["-m", "rondevud", "run"]


class Child:
    """A forked daemon, as `asyncio.subprocess.Process` has it, without standard input and with nothing on its output."""

    stdin = None

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.stdout = asyncio.StreamReader()
        self.stdout.feed_eof()
        self._dead = asyncio.Event()

    def die(self, code: int) -> None:
        self.returncode = code
        self._dead.set()

    async def wait(self) -> int:
        await self._dead.wait()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        if self.returncode is not None:
            raise ProcessLookupError
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class QuickStage(Stage):
    """A `Stage`; daemons that run from another source than this checkout start as everywhere."""

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self._children: dict[int, Child] = {}
        self._births: asyncio.Queue[Child] = asyncio.Queue()
        self._turn = asyncio.Lock()
        self._nursery = await asyncio.create_subprocess_exec(
            sys.executable,
            str(PROGRAMS / "nursery.py"),
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        self._midwife = asyncio.create_task(self._listen(), name="births and deaths")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await super().__aexit__(kind, error, traceback)
        finally:
            assert self._nursery.stdin is not None
            self._nursery.stdin.close()
            await self._midwife
            await self._nursery.wait()

    async def start(
        self, name: str, arguments: list[str], env: Mapping[str, str] | None = None, cwd: Path = ROOT
    ) -> Process:
        if arguments[1:4] != RUN or cwd != ROOT:
            return await super().start(name, arguments, env, cwd)
        log = self.path / f"{name}.err"
        log.touch()
        process = Process(
            name, cast("asyncio.subprocess.Process", await self._bear(arguments[3:], env or {}, log)), log
        )
        self._processes.append(process)
        return process

    async def _bear(self, arguments: list[str], env: Mapping[str, str], log: Path) -> Child:
        request = {"arguments": arguments, "env": {**os.environ, **env}, "log": str(log)}
        assert self._nursery.stdin is not None
        async with self._turn, asyncio.timeout(PATIENCE):
            self._nursery.stdin.write(f"{json.dumps(request)}\n".encode())
            return await self._births.get()

    async def _listen(self) -> None:
        """Until the nursery has closed."""
        assert self._nursery.stdout is not None
        while line := await self._nursery.stdout.readline():
            word, pid, *code = line.split()
            if word == b"born":
                child = self._children[int(pid)] = Child(int(pid))
                self._births.put_nowait(child)
            else:
                self._children.pop(int(pid)).die(int(code[0]))
