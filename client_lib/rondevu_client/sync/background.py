"""What the blocking facade stands on: an event loop in a thread of its own, and threads for the program's functions.

All threads are daemon threads, so that none keeps an interpreter from ending.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import queue
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar

from rondevu_client.errors import ConnectionLost

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

BACKLOG = 10_000
"""Events that wait for the listener thread; more are dropped and counted."""

JOIN_TIMEOUT = 5.0
"""Seconds that `Background.stop` waits for functions of the program to return."""

_CLOSED = "the daemon object is closed"


class _Outcome(NamedTuple):
    """What became of a function in another thread; as a value, because a future takes no `StopIteration`."""

    result: Any
    error: Exception | None


class _Job(Generic[T]):
    """A function to call in another thread, and the future in the loop that hears of it."""

    def __init__(self, function: Callable[..., T], args: tuple[Any, ...]) -> None:
        self._function = function
        self._args = args
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[_Outcome] = self._loop.create_future()

    def run(self) -> None:
        """To be called in the other thread; raises nothing. `SystemExit` only ends the function, as in any thread."""
        outcome = _Outcome(None, None)
        try:
            outcome = _Outcome(self._function(*self._args), None)
        except Exception as error:  # noqa: BLE001 - it is raised again where the function is waited for
            outcome = _Outcome(None, error)
        except SystemExit:
            pass
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._settle, outcome)

    def _settle(self, outcome: _Outcome) -> None:
        if not self._future.done():
            self._future.set_result(outcome)

    async def wait(self) -> T:
        """What the function returned or raised."""
        outcome = await self._future
        if outcome.error is not None:
            raise outcome.error
        result: T = outcome.result
        return result


class ListenerThread:
    """Calls listeners one after the other, in the order of their events."""

    def __init__(self) -> None:
        self.dropped = 0
        """Events that found `BACKLOG` others before them."""
        self._bursting = False
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.thread: threading.Thread

    def start(self) -> None:
        """Call what was posted so far, and what will be until `stop`; then it can be started again."""
        self.thread = threading.Thread(target=self._call_loop, name="rondevu listeners", daemon=True)
        self.thread.start()

    def post(self, listener: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """Call `listener` in its turn; an exception of it is logged. Never blocks."""
        if self._calls.qsize() >= BACKLOG:
            self.dropped += 1
            if not self._bursting:
                logger.warning("A listener takes so long that events are dropped: %d wait", BACKLOG)
            self._bursting = True
            return
        self._bursting = False
        self._calls.put(lambda: _call_and_log(listener, args))

    async def call(self, listener: Callable[..., T], *args: Any) -> T:
        """Call `listener` in its turn and wait for what it returns or raises."""
        job = _Job(listener, args)
        self._calls.put(job.run)
        return await job.wait()

    def stop(self) -> None:
        """End when everything posted so far has been called."""
        self._calls.put(None)

    def _call_loop(self) -> None:
        while (call := self._calls.get()) is not None:
            call()


def _call_and_log(listener: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        listener(*args)
    except Exception:
        logger.exception("A listener failed")


class HandlerThreads:
    """A thread for each handler that runs, at most so many at once; more wait for their turn."""

    def __init__(self, most: int) -> None:
        self.threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
        self._most = most
        self._turns = asyncio.Semaphore(most)

    async def call(self, handler: Callable[..., T], *args: Any) -> T:
        """Call `handler` in a thread of its own and wait for what it returns or raises."""
        if self._turns.locked():
            logger.warning(
                "%d handlers run in threads; another channel waits until one of them has returned", self._most
            )
        async with self._turns:
            job = _Job(handler, args)
            thread = threading.Thread(target=job.run, name="rondevu handler", daemon=True)
            self.threads.add(thread)
            thread.start()
            return await job.wait()


class Background:
    """The loop and the threads of one daemon object; runs from when it is made until `stop`."""

    def __init__(self, handler_threads: int, listeners: ListenerThread) -> None:
        """`listeners` is started, and stopped in the end."""
        self._loop = asyncio.new_event_loop()
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._stopped = False
        self._thread = threading.Thread(target=self._run_loop, name="rondevu", daemon=True)
        self.listeners = listeners
        self.handlers = HandlerThreads(handler_threads)
        self.listeners.start()
        self._thread.start()

    @property
    def is_forked(self) -> bool:
        """Whether this is a copy in another process, where none of the threads runs."""
        return os.getpid() != self._process

    def run(
        self, timeout: float | None, function: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call `function` in the loop and wait at most `timeout` seconds for its result; None: as long as it takes.

        An interrupted wait cancels it. Raises what it raises, `TimeoutError`, `ConnectionLost` after `stop`, and
        `RuntimeError` where waiting would be a mistake: in a coroutine, and in a process forked from this one.
        """
        self._check_caller()

        async def work() -> T:
            async with asyncio.timeout(timeout):
                return await function(*args, **kwargs)

        future = self._submit(work)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise ConnectionLost(_CLOSED) from None
        finally:
            future.cancel()

    def read(self, function: Callable[[], T]) -> T:
        """What `function` returns, called where nothing changes meanwhile; also after `stop`.

        Raises `RuntimeError` in a process forked from this one.
        """
        self._check_process()

        async def work() -> T:
            return function()

        try:
            return self._submit(work).result()
        except (ConnectionLost, concurrent.futures.CancelledError):
            return function()

    def stop(self) -> None:
        """End the loop and wait a while for the program's functions. What waits in `run` gets `ConnectionLost`."""
        with self._lock:
            self._stopped = True
            self._loop.call_soon_threadsafe(self._loop.stop)
        self.listeners.stop()
        deadline = time.monotonic() + JOIN_TIMEOUT
        for thread in (self._thread, self.listeners.thread, *self.handlers.threads):
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
                if thread.is_alive():
                    logger.warning("A function of the program still runs in the thread %r", thread.name)

    def _submit(self, work: Callable[[], Coroutine[Any, Any, T]]) -> concurrent.futures.Future[T]:
        with self._lock:
            if self._stopped:
                raise ConnectionLost(_CLOSED)
            return asyncio.run_coroutine_threadsafe(work(), self._loop)

    def _check_process(self) -> None:
        if self.is_forked:
            raise RuntimeError("this daemon object belongs to the process before the fork; open another one here")

    def _check_caller(self) -> None:
        self._check_process()
        if _is_in_loop():
            raise RuntimeError("this would block the running event loop; use rondevu_client.Daemon in coroutines")

    def _run_loop(self) -> None:
        with contextlib.closing(self._loop):
            self._loop.run_forever()
            self._loop.run_until_complete(_cancel_all())


def _is_in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
