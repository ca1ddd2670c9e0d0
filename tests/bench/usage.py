"""What a process takes of the machine, as the kernel says."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
STEP = 2.0
STEADY = 0.9


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far, all threads together. Raises `RuntimeError` when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        raise RuntimeError(f"process {pid} has ended while it was measured") from None
    return (int(fields[11]) + int(fields[12])) / TICKS


def memory_kib(pid: int) -> int:
    """Resident memory. Raises `RuntimeError` when the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except FileNotFoundError:
        lines = []
    for line in lines:
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise RuntimeError(f"process {pid} has ended while it was measured")


async def until_steady(pid: int, within: float) -> None:
    """Wait until the process takes no less than it did in the two seconds before, or `within` seconds at most."""
    until = time.monotonic() + within
    before = await cores(pid, STEP)
    while time.monotonic() < until:
        now = await cores(pid, STEP)
        if now > STEADY * before:
            return
        before = now


async def cores(pid: int, seconds: float) -> float:
    """What the process takes within so many seconds from now, as a share of one core."""
    used, begun = cpu_seconds(pid), time.monotonic()
    await asyncio.sleep(seconds)
    return (cpu_seconds(pid) - used) / (time.monotonic() - begun)
