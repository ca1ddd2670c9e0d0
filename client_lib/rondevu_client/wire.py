"""One connected socket: requests and their answers, notifications to whom they concern."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, cast

from rondevu_client.errors import BadFrame, BadMessage, ConnectionLost, ProtocolError
from rondevu_client.messages import check_from_daemon
from rondevu_client.protocol import (
    LARGEST_MESSAGE,
    Decoder,
    Frame,
    Notification,
    Response,
    encode_notification,
    encode_request,
    read_error,
)
from rondevu_client.sockets import CONNECT_TIMEOUT

logger = logging.getLogger(__name__)

REQUESTS = 32
"""Requests under way at once, half of what a daemon takes from one socket; more wait for their turn."""

LASTING = {"wait"}
"""Requests that take as long as they take; they need no turn."""

PASSING = frozenset({"disk_full", "internal", "stopping", "store_failed", "too_many_requests"})
"""Codes of refusals that may be over in a while: what the library does by itself is tried again."""

Sink: TypeAlias = Callable[[str, list[Any]], None]
"""Takes the notifications of one handle or subscription: method and checked parameters."""


class _Reaction(NamedTuple):
    on_result: Callable[[Any], None] | None
    undo: Callable[[Any], None] | None


class _Call(NamedTuple):
    future: asyncio.Future[Any]
    reaction: _Reaction


class Wire(asyncio.Protocol):
    """Made by `open_wire`. `on_lost` is called once when the socket is gone, not after `close`."""

    def __init__(self, on_lost: Callable[[Wire], None]) -> None:
        self.sinks: dict[int, Sink] = {}
        self.lost = False
        self._on_lost: Callable[[Wire], None] | None = on_lost
        self._loop = asyncio.get_running_loop()
        self._decoder = Decoder(LARGEST_MESSAGE, trusted=True)
        self._pending: dict[int, _Call] = {}
        self._turns = asyncio.Semaphore(REQUESTS)
        self._last_msgid = 0
        self._gathered: list[bytes] = []
        self._complaint = ""
        self._transport: asyncio.Transport | None = None

    # --- use ---------------------------------------------------------------------------------------------------

    async def request(
        self,
        method: str,
        params: dict[str, Any] | None = None,
        *,
        timeout: float | None = None,
        on_result: Callable[[Any], None] | None = None,
        undo: Callable[[Any], None] | None = None,
    ) -> Any:
        """Ask and wait for the answer. Raises `RequestRefused`, `ConnectionLost`, `TimeoutError`.

        `timeout` is in seconds from when the request has its turn. `on_result` gets the answer before anything that
        came behind it is looked at; `undo` gets an answer for which nobody waits any more.
        """
        async with contextlib.nullcontext() if method in LASTING else self._turns:
            return await self._request(method, params, timeout, _Reaction(on_result, undo))

    async def _request(
        self, method: str, params: dict[str, Any] | None, timeout: float | None, reaction: _Reaction
    ) -> Any:
        if self.lost:
            raise ConnectionLost(self._why_lost())
        self._last_msgid += 1
        msgid = self._last_msgid
        frame = encode_request(msgid, method, {k: v for k, v in (params or {}).items() if v is not None})
        call = _Call(self._loop.create_future(), reaction)
        self._pending[msgid] = call
        self.send(frame)
        async with asyncio.timeout(timeout):
            return await call.future

    def notify(self, method: str, *params: Any) -> None:
        self.send(encode_notification(method, list(params)))

    def send_detach(self, handle: int) -> None:
        """Give a handle back that nobody wants any more; the answer is not waited for."""
        self._send_request("detach", {"handle": handle})

    def send_unsubscribe(self, subscription: int) -> None:
        """The same for a subscription."""
        self._send_request("unsubscribe", {"subscription": subscription})

    def send_threshold(self, handle: int, size: int) -> None:
        """Have `buffered_amount_low` sent to that handle when what is under way falls to `size` bytes."""
        self._send_request("threshold", {"handle": handle, "bytes": size})

    def _send_request(self, method: str, params: dict[str, Any]) -> None:
        self._last_msgid += 1
        self.send(encode_request(self._last_msgid, method, params))

    def send(self, frame: bytes) -> None:
        """Write `frame` behind everything before it, with everything else of this turn of the loop."""
        if self.lost:
            return
        if not self._gathered:
            self._loop.call_soon(self.flush)
        self._gathered.append(frame)

    def flush(self) -> None:
        if self._gathered and self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(self._gathered))
        self._gathered.clear()

    def close(self) -> None:
        """End it; what waits for answers gets `ConnectionLost`, `on_lost` is not called."""
        self._on_lost = None
        self.flush()
        if self._transport is not None:
            self._transport.close()
        self._end()

    # --- the transport -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are none of asyncio's classes
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._decoder.frames(data):
                if self.lost:
                    return
                self._take(frame)
        except (BadFrame, BadMessage) as error:
            logger.error("The daemon broke the protocol, closing its socket: %s", error)  # noqa: TRY400
            self._complaint = f"the daemon broke the protocol: {error}"
            if self._transport is not None:
                self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None and not self._complaint:
            self._complaint = str(error)
        self._end()

    # --- inside ------------------------------------------------------------------------------------------------

    def _take(self, frame: Frame | BadMessage) -> None:
        if isinstance(frame, BadMessage):
            raise frame
        if isinstance(frame, Notification):
            if check_from_daemon(frame.method, frame.params):
                sink = self.sinks.get(frame.params[0])
                if sink is not None:
                    sink(frame.method, frame.params)
        elif isinstance(frame, Response):
            self._take_response(frame)
        else:
            raise BadMessage("the daemon sent a request")

    def _take_response(self, frame: Response) -> None:
        error = read_error(frame.error)
        if frame.msgid is None:
            self._complaint = str(error)
            logger.warning("The daemon complains: %s", error)
            return
        call = self._pending.pop(frame.msgid, None)
        if call is None:
            return
        if error is not None:
            if not call.future.done():
                call.future.set_exception(error)
            return
        problem = None
        try:
            if call.reaction.on_result is not None and not call.future.done():
                call.reaction.on_result(frame.result)
        except Exception as raised:  # noqa: BLE001 - a result of a wrong shape fails its request
            problem = ProtocolError(f"the daemon's answer cannot be used: {raised!r}")
        if call.future.done():  # before, or by what `on_result` called
            if call.reaction.undo is not None:
                call.reaction.undo(frame.result)
        elif problem is not None:
            call.future.set_exception(problem)
        else:
            call.future.set_result(frame.result)

    def _end(self) -> None:
        if self.lost:
            return
        self.lost = True
        pending, self._pending = self._pending, {}
        for call in pending.values():
            if not call.future.done():
                call.future.set_exception(ConnectionLost(self._why_lost()))
        self.sinks.clear()
        if self._on_lost is not None:
            self._on_lost(self)

    def _why_lost(self) -> str:
        return "the daemon's socket is closed" + (f": {self._complaint}" if self._complaint else "")


async def open_wire(path: Path, on_lost: Callable[[Wire], None]) -> Wire:
    """Connect to the socket at `path`. Raises `OSError`, `TimeoutError` included."""
    async with asyncio.timeout(CONNECT_TIMEOUT):
        _, wire = await asyncio.get_running_loop().create_unix_connection(lambda: Wire(on_lost), str(path))
    return wire
