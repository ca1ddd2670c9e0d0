"""`rondevuctl top` in a real terminal."""

from __future__ import annotations

import shlex
import sys

import pytest

from rondevud.ctl.screen import BARS
from tests.acceptance.processes import LIMIT, PATIENCE, Stage
from tests.acceptance.terminal import ENDED, open_terminal

pytestmark = [pytest.mark.acceptance, pytest.mark.once, LIMIT]

FQN = "com.example.top@1.0.0"
OWN = f"""
[[service]]
username = "alice"
fqn = "{FQN}"
polling_interval = 0.2
[[connection]]
name = "chat"
username = "alice"
fqn = "{FQN}"
channels = ["main"]
"""


@pytest.fixture
async def daemon(tmp_path):
    """One that is connected to itself."""
    async with Stage(tmp_path) as stage:
        await stage.rendezvous.start()
        daemon = stage.daemon("alice", OWN)
        await daemon.start()
        async with daemon.client() as client:
            await client.wait("chat", "connected", PATIENCE)
        yield daemon


def command(daemon, *arguments):
    return shlex.join([sys.executable, "-m", "rondevud.ctl.main", "--socket", str(daemon.socket), "top", *arguments])


async def send(daemon, count):
    async with daemon.client() as client:
        channel = await client.attach("chat", "main", mode="send")
        for number in range(count):
            await channel.send(str(number))
        await channel.flush()


def row(shown, *words):
    """Whether a line of the screen has all these words."""
    return any(set(words) <= set(line.split()) for line in shown.splitlines())


async def test_it_shows_what_changes_goes_on_over_a_restart_and_ends_with_q(daemon):
    async with open_terminal(command(daemon, "--interval", "0.2")) as terminal:
        shown = await terminal.until(lambda shown: row(shown, "chat", "main", "open"))
        assert "2 of 2 connected" in shown
        assert row(shown, "chat", "connected")
        await send(daemon, 7)
        shown = await terminal.until(lambda shown: row(shown, "main", "open", "7"))
        assert BARS[-1] in shown
        assert await daemon.stop() == 0
        await terminal.until("no answer for")
        await daemon.start()
        shown = await terminal.until(lambda shown: "no answer" not in shown and row(shown, "main", "open", "7"))
        assert ENDED not in shown
        await terminal.press("q")
        shown = await terminal.until("icanon")
        assert f"{ENDED} 0" in shown
        assert not {"-icanon", "-echo"} & set(shown.split()), "the terminal is not as it was"
        assert "chat" not in shown, "the screen was not given back"


async def test_ctrl_c_ends_it_and_leaves_the_terminal_as_it_was(daemon):
    async with open_terminal(f"trap : INT; {command(daemon)}") as terminal:
        await terminal.until(lambda shown: row(shown, "chat", "main"))
        await terminal.press("C-c")
        shown = await terminal.until("icanon")
        assert f"{ENDED} 0" in shown
        assert "Traceback" not in shown
        assert not {"-icanon", "-echo"} & set(shown.split())


async def test_without_a_daemon_it_says_so_below_the_prompt(daemon):
    assert await daemon.stop() == 0
    async with open_terminal(command(daemon)) as terminal:
        shown = await terminal.until("icanon")
        assert f"{ENDED} 3" in shown
        assert "rondevuctl: " in shown
