"""One request to the daemon by a program that waits for the answer: no loop, no thread, and little to import.

For programs that ask and end, as most of ``rondevuctl`` does. What else a program with calls that block may want is in
`rondevu_client.sync`: the asyncio library in a thread.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

from rondevu_client.errors import BadFrame, BadMessage, ConnectionLost, DaemonUnavailable
from rondevu_client.messages import check_from_daemon
from rondevu_client.protocol import (
    LARGEST_MESSAGE,
    PROTOCOL_VERSION,
    Decoder,
    Frame,
    Notification,
    Response,
    encode_request,
    read_error,
)
from rondevu_client.sockets import (
    CONNECT_TIMEOUT,
    REQUEST_TIMEOUT,
    describe_problem,
    describe_unavailable,
    socket_candidates,
)

READ_SIZE = 64 * 1024

LONGEST_WAIT = 3_600.0
"""Seconds of one system call: infinity is no time-out for it, nor is what is longer than 24 days."""


class Notice:
    """What is called once when somebody has waited for so many seconds; they may be infinite."""

    def __init__(self, after: float, tell: Callable[[], None]) -> None:
        self.at = time.monotonic() + after
        self._tell = tell

    def give(self) -> None:
        self.at = math.inf
        self._tell()


def ask(
    method: str,
    params: dict[str, Any] | None = None,
    *,
    given: str | os.PathLike[str] | None = None,
    client: str,
    hello_timeout: float = REQUEST_TIMEOUT,
    timeout: float = REQUEST_TIMEOUT,
    limit: float = math.inf,
    notice: Notice | None = None,
) -> Any:
    """Find the daemon's socket, say hello, and make one request; parameters that are None are left out.

    `given` is the socket's path, else it is looked for; `client` is the name that the daemon shows for this program. Times
    are seconds and may be infinite: a daemon has to answer within `hello_timeout` at each socket, also one that is just
    being started, and the request within `timeout`; `limit` is for everything. `notice` is for the wait for a daemon.

    Raises `DaemonUnavailable`, `RequestRefused`, `ConnectionLost`, `TimeoutError`, and `BadMessage` for parameters that
    cannot be sent.
    """
    end = time.monotonic() + limit
    tried: list[tuple[str, str]] = []
    for path in socket_candidates(given):
        try:
            line = _greet(path, client, hello_timeout, end, notice)
        except OSError as error:  # a time-out is one, too
            tried.append((path, describe_problem(error)))
        except ConnectionLost as error:
            tried.append((path, str(error)))
        else:
            with contextlib.closing(line):
                return line.ask(method, params or {}, min(time.monotonic() + timeout, end))
    raise DaemonUnavailable(describe_unavailable(tried))


def _greet(path: str, client: str, timeout: float, end: float, notice: Notice | None) -> Line:
    """Raises `OSError`, `ConnectionLost`, `RequestRefused`."""
    line = Line(path, end)
    try:
        hello = {"protocol": [PROTOCOL_VERSION], "client": client}
        line.ask("hello", hello, min(time.monotonic() + timeout, end), notice)
    except BaseException:
        line.close()
        raise
    return line


class Line:
    """One connected socket, on which one request after the other is made."""

    def __init__(self, path: str, until: float) -> None:
        """Raises `OSError`, `TimeoutError` included; `until`, like all of them here, is of the monotonic clock."""
        self._complaint = ""
        self._last_msgid = 0
        self._until = until
        self._notice: Notice | None = None
        self._incoming = self._read()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(min(CONNECT_TIMEOUT, _left(until)))
            self._socket.connect(path)
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def ask(self, method: str, params: dict[str, Any], until: float, notice: Notice | None = None) -> Any:
        """Raises `RequestRefused`, and `ConnectionLost`, `TimeoutError` and `BadMessage`, after which it is of no use."""
        self._until, self._notice = until, notice
        self._last_msgid += 1
        frame = encode_request(self._last_msgid, method, {k: v for k, v in params.items() if v is not None})
        self._send(frame)
        try:
            return self._answer()
        except (BadFrame, BadMessage) as error:
            self._complaint = f"the daemon broke the protocol: {error}"
            raise self._lost() from error

    def _send(self, frame: bytes) -> None:
        self._socket.settimeout(_left(self._until))
        try:
            self._socket.sendall(frame)
        except TimeoutError:
            raise TimeoutError from None
        except OSError as error:
            self._complaint = str(error)  # why the daemon hung up can still be there to be read

    def _answer(self) -> Any:
        for frame in self._incoming:
            if isinstance(frame, BadMessage):
                raise frame
            if isinstance(frame, Notification):
                check_from_daemon(frame.method, frame.params)
            elif not isinstance(frame, Response):
                raise BadMessage("the daemon sent a request")
            else:
                error = read_error(frame.error)
                if frame.msgid is None:
                    self._complaint = str(error)
                elif frame.msgid == self._last_msgid:
                    if error is not None:
                        raise error
                    return frame.result
        raise self._lost()

    def _read(self) -> Iterator[Frame | BadMessage]:
        """What comes until the daemon hangs up. Raises `BadFrame`, `TimeoutError`."""
        decoder = Decoder(LARGEST_MESSAGE)
        while data := self._receive():
            yield from decoder.frames(data)

    def _receive(self) -> bytes:
        while True:
            notice = self._notice
            if notice is not None and notice.at <= time.monotonic():
                notice.give()
            self._socket.settimeout(_left(self._until, math.inf if notice is None else notice.at))
            try:
                return self._socket.recv(READ_SIZE)
            except TimeoutError:
                continue
            except OSError as error:
                self._complaint = self._complaint or str(error)
                return b""

    def _lost(self) -> ConnectionLost:
        return ConnectionLost("the daemon's socket is closed" + (f": {self._complaint}" if self._complaint else ""))


def _left(until: float, wake: float = math.inf) -> float:
    """Seconds for one system call. Raises `TimeoutError` when `until` is over."""
    now = time.monotonic()
    if until <= now:
        raise TimeoutError
    return min(until - now, max(wake - now, 0.001), LONGEST_WAIT)
