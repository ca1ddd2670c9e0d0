"""The daemon's Unix socket: accepts clients and gives each a session."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections import Counter
from pathlib import Path
from typing import Any

from rondevu_client.protocol import MAX_MESSAGE, encode_error
from rondevud.access import Grants, Policy
from rondevud.ipc.access import Audit, Peer, default_policy, identify_peer
from rondevud.ipc.listening import adopt, listen_at, remove
from rondevud.ipc.methods import TABLE
from rondevud.ipc.ports import House
from rondevud.ipc.session import Session
from rondevud.ipc.usage import Usage

logger = logging.getLogger(__name__)

MAX_CLIENTS = 1_000
"""Sockets served at once."""

ACCEPT_RETRY = 1.0
"""Seconds to wait when no descriptor is left for another client."""


class Server:
    """Listens at `path`, or at a listening descriptor that was handed over, which is not removed at the end.

    `start`, then `stop`; both once. Sessions use `house` until `stop` has returned.
    """

    def __init__(
        self,
        house: House,
        *,
        path: Path | None = None,
        descriptor: int | None = None,
        mode: int = 0o600,
        group: int | None = None,
        max_message: int = MAX_MESSAGE,
        policy: Policy | None = None,
        counters: Counter[str] | None = None,
    ) -> None:
        if (path is None) == (descriptor is None):
            raise ValueError("a server listens either at a path or at a descriptor")
        self._house = house
        self._path = path
        self._descriptor = descriptor
        self._mode = mode
        self._group = group
        self._max_message = max_message
        self._policy = default_policy() if policy is None else policy
        self._audit = Audit(Counter() if counters is None else counters)
        self._usages: dict[int, Usage] = {}
        self._sessions: dict[Session, float] = {}
        self._inode: tuple[int, int] | None = None
        self._socket: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._all_gone = asyncio.Event()
        self.refused = 0
        """Sockets closed because there were `MAX_CLIENTS`."""
        self._warned = False
        """Whether it has been told that clients are kept out."""

    async def start(self) -> None:
        """Listen and accept. Raises `ConfigError`."""
        if self._path is not None:
            self._socket = await listen_at(self._path, mode=self._mode, group=self._group)
            found = os.lstat(self._path)
            self._inode = (found.st_dev, found.st_ino)
        elif self._descriptor is not None:
            self._socket = adopt(self._descriptor)
        if self._socket is not None:
            self._accepting = asyncio.create_task(self._accept_loop(self._socket), name="ipc accept")

    async def stop(self, timeout: float = 2.0) -> None:
        """Accept no more, remove our socket, close the sessions: those that do not read within `timeout` seconds hard."""
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.gather(self._accepting, return_exceptions=True)
        if self._path is not None and self._inode is not None:
            remove(self._path, self._inode)
        if self._socket is not None:
            self._socket.close()
        for session in list(self._sessions):
            session.close()
        try:
            async with asyncio.timeout(timeout):
                await self._wait_until_alone()
        except TimeoutError:
            for session in list(self._sessions):
                session.abort()
            await self._wait_until_alone()

    def set_policy(self, policy: Policy) -> int:
        """Other rules, for those who are connected, too; how many of their handles ended by that."""
        self._policy = policy
        detached = 0
        for session in list(self._sessions):
            grants = self._grants(session.peer)
            self._usages[session.peer.uid].set_caps(grants.caps)
            detached += session.regrant(grants)
        return detached

    def _grants(self, peer: Peer) -> Grants:
        return self._policy.grants(peer.uid, peer.gids)

    def clients(self) -> list[dict[str, Any]]:
        """One row for each program on the socket."""
        return [
            {
                "client": session.client_name,
                "pid": session.peer.pid,
                "uid": session.peer.uid,
                "connected_since": since,
                "handles": len(session.handles),
                "subscriptions": len(session.subscriptions),
                "unread_bytes": session.writer.unsent,
            }
            for session, since in self._sessions.items()
            if session.greeted
        ]

    async def _wait_until_alone(self) -> None:
        while self._sessions:
            self._all_gone.clear()
            await self._all_gone.wait()

    async def _accept_loop(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError as error:
                self._tell_once(f"Cannot accept a client: {error}")
                await asyncio.sleep(ACCEPT_RETRY)
                continue
            try:
                await self._welcome(loop, sock)
            except OSError as error:
                logger.info("A client was gone before it was served: %s", error)
                sock.close()

    async def _welcome(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        peer = identify_peer(sock)
        if len(self._sessions) >= MAX_CLIENTS:
            self._refuse(sock, peer)
            return
        self._warned = False
        grants = self._grants(peer)
        usage = self._usages.get(peer.uid) or Usage(grants.caps)
        usage.set_caps(grants.caps)
        refusal = usage.client_refusal()
        if refusal is not None:
            self._audit.limit(peer, "connect", refusal)
            self._turn_away(sock, "user_limit", refusal)
            return
        session = Session(
            self._house,
            TABLE,
            peer,
            grants=grants,
            usage=usage,
            audit=self._audit,
            max_message=self._max_message,
            on_closed=self._forget,
            clients=self.clients,
        )
        self._sessions[session] = time.time()
        self._usages[peer.uid] = usage
        usage.clients += 1
        try:
            await loop.connect_accepted_socket(lambda: session, sock)
        except BaseException:
            self._forget(session)
            raise

    def _refuse(self, sock: socket.socket, peer: Peer) -> None:
        self.refused += 1
        self._tell_once(f"{MAX_CLIENTS} clients are connected: others are refused, the first being pid {peer.pid}")
        self._turn_away(sock, "too_many_clients", f"{MAX_CLIENTS} clients are connected, which is the limit")

    @staticmethod
    def _turn_away(sock: socket.socket, code: str, message: str) -> None:
        with contextlib.suppress(OSError):
            sock.send(encode_error(None, code, message))
        sock.close()

    def _tell_once(self, problem: str) -> None:
        """Warn of what keeps clients out, once until somebody was let in."""
        if not self._warned:
            logger.warning("%s", problem)
            self._warned = True

    def _forget(self, session: Session) -> None:
        if self._sessions.pop(session, None) is not None:
            self._usages[session.peer.uid].clients -= 1
            self._usages = {uid: usage for uid, usage in self._usages.items() if not usage.empty}
        if not self._sessions:
            self._all_gone.set()
