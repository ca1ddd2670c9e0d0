"""Who may use the socket, by what the kernel says about the other end (SO_PEERCRED)."""

from __future__ import annotations

import os
import socket
import struct
from typing import NamedTuple

_CREDENTIALS = struct.Struct("3i")


class Peer(NamedTuple):
    """The process that connected, as it was at that moment."""

    pid: int
    uid: int
    gid: int


def identify_peer(sock: socket.socket) -> Peer:
    """Who is at the other end of a connected Unix socket. Raises `OSError` for other sockets."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return Peer(*_CREDENTIALS.unpack(raw))


def may_use(peer: Peer, owner: int | None = None) -> bool:
    """Whether `peer` is root or the uid this daemon runs as (`owner`, None: the process's own)."""
    return peer.uid in {0, os.getuid() if owner is None else owner}
