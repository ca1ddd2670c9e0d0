"""Between the loop and the threads of libdatachannel: what they report, and how their objects come to an end.

The library calls us in threads of its own. It holds a lock of the connection or channel meanwhile, and its thread waits for
the interpreter's. Whatever takes a lock of the first kind while it holds the interpreter's may thus wait for ever. So:

- No callback is used that the library makes while it holds a lock which another call needs (the low mark of a buffer).
- No call is made that waits for the library's thread pool, whose threads may wait for the interpreter: each connection
  brings its own certificate, where the library would make one in the pool.
- An object is closed by a call that gives the interpreter free (`close` of both kinds does).
- An object is dropped, which takes all its locks, only when the library has let go of every callback that we gave it. It
  does that under the same locks, so no thread of it is in one then, nor will be.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import itertools
import logging
import math
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from rondevud.transport.channels import nothing

if TYPE_CHECKING:
    import libdatachannel

logger = logging.getLogger(__name__)

BATCH = 256
"""Reports of the library's threads that are handled in one turn of the loop."""

CLOSE_ATTEMPTS = 4
"""The library waits 30 s at most in each: its `close` returns when the connection has ended, which takes it 11 s when the
peer is gone. There is no call that only begins it; dropping an open object does not wait for the peer, but takes locks, with
the interpreter's held, that a callback's thread may have."""

GIVEN_UP = r"PeerConnection\.close\(\)"

CLOSING_THREADS = 32
"""Connections that are closed at the same time. What comes beyond that waits its turn, with its channels closed after a
moment: a peer that is there hears so much, and of one that is not the library finds that out, and ends the connection."""

CLOSING_MAX = 1_000
"""Connections that wait or are being closed; when there are as many no new one is made."""

RELEASE_TIMEOUT = 1.0
RELEASE_INTERVAL = 0.002
"""Seconds that a closing thread waits, and looks again, until the library has let go of all callbacks. What it still has
then is kept, and looked at whenever something else comes to its end."""

EXIT_TIMEOUT = 0.5
ABANDONED_TIMEOUT = 3.0
"""Seconds that the process waits, when it ends, for connections that are still closing, and for those that nobody closed."""

Native = TypeVar("Native")


