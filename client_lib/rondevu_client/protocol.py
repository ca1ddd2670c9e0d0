"""MessagePack-RPC over a stream socket: frames to bytes and back. No I/O.

Request ``[0, msgid, method, [params]]``, response ``[1, msgid, error, result]``, notification ``[2, method, [params]]``,
back to back. A response whose msgid is nil answers no request: it names what was wrong with something else that came.

Decoding has limits, so that neither side can be made to grow: the bytes of a frame, the elements of a list or map, the
depth. What breaks them, and what is not msgpack at all, is a `BadFrame`, after which a decoder yields nothing more: an
unpacker that went on would take the inside of a payload for frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import msgpack

from rondevu_client.errors import BadFrame, BadMessage, RequestRefused
from rondevu_client.outline import Outline

PROTOCOL_VERSION = 1

REQUEST = 0
RESPONSE = 1
NOTIFICATION = 2

MAX_DEPTH = 16
"""Lists and maps inside each other, the frame itself being the first."""

MAX_MESSAGE = 16 * 1024 * 1024
"""Bytes of one payload unless the daemon is configured otherwise; `attach` tells."""

LARGEST_MESSAGE = 64 * MAX_MESSAGE
"""What is taken from a daemon: it may be configured for larger messages than the default."""

FRAME_OVERHEAD = 64 * 1024
"""What a frame may be longer than one largest payload."""

MAX_ELEMENTS = 65_536
"""Elements of one list or map that a client takes: a five byte header must not reserve gigabytes."""

MAX_MSGID = 2**32 - 1

_READ_SIZE = 1024 * 1024
_FIRST_BUFFER = 4096
"""Bytes of a decoder's buffer before it has to grow: without being told, msgpack takes a MiB for every socket."""


class Request(NamedTuple):
    msgid: int
    method: str
    params: list[Any]


class Response(NamedTuple):
    msgid: int | None
    error: Any
    result: Any


class Notification(NamedTuple):
    method: str
    params: list[Any]


Frame: TypeAlias = Request | Response | Notification


def encode_request(msgid: int, method: str, params: dict[str, Any]) -> bytes:
    return _pack([REQUEST, msgid, method, [params]])


def encode_response(msgid: int | None, result: Any) -> bytes:
    return _pack([RESPONSE, msgid, None, result])


def encode_error(msgid: int | None, code: str, message: str, data: dict[str, Any] | None = None) -> bytes:
    return _pack([RESPONSE, msgid, {"code": code, "message": message, "data": data}, None])


def encode_notification(method: str, params: list[Any]) -> bytes:
    return _pack([NOTIFICATION, method, params])


def _pack(frame: list[Any]) -> bytes:
    """Raises `BadMessage` for a value that msgpack cannot carry, a lone surrogate in a text included."""
    try:
        packed = msgpack.packb(frame, use_bin_type=True)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadMessage(f"cannot be sent: {error}") from error
    return bytes(packed)


class Decoder:
    """Bytes in, frames out. Give it what was read, then take `frames` until it yields no more."""

    def __init__(
        self, max_message: int = MAX_MESSAGE, max_elements: int = MAX_ELEMENTS, *, trusted: bool = False
    ) -> None:
        """Of who is `trusted` an unfinished frame is only bounded in size: what it claims is looked at when it is there."""
        self._limit = max_message + FRAME_OVERHEAD
        self._unpacker = msgpack.Unpacker(
            raw=False,
            strict_map_key=True,
            max_buffer_size=self._limit + _READ_SIZE,
            read_size=_FIRST_BUFFER,
            max_str_len=self._limit,
            max_bin_len=self._limit,
            max_array_len=max_elements,
            max_map_len=max_elements,
            max_ext_len=self._limit,
        )
        self._max_elements = max_elements
        self._trusted = trusted
        self._outline: Outline | None = None
        self._fed = 0
        self._frame_start = 0
        self._broken = False

    def frames(self, data: bytes) -> Iterator[Frame | BadMessage]:
        """The frames that `data` completes, a `BadMessage` (not raised) in the place of one with a wrong shape.

        Raises `BadFrame` once; from then on nothing is yielded, whatever comes.
        """
        for start in range(0, len(data), _READ_SIZE):
            if self._broken:
                return
            yield from self._frames_of(data[start : start + _READ_SIZE])

    def _frames_of(self, data: bytes) -> Iterator[Frame | BadMessage]:
        try:
            self._unpacker.feed(data)
            self._fed += len(data)
            for value in self._unpacker:
                self._check_size(self._unpacker.tell())
                self._frame_start = self._unpacker.tell()
                self._outline = None
                yield _frame(value)
            self._check_size(self._fed)
            if not self._trusted:
                self._check_claims(data)
        except BadFrame:
            self._broken = True
            raise
        except Exception as error:
            self._broken = True
            raise self._translate(error) from error

    def _check_size(self, end: int) -> None:
        """`end` is where the current frame ends, or what of it has come so far."""
        if end - self._frame_start > self._limit:
            raise BadFrame(f"a frame is longer than {self._limit} bytes", "frame_too_large")

    def _check_claims(self, data: bytes) -> None:
        """Look at what has come of an unfinished frame, the end of `data`."""
        unfinished = self._fed - self._frame_start
        if unfinished:
            if self._outline is None:
                self._outline = Outline(self._limit, self._max_elements, MAX_DEPTH)
            self._outline.feed(data[max(0, len(data) - unfinished) :])

    def _translate(self, error: Exception) -> BadFrame:
        """What the unpacker raised, in words."""
        if isinstance(error, UnicodeDecodeError):
            return BadFrame(f"a text is not valid UTF-8: {error.reason} at its byte {error.start}")
        if isinstance(error, msgpack.exceptions.StackError):
            return BadFrame(f"a frame is nested deeper than {MAX_DEPTH}")
        if isinstance(error, msgpack.exceptions.FormatError):
            return BadFrame("this is not msgpack")
        if isinstance(error, msgpack.exceptions.BufferFull) or "exceeds max_" in str(error):
            return BadFrame(f"a frame is longer than {self._limit} bytes or holds too much: {error}", "frame_too_large")
        return BadFrame(f"this is not msgpack that can be used here: {error}")


