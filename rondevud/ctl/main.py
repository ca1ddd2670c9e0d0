"""``rondevuctl``: what one types to see and use the daemon. One module for each noun or verb."""

from __future__ import annotations

import click

from rondevu_client import __version__
from rondevud.ctl.commands import Commands
from rondevud.ctl.common import DAEMON_TIMEOUT, EXIT_CODES, Cli, Settings


@click.group(
    cls=Cli,
    commands=Commands(),
    epilog=EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--socket",
    metavar="PATH",
    help="The daemon's socket; else $RONDEVU_SOCKET, $XDG_RUNTIME_DIR/rondevud.sock, /run/rondevud/rondevud.sock:"
    " the first that answers.",
)
@click.option(
    "--daemon-timeout",
    type=click.FloatRange(0, min_open=True),
    default=DAEMON_TIMEOUT,
    show_default=True,
    metavar="S",
    help="Seconds to wait at most for a daemon that is just being started; inf: without end.",
)
@click.option("--json", "as_json", is_flag=True, help="Answer with JSON; each command's --help describes its shape.")
@click.version_option(__version__, prog_name="rondevuctl")
@click.pass_context
def main(context: click.Context, socket: str | None, daemon_timeout: float, as_json: bool) -> None:
    """See and use the rondevud of this machine.

    TARGET is a connection's name or id (and for some commands service:USER/FQN). Results go to stdout, messages to
    stderr.
    """
    context.obj = Settings(socket, as_json, daemon_timeout)


if __name__ == "__main__":
    main()
