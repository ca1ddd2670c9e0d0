"""What a frame claims to be while only its beginning has come: lengths, elements, depth. No I/O.

An unpacker notices a claimed length of 4 GiB or a list in a list in a list only when it has all of it. This looks at the
headers of an unfinished frame and skips what they announce, so that a claim beyond the limits is refused as it is made.
"""

from __future__ import annotations

from rondevu_client.errors import BadFrame

_SIZED = {
    0xC4: (1, 0), 0xC5: (2, 0), 0xC6: (4, 0),  # bin
    0xC7: (1, 1), 0xC8: (2, 1), 0xC9: (4, 1),  # ext: a type byte follows the length
    0xD9: (1, 0), 0xDA: (2, 0), 0xDB: (4, 0),  # str
}  # fmt: skip
"""First byte: bytes of the length, bytes more than it says."""

_FIXED = {
    0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8,
    0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17,
}  # fmt: skip
"""First byte: bytes behind it."""

_NESTING = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}
"""First byte: bytes of the count, values per element."""


class Outline:
    """One frame, from its first byte on."""

    def __init__(self, limit: int, max_elements: int, max_depth: int) -> None:
        self._limit = limit
        self._max_elements = max_elements
        self._max_depth = max_depth
        self._missing: list[int] = []
        self._skip = 0
        self._header = b""

    def feed(self, data: bytes) -> None:
        """The next bytes of the unfinished frame. Raises `BadFrame` for a claim beyond the limits."""
        data = self._header + data
        self._header = b""
        at = 0
        while True:
            if self._skip:
                step = min(self._skip, len(data) - at)
                at += step
                self._skip -= step
            if at >= len(data):
                return
            length = self._read_header(data, at)
            if length == 0:
                self._header = data[at:]
                return
            at += length

    def _read_header(self, data: bytes, at: int) -> int:
        """Take the header at `at`; how long it is, 0 when it has not come as a whole."""
        first = data[at]
        width, factor, more = 0, 0, 0
        if first in _SIZED:
            width, more = _SIZED[first]
        elif first in _NESTING:
            width, factor = _NESTING[first]
        if at + 1 + width > len(data):
            return 0
        number = int.from_bytes(data[at + 1 : at + 1 + width], "big")
        if first in _FIXED:
            number = _FIXED[first]
        elif 0x80 <= first <= 0x9F:
            number, factor = first & 0x0F, 1 if first >= 0x90 else 2
        elif 0xA0 <= first <= 0xBF:
            number = first & 0x1F
        if factor:
            self._open(number, factor)
        else:
            self._pass(number + more)
        return 1 + width

    def _open(self, elements: int, factor: int) -> None:
        if elements > self._max_elements:
            raise BadFrame(f"a list or map of {elements} elements holds too much", "frame_too_large")
        self._count_one()
        self._missing.append(elements * factor)
        if len(self._missing) > self._max_depth:
            raise BadFrame(f"a frame is nested deeper than {self._max_depth}")
        self._close_full()

    def _pass(self, size: int) -> None:
        if size > self._limit:
            raise BadFrame(f"a value of {size} bytes is longer than the {self._limit} of a frame", "frame_too_large")
        self._skip = size
        self._count_one()
        self._close_full()

    def _count_one(self) -> None:
        if self._missing:
            self._missing[-1] -= 1

    def _close_full(self) -> None:
        while self._missing and self._missing[-1] == 0:
            self._missing.pop()