def _frame(value: Any) -> Frame | BadMessage:
    """One decoded value as a frame. Raises `BadFrame` when it is nested too deep."""
    _check_depth(value, MAX_DEPTH)
    if type(value) is not list or not value:
        return BadMessage(f"a frame is an array that begins with its kind, not {shown(value)}")
    kind = value[0]
    if kind == NOTIFICATION and type(kind) is int:
        return _notification(value)
    if kind == REQUEST and type(kind) is int:
        return _request(value)
    if kind == RESPONSE and type(kind) is int:
        return _response(value)
    return BadMessage(f"a frame begins with 0 (request), 1 (response) or 2 (notification), not {shown(kind)}")


def _check_depth(value: Any, depth: int) -> None:
    if type(value) is dict:
        value = value.values()
    elif type(value) is not list:
        return
    if depth == 0:
        raise BadFrame(f"a frame is nested deeper than {MAX_DEPTH}")
    for item in value:
        if type(item) is list or type(item) is dict:
            _check_depth(item, depth - 1)


def _request(value: list[Any]) -> Request | BadMessage:
    msgid = value[1] if len(value) > 1 and _is_msgid(value[1]) else None
    if msgid is None:
        return BadMessage(f"a request's second element is its msgid, an integer from 0 to {MAX_MSGID}")
    if len(value) != 4:
        return BadMessage(f"a request has 4 elements, not {len(value)}", msgid)
    if type(value[2]) is not str:
        return BadMessage(f"a request's method is text, not {shown(value[2])}", msgid)
    if type(value[3]) is not list:
        return BadMessage(f"a request's parameters are an array, not {shown(value[3])}", msgid)
    return Request(msgid, value[2], value[3])


def _response(value: list[Any]) -> Response | BadMessage:
    if len(value) != 4:
        return BadMessage(f"a response has 4 elements, not {len(value)}")
    if value[1] is not None and not _is_msgid(value[1]):
        return BadMessage(f"a response's msgid is an integer or nil, not {shown(value[1])}")
    return Response(value[1], value[2], value[3])


def _notification(value: list[Any]) -> Notification | BadMessage:
    if len(value) != 3:
        return BadMessage(f"a notification has 3 elements, not {len(value)}")
    if type(value[1]) is not str:
        return BadMessage(f"a notification's method is text, not {shown(value[1])}")
    if type(value[2]) is not list:
        return BadMessage(f"a notification's parameters are an array, not {shown(value[2])}")
    return Notification(value[1], value[2])


def read_error(error: Any) -> RequestRefused | None:
    """The error of a response, None where there is none. Raises `BadMessage` for one that is no map."""
    if error is None:
        return None
    if not isinstance(error, dict):
        raise BadMessage("an error of the daemon is not a map")
    return RequestRefused(str(error.get("code", "internal")), str(error.get("message", "")), error.get("data"))


def _is_msgid(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_MSGID


_KINDS: dict[type, str] = {str: "text", bytes: "binary", list: "an array", dict: "a map"}


def shown(value: Any) -> str:
    """A value in an error message: its kind, and itself where it is short; payloads stay out of messages and logs."""
    if value is None or type(value) in {bool, int, float}:
        return repr(value)
    return _KINDS.get(type(value), "an extension type")
