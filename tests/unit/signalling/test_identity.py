"""The keys of user names: what is on the disk, and what happens when that is not what was written."""

from __future__ import annotations

import base64
import json
import logging
import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from rondevud.errors import ConfigError, StateDirectoryError
from rondevud.signalling.identity import Identities

# The test keys of the recordings: seeds of 32 equal bytes, and the public key that the seed's client made of the first.
ALICE_SEED = base64.b64encode(b"\x01" * 32).decode()
ALICE_PUBLIC_KEY = "iojj3XQJ8ZX9UtstPLpdcspnCb8dlBIb83SIAbQPb1w="


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_key_is_made_once_and_found_again(tmp_path: Path) -> None:
    directory = tmp_path / "state" / "keys"
    made = Identities(directory).obtain("alice")
    assert Identities(directory).obtain("alice").public_key == made.public_key
    assert Identities(directory).obtain("bob").public_key != made.public_key
    assert Identities(directory).names() == ["alice", "bob"]


def test_files_are_private_whatever_the_umask(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        Identities(tmp_path / "keys").obtain("alice")
    finally:
        os.umask(old)
    assert mode(tmp_path / "keys") == 0o700
    assert mode(tmp_path / "keys" / "alice.key") == 0o600
    assert [file.name for file in (tmp_path / "keys").iterdir()] == ["alice.key"]


def test_signatures_can_be_checked_with_the_public_key(tmp_path: Path) -> None:
    identity = Identities(tmp_path).obtain("alice")
    key = Ed25519PublicKey.from_public_bytes(base64.b64decode(identity.public_key))
    key.verify(base64.b64decode(identity.sign("claim:alice:1")), b"claim:alice:1")


def test_a_seed_gives_the_public_key_of_the_javascript_client(tmp_path: Path) -> None:
    identity = Identities(tmp_path).import_seed("alice", ALICE_SEED + "\n")
    assert identity.public_key == ALICE_PUBLIC_KEY
    assert Identities(tmp_path).obtain("alice").export_seed() == ALICE_SEED


def test_no_key_is_none(tmp_path: Path) -> None:
    assert Identities(tmp_path / "nowhere").load("alice") is None
    assert Identities(tmp_path / "nowhere").names() == []
    assert not (tmp_path / "nowhere").exists()


def test_a_key_is_not_replaced_by_accident(tmp_path: Path) -> None:
    identities = Identities(tmp_path)
    before = identities.obtain("alice").public_key
    with pytest.raises(ConfigError, match="another key already"):
        identities.import_seed("alice", ALICE_SEED)
    assert Identities(tmp_path).obtain("alice").public_key == before
    assert identities.import_seed("alice", ALICE_SEED, replace=True).public_key == ALICE_PUBLIC_KEY
    assert identities.import_seed("alice", ALICE_SEED).public_key == ALICE_PUBLIC_KEY
    assert Identities(tmp_path).obtain("alice").public_key == ALICE_PUBLIC_KEY


def test_a_deleted_key_is_gone(tmp_path: Path) -> None:
    identities = Identities(tmp_path)
    identities.obtain("alice")
    assert identities.delete("alice")
    assert not identities.delete("alice")
    assert identities.load("alice") is None


@pytest.mark.parametrize("seed", ["not base64!", "", base64.b64encode(bytes(31)).decode()])
def test_a_bad_seed_is_refused(tmp_path: Path, seed: str) -> None:
    with pytest.raises(ConfigError, match="seed"):
        Identities(tmp_path).import_seed("alice", seed)


@pytest.mark.parametrize("username", ["", "ab", "../alice", "Alice", "-abc", "abc-", "a" * 33, "a/b", "alice\n"])
def test_what_is_no_user_name_is_no_file_name(tmp_path: Path, username: str) -> None:
    with pytest.raises(ConfigError, match="user name"):
        Identities(tmp_path).obtain(username)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"username": "alice", "seed": 5}',
        b'{"username": "alice", "seed": "AAAA"}',
        json.dumps({"username": "bob", "seed": ALICE_SEED}).encode(),
        b"[" * 4000,
        b" " * 5000,
    ],
)
def test_a_damaged_file_is_named_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "alice.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(StateDirectoryError, match=r"alice\.key: damaged") as error:
        Identities(tmp_path).obtain("alice")
    assert ALICE_SEED not in str(error.value)
    assert path.read_bytes() == content


