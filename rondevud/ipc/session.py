"""One client: its socket, its requests, its handles and subscriptions.

Handles and subscriptions share one series of numbers, which are not used twice on a socket. Requests run as tasks of the
session when they have to wait, at once when they do not; the hot path never waits.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any, cast

from rondevu_client import messages
from rondevu_client.errors import BadFrame, BadMessage
from rondevu_client.protocol import (
    Decoder,
    Frame,
    Notification,
    Request,
    encode_error,
    encode_response,
)
from rondevud.access import DAEMON, Grants, Subject, Verb
from rondevud.errors import RequestError, StoreFailed
from rondevud.events import Event, Scope
from rondevud.ipc.access import Audit, Peer, subject_of, verb_of
from rondevud.ipc.handle import EventFeed, Handle
from rondevud.ipc.ports import Channel, House
from rondevud.ipc.table import Answer, Method, Table, check_params
from rondevud.ipc.usage import Usage
from rondevud.ipc.writer import Writer

logger = logging.getLogger(__name__)

MAX_REQUESTS = 64
"""Unanswered requests of one socket."""

MAX_HANDLES = 16_384
"""Handles and subscriptions of one socket: a service with 100 connections of 64 channels has 6,400."""

MAX_ELEMENTS = 4_096
"""Elements of a list or map a client may send: four windows."""

HELLO_TIMEOUT = 30.0
"""Seconds a socket may be silent before its hello."""

OPEN_EVENTS = frozenset({"stopping", "signalling"})
"""Events of the daemon itself that everybody may know of who may use it."""

CLOSE_TIMEOUT = 5.0
"""Seconds a client has to read the last words on a socket that is being closed."""


class Session(asyncio.Protocol):
    """The daemon's end of one socket. `on_closed` is called once, when everything of the session has been let go."""

    def __init__(
        self,
        house: House,
        table: Table,
        peer: Peer,
        *,
        grants: Grants,
        usage: Usage,
        audit: Audit,
        max_message: int,
        on_closed: Callable[[Session], None],
        clients: Callable[[], list[dict[str, Any]]],
    ) -> None:
        self.house = house
        self.peer = peer
        self.clients = clients
        self.client_name = ""
        self.greeted = False
        self.handles: dict[int, Handle] = {}
        self.subscriptions: dict[int, EventFeed] = {}
        self._table = table
        self._grants = grants
        self._usage = usage
        self._audit = audit
        self._decoder = Decoder(max_message, MAX_ELEMENTS)
        self._on_closed = on_closed
        self._last_number = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self._finished = False
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def __str__(self) -> str:
        return f"client {self.client_name or '?'} (pid {self.peer.pid}, uid {self.peer.uid})"

    # --- the transport -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.writer = Writer(self._transport, self._give_up)
        self._timer = self._loop.call_later(HELLO_TIMEOUT, self._miss_hello)

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._decoder.frames(data):
                self._take(frame)
        except BadFrame as error:
            self.fail(error.code, str(error))

    def pause_writing(self) -> None:
        self.writer.pause()
        for handle in list(self.handles.values()):
            handle.pause()

    def resume_writing(self) -> None:
        """The client has read. What one handle has for it may be all it takes; the others go on when it reads again.

        A bug closes the socket: the handles that come behind it would wait for ever.
        """
        self.writer.resume()
        try:
            self._resume_handles()
        except Exception:
            logger.exception("%s: going on failed", self)
            self.fail("internal", "going on failed; the daemon's log says why")

    def _resume_handles(self) -> None:
        for number, handle in list(self.handles.items()):
            if self.writer.congested:
                return
            if not handle.dead:
                self.handles[number] = self.handles.pop(number)  # to the end: next time the others come first
                handle.resume()
        for feed in list(self.subscriptions.values()):
            if self.writer.congested:
                return
            feed.tell_overrun()

    def connection_lost(self, error: Exception | None) -> None:
        logger.debug("%s is gone: %s", self, error or "closed")
        self._finish()

    # --- access ------------------------------------------------------------------------------------------------

    @property
    def sees_all(self) -> bool:
        return self._grants.all_visible

    def may_see(self, subject: Subject) -> bool:
        return self._grants.allows(Verb.OBSERVE, subject)

    def may_see_of(self, target: str, label: str | None = None) -> bool:
        """`may_see`, of what exists under that name or id."""
        if self.sees_all:
            return True
        subject = self.house.subject(target)
        return subject is not None and self.may_see(subject._replace(label=label))

    def visible(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those of the rows about connections, by their `connection_id`, that the client may see."""
        return (
            rows if self.sees_all else [row for row in rows if self.may_see_of(row["connection_id"], row.get("label"))]
        )

    def sees(self, event: Event) -> bool:
        """Whether the client may know of that event. What concerns the daemon may name anything."""
        if self.sees_all:
            return True
        service, connection_id = event.data.get("service"), event.data.get("connection_id")
        if service is not None:
            return self.may_see(Subject(service=service, label=event.data.get("label")))
        if connection_id is not None:
            return self.may_see_of(connection_id, event.data.get("label"))
        return event.name in OPEN_EVENTS

    def regrant(self, grants: Grants) -> int:
        """Other rules hold from now on; how many handles lost their right and are detached."""
        self._grants = grants
        withdrawn = [handle for handle in self.handles.values() if not handle.dead and not grants.allows(*handle.needs)]
        for handle in withdrawn:
            handle.detached("access_withdrawn")
        if grants.nothing and self.greeted:
            self.fail(*self._first_refusal())
        return len(withdrawn)

    def _authorize(self, method: str, params: dict[str, Any]) -> None:
        """Raises ``access_denied``."""
        if self.sees_all and self._grants.allows(Verb.ADMINISTER, DAEMON):
            return
        subject = subject_of(method, params, self.house.subject)
        verb = verb_of(method, params)
        if subject is None or self._grants.allows(verb, subject):
            return
        what = f"may not {verb} {subject}"
        self._audit.deny(self.peer, method, what)
        data = {"verb": str(verb), "target": str(subject)}
        raise RequestError("access_denied", f"{method}: uid {self.peer.uid} {what}", data)

    # --- ending ------------------------------------------------------------------------------------------------

    def fail(self, code: str, message: str) -> None:
        """Name what was wrong, then close the socket."""
        if not self._closing:
            logger.info("%s: closing its socket: %s", self, message)
            self.writer.write(encode_error(None, code, message))
            self.close()

    def close(self) -> None:
        """Let everything go and close the socket when what was written has been read, or after a while. Idempotent."""
        if self._closing:
            return
        self._closing = True
        self._let_go()
        self.writer.flush()
        self._transport.close()
        self._set_timer(CLOSE_TIMEOUT, self._transport.abort)

    def abort(self) -> None:
        """Close the socket at once, whatever was not read."""
        self.close()
        self._transport.abort()

    def _give_up(self) -> None:
        logger.warning("%s does not read: %d bytes wait for it; closing its socket", self, self.writer.unsent)
        self.abort()

    def _miss_hello(self) -> None:
        self.fail("hello_first", f"no hello within {HELLO_TIMEOUT:.0f} s")

    def _set_timer(self, delay: float, callback: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(delay, callback)

    def _let_go(self) -> None:
        for task in self._tasks:
            task.cancel()
        for handle in list(self.handles.values()):
            handle.close()
        for feed in self.subscriptions.values():
            feed.close()
        self.handles.clear()
        self.subscriptions.clear()
        self.house.owner_gone(self)

    def _finish(self) -> None:
        if self._finished:
            return
        self._finished = True
        if self._timer is not None:
            self._timer.cancel()
        if not self._closing:
            self._closing = True
            self._let_go()
        self._on_closed(self)

    # --- frames ------------------------------------------------------------------------------------------------

    def _take(self, frame: Frame | BadMessage) -> None:
        if self._closing or self.writer.hopeless:
            return
        if isinstance(frame, Request):
            self._take_request(frame)
        elif not self.greeted:
            self.fail(*self._first_refusal())
        elif isinstance(frame, Notification):
            self._take_notification(frame)
        elif isinstance(frame, BadMessage):
            self.writer.write(encode_error(frame.msgid, "bad_message", str(frame)))
        else:
            self.writer.write(encode_error(None, "bad_message", "the daemon asks nothing, so there is no response"))

    def _first_refusal(self) -> tuple[str, str]:
        if self._grants.nothing:
            return "access_denied", f"uid {self.peer.uid} may not use this daemon"
        return "hello_first", "the first request must be hello"

    def _take_notification(self, frame: Notification) -> None:
        """Numbers given and gone are dead handles, which are ignored; numbers never given are an error.

        A bug closes the socket: what the client knows of its handles is not what they are any more.
        """
        method, params = frame
        try:
            messages.check_from_client(method, params)
            handle = self._find(params[0])
            if handle is None:
                return
            if method == messages.SEND:
                handle.send(params[1], params[2], params[3] if len(params) > 3 else {})
            elif method == messages.ACK:
                handle.ack(params[1])
            else:
                handle.credit(params[1])
        except BadMessage as error:
            self.writer.write(encode_error(None, "bad_message", str(error)))
        except Exception:
            logger.exception("%s: %s failed", self, method)
            self.fail("internal", f"{method} failed; the daemon's log says why")

    def _find(self, number: int) -> Handle | None:
        """The live handle of that number, None for a dead one. Raises `BadMessage` for a number that is no handle."""
        handle = self.handles.get(number)
        if handle is None and (not 0 < number <= self._last_number or number in self.subscriptions):
            raise BadMessage(f"{number} is no handle of this socket")
        return handle

    def _take_request(self, frame: Request) -> None:
        if self._grants.nothing:
            code, message = self._first_refusal()
            self._audit.deny(self.peer, frame.method, "may not use this daemon")
            self.writer.write(encode_error(frame.msgid, code, message))
            self.close()
            return
        try:
            method = self._admit(frame)
            params = check_params(method, frame.params)
            self._authorize(method.name, params)
            outcome = method.handler(self, params)
        except Exception as error:  # noqa: BLE001 - the edge of a request: told to the client, bugs logged
            self._refuse(frame.msgid, frame.method, error)
            return
        if inspect.isawaitable(outcome):
            self._run(frame.msgid, method, outcome)
        else:
            self._answer(frame.msgid, outcome)

    def _admit(self, frame: Request) -> Method:
        if not self.greeted and frame.method != "hello":
            raise RequestError("hello_first", f"the first request must be hello, not {frame.method[:64]!r}")
        if len(self._tasks) >= MAX_REQUESTS:
            raise RequestError("too_many_requests", f"{MAX_REQUESTS} requests are unanswered")
        return self._table.find(frame.method)

    def _run(self, msgid: int, method: Method, outcome: Awaitable[Any]) -> None:
        task = self._loop.create_task(self._wait_for(msgid, method, outcome), name=f"ipc {method.name} {msgid}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if inspect.iscoroutine(outcome):  # a task that is cancelled before its first step leaves it as it is
            task.add_done_callback(lambda _: outcome.close())

    async def _wait_for(self, msgid: int, method: Method, outcome: Awaitable[Any]) -> None:
        try:
            self._answer(msgid, await outcome)
        except Exception as error:  # noqa: BLE001 - the edge of a request: told to the client, bugs logged
            self._refuse(msgid, method.name, error)

    def _answer(self, msgid: int, outcome: Any) -> None:
        then = None
        if isinstance(outcome, Answer):
            outcome, then = outcome
        self.writer.write(encode_response(msgid, outcome))
        if then is not None:
            then()

    def _refuse(self, msgid: int, method: str, error: Exception) -> None:
        if isinstance(error, RequestError):
            self.writer.write(encode_error(msgid, error.code, str(error), error.data))
            return
        if isinstance(error, StoreFailed):
            logger.warning("%s: %s: %s", self, method, error)
            self.writer.write(encode_error(msgid, error.code, str(error)))
            return
        logger.error("%s: %s failed", self, method, exc_info=error)
        self.writer.write(encode_error(msgid, "internal", f"{method[:64]} failed; the daemon's log says why"))

    # --- for the methods ---------------------------------------------------------------------------------------

    def greet(self, client_name: str) -> None:
        """The client has said hello."""
        self.greeted = True
        self.client_name = client_name
        if self._timer is not None:
            self._timer.cancel()
        logger.debug("%s says hello", self)

    def new_handle(self, params: dict[str, Any]) -> Handle:
        """A handle that is known and numbered, but not attached to anything. Raises ``too_many_handles``.

        `params` are those of the attach; the handle lives as long as they would be granted.
        """
        handle = Handle(
            self._new_number(),
            self.writer,
            acknowledged=params["acknowledged"],
            needs=(verb_of("attach", params), subject_of("attach", params, self.house.subject) or DAEMON),
            usage=self._usage,
            sees=self.sees,
            on_dead=self._forget,
            on_limit=lambda method, what: self._audit.limit(self.peer, method, what),
        )
        self.handles[handle.number] = handle
        return handle

    def subscribe(self, scope: Scope) -> tuple[int, EventFeed]:
        """Events of `scope` from now on; the caller must have its answer written before any event is published."""
        number = self._new_number()
        feed = EventFeed(number, self.writer, self.writer.write, self.sees)
        feed.subscription = self.house.events.subscribe(scope, feed.deliver)
        self.subscriptions[number] = feed
        return number, feed

    def sends_on(self, channel: Channel) -> None:
        """The client becomes a sender there."""
        self._usage.sends_on(channel)

    def end_handle(self, number: int) -> None:
        """Detach; nothing happens for a dead one. Raises ``unknown_handle``."""
        handle = self.handles.pop(number, None)
        if handle is not None:
            handle.close()
        elif not 0 < number <= self._last_number or number in self.subscriptions:
            raise RequestError("unknown_handle", f"{number} is no handle of this socket")

    def end_subscription(self, number: int) -> None:
        feed = self.subscriptions.pop(number, None)
        if feed is not None:
            feed.close()
        elif not 0 < number <= self._last_number or number in self.handles:
            raise RequestError("unknown_handle", f"{number} is no subscription of this socket")

    def _new_number(self) -> int:
        if len(self.handles) + len(self.subscriptions) >= MAX_HANDLES:
            raise RequestError("too_many_handles", f"{MAX_HANDLES} handles and subscriptions are open on this socket")
        self._last_number += 1
        return self._last_number

    def _forget(self, handle: Handle) -> None:
        self.handles.pop(handle.number, None)