class Inbox:
    """What the library's threads report, for the loop to handle in order."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._reports: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._due = False

    def put(self, handler: Callable[..., None], *arguments: Any) -> None:
        """Have `handler` called in the loop. To be called in any thread."""
        self._reports.append((handler, arguments))
        if not self._due:
            self._due = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                self._loop.call_soon_threadsafe(self._handle)

    def _handle(self) -> None:
        self._due = False
        for _ in range(BATCH):
            try:
                handler, arguments = self._reports.popleft()
            except IndexError:
                return
            try:
                handler(*arguments)
            except Exception:
                logger.exception("a report of libdatachannel could not be handled")
        if self._reports and not self._due:
            self._due = True
            self._loop.call_soon(self._handle)


class Callback:
    """A callback as it is given to the library.

    Without a place for weak references: the library refers to it as long as it may call it, where it would only watch
    anything else. Its number of references tells whether it still does.
    """

    __slots__ = ("_handler",)

    def __init__(self, handler: Callable[..., None]) -> None:
        self._handler = handler

    def __call__(self, *arguments: Any) -> None:
        self._handler(*arguments)


def _references(callbacks: list[Callback], index: int) -> int:
    return sys.getrefcount(callbacks[index])


_OURS = _references([Callback(nothing)], 0)
"""The references to a callback that is in a list, and nowhere else."""


class Held(Generic[Native]):
    """An object of the library, and the callbacks of ours that it was given."""

    def __init__(self, native: Native) -> None:
        self.native = native
        self._callbacks: list[Callback] = []

    def callback(self, handler: Callable[..., None]) -> Callback:
        """What to give to the library so that it calls `handler`."""
        callback = Callback(handler)
        self._callbacks.append(callback)
        return callback

    def is_released(self) -> bool:
        """Whether the library has let go of all callbacks; it never does before the object is closed."""
        callbacks = self._callbacks
        beside = {id(each) for each in getattr(self.native, "__dict__", {}).values()}  # where the binding has them, too
        return all(
            _references(callbacks, index) <= _OURS + (id(callbacks[index]) in beside) for index in range(len(callbacks))
        )

    def let_go(self) -> None:
        """Drop the object as soon as that can be done."""
        _leaving.add(self)
        drop_released()

    def drop(self) -> None:
        """Undo the cycle of an object, its callbacks, and what they belong to."""
        getattr(self.native, "__dict__", {}).clear()
        self._callbacks = []


class Natives:
    """A connection of the library with its channels. One that nobody refers to is closed by the library."""

    def __init__(self, connection: libdatachannel.PeerConnection) -> None:
        self.connection = Held(connection)
        self._channels: dict[libdatachannel.DataChannel, Held[libdatachannel.DataChannel]] = {}
        _open.add(self)

    def add(self, channel: libdatachannel.DataChannel) -> Held[libdatachannel.DataChannel]:
        held = self._channels[channel] = Held(channel)
        return held

    def forget(self, channel: libdatachannel.DataChannel) -> None:
        """Drop one that is closed."""
        held = self._channels.pop(channel, None)
        if held is not None:
            held.let_go()

    def close_in_thread(self, name: str, done: Callable[[bool], None] = nothing) -> None:
        """Have all closed by the `closer`. To be called once."""
        _open.discard(self)
        closer.close(self, name, done)

    def close(self) -> bool:
        """Have the library close all, in one attempt; whether it has. Takes long if the peer is gone.

        What still arrives is thrown away meanwhile, else the library would wait for ever.
        """
        connection = self.connection.native
        for channel in list(self._channels):
            discard(channel)
        # It warns when it gives up waiting. The filter stays: to put those back that were there is not for several threads.
        warnings.filterwarnings("ignore", GIVEN_UP, RuntimeWarning)
        with contextlib.suppress(RuntimeWarning):
            connection.close()
        return connection.state().name == "Closed"

    def let_go(self) -> None:
        """Drop all that was closed, as soon as that can be done."""
        self.silence()  # the library does not close those that never had a stream
        deadline = time.monotonic() + RELEASE_TIMEOUT
        while not all(held.is_released() for held in self._all()) and time.monotonic() < deadline:
            time.sleep(RELEASE_INTERVAL)
        for held in self._all():
            held.let_go()
        self._channels.clear()

    def silence(self) -> None:
        """Close the channels alone; no thread of the library calls us for them from then on."""
        for channel in list(self._channels):
            channel.close()

    def _all(self) -> list[Held[Any]]:
        return [self.connection, *self._channels.values()]


def discard(channel: libdatachannel.DataChannel) -> int:
    """Throw away what nobody will read; how many messages that were."""
    count = 0
    while True:
        try:
            if channel.receive() is None:
                return count
        except UnicodeDecodeError:
            pass
        count += 1


class Closable(Protocol):
    """What `Closer` closes."""

    def close(self) -> bool: ...

    def let_go(self) -> None: ...


@dataclass(eq=False)
class Closing:
    """One that is to be closed."""

    what: Closable
    name: str
    done: Callable[[bool], None]
    attempts: int = 0
    begun: bool = False


class Closer:
    """Closes connections in a few threads, which end when nothing waits any more.

    First come, first served; what could not be closed in one attempt goes to the end of the queue. To be used in any thread.
    """

    def __init__(self, limit: int) -> None:
        self._limit: float = limit
        self._lock = threading.Lock()
        self._waiting: deque[Closing] = deque()
        self._all: dict[Closable, Closing] = {}
        self._threads: set[threading.Thread] = set()
        self._numbers = itertools.count(1)

    def __len__(self) -> int:
        """What waits or is being closed."""
        return len(self._all)

    def close(self, what: Closable, name: str, done: Callable[[bool], None] = nothing) -> None:
        """Have something closed; `done` is then called, in one of the threads, with whether that went well."""
        closing = Closing(what, name, done)
        with self._lock:
            self._all[what] = closing
            self._waiting.append(closing)
            self._start_thread()

    @property
    def waiting(self) -> int:
        """What waits for a thread."""
        return len(self._waiting)

    def is_waiting(self, what: Closable) -> bool:
        """Whether nothing has been done for it yet."""
        closing = self._all.get(what)
        return closing is not None and not closing.begun

    def close_at_once(self) -> list[Closable]:
        """Begin with everything that waits, in as many threads as that takes; what is not closed yet."""
        with self._lock:
            self._limit = math.inf
            for _ in range(len(self._waiting)):
                self._start_thread()
            return list(self._all)

    def join(self, deadline: float) -> None:
        """Wait until all is closed, or until then (monotonic)."""
        for thread in list(self._threads):
            thread.join(max(0.0, deadline - time.monotonic()))

    def _start_thread(self) -> None:
        if len(self._threads) >= self._limit:
            return
        thread = threading.Thread(target=self._run, name=f"webrtc closing {next(self._numbers)}", daemon=True)
        self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError as error:  # there are too many in the process, or on the machine
            self._threads.discard(thread)
            logger.warning("no thread can be started that closes a connection, so it waits: %s", error)

    def _run(self) -> None:
        while (closing := self._take()) is not None:
            closed = self._attempt(closing)
            if not closed and closing.attempts < CLOSE_ATTEMPTS:
                with self._lock:
                    self._waiting.append(closing)
                continue
            try:
                closing.what.let_go()
            except Exception:
                logger.exception("%s failed", closing.name)
            with self._lock:
                self._all.pop(closing.what, None)
            try:
                closing.done(closed)
            except Exception:
                logger.exception("who waited for %s could not be told", closing.name)

    def _take(self) -> Closing | None:
        """The next one; the thread ends where there is none."""
        with self._lock:
            if self._waiting:
                return self._waiting.popleft()
            self._threads.discard(threading.current_thread())
            return None

    def _attempt(self, closing: Closing) -> bool:
        closing.begun = True
        closing.attempts += 1
        try:
            return closing.what.close()
        except Exception:
            logger.exception("%s failed", closing.name)
            return False


_open: set[Natives] = set()
"""Those that nobody has asked to close. The library ends the process with SIGABRT when it ends with one of them."""

closer = Closer(CLOSING_THREADS)
"""The one of this process: connections are still being closed when their engine is gone."""

_leaving: set[Held[Any]] = set()
"""To be dropped when the library has let go of their callbacks."""


def drop_released() -> None:
    """Drop what can be dropped by now. To be called in any thread."""
    for held in list(_leaving):
        if held.is_released():
            with contextlib.suppress(KeyError):  # another thread was faster
                _leaving.remove(held)
                held.drop()


def is_closing() -> bool:
    """Whether connections are being closed, in threads that end the process with SIGABRT if they outlive the interpreter."""
    return len(closer) > 0


def _end() -> None:
    """At the end of the process: close what nobody closed.

    A thread of the library that calls us when the interpreter has ended takes the process with it (SIGABRT).
    """
    deadline = time.monotonic() + (ABANDONED_TIMEOUT if _open or closer.waiting else EXIT_TIMEOUT)
    for natives in list(_open):
        natives.close_in_thread("closing what nobody closed")
    for each in closer.close_at_once():
        if isinstance(each, Natives):
            each.silence()
    closer.join(deadline)
    drop_released()
    while _leaving and time.monotonic() < deadline:
        time.sleep(RELEASE_INTERVAL)
        drop_released()


atexit.register(_end)
