"""Sessions: what the daemon keeps of peers, also of those that are away; and sending them away."""

from __future__ import annotations

import click

from rondevud.ctl.common import (
    Settings,
    ask,
    json_option,
    pass_settings,
    session_argument,
)
from rondevud.ctl.completing import complete_target
from rondevud.ctl.output import show_record, show_rows, with_service

COLUMNS = (
    "connection_id", "role", "name", "service", "state", "blocked", "peer_name", "kind", "absent", "expires_in",
    "queue_size", "queue_bytes", "waiting", "waiting_bytes",
)  # fmt: skip


@click.command(short_help="List what is kept of peers, also of absent and blocked ones.")
@click.argument("target", required=False, shell_complete=complete_target)
@json_option
@pass_settings
def sessions(settings: Settings, target: str | None) -> None:
    """List the sessions of this daemon, or those of a connection or of service:USER/FQN.

    The state is connected, absent, expired (only its token and numbers are kept) or closed (what waits here can be read).

    JSON: a list of {connection_id, role, name, service, target, state, blocked, kind, peer_name, absent, expires_in,
    forgotten_in, channels, queue_size, queue_bytes, waiting, waiting_bytes, ephemeral}; absent, expires_in and
    forgotten_in are seconds in which this daemon runs, and null where nothing expires.
    """
    rows = ask(settings, "sessions", target=target)
    show_rows(rows if settings.json else with_service(rows), COLUMNS, as_json=settings.json, none="no sessions")


@click.command(short_help="Delete a session that a service took.")
@session_argument
@click.option("--purge", is_flag=True, help="Also if messages wait in it. Nobody gets those any more.")
@json_option
@pass_settings
def forget(settings: Settings, target: str, purge: bool) -> None:
    """Delete the session TARGET (a connection id) that a service took, with all that is kept of it.

    Its peer begins a new one when it comes again, and is told of a gap. A block ends with the session.

    JSON: {connection_id, purged: {out, in}}, the messages removed.
    """
    show_record(ask(settings, "forget", target=target, force=purge), as_json=settings.json)


@click.command(short_help="End a session's link; its peer may come back later.")
@session_argument
@click.option(
    "--for", "pause", type=click.FloatRange(0), metavar="S", help="Seconds it has to stay away. [default: 10]"
)
@json_option
@pass_settings
def kick(settings: Settings, target: str, pause: float | None) -> None:
    """End the link of the session TARGET (a connection id) that a service took. Nothing is lost.

    JSON: {connection_id, was_connected}.
    """
    show_record(ask(settings, "kick", target=target, pause=pause), as_json=settings.json)


@click.command(short_help="End a session's link and refuse its peer.")
@session_argument
@json_option
@pass_settings
def block(settings: Settings, target: str) -> None:
    """End the link of the session TARGET (a connection id), and refuse its peer until `unblock`, also after restarts.

    What waits in it stays. Whoever gives up the session can come as somebody new.

    JSON: {connection_id, blocked, was_connected}.
    """
    show_record(ask(settings, "block", target=target), as_json=settings.json)


@click.command(short_help="Take the peer of a blocked session again.")
@session_argument
@json_option
@pass_settings
def unblock(settings: Settings, target: str) -> None:
    """Take the peer of the session TARGET (a connection id) again.

    JSON: {connection_id, blocked}.
    """
    show_record(ask(settings, "unblock", target=target), as_json=settings.json)


COMMANDS = (sessions, forget, kick, block, unblock)
