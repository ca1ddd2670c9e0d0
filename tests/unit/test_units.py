"""The units in `systemd/`, as systemd itself judges them; a real manager runs them in `tests/system`."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest

from rondevud.signalling.identity import Identities

pytestmark = pytest.mark.once

UNITS = Path(__file__).parents[2] / "systemd"
EXPOSURE = 15
"""Tenths: what `systemd-analyze security` may say at most."""


def analyze(*arguments: str | Path) -> str:
    assert shutil.which("systemd-analyze"), "the package systemd is needed"
    command = ["systemd-analyze", *map(str, arguments)]
    environ = {"XDG_RUNTIME_DIR": tempfile.gettempdir(), **os.environ}  # asked for by --user
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False, env=environ)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(params=["system", "user"])
def manager(request):
    return request.param


@pytest.fixture
def units(manager, tmp_path):
    """Service and socket with programs that exist here."""
    for path in sorted((UNITS if manager == "system" else UNITS / "user").glob("rondevud.*")):
        text = path.read_text()
        for program in set(re.findall(r"(?<==)/usr/bin/\S+", text)):
            stand_in = tmp_path / Path(program).name
            shutil.copy("/bin/true", stand_in)
            text = text.replace(program, str(stand_in))
        (tmp_path / path.name).write_text(text)
    return sorted(tmp_path.glob("rondevud.*"))


def test_systemd_finds_nothing_wrong_with_the_units(manager, units):
    assert [unit.suffix for unit in units] == [".service", ".socket"]
    said = analyze(f"--{manager}", "--man=no", "--recursive-errors=no", "verify", *units)
    assert not re.search("rondevud", said)


def test_the_daemon_is_exposed_as_little_as_promised():
    said = analyze("security", "--offline=true", f"--threshold={EXPOSURE}", UNITS / "rondevud.service")
    assert "Overall exposure level for rondevud.service" in said


@pytest.mark.parametrize("option", ["PrivateUsers", "DynamicUser", "MemoryDenyWriteExecute", "ProcSubset"])
@pytest.mark.parametrize("unit", ["rondevud.service", "user/rondevud.service"])
def test_restrictions_under_which_the_daemon_does_not_work_are_left_out(unit, option):
    assert not re.search(rf"^{option}=", (UNITS / unit).read_text(), flags=re.MULTILINE)


def test_the_socket_is_for_the_group_alone():
    text = (UNITS / "rondevud.socket").read_text()
    assert {"SocketGroup=rondevud", "SocketMode=0660", "ListenStream=/run/rondevud/rondevud.sock"} <= set(text.split())


def test_a_missing_directory_of_keys_does_not_keep_the_service_from_starting(tmp_path):
    """A credential that is set, too, may be missing (systemd.exec(5)); what stands in is no key."""
    text = (UNITS / "rondevud.service").read_text()
    loaded = dict(re.findall(r"^LoadCredential=(\w+):(.*)$", text, flags=re.MULTILINE))
    placeholders = dict(re.findall(r"^SetCredential=(\w+):(.+)$", text, flags=re.MULTILINE))
    assert loaded.keys() == placeholders.keys() == {"keys"}
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "keys").write_text(placeholders["keys"])
    identities = Identities(tmp_path / "keys")
    identities.take_credentials(credentials)
    assert identities.names() == []


def create(program: str, name: str, root: Path) -> None:
    """Have systemd carry `name` out below `root`."""
    command = [program, f"--root={root}", *(["--create"] if program == "systemd-tmpfiles" else []), str(UNITS / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr


def test_the_user_of_the_daemon_may_not_log_in(tmp_path):
    (tmp_path / "etc").mkdir()
    create("systemd-sysusers", "sysusers.conf", tmp_path)
    (line,) = (tmp_path / "etc/passwd").read_text().splitlines()
    assert re.fullmatch(r"rondevud:x:\d+:\d+:.*:/var/lib/rondevud:/usr/sbin/nologin", line)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give directories to root")
def test_the_directory_of_keys_is_roots_alone(tmp_path):
    create("systemd-tmpfiles", "tmpfiles.conf", tmp_path)
    found = (tmp_path / "etc/rondevud/keys").stat()
    assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (0, 0o700)
