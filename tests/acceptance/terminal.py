"""A real terminal for a program under test: a window of tmux, in which keys are pressed and which is read."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from tests.acceptance.processes import PATIENCE, ROOT

ENDED = "ended with"


class Terminal:
    """120 columns, 30 lines; below the program's last words stands ``ended with CODE`` and how the terminal is set then."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    async def tmux(self, *arguments: str) -> str:
        # A path with UTF-8 in its locale, so that tmux draws bars as bars.
        process = await asyncio.create_subprocess_exec(
            "tmux", "-u", "-f", "/dev/null", "-S", str(self._socket), *arguments,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=ROOT,
            env={**os.environ, "LC_ALL": "C.UTF-8", "TERM": "xterm-256color"},
        )  # fmt: skip
        async with asyncio.timeout(PATIENCE):
            out, err = await process.communicate()
        assert process.returncode == 0, (arguments, err.decode())
        return out.decode()

    async def press(self, *keys: str) -> None:
        await self.tmux("send-keys", "-t", "test", *keys)

    async def screen(self) -> str:
        return await self.tmux("capture-pane", "-p", "-t", "test")

    async def until(self, what: str | Callable[[str], bool]) -> str:
        """The screen, once it has that text, or what is true of it. Raises `AssertionError` when it never has."""
        shown = ""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while True:
                    shown = await self.screen()
                    if what in shown if isinstance(what, str) else what(shown):
                        return shown
        raise AssertionError(f"the terminal never showed {what}:\n{shown}")


@contextlib.asynccontextmanager
async def open_terminal(command: str) -> AsyncIterator[Terminal]:
    """`command` for a shell, in a terminal of its own; both end with the context."""
    assert shutil.which("tmux"), "tmux is missing: `.ci/setup VENV dev` installs it"
    with tempfile.TemporaryDirectory() as directory:
        terminal = Terminal(Path(directory) / "tmux.sock")
        script = (
            f"{command}; echo {ENDED} $?; stty -a | tr ' ' '\\n' | grep -x -e '-*icanon' -e '-*echo;*'; exec sleep 1000"
        )
        shell = f"sh -c {shlex.quote(script)}"
        await terminal.tmux("new-session", "-d", "-s", "test", "-x", "120", "-y", "30", shell)
        try:
            yield terminal
        finally:
            await terminal.tmux("kill-server")
