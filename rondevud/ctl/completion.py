"""The script by which a shell completes the words of this command."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

PROGRAM = "rondevuctl"
VARIABLE = "_RONDEVUCTL_COMPLETE"
"""What click looks for in the environment of a program of that name."""


@click.command(short_help="Print the script for completion in bash, zsh or fish.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script with which SHELL completes commands, options, targets and labels.

    \b
    bash: eval "$(rondevuctl completion bash)"     in ~/.bashrc
    zsh:  eval "$(rondevuctl completion zsh)"      in ~/.zshrc, behind compinit
    fish: rondevuctl completion fish | source      in ~/.config/fish/config.fish
    """
    script = get_completion_class(shell)
    assert script is not None, shell  # noqa: S101 - the choice has those that click knows
    click.echo(script(context.find_root().command, {}, PROGRAM, VARIABLE).source())


COMMANDS = (completion,)
