"""The processes of the demo: started, killed, and at the end all gone."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Self

from rondevu_client.client import Daemon
from rondevu_client.errors import DaemonUnavailable

START_TIMEOUT = 30.0
STOP_TIMEOUT = 8.0
"""Seconds a process has to end by itself before it is killed."""

LOOK_AGAIN = 0.05
LAST_LINES = 12


class DemoFailed(Exception):
    """A process of the demo did not do its part; the message says which."""


class Stage:
    """A context manager: what was started ends with it. Everything lies in `directory`, which is somebody else's."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._processes: dict[str, Process] = {}
        self._url = ""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        loop = asyncio.get_running_loop()
        # A second Ctrl-C must not leave processes behind; what follows is bounded in time.
        loop.add_signal_handler(signal.SIGINT, lambda: None)
        try:
            await self._stop_all()
        finally:
            loop.remove_signal_handler(signal.SIGINT)

    # --- starting --------------------------------------------------------------------------------------------------

    async def start_signalling(self) -> str:
        """The embedded server; answers its URL."""
        store = f"sqlite:{self._directory / 'rendezvous.db'}"
        arguments = ("rondevud", "rendezvous", "--listen", "127.0.0.1:0", "--store", store)
        process = await self._start("signalling", *arguments, stdout=PIPE)
        if process.stdout is not None:
            async with asyncio.timeout(START_TIMEOUT):
                self._url = (await process.stdout.readline()).decode().strip()
        if not self._url:
            raise DemoFailed("the signalling server did not start")
        return self._url

    @contextlib.asynccontextmanager
    async def start_daemon(self, name: str) -> AsyncIterator[Daemon]:
        """A daemon, and a client of it that stays connected over its restarts."""
        config = self._directory / f"{name}.toml"
        config.write_text(f'[signalling]\nurl = "{self._url}"\n', encoding="utf-8")
        daemon = await self._run_daemon(name)
        try:
            yield daemon
        finally:
            await daemon.close()

    async def restart_daemon(self, name: str) -> None:
        """Run it again after a kill; returns once it answers."""
        daemon = await self._run_daemon(name)
        await daemon.close()

    async def _run_daemon(self, name: str) -> Daemon:
        """Start a daemon; answers a client of it once its socket answers."""
        await self._start(
            name, "rondevud", "run", "--config", f"{self._directory / name}.toml",
            "--socket", str(self._socket(name)), "--state-dir", str(self._directory / name),
        )  # fmt: skip
        async with asyncio.timeout(START_TIMEOUT):
            return await self._open(name)

    async def start_program(self, program: str, of: str, messages: int) -> None:
        """One of the programs of `rondevud.demo_programs`, at the daemon of alice or bob."""
        await self._start(
            program, "rondevud.demo_programs", program, "--socket", str(self._socket(of)),
            "--log", str(self.program_log(program)), "--messages", str(messages),
        )  # fmt: skip

    async def _start(self, name: str, module: str, *arguments: str, stdout: int = DEVNULL) -> Process:
        with self._output(name).open("ab") as output:
            # A session of its own: Ctrl-C is for the demo, which ends the others in their order.
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", module, *arguments,
                stdin=DEVNULL, stdout=stdout, stderr=output, start_new_session=True,
            )  # fmt: skip
        self._processes[name] = process
        return process

    async def _open(self, name: str) -> Daemon:
        while True:
            daemon = Daemon(self._socket(name), client="demo: the stage")
            try:
                await daemon.open()
            except DaemonUnavailable:
                self.check()
                await asyncio.sleep(LOOK_AGAIN)
            else:
                return daemon

    # --- looking, and ending ---------------------------------------------------------------------------------------

    def program_log(self, program: str) -> Path:
        return self._directory / f"{program}.jsonl"

    def check(self) -> None:
        """Raises `DemoFailed` when something has ended that nobody killed."""
        for name, process in self._processes.items():
            if process.returncode is not None and (process.returncode != 0 or name in {"alice", "bob", "signalling"}):
                raise DemoFailed(f"{name} has ended with exit code {process.returncode}")

    async def kill(self, name: str) -> int:
        """SIGKILL; answers the process id."""
        process = self._processes.pop(name)
        process.kill()
        await process.wait()
        return process.pid

    async def wait_for_program(self, name: str) -> None:
        """Until it has ended with exit code 0; raises `DemoFailed` when it, or what it needs, has not."""
        process = self._processes[name]
        while process.returncode is None:
            self.check()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await process.wait()
        self.check()

    def last_words(self) -> dict[str, list[str]]:
        """The ends of what the processes wrote to stderr, by their names; none that were silent."""
        words = {}
        for path in sorted(self._directory.glob("*.stderr")):
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            if lines:
                words[path.stem] = lines[-LAST_LINES:]
        return words

    async def _stop_all(self) -> None:
        """SIGTERM to the programs, then the daemons, then the server; those that take too long are killed."""
        for name in sorted(self._processes, key=lambda name: {"signalling": 2, "alice": 1, "bob": 1}.get(name, 0)):
            process = self._processes[name]
            if process.returncode is None:
                process.terminate()
        await asyncio.gather(*(_end(process) for process in self._processes.values()))

    def _socket(self, name: str) -> Path:
        return self._directory / f"{name}.sock"

    def _output(self, name: str) -> Path:
        return self._directory / f"{name}.stderr"


async def _end(process: Process) -> None:
    try:
        async with asyncio.timeout(STOP_TIMEOUT):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
