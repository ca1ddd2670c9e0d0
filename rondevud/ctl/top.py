"""What passes through the channels, as it passes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from rondevud.ctl.common import Settings, json_option, pass_settings
from rondevud.ctl.output import is_terminal, show_json_line, show_rows

if TYPE_CHECKING:
    from rondevu_client.client import Daemon

COLUMNS = ("connection", "label", "state", "out_rate", "in_rate", "queue_size", "waiting", "round_trip")

Row = dict[str, Any]


@click.command()
@click.option(
    "--interval",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    metavar="S",
    help="Seconds between two looks; 1.",
)
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after so many looks; without end.")
@json_option
@pass_settings
def top(settings: Settings, interval: float, count: int | None) -> None:
    """Watch what passes through the channels, the busiest first. Ctrl-C ends it.

    JSON, one line for each look: a list of {connection_id, connection, label, state, out_rate, in_rate, queue_size,
    waiting, round_trip}; rates are messages a second since the look before.
    """
    import asyncio  # noqa: PLC0415

    from rondevud.ctl.following import follow  # noqa: PLC0415 - loads asyncio

    async def work(daemon: Daemon) -> None:
        rates = Rates()
        looks = 0
        while True:
            rates.look(await _channels(daemon), asyncio.get_running_loop().time())
            looks += 1
            _show(rates.rows, as_json=settings.json)
            if looks == count:
                return
            await asyncio.sleep(interval)

    follow(settings, work)


class Rates:
    """How fast the counters of channels rise."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        """The channels of the last look, the busiest first."""
        self._before: dict[tuple[str, str], tuple[int, int]] = {}
        self._at = 0.0

    def look(self, channels: list[Row], now: float) -> None:
        """`channels` are rows of the command with ``connection`` and ``round_trip``, `now` is in seconds."""
        span, before = now - self._at, self._before
        self._at, self._before, self.rows = now, {}, []
        for channel in channels:
            key = (channel["connection_id"], channel["label"])
            counted = (channel["counters"].get("accepted", 0), channel["counters"].get("received", 0))
            self._before[key] = counted
            out, in_ = (
                max(0, value - old) / span if key in before and span > 0 else 0.0
                for value, old in zip(counted, before.get(key, counted), strict=True)
            )
            kept = {word: channel[word] for word in ("state", "queue_size", "waiting", "round_trip")}
            names = {"connection_id": key[0], "connection": channel["connection"], "label": key[1]}
            self.rows.append({**names, "out_rate": round(out, 1), "in_rate": round(in_, 1), **kept})
        self.rows.sort(key=lambda row: (-row["out_rate"] - row["in_rate"], row["connection"], row["label"]))


async def _channels(daemon: Daemon) -> list[Row]:
    """Those of all connections; one that ends meanwhile has none."""
    from rondevu_client.errors import RequestRefused  # noqa: PLC0415

    found = []
    for connection in await daemon.connections():
        target = connection["connection_id"]
        more = {"connection": connection["name"] or target, "round_trip": connection["round_trip"]}
        try:
            found += [{**channel, **more} for channel in await daemon.channels(target)]
        except RequestRefused as error:
            if error.code != "unknown_target":
                raise
    return found


def _show(rows: list[Row], *, as_json: bool) -> None:
    if as_json:
        show_json_line(rows)
        return
    if is_terminal():
        click.clear()
    show_rows(rows, COLUMNS, as_json=False, none="no channels")


COMMANDS = (top,)
