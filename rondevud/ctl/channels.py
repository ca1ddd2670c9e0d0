"""Channels and what waits in them."""

from __future__ import annotations

import click

from rondevud.ctl.common import Settings, ask, json_option, label_argument, pass_settings, target_argument
from rondevud.ctl.output import show_record, show_rows

COLUMNS = (
    "connection_id", "label", "state", "durability", "queue_size", "queue_bytes", "waiting", "waiting_bytes", "attached",
)  # fmt: skip


@click.command()
@target_argument
@json_option
@pass_settings
def channels(settings: Settings, target: str) -> None:
    """List the channels of a connection.

    JSON: a list of maps, one for each channel, among others {label, state, waiting, attached}.
    """
    rows = ask(settings, "channels", target=target)
    show_rows(rows, COLUMNS, as_json=settings.json, none="no channels")


@click.command()
@target_argument
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

    JSON: one map, among others {queue_size, queue_bytes, buffered_amount} for what waits for the peer and {waiting,
    waiting_bytes} for what waits for programs here; with --purge what was removed.
    """
    if direction is not None and not purge:
        raise click.UsageError("--direction goes with --purge")
    if purge:
        answer = ask(settings, "purge", target=target, label=label, direction=direction or "both")
    else:
        answer = ask(settings, "queue", target=target, label=label)
    show_record(answer, as_json=settings.json)


COMMANDS = (channels, queue)
