"""The commands by name, and what is loaded for one of them."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import click
import pytest

import rondevud.ctl
from rondevud.ctl.commands import MODULES, Commands
from tests.unit.ctl.conftest import run

FOLDER = Path(rondevud.ctl.__file__).parent


def modules_with_commands():
    return {path.stem for path in FOLDER.glob("*.py") if "\nCOMMANDS = " in path.read_text(encoding="utf-8")}


def test_every_module_with_commands_is_in_the_table():
    assert modules_with_commands() == MODULES.keys()


@pytest.mark.parametrize("module", MODULES)
def test_the_table_has_the_names_of_a_module(module):
    commands = import_module(f"rondevud.ctl.{module}").COMMANDS
    assert tuple(command.name for command in commands) == MODULES[module]


def test_looking_a_command_up_finds_it_every_time():
    commands = Commands()
    assert [command.name for command in commands.values()] == list(commands)
    assert commands["backup"] is commands["backup"]
    assert (len(commands), commands.get("nonsense")) == (sum(map(len, MODULES.values())), None)


def test_commands_can_be_added_and_removed_as_in_every_group():
    commands = Commands()
    commands["more"] = more = click.Command("more")
    assert commands["more"] is more
    del commands["more"], commands["status"]
    assert commands.get("more") is commands.get("status") is None


@pytest.mark.once
async def test_a_mistyped_command_is_answered_with_what_may_be_meant():
    done = await run(None, "statu")
    assert (done.code, done.out) == (2, "")
    assert "No such command 'statu'" in done.err
    if hasattr(click.exceptions, "NoSuchCommand"):  # click 8.4
        assert "Did you mean 'status'?" in done.err
