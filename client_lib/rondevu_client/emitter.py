"""Events by name: on, once, off."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

logger = logging.getLogger(__name__)

Listener: TypeAlias = Callable[..., Any]


class Emitter:
    """Calls listeners in the order in which they were added. One that raises is logged and disturbs no other."""

    def __init__(self, spawn: Callable[[Awaitable[Any], str], object]) -> None:
        """`spawn` runs what a coroutine listener returned, under a name."""
        self._listeners: dict[str, list[tuple[Listener, bool]]] = {}
        self._spawn = spawn

    def on(self, event: str, listener: Listener) -> None:
        """Call `listener` at every `event`; a coroutine function runs as a task."""
        self._listeners.setdefault(event, []).append((listener, False))

    def once(self, event: str, listener: Listener) -> None:
        """Call `listener` at the next `event` only."""
        self._listeners.setdefault(event, []).append((listener, True))

    def off(self, event: str, listener: Listener) -> None:
        """Call `listener` no more, however it was added; nothing happens if it is not there."""
        entries = self._listeners.get(event, [])
        self._listeners[event] = [entry for entry in entries if entry[0] != listener]

    def remove_all_listeners(self, event: str | None = None) -> None:
        """Call none of the listeners of `event` any more; with None, none at all."""
        if event is None:
            self._listeners.clear()
        else:
            self._listeners.pop(event, None)

    def listener_count(self, event: str) -> int:
        """How many listeners wait for `event`."""
        return len(self._listeners.get(event, []))

    def _take_listeners(self, event: str) -> list[Listener]:
        """Whom to call now; those that wanted one event are gone after this."""
        entries = self._listeners.get(event, [])
        if any(once for _, once in entries):
            self._listeners[event] = [entry for entry in entries if not entry[1]]
        return [listener for listener, _ in entries]

    def _emit(self, event: str, *args: Any) -> None:
        for listener in self._take_listeners(event):
            self._call(event, listener, *args)

    def _call(self, event: str, listener: Listener, *args: Any) -> None:
        try:
            result = listener(*args)
            if inspect.isawaitable(result):
                self._spawn(result, f"listener of {event}")
        except Exception:
            logger.exception("A listener of %s failed", event)
