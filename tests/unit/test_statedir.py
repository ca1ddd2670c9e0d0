from __future__ import annotations

import os
import stat
import subprocess
import sys

import pytest

from rondevud import clock
from rondevud.errors import StateDirectoryError
from rondevud.statedir import LOCK_NAME, StateDirectory

HOLD = """
import sys
from pathlib import Path
from rondevud.statedir import StateDirectory
held = StateDirectory(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the directory ``state``."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "state")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.mark.parametrize("umask", [0o000, 0o277])
def test_the_directory_is_made_for_the_owner_alone_whatever_the_umask(tmp_path, umask):
    (tmp_path / "a").mkdir()
    before = os.umask(umask)
    try:
        StateDirectory(tmp_path / "a" / "state").close()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a" / "state").stat().st_mode) == 0o700


def test_missing_parents_are_made(tmp_path):
    with StateDirectory(tmp_path / "a" / "b" / "state") as state:
        assert state.path.is_dir()


def test_the_lock_holds_the_pid_until_closed(tmp_path):
    with StateDirectory(tmp_path / "state"):
        assert (tmp_path / "state" / LOCK_NAME).read_text() == f"{os.getpid()}\n"
    assert not (tmp_path / "state" / LOCK_NAME).read_text()


def test_a_second_daemon_is_refused_and_told_the_pid_of_the_first(tmp_path, holder):
    with pytest.raises(StateDirectoryError, match=rf"in use by process {holder.pid};"):
        StateDirectory(tmp_path / "state")


def test_a_refused_daemon_leaves_the_lock_as_it_was(tmp_path, holder):
    for _ in range(2):
        with pytest.raises(StateDirectoryError, match=str(holder.pid)):
            StateDirectory(tmp_path / "state")


def test_a_killed_daemon_leaves_the_directory_free(tmp_path, holder):
    holder.kill()
    holder.wait()
    assert (tmp_path / "state" / LOCK_NAME).read_text() == f"{holder.pid}\n"
    with StateDirectory(tmp_path / "state"):
        assert (tmp_path / "state" / LOCK_NAME).read_text() == f"{os.getpid()}\n"


def test_closing_twice_is_harmless_and_frees_the_directory(tmp_path):
    state = StateDirectory(tmp_path / "state")
    state.close()
    state.close()
    StateDirectory(tmp_path / "state").close()


def test_a_directory_open_to_others_is_refused_and_left_alone(tmp_path):
    (tmp_path / "state").mkdir(mode=0o755)
    (tmp_path / "state").chmod(0o755)
    with pytest.raises(StateDirectoryError, match=r"open to others \(mode 0755.*chmod 700"):
        StateDirectory(tmp_path / "state")
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o755


def test_a_file_in_its_place_is_refused(tmp_path):
    (tmp_path / "state").write_text("")
    with pytest.raises(StateDirectoryError, match="is not a directory"):
        StateDirectory(tmp_path / "state")


def test_a_directory_that_cannot_be_made_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StateDirectoryError, match=r"file/state: cannot be made: "):
        StateDirectory(tmp_path / "file" / "state")


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path):
    (tmp_path / "state").mkdir(mode=0o700)
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "state" / LOCK_NAME).symlink_to(tmp_path / "precious")
    with pytest.raises(StateDirectoryError, match="no lock"):
        StateDirectory(tmp_path / "state")
    assert (tmp_path / "precious").read_text() == "kept"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_another_user_is_refused(tmp_path):
    (tmp_path / "state").mkdir(mode=0o700)
    os.chown(tmp_path / "state", 12345, -1)
    with pytest.raises(StateDirectoryError, match="belongs to uid 12345"):
        StateDirectory(tmp_path / "state")


def test_a_stamp_names_the_boot_and_does_not_go_back():
    first, second = clock.stamp(), clock.stamp()
    assert first.boot == second.boot == clock.boot_id() != ""
    assert second.boottime >= first.boottime > 0
    assert clock.boottime() >= first.boottime
    assert abs(clock.wall_microseconds() / 1e6 - clock.wall()) < 60
