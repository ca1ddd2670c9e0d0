from __future__ import annotations

import os
import re
import secrets
import socket
import subprocess
import sys

import pytest

from rondevud import systemd


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path, monkeypatch):
    """The datagram socket of a service manager, as `$NOTIFY_SOCKET` names it."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@rondevud-test-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name.replace("@", "\0") if name.startswith("@") else name)
        sock.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield sock


def received(manager) -> str:
    return manager.recv(4096).decode()


class TestNotify:
    def test_ready_carries_the_status(self, manager):
        assert systemd.ready("3 connections")
        assert received(manager) == "READY=1\nSTATUS=3 connections"

    def test_a_status_with_line_breaks_cannot_smuggle_in_another_assignment(self, manager):
        assert systemd.status("a\nSTOPPING=1")
        assert received(manager) == "STATUS=a STOPPING=1"

    def test_stopping_and_watchdog_are_told(self, manager):
        assert systemd.stopping("saying goodbye")
        assert received(manager) == "STOPPING=1\nSTATUS=saying goodbye"
        assert systemd.feed_watchdog()
        assert received(manager) == "WATCHDOG=1"

    def test_reloading_carries_the_monotonic_time(self, manager):
        assert systemd.reloading()
        assert re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=[1-9]\d+", received(manager))

    def test_a_manager_that_does_not_read_is_not_waited_for(self, manager):
        told = 0
        while systemd.status(f"{told}"):
            told += 1
        assert received(manager) == "STATUS=0"
        assert systemd.status("again")

    def test_a_manager_that_went_away_is_no_error(self, tmp_path, monkeypatch):
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
        assert not systemd.status("x")

    def test_without_a_manager_nothing_happens(self, monkeypatch):
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
        assert not systemd.ready("x")


def test_a_notify_address_that_is_neither_path_nor_abstract_is_ignored(monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", "vsock:2:1")
    assert not systemd.send_over_socket("READY=1")


@pytest.mark.parametrize(
    ("microseconds", "pid", "seconds"),
    [
        ("20000000", None, 20.0),
        ("20000000", "ours", 20.0),
        ("20000000", "1", None),
        ("0", None, None),
        ("soon", None, None),
        (None, None, None),
    ],
)
def test_the_watchdog_interval_is_read_only_when_it_is_ours(monkeypatch, microseconds, pid, seconds):
    for variable, value in (("WATCHDOG_USEC", microseconds), ("WATCHDOG_PID", pid)):
        if value is None:
            monkeypatch.delenv(variable, raising=False)
        else:
            monkeypatch.setenv(variable, str(os.getpid()) if value == "ours" else value)
    assert systemd.watchdog_interval() == seconds


TAKE = """
import os, socket, sys
os.dup2(int(sys.argv[1]), 3)  # as systemd does it
os.environ["LISTEN_PID"] = str(os.getpid())
from rondevud import systemd
fds = systemd.take_listen_fds()
assert not any(os.get_inheritable(fd) for fd in fds)
print(fds, [socket.socket(fileno=fd).getsockname() for fd in fds], systemd.take_listen_fds(),
      sorted(key for key in os.environ if key.startswith("LISTEN_")))
"""


def test_sockets_of_systemd_are_taken_once_and_not_inherited(tmp_path):
    path = str(tmp_path / "sock")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        command = [sys.executable, "-c", TAKE, str(listening.fileno())]
        environ = {**os.environ, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "rondevud.socket"}
        done = subprocess.run(
            command, env=environ, pass_fds=[listening.fileno()], capture_output=True, text=True, timeout=30, check=False
        )
    assert done.stderr == ""
    assert done.stdout == f"[3] ['{path}'] [] []\n"


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"LISTEN_FDS": "1"},
        {"LISTEN_FDS": "1", "LISTEN_PID": "1"},
        {"LISTEN_FDS": "many", "LISTEN_PID": str(os.getpid())},
    ],
)
def test_sockets_meant_for_nobody_or_another_process_are_not_taken(environ):
    assert systemd.take_listen_fds(environ) == []
    assert environ == {}
