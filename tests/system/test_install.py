"""`make install` on a machine of its own, and what the README says to do then."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.system.machine import ROOT, Machine, given

# The package brings the same files by the same script; here they are under /usr/local, and nobody runs scripts of dpkg.
pytestmark = [pytest.mark.system, pytest.mark.soak, pytest.mark.timeout(900)]

LEFT_OUT = shutil.ignore_patterns(".git", ".venv*", ".*_cache", ".hypothesis", "build", "dist", "tests", "__pycache__")
CONFIG = "[rendezvous]\nenabled = true\n"
FQN = "com.example.chat@1.0.0"


@pytest.fixture(scope="session")
def wheels() -> Path:
    """What pip takes on a machine without a network.

    It is fetched with the network of the shell that began this run, which is process 1 here.
    """
    directory = given("SPACE") / "wheels"
    environment = directory.with_name("wheels-venv")
    subprocess.run(["/usr/bin/python3", "-m", "venv", environment], check=True, timeout=120)
    pip = ["nsenter", "--target=1", "--net", environment / "bin/pip", "-qq", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "-w", directory, ROOT, "hatchling"], check=True, timeout=600)
    return directory


@pytest.fixture
def machine(bob, wheels):
    shutil.copytree(ROOT, bob.root / "srv/rondevud", ignore=LEFT_OUT)
    shutil.copytree(wheels, bob.root / "srv/wheels")
    yield bob
    for path in ("srv/rondevud", "srv/wheels", "var/lib/rondevud", "etc/rondevud"):
        shutil.rmtree(bob.root / path)
    bob.run("userdel", "rondevud")


def files(machine: Machine) -> list[Path]:
    return sorted((machine.root / "usr/local").rglob("*"))


def test_it_is_installed_runs_and_is_taken_away_again(machine):
    make = ["env", "PIP_NO_INDEX=1", "PIP_FIND_LINKS=/srv/wheels", "make", "-C", "/srv/rondevud"]
    before = files(machine)
    said = machine.run(*make, "install", timeout=600).stdout
    assert "systemctl enable --now rondevud" in said
    (machine.root / "etc/rondevud/config.toml").write_text(CONFIG)
    machine.run("systemctl", "enable", "--now", "rondevud")
    for unit in ("rondevud.socket", "rondevud.service"):
        assert machine.run("systemctl", "is-active", unit).stdout.strip() == "active"
        assert machine.run("systemctl", "is-enabled", unit).stdout.strip() == "enabled"
    machine.run("rondevuctl", "expose", "alice", FQN)
    machine.run("rondevuctl", "connect", "alice", FQN, "--name", "alice-chat")
    machine.run("rondevuctl", "send", "alice-chat", "main", "hello", "--wait", "acknowledged")

    machine.run(*make, "uninstall")
    assert machine.run("systemctl", "is-active", "rondevud.service", "rondevud.socket", check=False).returncode != 0
    assert machine.run("systemctl", "list-unit-files", "rondevud*", "--no-legend", check=False).stdout == ""
    assert files(machine) == before
    assert (machine.root / "var/lib/rondevud/rondevud.sqlite3").exists()
    assert (machine.root / "etc/rondevud/config.toml").read_text() == CONFIG
