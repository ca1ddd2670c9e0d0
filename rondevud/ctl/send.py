"""Send from the command line."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from rondevud.ctl.common import Settings, connection_argument, json_option, label_argument, pass_settings, run
from rondevud.ctl.output import show_record

if TYPE_CHECKING:
    from rondevu_client.client import Daemon
    from rondevud.ctl.sending import Until


@click.command(short_help="Send text, a file, or lines.")
@connection_argument
@label_argument
@click.argument("text", default="-")
@click.option("--lines", is_flag=True, help="Standard input is one message for each line, sent as they come.")
@click.option("--binary", is_flag=True, help="Send bytes instead of text.")
@click.option(
    "--wait",
    type=click.Choice(["accepted", "sent", "acknowledged"]),
    default="accepted",
    show_default=True,
    help="End when the daemon has stored it (accepted), has handed it to a data channel (sent), or when the peer's daemon"
    " has stored it (acknowledged).",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    metavar="S",
    help="Seconds to wait at most. [default: without end]",
)
@json_option
@pass_settings
def send(
    settings: Settings,
    target: str,
    label: str,
    text: str,
    lines: bool,
    binary: bool,
    wait: Until,
    timeout: float | None,
) -> None:
    """Send TEXT, or with - (or without it) standard input, as one message.

    The message is stored before this ends, and reaches the peer when there is one. After a time-out with --wait sent or
    acknowledged it is still stored. A peer that is no daemon acknowledges nothing: sent is all that can be known.

    On a terminal standard error shows how far a long send from standard input has come.

    JSON: {connection_id, label, messages, bytes, state}, the state being what was waited for.
    """
    if lines and text != "-":
        raise click.UsageError("--lines reads standard input: TEXT must be -")
    from rondevud.ctl import progress  # noqa: PLC0415 - loads asyncio
    from rondevud.ctl.framing import LINES, standard_input  # noqa: PLC0415
    from rondevud.ctl.sending import Sending  # noqa: PLC0415 - loads asyncio

    whole = None if lines else _encode(text) if text != "-" else progress.read_whole(sys.stdin.buffer)
    total = progress.size_of_input() if whole is None else len(whole)

    async def work(daemon: Daemon) -> Sending:
        channel = await daemon.attach(target, label, mode="send", confirm_sent=wait == "sent")
        sending = Sending(channel, binary=binary, timeout=timeout)
        messages = LINES.split(standard_input()) if whole is None else [whole]
        async with progress.shown(sending, total, wait):
            await sending.send(messages, wait)
        return sending

    sending = run(settings, work, reconnect=True)
    show_record(sending.result(wait), as_json=settings.json)


def _encode(text: str) -> bytes:
    """The bytes that stood on the command line."""
    return text.encode("utf-8", "surrogateescape")


COMMANDS = (send,)
