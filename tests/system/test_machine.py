"""The Debian package on a machine of its own, with systemd as process 1. The tests are one story, in this order."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import shutil
import sqlite3
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.load import PYTHON, Load
from tests.system.machine import ROOT, Machine, given, overlay, wait_until

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

NEXT_VERSION = "99.0.0"
CONFIG = """
[reconnect]
backoff_max = 2
[[connection]]
name = "alice-chat"
username = "alice"
fqn = "com.example.chat@1.0.0"
channels = ["main"]
"""
MACHINES_CONFIG = CONFIG + "[rendezvous]\nenabled = true\n"
OLD_STORE = ROOT / "tests/data/store-version-1.sqlite3.gz"
USERS_CONFIG = CONFIG + '[rendezvous]\nenabled = true\nlisten = "127.0.0.1:3100"\n'
NO_INTERNET = "[Service]\nRestrictAddressFamilies=\nRestrictAddressFamilies=AF_UNIX AF_NETLINK\n"
NEVER_READY = "[Service]\nExecStartPre=sleep 900\n"
DROP_INS = "etc/systemd/system/rondevud.service.d"
WATCHDOG = "[Service]\nWatchdogSec=3\n"
EXPOSURE = "15"
"""Tenths."""


@pytest.fixture(scope="module")
def machine(alice):
    return alice


def main_pid(machine: Machine) -> str:
    pid = machine.property("MainPID")
    assert pid != "0"
    return pid


@contextlib.contextmanager
def drop_in(machine: Machine, name: str, text: str) -> Iterator[None]:
    """What an administrator adds to the unit, until the end of the block."""
    path = machine.root / DROP_INS / f"{name}.conf"
    path.write_text(text)
    machine.run("systemctl", "daemon-reload")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        machine.run("systemctl", "daemon-reload")


@pytest.fixture
def load(machine, tmp_path):
    load = Load(machine, tmp_path)
    try:
        load.until_more_comes()
        yield load
    finally:
        load.close()


def test_what_is_installed_can_be_taken_away_again(lintian):
    root = overlay(ROOT / "build/deb/root", given("SPACE") / "installed")
    environ = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PREFIX": "/usr", "DESTDIR": str(root)}
    subprocess.run(["bash", ROOT / "installation/install", "uninstall"], env=environ, check=True, timeout=120)
    assert not list(root.iterdir())


def test_the_package_installs_and_the_service_starts(machine, package):
    machine.run("dpkg", "--install", f"/srv/{package.name}")
    for unit in ("rondevud.socket", "rondevud.service"):
        assert machine.run("systemctl", "is-active", unit).stdout.strip() == "active"
        assert machine.run("systemctl", "is-enabled", unit).stdout.strip() == "enabled"
    assert machine.property("User") == "rondevud"
    found = (machine.root / "etc/rondevud/keys").stat()
    assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (0, 0o700)
    assert machine.run("stat", "-c", "%a %U %G", "/run/rondevud/rondevud.sock").stdout.split() == [
        "660",
        "rondevud",
        "rondevud",
    ]
    assert machine.run("stat", "-c", "%a %U", "/var/lib/rondevud").stdout.split() == ["700", "rondevud"]
    assert "/rondevud.1" in machine.run("dpkg", "--listfiles", "rondevud").stdout


def test_the_running_service_is_exposed_as_little_as_promised(machine):
    machine.run("systemd-analyze", "security", f"--threshold={EXPOSURE}", "--no-pager", "rondevud.service")


def test_keys_and_configuration_of_the_administrator_are_taken(machine):
    (machine.root / "etc/rondevud/config.toml").write_text(MACHINES_CONFIG)
    (machine.root / "etc/rondevud/keys/carol.key").write_text("AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\n")
    (machine.root / DROP_INS).mkdir()
    (machine.root / DROP_INS / "watchdog.conf").write_text(WATCHDOG)
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", "rondevud")
    assert "carol" in machine.run("rondevuctl", "key", "list").stdout
    assert "alice-chat" in machine.run("rondevuctl", "connections").stdout


def test_who_comes_while_the_daemon_is_stopped_starts_it(machine):
    machine.run("systemctl", "stop", "rondevud.service")
    assert machine.property("MainPID") == "0"
    status = json.loads(machine.run("rondevuctl", "--json", "status").stdout)
    assert str(status["pid"]) == main_pid(machine)


def restart(machine: Machine) -> None:
    machine.run("systemctl", "restart", "rondevud")


def kill(machine: Machine) -> None:
    machine.run("kill", "-9", main_pid(machine))


def hang(machine: Machine) -> None:
    machine.run("kill", "-STOP", main_pid(machine))


@pytest.mark.parametrize("do", [restart, kill, hang])
def test_nothing_is_lost_under_load(machine, load, do):
    before = main_pid(machine)
    do(machine)
    wait_until(lambda: machine.property("MainPID") not in {"0", before}, "another process is started")
    load.until_more_comes()
    load.settle()
    if do is hang:
        assert "Watchdog timeout" in machine.journal("--unit=rondevud.service")
        assert "Fatal Python error: Aborted" in machine.journal("--unit=rondevud.service")


def test_the_journal_has_fields_to_look_for(machine):
    lines = machine.run("journalctl", "-o", "json", "RONDEVU_CONNECTION=alice-chat", "RONDEVU_EVENT=connected").stdout
    found = [json.loads(line) for line in lines.splitlines()]
    assert found
    assert {(line["SYSLOG_IDENTIFIER"], line["PRIORITY"]) for line in found} == {("rondevud", "6")}
    assert re.search("is ready", machine.journal("RONDEVU_EVENT=ready"))


def test_the_status_line_says_what_there_is(machine):
    wait_until(lambda: "connections up" in machine.property("StatusText"), "the status is told")


def test_a_reload_takes_over_what_changed_and_fails_for_a_bad_file(machine):
    path, before = machine.root / "etc/rondevud/config.toml", main_pid(machine)
    path.write_text(MACHINES_CONFIG + '[[service]]\nusername = "carol"\nfqn = "com.example.new@1.0.0"\n')
    machine.run("systemctl", "reload", "rondevud")
    assert "com.example.new@1.0.0" in machine.run("rondevuctl", "services").stdout
    path.write_text("nonsense = 1\n")
    assert machine.run("systemctl", "reload", "rondevud", check=False).returncode != 0
    assert "unknown key" in machine.journal("RONDEVU_EVENT=reload_failed")
    assert machine.property("ActiveState") == "active"
    assert main_pid(machine) == before
    path.write_text(MACHINES_CONFIG)


def test_it_stops_in_order_and_within_its_time(machine):
    machine.run("systemctl", "stop", "rondevud.service")
    assert (machine.property("Result"), machine.property("ExecMainStatus")) == ("success", "0")
    assert machine.run("systemctl", "is-active", "rondevud.socket").stdout.strip() == "active"
    machine.run("systemctl", "start", "rondevud.service")


def test_a_drop_in_that_forbids_what_it_needs_is_named(machine):
    with drop_in(machine, "families", NO_INTERNET):
        assert machine.run("systemctl", "restart", "rondevud", check=False).returncode != 0
    said = machine.journal("--unit=rondevud.service")
    assert "the self-test failed" in said
    assert "sockets of the family AF_INET are denied" in said
    assert "RestrictAddressFamilies= must have it" in said
    machine.run("systemctl", "restart", "rondevud")


MESSAGE_OF_A_USER = f"""
set -e
mkdir -p ~/.config/rondevud
cat >~/.config/rondevud/config.toml <<'END'
{USERS_CONFIG}END
systemctl --user enable --now rondevud
rondevuctl expose alice com.example.chat@1.0.0
rondevuctl wait alice-chat connected --timeout 100
rondevuctl send alice-chat main hello --wait acknowledged
exec 3< <(exec timeout 100 {PYTHON} /srv/programs/receiver.py)
receiver=$!
read -r line <&3
kill $receiver
echo "$line"
systemctl --user is-active rondevud.socket rondevud.service
stat -c "%U %a %n" "$XDG_RUNTIME_DIR/rondevud.sock" ~/.local/state/rondevud/rondevud.sqlite3
systemctl --user disable --now rondevud.socket rondevud.service
"""


def test_a_user_has_a_daemon_of_their_own(machine):
    machine.run("useradd", "--create-home", "--shell=/bin/bash", "eve")
    uid = machine.run("id", "-u", "eve").stdout.strip()
    machine.run("loginctl", "enable-linger", "eve")
    wait_until(lambda: machine.property("ActiveState", f"user@{uid}.service") == "active", "eve's manager runs")
    login = ["systemd-run", "--quiet", "--pipe", "--wait", "--uid=eve", "--property=PAMName=login"]
    said = machine.run(*login, "bash", "-lc", MESSAGE_OF_A_USER, timeout=300).stdout
    assert "got hello " in said
    assert "active\nactive\n" in said
    assert f"eve 600 /run/user/{uid}/rondevud.sock" in said
    assert "eve 600 /home/eve/.local/state/rondevud/rondevud.sqlite3" in said
    machine.run("loginctl", "disable-linger", "eve")


@pytest.fixture(scope="module")
def next_package(package, machine, tmp_path_factory):
    """The same with another version, which the program knows, too."""
    directory = tmp_path_factory.mktemp("next") / "tree"
    subprocess.run(["dpkg-deb", "-R", package, directory], check=True, timeout=120)
    program = next(directory.rglob("rondevu_client/__init__.py"))
    for path, line in (
        (directory / "DEBIAN/control", f"Version: {NEXT_VERSION}"),
        (program, f'__version__ = "{NEXT_VERSION}"'),
    ):
        name = line.split()[0]
        text, count = re.subn(rf"^{name} .*", line, path.read_text(), flags=re.MULTILINE)
        assert count == 1
        path.write_text(text)
    command = ["dpkg-deb", "--root-owner-group", "-Znone", "-b", directory, machine.root / "srv/next.deb"]
    subprocess.run(command, check=True, timeout=120)
    return "/srv/next.deb"


def test_an_upgrade_under_load_loses_nothing(machine, next_package, load):
    before = main_pid(machine)
    machine.run("dpkg", "--install", next_package)
    assert main_pid(machine) != before
    assert json.loads(machine.run("rondevuctl", "--json", "status").stdout)["version"] == NEXT_VERSION
    load.until_more_comes()
    load.settle()
    assert (machine.root / "etc/rondevud/config.toml").read_text() == MACHINES_CONFIG


def dump(path: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as store:
        return list(store.iterdump())


def test_an_upgrade_under_load_takes_over_an_old_store(machine, next_package, tmp_path):
    """Programs wait at the socket already while the package is unpacked and its daemon changes the store."""
    machine.run("systemctl", "stop", "rondevud.service", "rondevud.socket")
    state = machine.root / "var/lib/rondevud"
    owner = state.stat()
    old = tmp_path / "old.sqlite3"
    old.write_bytes(gzip.decompress(OLD_STORE.read_bytes()))
    for path in state.iterdir():
        path.unlink() if path.is_file() else shutil.rmtree(path)
    store = state / "rondevud.sqlite3"
    shutil.copy(old, store)
    os.chown(store, owner.st_uid, owner.st_gid)
    with drop_in(machine, "wait", NEVER_READY):
        machine.run("systemctl", "start", "rondevud.socket")
        load = Load(machine, tmp_path)
        try:
            wait_until(lambda: machine.property("ActiveState") == "activating", "a program has woken the service")
            (machine.root / DROP_INS / "wait.conf").unlink()
            machine.run("dpkg", "--install", next_package)
            load.until_more_comes()
            load.settle()
        finally:
            load.close()
    assert dump(state / "rondevud.sqlite3.version-1") == dump(old)


def test_removing_keeps_the_state_and_purging_leaves_nothing(machine):
    machine.run("dpkg", "--remove", "rondevud")
    assert machine.run("systemctl", "is-active", "rondevud.service", "rondevud.socket", check=False).returncode != 0
    assert not (machine.root / "usr/lib/rondevud").exists()
    assert (machine.root / "var/lib/rondevud/rondevud.sqlite3").exists()
    assert (machine.root / "etc/rondevud/config.toml").exists()
    machine.run("dpkg", "--purge", "rondevud")
    assert not (machine.root / "var/lib/rondevud").exists()
    assert [path.name for path in (machine.root / "etc/rondevud").rglob("*")] == ["keys", "carol.key"]
    assert machine.run("systemctl", "list-unit-files", "rondevud*", "--no-legend", check=False).stdout == ""
