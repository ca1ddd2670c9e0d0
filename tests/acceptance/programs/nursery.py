"""Forks daemons that have all their modules loaded: nursery.py. One starts in a tenth of the time of a fresh interpreter.

Reads from standard input, a line of JSON for each, ``{arguments, env, log}``: the words behind ``rondevud``, the whole
environment, and the file for its standard error. Answers with a line ``born PID`` and, when it ends, ``dead PID CODE`` (a
negative number is a signal). At the end of its input it kills what still runs.
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import signal
import sys
import traceback
from contextlib import suppress
from typing import Any, NoReturn

import aiortc  # noqa: F401 - loaded by the first peer connection
import uvloop  # noqa: F401

from rondevud import daemon, failpoints, logs, main  # noqa: F401


def be_daemon(arguments: list[str], env: dict[str, str], log: str) -> NoReturn:
    """What a fresh interpreter would be, from here on."""
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(0, 1)
    os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), 2)
    os.closerange(3, 256)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["rondevud", *arguments]
    code = 1
    try:
        failpoints.arm()
        main.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 - of a process there is nothing above this
        traceback.print_exc()
    finally:
        logging.shutdown()
        sys.stderr.flush()
        os._exit(code)


class Nursery:
    def __init__(self) -> None:
        self._children: dict[int, int] = {}
        """Pids, by the descriptors that tell their ends."""
        self._ready = selectors.DefaultSelector()
        self._ready.register(0, selectors.EVENT_READ)
        self._rest = b""

    def run(self) -> None:
        try:
            while True:
                for key, _ in self._ready.select():
                    if key.fd != 0:
                        self._bury(key.fd)
                    elif not self._read():
                        return
        finally:
            for pid in self._children.values():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _read(self) -> bool:
        chunk = os.read(0, 65_536)
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            self._bear(json.loads(line))
        return bool(chunk)

    def _bear(self, request: dict[str, Any]) -> None:
        pid = os.fork()
        if pid == 0:
            be_daemon(**request)
        end = os.pidfd_open(pid)
        self._children[end] = pid
        self._ready.register(end, selectors.EVENT_READ)
        print("born", pid, flush=True)

    def _bury(self, end: int) -> None:
        self._ready.unregister(end)
        os.close(end)
        pid, status = os.waitpid(self._children.pop(end), 0)
        print("dead", pid, os.waitstatus_to_exitcode(status), flush=True)


Nursery().run()
