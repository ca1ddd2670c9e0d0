"""Daemons, signalling servers and programs as real processes, with what tests do to them.

Everything belongs to a `Stage`; leaving it kills what still runs and, when the test failed, prints the ends of the logs.
No wait here is a sleep: a daemon says ``READY=1`` as it would to systemd, programs say what they do line by line.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from rondevu_client import Daemon as Client
from tests.acceptance.nursery import PROGRAMS, QUICK, ROOT, Child, can_be_born, nursery
from tests.acceptance.programs.content import digest, payload
from tests.engines import TRANSPORT

SCALE = float(os.environ.get("RONDEVUD_TIME_SCALE", "1"))
"""All waits of these tests grow by it on a slow machine."""

PATIENCE = 45.0 * SCALE
"""Seconds after which a wait has failed; no test is made true by this being short."""

LONGEST = 100.0 * SCALE
"""Seconds that a test may take with its processes, unless it says otherwise."""

LIMIT = pytest.mark.timeout(LONGEST + 20)
"""For whatever hangs in spite of that."""

STOPPING = 10.0 * SCALE
"""Seconds that an orderly stop may take."""

SERVICE = ("alice", "com.example.test@1.0.0")
CONNECTION = "to-alice"
SHOWN = 6_000
"""Bytes of each log that a failed test shows."""

CONFIG = (
    TRANSPORT
    + """
