"""What two daemons had promised to the world by some moment of a recording, and what the programs had written down.

A promise to a program counts from the moment at which its daemon began to write it to the socket, one to the peer from the
moment at which the frame went to the data channel: a little earlier than anybody could have heard it, never later.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path, PurePath
from typing import Any

import msgpack

from tests.acceptance.programs.content import LABELS
from tests.faults.recording import CLOSE, MARK, OPEN, SAID, SAYING, WRITE, Record

RESPONSE, NOTIFICATION = 1, 2


class Stream:
    """What a daemon says to one program, which has attached to `LABELS` in their order."""

    def __init__(self) -> None:
        self._unpacker = msgpack.Unpacker(strict_map_key=False, max_buffer_size=2**26)
        self._labels: dict[int, str] = {}

    def take(self, data: bytes) -> list[tuple[str, str, int]]:
        """Word, label and number of each promise: what is `accepted`, what the peer has `acknowledged`."""
        self._unpacker.feed(data)
        return [promise for frame in self._unpacker if (promise := self._read(frame))]

    def _read(self, frame: list[Any]) -> tuple[str, str, int] | None:
        if frame[0] == RESPONSE and isinstance(frame[3], dict) and "handle" in frame[3]:
            self._labels[frame[3]["handle"]] = LABELS[len(self._labels)]
        elif frame[0] == NOTIFICATION and frame[1] in {"accepted", "acknowledged"}:
            handle, upto = frame[2]
            return frame[1], self._labels[handle], upto
        return None


class Promises:
    """Of both machines, by name; `take` records in their order. `path` is where their disks and the logs are."""

    def __init__(self, path: Path, machines: tuple[str, ...], records: list[Record]) -> None:
        self.told: dict[str, dict[str, int]] = {name: {} for name in machines}
        """By label: the number below which the machine has acknowledged everything to its peer."""
        self.logs: dict[str, bytearray] = {name: bytearray() for name in machines}
        """What the machine's program has written down."""
        self.count = 0
        """How many have been noted."""
        self._accepted: dict[str, dict[str, int]] = {name: {} for name in machines}
        self._acknowledged: dict[str, dict[str, int]] = {name: {} for name in machines}
        self._machines = {str(path / name): name for name in machines}
        self._daemons: dict[int, str] = {}
        self._log_files: dict[tuple[int, int], str] = {}
        self._streams: defaultdict[int, Stream] = defaultdict(Stream)
        self._said = _said(records)

    def take(self, place: int, record: Record) -> bool:
        """Note a promise; whether there was one. `place` is the record's in the recording."""
        noted = self._note(place, record)
        self.count += noted
        return noted

    def _note(self, place: int, record: Record) -> bool:
        match record.kind:
            case _ if record.kind == OPEN:
                self._opened(record)
            case _ if record.kind == CLOSE:
                self._log_files.pop((record.pid, record.fd), None)
            case _ if record.kind == WRITE and (record.pid, record.fd) in self._log_files:
                self.logs[self._log_files[record.pid, record.fd]] += record.data
                return True
            case _ if record.kind == MARK:
                number, label = record.data.decode().split(" ", 1)
                self.told[self._daemons[record.pid]][label] = int(number)
                return True
            case _ if record.kind == SAYING and record.pid in self._daemons:
                name = self._daemons[record.pid]
                promises = self._streams[record.first].take(record.data[: self._said.get(place, 0)])
                for word, label, upto in promises:
                    (self._accepted if word == "accepted" else self._acknowledged)[name][label] = upto
                return bool(promises)
        return False

    def _opened(self, record: Record) -> None:
        path = PurePath(record.paths[0])
        for root, name in self._machines.items():
            if path.is_relative_to(root):
                self._daemons[record.pid] = name
            if str(path) == f"{root}.log":
                self._log_files[record.pid, record.fd] = name

    def words(self, name: str) -> list[list[str]]:
        """The log of a machine's program as the jury reads it, with all that the daemon has confirmed."""
        text = self.logs[name].decode()
        lines = [line.split() for line in text[: text.rfind("\n") + 1].splitlines()]
        lines = [words for words in lines if words[0] not in {"accepted", "acknowledged"}]
        for label, upto in self._accepted[name].items():
            lines += [["accepted", label, str(number)] for number in range(1, upto + 1)]
        return lines + [["acknowledged", label, str(upto)] for label, upto in self._acknowledged[name].items()]

    def heard(self, name: str) -> set[tuple[str, int]]:
        """What the machine's program says was accepted: never more than what was promised."""
        lines = [line.split() for line in self.logs[name].decode().splitlines()]
        return {(words[1], int(words[2])) for words in lines if words[0] == "accepted"}

    def accepted(self, name: str) -> dict[str, int]:
        """By label: up to which number everything was accepted."""
        return self._accepted[name]


def _said(records: list[Record]) -> dict[int, int]:
    """By place of a SAYING: how many bytes of it the socket took."""
    began: dict[tuple[int, int], int] = {}
    said: dict[int, int] = {}
    for place, record in enumerate(records):
        thread = (record.pid, record.tid)
        if record.kind == SAYING:
            began[thread] = place
        elif record.kind == SAID:
            said[began.pop(thread)] = max(0, record.result)
    return said
