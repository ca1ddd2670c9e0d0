"""The frames of ``rondevu.link.1``: what two daemons say to each other in the data channel ``rondevu.link``.

A frame is one binary message of at most `MAX_FRAME` bytes: a msgpack array whose first element is its kind. `decode` gives
back a valid frame or raises `PeerError` that says what is wrong with it; `encode` is its inverse. Unknown map keys are
ignored, so that later versions can add some.

    [0, {session, link, token or proof, name, daemon, max_message, heartbeat}]       Hello
    [1, {resumed, link, proof, daemon, max_message, heartbeat, session_expiry}]      Welcome
    [2, code, reason, link]                                                          Refuse
    [3, n]   [4, n]                                                                  Ping, Pong
    [5, code, reason]                                                                Goodbye
    [8, label, {epoch, peer_epoch, recv_next, recv_count, room, durability}]         Channel
    [8, label, {ordered, max_retransmits, max_packet_life_time}]                     Channel, unreliable
    [9, label, seq, [payload, …]]                                                    Data
    [10, label, seq, offset, total, text, chunk]                                     Piece
    [11, label, recv_next, room]                                                     Ack
    [12, label, next, reason, count]                                                 Skip
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any, NamedTuple, TypeAlias, TypeVar

import msgpack

from rondevud.errors import PeerError
from rondevud.records import Durability, Payload, Reason
from rondevud.transport.base import MAX_RELIABILITY, RELIABLE, ChannelOptions

Word = TypeVar("Word", bound=StrEnum)

LABEL = "rondevu.link"
"""Label of the one data channel of a link."""

PROTOCOL = "rondevu.link.1"
"""Its subprotocol."""

VERSION = 1

MAX_FRAME = 64 * 1024
"""Bytes of one frame: what every WebRTC stack takes in one message (aiortc before 1.16 took no more)."""

PACK = 16 * 1024
"""Payload bytes up to which messages share a frame, and the size of a piece: larger frames are slower on aiortc, and a
frame holds up all other labels for as long as it takes."""

MAX_NUMBER = 2**63 - 1
MAX_LINK = MAX_NUMBER - 2**32
"""Highest number of a link that is taken: whoever is told of it can still dial with higher ones."""

MAX_LABEL = 255
"""Bytes of UTF-8."""

SESSION_BYTES = 16
TOKEN_BYTES = 32
PROOF_BYTES = 32
EPOCH_BYTES = 8


class RefuseCode(StrEnum):
    UNKNOWN_SESSION = "unknown_session"
    OLDER_LINK = "older_link"
    DENIED = "denied"
    TOO_MANY = "too_many"
    TRY_LATER = "try_later"


class GoodbyeCode(StrEnum):
    CLOSING = "closing"
    """The session ends for good."""
    RESTARTING = "restarting"
    SUPERSEDED = "superseded"
    TIMEOUT = "timeout"
    PROTOCOL = "protocol"


class Hello(NamedTuple):
    session: bytes
    link: int
    token: bytes | None
    """Present until a welcome has been seen; from then on `proof`."""
    proof: bytes | None
    name: str
    daemon: str
    max_message: int
    heartbeat: float


class Welcome(NamedTuple):
    resumed: bool
    link: int
    proof: bytes | None
    daemon: str
    max_message: int
    heartbeat: float
    session_expiry: float | None
    """Seconds; None = for ever."""


class Refuse(NamedTuple):
    code: RefuseCode
    reason: str
    link: int
    """The highest link number the service has seen; 0 where it means nothing."""


class Ping(NamedTuple):
    n: int


class Pong(NamedTuple):
    n: int


class Goodbye(NamedTuple):
    code: GoodbyeCode
    reason: str


class Channel(NamedTuple):
    label: str
    epoch: bytes
    """Empty: an unreliable channel, which has no numbers."""
    peer_epoch: bytes
    """Empty: nothing of yours is known."""
    recv_next: int
    """0: nothing."""
    recv_count: int
    room: int
    durability: Durability
    options: ChannelOptions = RELIABLE
    """Of an unreliable channel."""


class Data(NamedTuple):
    label: str
    seq: int
    payloads: list[Payload]


class Piece(NamedTuple):
    label: str
    seq: int
    offset: int
    total: int
    text: bool
    chunk: bytes


class Ack(NamedTuple):
    label: str
    recv_next: int
    room: int


class Skip(NamedTuple):
    label: str
    next: int
    reason: Reason
    messages: int | None


Frame: TypeAlias = Hello | Welcome | Refuse | Ping | Pong | Goodbye | Channel | Data | Piece | Ack | Skip


def decode(data: bytes | str) -> Frame:
    """The frame in one message of the data channel. Raises `PeerError`."""
    if isinstance(data, str):
        raise PeerError("a text message instead of a frame")
    if len(data) > MAX_FRAME:
        raise PeerError(f"a frame of {len(data)} bytes; the limit is {MAX_FRAME}")
    try:
        array = msgpack.unpackb(data, use_list=True, strict_map_key=False)
    except (ValueError, TypeError, RecursionError) as error:  # msgpack derives its own from ValueError; a list as a key
        raise PeerError(f"not msgpack: {type(error).__name__}") from None
    if not isinstance(array, list) or not array:
        raise PeerError("not an array with a kind")
    kind = array[0]
    read = _DECODERS.get(kind) if type(kind) is int else None
    if read is None:
        shown = repr(kind) if isinstance(kind, int | str) else type(kind).__name__
        raise PeerError(f"unknown frame kind {shown:.20}")
    return read(array)


def encode(frame: Frame) -> bytes:
    """One message for the data channel; at most `MAX_FRAME` bytes when `Data` and `Piece` keep to `PACK`."""
    packed: bytes = msgpack.packb(_ENCODERS[type(frame)](frame))
    return packed


def data_frame(label: str, seq: int, payloads: list[Payload]) -> bytes:
    """The bytes of a `Data` frame, without the detour."""
    packed: bytes = msgpack.packb([9, label, seq, payloads])
    return packed


def valid_label(label: object) -> bool:
    """Whether it can be the label of a channel: 1 to `MAX_LABEL` bytes of UTF-8."""
    return isinstance(label, str) and 0 < len(label.encode()) <= MAX_LABEL


# --- reading -------------------------------------------------------------------------------------------------------


def _shape(array: list[Any], length: int, what: str) -> None:
    if len(array) != length:
        raise PeerError(f"{what} has {len(array)} elements instead of {length}")


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise PeerError(f"{what} is not text")
    return value


def _word(kinds: type[Word], value: object, what: str) -> Word:
    text = _text(value, what)
    try:
        return kinds(text)
    except ValueError:
        raise PeerError(f"{what} {text!r:.40} is unknown") from None


def _number(value: object, what: str, lowest: int = 0) -> int:
    if type(value) is not int or not lowest <= value <= MAX_NUMBER:
        raise PeerError(f"{what} is not a number from {lowest} to 2^63 - 1")
    return value


def _link(value: object, what: str, lowest: int = 1) -> int:
    number = _number(value, what, lowest)
    if number > MAX_LINK:
        raise PeerError(f"{what} leaves no room for later ones")
    return number


def _bytes(value: object, length: int, what: str) -> bytes:
    if not isinstance(value, bytes) or len(value) != length:
        raise PeerError(f"{what} is not {length} bytes")
    return value


def _optional_bytes(value: object, length: int, what: str) -> bytes | None:
    return None if value is None else _bytes(value, length, what)


def _seconds(value: object, what: str) -> float:
    if type(value) not in {int, float} or not 0 < value < float("inf"):  # type: ignore[operator]
        raise PeerError(f"{what} is not a number of seconds")
    return float(value)  # type: ignore[arg-type]


def _label(value: object) -> str:
    if not valid_label(value):
        raise PeerError(f"a label is not 1 to {MAX_LABEL} bytes of text")
    return value  # type: ignore[return-value]


def _map(array: list[Any], position: int, what: str) -> dict[Any, Any]:
    _shape(array, position + 1, what)
    fields = array[position]
    if not isinstance(fields, dict):
        raise PeerError(f"{what} has no map")
    return fields


def _hello(array: list[Any]) -> Hello:
    fields = _map(array, 1, "hello")
    token = _optional_bytes(fields.get("token"), TOKEN_BYTES, "hello's token")
    proof = _optional_bytes(fields.get("proof"), PROOF_BYTES, "hello's proof")
    if (token is None) == (proof is None):
        raise PeerError("hello has not exactly one of token and proof")
    return Hello(
        _bytes(fields.get("session"), SESSION_BYTES, "hello's session"),
        _link(fields.get("link"), "hello's link"),
        token,
        proof,
        _text(fields.get("name", ""), "hello's name"),
        _text(fields.get("daemon", ""), "hello's daemon"),
        _number(fields.get("max_message"), "hello's max_message", 1),
        _seconds(fields.get("heartbeat"), "hello's heartbeat"),
    )


def _welcome(array: list[Any]) -> Welcome:
    fields = _map(array, 1, "welcome")
    resumed = fields.get("resumed")
    if not isinstance(resumed, bool):
        raise PeerError("welcome's resumed is not a boolean")
    expiry = fields.get("session_expiry")
    return Welcome(
        resumed,
        _link(fields.get("link"), "welcome's link"),
        _optional_bytes(fields.get("proof"), PROOF_BYTES, "welcome's proof"),
        _text(fields.get("daemon", ""), "welcome's daemon"),
        _number(fields.get("max_message"), "welcome's max_message", 1),
        _seconds(fields.get("heartbeat"), "welcome's heartbeat"),
        None if expiry is None else _seconds(expiry, "welcome's session_expiry"),
    )


def _refuse(array: list[Any]) -> Refuse:
    _shape(array, 4, "refuse")
    code = _word(RefuseCode, array[1], "refuse's code")
    link = 0 if array[3] is None else _link(array[3], "refuse's link", 0)
    return Refuse(code, _text(array[2], "refuse's reason"), link)


def _ping(array: list[Any]) -> Ping:
    _shape(array, 2, "ping")
    return Ping(_number(array[1], "ping's number"))


def _pong(array: list[Any]) -> Pong:
    _shape(array, 2, "pong")
    return Pong(_number(array[1], "pong's number"))


def _goodbye(array: list[Any]) -> Goodbye:
    _shape(array, 3, "goodbye")
    return Goodbye(_word(GoodbyeCode, array[1], "goodbye's code"), _text(array[2], "goodbye's reason"))


def _channel(array: list[Any]) -> Channel:
    fields = _map(array, 2, "channel")
    label = _label(array[1])
    if fields.get("epoch") is None:  # announced without numbers: an unreliable channel
        return Channel(label, b"", b"", 0, 0, 0, Durability.MEMORY, _channel_options(fields))
    peer_epoch = _optional_bytes(fields.get("peer_epoch"), EPOCH_BYTES, "channel's peer_epoch") or b""
    recv_next = _number(fields.get("recv_next") or 0, "channel's recv_next")
    if recv_next and not peer_epoch:
        raise PeerError("channel has a recv_next without a peer_epoch")
    return Channel(
        label,
        _bytes(fields.get("epoch"), EPOCH_BYTES, "channel's epoch"),
        peer_epoch,
        recv_next,
        _number(fields.get("recv_count") or 0, "channel's recv_count"),
        _number(fields.get("room"), "channel's room"),
        _word(Durability, fields.get("durability", "disk"), "channel's durability"),
    )


def _channel_options(fields: dict[Any, Any]) -> ChannelOptions:
    ordered = fields.get("ordered", True)
    if not isinstance(ordered, bool):
        raise PeerError("channel's ordered is not a boolean")
    limits = [fields.get("max_retransmits"), fields.get("max_packet_life_time")]
    for limit in limits:
        if limit is not None and _number(limit, "a channel's reliability") > MAX_RELIABILITY:
            raise PeerError(f"a channel's reliability is over {MAX_RELIABILITY}")
    options = ChannelOptions(ordered, *limits)
    if None not in limits:
        raise PeerError("channel has both max_retransmits and max_packet_life_time")
    if options == RELIABLE:
        raise PeerError("channel is reliable and has no epoch")
    return options


def _data(array: list[Any]) -> Data:
    _shape(array, 4, "data")
    payloads = array[3]
    if not isinstance(payloads, list) or not payloads:
        raise PeerError("data has no list of payloads")
    seq = _number(array[2], "data's number", 1)
    if seq + len(payloads) > MAX_NUMBER:
        raise PeerError("data's numbers run over")
    for payload in payloads:
        if not isinstance(payload, str | bytes) and payload is not None:
            raise PeerError(f"a payload is {type(payload).__name__}, not text, binary or nil")
    return Data(_label(array[1]), seq, payloads)


def _piece(array: list[Any]) -> Piece:
    _shape(array, 7, "piece")
    text, chunk = array[5], array[6]
    if not isinstance(text, bool):
        raise PeerError("piece's text is not a boolean")
    if not isinstance(chunk, bytes) or not chunk:
        raise PeerError("piece's chunk is not binary, or empty")
    offset = _number(array[3], "piece's offset")
    total = _number(array[4], "piece's total", 1)
    if offset + len(chunk) > total:
        raise PeerError("a piece runs over its message's total")
    return Piece(_label(array[1]), _number(array[2], "piece's number", 1), offset, total, text, chunk)


def _ack(array: list[Any]) -> Ack:
    _shape(array, 4, "ack")
    return Ack(_label(array[1]), _number(array[2], "ack's recv_next"), _number(array[3], "ack's room"))


def _skip(array: list[Any]) -> Skip:
    _shape(array, 5, "skip")
    reason = _word(Reason, array[3], "skip's reason")
    messages = None if array[4] is None else _number(array[4], "skip's count")
    return Skip(_label(array[1]), _number(array[2], "skip's next", 1), reason, messages)


_DECODERS: dict[int, Callable[[list[Any]], Frame]] = {
    0: _hello,
    1: _welcome,
    2: _refuse,
    3: _ping,
    4: _pong,
    5: _goodbye,
    8: _channel,
    9: _data,
    10: _piece,
    11: _ack,
    12: _skip,
}


# --- writing -------------------------------------------------------------------------------------------------------


def _present(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}


def _write_channel(frame: Channel) -> list[Any]:
    if not frame.epoch:
        options = frame.options
        limits = {"max_retransmits": options.max_retransmits, "max_packet_life_time": options.max_packet_life_time}
        return [8, frame.label, {"ordered": options.ordered, **_present(limits)}]
    fields = {
        "epoch": frame.epoch,
        "peer_epoch": frame.peer_epoch or None,
        "recv_next": frame.recv_next or None,
        "recv_count": frame.recv_count if frame.recv_next else None,
        "room": frame.room,
        "durability": str(frame.durability),
    }
    return [8, frame.label, fields]


_ENCODERS: dict[type[Any], Callable[[Any], list[Any]]] = {
    Hello: lambda frame: [0, _present(frame._asdict())],
    Welcome: lambda frame: [1, _present(frame._asdict())],
    Refuse: lambda frame: [2, str(frame.code), frame.reason, frame.link or None],
    Ping: lambda frame: [3, frame.n],
    Pong: lambda frame: [4, frame.n],
    Goodbye: lambda frame: [5, str(frame.code), frame.reason],
    Channel: _write_channel,
    Data: lambda frame: [9, frame.label, frame.seq, frame.payloads],
    Piece: lambda frame: [10, *frame],
    Ack: lambda frame: [11, *frame],
    Skip: lambda frame: [12, frame.label, frame.next, str(frame.reason), frame.messages],
}
