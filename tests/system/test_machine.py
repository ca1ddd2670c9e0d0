"""The Debian package on a machine of its own, with systemd as process 1. The tests are one story, in this order."""

from __future__ import annotations

import json
import re
import stat
import subprocess
from pathlib import Path

import pytest

from tests.system.machine import ROOT, Machine, given, overlay, wait_until

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

PYTHON = "/usr/lib/rondevud/bin/python"
NEXT_VERSION = "99.0.0"
CONFIG = """
[rendezvous]
enabled = true
[reconnect]
backoff_max = 2
[[connection]]
name = "to-alice"
username = "alice"
fqn = "com.example.test@1.0.0"
channels = ["main"]
"""
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


class Load:
    """A program that sends without a pause, and one that takes, both at the daemon of the machine."""

    def __init__(self, machine: Machine, directory: Path) -> None:
        self.machine = machine
        self._stop = machine.root / "srv/stop"
        self._stop.unlink(missing_ok=True)
        self._logs = {name: directory / name for name in ("receiver", "sender")}
        self._programs = {
            name: self._start(name, *arguments) for name, arguments in (("receiver", []), ("sender", ["/srv/stop"]))
        }

    def _start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = self.machine.inside(PYTHON, f"/srv/programs/{name}.py", *arguments)
        with self._logs[name].open("wb") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)

    def received(self) -> list[int]:
        """Each message once: what came again has the id it had."""
        ids = {}
        for line in self._logs["receiver"].read_text().splitlines():
            match line.split():
                case ["got", number, name]:
                    ids.setdefault(name, int(number))
        return list(ids.values())

    def until_more_comes(self) -> None:
        before = len(self.received())
        wait_until(lambda: len(self.received()) >= before + 50, f"more than {before} messages come; {self.tell()}")

    def tell(self) -> str:
        return "".join(f"\n{name}: {log.read_text()[-1500:]}" for name, log in self._logs.items())

    def settle(self) -> None:
        """Send no more; everything that was accepted has come once and in order."""
        self._stop.touch()
        assert self._programs["sender"].wait(120) == 0, self.tell()
        sent = int(self._logs["sender"].read_text().split()[-1])
        wait_until(lambda: len(self.received()) >= sent, f"all {sent} messages come")
        assert self.received() == list(range(sent))

    def close(self) -> None:
        for program in self._programs.values():
            program.kill()
            program.wait(30)


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
    assert not [path for path in root.rglob("*") if not path.is_dir()]


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
    (machine.root / "etc/rondevud/config.toml").write_text(CONFIG)
    (machine.root / "etc/rondevud/keys/carol.key").write_text("AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\n")
    (machine.root / "etc/systemd/system/rondevud.service.d").mkdir()
    (machine.root / "etc/systemd/system/rondevud.service.d/watchdog.conf").write_text(WATCHDOG)
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", "rondevud")
    assert "carol" in machine.run("rondevuctl", "key", "list").stdout
    assert "to-alice" in machine.run("rondevuctl", "connections").stdout


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
    lines = machine.run("journalctl", "-o", "json", "RONDEVU_CONNECTION=to-alice", "RONDEVU_EVENT=connected").stdout
    found = [json.loads(line) for line in lines.splitlines()]
    assert found
    assert {(line["SYSLOG_IDENTIFIER"], line["PRIORITY"]) for line in found} == {("rondevud", "6")}
    assert re.search("is ready", machine.journal("RONDEVU_EVENT=ready"))


def test_the_status_line_says_what_there_is(machine):
    wait_until(lambda: "connections up" in machine.property("StatusText"), "the status is told")


def test_a_reload_takes_over_what_changed_and_fails_for_a_bad_file(machine):
    path, before = machine.root / "etc/rondevud/config.toml", main_pid(machine)
    path.write_text(CONFIG + '[[service]]\nusername = "carol"\nfqn = "com.example.new@1.0.0"\n')
    machine.run("systemctl", "reload", "rondevud")
    assert "com.example.new@1.0.0" in machine.run("rondevuctl", "services").stdout
    path.write_text("nonsense = 1\n")
    assert machine.run("systemctl", "reload", "rondevud", check=False).returncode != 0
    assert "unknown key" in machine.journal("RONDEVU_EVENT=reload_failed")
    assert machine.property("ActiveState") == "active"
    assert main_pid(machine) == before
    path.write_text(CONFIG)


def test_it_stops_in_order_and_within_its_time(machine):
    machine.run("systemctl", "stop", "rondevud.service")
    assert (machine.property("Result"), machine.property("ExecMainStatus")) == ("success", "0")
    assert machine.run("systemctl", "is-active", "rondevud.socket").stdout.strip() == "active"
    machine.run("systemctl", "start", "rondevud.service")


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
    assert (machine.root / "etc/rondevud/config.toml").read_text() == CONFIG


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


def test_lintian_finds_no_errors(lintian):
    said, _ = lintian.communicate(timeout=500)
    assert lintian.returncode == 0, said
