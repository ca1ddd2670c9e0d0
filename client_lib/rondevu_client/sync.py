"""The library for programs without asyncio: the same objects, names and arguments, with calls that block.

    with Daemon() as daemon:
        connection = daemon.connect("alice", "com.example.chat@1.0.0")
        channel = connection.create_channel("main")
        channel.send("hello")
        for message in channel:
            print(message.data)

Every object may be used by several threads. Each call that waits takes a `timeout` in seconds (None: as long as it takes;
Ctrl-C interrupts it) and raises `TimeoutError` when it is over; what had been asked of the daemon may come about all the
same. A request that the daemon does not answer fails in any case after `request_timeout`. Besides the errors of the
asyncio library there are two: `RuntimeError` where a call would block a running event loop or the process was forked
since, `ConnectionLost` once the daemon object is closed.

Handlers run in threads of their own. Listeners run one after the other in one thread: they may call whatever they like,
while others wait for them.
"""

from __future__ import annotations

import atexit
import inspect
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeAlias, TypeVar, Unpack

from rondevu_client import channel as aio_channel
from rondevu_client import client as aio_client
from rondevu_client import connection as aio_connection
from rondevu_client import emitter as aio_emitter
from rondevu_client import inbox as aio_inbox
from rondevu_client import service as aio_service
from rondevu_client import stream as aio_stream
from rondevu_client.attaching import AttachParameters
from rondevu_client.background import Background, ListenerThread
from rondevu_client.errors import ConnectionLost, Detached
from rondevu_client.outbox import Payload
from rondevu_client.service import ServiceInfo
from rondevu_client.stream import Event

__all__ = ["Channel", "Connection", "Daemon", "Event", "EventStream", "Message", "Service", "ServiceInfo"]

P = ParamSpec("P")
T = TypeVar("T")

Listener: TypeAlias = Callable[..., object]

HANDLER_THREADS = 64
"""Handlers that run at once: channels that are served at once."""

CLOSE_TIMEOUT = 5.0
"""Seconds that leaving the daemon may take."""


class Message:
    """One message received; its attributes are those of `rondevu_client.Message`."""

    __slots__ = ("_background", "_inner", "attempt", "connection_id", "data", "enqueued_at", "id")

    def __init__(self, background: Background, inner: aio_inbox.Message) -> None:
        self._background = background
        self._inner = inner
        self.data: Payload = inner.data
        self.id: str = inner.id
        self.enqueued_at: float = inner.enqueued_at
        self.attempt: int = inner.attempt
        self.connection_id: str = inner.connection_id

    def __repr__(self) -> str:
        return repr(self._inner)

    @property
    def redelivered(self) -> bool:
        """Whether it may have been delivered before."""
        return self._inner.redelivered

    def ack(self) -> None:
        """Done with this message and all before it on its channel. Nothing happens if the socket broke since."""
        self._background.run(None, self._inner.ack)


class _Relay:
    """A listener of the program that is called in the listener thread; equal to every other one of the same listener."""

    def __init__(self, listeners: ListenerThread, listener: Listener) -> None:
        _refuse_coroutine_function(listener)
        self._listeners = listeners
        self.listener = listener

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Relay) and other.listener == self.listener

    def __hash__(self) -> int:
        return hash(self.listener)

    def __call__(self, *args: Any) -> Awaitable[Any] | None:
        self._listeners.post(self.listener, args)
        return None


class _MessageRelay(_Relay):
    """The same for messages, which are acknowledged when the listener has returned."""

    def __init__(self, background: Background, listener: Listener) -> None:
        super().__init__(background.listeners, listener)
        self._background = background

    def __call__(self, message: aio_inbox.Message) -> Awaitable[Any]:
        return self._listeners.call(self.listener, Message(self._background, message))


def _refuse_coroutine_function(function: Callable[..., Any]) -> None:
    if inspect.iscoroutinefunction(function):
        raise TypeError(f"{function!r} is a coroutine function; here a plain function is called, in a thread")


class _Facade:
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


