"""Named points at which a test can kill, fail or delay the process; without `RONDEVU_FAILPOINT` they do nothing.

``RONDEVU_FAILPOINT=NAME:COUNT[:ACTION]``, several separated by commas: at the COUNTth hit of NAME (from 1) the process
ends by SIGKILL (``kill``, the default), the point raises `FailpointReached` (``raise``), or its thread sleeps
(``delay:SECONDS``). What is set for the same hit of one point happens in the order in which it stands there.

Names are ``PLACE``, ``PLACE.FRAME`` (of `hit_frame`: ``send.before.data``) or ``PLACE.OPERATION`` (of `hit_operation`:
``write.Put``).
``write`` is inside the transaction, ``stored`` behind the commit and before anybody hears of it; ``.before`` and ``.after``
say on which side of the act a point lies. What happens at a point is told on standard error: ``failpoint NAME: ACTION``.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from rondevud.errors import ConfigError

VARIABLE = "RONDEVU_FAILPOINT"

FRAME_KINDS = {
    0: "hello",
    1: "welcome",
    2: "refuse",
    3: "ping",
    4: "pong",
    5: "goodbye",
    8: "channel",
    9: "data",
    10: "piece",
    11: "ack",
    12: "skip",
}
"""What frames of ``rondevu.link.1`` are called here, by the number of their kind."""


class FailpointReached(Exception):
    """What a point with the action ``raise`` raises."""


class Failpoint(NamedTuple):
    """What happens at one hit of one point."""

    name: str
    at: int
    """The number of the hit."""
    action: str
    seconds: float = 0.0
    """Of ``delay``."""

    def act(self) -> None:
        """Say what is to be done, and do it. Raises `FailpointReached`."""
        os.write(2, f"failpoint {self.name}: {self.action}\n".encode())
        if self.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.action == "raise":
            raise FailpointReached(self.name)
        else:
            time.sleep(self.seconds)


def parse(text: str) -> list[Failpoint]:
    """The failpoints that a value of `VARIABLE` sets. Raises `ConfigError`."""
    return [_parse_one(entry) for entry in text.split(",") if entry.strip()]


def _parse_one(entry: str) -> Failpoint:
    name, _, rest = entry.strip().partition(":")
    count, _, action = rest.partition(":")
    action, _, seconds = action.partition(":")
    action = action or "kill"
    try:
        point = Failpoint(name, int(count), action, float(seconds or 0))
    except ValueError:
        point = Failpoint(name, 0, action)
    known = action == "delay" if seconds else action in {"kill", "raise"}
    if not name or point.at < 1 or not known or not 0 <= point.seconds < float("inf"):
        raise ConfigError(f"{VARIABLE}: {entry!r} is not NAME:COUNT[:kill|:raise|:delay:SECONDS]")
    return point


class Armed:
    """Points that do something. A point belongs to one thread, so that its hits are counted right."""

    def __init__(self, points: list[Failpoint]) -> None:
        self._points = points
        self._hits: Counter[str] = Counter()

    def hit(self, name: str) -> None:
        self._hits[name] += 1
        for point in self._points:
            if (point.name, point.at) == (name, self._hits[name]):
                point.act()

    def hit_frame(self, place: str, data: bytes | str) -> None:
        if isinstance(data, bytes) and len(data) > 1:
            self.hit(f"{place}.{FRAME_KINDS.get(data[1])}")

    def hit_operation(self, place: str, operation: object) -> None:
        self.hit(f"{place}.{type(operation).__name__}")


def _hit_nothing(_name: str) -> None:
    """Nothing is to happen anywhere."""


def _hit_nothing_of(_place: str, _what: object) -> None:
    """Nothing is to happen anywhere."""


hit: Callable[[str], None] = _hit_nothing
"""The process is at the point of that name."""

hit_frame: Callable[[str, bytes | str], None] = _hit_nothing_of
"""The process is at that place with an encoded frame of the link."""

hit_operation: Callable[[str, object], None] = _hit_nothing_of
"""The process is at that place with an operation of the store."""


def arm() -> None:
    """Set the points that the environment names. Raises `ConfigError`."""
    global hit, hit_frame, hit_operation
    if os.environ.get(VARIABLE):
        armed = Armed(parse(os.environ[VARIABLE]))
        hit, hit_frame, hit_operation = armed.hit, armed.hit_frame, armed.hit_operation


arm()
