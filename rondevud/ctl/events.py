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
@json_option
@pass_settings
def events(settings: Settings, target: str | None, since: int | None) -> None:
    """Print events of TARGET (or all) as they happen, one to a line. Ctrl-C ends it.

    JSON, one line for each event: {number, name, data}.
    """
    from rondevud.ctl.following import follow  # noqa: PLC0415 - loads asyncio

    async def work(daemon: Daemon) -> None:
        async for event in await daemon.subscribe(target, since):
            if settings.json:
                show_json_line({"number": event.number, "name": event.name, "data": event.data})
            else:
                click.echo(describe(event))

    follow(settings, work)


def describe(event: Event) -> str:
    """An event in one line: time, name, whom it is about, the rest."""
    about = [one_line(key, event.data[key]) for key in SUBJECT if key in event.data]
    rest = [f"{key}={one_line(key, value)}" for key, value in event.data.items() if key not in SUBJECT]
    return "  ".join([time.strftime("%H:%M:%S"), event.name, *filter(None, ["/".join(about), " ".join(rest)])])


COMMANDS = (events,)
