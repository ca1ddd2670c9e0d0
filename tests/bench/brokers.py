"""The same load through message brokers, where they are installed: one broker, where rondevud has two daemons."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator

from tests.acceptance.processes import Process, Stage
from tests.bench.figures import Report
from tests.bench.pairs import PATIENCE, Timing, Worker, run_pair
from tests.bench.scene import until
from tests.bench.throughput import Shape, add

SIZES = (64, 1024, 16 * 1024)

BROKERS = {"mosquitto": ("mosquitto", "-h"), "nats": ("nats-server", "-v")}
"""The command of each, which is also its Debian package, and the option with which it says its version."""

CLIENTS = {"mosquitto": ("paho", "paho-mqtt"), "nats": ("nats", "nats-py")}
"""What Python programs use: the module and its package."""

PATHS = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"

MOSQUITTO = """
user {user}
listener 0 {socket}
allow_anonymous true
persistence true
persistence_location {directory}/
max_inflight_messages 1000
max_queued_messages 0
log_dest stderr
"""
"""Persistence as Debian sets it: written each half hour and at the end. Without limits that hold back or drop messages."""


def describe() -> dict[str, str]:
    """The version of each broker, or why it is not measured."""
    return {name: _version(name) if not (why := _missing(name)) else why for name in BROKERS}


def usable() -> list[str]:
    return [name for name in BROKERS if not _missing(name)]


async def measure(stage: Stage, report: Report, name: str, timing: Timing) -> None:
    start = mosquitto if name == "mosquitto" else nats
    async with start(stage) as (process, address):
        for size in SIZES:
            job = {"kind": name, "address": address, "topic": f"size{size}", "size": size}
            other = await Worker.start(stage, "broker", {**job, "send": False})
            await other.hear("ready")
            one = await Worker.start(stage, "broker", {**job, "send": True})
            await one.hear("ready")
            run = await run_pair(one, other, timing, watched={"broker": process.pid})
            add(report, run, Shape(size), via=name)
            await one.stop()
            await other.stop()


@contextlib.asynccontextmanager
async def mosquitto(stage: Stage) -> AsyncIterator[tuple[Process, str]]:
    """The process, and the path of its Unix socket."""
    directory, socket = stage.path / "mosquitto", stage.path / "mosquitto.sock"
    directory.mkdir()
    config = stage.path / "mosquitto.conf"
    user = pwd.getpwuid(os.geteuid()).pw_name
    config.write_text(MOSQUITTO.format(user=user, socket=socket, directory=directory))
    process = await stage.start("mosquitto", [_command("mosquitto"), "-c", str(config)])

    async def missing() -> str:
        assert process.exit_code is None, f"mosquitto ended with {process.exit_code}"
        return "" if socket.exists() else "there is no socket"

    await until(missing, "mosquitto listens", PATIENCE)
    yield process, str(socket)
    process.send(signal.SIGTERM)
    await process.exited()


@contextlib.asynccontextmanager
async def nats(stage: Stage) -> AsyncIterator[tuple[Process, str]]:
    """The process, with a port that the system chose, and its URL."""
    directory = stage.path / "nats"
    directory.mkdir()
    options = ["-js", "-sd", str(directory), "-a", "127.0.0.1", "-p", "-1", "--ports_file_dir", str(directory)]
    process = await stage.start("nats-server", [_command("nats"), *options])
    url = ""

    async def missing() -> str:
        nonlocal url
        assert process.exit_code is None, f"nats-server ended with {process.exit_code}"
        for path in directory.glob("*.ports"):
            with contextlib.suppress(ValueError):  # not written wholly
                url = json.loads(path.read_text())["nats"][0]
        return "" if url else "it has not said where"

    await until(missing, "nats-server listens", PATIENCE)
    yield process, url
    process.send(signal.SIGTERM)
    await process.exited()


def _missing(name: str) -> str:
    module, package = CLIENTS[name]
    if shutil.which(BROKERS[name][0], path=PATHS) is None:
        return f"not measured: there is no {BROKERS[name][0]} (Debian package {BROKERS[name][0]})"
    if importlib.util.find_spec(module) is None:
        return f"not measured: the Python package {package} is not installed"
    return ""


def _command(name: str) -> str:
    found = shutil.which(BROKERS[name][0], path=PATHS)
    assert found is not None
    return found


def _version(name: str) -> str:
    said = subprocess.run([_command(name), BROKERS[name][1]], capture_output=True, text=True, timeout=10, check=False)
    found = re.search(r"\d+\.\d+\.\d+", said.stdout + said.stderr)
    return found[0] if found else "of unknown version"
