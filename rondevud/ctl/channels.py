"""The channels there are."""

from __future__ import annotations

import click

from rondevud.ctl.common import Settings, ask, json_option, pass_settings, target_argument
from rondevud.ctl.output import show_rows

COLUMNS = (
    "connection_id", "label", "state", "durability", "queue_size", "queue_bytes", "waiting", "waiting_bytes",
    "failed", "attached",
)  # fmt: skip


@click.command(short_help="List the channels of a connection or service.")
@target_argument
@json_option
@pass_settings
def channels(settings: Settings, target: str) -> None:
    """List the channels of a connection, or of all connections of service:USER/FQN.

    JSON: a list of {connection_id, label, state, acknowledges, durability, queue_size, queue_bytes, parked,
    buffered_amount, waiting, waiting_bytes, failed, attached, producers, counters}.
    """
    rows = ask(settings, "channels", target=target)
    show_rows(rows, COLUMNS, as_json=settings.json, none="no channels")


COMMANDS = (channels,)
