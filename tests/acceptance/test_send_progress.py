"""Progress of `rondevuctl send -`, which is shown on a terminal only."""

from __future__ import annotations

import os
import shlex
import sys

import pytest

from tests.acceptance.processes import LIMIT, Stage
from tests.acceptance.terminal import ENDED, open_terminal
from tests.acceptance.test_top import OWN

pytestmark = [pytest.mark.acceptance, pytest.mark.once, LIMIT]


@pytest.fixture
async def daemon(tmp_path):
    async with Stage(tmp_path) as stage:
        await stage.rendezvous.start()
        daemon = stage.daemon("alice", OWN)
        await daemon.start()
        yield daemon


def command(daemon, *arguments):
    words = [sys.executable, "-m", "rondevud.ctl.main", "--socket", str(daemon.socket), "send", "chat", "main", "-"]
    return shlex.join([*words, *arguments])


async def test_a_long_send_shows_how_far_it_is_and_leaves_only_its_result(daemon, tmp_path):
    fifo = tmp_path / "lines"
    os.mkfifo(fifo)
    async with open_terminal(f"{command(daemon, '--lines')} < {fifo}") as terminal:
        with fifo.open("w", buffering=1) as lines:  # opens when the command does
            for number in range(3):
                lines.write(f"{number}\n")
            await terminal.until("3 accepted")
        shown = await terminal.until(f"{ENDED} 0")
        assert "3 accepted" not in shown, "the bar stays"
        assert "messages       3" in shown


async def test_reading_one_long_message_is_shown(daemon, tmp_path):
    fifo = tmp_path / "whole"
    os.mkfifo(fifo)
    async with open_terminal(f"{command(daemon)} < {fifo}") as terminal:
        with fifo.open("w", buffering=1) as whole:

            def shown(screen):
                whole.write("x\n")
                return "reading" in screen

            await terminal.until(shown)
        await terminal.until(f"{ENDED} 0")
