"""``rondevud demo``: what the daemon promises, watched on one machine.

A signalling server and two daemons, alice's and bob's, run as processes of their own in a temporary directory. Bob's
program sends numbers to alice's echo service, another one of his receives the echoes. Meanwhile programs, a link and a
daemon are killed. What is shown on the way comes from the daemons and the logs; the verdict from the programs' logs alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rondevu_client.client import Daemon
from rondevu_client.errors import RondevuClientError
from rondevud.demo_programs import LABEL, NAME, read_log
from rondevud.demo_stage import DemoFailed, Stage

TIME_LIMIT = 180.0
"""Seconds for everything; half a minute is usual."""

REFRESH = 0.25
PAUSE = 1.5
"""Seconds that something stays killed, so that one can see what queues meanwhile."""

COLUMNS = ("", "accepted", "queued", "acknowledged", "delivered", "redelivered")
VERDICT_COLUMNS = ("", "accepted", "acknowledged", "delivered", "redelivered", "missing", "twice", "disordered", "")

NUMBERS = "bob → alice: numbers"
ECHOES = "alice → bob: echoes"


class Screen(Protocol):
    """What the demo is shown on."""

    def tell(self, text: str) -> None: ...

    def show(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None: ...


class Lines:
    """Plain lines; of the figures one a second, and only when they changed."""

    def __init__(self) -> None:
        self._shown = ""
        self._shown_at = 0.0

    def tell(self, text: str) -> None:
        print(text, flush=True)  # noqa: T201 - the demo is there to be read

    def show(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        line = "\n".join(_sentence(columns, row) for row in rows)
        now = time.monotonic()
        if line != self._shown and (now - self._shown_at >= 1 or columns != COLUMNS):
            self._shown, self._shown_at = line, now
            self.tell(line)


def _sentence(columns: Sequence[str], row: Sequence[str]) -> str:
    facts = [f"{cell} {name}".rstrip() for name, cell in zip(columns[1:], row[1:], strict=True)]
    return f"       {row[0]}: {', '.join(facts)}"


# --- the verdict -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Direction:
    """What the two programs at the ends of one direction wrote down."""

    name: str
    accepted: tuple[int, ...]
    acknowledged: bool
    received: tuple[int, ...]
    redelivered: int
    gaps: int

    @property
    def missing(self) -> int:
        return len(set(self.accepted) - set(self.received))

    @property
    def twice(self) -> int:
        """Numbers received more than once under different ids: what a program could not recognise."""
        return len(self.received) - len(set(self.received))

    @property
    def disordered(self) -> int:
        return sum(later < earlier for earlier, later in zip(self.received, self.received[1:], strict=False))

    def is_right(self, messages: int) -> bool:
        """Every message exactly once and in order, and no word of one that was lost."""
        everything = tuple(range(1, messages + 1))
        return self.accepted == everything == self.received and self.acknowledged and not self.gaps


def read_direction(name: str, sender: Path, receiver: Path) -> Direction:
    sent, got = read_log(sender), read_log(receiver)
    return Direction(
        name,
        tuple(entry["number"] for entry in sent if entry["event"] == "accepted"),
        any(entry["event"] == "acknowledged" for entry in sent),
        tuple(entry["number"] for entry in got if entry["event"] == "received"),
        sum(entry["event"] == "redelivered" for entry in got),
        sum(entry["event"] == "gap" for entry in got),
    )


# --- the show ----------------------------------------------------------------------------------------------------------


async def play(screen: Screen, messages: int) -> int:
    """The whole demo; answers the exit code. Ends everything it started, whatever happens."""
    began = time.monotonic()
    with _terminated_as_cancelled() as terminated:
        try:
            with tempfile.TemporaryDirectory(prefix="rondevud-demo-") as directory:
                async with Stage(Path(directory)) as stage:
                    return await _play(stage, screen, messages, began)
        except asyncio.CancelledError:
            if terminated:
                return 128 + signal.SIGTERM
            raise


async def _play(stage: Stage, screen: Screen, messages: int, began: float) -> int:
    show = Show(stage, screen, messages, began)
    try:
        async with asyncio.timeout(TIME_LIMIT):
            await show.run()
    except TimeoutError:
        return show.fail(f"not done after {TIME_LIMIT:.0f} s")
    except (DemoFailed, RondevuClientError) as error:
        return show.fail(str(error))
    return show.judge()


class Show:
    """One performance."""

    def __init__(self, stage: Stage, screen: Screen, messages: int, began: float) -> None:
        self._stage = stage
        self._screen = screen
        self._messages = messages
        self._began = began
        self._changed = asyncio.Event()
        self._waiting: dict[str, str] = {}
        self._directions: list[Direction] = []

    def tell(self, text: str) -> None:
        self._screen.tell(f"{time.monotonic() - self._began:5.1f}  {text}")

    async def run(self) -> None:
        stage = self._stage
        url = await stage.start_signalling()
        self.tell(f"a signalling server listens on {url}; it introduces, messages never go through it")
        async with stage.start_daemon("alice") as alice, stage.start_daemon("bob") as bob:
            self.tell("alice's daemon and bob's daemon run")
            await stage.start_program("echo", "alice", self._messages)
            await stage.start_program("receive", "bob", self._messages)
            await stage.start_program("send", "bob", self._messages)
            self.tell(f"three programs: one sends {self._messages} numbers, one echoes them, one receives the echoes")
            acts = asyncio.create_task(self._acts(bob), name="demo: acts")
            watch = asyncio.create_task(self._watch_loop(alice, bob), name="demo: watch")
            report = asyncio.create_task(self._report_loop(bob), name="demo: report")
            await _first_of(acts, watch, report)

    async def _acts(self, bob: Daemon) -> None:
        stage, messages = self._stage, self._messages
        await self._until_delivered(messages * 15 // 100)
        self.tell(f"SIGKILL to the echo program (process {await stage.kill('echo')}): numbers wait in alice's daemon")
        await asyncio.sleep(PAUSE)
        await stage.start_program("echo", "alice", messages)
        self.tell("the echo program again: it finds what waited, and knows again what it had already")
        await self._until_delivered(messages * 40 // 100)
        self.tell("the link is cut without a goodbye: both daemons queue, and bob's dials")
        await bob.reconnect(NAME)
        await self._until_delivered(messages * 55 // 100)
        self.tell(f"SIGKILL to bob's daemon (process {await stage.kill('bob')}): his programs wait for it")
        await asyncio.sleep(PAUSE)
        await stage.restart_daemon("bob")
        self.tell("bob's daemon again: with everything it had accepted")
        await self._until_delivered(messages * 80 // 100)
        self.tell(f"SIGKILL to the program that receives echoes (process {await stage.kill('receive')})")
        await asyncio.sleep(PAUSE)
        await stage.start_program("receive", "bob", messages)
        self.tell("that program again")
        for program in ("send", "echo", "receive"):
            await stage.wait_for_program(program)
        self.tell("all three programs have ended")

    async def _until_delivered(self, count: int) -> None:
        """Until the echo program has received so many. Raises `DemoFailed` when something has died by itself."""
        while not self._directions or len(self._directions[0].received) < count:
            self._stage.check()
            self._changed.clear()
            await self._changed.wait()

    # --- what is shown meanwhile -----------------------------------------------------------------------------------

    async def _watch_loop(self, alice: Daemon, bob: Daemon) -> None:
        while True:
            self._look()
            for name, daemon, find in ((NUMBERS, bob, _bobs_connection), (ECHOES, alice, _alices_connection)):
                self._waiting[name] = await _queue_size(daemon, find)
            self._screen.show(COLUMNS, [self._row(direction) for direction in self._directions])
            self._changed.set()
            await asyncio.sleep(REFRESH)

    def _look(self) -> None:
        log = self._stage.program_log
        self._directions = [
            read_direction(NUMBERS, log("send"), log("echo")),
            read_direction(ECHOES, log("echo"), log("receive")),
        ]

    def _row(self, direction: Direction) -> list[str]:
        waiting = self._waiting[direction.name]
        accepted = len(direction.accepted)
        acknowledged = str(max(0, accepted - int(waiting))) if waiting.isdigit() else waiting
        return [
            direction.name, str(accepted), waiting, acknowledged, str(len(direction.received)), str(direction.redelivered)
        ]  # fmt: skip

    async def _report_loop(self, bob: Daemon) -> None:
        """What bob's daemon says about the connection."""
        words = {
            "connected": "bob's daemon: connected",
            "disconnected": "bob's daemon: the link is gone",
            "suspect": "bob's daemon: nothing heard for a while",
        }
        async for event in await bob.subscribe():
            if event.name in words:
                self.tell(words[event.name])

    # --- the end ---------------------------------------------------------------------------------------------------

    def judge(self) -> int:
        """Show the table and answer the exit code, by the programs' logs alone."""
        self._look()
        right = [direction.is_right(self._messages) for direction in self._directions]
        rows = [_verdict_row(*pair) for pair in zip(self._directions, right, strict=True)]
        self._screen.show(VERDICT_COLUMNS, rows)
        if all(right):
            self.tell("every message arrived exactly once and in order")
            return 0
        return self.fail("NOT every message arrived exactly once and in order")

    def fail(self, why: str) -> int:
        self.tell(f"FAILED: {why}")
        for name, lines in self._stage.last_words().items():
            self.tell(f"the last lines of {name}:")
            for line in lines:
                self._screen.tell(f"       {line}")
        return 1


