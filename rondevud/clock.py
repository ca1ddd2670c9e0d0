"""The clocks of the daemon. Ages that outlive the process are measured with `stamp`, everything else with `monotonic`."""

from __future__ import annotations

import functools
import time
from pathlib import Path

from rondevud.records import Stamp

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def wall() -> float:
    """Seconds since 1970. Jumps when somebody sets the clock."""
    return time.time()


def wall_microseconds() -> int:
    """Microseconds since 1970: where the numbers of messages and links begin."""
    return time.time_ns() // 1000


def monotonic() -> float:
    """Seconds since some moment; never jumps, and stands still while the machine sleeps."""
    return time.monotonic()


def boottime() -> float:
    """Seconds since the machine started, its sleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@functools.cache
def boot_id() -> str:
    """The kernel's name for this boot; empty where there is no /proc, so that ages are judged by the wall clock."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def stamp() -> Stamp:
    """Now, for ages that must survive a restart."""
    return Stamp(boot=boot_id(), boottime=boottime(), wall=wall())
