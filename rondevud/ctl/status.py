"""How the daemon is."""

from __future__ import annotations

import click

from rondevud.ctl.common import Settings, ask, json_option, pass_settings
from rondevud.ctl.output import show_record


@click.command()
@json_option
@pass_settings
def status(settings: Settings) -> None:
    """Show how the daemon is.

    JSON: {version, instance, pid, uptime, signalling, engine, services, connections, connected, clients, store}.
    """
    show_record(ask(settings, "status"), as_json=settings.json)


COMMANDS = (status,)
