"""The listening Unix socket: made private, never in another daemon's place, or taken over from who started us."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
from pathlib import Path

from rondevud.errors import ConfigError

BACKLOG = 128

MAX_PATH = 107
"""Bytes of a path that fit into sockaddr_un beside the closing 0 (unix(7))."""

PROBE_TIMEOUT = 2.0
"""Seconds to wait for somebody to accept at a socket that exists."""


async def listen_at(path: Path, *, mode: int = 0o600, group: int | None = None) -> socket.socket:
    """A listening, non-blocking socket at `path`, which has `mode` and `group` before anybody can connect.

    A socket that nobody answers at is replaced. Raises `ConfigError` when somebody does, when `path` is a symbolic link
    or anything else but a socket, is too long, or cannot be made.
    """
    if len(os.fsencode(path)) > MAX_PATH:
        raise ConfigError(f"the socket's path {path} is longer than {MAX_PATH} bytes")
    try:
        await _clear(path)
        return _bind(path, mode, group)
    except OSError as error:
        raise ConfigError(f"cannot listen at {path}: {error.strerror or error}") from error


def adopt(descriptor: int) -> socket.socket:
    """The listening Unix stream socket with that file descriptor, made non-blocking. Raises `ConfigError` for others."""
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        raise ConfigError(f"file descriptor {descriptor} is not a socket: {error.strerror}") from error
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
        sock.detach()
        raise ConfigError(f"file descriptor {descriptor} is not a Unix stream socket")
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.detach()
        raise ConfigError(f"file descriptor {descriptor} is a socket that does not listen")
    sock.setblocking(False)
    return sock


def remove(path: Path, inode: tuple[int, int]) -> None:
    """Remove our socket file unless another one (device, inode) stands in its place by now."""
    with contextlib.suppress(FileNotFoundError):
        found = path.lstat()
        if (found.st_dev, found.st_ino) == inode:
            path.unlink()


async def _clear(path: Path) -> None:
    """Make room at `path`."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if stat.S_ISLNK(found.st_mode):
        raise ConfigError(f"{path} is a symbolic link; the socket must be at its own path")
    if not stat.S_ISSOCK(found.st_mode):
        raise ConfigError(f"{path} exists and is not a socket; it is left alone")
    if await _answers(path):
        raise ConfigError(f"another process listens at {path}; is a daemon running already?")
    remove(path, (found.st_dev, found.st_ino))


async def _answers(path: Path) -> bool:
    """Whether somebody listens there; in doubt (no permission, backlog full, no answer in time) yes."""
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    probe.setblocking(False)
    try:
        async with asyncio.timeout(PROBE_TIMEOUT):
            await asyncio.get_running_loop().sock_connect(probe, str(path))
    except OSError as error:
        return error.errno not in {errno.ECONNREFUSED, errno.ENOENT}
    finally:
        probe.close()
    return True


def _bind(path: Path, mode: int, group: int | None) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        # Nobody can connect before listen(), nobody but us can open the file before its group is set.
        before = os.umask(0o177)
        try:
            sock.bind(str(path))
        finally:
            os.umask(before)
        if group is not None:
            os.chown(path, -1, group)
        path.chmod(mode)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock
