"""The commands by name, and what is loaded for one of them."""

from __future__ import annotations

import asyncio
import functools
import sys
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


# --- what a command loads --------------------------------------------------------------------------------------------

WITH_MODULES = """
import sys
before = set(sys.modules)
from rondevud.ctl.main import main
try:
    main()
finally:
    # not what Cython only notes there
    loaded = [name for name, module in sys.modules.items() if name not in before and getattr(module, "__spec__", None)]
    print(*loaded, file=sys.stderr)
"""

OURS = {
    *("rondevud", "rondevud.ctl", "rondevud.ctl.commands", "rondevud.ctl.common", "rondevud.ctl.completing"),
    *("rondevud.ctl.main", "rondevud.ctl.output", "rondevud.ctl.status"),
    *("rondevu_client", "rondevu_client.asking", "rondevu_client.errors", "rondevu_client.messages"),
    *("rondevu_client.outline", "rondevu_client.protocol", "rondevu_client.sockets"),
}
"""What `rondevuctl status` may load of this project, and below of others: each costs milliseconds at every command."""

FOREIGN = {"click", "msgpack"}

COSTLY = {"asyncio", "concurrent", "dataclasses", "email", "json", "logging", "pathlib", "shutil", "ssl", "subprocess"}
"""Of the standard library, what is not needed to ask and to print; click itself has `inspect` and `typing`."""


def top(module):
    return module.partition(".")[0]


@pytest.mark.once
async def test_status_loads_what_it_needs_to_ask_and_to_print_and_nothing_else(house, server, path):
    answer = {"version": "0.1.0", "uptime": 7_200.5, "engine": None, "connections": 1, "counters": {"drops": 2}}
    house.status = functools.partial(asyncio.sleep, 0, answer)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WITH_MODULES, "--socket", str(path), "status",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode == 0, err
    assert b"connections  1\ncounters     drops 2\n" in out
    loaded = set(err.decode().split())
    ours = {name for name in loaded if top(name) in {"rondevud", "rondevu_client"}}
    assert ours - OURS == set()
    foreign = {top(name) for name in loaded - ours} - sys.stdlib_module_names
    assert foreign - FOREIGN == set()
    assert {top(name) for name in loaded} & COSTLY == set()