async def _first_of(*tasks: asyncio.Task[None]) -> None:
    """Until one of them ends; the others are cancelled. Raises what it raised."""
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _verdict_row(direction: Direction, right: bool) -> list[str]:
    figures = (
        len(direction.accepted), "all" if direction.acknowledged else "not all", len(direction.received),
        direction.redelivered, direction.missing, direction.twice, direction.disordered,
        "right" if right else "WRONG",
    )  # fmt: skip
    return [direction.name, *map(str, figures)]


def _bobs_connection(row: dict[str, Any]) -> bool:
    return bool(row["name"] == NAME)


def _alices_connection(row: dict[str, Any]) -> bool:
    return row["service"] is not None


async def _queue_size(daemon: Daemon, find: Callable[[dict[str, Any]], bool]) -> str:
    """How many messages the peer has not acknowledged; a dash while the daemon is away or there is no channel."""
    with contextlib.suppress(TimeoutError, RondevuClientError):
        async with asyncio.timeout(2 * REFRESH):
            connection = next(filter(find, await daemon.connections()), None)
            if connection is not None:
                return str((await daemon.queue(connection["connection_id"], LABEL))["queue_size"])
    return "-"


@contextlib.contextmanager
def _terminated_as_cancelled() -> Iterator[list[int]]:
    """SIGTERM ends the demo in the same order as Ctrl-C; the list is not empty once it has come."""
    terminated: list[int] = []
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def terminate() -> None:
        if task is not None and not terminated:
            task.cancel()
        terminated.append(signal.SIGTERM)

    loop.add_signal_handler(signal.SIGTERM, terminate)
    try:
        yield terminated
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
