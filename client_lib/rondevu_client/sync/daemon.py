"""The daemon, as a program without asyncio sees it."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from rondevu_client import client as aio
from rondevu_client.attaching import AttachParameters
from rondevu_client.errors import ConnectionLost
from rondevu_client.sockets import REQUEST_TIMEOUT
from rondevu_client.sync.background import Background, ListenerThread
from rondevu_client.sync.channel import Channel
from rondevu_client.sync.connection import Connection
from rondevu_client.sync.facade import EmitterFacade
from rondevu_client.sync.requests import Requests
from rondevu_client.sync.service import Handler, Service, handler_in_thread
from rondevu_client.sync.stream import EventStream

T = TypeVar("T")

HANDLER_THREADS = 64
"""Handlers that run at once: channels that are served at once."""

CLOSE_TIMEOUT = 5.0
"""Seconds that leaving the daemon may take."""


class Daemon(EmitterFacade, Requests):
    """The daemon behind a socket; use it in a ``with`` statement, or call `open` and `close`.

    See `rondevu_client.Daemon`. An interpreter that ends closes it. Listeners may be added
    before `open`, and end with `close`.
    """

    def __init__(
        self,
        socket: str | os.PathLike[str] | None = None,
        reconnect: bool = True,
        *,
        client: str | None = None,
        request_timeout: float = REQUEST_TIMEOUT,
        hello_timeout: float | None = None,
        handler_threads: int = HANDLER_THREADS,
    ) -> None:
        """`client` is the name the daemon shows for this program, `request_timeout` and `hello_timeout` are in seconds.

        `handler_threads` is how many handlers run at once; the channels of others wait until one has returned.
        """
        self._make = partial(
            aio.Daemon,
            socket,
            reconnect,
            client=client,
            request_timeout=request_timeout,
            hello_timeout=hello_timeout,
        )
        self._handler_threads = handler_threads
        self._inner = self._emitter = self._make()
        self._listener_thread = ListenerThread()
        self._ended = False
        """Whether it was open before; then listeners that are added now are for the next `open`."""
        self._opened: Background | None = None
        self._changing = threading.RLock()

    # --- life --------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def open(self, timeout: float | None = None) -> None:
        """Find the socket and say hello. Raises `DaemonUnavailable`, `RequestRefused` (``access_denied``)."""
        with self._changing:
            if self._opened is not None:
                raise RuntimeError("the daemon object is open")
            self._begin_anew()
            background = Background(self._handler_threads, self._listener_thread)
            try:
                background.run(timeout, self._inner.open)
            except BaseException:
                background.stop()
                raise
            self._opened = background
            atexit.register(self.close)

    def close(self) -> None:
        """Detach from everything and close the socket; idempotent, and allowed in handlers and listeners.

        Whoever waits for messages comes to the end, everybody else gets `ConnectionLost`. Handlers and listeners that run
        are waited for a few seconds.
        """
        with self._changing:
            background, self._opened = self._opened, None
            inner = self._inner
            self._ended = True
        if background is None or background.is_forked:
            return
        atexit.unregister(self.close)
        try:
            background.run(CLOSE_TIMEOUT, inner.close)
        finally:
            background.stop()

    @property
    def version(self) -> str:
        """Of the daemon's program."""
        return self._inner.version

    @property
    def instance(self) -> str:
        """Changes with each start of the daemon."""
        return self._inner.instance

    @property
    def path(self) -> os.PathLike[str] | None:
        """Of the socket that answered."""
        return self._inner.path

    @property
    def dropped_events(self) -> int:
        """Events that no listener was called for, because too many waited for the listener thread."""
        return self._background.listeners.dropped

    # --- use ---------------------------------------------------------------------------------------------------

    def connect(
        self,
        username: str,
        fqn: str,
        *,
        name: str | None = None,
        ephemeral: bool = False,
        options: dict[str, Any] | None = None,
        timeout: float | None = None,
        **more: Any,
    ) -> Connection:
        """Declare a connection to a service; as `rondevu_client.Daemon.connect`."""
        more |= {"name": name, "ephemeral": ephemeral, "options": options}
        made = self._run(timeout, self._inner.connect, username, fqn, **more)
        return Connection(self._background, made)

    def connect_by_uuid(
        self,
        uuid: str,
        *,
        name: str | None = None,
        ephemeral: bool = False,
        options: dict[str, Any] | None = None,
        timeout: float | None = None,
        **more: Any,
    ) -> Connection:
        """The same by the service's UUID."""
        more |= {"name": name, "ephemeral": ephemeral, "options": options}
        made = self._run(timeout, self._inner.connect_by_uuid, uuid, **more)
        return Connection(self._background, made)

    def attach(
        self,
        target: str,
        label: str,
        *,
        timeout: float | None = None,
        **parameters: Unpack[AttachParameters],
    ) -> Channel:
        """Attach to a channel of a connection (name or id); `AttachParameters` says what can be given by name."""
        return Channel(self._background, self._run(timeout, self._inner.attach, target, label, **parameters))

    def expose_service(
        self,
        username: str,
        fqn: str,
        *,
        handler: Handler | None = None,
        ephemeral: bool = False,
        options: dict[str, Any] | None = None,
        timeout: float | None = None,
        **more: Any,
    ) -> Service:
        """Declare a service; as `rondevu_client.Daemon.expose_service`, with handlers that run in threads."""
        background = self._background
        run_handler = None if handler is None else handler_in_thread(background, handler)
        more |= {"handler": run_handler, "ephemeral": ephemeral, "options": options}
        inner = self._run(timeout, self._inner.expose_service, username, fqn, **more)
        return Service(background, inner)

    def subscribe(
        self,
        target: str | None = None,
        since: int | None = None,
        *,
        instance: str = "",
        timeout: float | None = None,
    ) -> EventStream:
        """As `rondevu_client.Daemon.subscribe`; `timeout` in seconds, for the answer."""
        inner = self._run(timeout, partial(self._inner.subscribe, target, since, instance=instance))
        return EventStream(self._background, inner)

    def wait(self, target: str, what: str = "connected", timeout: float | None = None) -> dict[str, Any]:
        """Wait until `target` is ``connected`` or ``drained``. Raises `RequestRefused` with code ``timeout``."""
        return self._run(None, self._inner.wait, target, what, timeout)

    # --- inside ------------------------------------------------------------------------------------------------

    def _begin_anew(self) -> None:
        """Forget what was open before, with its listeners."""
        if self._ended:
            self._inner = self._emitter = self._make()
            self._listener_thread = ListenerThread()
            self._ended = False

    @property
    def _listeners(self) -> ListenerThread:
        with self._changing:
            if self._opened is None:
                self._begin_anew()
            return self._listener_thread

    def _read(self, function: Callable[[], T]) -> T:
        with self._changing:
            background = self._opened
            if background is None:
                self._begin_anew()
                return function()
        return background.read(function)

    @property
    def _background(self) -> Background:
        if self._opened is None:
            raise ConnectionLost("the daemon object is not open")
        return self._opened
