"""Receive files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from rondevud.ctl.common import REFUSED, Settings, json_option, pass_settings, say, target_argument
from rondevud.ctl.completing import complete_label
from rondevud.ctl.send_file import LABEL

if TYPE_CHECKING:
    from rondevu_client.client import Daemon


@click.command("receive-files", short_help="Receive what `send-file` sends, into a directory.")
@target_argument
@click.argument("directory", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option("--label", default=LABEL, show_default=True, shell_complete=complete_label, help="The channel to use.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after N files.")
@click.option("--for-ever", is_flag=True, help="Go on until interrupted, as without --count.")
@click.option(
    "--max-size", type=click.IntRange(0), metavar="BYTES", help="Refuse longer files. [default: without limit]"
)
@json_option
@click.pass_context
@pass_settings
def receive_files(
    settings: Settings,
    context: click.Context,
    target: str,
    directory: Path,
    label: str,
    count: int | None,
    for_ever: bool,
    max_size: int | None,
) -> None:
    """Take files into DIR, which is made if its parent is there. TARGET may be service:USER/FQN: from all its connections.

    A file appears in DIR when all of it is there and its SHA-256 is right, under the name it was sent with, made safe; no
    file is ever overwritten: the next one of the same name is `name (2).txt`. Until then it lies in a hidden directory
    there, and goes on from there whenever sender and receiver meet again, for seven days. Ctrl-C ends it.

    \b
    JSON, one line a second for each file under way and one when it is over:
      {connection_id, label, name, size, sha256, state, received, why}
    state is receiving, and in the end done, already (it was there before), refused or cancelled. name is the one it got.
    """
    if for_ever and count is not None:
        raise click.UsageError("--count and --for-ever exclude each other")
    from rondevud.ctl.files.folder import Folder  # noqa: PLC0415
    from rondevud.ctl.files.progress import open_display  # noqa: PLC0415
    from rondevud.ctl.files.receiving import ReceivingFiles  # noqa: PLC0415 - loads asyncio
    from rondevud.ctl.following import follow  # noqa: PLC0415

    try:
        directory.mkdir(exist_ok=True)
        folder = Folder(directory)
    except OSError as error:
        say(f"{error.filename or directory}: {error.strerror}")
        context.exit(REFUSED)
    with open_display(as_json=settings.json) as display:

        async def work(daemon: Daemon) -> None:
            receiving = ReceivingFiles(folder, label, display, count=count, max_size=max_size)
            if target.startswith("service:"):
                await receiving.from_service(daemon, target)
            else:
                await receiving.from_connection(daemon, target)

        follow(settings, work)


COMMANDS = (receive_files,)