[daemon]
log_level = "info"
[signalling]
url = "{url}"
[reconnect]
heartbeat = 0.25
"""
)


class Process:
    """One process; its standard output is read line by line, its standard error goes to a file."""

    def __init__(self, name: str, process: asyncio.subprocess.Process | Child, log: Path) -> None:
        self.name = name
        self.log = log
        self.lines: list[list[str]] = []
        """What it has printed, split into words."""
        self._process = process
        self._changed = asyncio.Condition()
        self._counts: dict[str, int] = {}
        self._over = False
        self._reader = asyncio.create_task(self._read(), name=f"output of {name}")

    @classmethod
    async def start(
        cls,
        name: str,
        arguments: list[str],
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path = ROOT,
        *,
        forked: bool = False,
    ) -> Self:
        """`forked`: from the nursery, if it would be the same process from there; somebody must attend the nursery."""
        environ = {**os.environ, **QUICK, **(env or {})}
        with log.open("ab") as file:
            if forked and can_be_born(arguments, environ, cwd):
                return cls(name, await nursery().bear(arguments, environ, file), log)
            process = await asyncio.create_subprocess_exec(
                *arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=file,
                cwd=cwd,
                env=environ,
            )
        return cls(name, process, log)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """As a shell would not say it: negative numbers are signals. None while it runs."""
        return self._process.returncode

    def count(self, word: str) -> int:
        """How many of its lines begin with that word."""
        return self._counts.get(word, 0)

    def type(self, line: str) -> None:
        """A line for its standard input."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())

    def end_input(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def kill(self) -> None:
        """SIGKILL, and wait until it is gone and all it had printed is read."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._ended()

    async def exited(self, within: float = PATIENCE) -> int:
        """Wait for its end; the exit code."""
        try:
            async with asyncio.timeout(within):
                return await self._ended()
        except TimeoutError:
            raise AssertionError(f"{self.name} still runs after {within:.0f} s") from None

    async def until(self, what: Callable[[], bool], description: str, within: float = PATIENCE) -> None:
        """Wait until `what` is true of its output. Raises `AssertionError` when it ends before, or in time is not."""
        try:
            async with asyncio.timeout(within), self._changed:
                await self._changed.wait_for(lambda: what() or self._over)
        except TimeoutError:
            raise AssertionError(f"{self.name}: not in {within:.0f} s: {description}; {self._counts}") from None
        assert what(), f"{self.name} ended with {await self._ended()} before: {description}; {self._counts}"

    async def until_count(self, word: str, count: int, within: float = PATIENCE) -> None:
        await self.until(lambda: self.count(word) >= count, f"{count} lines {word!r}", within)

    async def _ended(self) -> int:
        code = await self._process.wait()
        await self._reader
        return code

    async def _read(self) -> None:
        assert self._process.stdout is not None
        rest = b""
        while chunk := await self._process.stdout.read(65_536):
            *lines, rest = (rest + chunk).split(b"\n")
            await self._take(lines)
        async with self._changed:
            self._over = True
            self._changed.notify_all()

    async def _take(self, lines: list[bytes]) -> None:
        async with self._changed:
            for line in lines:
                words = line.decode(errors="replace").split()
                self.lines.append(words)
                if words:
                    self._counts[words[0]] = self._counts.get(words[0], 0) + 1
            self._changed.notify_all()


class NotifySocket:
    """What a daemon tells systemd, read by the test instead."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(path))

    async def wait_for(self, assignment: str, process: Process) -> None:
        """Wait until `process` says so. Raises `AssertionError` when it ends before."""
        loop = asyncio.get_running_loop()

        async def listen() -> None:
            while assignment not in (await loop.sock_recv(self._socket, 4096)).decode().split("\n"):
                pass

        listening = asyncio.create_task(listen(), name=f"wait for {assignment}")
        ending = asyncio.create_task(process.exited(PATIENCE), name=f"wait for the end of {process.name}")
        await asyncio.wait({listening, ending}, return_when=asyncio.FIRST_COMPLETED, timeout=PATIENCE)
        heard = listening.done()
        for task in (listening, ending):
            task.cancel()
        await asyncio.gather(listening, ending, return_exceptions=True)
        assert heard, f"{process.name} does not say {assignment}: exit code {process.exit_code}"

    def forget(self) -> None:
        """What was said so far was said by a process that is gone."""
        with contextlib.suppress(BlockingIOError):
            while self._socket.recv(4096):
                pass

    def close(self) -> None:
        self._socket.close()


class Daemon:
    """One daemon with its state directory and socket, through all its lives."""

    def __init__(self, stage: Stage, name: str, config: str) -> None:
        self.name = name
        self.socket = stage.path / f"{name}.sock"
        self.state = stage.path / name
        self.source = ROOT
        """The checkout that it runs from."""
        self.within: list[str] = []
        """A command that runs another, where the daemon is not to run just like that: `ip netns exec …`."""
        self.env: dict[str, str] = {}
        """More of its environment."""
        self._config = stage.path / f"{name}.toml"
        self._config.write_text(config)
        self._stage = stage
        self._notify = NotifySocket(stage.path / f"{name}.notify")
        stage.on_exit(self._notify.close)
        self.process: Process | None = None
        self.lives = 0

    def reconfigure(self, extra: str) -> None:
        """Another configuration file: what all daemons have, and `extra`."""
        self._config.write_text(CONFIG.format(url=self._stage.rendezvous.url) + extra)

    async def until_told(self, assignment: str) -> None:
        """Wait until it tells systemd that."""
        assert self.process is not None
        await self._notify.wait_for(assignment, self.process)

    async def begin(self, failpoint: str = "", **other: Path) -> Process:
        """Start the process, without waiting until it is ready; `other` can name another socket or state directory."""
        self.lives += 1
        places = {"config": self._config, "socket": self.socket, "state-dir": self.state}
        places |= {key.replace("_", "-"): path for key, path in other.items()}
        options = [word for key, path in places.items() for word in (f"--{key}", str(path))]
        return await self._stage.start(
            f"{self.name}-{self.lives}",
            [*self.within, sys.executable, "-m", "rondevud", "run", *options],
            env={"NOTIFY_SOCKET": str(self._notify.path), "RONDEVU_FAILPOINT": failpoint, **self.env},
            cwd=self.source,
        )

    async def start(self, failpoint: str = "") -> Process:
        """Start it and wait until it is ready; with a `failpoint` (see `rondevud.failpoints`) it may die before."""
        process = await self.launch(failpoint)
        if not failpoint:
            await self._notify.wait_for("READY=1", process)
        return process

    async def launch(self, failpoint: str = "") -> Process:
        """Start it, without waiting until it is ready."""
        self._notify.forget()
        self.process = await self.begin(failpoint)
        return self.process

    async def kill(self) -> None:
        assert self.process is not None
        assert self.process.exit_code is None, f"{self.name} ended by itself: {self.process.exit_code}"
        await self.process.kill()

    async def restart(self) -> None:
        """SIGKILL, and start again."""
        await self.kill()
        await self.start()

    async def stop(self) -> int:
        """SIGTERM; the exit code of an orderly stop, which may take `STOPPING` seconds."""
        assert self.process is not None
        self.process.send(signal.SIGTERM)
        return await self.process.exited(STOPPING)

    async def until_stopping(self) -> None:
        """Wait until it says that it stops."""
        await self.until_told("STOPPING=1")

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """A short-lived client; does not outlive the daemon."""
        async with Client(self.socket, reconnect=False, client="test") as client:
            yield client

    async def queue(self, target: str, label: str) -> dict[str, Any]:
        async with self.client() as client:
            return await client.queue(target, label)

    async def until_nothing_waits(self, target: str, label: str) -> None:
        """Wait until the inbox is empty: an acknowledgement that was read is committed a little later."""
        try:
            async with asyncio.timeout(PATIENCE), self.client() as client:
                while (queue := await client.queue(target, label))["waiting"]:
                    pass
        except TimeoutError:
            raise AssertionError(f"{self.name}: {queue['waiting']} still wait in {label!r}") from None

    async def connection_id(self) -> str:
        """The id of the one connection this daemon has."""
        async with self.client() as client:
            (row,) = await client.connections()
        return str(row["connection_id"])


class Rendezvous:
    """The signalling server, always on one port, whatever happens to it."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._listen = "127.0.0.1:0"
        self._lives = 0
        self.process: Process | None = None
        self.url = ""
        self.env: dict[str, str] = {}

    async def start(self, store: str | None = None) -> None:
        """`store` as of the command; by default a file that is there after a restart."""
        self._lives += 1
        store = store or f"sqlite:{self._stage.path / 'signalling.sqlite3'}"
        command = [sys.executable, "-m", "rondevud", "rendezvous", "--listen", self._listen, "--store", store]
        self.process = await self._stage.start(f"signalling-{self._lives}", command, env=self.env)
        await self.process.until(lambda: bool(self.process and self.process.lines), "its URL")
        self.url = self.process.lines[0][0]
        self._listen = self.url.removeprefix("http://")

    async def kill(self) -> None:
        assert self.process is not None
        await self.process.kill()

    async def restart(self, store: str | None = None) -> None:
        """SIGKILL, and start again at the same place."""
        await self.kill()
        await self.start(store)


class Stage:
    """All processes of a test, and the directory of their files. An async context manager.

    What it surrounds may take `within` seconds, so that the processes end before somebody ends the test for its length.
    Leaving it in good order raises `AssertionError` if one of the processes logged an error, unless `errors_expected`.
    `fresh`: each process loads its modules itself, as where its memory is measured; else it may be forked (see `nursery`).
    """

    def __init__(
        self, path: Path, within: float = LONGEST, *, errors_expected: bool = False, fresh: bool = False
    ) -> None:
        self.path = path
        self._fresh = fresh
        self._errors_expected = errors_expected
        self._deadline = asyncio.timeout(within)
        self.rendezvous = Rendezvous(self)
        self._processes: list[Process] = []
        self._exits = contextlib.ExitStack()
        self._attention = contextlib.ExitStack()
        self._programs = 0

    async def __aenter__(self) -> Self:
        await self._deadline.__aenter__()
        if not self._fresh:
            self._attention.enter_context(nursery().attended())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self._deadline.__aexit__(kind, error, traceback)
        finally:
            for process in self._processes:
                await process.kill()
            self._exits.close()
            self._attention.close()
            if error is not None:
                self._show()
        if error is not None or self._errors_expected:
            return
        if bugs := self._bugs():
            raise AssertionError("\n".join(bugs))

    def on_exit(self, action: Callable[[], None]) -> None:
        self._exits.callback(action)

    async def start(
        self, name: str, arguments: list[str], env: Mapping[str, str] | None = None, cwd: Path = ROOT
    ) -> Process:
        log = self.path / f"{name}.err"
        process = await Process.start(name, arguments, log, env, cwd, forked=not self._fresh)
        self._processes.append(process)
        return process

    async def program(self, name: str, log: str, *arguments: object) -> Process:
        """Start ``programs/NAME.py`` with the log file `log`; the word LOG among the arguments stands for its path."""
        self._programs += 1
        words = [str(self.log_path(log)) if word == "LOG" else str(word) for word in arguments]
        return await self.start(f"{log}-{self._programs}", [sys.executable, str(PROGRAMS / f"{name}.py"), *words])

    def log_path(self, log: str) -> Path:
        return self.path / f"{log}.log"

    def read_log(self, log: str) -> list[list[str]]:
        """The whole lines of a program's log, over all its runs."""
        text = self.log_path(log).read_text()
        return [line.split() for line in text[: text.rfind("\n") + 1].splitlines()]

    def daemon(self, name: str, extra: str = "") -> Daemon:
        """A daemon that knows the signalling server, which must run; `extra` is more of its configuration."""
        return Daemon(self, name, CONFIG.format(url=self.rendezvous.url) + extra)

    async def pair(self) -> tuple[Daemon, Daemon]:
        """A signalling server, a daemon with a service and one with a connection to it; waits for the link."""
        service, connection = await self.declared_pair()
        await service.start()
        await connection.start()
        async with connection.client() as client:
            await client.wait(CONNECTION, "connected", PATIENCE)
        return service, connection

    async def declared_pair(self, extra: str = "") -> tuple[Daemon, Daemon]:
        """The same without starting the daemons; `extra` is more of both configurations."""
        await self.rendezvous.start()
        username, fqn = SERVICE
        target = f'username = "{username}"\nfqn = "{fqn}"\n'
        service = self.daemon("alice", f"[[service]]\n{target}polling_interval = 0.2\n{extra}")
        connection = self.daemon("bob", f'[[connection]]\nname = "{CONNECTION}"\n{target}channels = ["main"]\n{extra}')
        return service, connection

    def _bugs(self) -> list[str]:
        """Lines that no process may write, whatever is done to others: errors and tracebacks."""
        return [
            f"{process.name}: {line}"
            for process in self._processes
            for line in process.log.read_text(errors="replace").splitlines()
            if " ERROR " in line or line.startswith("Traceback")
        ]

    def _show(self) -> None:
        for process in self._processes:
            text = process.log.read_bytes()[-SHOWN:].decode(errors="replace")
            last = [" ".join(words) for words in process.lines[-5:]]
            print(f"--- {process.name}, exit code {process.exit_code}, printed last: {last}\n{text}")


def taken(log: list[list[str]]) -> list[tuple[str, int, int]]:
    """Of a receiving program's log: id, number and attempt of what it took, in order, without what came again."""
    return [(words[1], int(words[2]), int(words[3])) for words in log if words[0] == "received"]


def assert_exactly_once_in_order(log: list[list[str]], sender: str, count: int) -> None:
    """Messages ``1 … count`` of `sender`: each once by id and by number, whole, in order; repetitions marked as such."""
    numbers = Counter(number for _, number, _ in taken(log))
    twice = {number for number, times in numbers.items() if times > 1}
    missing, unknown = set(range(1, count + 1)) - set(numbers), set(numbers) - set(range(1, count + 1))
    assert not twice, f"{len(twice)} twice, {shown(twice)}"
    assert not missing, f"{len(missing)} lost, {shown(missing)}"
    assert not unknown, f"{len(unknown)} never sent, {shown(unknown)}"
    assert list(numbers) == list(range(1, count + 1)), "out of order"
    assert_truthful(log, sender)


def assert_truthful(log: list[list[str]], sender: str) -> None:
    """Contents are what was sent, an id always means the same message, and what came again says so."""
    seen: dict[str, str] = {}
    for words in log:
        if words[0] not in {"received", "again"}:
            continue
        word, message_id, number, attempt, content = words
        assert content == digest(payload(sender, int(number))), f"message {number} has another content"
        assert seen.setdefault(message_id, number) == number, f"id {message_id} stands for two messages"
        if word == "again":
            assert int(attempt) > 1, f"message {number} came again as if for the first time"


def shown(numbers: set[int]) -> str:
    """The first few of them."""
    return ", ".join(str(number) for number in sorted(numbers)[:10])
