"""The daemon under what a service manager does to it: sockets handed over, restrictions. A real one: `tests/system`."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rondevu_client import Daemon as Client
from tests.acceptance.processes import CONFIG, LIMIT, Daemon, Stage
from tests.engines import ENGINES

pytestmark = [pytest.mark.acceptance, pytest.mark.once, LIMIT]

HAND_OVER = """
import os, sys
count = int(sys.argv[1])
for number in range(count):
    os.dup2(int(sys.argv[2 + number]), 3 + number)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(count))
os.execv(sys.executable, [sys.executable, "-m", "rondevud", *sys.argv[2 + count:]])
"""
"""What systemd does between fork and exec."""


def run_with(sockets: list[socket.socket], *arguments: str | Path, **env: str) -> subprocess.Popen[str]:
    numbers = [100 + index for index in range(len(sockets))]  # away from where they are to be put
    for sock, number in zip(sockets, numbers, strict=True):
        os.dup2(sock.fileno(), number)
    command = [sys.executable, "-c", HAND_OVER, str(len(sockets)), *map(str, numbers), *map(str, arguments)]
    try:
        return subprocess.Popen(
            command,
            pass_fds=numbers,
            env={**os.environ, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        for number in numbers:
            os.close(number)


@pytest.fixture
def listening(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(tmp_path / "handed-over.sock"))
        sock.listen()
        yield sock


async def test_who_connects_first_waits_for_the_daemon_and_the_socket_outlives_it(tmp_path, listening):
    path = tmp_path / "handed-over.sock"
    before = path.stat().st_ino
    early = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    early.connect(str(path))  # nobody accepts yet
    process = run_with([listening], "run", "--state-dir", tmp_path / "state", "--socket", tmp_path / "unused.sock")
    try:
        async with Client(path) as client:
            assert (await client.status())["pid"] == process.pid
        assert not (tmp_path / "unused.sock").exists()
        process.terminate()
        assert process.wait(30) == 0, process.stderr.read()
    finally:
        process.kill()
        process.communicate()
        early.close()
    assert path.stat().st_ino == before
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as later:
        later.connect(str(path))  # waits for the next daemon


@pytest.mark.parametrize("kind", ["datagram", "internet", "silent", "file", "two"])
def test_what_is_handed_over_and_cannot_be_listened_at_is_named(tmp_path, listening, kind):
    with (tmp_path / "file").open("w") as file, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        internet, datagram = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sockets, problem = {
            "datagram": ([datagram], "file descriptor 3 is not a Unix stream socket"),
            "internet": ([internet], "file descriptor 3 is not a Unix stream socket"),
            "silent": ([silent], "file descriptor 3 is a socket that does not listen"),
            "file": ([file], "file descriptor 3 is not a socket"),
            "two": ([listening, silent], "2 sockets were handed over (LISTEN_FDS), and the daemon listens at one"),
        }[kind]
        process = run_with(sockets, "run", "--state-dir", tmp_path / "state", "--socket", tmp_path / "unused.sock")
        _, stderr = process.communicate(timeout=60)
        internet.close()
        datagram.close()
    assert process.returncode == 1
    assert f"rondevud: {problem}" in stderr
    assert "Traceback" not in stderr


PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 65, 1

RESTRICT = f"""
import ctypes, os, sys
assert ctypes.CDLL(None).prctl({PR_SET_MDWE}, {PR_MDWE_REFUSE_EXEC_GAIN}, 0, 0, 0) == 0
os.execv(sys.executable, [sys.executable, "-m", "rondevud", *sys.argv[1:]])
"""


def rondevud(*arguments: str | Path, before: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [*(before or [sys.executable, "-m", "rondevud"]), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)


@pytest.mark.parametrize("engine", ["auto", *ENGINES])
def test_the_self_test_passes_where_nothing_is_denied(engine):
    done = rondevud("self-test", "--engine", engine)
    assert (done.returncode, done.stdout) == (0, "WebRTC works here\n"), done.stderr


@pytest.mark.parametrize("command", ["self-test", "run"])
def test_the_self_test_says_that_memory_is_denied_and_the_daemon_does_not_start(tmp_path, command):
    if ctypes.CDLL(None).prctl(PR_SET_MDWE + 1, 0, 0, 0, 0) < 0:
        pytest.skip("this kernel cannot refuse such memory (Linux 6.3)")
    options: list[str | Path] = ["--engine", "aiortc"]
    if command == "run":
        (tmp_path / "c.toml").write_text('[transport]\nengine = "aiortc"\n')
        options = ["--self-test", "--config", tmp_path / "c.toml"]
        options += ["--state-dir", tmp_path / "state", "--socket", tmp_path / "s"]
    done = rondevud(command, *options, before=[sys.executable, "-c", RESTRICT])
    assert done.returncode == 1
    assert "the self-test failed: WebRTC does not work here" in done.stderr
    assert "memory that can be written and executed is denied" in done.stderr
    assert not (tmp_path / "state").exists()


@pytest.mark.skipif("libdatachannel" not in ENGINES, reason="there is no libdatachannel for this Python or machine")
def test_the_native_engine_needs_no_memory_that_can_be_written_and_executed():
    done = rondevud("self-test", "--engine", "libdatachannel", before=[sys.executable, "-c", RESTRICT])
    assert (done.returncode, done.stdout) == (0, "WebRTC works here\n"), done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a network namespace")
def test_the_self_test_says_that_there_is_no_way_to_oneself():
    done = rondevud("self-test", before=["unshare", "--net", sys.executable, "-m", "rondevud"])
    assert done.returncode == 1
    assert "no datagram can be sent to 127.0.0.1" in done.stderr


async def test_systemd_is_told_how_things_are(tmp_path):
    async with Stage(tmp_path) as stage:
        daemon = Daemon(stage, "alice", CONFIG.format(url="http://127.0.0.1:9"))
        await daemon.start()
        await daemon.until_told("STATUS=0 of 0 connections up, 0 services, 0 programs, 0 bytes queued")
        process = daemon.process
        process.send(signal.SIGTERM)
        await daemon.until_stopping()
        assert await process.exited() == 0
