"""Channels and what waits in them."""

from __future__ import annotations

import click

from rondevud.ctl.common import (
    Settings,
    ask,
    connection_argument,
    json_option,
    label_argument,
    pass_settings,
    target_argument,
)
from rondevud.ctl.output import show_record, show_rows

COLUMNS = (
    "connection_id", "label", "state", "durability", "queue_size", "queue_bytes", "waiting", "waiting_bytes", "attached",
)  # fmt: skip


@click.command(short_help="List the channels of a connection or service.")
@target_argument
@json_option
@pass_settings
def channels(settings: Settings, target: str) -> None:
    """List the channels of a connection, or of all connections of service:USER/FQN.

    JSON: a list of {connection_id, label, state, acknowledges, durability, queue_size, queue_bytes, parked,
    buffered_amount, waiting, waiting_bytes, attached, producers, counters}.
    """
    rows = ask(settings, "channels", target=target)
    show_rows(rows, COLUMNS, as_json=settings.json, none="no channels")


@click.command()
@connection_argument
@label_argument
@click.option("--purge", is_flag=True, help="Remove what is queued. Nobody gets those messages any more.")
@click.option(
    "--direction",
    type=click.Choice(["out", "in", "both"]),
    help="What to remove: for the peer (out), for programs here (in), or both; both.",
)
@json_option
@pass_settings
def queue(settings: Settings, target: str, label: str, purge: bool, direction: str | None) -> None:
    """Show, or with --purge remove, what is queued in a channel.

    JSON: one map as of `channels`: queue_size, queue_bytes and buffered_amount are of what the peer has not
    acknowledged, waiting and waiting_bytes of what waits for programs here. With --purge {purged: {out, in}}, the
    messages removed.
    """
    if direction is not None and not purge:
        raise click.UsageError("--direction goes with --purge")
    if purge:
        answer = ask(settings, "purge", target=target, label=label, direction=direction or "both")
    else:
        answer = ask(settings, "queue", target=target, label=label)
    show_record(answer, as_json=settings.json)


COMMANDS = (channels, queue)
