"""Why a connection or a service is as it is."""

from __future__ import annotations

import click

from rondevud.ctl.common import Settings, ask, json_option, pass_settings
from rondevud.ctl.output import show_record


@click.command()
@click.argument("target")
@json_option
@pass_settings
def why(settings: Settings, target: str) -> None:
    """Show what the daemon knows of a connection (its last error, its channels, its counters) or of a service.

    JSON: the row of `connections` with {counters, channels: [...]}, or the row of `services`.
    """
    show_record(ask(settings, "why", target=target), as_json=settings.json)


COMMANDS = (why,)
