"""``rondevud doctor``: what it says about a state directory, and how it ends."""

from __future__ import annotations

import json
import os
import pwd
import sqlite3
from contextlib import closing

import pytest
from click.testing import CliRunner

from rondevud.main import main
from rondevud.signalling.identity import Identities
from rondevud.statedir import DATABASE, StateDirectory
from rondevud.store.sqlite import SqliteStore
from tests.unit.store.kit import make_channel, put_singly


@pytest.fixture
async def directory(tmp_path):
    state = tmp_path / "state"
    StateDirectory(state).close()
    store = await SqliteStore.open(state / DATABASE)
    channel = await make_channel(store)
    await put_singly(store, channel, "one", "two", "three")
    await store.close()
    Identities(state / "keys").obtain("alice")
    return state


def doctor(directory, *options):
    return CliRunner().invoke(main, ["doctor", "--state-dir", str(directory), *options])


def damage(directory, statement="UPDATE outbox SET payload = x'00' WHERE payload = x'74776f'"):
    with closing(sqlite3.connect(directory / DATABASE)) as connection, connection:
        assert connection.execute(statement).rowcount


def test_a_directory_in_order_ends_with_0(directory):
    done = doctor(directory)
    assert (done.exit_code, done.output) == (0, "nothing is wrong\n")
    assert json.loads(doctor(directory, "--json").output) == {
        "clean": True, "findings": [], "copy": None, "mended": [], "remaining": None,
    }  # fmt: skip


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_root_is_told_how_to_be_the_owner_of_the_directory(directory, monkeypatch):
    owner = pwd.getpwnam("daemon")
    os.chown(directory, owner.pw_uid, -1)
    done = doctor(directory, "--json")
    assert done.exit_code == 3
    command = f"runuser -u daemon -- rondevud doctor --state-dir {directory} --json"
    assert done.output.splitlines()[-1] == f"rondevud: what is made in it has to be its owner's: {command}"
    monkeypatch.setenv("STATE_DIRECTORY", str(directory))
    done = CliRunner().invoke(main, ["doctor"])
    assert done.output.splitlines()[-1].endswith(f" runuser -u daemon -- rondevud doctor --state-dir {directory}")


def test_a_directory_without_a_store_is_in_order(directory):
    (directory / DATABASE).unlink()
    assert doctor(directory).output == "nothing is wrong\n"
    assert not (directory / DATABASE).exists()


def test_a_store_that_went_back_is_told_and_is_no_reason_to_mend(directory):
    damage(directory, "UPDATE channels SET next = 3")
    damage(directory, "UPDATE channels SET crc = crc")
    found = json.loads(doctor(directory, "--json").output)["findings"]
    assert ("went_back", "the outbox of channel 1", "ends before 3, and ended before 4") in [
        (finding["kind"], finding["where"], finding["found"]) for finding in found
    ]


def test_a_copy_is_restored_and_the_store_that_was_there_is_kept(directory, tmp_path):
    with closing(sqlite3.connect(directory / DATABASE)) as connection:
        connection.execute("VACUUM INTO ?", (str(tmp_path / "copy"),))
    done = CliRunner().invoke(main, ["restore", str(tmp_path / "copy"), "--state-dir", str(directory)])
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[0] == f"restored {directory / DATABASE} from {tmp_path / 'copy'}"
    (kept,) = directory.glob(f"{DATABASE}.before-restore-*")
    assert done.output.splitlines()[1] == f"the store that was there is kept in {kept}"
    assert [finding["kind"] for finding in json.loads(doctor(directory, "--json").output)["findings"]] == ["file_aside"]


def test_nothing_is_restored_while_a_daemon_has_the_directory(directory):
    with StateDirectory(directory):
        done = CliRunner().invoke(main, ["restore", str(directory / DATABASE), "--state-dir", str(directory)])
    assert done.exit_code == 3
    assert "is in use by" in done.output


