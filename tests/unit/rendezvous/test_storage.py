"""The database file: what survives, who may read it, and what is refused."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

import pytest

from rondevud.errors import ConfigError, StoreError
from rondevud.rendezvous.records import KeyInUse, Offer, Service, Username
from rondevud.rendezvous.storage import FILE_NAME, SqliteStorage, open_storage


def test_what_was_stored_is_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "server.db"
    alice = Username("alice", "key", 1, 100)
    offer = Offer("id", "peer", "sdp", None, 1, 100)
    service = Service("s", "u", "alice", "a.b@1.0.0", "id", "peer", True, '{"a":1}', 1, 100)
    with contextlib.closing(SqliteStorage(path)) as storage:
        secret = storage.auth_secret()
        storage.save_username(alice)
        storage.publish(service, offer, 1)
    with contextlib.closing(SqliteStorage(path)) as storage:
        assert storage.auth_secret() == secret
        assert storage.username("alice", 1) == alice
        assert storage.service("u", 1) == service
        assert storage.open_offer_of("peer", 1) == offer
    with contextlib.closing(SqliteStorage(":memory:")) as other:
        assert other.auth_secret() != secret


def test_the_file_and_its_companions_are_private(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        with contextlib.closing(SqliteStorage(tmp_path / "server.db")) as storage:
            storage.save_username(Username("alice", "key", 1, 100))
            modes = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}
    finally:
        os.umask(old)
    assert modes == {"server.db": 0o600, "server.db-wal": 0o600, "server.db-shm": 0o600}


def test_one_key_has_one_name(tmp_path: Path) -> None:
    with contextlib.closing(SqliteStorage(":memory:")) as storage:
        storage.save_username(Username("alice", "key", 1, 100))
        with pytest.raises(KeyInUse):
            storage.save_username(Username("bob", "key", 1, 100))
        assert storage.username("bob", 1) is None


def test_an_offer_is_answered_once_and_not_after_it_expired() -> None:
    with contextlib.closing(SqliteStorage(":memory:")) as storage:
        storage.add_offers([Offer("id", "peer", "sdp", None, 1, 100), Offer("late", "peer", "sdp 2", None, 1, 100)], 1)
        assert storage.answer_offer("id", "first", "answer", 50)
        assert not storage.answer_offer("id", "second", "answer", 51)
        assert not storage.answer_offer("late", "first", "answer", 100)
        assert not storage.answer_offer("unknown", "first", "answer", 50)
        assert [offer.answerer_id for offer in storage.answered_offers_of("peer", 51)] == ["first"]


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "server.db"
    path.write_bytes(b"this is not a database, and long enough to be looked at" * 50)
    with pytest.raises(StoreError, match=r"server\.db: file is not a database"):
        SqliteStorage(path)
    with pytest.raises(StoreError, match="nowhere"):
        SqliteStorage(tmp_path / "nowhere" / "server.db")


def test_a_database_of_a_later_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "server.db"
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="schema version 99"):
        SqliteStorage(path)


@pytest.mark.parametrize("store", ["sqlite", "sqlite:{}/other.db", "memory"])
def test_a_setting_names_a_storage(tmp_path: Path, store: str) -> None:
    with contextlib.closing(open_storage(store.format(tmp_path), tmp_path)) as storage:
        assert len(storage.auth_secret()) == 32
    files = {file.name for file in tmp_path.iterdir()}
    assert files == {"sqlite": {FILE_NAME}, "memory": set()}.get(store, {"other.db"})


@pytest.mark.parametrize(
    ("store", "problem"),
    [
        ("postgresql://host/db", "not in this version"),
        ("", "expected sqlite"),
        ("sqlite:", "expected"),
        ("x:y", "expected"),
    ],
)
def test_a_setting_that_names_none_is_refused(tmp_path: Path, store: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        open_storage(store, tmp_path)
