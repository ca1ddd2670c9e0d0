"""The programs on the daemon's socket."""

from __future__ import annotations

import click

from rondevud.ctl.common import Settings, ask, json_option, pass_settings
from rondevud.ctl.output import show_rows

COLUMNS = ("client", "pid", "uid", "connected_since", "handles", "subscriptions", "unread_bytes")


@click.command(short_help="List the programs on the daemon's socket.")
@json_option
@pass_settings
def clients(settings: Settings) -> None:
    """List the programs on the daemon's socket, this one included.

    JSON: a list of {client, pid, uid, connected_since, handles, subscriptions, unread_bytes}.
    """
    show_rows(ask(settings, "clients"), COLUMNS, as_json=settings.json, none="no clients")


COMMANDS = (clients,)
