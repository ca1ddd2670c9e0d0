"""What the daemon and systemd say to each other: readiness, status, watchdog, and sockets handed over.

Without systemd (no ``NOTIFY_SOCKET``) every call does nothing and answers False. None raises: a manager that does not
listen is no reason to stop. The messages are those of sd_notify(3), sockets those of sd_listen_fds(3). sd_notify itself
waits for ever where the manager's queue is full, and the event loop with it; so the few lines it takes are here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import MutableMapping

logger = logging.getLogger(__name__)

FIRST_FD = 3
"""SD_LISTEN_FDS_START."""


def send_over_socket(message: str) -> bool:
    """Send a message to ``$NOTIFY_SOCKET``, a path or an abstract name with ``@``. Raises `OSError`."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(0.25)  # a manager whose queue is full must not stop the event loop for long
        sock.connect(address)
        sock.sendall(message.encode())
    return True


def notify(*assignments: str) -> bool:
    """Send assignments such as ``READY=1`` in one message. Answers whether it was handed over."""
    if not os.environ.get("NOTIFY_SOCKET"):
        return False
    try:
        return send_over_socket("\n".join(assignments))
    except OSError as error:
        logger.debug("systemd was not told %s: %s", assignments[0], error)
        return False


def ready(status: str) -> bool:
    """Start, or a reload, has finished."""
    return notify("READY=1", f"STATUS={_one_line(status)}")


def status(text: str) -> bool:
    """The line that ``systemctl status`` shows."""
    return notify(f"STATUS={_one_line(text)}")


def reloading() -> bool:
    """A reload begins (``Type=notify-reload`` wants the time); `ready` ends it, also when nothing was taken over."""
    return notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


def stopping(text: str = "stopping") -> bool:
    return notify("STOPPING=1", f"STATUS={_one_line(text)}")


def feed_watchdog() -> bool:
    return notify("WATCHDOG=1")


def watchdog_interval() -> float | None:
    """Seconds after which systemd ends this process unless it is fed: feed at half of it. None: there is no watchdog."""
    microseconds = _number("WATCHDOG_USEC")
    if not microseconds or not _meant_for_us("WATCHDOG_PID"):
        return None
    return microseconds / 1e6


def take_listen_fds(environ: MutableMapping[str, str] = os.environ) -> list[int]:
    """The listening sockets systemd opened for this process; empty without socket activation.

    They are not inherited by programs this one starts; the variables go away, so that a second call answers nothing.
    """
    count = _number("LISTEN_FDS", environ) if _meant_for_us("LISTEN_PID", environ) and "LISTEN_PID" in environ else 0
    for variable in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"):
        environ.pop(variable, None)
    fds = list(range(FIRST_FD, FIRST_FD + count))
    for fd in fds:
        os.set_inheritable(fd, False)
    return fds


def _meant_for_us(variable: str, environ: MutableMapping[str, str] = os.environ) -> bool:
    """Variables are inherited; those with the pid of another process are none of our business."""
    return environ.get(variable, str(os.getpid())) == str(os.getpid())


def _number(variable: str, environ: MutableMapping[str, str] = os.environ) -> int:
    with contextlib.suppress(ValueError):
        return max(int(environ.get(variable, "")), 0)
    return 0


def _one_line(text: str) -> str:
    """A line break would begin another assignment."""
    return " ".join(text.split())
