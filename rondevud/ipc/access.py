"""Who is at the other end of a socket, what each method needs, and the audit of what was refused."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable
from enum import Enum, auto
from typing import Any, NamedTuple

from rondevud.access import DAEMON, Policy, Subject, Verb

logger = logging.getLogger(__name__)

SO_PEERGROUPS = 59
"""Supplementary groups of the peer (socket(7); Linux 4.13), which Python has no name for."""

MAX_GROUPS = 65_536
"""NGROUPS_MAX of Linux."""

AUDIT_LINES = 20
"""Refusals of one user that are logged within `AUDIT_WINDOW`; all are counted."""

AUDIT_WINDOW = 60.0
"""Seconds."""

AUDITED_USERS = 1_000
"""Users whose refusals are told apart; beyond them all share one window."""

_CREDENTIALS = struct.Struct("3i")


class Peer(NamedTuple):
    """The process that connected, as it was at that moment."""

    pid: int
    uid: int
    gid: int
    groups: frozenset[int] = frozenset()
    """The supplementary ones."""

    @property
    def gids(self) -> frozenset[int]:
        return self.groups | {self.gid}


def identify_peer(sock: socket.socket) -> Peer:
    """Who is at the other end of a connected Unix socket. Raises `OSError` for other sockets."""
    pid, uid, gid = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return Peer(pid, uid, gid, _groups(sock))


def _groups(sock: socket.socket) -> frozenset[int]:
    """The peer's supplementary groups. Python reads no option longer than 1,024 bytes, which is 256 groups."""
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 1024)
        return frozenset(struct.unpack(f"{len(raw) // 4}I", raw))
    except OSError as error:
        if error.errno != errno.ERANGE:
            raise
    many = (ctypes.c_uint32 * MAX_GROUPS)()
    size = ctypes.c_uint32(ctypes.sizeof(many))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.getsockopt(sock.fileno(), socket.SOL_SOCKET, SO_PEERGROUPS, many, ctypes.byref(size)) != 0:
        raise OSError(ctypes.get_errno(), "cannot read the groups of a peer")
    return frozenset(many[: size.value // 4])


def default_policy() -> Policy:
    """Root and the uid this daemon runs as may do everything, nobody else anything."""
    return Policy(frozenset({0, os.getuid()}))


# --- what the methods need -----------------------------------------------------------------------------------------


class To(Enum):
    """Which parameters say what a method is done to."""

    NOTHING = auto()
    """To the socket itself and its own handles: whoever has a rule."""
    LIST = auto()
    """Whoever has a rule; the handler leaves out what may not be observed."""
    DAEMON = auto()
    TARGET = auto()
    """``target``: a connection's name or id, or ``service:USER/FQN``; where it is not given, as `LIST`."""
    CHANNEL = auto()
    """``target`` and ``label``"""
    NAME = auto()
    """``name`` of a connection, else what the name is then."""
    SERVICE = auto()
    """``username`` and ``fqn``"""


class Need(NamedTuple):
    verb: Verb
    to: To


_LOOK, _USE, _ADMINISTER = Verb.OBSERVE, Verb.USE, Verb.ADMINISTER

NEEDS = {
    "hello": Need(_LOOK, To.NOTHING),
    "ping": Need(_LOOK, To.NOTHING),
    "status": Need(_LOOK, To.DAEMON),
    "reload": Need(_ADMINISTER, To.DAEMON),
    "doctor": Need(_ADMINISTER, To.DAEMON),
    "backup": Need(_ADMINISTER, To.DAEMON),
    "clients": Need(_LOOK, To.LIST),
    "claim": Need(_ADMINISTER, To.DAEMON),
    "check": Need(_LOOK, To.DAEMON),
    "key_list": Need(_LOOK, To.DAEMON),
    "key_show": Need(_LOOK, To.DAEMON),
    "key_export": Need(_ADMINISTER, To.DAEMON),
    "key_generate": Need(_ADMINISTER, To.DAEMON),
    "key_import": Need(_ADMINISTER, To.DAEMON),
    "key_delete": Need(_ADMINISTER, To.DAEMON),
    "services": Need(_LOOK, To.LIST),
    "expose": Need(_USE, To.SERVICE),
    "withdraw": Need(_ADMINISTER, To.SERVICE),
    "connections": Need(_LOOK, To.LIST),
    "connect": Need(_USE, To.NAME),
    "close": Need(_ADMINISTER, To.TARGET),
    "reconnect": Need(_USE, To.TARGET),
    "wait": Need(_LOOK, To.TARGET),
    "why": Need(_LOOK, To.TARGET),
    "sessions": Need(_LOOK, To.TARGET),
    "forget": Need(_ADMINISTER, To.TARGET),
    "kick": Need(_ADMINISTER, To.TARGET),
    "block": Need(_ADMINISTER, To.TARGET),
    "unblock": Need(_ADMINISTER, To.TARGET),
    "attach": Need(_USE, To.CHANNEL),
    "threshold": Need(_USE, To.NOTHING),
    "detach": Need(_LOOK, To.NOTHING),
    "close_channel": Need(_USE, To.CHANNEL),
    "channels": Need(_LOOK, To.TARGET),
    "queue": Need(_LOOK, To.CHANNEL),
    "purge": Need(_ADMINISTER, To.CHANNEL),
    "failed": Need(_LOOK, To.CHANNEL),
    "put_back": Need(_ADMINISTER, To.CHANNEL),
    "subscribe": Need(_LOOK, To.TARGET),
    "unsubscribe": Need(_LOOK, To.NOTHING),
}
"""Every method of the socket. ``attach`` with mode ``observe`` needs no more than `Verb.OBSERVE`."""


def verb_of(method: str, params: dict[str, Any]) -> Verb:
    return Verb.OBSERVE if method == "attach" and params["mode"] == "observe" else NEEDS[method].verb


def subject_of(method: str, params: dict[str, Any], find: Callable[[str], Subject | None]) -> Subject | None:
    """What `method` would be done to, None when everybody may who has a rule.

    `find` says what a target is. One that does not exist is taken for the name of a connection: who may not use one of
    that name does not learn whether there is one.
    """
    to = NEEDS[method].to
    if to in {To.TARGET, To.CHANNEL}:
        target = params["target"]
        if target is None:
            return None
        found = find(target) or Subject(connection=target)
        return found._replace(label=params["label"]) if to is To.CHANNEL else found
    if to is To.DAEMON:
        return DAEMON
    if to is To.SERVICE:
        return Subject(service=f"{params['username']}/{params['fqn']}")
    if to is To.NAME:
        unnamed = f"uuid/{params['uuid']}" if params["uuid"] else f"{params['username']}/{params['fqn']}"
        return Subject(connection=params["name"] or unnamed.lower())
    return None


# --- what was refused ----------------------------------------------------------------------------------------------


class Audit:
    """One line for each refusal, up to `AUDIT_LINES` per user and `AUDIT_WINDOW`; counters for all of them."""

    def __init__(self, counters: Counter[str], now: Callable[[], float] = time.monotonic) -> None:
        self._counters = counters
        self._now = now
        self._windows: dict[int, tuple[float, int]] = {}
        """Begin and refusals of each user's window."""

    def deny(self, peer: Peer, method: str, what: str) -> None:
        """``access_denied``"""
        self._tell("access_denied", peer, method, what)

    def limit(self, peer: Peer, method: str, what: str) -> None:
        """``user_limit``"""
        self._tell("user_limit", peer, method, what)

    def _tell(self, code: str, peer: Peer, method: str, what: str) -> None:
        self._counters[code] += 1
        number = self._number(peer.uid)
        if number <= AUDIT_LINES:
            more = f"; more of this user within {AUDIT_WINDOW:.0f} s are only counted" if number == AUDIT_LINES else ""
            logger.warning("%s: uid %d, pid %d, %.64s: %.400s%s", code, peer.uid, peer.pid, method, what, more)

    def _number(self, uid: int) -> int:
        """Which refusal of its window this is, from 1."""
        now = self._now()
        if uid not in self._windows and len(self._windows) >= AUDITED_USERS:
            self._windows = {key: has for key, has in self._windows.items() if now - has[0] < AUDIT_WINDOW}
            if len(self._windows) >= AUDITED_USERS:
                uid = -1
        begin, count = self._windows.get(uid, (now, 0))
        if now - begin >= AUDIT_WINDOW:
            if count > AUDIT_LINES:
                logger.warning("%d refusals of uid %d were only counted", count - AUDIT_LINES, uid)
            begin, count = now, 0
        self._windows[uid] = begin, count + 1
        return count + 1
