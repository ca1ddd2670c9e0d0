"""Processes forked from one that has their modules loaded: to load them again and again is most of what a start costs.

Each is a process of its own with its own descriptors, environment and failpoints; only importing is not done again. There is
one nursery for each process of the test run, made when it is first asked for; it ends with that process.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(__file__).parent / "programs"
PATIENCE = 60.0
"""Seconds that a birth may take; the first waits until everything is loaded."""

QUICK = {"PYTHONUNBUFFERED": "1", "SSL_CERT_FILE": os.devnull, "SSL_CERT_DIR": os.devnull}
"""Environment of all processes: none uses TLS, and to read the authorities that a machine knows is a sixth of a start."""

EARLY = ("PYTHON", "LD_", "MALLOC_", "SSL_")
"""How variables begin that are read before there is a program, or while it is loaded."""


class Child:
    """A forked process, with what the tests use of `asyncio.subprocess.Process`."""

    stdin: asyncio.WriteTransport
    stdout: asyncio.StreamReader

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._dead = asyncio.Event()

    async def connect(self, stdin: IO[bytes], stdout: IO[bytes]) -> None:
        """Take our ends of its standard input and output."""
        loop = asyncio.get_running_loop()
        self.stdin, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, stdin)
        self.stdout = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(self.stdout), stdout)

    def die(self, code: int) -> None:
        self.returncode = code
        self.stdin.close()
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


class Nursery:
    """The process that forks, and those that were born there."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(PATIENCE)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, str(PROGRAMS / "nursery.py")], cwd=ROOT, env={**os.environ, **QUICK}, stdin=theirs
            )
        self._children: dict[int, Child] = {}
        self._attending = 0

    def close(self) -> None:
        self._socket.close()
        self._process.wait(PATIENCE)

    async def bear(self, arguments: list[str], env: Mapping[str, str], log: IO[bytes]) -> Child:
        """A process with these arguments, whole environment and standard error; see `can_be_born`."""
        theirs, stdin = os.pipe()
        stdout, theirs_too = os.pipe()
        request = json.dumps({"arguments": arguments[1:], "env": dict(env)}).encode()
        socket.send_fds(self._socket, [request], [theirs, theirs_too, log.fileno()])
        os.close(theirs)
        os.close(theirs_too)
        child = None
        while child is None:
            child = self._hear()
        await child.connect(os.fdopen(stdin, "wb", 0), os.fdopen(stdout, "rb", 0))
        return child

    @contextlib.contextmanager
    def attended(self) -> Iterator[None]:
        """Meanwhile the running loop hears of deaths."""
        loop = asyncio.get_running_loop()
        self._attending += 1
        loop.add_reader(self._socket.fileno(), self._hear_of_deaths)
        try:
            yield
        finally:
            self._attending -= 1
            if not self._attending:
                loop.remove_reader(self._socket.fileno())

    def _hear_of_deaths(self) -> None:
        with contextlib.suppress(BlockingIOError):  # who waited for a birth has heard it meanwhile
            self._hear(socket.MSG_DONTWAIT)

    def _hear(self, flags: int = 0) -> Child | None:
        """The next packet; the child, if it tells of a birth."""
        packet = self._socket.recv(1024, flags)
        assert packet, "the nursery has ended"
        word, pid, *code = packet.split()
        if word == b"born":
            child = self._children[int(pid)] = Child(int(pid))
            return child
        self._children.pop(int(pid)).die(int(code[0]))
        return None


@functools.cache
def nursery() -> Nursery:
    """The one of this process."""
    made = Nursery()
    atexit.register(made.close)
    return made


def can_be_born(arguments: list[str], env: Mapping[str, str], cwd: Path) -> bool:
    """Whether it would be the same process, forked or not: a daemon or signalling server of this checkout, or a program."""
    if arguments[0] != sys.executable or cwd != ROOT or _early(env) != _early({**os.environ, **QUICK}):
        return False
    return arguments[1:3] == ["-m", "rondevud"] or Path(arguments[1]).parent == PROGRAMS


def _early(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith(EARLY)}
