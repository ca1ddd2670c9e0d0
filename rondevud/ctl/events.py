"""What happens in the daemon, as it happens."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from rondevud.ctl.common import Settings, json_option, pass_settings
from rondevud.ctl.completing import complete_target
from rondevud.ctl.output import one_line, show_json_line

if TYPE_CHECKING:
    from rondevu_client.client import Daemon
    from rondevu_client.stream import Event

SUBJECT = ("service", "connection_id", "label")


@click.command(short_help="Print events as they happen.")
@click.argument("target", required=False, shell_complete=complete_target)
@click.option("--since", type=click.IntRange(0), metavar="N", help="Begin with event number N, as far as it is kept.")
@click.option(
    "--instance", default="", metavar="ID", help="The start of the daemon that gave N (JSON and `status` show it)."
)
@json_option
@pass_settings
def events(settings: Settings, target: str | None, since: int | None, instance: str) -> None:
    """Print events of TARGET (or all) as they happen, one to a line. Ctrl-C ends it.

    Events are numbered; the daemon keeps the last 4096. With --since those from number N on come first. Where some are
    missing, an event overrun says so: {count, from, to}, with to and count null when the daemon was started anew, which
    begins to count at 1 again.

    JSON, one line for each event: {number, at, name, data, instance}.
    """
    from rondevud.ctl.following import follow  # noqa: PLC0415 - loads asyncio

    async def work(daemon: Daemon) -> None:
        stream = await daemon.subscribe(target, since, instance=instance)
        async for event in stream:
            if settings.json:
                words = {"number": event.number, "at": event.at, "name": event.name, "data": event.data}
                show_json_line(words | {"instance": daemon.instance})
            else:
                click.echo(describe(event, today=time.time()))

    follow(settings, work)


def describe(event: Event, *, today: float) -> str:
    """An event in one line: time (with the date, of another day than `today`), number, name, whom it is about, the rest."""
    about = [one_line(key, event.data[key]) for key in SUBJECT if key in event.data]
    rest = [f"{key}={one_line(key, value)}" for key, value in event.data.items() if key not in SUBJECT]
    moment = _moment(event.at, today)
    return "  ".join([moment, str(event.number), event.name, *filter(None, ["/".join(about), " ".join(rest)])])


def _moment(at: float | None, today: float) -> str:
    if at is None:  # an older daemon does not say it
        return "--:--:--"
    then, now = time.localtime(at), time.localtime(today)
    same_day = then[:3] == now[:3]
    return time.strftime("%H:%M:%S" if same_day else "%m-%d %H:%M:%S", then)


COMMANDS = (events,)
