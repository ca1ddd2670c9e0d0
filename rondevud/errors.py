"""The exceptions of the daemon, one tree.

RondevuError
├── ConfigError            what somebody wrote is wrong: names file, key and what was expected
├── StateDirectoryError    the state directory is in use, or cannot be used
├── ListenError            the embedded signalling server cannot listen where it was told to
├── StoreError             the store did not do it; nothing of the operation is stored
│   ├── StoreFailed        a commit failed (disk full, I/O error): held up, tried again by whoever must
│   └── StoreConflict      the operation does not fit what is stored
├── SignallingError        the signalling server; `retryable` says whether trying again can help
│   ├── SignallingUnreachable
│   ├── SignallingRejected     the server said no: `status`, `server_message`
│   └── SignallingGarbled      the server answered with something that is not its protocol
├── SelfTestFailed         WebRTC does not work in this environment; the message says what is denied
├── TransportError         WebRTC: bad SDP, a closed channel, a connection that did not come up
├── PeerError              the peer broke the link protocol
└── RequestError           a local program asked for something it cannot have; `code` goes over the socket
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


class RondevuError(Exception):
    """Base of all errors this daemon raises on purpose."""


class ConfigError(RondevuError):
    """A configuration that cannot be used."""


class StateDirectoryError(RondevuError):
    """The state directory cannot be used, or another daemon holds it.

    Attributes:
        path: the directory, where it belongs to another user.
        owner: that user's name.
    """

    def __init__(self, message: str, path: Path | None = None, owner: str | None = None) -> None:
        super().__init__(message)
        self.path = path
        self.owner = owner


class ListenError(RondevuError):
    """The embedded signalling server cannot listen where it was told to; the message names address and reason."""


class StoreError(RondevuError):
    """The store did not carry an operation out; nothing of it is stored."""


class StoreFailed(StoreError):
    """A commit failed; `code` is ``disk_full`` or ``store_failed``."""

    def __init__(self, message: str, code: str = "store_failed") -> None:
        super().__init__(message)
        self.code = code


class StoreConflict(StoreError):
    """The operation does not fit what is stored (unknown channel, label taken, another ``recv_next``)."""


class SignallingError(RondevuError):
    """Something between us and the signalling server.

    Attributes:
        retryable: whether the same request can succeed later without anything being changed.
        retry_after: seconds the server asked us to wait, or None.
    """

    retryable = True

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class SignallingUnreachable(SignallingError):
    """No connection, no answer in time, 429 or 5xx."""


class SignallingRejected(SignallingError):
    """The server understood and refused.

    Attributes:
        code: a stable word: ``not_found``, ``no_offer``, ``offer_taken``, ``name_taken``, ``unauthorized``, ``refused``.
        status: the HTTP status.
    """

    retryable = False

    def __init__(self, message: str, *, code: str, status: int, retry_after: float | None = None) -> None:
        super().__init__(message, retry_after=retry_after)
        self.code = code
        self.status = status


class SignallingGarbled(SignallingError):
    """The answer is not JSON, lacks a member or has one of a wrong type; the message names it."""


class SelfTestFailed(RondevuError):
    """Two peer connections of this process could not reach each other; the message says what is probably denied."""


class TransportError(RondevuError):
    """A WebRTC operation that failed."""


class PeerError(RondevuError):
    """The peer broke the link protocol; the message says how. Ends the link, not the session."""


class RequestError(RondevuError):
    """A request of a local program that is refused.

    Attributes:
        code: one of the codes of ``rondevu_client.errors``.
        data: facts for the program, a map that msgpack can carry, or None.
    """

    def __init__(self, code: str, message: str, data: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.data = data
