"""What a report says of the machine, the versions and the source."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import os
import platform
import re
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from tests.acceptance.nursery import ROOT
from tests.bench import brokers

PACKAGES = ("aiortc", "aioice", "libdatachannel-py", "uvloop", "msgpack", "cryptography", "paho-mqtt", "nats-py")

REST = 0.02
"""Seconds between two wake-ups or syncs: the cores sleep by then, as between messages at a low rate."""

LOOKS = 50
SYNCED = 16 * 1024
"""Bytes that are written and synced at once, about what a commit of one message is."""


def describe(directory: Path) -> dict[str, Any]:
    """`directory` is where the daemons keep their state."""
    return {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "commit": _output("git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"),
        "processor": _first("/proc/cpuinfo", r"model name\s*: (.*)"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_kib": int(_first("/proc/meminfo", r"MemTotal:\s*(\d+)") or 0),
        "kernel": platform.release(),
        "file_system": _output("stat", "-f", "-c", "%T", str(directory)),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "brokers": brokers.describe(),
        "load_before": round(os.getloadavg()[0], 2),
        "wake_up_ms": wake_up(),
        "sync_ms": sync(directory),
    }


def wake_up() -> float:
    """Milliseconds from telling a thread that rests until it runs."""
    told: SimpleQueue[float | None] = SimpleQueue()
    heard: SimpleQueue[float] = SimpleQueue()

    def listen() -> None:
        while (since := told.get()) is not None:
            heard.put(time.monotonic() - since)

    def tell() -> float:
        told.put(time.monotonic())
        return heard.get()

    thread = threading.Thread(target=listen, name="woken")
    thread.start()
    try:
        return _median(tell)
    finally:
        told.put(None)
        thread.join()


def sync(directory: Path) -> float:
    """Milliseconds to write into a file that has the room already, and to sync it."""
    with tempfile.TemporaryFile(dir=directory) as file:
        file.write(bytes(SYNCED))
        os.fsync(file.fileno())

        def write() -> float:
            began = time.monotonic()
            os.pwrite(file.fileno(), bytes(SYNCED), 0)
            os.fdatasync(file.fileno())
            return time.monotonic() - began

        return _median(write)


def _median(look: Callable[[], float]) -> float:
    seconds = []
    for _ in range(LOOKS):
        time.sleep(REST)
        seconds.append(look())
    return round(1_000 * statistics.median(seconds), 3)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _first(path: str, pattern: str) -> str:
    found = re.search(pattern, Path(path).read_text())
    return found[1] if found else "unknown"
