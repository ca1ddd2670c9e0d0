"""The keys of user names: who has the private key of a name is that user."""

from __future__ import annotations

import sys
from typing import TextIO

import click

from rondevud.ctl.common import Settings, ask, json_option, pass_settings, say
from rondevud.ctl.output import show_json, show_record, show_rows

MAX_KEY = 1_000
"""Characters of a file that can be a private key: it has 44."""

user_argument = click.argument("user")


@click.group(short_help="The keys of user names.")
def key() -> None:
    """The keys of user names, kept in the daemon's state directory.

    `claim` and `expose` make the key of a new name. To be the same user on another machine, export it here and import
    it there.
    """


@key.command("list")
@json_option
@pass_settings
def list_(settings: Settings) -> None:
    """List the user names that have a key here.

    JSON: a list of {username, public_key, file}.
    """
    rows = ask(settings, "key_list")
    show_rows(rows, ("username", "public_key", "file"), as_json=settings.json, none="no keys")


@key.command(short_help="Show the public key of USER.")
@user_argument
@json_option
@pass_settings
def show(settings: Settings, user: str) -> None:
    """Show the public key of USER, and the file that has the private one.

    JSON: {username, public_key, file}.
    """
    show_record(ask(settings, "key_show", username=user), as_json=settings.json)


@key.command(short_help="Make a key for USER.")
@user_argument
@json_option
@pass_settings
def generate(settings: Settings, user: str) -> None:
    """Make a key for USER without asking any server; `claim` claims the name with it.

    JSON: {username, public_key, file}.
    """
    show_record(ask(settings, "key_generate", username=user), as_json=settings.json)


@key.command(short_help="Print the private key of USER.")
@user_argument
@json_option
@pass_settings
def export(settings: Settings, user: str) -> None:
    """Print the private key of USER: base64 of 32 bytes, as the JavaScript clients take it. It is secret.

    JSON: {username, private_key}.
    """
    answer = ask(settings, "key_export", username=user)
    if settings.json:
        show_json(answer)
    else:
        click.echo(answer["private_key"])


@key.command("import", short_help="Take the private key of USER from a file.")
@user_argument
@click.argument("file", type=click.File("r"), default="-")
@click.option("--force", is_flag=True, help="Replace another key; that one is kept in a file beside it.")
@json_option
@pass_settings
def import_(settings: Settings, user: str, file: TextIO, force: bool) -> None:
    """Take the private key of USER from FILE, or with - (or without it) from standard input.

    It is what `key export` prints. It is not an argument: those can be seen by everybody on this machine.

    JSON: {username, public_key, file, kept}; kept is the file of the key that was replaced, else null.
    """
    private_key = _read_key(file)
    answer = ask(settings, "key_import", username=user, private_key=private_key, force=force)
    show_record(answer, as_json=settings.json)


def _read_key(file: TextIO) -> str:
    if file is sys.stdin and file.isatty():
        private_key: str = click.prompt("Private key", hide_input=True, err=True)
    else:
        try:
            private_key = file.read(MAX_KEY + 1).strip()
        except UnicodeDecodeError:
            private_key = ""
    if not private_key or len(private_key) > MAX_KEY:
        raise click.UsageError("no private key was given: base64 of 32 bytes in one line, as `key export` prints it")
    return private_key


@key.command()
@user_argument
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@pass_settings
def delete(settings: Settings, user: str, yes: bool) -> None:
    """Remove the key of USER from this machine. Refused while a service of USER is declared.

    Without a copy of it, the name cannot be claimed again until its claim at the server has ended.

    JSON: {username, public_key, file}.
    """
    if not yes:
        described = ask(settings, "key_show", username=user)
        _confirm(f"Delete the only key known here for {user} ({described['public_key']})?")
    show_record(ask(settings, "key_delete", username=user), as_json=settings.json)


def _confirm(question: str) -> None:
    if not sys.stdin.isatty():
        raise click.UsageError("nobody can be asked here: --yes deletes without asking")
    if not click.confirm(question, err=True):
        say("nothing was deleted")
        raise click.exceptions.Exit(1)


COMMANDS = (key,)
