"""How the daemon is."""

from __future__ import annotations

import click

from rondevud.ctl.common import Settings, ask, json_option, pass_settings, say
from rondevud.ctl.output import show_record, span


@click.command()
@json_option
@pass_settings
def status(settings: Settings) -> None:
    """Show how the daemon is.

    JSON: {version, instance, pid, uptime, signalling, engine, services, connections, connected, clients, tasks,
    closing, store, store_bytes, max_store_bytes, counters, engine_counters, signalling_counters}.
    """
    answer = ask(settings, "status")
    if not settings.json:
        answer |= {"uptime": span(answer["uptime"])}
    show_record(answer, as_json=settings.json)


@click.command(short_help="Take over changes of the configuration file.")
@json_option
@pass_settings
def reload(settings: Settings) -> None:
    """Take over what was changed in the daemon's configuration file, as SIGHUP does, and say what that was.

    A file with a mistake changes nothing. What stands in restart_needed holds when the daemon is started again.

    JSON: {added, changed, removed, restart_needed}, lists of names and of keys of the configuration, and detached, how many
    attachments ended because of new rules of access.
    """
    answer = ask(settings, "reload")
    if not settings.json:
        answer = {key: value for key, value in answer.items() if value}
        if not answer:
            say("nothing has changed")
        if answer.get("restart_needed"):
            say(
                "what needs a restart is used from the next start on: `systemctl restart rondevud` (or its user's: --user)"
            )
    show_record(answer, as_json=settings.json)


COMMANDS = (status, reload)