class _Emitter(_Facade):
    """Listeners by event; see the class for which events there are."""

    _emitter: aio_emitter.Emitter

    def on(self, event: str, listener: Listener) -> None:
        """Call `listener`, in the listener thread, at every `event`. One that raises is logged."""
        relay = self._relay(event, listener)
        self._background.read(lambda: self._emitter.on(event, relay))

    def once(self, event: str, listener: Listener) -> None:
        """Call `listener` at the next `event` only."""
        relay = self._relay(event, listener)
        self._background.read(lambda: self._emitter.once(event, relay))

    def off(self, event: str, listener: Listener) -> None:
        """Call `listener` no more, however it was added; nothing happens if it is not there."""
        relay = self._relay(event, listener)
        self._background.read(lambda: self._emitter.off(event, relay))

    def remove_all_listeners(self, event: str | None = None) -> None:
        """Call none of the listeners of `event` any more; with None, none at all."""
        self._background.read(lambda: self._emitter.remove_all_listeners(event))

    def listener_count(self, event: str) -> int:
        """How many listeners wait for `event`."""
        return self._background.read(lambda: self._emitter.listener_count(event))

    def _relay(self, event: str, listener: Listener) -> _Relay:
        del event
        return _Relay(self._background.listeners, listener)


class Channel(_Emitter):
    """Made by `Daemon.attach` and `Connection.create_channel`, and given to handlers; see `rondevu_client.Channel`.

    Several threads may receive on one channel: each message goes to one of them. It is acknowledged when its thread asks
    for the next one and no other thread still has an older one.
    """

    def __init__(self, background: Background, inner: aio_channel.Channel) -> None:
        super().__init__(background)
        self._inner = self._emitter = inner
        self._unseen: dict[threading.Thread, aio_inbox.Message | None] = {}
        """What was fetched for a thread whose wait was interrupted before it had it; None is the end."""

    # --- sending -----------------------------------------------------------------------------------------------

    def send(self, data: Payload, *, max_age: float | None = None, timeout: float | None = None) -> int:
        """Send text or binary; returns its number once the daemon has stored it.

        Raises `MessageRejected`; after `TimeoutError`, `Detached` and `ConnectionLost` nobody knows whether it was stored.
        `max_age` (seconds) can only shorten the channel's.
        """
        return self._run(timeout, self._inner.send, data, max_age=max_age)

    def flush(self, timeout: float | None = None) -> None:
        """Wait until the peer's store has everything sent so far through this object.

        Raises `MessagesRemoved`, `NotAcknowledged`, `Detached`, `ConnectionLost`.
        """
        self._run(timeout, self._inner.flush)

    def wait_sent(self, timeout: float | None = None) -> None:
        """Wait until everything sent so far through this object has been handed to a data channel.

        Raises `MessagesRemoved`, `Detached`, `ConnectionLost`; `ValueError` when it was attached without `confirm_sent`.
        """
        self._run(timeout, self._inner.wait_sent)

    # --- receiving ---------------------------------------------------------------------------------------------

    def receive(self, timeout: float | None = None) -> Message:
        """The next message; asking for it acknowledges the one that this thread got before (unless `auto_ack` is false).

        Raises `TimeoutError`, with which nothing is lost, and `Detached` at the end.
        """
        message = self._next(timeout)
        if message is None:
            raise Detached(self.end_reason or "detached")
        return message

    def __iter__(self) -> Iterator[Message]:
        return self

    def __next__(self) -> Message:
        """As `receive`. Ends when the channel was closed or detached here; raises `Detached` when it was taken away."""
        message = self._next(None)
        if message is None:
            raise StopIteration
        return message

    def _next(self, timeout: float | None) -> Message | None:
        thread = threading.current_thread()
        self._run(timeout, self._fetch, thread)
        message = self._unseen.pop(thread)
        return None if message is None else Message(self._background, message)

    async def _fetch(self, thread: threading.Thread) -> None:
        if thread not in self._unseen:
            self._unseen[thread] = await self._inner._take_next(thread)

    # --- state -------------------------------------------------------------------------------------------------

    @property
    def label(self) -> str:
        return self._inner.label

    @property
    def mode(self) -> str:
        return self._inner.mode

    @property
    def connection_id(self) -> str:
        return self._inner.connection_id

    @property
    def verdict(self) -> dict[str, str]:
        """``in`` and ``out``, each ``new``, ``resumed`` or ``gap``; of the last attach."""
        return self._inner.verdict

    @property
    def waiting(self) -> int:
        """Messages that waited when it was attached."""
        return self._inner.waiting

    @property
    def max_message(self) -> int:
        """Bytes of the largest message that can be sent."""
        return self._inner.max_message

    @property
    def acknowledges(self) -> bool | None:
        """Whether the peer acknowledges; None before the first contact."""
        return self._inner.acknowledges

    @property
    def last_seq(self) -> int:
        """The producer's last number that the daemon had decided at the last attach."""
        return self._inner.last_seq

    @property
    def end_reason(self) -> str | None:
        """Why the channel is attached no longer; None while it is."""
        return self._inner.end_reason

    @property
    def attached(self) -> bool:
        """Whether it is attached now: it has not ended, and the daemon is there."""
        return self._inner.attached

    @property
    def ready_state(self) -> str:
        """As `rondevu_client.Channel.ready_state`."""
        return self._background.read(lambda: self._inner.ready_state)

    @property
    def queue_size(self) -> int:
        """Messages sent through this object that the peer has not acknowledged; `Daemon.queue` tells the daemon's."""
        return self._background.read(lambda: self._inner.queue_size)

    @property
    def buffered_amount(self) -> int:
        """Bytes sent through this object that the daemon has not decided."""
        return self._background.read(lambda: self._inner.buffered_amount)

    # --- ending ------------------------------------------------------------------------------------------------

    def detach(self, timeout: float | None = None) -> None:
        """Give the channel back: what was not acknowledged is delivered again to whom attaches next. Idempotent."""
        self._run(timeout, self._inner.detach)

    def close(self, timeout: float | None = None) -> None:
        """End the channel for both sides; what is queued is still delivered. Also detaches."""
        self._run(timeout, self._inner.close)

    def wait_detached(self, timeout: float | None = None) -> str:
        """Wait until the channel is attached no longer; why."""
        return self._run(timeout, self._inner.wait_detached)

    def _relay(self, event: str, listener: Listener) -> _Relay:
        return _MessageRelay(self._background, listener) if event == "message" else super()._relay(event, listener)


