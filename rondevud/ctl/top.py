"""The connections and channels of the daemon, and what passes through them."""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import click

from rondevud.ctl.common import Settings, json_option, pass_settings
from rondevud.ctl.output import is_terminal, show_json_line, show_rows

if TYPE_CHECKING:
    from rondevu_client.client import Daemon

CONNECTIONS = ("connection", "state", "kind", "peer_name", "out_rate", "in_rate", "queue_size", "waiting", "round_trip")
CHANNELS = ("connection", "label", "state", "out_rate", "in_rate", "queue_size", "waiting", "round_trip")

KEPT = 60
"""Looks of which a queue's depth is kept, for its sparkline."""

Row = dict[str, Any]


@click.command(short_help="Watch connections and channels.")
@click.option(
    "--interval",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    metavar="S",
    help="Seconds between two looks. [default: 1]",
)
@click.option(
    "--count", type=click.IntRange(1), metavar="N", help="End after so many looks at most. [default: without end]"
)
@json_option
@pass_settings
def top(settings: Settings, interval: float, count: int | None) -> None:
    """Watch the connections and channels, the busiest first. q or Ctrl-C ends it.

    Goes on over restarts of the daemon. Where the output is no terminal: what there is now, once, with the rates of
    one interval (--count: so many times).

    JSON, one line for each look: {at, instance, uptime, connections, channels}. Of connections {connection_id, connection,
    state, kind, peer_name, suspect, attempt, out_rate, in_rate, queue_size, waiting, round_trip}; of channels
    {connection_id, connection, label, state, out_rate, in_rate, queue_size, waiting, round_trip}. Rates are messages a
    second since the look before.
    """
    if settings.json or not (is_terminal() and sys.stdin.isatty()):
        _print(settings, interval, count)
    else:
        from rondevud.ctl.screen import watch  # noqa: PLC0415 - loads asyncio and rich

        watch(settings, interval, count)


def _print(settings: Settings, interval: float, count: int | None) -> None:
    import asyncio  # noqa: PLC0415

    from rondevud.ctl.following import follow  # noqa: PLC0415 - loads asyncio

    async def work(daemon: Daemon) -> None:
        looks = Looks()
        if not settings.json:  # the first look knows no rates
            await looks.take(daemon)
            await asyncio.sleep(interval)
        left = count if settings.json else count or 1
        while True:
            await looks.take(daemon)
            if settings.json:
                show_json_line(looks.as_map())
            else:
                _show(looks)
            left = None if left is None else left - 1
            if left == 0:
                return
            await asyncio.sleep(interval)

    follow(settings, work)


def _show(looks: Looks) -> None:
    show_rows(looks.connections, CONNECTIONS, as_json=False, none="no connections")
    if looks.channels:
        click.echo()
    show_rows(looks.channels, CHANNELS, as_json=False, none="no channels")


class Looks:
    """What was seen last, how fast counters rise, and how deep queues were before."""

    def __init__(self) -> None:
        self.status: Row = {}
        self.connections: list[Row] = []
        """Of the last look, the busiest first."""
        self.channels: list[Row] = []
        self.at = 0.0
        """When that was, seconds since 1970."""
        self.depths: dict[tuple[str, str], deque[int]] = {}
        """Of each channel, messages that waited in both directions, the last look at the end."""
        self._before: dict[tuple[str, str], tuple[int, int]] = {}
        self._looked = 0.0

    async def take(self, daemon: Daemon) -> None:
        """Look again; what ends meanwhile has no channels."""
        from rondevu_client.errors import RequestRefused  # noqa: PLC0415

        status, connections, found = await daemon.status(), await daemon.connections(), []
        for connection in connections:
            try:
                found += await daemon.channels(connection["connection_id"])
            except RequestRefused as error:
                if error.code != "unknown_target":
                    raise
        self.see(status, connections, found, time.monotonic())

    def see(self, status: Row, connections: list[Row], channels: list[Row], now: float) -> None:
        """Rows of these commands; `now` is in seconds."""
        again = status["instance"] == self.status.get("instance")  # another daemon counts from 0
        span, before = now - self._looked, self._before if again else {}
        self.status, self._looked, self._before, self.at = status, now, {}, time.time()
        about = {row["connection_id"]: row for row in connections}
        self.channels, rates = [], dict.fromkeys(about, (0.0, 0.0))
        for channel in channels:
            id_, label = key = (channel["connection_id"], channel["label"])
            counted = (channel["counters"].get("accepted", 0), channel["counters"].get("received", 0))
            self._before[key] = counted
            out, in_ = (
                max(0, value - old) / span if key in before and span > 0 else 0.0
                for value, old in zip(counted, before.get(key, counted), strict=True)
            )
            rates[id_] = (rates[id_][0] + out, rates[id_][1] + in_)
            self.depths.setdefault(key, deque(maxlen=KEPT)).append(channel["queue_size"] + channel["waiting"])
            kept = {word: channel[word] for word in ("state", "queue_size", "waiting")}
            names = {"connection_id": id_, "connection": about[id_]["name"] or id_, "label": label}
            row = {**names, **_rates(out, in_), **kept, "round_trip": about[id_]["round_trip"]}
            self.channels.append(row)
        self.connections = [_connection(row, *rates[row["connection_id"]]) for row in connections]
        self.depths = {key: depths for key, depths in self.depths.items() if key in self._before}
        for rows in (self.connections, self.channels):
            rows.sort(key=lambda row: (-row["out_rate"] - row["in_rate"], row["connection"], row.get("label", "")))

    def as_map(self) -> Row:
        about = {"at": self.at, "instance": self.status["instance"], "uptime": self.status["uptime"]}
        return {**about, "connections": self.connections, "channels": self.channels}


def _rates(out: float, in_: float) -> Row:
    return {"out_rate": round(out, 1), "in_rate": round(in_, 1)}


def _connection(row: Row, out: float, in_: float) -> Row:
    words = ("state", "kind", "peer_name", "suspect", "attempt")
    names = {"connection_id": row["connection_id"], "connection": row["name"] or row["connection_id"]}
    numbers = {word: row[word] for word in ("queue_size", "waiting", "round_trip")}
    return {**names, **{word: row[word] for word in words}, **_rates(out, in_), **numbers}


COMMANDS = (top,)
