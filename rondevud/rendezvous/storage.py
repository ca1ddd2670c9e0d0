"""The storage of the signalling server in SQLite.

Rows are few and small, so the database is called directly from the event loop. A file is in WAL mode with
``synchronous=NORMAL``: what a power cut may take is the last moment of offers, which their owners publish again. The
secret behind all credentials lies in the file, which is therefore made with mode 0600, and credentials survive a restart.
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, replace
from importlib import resources
from pathlib import Path
from typing import Any

from rondevud.errors import ConfigError, StoreError
from rondevud.rendezvous import json_text
from rondevud.rendezvous.records import (
    CandidateRole,
    DuplicateOffer,
    KeyInUse,
    Offer,
    Service,
    StoredCandidate,
    Username,
)

FILE_NAME = "rendezvous.db"
SCHEMA_VERSION = 1
BUSY_TIMEOUT = 5.0
"""Seconds to wait for another process that holds the file."""

_OFFER_COLUMNS = "id, peer_id, sdp, secret, created_at, expires_at, answerer_id, answer_sdp, answered_at"
_SERVICE_COLUMNS = "id, uuid, username, fqn, offer_id, peer_id, public, metadata, created_at, expires_at"


def open_storage(store: str, state_dir: str | Path) -> SqliteStorage:
    """What the setting `store` names: ``sqlite`` (a file in `state_dir`), ``sqlite:PATH`` or ``memory``.

    Raises `ConfigError` for anything else, `StoreError` when the file cannot be used.
    """
    if store.startswith(("postgresql:", "postgres:")):
        raise ConfigError("rendezvous store: a postgresql: store is not in this version")
    if store == "memory":
        return SqliteStorage(":memory:")
    if store == "sqlite":
        return SqliteStorage(Path(state_dir) / FILE_NAME)
    kind, _, path = store.partition(":")
    if kind != "sqlite" or not path:
        raise ConfigError(f"rendezvous store {store!r}: expected sqlite, sqlite:PATH or memory")
    return SqliteStorage(path)


class SqliteStorage:
    """See `rondevud.rendezvous.records.Storage`. To be closed; not to be shared between threads."""

    def __init__(self, path: str | Path) -> None:
        """Open or create. Raises `StoreError` naming the path."""
        self._path = str(path)
        try:
            self._database = self._open()
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"signalling database {self._path}: {error}") from error
        try:
            self._prepare()
            self._auth_secret = self._load_secret()
        except sqlite3.Error as error:
            self._database.close()
            raise StoreError(f"signalling database {self._path}: {error}") from error
        except StoreError:
            self._database.close()
            raise

    def _open(self) -> sqlite3.Connection:
        if self._path != ":memory:":
            # Made before SQLite does it: the mode of its -wal and -shm files follows this one's.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        return sqlite3.connect(self._path, timeout=BUSY_TIMEOUT, isolation_level=None)

    def _prepare(self) -> None:
        if self._path != ":memory:":
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = NORMAL")
        self._database.execute("PRAGMA foreign_keys = ON")
        with self._transaction():
            (version,) = self._database.execute("PRAGMA user_version").fetchone()
            if version > SCHEMA_VERSION:
                raise StoreError(
                    f"signalling database {self._path} has schema version {version}, this program knows {SCHEMA_VERSION}"
                )
            if version == 0:
                self._create()

    def _create(self) -> None:
        schema = resources.files("rondevud.rendezvous").joinpath("schema.sql").read_text(encoding="utf-8")
        statement = ""
        for line in schema.splitlines():  # not executescript: that commits the transaction it finds
            statement += line + "\n"
            if sqlite3.complete_statement(statement):
                self._database.execute(statement)
                statement = ""
        self._database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _load_secret(self) -> bytes:
        with self._transaction():
            self._database.execute(
                "INSERT OR IGNORE INTO settings (name, value) VALUES ('auth_secret', ?)", (secrets.token_bytes(32),)
            )
            row = self._database.execute("SELECT value FROM settings WHERE name = 'auth_secret'").fetchone()
        if not isinstance(row[0], bytes) or len(row[0]) != 32:
            raise StoreError(f"signalling database {self._path}: the setting auth_secret is not 32 bytes")
        return row[0]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    def close(self) -> None:
        self._database.close()

    def auth_secret(self) -> bytes:
        return self._auth_secret

    # --- user names ---

    def username(self, username: str, now: int) -> Username | None:
        row = self._database.execute(
            "SELECT username, public_key, claimed_at, expires_at FROM usernames WHERE username = ? AND expires_at > ?",
            (username, now),
        ).fetchone()
        return None if row is None else Username(*row)

    def save_username(self, username: Username) -> None:
        try:
            self._database.execute(
                "INSERT INTO usernames (username, public_key, claimed_at, expires_at) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (username) DO UPDATE SET public_key = excluded.public_key, "
                "claimed_at = excluded.claimed_at, expires_at = excluded.expires_at",
                (username.username, username.public_key, username.claimed_at, username.expires_at),
            )
        except sqlite3.IntegrityError as error:
            raise KeyInUse(username.public_key) from error

    # --- offers ---

    def add_offers(self, offers: list[Offer], now: int) -> None:
        with self._transaction():
            for offer in offers:
                self._insert_offer(offer, now)

    def _insert_offer(self, offer: Offer, now: int) -> None:
        self._database.execute("DELETE FROM offers WHERE id = ? AND expires_at <= ?", (offer.id, now))
        try:
            self._database.execute(
                "INSERT INTO offers (id, peer_id, sdp, secret, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?)",
                (offer.id, offer.peer_id, offer.sdp, offer.secret, offer.created_at, offer.expires_at),
            )
        except sqlite3.IntegrityError as error:
            raise DuplicateOffer(offer.id) from error

    def _offers(self, condition: str, values: tuple[Any, ...]) -> list[Offer]:
        rows = self._database.execute(f"SELECT {_OFFER_COLUMNS} FROM offers WHERE {condition}", values)  # noqa: S608
        return [Offer(*row) for row in rows]

    def offer(self, offer_id: str, now: int) -> Offer | None:
        found = self._offers("id = ? AND expires_at > ?", (offer_id, now))
        return found[0] if found else None

    def offers_of(self, peer_id: str, now: int) -> list[Offer]:
        return self._offers("peer_id = ? AND expires_at > ? ORDER BY created_at DESC, number", (peer_id, now))

    def answered_offers_of(self, peer_id: str, now: int) -> list[Offer]:
        return self._offers(
            "peer_id = ? AND expires_at > ? AND answered_at IS NOT NULL ORDER BY answered_at DESC, number DESC",
            (peer_id, now),
        )

    def open_offer_of(self, peer_id: str, now: int) -> Offer | None:
        found = self._offers(
            "peer_id = ? AND expires_at > ? AND answered_at IS NULL ORDER BY created_at DESC, number DESC LIMIT 1",
            (peer_id, now),
        )
        return found[0] if found else None

    def answer_offer(self, offer_id: str, answerer_id: str, sdp: str, now: int) -> bool:
        return (
            self._database.execute(
                "UPDATE offers SET answerer_id = ?, answer_sdp = ?, answered_at = ? "
                "WHERE id = ? AND expires_at > ? AND answered_at IS NULL",
                (answerer_id, sdp, now, offer_id, now),
            ).rowcount
            == 1
        )

    def delete_offer(self, offer_id: str, peer_id: str, now: int) -> bool:
        return (
            self._database.execute(
                "DELETE FROM offers WHERE id = ? AND peer_id = ? AND expires_at > ?", (offer_id, peer_id, now)
            ).rowcount
            == 1
        )

    # --- services ---

    def publish(self, service: Service, offer: Offer, now: int) -> None:
        with self._transaction():
            self._insert_offer(offer, now)
            self._database.execute(
                "DELETE FROM services WHERE username = ? AND fqn = ?", (service.username, service.fqn)
            )
            self._database.execute(
                f"INSERT INTO services ({_SERVICE_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
                astuple(service),
            )

    def _services(self, condition: str, values: tuple[Any, ...]) -> list[Service]:
        rows = self._database.execute(f"SELECT {_SERVICE_COLUMNS} FROM services WHERE {condition}", values)  # noqa: S608
        return [replace(service, public=bool(service.public)) for service in (Service(*row) for row in rows)]

    def service(self, uuid: str, now: int) -> Service | None:
        found = self._services("uuid = ? AND expires_at > ?", (uuid, now))
        return found[0] if found else None

    def find_service(self, username: str, fqn: str, now: int) -> Service | None:
        found = self._services("username = ? AND fqn = ? AND expires_at > ?", (username, fqn, now))
        return found[0] if found else None

    def services_of(self, username: str, now: int) -> list[Service]:
        return self._services("username = ? AND expires_at > ? ORDER BY created_at DESC", (username, now))

    def delete_service(self, service_id: str, username: str, peer_id: str, now: int) -> bool:
        return (
            self._database.execute(
                "DELETE FROM services WHERE id = ? AND username = ? AND peer_id = ? AND expires_at > ?",
                (service_id, username, peer_id, now),
            ).rowcount
            == 1
        )

    # --- candidates ---

    def add_candidates(self, offer_id: str, role: CandidateRole, candidates: list[Any], now: int) -> None:
        with self._transaction():
            (last,) = self._database.execute(
                "SELECT max(created_at) FROM candidates WHERE offer_id = ? AND role = ?", (offer_id, role)
            ).fetchone()
            first = now if last is None else max(now, last + 1)
            self._database.executemany(
                "INSERT INTO candidates (offer_id, role, candidate, created_at) VALUES (?, ?, ?, ?)",
                [
                    (offer_id, role, json_text.write(candidate), first + index)
                    for index, candidate in enumerate(candidates)
                ],
            )

    def count_candidates(self, offer_id: str) -> int:
        row = self._database.execute("SELECT count(*) FROM candidates WHERE offer_id = ?", (offer_id,)).fetchone()
        return int(row[0])

    def candidates(self, offer_id: str, role: CandidateRole, since: float) -> list[StoredCandidate]:
        rows = self._database.execute(
            "SELECT candidate, created_at FROM candidates WHERE offer_id = ? AND role = ? AND created_at > ? "
            "ORDER BY created_at, number",
            (offer_id, role, since),
        )
        return [StoredCandidate(json.loads(candidate), created_at) for candidate, created_at in rows]

    # --- expiry ---

    def delete_expired(self, now: int) -> int:
        removed = 0
        with self._transaction():
            for table in ("services", "offers", "usernames"):
                removed += self._database.execute(f"DELETE FROM {table} WHERE expires_at <= ?", (now,)).rowcount  # noqa: S608
        return removed