class Connection(_Emitter):
    """Made by `Daemon.connect`; see `rondevu_client.Connection`."""

    def __init__(self, background: Background, inner: aio_connection.Connection) -> None:
        super().__init__(background)
        self._inner = self._emitter = inner
        self._channels: dict[str, Channel] = {}

    @property
    def id(self) -> str:
        return self._inner.id

    @property
    def name(self) -> str:
        return self._inner.name

    @property
    def state(self) -> str:
        """As the daemon last said."""
        return self._inner.state

    @property
    def created(self) -> bool:
        """Whether this made the declaration."""
        return self._inner.created

    @property
    def is_connected(self) -> bool:
        """Whether there is a link to the peer now."""
        return self._inner.is_connected

    def create_channel(
        self, label: str, *, timeout: float | None = None, **parameters: Unpack[AttachParameters]
    ) -> Channel:
        """Attach to the channel of that label, made where there is none; `AttachParameters` may be given by name."""
        inner = self._run(timeout, self._inner.create_channel, label, **parameters)
        channel = self._channels[label] = Channel(self._background, inner)
        return channel

    def get_channel(self, label: str) -> Channel | None:
        """The channel of that label that `create_channel` gave last; None when there is none or it has ended."""
        channel = self._channels.get(label)
        return channel if channel is not None and channel.end_reason is None else None

    def wait(self, what: str = "connected", timeout: float | None = None) -> dict[str, Any]:
        """Wait until it is ``connected`` or ``drained``. Raises `RequestRefused` with code ``timeout``."""
        return self._run(None, self._inner.wait, what, timeout)

    def reconnect(self, timeout: float | None = None) -> dict[str, Any]:
        """Try now."""
        return self._run(timeout, self._inner.reconnect)

    def close(self, drain: float | None = None, timeout: float | None = None) -> dict[str, Any]:
        """End the connection for good, on both sides, after at most `drain` seconds (10) of waiting for its queues."""
        return self._run(timeout, self._inner.close, drain)


