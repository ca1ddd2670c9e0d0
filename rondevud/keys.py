"""The keys of user names, as the methods of the socket see them.

Who may open the socket may have a private key: root, and the user this daemon runs as.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from rondevud.errors import ConfigError, RequestError, StateDirectoryError
from rondevud.signalling.identity import Identities, Identity

Data = dict[str, Any]


@contextlib.contextmanager
def key_errors() -> Iterator[None]:
    """What a program is told about user names and keys that cannot be used."""
    try:
        yield
    except ConfigError as error:
        raise RequestError("bad_params", str(error)) from error
    except StateDirectoryError as error:
        raise RequestError("key_failed", str(error)) from error


class Keys:
    """Every method but `compare` raises `RequestError`; a key is described as ``{username, public_key, file}``."""

    def __init__(self, identities: Identities, services: Callable[[str], Iterable[str]]) -> None:
        """`services` tells which declared services a user name has."""
        self._identities = identities
        self._services = services

    def list(self) -> list[Data]:
        """The keys that are held here, by user name."""
        with key_errors():
            return [self._describe(self._find(username)) for username in self._identities.names()]

    def show(self, username: str) -> Data:
        with key_errors():
            return self._describe(self._find(username))

    def export(self, username: str) -> Data:
        """``{username, private_key}``, the base64 of the 32 bytes that the JavaScript clients call the private key."""
        with key_errors():
            return {"username": username, "private_key": self._find(username).export_seed()}

    def generate(self, username: str) -> Data:
        """A new key, without asking any server. Raises ``key_exists``."""
        with key_errors():
            if self._identities.load(username) is not None:
                raise RequestError("key_exists", f"there is a key for user name {username} already")
            return self._describe(self._identities.obtain(username))

    def import_key(self, username: str, private_key: str, *, force: bool) -> Data:
        """Take a key that was exported; ``kept`` is the file of the key it replaces, None when there was no other.

        Raises ``key_exists`` when there is another one, unless `force`, and then ``key_in_use`` while a service of that
        user is declared.
        """
        with key_errors():
            imported = Identity.from_exported(username, private_key)
            other = self._other(imported)
            if other and not force:
                raise RequestError("key_exists", f"user name {username} has another key already")
            if other:
                self._refuse_in_use(username)
            kept = self._identities.keep_aside(username) if other else None
            identity = self._identities.import_seed(username, private_key, replace=other)
            return self._describe(identity) | {"kept": str(kept) if kept else None}

    def _other(self, imported: Identity) -> bool:
        """Whether there is a file that does not hold this key; a damaged one is to be kept, too."""
        try:
            held = self._identities.load(imported.username)
        except StateDirectoryError:
            return True
        return held is not None and held.public_key != imported.public_key

    def delete(self, username: str) -> Data:
        """Remove a key for good. Raises ``key_in_use`` while a service of that user is declared."""
        self._refuse_in_use(username)
        with key_errors():
            described = self._describe(self._find(username))
            self._identities.delete(username)
            return described

    def _refuse_in_use(self, username: str) -> None:
        services = sorted(self._services(username))
        if services:
            raise RequestError(
                "key_in_use", f"{', '.join(services)} needs the key of {username}: withdraw it first", {"services": services}
            )  # fmt: skip

    def compare(self, answer: Data) -> Data:
        """What the signalling server says of a user name, with every key set, and with whose it is.

        ``holder`` is ``nobody``, ``ours`` (the server has the key that is held here) or ``other``; ``own_key`` is the
        public key that is held here.
        """
        own = None
        with contextlib.suppress(ConfigError, StateDirectoryError):
            own = self._identities.load(answer["username"])
        own_key = own.public_key if own else None
        held_by = "ours" if own_key is not None and answer.get("public_key") == own_key else "other"
        return {
            "username": answer["username"],
            "available": answer["available"],
            "holder": "nobody" if answer["available"] else held_by,
            "public_key": answer.get("public_key"),
            "own_key": own_key,
            "claimed_at": answer.get("claimed_at"),
            "expires_at": answer.get("expires_at"),
        }

    def _find(self, username: str) -> Identity:
        identity = self._identities.load(username)
        if identity is None:
            raise RequestError("no_key", f"there is no key for user name {username} here")
        return identity

    def _describe(self, identity: Identity) -> Data:
        file = self._identities.file(identity.username)
        return {"username": identity.username, "public_key": identity.public_key, "file": str(file)}
