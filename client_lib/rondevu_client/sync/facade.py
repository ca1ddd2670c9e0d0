"""What the objects of the blocking library have in common."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, ParamSpec, TypeAlias, TypeVar

from rondevu_client import emitter as aio
from rondevu_client.sync.background import Background, ListenerThread

P = ParamSpec("P")
T = TypeVar("T")

Listener: TypeAlias = Callable[..., object]


class Facade:
    """What the objects here have in common: the loop in which the objects they stand for live."""

    def __init__(self, background: Background) -> None:
        self._own_background = background

    @property
    def _background(self) -> Background:
        return self._own_background

    def _run(
        self, timeout: float | None, function: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        return self._background.run(timeout, function, *args, **kwargs)


class EmitterFacade(Facade):
    """Listeners by event; see the class for which events there are."""

    _emitter: aio.Emitter

    def on(self, event: str, listener: Listener) -> None:
        """Call `listener`, in the listener thread, at every `event`. One that raises is logged."""
        relay = self._relay(event, listener)
        self._read(lambda: self._emitter.on(event, relay))

    def once(self, event: str, listener: Listener) -> None:
        """Call `listener` at the next `event` only."""
        relay = self._relay(event, listener)
        self._read(lambda: self._emitter.once(event, relay))

    def off(self, event: str, listener: Listener) -> None:
        """Call `listener` no more, however it was added; nothing happens if it is not there."""
        relay = self._relay(event, listener)
        self._read(lambda: self._emitter.off(event, relay))

    def remove_all_listeners(self, event: str | None = None) -> None:
        """Call none of the listeners of `event` any more; with None, none at all."""
        self._read(lambda: self._emitter.remove_all_listeners(event))

    def listener_count(self, event: str) -> int:
        """How many listeners wait for `event`."""
        return self._read(lambda: self._emitter.listener_count(event))

    @property
    def _listeners(self) -> ListenerThread:
        return self._background.listeners

    def _read(self, function: Callable[[], T]) -> T:
        return self._background.read(function)

    def _relay(self, event: str, listener: Listener) -> Relay:
        del event
        return Relay(self._listeners, listener)


class Relay:
    """A listener of the program that is called in the listener thread; equal to every other one of the same listener."""

    def __init__(self, listeners: ListenerThread, listener: Listener) -> None:
        refuse_coroutine_function(listener)
        self._listeners = listeners
        self.listener = listener

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Relay) and other.listener == self.listener

    def __hash__(self) -> int:
        return hash(self.listener)

    def __call__(self, *args: Any) -> Awaitable[Any] | None:
        self._listeners.post(self.listener, args)
        return None


def refuse_coroutine_function(function: Callable[..., Any]) -> None:
    if inspect.iscoroutinefunction(function):
        raise TypeError(f"{function!r} is a coroutine function; here a plain function is called, in a thread")