Handler: TypeAlias = Callable[[Channel, str], object]
"""Gets a channel, attached, and its connection id; runs in a thread of its own."""


class Service(_Emitter):
    """Made by `Daemon.expose_service`; see `rondevu_client.Service`."""

    def __init__(self, background: Background, inner: aio_service.Service) -> None:
        super().__init__(background)
        self._inner = self._emitter = inner

    @property
    def username(self) -> str:
        return self._inner.username

    @property
    def fqn(self) -> str:
        return self._inner.fqn

    @property
    def service_id(self) -> str:
        return self._inner.service_id

    @property
    def uuid(self) -> str:
        return self._inner.uuid

    @property
    def created(self) -> bool:
        """Whether this made the declaration."""
        return self._inner.created

    @property
    def connections(self) -> dict[str, dict[str, Any]]:
        """Connections by id, each with what the daemon last said about it; a copy."""
        return self._background.read(lambda: dict(self._inner.connections))

    @property
    def service_info(self) -> ServiceInfo | None:
        """How it is published; None until it is for the first time."""
        return self._inner.service_info

    @property
    def active_connections(self) -> list[str]:
        """Ids of the connections whose sessions have not ended, whether or not there is a link now."""
        return list(self.connections)

    def pool_status(self, timeout: float | None = None) -> dict[str, Any]:
        """The daemon's row about this service: its offers, connections and publication, as of `Daemon.services`."""
        return self._run(timeout, self._inner.pool_status)

    def wait_closed(self, timeout: float | None = None) -> str:
        """Wait until the service is withdrawn, by whomever, or the daemon object is closed; why."""
        return self._run(timeout, self._inner.wait_closed)

    def stop(self, *, drain: float | None = None, keep_connections: bool = False, timeout: float | None = None) -> None:
        """Withdraw the service: offers and connections go (`drain`: seconds for their queues; 10)."""
        self._run(timeout, self._inner.stop, drain=drain, keep_connections=keep_connections)


class EventStream(_Facade):
    """Made by `Daemon.subscribe`; see `rondevu_client.stream.EventStream`. For one thread."""

    def __init__(self, background: Background, inner: aio_stream.EventStream) -> None:
        super().__init__(background)
        self._inner = inner

    @property
    def connections(self) -> list[dict[str, Any]]:
        """What was there at event number `next`; of the last subscription."""
        return self._inner.connections

    @property
    def next(self) -> int:
        return self._inner.next

    @property
    def overrun(self) -> int:
        """Events that were dropped because nobody asked for them."""
        return self._inner.overrun

    def receive(self, timeout: float | None = None) -> Event:
        """The next event. Raises `TimeoutError`, and `Detached` at the end."""
        event = self._next(timeout)
        if event is None:
            raise Detached("detached")
        return event

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        """The next event. Raises `Detached` when the daemon ended the subscription."""
        event = self._next(None)
        if event is None:
            raise StopIteration
        return event

    def _next(self, timeout: float | None) -> Event | None:
        return self._run(timeout, self._take)

    async def _take(self) -> Event | None:
        return await anext(self._inner, None)

    def close(self, timeout: float | None = None) -> None:
        """End the subscription. Idempotent."""
        self._run(timeout, self._inner.close)


