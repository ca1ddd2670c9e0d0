"""Completion in a shell."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.unit.ctl.conftest import run

pytestmark = [pytest.mark.once, pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")]

SCRIPT = """
rondevuctl() { "$PYTHON" -m rondevud.ctl.main "$@"; }
export -f rondevuctl
eval "$(rondevuctl completion bash)"
COMP_WORDS=(rondevuctl "$@")
COMP_CWORD=$#
_rondevuctl_completion "$PROGRAM"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def program(tmp_path):
    """A file called rondevuctl: the name is what tells the variable to look for."""
    program = tmp_path / "bin" / "rondevuctl"
    program.parent.mkdir()
    program.write_text(f'#!{sys.executable}\nfrom rondevud.ctl.main import main\nmain(prog_name="rondevuctl")\n')
    program.chmod(0o755)
    return program


@pytest.fixture
def complete(program):
    async def complete(*words, **env):
        root = Path(__file__).parents[3]
        process = await asyncio.create_subprocess_exec(
            "bash", "-c", SCRIPT, "bash", *map(str, words),
            env={**os.environ, "PYTHON": sys.executable, "PROGRAM": str(program),
                 "PYTHONPATH": f"{root}:{root / 'client_lib'}", **env},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate()
        assert err == b""
        return out.decode().split()

    return complete


async def test_commands_and_options_are_completed(complete):
    assert await complete("re") == ["receive-files", "reconnect", "reload"]
    assert await complete("key", "ex") == ["export"]
    assert await complete("send", "--wa") == ["--wait"]


async def test_targets_are_connections_and_for_some_commands_services(complete, house, server, path):
    house.connections = lambda: [
        {"connection_id": "conn-a", "name": "alice-chat", "state": "connected", "service": None, "target": "alice/a.b@1"},
        {"connection_id": "conn-b", "name": None, "state": "connected", "service": "bob/s@1.0.0", "target": None},
    ]  # fmt: skip
    house.disk.services["bob/s@1.0.0"] = {}
    assert await complete("--socket", path, "close", "") == ["alice-chat", "conn-b"]
    assert await complete("--socket", path, "close", "conn-") == ["conn-a", "conn-b"]
    assert await complete("--socket", path, "why", "") == ["alice-chat", "conn-b", "service:bob/s@1.0.0"]
    assert await complete("--socket", path, "why", "ser") == ["service:bob/s@1.0.0"]


async def test_sessions_are_those_that_services_took(complete, house, server, path):
    house.sessions = SimpleNamespace(
        list=lambda _target: [
            {"connection_id": "conn-a", "service": None, "state": "connected", "blocked": False},
            {"connection_id": "conn-b", "service": "bob/s@1.0.0", "state": "absent", "blocked": True},
        ]
    )
    assert await complete("--socket", path, "kick", "") == ["conn-b"]
    assert await complete("--socket", path, "unblock", "conn-a") == []


async def test_labels_are_those_of_the_target(complete, house, server, path):
    house.get("conn-a", "main")
    house.get("conn-a", "other")
    assert await complete("--socket", path, "send", "alice-chat", "") == ["main", "other"]
    assert await complete("--socket", path, "tail", "alice-chat", "o") == ["other"]
    assert await complete("--socket", path, "tail", "nobody", "") == []


async def test_without_a_daemon_nothing_is_completed_and_nothing_said(complete, path):
    assert await complete("--socket", path, "why", "") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
async def test_there_is_a_script_for_each_shell(shell):
    done = await run(None, "completion", shell)
    assert (done.code, done.err) == (0, "")
    assert "_RONDEVUCTL_COMPLETE" in done.out


async def test_other_shells_are_a_usage_error():
    assert (await run(None, "completion", "tcsh")).code == 2
