"""User names at the signalling server."""

from __future__ import annotations

import click

from rondevud.ctl.common import Settings, ask, json_option, pass_settings
from rondevud.ctl.output import show_record


@click.command()
@click.argument("user")
@json_option
@pass_settings
def claim(settings: Settings, user: str) -> None:
    """Claim the user name USER at the signalling server, with this daemon's key for it.

    JSON: one map, {username, …}.
    """
    show_record(ask(settings, "claim", username=user), as_json=settings.json)


@click.command()
@click.argument("user")
@json_option
@pass_settings
def check(settings: Settings, user: str) -> None:
    """Ask the signalling server whether the user name USER is free or whose it is.

    JSON: one map, {username, …}.
    """
    show_record(ask(settings, "check", username=user), as_json=settings.json)


COMMANDS = (claim, check)
