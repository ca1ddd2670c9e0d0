"""What a report says of the machine, the versions and the source."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

from tests.acceptance.nursery import ROOT
from tests.bench import brokers

PACKAGES = ("aiortc", "aioice", "libdatachannel-py", "uvloop", "msgpack", "cryptography", "paho-mqtt", "nats-py")


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
    }


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
