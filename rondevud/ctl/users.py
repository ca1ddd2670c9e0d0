"""User names at the signalling server."""

from __future__ import annotations

import click

from rondevud.ctl.common import Settings, ask, json_option, pass_settings
from rondevud.ctl.output import show_record


@click.command(short_help="Claim a user name at the signalling server.")
@click.argument("user")
@json_option
@pass_settings
def claim(settings: Settings, user: str) -> None:
    """Claim the user name USER at the signalling server, with the key held here for it; made when there is none.

    JSON: {username, expires_at}.
    """
    show_record(ask(settings, "claim", username=user), as_json=settings.json)


@click.command(short_help="Ask whether a user name is free, ours, or somebody else's.")
@click.argument("user")
@json_option
@pass_settings
def check(settings: Settings, user: str) -> None:
    """Ask the signalling server whether the user name USER is free, ours, or somebody else's.

    JSON: {username, available, holder, public_key, own_key, claimed_at, expires_at}. holder is nobody, ours or other;
    public_key, claimed_at and expires_at are the server's, null for a free name; own_key is the public key held here.
    """
    show_record(ask(settings, "check", username=user), as_json=settings.json)


COMMANDS = (claim, check)
