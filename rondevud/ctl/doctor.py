"""The health of the daemon's store, and copies of it."""

from __future__ import annotations

from pathlib import Path

import click

from rondevud.ctl.common import REFUSED, Settings, ask, json_option, pass_settings, say
from rondevud.ctl.output import printable, show_json, show_record


@click.command(short_help="Look whether the daemon's store is as it was written.")
@json_option
@pass_settings
@click.pass_context
def doctor(context: click.Context, settings: Settings) -> None:
    """Look whether the store of the running daemon is as it was written.

    Reads all rows, in slices between the daemon's own work, and mends nothing. Prints a line for each finding, with what it
    means and what can be done; exit code 1 if one of them is not harmless. `rondevud doctor` looks deeper, and mends, while
    the daemon is stopped.

    JSON: a list of {kind, where, found, meaning, advice, harmless}.
    """
    findings = ask(settings, "doctor")
    clean = all(finding["harmless"] for finding in findings)
    if settings.json:
        show_json(findings)
    else:
        for finding in findings:
            click.echo(printable("{where}: {found}: {meaning}; {advice}".format_map(finding)))
        if clean:
            say("nothing is wrong")
    context.exit(0 if clean else REFUSED)


@click.command(short_help="Copy the daemon's store to a file.")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--force", is_flag=True, help="Write over FILE if it is there.")
@json_option
@pass_settings
def backup(settings: Settings, file: Path, force: bool) -> None:
    """Copy the daemon's store, as it is at this moment, to FILE (mode 0600), while the daemon goes on.

    The daemon writes the file itself. It holds messages, sessions and declarations, not the keys: `key export` does. To
    restore it, stop the daemon, run `rondevud restore FILE`, and start: peers report what is missing as a gap.

    JSON: {path, bytes}.
    """
    show_record(ask(settings, "backup", path=str(file.absolute()), force=force), as_json=settings.json)


COMMANDS = (doctor, backup)