def test_a_key_that_others_can_read_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Identities(tmp_path).obtain("alice")
    with caplog.at_level(logging.WARNING):
        Identities(tmp_path).obtain("alice")
        assert caplog.text == ""
        (tmp_path / "alice.key").chmod(0o640)
        Identities(tmp_path).obtain("alice")
    assert "mode 0640" in caplog.text


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a file")
    with pytest.raises(StateDirectoryError, match=r"keys/alice\.key: cannot"):
        Identities(tmp_path / "keys").obtain("alice")


def test_a_failed_write_leaves_the_old_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    identities = Identities(tmp_path)
    before = identities.obtain("alice").public_key

    def fail(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StateDirectoryError, match="No space left"):
        identities.import_seed("alice", ALICE_SEED, replace=True)
    monkeypatch.undo()
    assert Identities(tmp_path).obtain("alice").public_key == before
    assert [file.name for file in tmp_path.iterdir()] == ["alice.key"]


def test_a_key_does_not_show_in_its_repr(tmp_path: Path) -> None:
    assert ALICE_SEED not in repr(Identities(tmp_path).import_seed("alice", ALICE_SEED))


class TestCredentials:
    @pytest.fixture
    def credentials(self, tmp_path: Path) -> Path:
        path = tmp_path / "credentials"
        path.mkdir()
        return path

    @pytest.mark.parametrize("name", ["alice.key", "keys_alice.key", "my_keys_alice.key"])
    def test_an_exported_key_is_taken_by_the_user_name_in_its_file_name(self, tmp_path, credentials, name):
        (credentials / name).write_text(f"{ALICE_SEED}\n")
        (credentials / "other").write_text("no key, no business of ours")
        Identities(tmp_path / "keys").take_credentials(credentials)
        alice = Identities(tmp_path / "keys").load("alice")
        assert alice is not None
        assert alice.public_key == ALICE_PUBLIC_KEY

    def test_a_key_file_of_a_daemon_is_taken_as_it_is(self, tmp_path, credentials):
        made = Identities(credentials).obtain("alice")
        Identities(tmp_path / "keys").take_credentials(credentials)
        assert (tmp_path / "keys" / "alice.key").read_bytes() == (credentials / "alice.key").read_bytes()
        assert made.export_seed() in (tmp_path / "keys" / "alice.key").read_text()

    def test_a_key_that_is_held_stays_and_a_warning_says_so(self, tmp_path, credentials, caplog):
        held = Identities(tmp_path / "keys").obtain("alice")
        (credentials / "alice.key").write_text(ALICE_SEED)
        identities = Identities(tmp_path / "keys")
        identities.take_credentials(credentials)
        assert Identities(tmp_path / "keys").load("alice").public_key == held.public_key
        assert "credential alice.key: user name alice has another key already" in caplog.text
        assert ALICE_SEED not in caplog.text

    def test_the_same_key_is_nothing_to_talk_about(self, tmp_path, credentials, caplog):
        Identities(tmp_path / "keys").import_seed("alice", ALICE_SEED)
        caplog.clear()
        (credentials / "alice.key").write_text(ALICE_SEED)
        Identities(tmp_path / "keys").take_credentials(credentials)
        assert not caplog.records

    @pytest.mark.parametrize(
        ("name", "content", "problem"),
        [
            ("alice.key", "secret nonsense", "seed is not base64"),
            ("alice.key", "c2VjcmV0", "has 6 bytes instead of 32"),
            ("alice.key", '{"secret": 1}', "damaged"),
            ("alice.key", "s" * 5000, "too long"),
            ("A B.key", ALICE_SEED, "its name has to be USER.key, and 'A B' is no user name"),
        ],
    )
    def test_what_is_no_key_is_refused_without_being_quoted(self, tmp_path, credentials, name, content, problem):
        (credentials / name).write_text(content)
        with pytest.raises(ConfigError, match=problem) as refused:
            Identities(tmp_path / "keys").take_credentials(credentials)
        assert f"credential {name}: " in str(refused.value)
        assert "secret" not in str(refused.value)

    def test_a_file_of_the_directory_that_is_not_called_a_key_is_told(self, tmp_path, credentials, caplog):
        (credentials / "keys_alice").write_text(ALICE_SEED)
        (credentials / "keys").write_text("none")
        identities = Identities(tmp_path / "keys")
        identities.take_credentials(credentials)
        assert identities.names() == []
        assert [record.getMessage() for record in caplog.records] == [
            "credential keys_alice is not taken: its name does not end in .key"
        ]

    def test_a_directory_that_is_not_there_is_named(self, tmp_path):
        with pytest.raises(ConfigError, match="nowhere: cannot be listed"):
            Identities(tmp_path / "keys").take_credentials(tmp_path / "nowhere")
