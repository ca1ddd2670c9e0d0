"""Whose ephemeral declarations are: they belong to the sockets that made them, and end with the last of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from rondevud.records import DeclarationKind

GRACE = 10.0
"""Seconds that the last owner may be gone before a declaration is abandoned."""

Key = tuple[DeclarationKind, str]
"""A declaration: its kind and name."""


class Owners:
    """The owners of each ephemeral declaration. `on_abandoned` is called once the last has been gone for `GRACE`."""

    def __init__(self) -> None:
        self.on_abandoned: Callable[[Key], None] = lambda _key: None
        self._owners: dict[Key, set[object]] = {}
        self._timers: dict[Key, asyncio.TimerHandle] = {}

    def add(self, key: Key, owner: object) -> None:
        """`owner` declares that, perhaps as others do. Idempotent."""
        self._owners.setdefault(key, set()).add(owner)
        self._cancel(key)

    def owned(self, key: Key) -> bool:
        """Whether anybody who declared that is still there."""
        return bool(self._owners.get(key))

    def gone(self, owner: object) -> None:
        """`owner` is gone, whatever it owned."""
        for key, owners in self._owners.items():
            if owner in owners:
                owners.remove(owner)
                self.wait_again(key)

    def wait_again(self, key: Key) -> None:
        """Count `GRACE` from now on, if nobody owns that: its last owner has gone, or it could not be ended."""
        if key in self._owners and not self._owners[key]:
            self._cancel(key)
            self._timers[key] = asyncio.get_running_loop().call_later(GRACE, self._abandon, key)

    def forget(self, key: Key) -> None:
        """That declaration has ended."""
        self._owners.pop(key, None)
        self._cancel(key)

    def stop(self) -> None:
        """Nothing is abandoned any more."""
        self._owners.clear()
        for key in list(self._timers):
            self._cancel(key)

    def _abandon(self, key: Key) -> None:
        del self._timers[key]
        self.on_abandoned(key)

    def _cancel(self, key: Key) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
