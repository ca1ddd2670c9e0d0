"""The notifications of the hot path: their names and the shape of their positional parameters.

Numbers are integers from 0 or 1 to 2⁶³ - 1 so that they fit any store; a payload is `str` or `bytes` and is not looked at
here: one that is neither costs its sender that message, not the frame.
"""

from __future__ import annotations

from typing import Any

from rondevu_client.errors import BadMessage
from rondevu_client.protocol import shown

# client → daemon
SEND = "send"
ACK = "ack"
CREDIT = "credit"

# daemon → client
ACCEPTED = "accepted"
REJECTED = "rejected"
REMOVED = "removed"
SENT = "sent"
ACKNOWLEDGED = "acknowledged"
MESSAGE = "message"
GAP = "gap"
DETACHED = "detached"
EVENT = "event"

SEND_WINDOW = 1_024
"""Unconfirmed messages per handle."""

SEND_WINDOW_BYTES = 4 * 1024 * 1024
"""Unconfirmed payload bytes per handle; one message always."""

MAX_CREDIT = 2**31

MAX_NUMBER = 2**63 - 1

_FROM_CLIENT: dict[str, tuple[tuple[str, type], ...]] = {
    SEND: (("handle", int), ("seq", int), ("payloads", list), ("options", dict)),
    ACK: (("handle", int), ("upto_tag", int)),
    CREDIT: (("handle", int), ("n", int)),
}

_FROM_DAEMON: dict[str, tuple[tuple[str, type], ...]] = {
    ACCEPTED: (("handle", int), ("upto_seq", int)),
    REJECTED: (("handle", int), ("seq", int), ("code", str), ("message", str)),
    REMOVED: (("handle", int), ("from_seq", int), ("upto_seq", int), ("reason", str)),
    SENT: (("handle", int), ("upto_seq", int)),
    ACKNOWLEDGED: (("handle", int), ("upto_seq", int)),
    MESSAGE: (("handle", int), ("tag", int), ("rows", list)),
    GAP: (("handle", int), ("tag", int), ("gap", dict)),
    DETACHED: (("handle", int), ("reason", str)),
    EVENT: (("handle", int), ("number", int), ("name", str), ("data", dict), ("at", float)),
}

_OPTIONAL = {SEND: 1, EVENT: 1}
"""Parameters at the end that may be missing: `options`; `at`, of a daemon that does not say when events happened."""

_NAMES = {int: "an integer", float: "a float", str: "text", list: "an array", dict: "a map"}


def check_from_client(method: str, params: list[Any]) -> None:
    """Raises `BadMessage`, naming method, position and expectation, unless the shape is right."""
    shape = _FROM_CLIENT.get(method)
    if shape is None:
        raise BadMessage(f"there is no notification {method[:64]!r}; there are {', '.join(_FROM_CLIENT)}")
    if not len(shape) - _OPTIONAL.get(method, 0) <= len(params) <= len(shape):
        names = ", ".join(name for name, _ in shape)
        raise BadMessage(f"{method} takes [{names}], not {len(params)} parameters")
    _check(method, shape, params)


def check_from_daemon(method: str, params: list[Any]) -> bool:
    """The same for the other direction; False for a notification that this version does not know.

    Parameters behind those of this version are ignored. A row of messages is ``[payload, id, enqueued, attempt, …]``.
    """
    shape = _FROM_DAEMON.get(method)
    if shape is None:
        return False
    if len(params) < len(shape) - _OPTIONAL.get(method, 0):
        raise BadMessage(f"{method} has {len(shape)} parameters, not {len(params)}")
    _check(method, shape, params)
    if method == MESSAGE:
        for row in params[2]:
            if type(row) is not list or len(row) < 4:
                raise BadMessage("message: a row is an array of payload, id, enqueued, attempt")
    return True


def _check(method: str, shape: tuple[tuple[str, type], ...], params: list[Any]) -> None:
    for index, (name, kind) in enumerate(shape[: len(params)]):
        value = params[index]
        if type(value) is not kind:
            raise BadMessage(f"{method}: {name} must be {_NAMES[kind]}, not {shown(value)}")
        if kind is int and not 0 <= params[index] <= MAX_NUMBER:
            raise BadMessage(f"{method}: {name} must be from 0 to 2^63 - 1, not {value}")
