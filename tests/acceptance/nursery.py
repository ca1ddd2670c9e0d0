"""Processes forked from one that has their modules loaded: to load them again and again is most of what a start costs.

Each is a process of its own with its own descriptors, environment and failpoints; only importing is not done again. There is
one nursery for each process of the test run, made when it is first asked for; it ends with that process.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import itertools
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

    stdout: asyncio.StreamReader

    def __init__(self, pid: int) -> None:
        self.stdin: asyncio.WriteTransport | None = None
        self.pid = pid
        self.returncode: int | None = None
        self._dead = asyncio.Event()

    async def connect(self, stdin: IO[bytes], stdout: IO[bytes]) -> None:
        """Take our ends of its standard input and output. If that is interrupted, they are closed, and the process ended."""
        loop = asyncio.get_running_loop()
        try:
            self.stdin, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, stdin)
            self.stdout = asyncio.StreamReader()
            await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(self.stdout), stdout)
        except BaseException:
            self.abandon()
            stdin.close()
            stdout.close()
            raise

    def abandon(self) -> None:
        """Nobody wants it: end it."""
        if self.stdin is not None:
            self.stdin.close()
        with contextlib.suppress(ProcessLookupError):
            self.kill()

    def die(self, code: int) -> None:
        self.returncode = code
        if self.stdin is not None:
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
        self.patience = PATIENCE
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, str(PROGRAMS / "nursery.py")], cwd=ROOT, env={**os.environ, **QUICK}, stdin=theirs
            )
        self.children: dict[int, Child] = {}
        self._attending = 0
        self._numbers = itertools.count(1)
        self._awaited: int | None = None
        """The number of the birth that somebody waits for."""

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def patience(self) -> float | None:
        """Seconds that a birth may take."""
        return self._socket.gettimeout()

    @patience.setter
    def patience(self, value: float) -> None:
        self._socket.settimeout(value)

    def close(self) -> None:
        self._socket.close()
        self._process.wait(PATIENCE)

    async def bear(self, arguments: list[str], env: Mapping[str, str], log: IO[bytes]) -> Child:
        """A process with these arguments, whole environment and standard error; see `can_be_born`."""
        theirs, ours = os.pipe()
        ours_too, theirs_too = os.pipe()
        stdin, stdout = os.fdopen(ours, "wb", 0), os.fdopen(ours_too, "rb", 0)
        try:
            child = self._bear(arguments[1:], env, [theirs, theirs_too, log.fileno()])
        except BaseException:
            stdin.close()
            stdout.close()
            raise
        finally:
            os.close(theirs)
            os.close(theirs_too)
        await child.connect(stdin, stdout)
        return child

    def _bear(self, arguments: list[str], env: Mapping[str, str], descriptors: list[int]) -> Child:
        self._awaited = number = next(self._numbers)
        request = json.dumps({"number": number, "arguments": arguments, "env": dict(env)}).encode()
        try:
            socket.send_fds(self._socket, [request], descriptors)
            child = None
            while child is None:
                child = self._hear()
            return child
        finally:
            self._awaited = None

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
        """The next packet; the child, if it tells of the birth that is awaited. Who waited for another was interrupted."""
        packet = self._socket.recv(1024, flags)
        assert packet, "the nursery has ended"
        word, *numbers = packet.split()
        pid, number = map(int, numbers)
        if word == b"dead":
            self.children.pop(pid).die(number)
            return None
        child = self.children[pid] = Child(pid)
        if number == self._awaited:
            return child
        child.abandon()
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
