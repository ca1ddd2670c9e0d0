"""The Ed25519 keys of user names, one file each: ``<directory>/<username>.key``.

A file is one line of JSON, ``{"username": …, "seed": …}``, the seed being the base64 of the 32 bytes from which the key is
made (what the JavaScript clients call the private key). Files have mode 0600, the directory 0700; a key is on the disk,
directory entry included, before anybody can use it.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import json
import logging
import os
import re
import secrets
import stat
from pathlib import Path

from rondevud.errors import ConfigError, StateDirectoryError
from rondevud.syncing import sync

logger = logging.getLogger(__name__)

SEED_LENGTH = 32
MAX_KEY_FILE = 4096
_USERNAME = re.compile(r"[a-z0-9][a-z0-9-]{1,30}[a-z0-9]")


class Identity:
    """The key of one user name. Its ``repr`` does not show the key."""

    def __init__(self, username: str, seed: bytes) -> None:
        # With the first key: it takes 7 MB.
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat  # noqa: PLC0415

        self.username = username
        self._seed = seed
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        raw = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.public_key = base64.b64encode(raw).decode()
        """Base64 of the 32 bytes."""

    @classmethod
    def from_exported(cls, username: str, seed: str) -> Identity:
        """The key of `export_seed`. Raises `ConfigError` for what is none, without quoting it."""
        try:
            raw = base64.b64decode(seed.strip(), validate=True)
        except ValueError as error:
            raise ConfigError(f"key of {username}: the seed is not base64") from error
        if len(raw) != SEED_LENGTH:
            raise ConfigError(f"key of {username}: the seed has {len(raw)} bytes instead of {SEED_LENGTH}")
        return cls(username, raw)

    def __repr__(self) -> str:
        return f"Identity({self.username!r}, public_key={self.public_key!r})"

    def sign(self, message: str) -> str:
        """Base64 of the signature over the UTF-8 bytes of `message`."""
        return base64.b64encode(self._key.sign(message.encode())).decode()

    def export_seed(self) -> str:
        """Base64 of the seed. Secret: whoever has it is this user."""
        return base64.b64encode(self._seed).decode()


class Identities:
    """The keys in one directory. Errors are `StateDirectoryError` naming the file, `ConfigError` for a bad user name."""

    def __init__(self, directory: str | Path) -> None:
        """The directory is made when the first key is."""
        self._directory = Path(directory)
        self._loaded: dict[str, Identity] = {}

    def names(self) -> list[str]:
        """User names that have a key here, sorted."""
        try:
            files = list(self._directory.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StateDirectoryError(f"{self._directory}: cannot list keys: {error.strerror}") from error
        return sorted(file.stem for file in files if file.suffix == ".key" and _USERNAME.fullmatch(file.stem))

    def load(self, username: str) -> Identity | None:
        """The key of `username`, None when there is none. A file that others can read is told in a warning."""
        path = self.file(username)
        if username not in self._loaded:
            try:
                with path.open("rb") as file:
                    mode = os.fstat(file.fileno()).st_mode
                    content = file.read(MAX_KEY_FILE + 1)
            except FileNotFoundError:
                return None
            except OSError as error:
                raise StateDirectoryError(f"{path}: cannot read the key: {error.strerror}") from error
            if mode & (stat.S_IRWXG | stat.S_IRWXO):
                logger.warning("%s: others can read this key (mode %04o); run chmod 600 on it", path, mode & 0o777)
            self._loaded[username] = Identity(username, _parse(path, username, content))
        return self._loaded[username]

    def obtain(self, username: str) -> Identity:
        """The key of `username`, made when there is none."""
        identity = self.load(username)
        return identity if identity is not None else self._store(Identity(username, secrets.token_bytes(SEED_LENGTH)))

    def import_seed(self, username: str, seed: str, *, replace: bool = False) -> Identity:
        """Store a key that was exported. Raises `ConfigError` for a bad seed, or when another key is there."""
        imported = Identity.from_exported(username, seed)
        held = None if replace else self.load(username)  # a replaced file may be damaged
        if held is not None and held.public_key != imported.public_key:
            raise ConfigError(f"user name {username} has another key already")
        return held or self._store(imported)

    def take_credentials(self, directory: Path) -> None:
        """Take the ``*.key`` files of a directory of credentials (systemd.exec(5), ``LoadCredential=``) that are not held.

        The user name is what stands before ``.key``, behind the last ``_`` (systemd writes ``ID_alice.key`` for a file of a
        directory). A file holds what `rondevuctl key export` prints, or is a key file of a daemon. Where another key is
        held, that one stays, and a warning says so. Raises `ConfigError` for a file that is no key, without quoting it.
        """
        try:
            found = sorted(directory.iterdir())
        except OSError as error:
            raise ConfigError(f"credentials {directory}: cannot be listed: {error.strerror}") from error
        for file in found:
            if file.suffix != ".key":
                if "_" in file.name:  # of a directory of keys: what was meant for one
                    logger.warning("credential %s is not taken: its name does not end in .key", file.name)
                continue
            try:
                offered = _read_credential(file, file.stem.rpartition("_")[2])
            except (ConfigError, StateDirectoryError) as error:
                raise ConfigError(f"credential {file.name}: {error}") from error
            held = self.load(offered.username)
            if held is None:
                self._store(offered)
            elif held.public_key != offered.public_key:
                logger.warning(
                    "credential %s: user name %s has another key already, in %s, which stays; "
                    "`rondevuctl key import --force` replaces it",
                    file.name, offered.username, self.file(offered.username),
                )  # fmt: skip

    def keep_aside(self, username: str) -> Path:
        """A second name for the key file of `username`, which must exist, beside it; it stays when the key is replaced."""
        path = self.file(username)
        for number in itertools.count(1):
            kept = path.with_name(f"{path.name}.old-{number}")
            try:
                kept.hardlink_to(path)
            except FileExistsError:
                continue
            except OSError as error:
                raise StateDirectoryError(f"{kept}: cannot keep the key: {error.strerror}") from error
            return kept
        raise AssertionError("unreachable")

    def delete(self, username: str) -> bool:
        """Remove the key; whether there was one. Without a copy, the claim of the name is lost."""
        path = self.file(username)
        self._loaded.pop(username, None)
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise StateDirectoryError(f"{path}: cannot delete the key: {error.strerror}") from error
        sync(self._directory)
        return True

    def file(self, username: str) -> Path:
        """Where the key of `username` is, or would be. Raises `ConfigError` for a bad user name."""
        if not _USERNAME.fullmatch(username):
            raise ConfigError(
                f"user name {username!r}: 3 to 32 characters a-z, 0-9 and dashes, no dash first or last, are expected"
            )
        return self._directory / f"{username}.key"

    def _store(self, identity: Identity) -> Identity:
        username = identity.username
        path = self.file(username)
        line = json.dumps({"username": username, "seed": identity.export_seed()}) + "\n"
        try:
            if not self._directory.exists():
                self._directory.mkdir(mode=0o700, parents=True)
                sync(self._directory.parent)
            _write_atomically(path, line.encode())
        except OSError as error:
            raise StateDirectoryError(f"{path}: cannot write the key: {error.strerror}") from error
        self._loaded[username] = identity
        logger.info("key of user name %s stored in %s", username, path)
        return identity


def _read_credential(path: Path, username: str) -> Identity:
    if not _USERNAME.fullmatch(username):
        raise ConfigError(f"its name has to be USER.key, and {username!r} is no user name (a-z, 0-9 and dashes)")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}") from error
    if len(content) > MAX_KEY_FILE:
        raise ConfigError("is too long for a key")
    if content.lstrip().startswith(b"{"):
        return Identity(username, _parse(path, username, content))
    return Identity.from_exported(username, content.decode("ascii", "replace"))


def _parse(path: Path, username: str, content: bytes) -> bytes:
    """The seed in a key file. Messages never quote the content."""
    try:
        members = json.loads(content)
        named, seed = members["username"], base64.b64decode(members["seed"], validate=True)
    except (ValueError, TypeError, KeyError, binascii.Error, RecursionError) as error:
        raise StateDirectoryError(f"{path}: damaged: expected a line of JSON with username and seed") from error
    if len(seed) != SEED_LENGTH:
        raise StateDirectoryError(f"{path}: damaged: the seed has {len(seed)} bytes instead of {SEED_LENGTH}")
    if named != username:
        raise StateDirectoryError(f"{path}: damaged: it holds the key of another user name")
    return seed


def _write_atomically(path: Path, content: bytes) -> None:
    """After a crash there is the old file, the new file, or none; never a part of one."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor, not a path
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)
