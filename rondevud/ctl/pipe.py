"""A channel as standard input and output."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from rondevud.ctl.common import Settings, connection_argument, json_option, label_argument, pass_settings

if TYPE_CHECKING:
    from rondevu_client.client import Daemon


@click.command(short_help="Make a channel standard input and output.")
@connection_argument
@label_argument
@click.option("--null", "-0", is_flag=True, help="Messages end with a null byte instead of a line feed.")
@click.option("--binary", is_flag=True, help="Messages are bytes, each behind its length in 4 bytes, big endian.")
@click.option(
    "--linger",
    type=click.FloatRange(0),
    default=0.0,
    metavar="S",
    help="After the end of the input go on receiving for so many seconds, or inf. [default: 0]",
)
@json_option
@pass_settings
def pipe(settings: Settings, target: str, label: str, null: bool, binary: bool, linger: float) -> None:
    """Send each line of standard input as a message, and print each message that arrives as a line.

    Takes the messages: what was printed is acknowledged, and no other program gets it. Ends when the input has ended and
    the peer's daemon has everything (a peer that acknowledges nothing: when everything was handed over).

    Lines cannot carry messages with line feeds in them: use --null for text with line feeds, --binary for anything.
    Input is sent as text, with --binary as bytes; both kinds are printed as they come.

    JSON, one line for each message that arrives, as of `tail`; what is sent is framed as without it.
    """
    if null and binary:
        raise click.UsageError("--null and --binary are two ways to tell where a message ends: choose one")

    from rondevud.ctl.following import follow  # noqa: PLC0415 - loads asyncio
    from rondevud.ctl.framing import BINARY, LINES, NULL, standard_input  # noqa: PLC0415
    from rondevud.ctl.piping import Piping  # noqa: PLC0415

    framing = BINARY if binary else NULL if null else LINES

    async def work(daemon: Daemon) -> None:
        channel = await daemon.attach(target, label, auto_ack=False)
        await Piping(channel, framing, as_json=settings.json).run(standard_input(), linger)

    follow(settings, work)


COMMANDS = (pipe,)
