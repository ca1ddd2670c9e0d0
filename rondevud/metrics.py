"""The metrics endpoint: HTTP on a Unix socket or a loopback address, one request to a connection.

It serves programs of this machine, and still trusts none: so many connections, so many bytes and so much time, no more.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from email.utils import formatdate
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rondevud.errors import ConfigError
from rondevud.house import House
from rondevud.ipc.listening import listen_at, remove
from rondevud.measuring import Measuring

if TYPE_CHECKING:
    from rondevud.exposition import Exposition

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 16
"""At once; more are closed."""

MAX_HEAD = 8_192
"""Bytes of a request's line and headers."""

PATIENCE = 10.0
"""Seconds for all of a request: its head, the look, and the client's reading of the answer."""

PAGE = b"<!doctype html><title>rondevud</title><p><a href=/metrics>metrics</a>\n"


class Request(NamedTuple):
    method: str
    path: str
    accept: str


class _Refused(Exception):
    """This request gets no metrics, but `status`."""

    def __init__(self, status: str) -> None:
        super().__init__(status)
        self.status = status


class Metrics:
    """Serves the metrics of `house` where `change` says; nowhere before that. `stop` at the end.

    A Unix socket has `mode` and `group`, as the daemon's own.
    """

    def __init__(self, house: House, *, mode: int = 0o600, group: int | None = None) -> None:
        self._house = house
        self._mode = mode
        self._group = group
        self._place: _Place | None = None
        self._listen: str | None = None
        self._stopped = asyncio.Event()

    @property
    def address(self) -> str | None:
        """Where it is served: ``unix:PATH`` or ``HOST:PORT``, with the port that the system chose; None: nowhere."""
        return None if self._place is None else self._place.address

    async def change(self, listen: str | None) -> None:
        """Serve there from now on (None: nowhere), and where it was no more.

        Raises `ConfigError`, and serves as before then.
        """
        if listen == self._listen or self._stopped.is_set():
            return
        place = None
        if listen is not None:
            place = _Place(await _listening(listen, self._mode, self._group), listen, Measuring(self._house))
            if self._stopped.is_set():
                await place.stop()
                return
            place.start()
            logger.info("metrics are served at %s", place.address)
        await self._leave()
        self._place, self._listen = place, listen

    async def stop(self) -> None:
        """Serve nowhere from now on. Idempotent."""
        self._stopped.set()
        await self._leave()

    async def _leave(self) -> None:
        place, self._place, self._listen = self._place, None, None
        if place is not None:
            await place.stop()


async def _listening(listen: str, mode: int, group: int | None) -> socket.socket:
    if listen.startswith("unix:"):
        try:
            return await listen_at(Path(listen[5:]), mode=mode, group=group)
        except ConfigError as error:
            raise ConfigError(f"metrics.listen: {error}") from error
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, int(port)))
        sock.listen(MAX_CONNECTIONS)
    except OSError as error:
        sock.close()
        raise ConfigError(f"metrics.listen: cannot listen at {listen}: {error.strerror or error}") from error
    return sock


class _Place:
    """One listening socket, and the connections that came to it."""

    def __init__(self, sock: socket.socket, listen: str, measuring: Measuring) -> None:
        from rondevud.exposition import Exposition  # noqa: PLC0415 - and with it the library: only where metrics are wanted

        self._socket = sock
        self._measuring = measuring
        self._exposition: Exposition = Exposition()
        self._serving: set[asyncio.Task[None]] = set()
        self._accepting: asyncio.Task[None] | None = None
        self._file: tuple[Path, tuple[int, int]] | None = None
        self.address = listen
        if sock.family == socket.AF_UNIX:
            found = os.lstat(sock.getsockname())
            self._file = Path(sock.getsockname()), (found.st_dev, found.st_ino)
        else:
            self.address = f"{listen.rpartition(':')[0]}:{sock.getsockname()[1]}"

    def start(self) -> None:
        self._accepting = asyncio.get_running_loop().create_task(self._accept_loop(), name="metrics accept")

    async def stop(self) -> None:
        tasks = {*self._serving, *filter(None, [self._accepting])}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=PATIENCE)
        self._measuring.stop()
        self._socket.close()
        if self._file is not None:
            remove(*self._file)

    async def _accept_loop(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(self._socket)
            except OSError as error:
                logger.warning("metrics: cannot accept: %s", error)
                await asyncio.sleep(1.0)
                continue
            if len(self._serving) >= MAX_CONNECTIONS:
                self._measuring.refused += 1
                sock.close()
                continue
            task = loop.create_task(self._serve(sock), name="metrics request")
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)

    async def _serve(self, sock: socket.socket) -> None:
        writer = None
        try:
            async with asyncio.timeout(PATIENCE):
                reader, writer = await asyncio.open_connection(sock=sock, limit=MAX_HEAD)
                writer.write(await self._answer(reader))
                await writer.drain()
                writer.write_eof()
                await reader.read(MAX_HEAD)  # a client that has not read all would lose it with a reset
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            logger.debug("metrics: a client was lost: %r", error)
        except Exception:  # the outermost edge of a request
            logger.exception("metrics: a request failed")
        finally:
            if writer is not None:
                writer.transport.abort()
            sock.close()

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        """The whole response. Raises `OSError` and `IncompleteReadError` when the client is gone."""
        method = ""
        try:
            request = await _read_request(reader)
            method = request.method
            if request.path == "/":
                status, content_type, body = "200 OK", "text/html; charset=utf-8", PAGE
            else:
                families = await self._measuring.look()
                status = "200 OK"
                # In a thread: writing some thousand lines takes longer than a message should wait.
                content_type, body = await asyncio.to_thread(self._exposition.write, families, request.accept)
        except _Refused as refused:
            status, content_type, body = refused.status, "text/plain; charset=utf-8", f"{refused.status}\n".encode()
        head = [
            f"HTTP/1.1 {status}",
            f"Content-Type: {content_type}",
            f"Content-Length: {len(body)}",
            f"Date: {formatdate(usegmt=True)}",
            "Connection: close",
            *(["Allow: GET, HEAD"] if status.startswith("405") else []),
        ]
        return "\r\n".join([*head, "", ""]).encode() + (b"" if method == "HEAD" else body)


async def _read_request(reader: asyncio.StreamReader) -> Request:
    """Line and headers; a body is not read. Raises `_Refused` for what is not asked here."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.LimitOverrunError as error:
        raise _Refused("431 Request Header Fields Too Large") from error
    line, *fields = head.split("\r\n")
    words = line.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise _Refused("400 Bad Request")
    method, target, _ = words
    if method not in {"GET", "HEAD"}:
        raise _Refused("405 Method Not Allowed")
    path = target.partition("?")[0]
    if path not in {"/", "/metrics"}:
        raise _Refused("404 Not Found")
    accept = ""
    for field in fields:
        name, _, value = field.partition(":")
        if name.strip().lower() == "accept":
            accept = value.strip()
    return Request(method, path, accept)