class Daemon(_Emitter):
    """The daemon behind a socket; use it in a ``with`` statement, or call `open` and `close`.

    See `rondevu_client.Daemon`. An interpreter that ends closes it. Listeners end with `close`.
    """

    def __init__(
        self,
        socket: str | os.PathLike[str] | None = None,
        reconnect: bool = True,
        *,
        client: str | None = None,
        request_timeout: float = aio_client.REQUEST_TIMEOUT,
        handler_threads: int = HANDLER_THREADS,
    ) -> None:
        """`client` is the name the daemon shows for this program, `request_timeout` is in seconds.

        `handler_threads` is how many handlers run at once; the channels of others wait until one has returned.
        """
        self._make = partial(aio_client.Daemon, socket, reconnect, client=client, request_timeout=request_timeout)
        self._handler_threads = handler_threads
        self._inner = self._emitter = self._make()
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
            background = Background(self._handler_threads)
            self._inner = self._emitter = self._make()
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
        if background is None or background.is_forked:
            return
        atexit.unregister(self.close)
        try:
            background.run(CLOSE_TIMEOUT, self._inner.close)
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

    def call(self, method: str, params: dict[str, Any] | None = None, *, timeout: float | None = None) -> Any:
        """Any request of the socket. Raises `RequestRefused`, `ConnectionLost`, `TimeoutError`."""
        return self._run(None, self._inner.call, method, params, timeout=timeout)

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
        run_handler = None if handler is None else _handler_in_thread(background, handler)
        more |= {"handler": run_handler, "ephemeral": ephemeral, "options": options}
        inner = self._run(timeout, self._inner.expose_service, username, fqn, **more)
        return Service(background, inner)

    def subscribe(
        self, target: str | None = None, since: int | None = None, *, timeout: float | None = None
    ) -> EventStream:
        """The events of a target or, with None, of everything; from number `since` on, as far as they are kept."""
        return EventStream(self._background, self._run(timeout, self._inner.subscribe, target, since))

    # --- requests ----------------------------------------------------------------------------------------------

    def status(self, *, timeout: float | None = None) -> dict[str, Any]:
        return self._run(timeout, self._inner.status)

    def services(self, *, timeout: float | None = None) -> list[dict[str, Any]]:
        return self._run(timeout, self._inner.services)

    def connections(self, *, timeout: float | None = None) -> list[dict[str, Any]]:
        return self._run(timeout, self._inner.connections)

    def clients(self, *, timeout: float | None = None) -> list[dict[str, Any]]:
        return self._run(timeout, self._inner.clients)

    def channels(self, target: str, *, timeout: float | None = None) -> list[dict[str, Any]]:
        return self._run(timeout, self._inner.channels, target)

    def claim(self, username: str, *, timeout: float | None = None) -> dict[str, Any]:
        return self._run(timeout, self._inner.claim, username)

    def check(self, username: str, *, timeout: float | None = None) -> dict[str, Any]:
        return self._run(timeout, self._inner.check, username)

    def withdraw(
        self,
        username: str,
        fqn: str,
        *,
        drain: float | None = None,
        keep_connections: bool = False,
        timeout: float | None = None,
    ) -> dict[str, Any]:
        withdraw = self._inner.withdraw
        return self._run(timeout, withdraw, username, fqn, drain=drain, keep_connections=keep_connections)

    def close_connection(
        self, target: str, drain: float | None = None, *, timeout: float | None = None
    ) -> dict[str, Any]:
        return self._run(timeout, self._inner.close_connection, target, drain)

    def reconnect(self, target: str, *, timeout: float | None = None) -> dict[str, Any]:
        return self._run(timeout, self._inner.reconnect, target)

    def wait(self, target: str, what: str = "connected", timeout: float | None = None) -> dict[str, Any]:
        """Wait until `target` is ``connected`` or ``drained``. Raises `RequestRefused` with code ``timeout``."""
        return self._run(None, self._inner.wait, target, what, timeout)

    def why(self, target: str, *, timeout: float | None = None) -> dict[str, Any]:
        return self._run(timeout, self._inner.why, target)

    def queue(self, target: str, label: str, *, timeout: float | None = None) -> dict[str, Any]:
        return self._run(timeout, self._inner.queue, target, label)

    def purge(self, target: str, label: str, direction: str, *, timeout: float | None = None) -> dict[str, Any]:
        """Remove what is queued ``out``, ``in`` or ``both``."""
        return self._run(timeout, self._inner.purge, target, label, direction)

    # --- inside ------------------------------------------------------------------------------------------------

    @property
    def _background(self) -> Background:
        if self._opened is None:
            raise ConnectionLost("the daemon object is not open")
        return self._opened


def _handler_in_thread(background: Background, handler: Handler) -> aio_service.Handler:
    _refuse_coroutine_function(handler)

    async def run_handler(channel: aio_channel.Channel, connection_id: str) -> None:
        await background.handlers.call(handler, Channel(background, channel), connection_id)

    return run_handler
