"""The examples, by the commands of their README, in processes of their own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import sys
from pathlib import Path

import pytest

from tests.acceptance.processes import LIMIT, ROOT, NotifySocket, Stage

EXAMPLES = ROOT / "examples"
README = (EXAMPLES / "README.md").read_text(encoding="utf-8")

pytestmark = [pytest.mark.acceptance, pytest.mark.once, pytest.mark.webrtc, LIMIT]


def commands(example):
    """The lines of the README's section on `example`, each for a terminal of its own; None: what stands before the first."""
    parts = dict.fromkeys(["", *re.findall(r"^## \[(\S+)\]", README, re.MULTILINE)])
    texts = dict(zip(parts, re.split(r"^## .*$", README, flags=re.MULTILINE), strict=True))
    return [
        line
        for text in re.findall(r"^```sh\n(.*?)^```", texts[example], re.MULTILINE | re.DOTALL)
        for line in text.splitlines()
    ]


class Terminals:
    """A daemon as the README starts it, and programs beside it."""

    def __init__(self, stage):
        self._stage = stage
        self._directory = stage.path / "examples"
        shutil.copytree(EXAMPLES, self._directory)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._env = {"PATH": path, "RONDEVU_SOCKET": str(self._directory / "rondevud.sock")}
        self._count = 0

    async def start_daemon(self):
        configure, run, export = commands("")
        assert export == "export RONDEVU_SOCKET=$PWD/rondevud.sock"
        configuring = await self.run(configure)
        assert await configuring.exited() == 0
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        with (self._directory / "rondevud.toml").open("a") as file:
            file.write(f'listen = "127.0.0.1:{port}"\n')
        notify = NotifySocket(self._stage.path / "notify")
        self._stage.on_exit(notify.close)
        await notify.wait_for("READY=1", await self.run(run, NOTIFY_SOCKET=str(notify.path)))

    async def run(self, line, **env):
        """The process of a command line."""
        self._count += 1
        bash = ["bash", "-c", line if ">" in line else f"exec {line}"]
        return await self._stage.start(f"terminal-{self._count}", bash, {**self._env, **env}, self._directory)


@pytest.fixture
async def terminals(tmp_path):
    async with Stage(tmp_path) as stage:
        terminals = Terminals(stage)
        await terminals.start_daemon()
        yield terminals


def output(process):
    return [" ".join(words) for words in process.lines]


async def until_said(process, text):
    await process.until(lambda: any(text in line for line in output(process)), f"{text!r}")


async def interrupt(process):
    """Ctrl-C; it ends at once and without a traceback."""
    process.send(signal.SIGINT)
    assert await process.exited() == 0
    assert process.log.read_text() == ""


def test_every_example_is_in_the_readme_and_has_a_docstring():
    files = sorted(path.name for path in EXAMPLES.glob("*.py"))
    assert files == sorted(re.findall(r"^## \[(\S+)\]\(\1\)", README, re.MULTILINE))
    for name in files:
        usage = {
            line.split("  ")[0]
            for line in re.findall(r"^    (python .*)$", (EXAMPLES / name).read_text(), re.MULTILINE)
        }
        assert len(usage) >= 2
        assert {line.split()[1] for line in usage} == {name}


async def test_an_echo_service_echoes(terminals):
    serve, call = commands("echo_service.py")
    service = await terminals.run(serve)
    await until_said(service, "is exposed")
    for _ in range(2):
        caller = await terminals.run(call)
        assert await caller.exited() == 0
        assert output(caller) == ["echo: hello", "echo: there"]
        assert caller.log.read_text() == ""
    await until_said(service, "has opened 'words'")
    await interrupt(service)


async def test_two_people_chat(terminals):
    wait, call = commands("chat.py")
    alice = await terminals.run(wait)
    await until_said(alice, "alice waits to be called")
    bob = await terminals.run(call)
    await until_said(alice, "bob is here")
    await until_said(bob, "alice is here")
    bob.type("hello alice")
    await until_said(alice, "bob: hello alice")
    alice.type("hello bob, älso")
    await until_said(bob, "alice: hello bob, älso")
    await interrupt(alice)
    bob.type("are you there?")
    alice = await terminals.run(wait)
    await until_said(alice, "bob: are you there?")
    bob.end_input()
    assert await bob.exited() == 0
    assert bob.log.read_text() == ""
    await until_said(alice, "bob has left")
    assert output(alice) == ["alice waits to be called", "bob: are you there?", "bob has left"]
    await interrupt(alice)


async def test_nobody_called_yet_can_be_interrupted(terminals):
    alice = await terminals.run(commands("chat.py")[0])
    await until_said(alice, "waits")
    await interrupt(alice)


async def test_a_sensor_posts_while_nobody_is_there(terminals):
    post, collect = commands("sensor.py")
    sensor = await terminals.run(post)
    assert await sensor.exited() == 0
    assert output(sensor) == [f"posted {number}: {number} on the way" for number in (1, 2, 3)]
    station = await terminals.run(collect)
    await until_said(station, "reading 3:")
    assert [line.split(":")[0] for line in output(station)] == [
        "the station is up",
        *(f"reading {n}" for n in (1, 2, 3)),
    ]
    await interrupt(station)


async def test_workers_share_the_tasks_and_one_that_is_killed_loses_none(terminals):
    *workers, boss = commands("work_queue.py")
    ann, ben = [await terminals.run(line) for line in workers]
    for worker in (ann, ben):
        await until_said(worker, "is ready")
    boss = await terminals.run(boss)
    await until_said(ann, "has done")
    await ann.kill()
    assert await boss.exited() == 0
    results = re.findall(r"^(\d+) (is|is not) prime, says (ann|ben)$", "\n".join(output(boss)), re.MULTILINE)
    assert sorted(int(number) for number, _, _ in results) == list(range(1_000_003, 1_000_023))
    assert ("1000003", "is") in {result[:2] for result in results}
    assert ("1000004", "is not") in {result[:2] for result in results}
    assert {worker for _, _, worker in results} == {"ann", "ben"}
    await interrupt(ben)


@pytest.mark.parametrize("line", ["chat.py", "sensor.py read", "work_queue.py boss", "work_queue.py"])
async def test_wrong_words_are_answered_with_the_usage(tmp_path, line):
    async with Stage(tmp_path) as stage:
        process = await stage.start("wrong", [sys.executable, *line.split()], cwd=EXAMPLES)
        assert await process.exited() == 1
        assert process.log.read_text().startswith(f"usage: {line.split()[0]} ")
