"""A daemon that tells the recorder what it acknowledges to its peer, and whose log is checkpointed early and often.

As ``python -m rondevud``, with the same arguments. What leaves on a data channel is encrypted, so the recorder could not
see it: here it is marked before it is handed to the channel.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import msgpack

sys.path.insert(0, str(Path.cwd()))  # as with -m: the source that is to be run is the working directory's

from rondevud import failpoints
from rondevud.main import main
from rondevud.store import sqlite, upkeep

ACKNOWLEDGEMENT = 11

recorder = ctypes.CDLL(None)


def mark(place: str, data: bytes | str) -> None:
    if place != "send.before" or not isinstance(data, bytes):
        return
    kind, *fields = msgpack.unpackb(data)
    if kind == ACKNOWLEDGEMENT:
        label, recv_next, _ = fields
        text = f"{recv_next} {label}".encode()
        recorder.recorder_mark(text, ctypes.c_size_t(len(text)))


failpoints.hit_frame = mark
sqlite.IDLE_CHECKPOINT = int(os.environ.get("RECORDED_IDLE", sqlite.IDLE_CHECKPOINT))
upkeep.RESERVED = int(os.environ.get("RECORDED_RESERVED", upkeep.RESERVED))
sqlite.TRUNCATING_CHECKPOINT = int(os.environ.get("RECORDED_TRUNCATING", sqlite.TRUNCATING_CHECKPOINT))
main()
