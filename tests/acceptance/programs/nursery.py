"""Forks processes that have all their modules loaded: nursery.py. One starts in a tenth of the time of a fresh interpreter.

Standard input is a socket of packets. A request is JSON, ``{number, arguments, env}``, whatever number, the words behind the
interpreter and the whole environment, with three descriptors that become the process's standard ones. The answer is ``born
PID NUMBER`` and, when the process has ended, ``dead PID CODE`` (a negative one is a signal). When the other end closes, what
still runs is killed.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import logging
import os
import runpy
import selectors
import signal
import socket
import sys
import traceback
from contextlib import suppress
from typing import Any, NoReturn

LOADED = (
    "aiortc",  # loaded by the first peer connection
    "uvloop",
    "rondevu_client",
    "rondevud.daemon",
    "rondevud.failpoints",
    "rondevud.logs",
    "rondevud.main",
    "rondevud.rendezvous.app",
    "rondevud.rendezvous.storage",
    "rondevud.transport.aiortc",  # loaded by the choice of an engine
)
PR_SET_PDEATHSIG = 1
"""prctl(2): the signal for a process whose parent has died, also for a stopped one."""

LARGEST = 262_144
"""Bytes of a request: an environment is some 4 KiB."""


def become(arguments: list[str], env: dict[str, str], descriptors: list[int]) -> NoReturn:
    """What a fresh interpreter with these arguments would be, from here on."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    os.closerange(3, 256)
    os.environ.clear()
    os.environ.update(env)
    code = 1
    try:
        if arguments[0] == "-m":
            _, name, *rest = arguments
            sys.argv = [name, *rest]
            sys.modules["rondevud.failpoints"].arm()
            sys.modules["rondevud.main"].main()
        else:
            sys.argv = arguments
            runpy.run_path(arguments[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        code = 130
    except BaseException:  # noqa: BLE001 - of a process there is nothing above this
        traceback.print_exc()
    finally:
        logging.shutdown()
        with suppress(OSError):
            sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Nursery:
    def __init__(self) -> None:
        self._socket = socket.socket(fileno=os.dup(0))
        self._children: dict[int, int] = {}
        """Pids, by the descriptors that tell their ends."""
        self._ready = selectors.DefaultSelector()
        self._ready.register(self._socket, selectors.EVENT_READ)

    def run(self) -> None:
        try:
            while True:
                for key, _ in self._ready.select():
                    if key.fileobj is not self._socket:
                        self._bury(key.fd)
                    elif not self._read():
                        return
        except ConnectionError:
            pass
        finally:
            for pid in self._children.values():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _read(self) -> bool:
        packet, descriptors, _, _ = socket.recv_fds(self._socket, LARGEST, 3)
        if packet:
            self._bear(json.loads(packet), descriptors)
        return bool(packet)

    def _bear(self, request: dict[str, Any], descriptors: list[int]) -> None:
        pid = os.fork()
        if pid == 0:
            become(request["arguments"], request["env"], descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        end = os.pidfd_open(pid)
        self._children[end] = pid
        self._ready.register(end, selectors.EVENT_READ)
        self._socket.send(f"born {pid} {request['number']}".encode())

    def _bury(self, end: int) -> None:
        self._ready.unregister(end)
        os.close(end)
        pid, status = os.waitpid(self._children.pop(end), 0)
        self._socket.send(f"dead {pid} {os.waitstatus_to_exitcode(status)}".encode())


for module in LOADED:
    importlib.import_module(module)
gc.collect()
gc.freeze()
Nursery().run()
