"""Every command's JSON has the keys that docs/commands.md lists, no more and no less."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path

import click
import pytest

from rondevud.ctl.common import EXIT_CODES
from rondevud.ctl.main import main as ctl_group
from rondevud.reloading import Changes
from tests.integration.daemons import FQN, SCALE, exchange_few, open_pair

pytestmark = [pytest.mark.webrtc, pytest.mark.once, pytest.mark.timeout(120 * SCALE)]

DOCUMENT = (Path(__file__).parents[2] / "docs" / "commands.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", DOCUMENT, flags=re.MULTILINE | re.DOTALL))
SERVICE = f"service:alice/{FQN}"


def documented(section: str) -> set[str]:
    """Keys of a section, those of maps with a dot."""
    return set(re.findall(r"^\| `([\w.]+)` \|", SECTIONS[section], flags=re.MULTILINE))


def found(answer: dict, keys: set[str]) -> set[str]:
    """The keys of an answer, those of maps with a dot where they are documented so."""
    nested = {key.split(".")[0] for key in keys if "." in key}
    return {
        f"{key}.{inner}" if key in nested else key
        for key, value in answer.items()
        for inner in ((value[0] if isinstance(value, list) else value) if key in nested else [""])
    }


async def ctl_lines(place, *args: str) -> list[dict]:
    """Of a command that goes on for a while and answers with a line now and then."""
    words = [sys.executable, "-m", "rondevud.ctl.main", "--socket", str(place.socket), "--json", *args]
    process = await asyncio.create_subprocess_exec(
        *words, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, (args, err)
    return [json.loads(line) for line in out.splitlines()]


async def ctl(place, *args: str, stdin: bytes = b"", first_line: bool = False):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "rondevud.ctl.main", "--socket", str(place.socket), "--json", *args,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    if first_line:
        line = await process.stdout.readline()
        process.terminate()
        await process.communicate()
        return json.loads(line)
    out, err = await process.communicate(stdin)
    assert process.returncode == 0, (args, err)
    answer = json.loads(out)
    return answer[0] if isinstance(answer, list) else answer


async def test_every_key_is_documented_and_there(world, tmp_path):
    pair = await open_pair(world)
    await exchange_few(pair.near, pair.far)
    home, away = pair.home, pair.away
    _, far_id = await pair.ids()

    async def check(place, section: str, *args: str, more: set[str] = frozenset(), **how) -> None:
        keys = documented(section) | more
        answer = await ctl(place, *args, **how)
        assert found(answer, keys) == keys, section

    await check(home, "status", "status")
    await check(home, "services", "services")
    await check(home, "connections", "connections")
    await check(home, "sessions", "sessions")
    await check(home, "clients", "clients")
    await check(home, "channels", "channels", SERVICE)
    await check(home, "queue", "queue", far_id, "main", more=documented("channels"))
    await check(home, "top", "top", "--count", "1")
    await check(home, "check", "check", "alice")
    await check(home, "claim", "claim", "alice")
    await check(home, "key list", "key", "list")
    await check(home, "key list", "key", "show", "alice")
    await check(home, "key list", "key", "generate", "bob")
    await check(home, "key export", "key", "export", "bob")
    await check(home, "key list", "key", "delete", "bob", "--yes")
    await check(home, "key import", "key", "import", "bob", stdin=b"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=")
    await check(home, "why service:USER/FQN", "why", SERVICE, more=documented("services"))
    connections = documented("connections") - {"channels"}
    dialling = {"max_attempts", "offer.offer_id", "offer.uuid", "dialled_ago"}
    await check(away, "why", "why", "chat", more=connections)
    seen = found(await ctl(home, "why", far_id), documented("why"))
    assert seen == (documented("why") | connections) - dialling
    await check(away, "send", "send", "chat", "main", "hello", "--wait", "acknowledged")
    await check(away, "wait", "wait", "chat", "drained")
    await check(away, "events", "events", "--since", "1", first_line=True)
    await check(home, "expose", "expose", "alice", "com.example.other@1.0.0")
    await check(home, "withdraw", "withdraw", "alice", "com.example.other@1.0.0")
    await check(away, "connect", "connect", "nobody", FQN, "--name", "other")
    await check(away, "close", "close", "other")
    await check(away, "queue --purge", "queue", "chat", "main", "--purge")
    await check(away, "queue --failed --purge", "queue", "chat", "main", "--failed", "--purge")
    await check(away, "queue --put-back", "queue", "chat", "main", "--put-back", "all")
    await check(away, "reconnect", "reconnect", "chat")
    await check(away, "backup", "backup", str(tmp_path / "copy.sqlite3"))
    await check(home, "kick", "kick", far_id, "--for", "0")
    await check(home, "block", "block", far_id)
    await check(home, "unblock", "unblock", far_id)
    await check(home, "forget", "forget", far_id, "--purge")


async def test_lines_about_files_are_documented(world, tmp_path):
    pair = await open_pair(world)
    await pair.leave()  # its program would serve the channel of the files
    (tmp_path / "file").write_text("hello")
    (tmp_path / "in").mkdir()
    receiving = asyncio.create_task(
        ctl_lines(pair.home, "receive-files", SERVICE, str(tmp_path / "in"), "--count", "1")
    )
    sent = await ctl_lines(pair.away, "send-file", "chat", str(tmp_path / "file"))
    assert all(set(line) == documented("send-file") for line in sent)
    assert all(set(line) == documented("receive-files") for line in await receiving)
    assert (sent[-1]["state"], sent[-1]["received_as"]) == ("done", "file")


async def test_messages_are_documented(world):
    pair = await open_pair(world)
    waiting = asyncio.create_task(ctl(pair.away, "tail", "chat", "main", first_line=True))
    while not any(row["client"].startswith("rondevuctl") and row["handles"] for row in await pair.visitor.clients()):
        pass
    await pair.far.send("hello")
    assert set(await waiting) == documented("tail")


def test_what_a_reload_answers_is_documented():
    assert set(Changes().as_map()) == documented("reload")


def test_every_command_has_a_section():
    commands = {name for name in ctl_group.commands if name not in {"key", "completion", "pipe"}}
    commands |= {f"key {name}" for name in ctl_group.commands["key"].commands}
    spoken_of = {"key show", "key generate", "key delete"}
    assert {name for name in SECTIONS if " " not in name or name.startswith("key ")} | spoken_of >= commands


def commands_with_sections():
    for section in SECTIONS:
        words = section.split()
        group = ctl_group.commands["key"].commands if words[0] == "key" else ctl_group.commands
        if words[-1] in group:
            yield pytest.param(section, group[words[-1]], id=section)


@pytest.mark.parametrize(("section", "command"), list(commands_with_sections()))
def test_the_help_of_a_command_has_its_keys(section, command):
    spoken_of = set(re.findall(r"\w+", command.help))
    assert {part for key in documented(section) for part in key.split(".")} <= spoken_of


def test_each_command_is_told_in_one_line_of_80_columns():
    context = click.Context(ctl_group, terminal_width=80)
    lines = [line for line in ctl_group.get_help(context).splitlines() if re.match("  [a-z][a-z-]+  +[A-Z]", line)]
    assert len(lines) == len(ctl_group.commands)
    assert not [line for line in lines if line.endswith("...") or len(line) > 80]


def test_exit_codes_are_those_of_the_help():
    documented_codes = re.findall(r"^\| (\d+) \|", SECTIONS["Exit codes"], flags=re.MULTILINE)
    assert documented_codes == re.findall(r"^  (\d+) ", EXIT_CODES, flags=re.MULTILINE)
