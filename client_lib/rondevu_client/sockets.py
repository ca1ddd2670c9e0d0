"""Where the daemon's socket is looked for, and what to say when nobody answers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

SYSTEM_SOCKET = Path("/run/rondevud/rondevud.sock")

_HOW_TO_START = (
    "Start it with `rondevud run`, or with `systemctl start rondevud` where it is installed as a service;"
    " a socket elsewhere is named by $RONDEVU_SOCKET."
)


def socket_candidates(given: str | os.PathLike[str] | None, environ: Mapping[str, str] | None = None) -> list[Path]:
    """The paths to try, in order: the one given alone, else ``$RONDEVU_SOCKET``, the user's daemon, the system's."""
    if given is not None:
        return [Path(given)]
    env = os.environ if environ is None else environ
    found = []
    if env.get("RONDEVU_SOCKET"):
        found.append(Path(env["RONDEVU_SOCKET"]))
    if env.get("XDG_RUNTIME_DIR"):
        found.append(Path(env["XDG_RUNTIME_DIR"]) / "rondevud.sock")
    found.append(SYSTEM_SOCKET)
    return found


def describe_unavailable(tried: Sequence[tuple[Path, str]]) -> str:
    """The message for `DaemonUnavailable`: every path with what was wrong there, and how to start the daemon."""
    lines = [f"  {path}: {problem}" for path, problem in tried]
    return "\n".join(["no rondevud answers; tried:", *lines, _HOW_TO_START])


def describe_problem(error: OSError) -> str:
    """What an `OSError` of a connect means here."""
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    if isinstance(error, ConnectionRefusedError):
        return "exists, but nobody listens there"
    if isinstance(error, PermissionError):
        return "you may not open it"
    return error.strerror or str(error)
