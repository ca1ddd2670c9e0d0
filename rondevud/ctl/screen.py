"""`top` on a terminal: a screen that is redrawn, and keys."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import termios
import time
import tty
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rondevu_client.client import Daemon
from rondevud.ctl.common import Settings, run
from rondevud.ctl.output import printable
from rondevud.ctl.top import Looks, Row

BARS = "▁▂▃▄▅▆▇█"

QUIT = frozenset("qQ\x03\x04")
"""Keys that end it; the last two where the terminal hands Ctrl-C and Ctrl-D through."""

SILENT = 2.0
"""Seconds without an answer of the daemon after which the screen says so."""

BROKEN = {"failed", "disconnected"}
WORKING = {"connected", "open"}


def watch(settings: Settings, interval: float, count: int | None) -> None:
    """Show looks every `interval` seconds until q, Ctrl-C, or `count` of them. Raises `RondevuClientError`."""
    with contextlib.suppress(KeyboardInterrupt), _keys_at_once():
        run(settings, lambda daemon: _watch(daemon, interval, count), reconnect=True)


async def _watch(daemon: Daemon, interval: float, count: int | None) -> None:
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def key() -> None:
        pressed = os.read(sys.stdin.fileno(), 64).decode(errors="replace")
        if (not pressed or QUIT & set(pressed)) and not ended.done():
            ended.set_result(None)

    looks, shown, answered = Looks(), 0, time.monotonic()
    await looks.take(daemon)  # before the screen is taken: a daemon that is not there is told below the prompt
    looking: asyncio.Task[None] | None = None
    loop.add_reader(sys.stdin.fileno(), key)
    console = Console()
    try:
        with Live(draw(looks, console.size, 0.0), console=console, screen=True, auto_refresh=False) as live:
            while not ended.done():
                if looking is None or looking.done():
                    if looking is not None:
                        looking.result()
                    shown, answered = shown + 1, time.monotonic()
                    live.update(draw(looks, console.size, 0.0), refresh=True)
                    if shown == count:
                        return
                    await asyncio.wait([ended], timeout=interval)
                    looking = loop.create_task(looks.take(daemon), name="look")
                await asyncio.wait([ended, looking], timeout=0.5, return_when=asyncio.FIRST_COMPLETED)
                if not looking.done():
                    live.update(draw(looks, console.size, time.monotonic() - answered), refresh=True)
    finally:
        loop.remove_reader(sys.stdin.fileno())
        if looking is not None:
            looking.cancel()
            await asyncio.wait([looking])


@contextlib.contextmanager
def _keys_at_once() -> Iterator[None]:
    """Keys come without Enter and are not shown; the terminal is as before afterwards."""
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    tty.setcbreak(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def draw(looks: Looks, size: tuple[int, int], silence: float) -> RenderableType:
    """The screen, for a terminal of `size` (columns, lines); `silence`: seconds that the daemon has not answered for."""
    width, height = size
    room = max(4, height - 7)
    connections = looks.connections[: max(2, room // 3)]
    channels = looks.channels[: max(2, room - len(connections))]
    parts: list[RenderableType] = [_head(looks, silence), Text()]
    parts.append(_connections(connections, len(looks.connections)))
    parts.append(Text())
    parts.append(_channels(looks, channels, max(8, min(30, width - 70))))
    return Group(*parts)


def _head(looks: Looks, silence: float) -> Text:
    status = looks.status
    out, in_ = (sum(row[word] for row in looks.channels) for word in ("out_rate", "in_rate"))
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append("rondevud ", "bold")
    text.append(f"{status['version']}  ")
    if silence >= SILENT:  # what is wrong stands where a narrow terminal does not cut it off
        text.append(f"no answer for {_span(silence)}  ", "bold red")
    if status["store"] != "ok":
        text.append(f"store: {printable(str(status['store']))}  ", "bold red")
    text.append(f"up {_span(status['uptime'])}  ")
    text.append(f"{status['connected']} of {status['connections']} connected  {status['clients']} programs  ")
    text.append(f"{out:g} out/s  {in_:g} in/s")
    return text


def _connections(rows: Sequence[Row], all_: int) -> Table:
    table = _table("connection", "state", "peer", "out/s", "in/s", "to send", "to read", "round trip")
    for row in rows:
        state = Text(
            row["state"], "green" if row["state"] in WORKING else "red" if row["state"] in BROKEN else "yellow"
        )
        if row["suspect"]:
            state.append(" suspect", "yellow")
        if row["attempt"]:
            state.append(f" {row['attempt']}")
        peer = printable(row["peer_name"] or "") or (row["kind"] or "-")
        table.add_row(_text(row["connection"]), state, _text(peer), *_numbers(row), _trip(row["round_trip"]))
    _tell_rest(table, all_ - len(rows), "connections")
    return table


def _channels(looks: Looks, rows: Sequence[Row], width: int) -> Table:
    table = _table("connection", "label", "state", "out/s", "in/s", "to send", "to read", "queues")
    for row in rows:
        depths = looks.depths[row["connection_id"], row["label"]]
        state = Text(row["state"], "green" if row["state"] in WORKING else "yellow")
        bars = Text(sparkline(depths, width), "cyan", no_wrap=True)
        table.add_row(_text(row["connection"]), _text(row["label"]), state, *_numbers(row), bars)
    _tell_rest(table, len(looks.channels) - len(rows), "channels")
    return table


def _table(*headings: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in headings:
        numeric = heading in {"out/s", "in/s", "to send", "to read", "round trip"}
        table.add_column(heading, justify="right" if numeric else "left", no_wrap=True)
    return table


def _tell_rest(table: Table, rest: int, what: str) -> None:
    if rest > 0:
        table.add_row(Text(f"and {rest} more {what}", "dim"))


def _numbers(row: Row) -> Iterable[str]:
    return (f"{row[word]:g}" for word in ("out_rate", "in_rate", "queue_size", "waiting"))


def _text(words: str) -> Text:
    return Text(printable(words), overflow="ellipsis", no_wrap=True)


def _trip(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.1f} ms"


def _span(seconds: float) -> str:
    whole = int(seconds)
    days, hours, minutes = whole // 86_400, whole // 3_600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"


def sparkline(values: Iterable[int], width: int) -> str:
    """The last `width` values as bars, the highest of them being the full height."""
    shown = list(values)[-width:]
    highest = max(shown, default=0)
    if not highest:
        return BARS[0] * len(shown)
    return "".join(BARS[-(-value * (len(BARS) - 1) // highest)] for value in shown)