def test_a_file_that_is_no_copy_is_not_restored(directory, tmp_path):
    (tmp_path / "letter").write_text("Dear Alice")
    done = CliRunner().invoke(main, ["restore", str(tmp_path / "letter"), "--state-dir", str(directory)])
    assert done.exit_code == 1
    assert "is no copy of a store" in done.output
    assert list(directory.glob(f"{DATABASE}.before-restore-*")) == []


def test_a_finding_is_a_line_with_its_meaning_and_ends_with_1(directory):
    damage(directory)
    done = doctor(directory)
    assert done.exit_code == 1
    assert done.output.splitlines()[0] == (
        "outbox of channel 1, number 2: fails its checksum: this row is not what was written; it will not be used;"
        " nothing is needed, or stop the daemon and run `rondevud doctor --repair`"
    )


def test_a_repair_names_its_copy_says_what_it_did_and_leaves_nothing(directory):
    damage(directory)
    report = json.loads(doctor(directory, "--repair", "--json").output)
    assert [finding["kind"] for finding in report["findings"]] == ["damaged_row", "wrong_count"]
    assert report["mended"][0] == "the outbox of channel 1: numbers 2 to 2 are reported as damaged"
    assert (report["clean"], [finding["kind"] for finding in report["remaining"]]) == (True, ["file_aside"])
    with closing(sqlite3.connect(report["copy"])) as copy:
        assert copy.execute("SELECT count(*) FROM outbox").fetchone() == (3,)
    done = doctor(directory)
    assert (done.exit_code, done.output.splitlines()[-1]) == (0, "nothing is wrong")


def test_a_repair_of_what_is_in_order_changes_nothing(directory):
    before = (directory / DATABASE).read_bytes()
    done = doctor(directory, "--repair")
    assert (done.exit_code, done.output) == (0, "nothing is wrong\n")
    assert (directory / DATABASE).read_bytes() == before


def test_a_file_that_sqlite_refuses_stays_until_a_repair_moves_it_aside(directory):
    (directory / DATABASE).write_bytes(b"no database" * 1_000)
    assert doctor(directory).exit_code == 1
    assert (directory / DATABASE).read_bytes() == b"no database" * 1_000
    done = doctor(directory, "--repair")
    assert done.exit_code == 0
    (aside,) = directory.glob(f"{DATABASE}.damaged-*Z")
    assert aside.read_bytes() == b"no database" * 1_000
    assert str(aside) in done.output


def test_keys_that_others_can_read_or_nobody_can_use_are_found(directory):
    (directory / "keys" / "alice.key").chmod(0o640)
    (directory / "keys" / "bob.key").write_text("{}")
    (directory / "keys" / "bob.key").chmod(0o600)
    report = json.loads(doctor(directory, "--json").output)
    assert [(finding["kind"], finding["where"]) for finding in report["findings"]] == [
        ("open_key", "keys/alice.key"),
        ("bad_key", "keys/bob.key"),
    ]


def test_little_space_is_found(directory, monkeypatch):
    monkeypatch.setattr("rondevud.doctor.SPACE_KEPT", 2**62)
    report = json.loads(doctor(directory, "--json").output)
    assert [finding["kind"] for finding in report["findings"]] == ["little_space"]


def test_a_directory_in_use_or_none_ends_with_3_and_is_not_made(directory, tmp_path):
    with StateDirectory(directory):
        done = doctor(directory)
    assert done.exit_code == 3
    assert "is in use by process" in done.output
    done = doctor(tmp_path / "nowhere")
    assert (done.exit_code, "there is none" in done.output) == (3, True)
    assert not (tmp_path / "nowhere").exists()


def test_a_database_of_another_program_ends_with_3_and_is_left_alone(directory):
    (directory / DATABASE).unlink()
    with closing(sqlite3.connect(directory / DATABASE)) as connection, connection:
        connection.execute("CREATE TABLE theirs (x)")
    before = (directory / DATABASE).read_bytes()
    done = doctor(directory, "--repair")
    assert (done.exit_code, "is a database of another program" in done.output) == (3, True)
    assert (directory / DATABASE).read_bytes() == before
