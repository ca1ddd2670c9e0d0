"""Send files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from rondevud.ctl.common import REFUSED, Settings, connection_argument, json_option, pass_settings, run, say
from rondevud.ctl.completing import complete_label

if TYPE_CHECKING:
    from rondevu_client.client import Daemon

LABEL = "files"


@click.command("send-file", short_help="Send files to `receive-files` on the other side.")
@connection_argument
@click.argument(
    "files",
    metavar="FILE...",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, dir_okay=False, readable=True, path_type=Path),
)
@click.option("--label", default=LABEL, show_default=True, shell_complete=complete_label, help="The channel to use.")
@click.option(
    "--timeout", type=click.FloatRange(0, min_open=True), metavar="S", help="Give up after S seconds without progress."
)
@json_option
@click.pass_context
@pass_settings
def send_file(
    settings: Settings, context: click.Context, target: str, files: tuple[Path, ...], label: str, timeout: float | None
) -> None:
    """Send each FILE; ends when the program on the other side (`receive-files`) has it with the right hash and a name.

    Whatever is interrupted, here or there, a program, a daemon or the link: the same command, typed again, goes on where the
    last one stopped. A file that the other side has received before, and that still lies there, is not sent again.

    Exit code 1 if a file was refused, changed while it was being sent, or cannot be read; the others are sent all the same.

    \b
    JSON, one line a second for each file under way and one when it is over:
      {file, name, size, sha256, state, received, resumed_at, received_as, why}
    state is reading, offered, sending, and in the end done, refused, changed or failed. received is what the other side has
    on its disk, resumed_at what it had when this command began, received_as the name it gave the file.
    """
    from rondevud.ctl.files.progress import open_display  # noqa: PLC0415
    from rondevud.ctl.files.sending import SendingFiles, attach_in_turn  # noqa: PLC0415 - loads asyncio
    from rondevud.ctl.following import speak_of_restarts  # noqa: PLC0415

    speak_of_restarts()
    with open_display(as_json=settings.json) as display:

        async def work(daemon: Daemon) -> bool:
            async with attach_in_turn(daemon, target, label, display) as channel:
                return await SendingFiles(channel, display, timeout=timeout).run(files)

        try:
            complete = run(settings, work, reconnect=True)
        except KeyboardInterrupt:
            say("interrupted; the same command goes on from there")
            raise
    if not complete:
        context.exit(REFUSED)


COMMANDS = (send_file,)
