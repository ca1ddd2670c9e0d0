"""Where the daemon's socket is looked for, for how long, and what to say when nobody answers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

SYSTEM_SOCKET = "/run/rondevud/rondevud.sock"

CONNECT_TIMEOUT = 5.0
"""Seconds a daemon has to accept a connection."""

REQUEST_TIMEOUT = 60.0
"""Seconds until a request that was not answered fails."""

_HOW_TO_START = (
    "Start it with `rondevud run`, or with `systemctl start rondevud` where it is installed as a service;"
    " a socket elsewhere is named by $RONDEVU_SOCKET."
)

_HOW_TO_BE_LET_IN = (
    "Its owner and group may: an administrator adds you with `usermod -aG GROUP USER` (the group of a service is rondevud),"
    " and you log in again; what you may do then, the daemon's rules ([[access.rule]]) say."
)

_HOW_TO_LOOK = (
    "systemd holds a socket open also while the daemon starts, or fails to: `systemctl status rondevud` and"
    " `journalctl -u rondevud` say more (a daemon of your own: `systemctl --user`, `journalctl --user`)."
)

FORBIDDEN = "you may not open it"
SILENT = "is held open, but no daemon answers there"


def socket_candidates(given: str | os.PathLike[str] | None, environ: Mapping[str, str] | None = None) -> list[str]:
    """The paths to try, in order: the one given alone, else ``$RONDEVU_SOCKET``, the user's daemon, the system's."""
    if given is not None:
        return [os.fspath(given)]
    env = os.environ if environ is None else environ
    found = []
    if env.get("RONDEVU_SOCKET"):
        found.append(env["RONDEVU_SOCKET"])
    if env.get("XDG_RUNTIME_DIR"):
        found.append(f"{env['XDG_RUNTIME_DIR']}/rondevud.sock")
    found.append(SYSTEM_SOCKET)
    return found


def describe_unavailable(tried: Sequence[tuple[str | os.PathLike[str], str]]) -> str:
    """The message for `DaemonUnavailable`: every path with what was wrong there, and what can be done."""
    lines = [f"  {path}: {problem}" for path, problem in tried]
    problems = [problem for _, problem in tried]
    what_to_do = _HOW_TO_START
    if any(problem.startswith(SILENT) for problem in problems):
        what_to_do = _HOW_TO_LOOK
    elif FORBIDDEN in problems:
        what_to_do = _HOW_TO_BE_LET_IN
    return "\n".join(["no rondevud answers; tried:", *lines, what_to_do])


def describe_problem(error: OSError) -> str:
    """What an `OSError` of a connect means here."""
    if isinstance(error, TimeoutError | BlockingIOError):  # the latter: others wait there already, as many as fit
        return SILENT
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    if isinstance(error, ConnectionRefusedError):
        return "exists, but nobody listens there"
    if isinstance(error, PermissionError):
        return FORBIDDEN
    return error.strerror or str(error)
