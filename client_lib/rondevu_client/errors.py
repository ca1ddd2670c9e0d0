"""What can go wrong between a program and its daemon.

RondevuClientError
├── DaemonUnavailable      nobody answers at any of the sockets tried
├── ConnectionLost         the socket broke or was closed while something was under way
├── ProtocolError          the other end does not speak this protocol
│   ├── BadFrame           what came is no frame: nothing behind it can be trusted
│   └── BadMessage         a frame of a wrong shape; the next one may be fine
├── RequestRefused         the daemon says no: `code`, `message`, `data`
├── MessageRejected        a message was not stored, and why
├── MessagesRemoved        accepted messages will not reach the peer
├── NotAcknowledged        this peer acknowledges nothing; everything has left the daemon
└── Detached               the channel is attached no longer: `reason`

`CODES` is the table of every code that the daemon sends, for clients in any language.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

CODES = {
    # of the socket itself
    "access_denied": "this user may not do that, or may not use this daemon at all",
    "bad_frame": "what was sent is not msgpack, too deep, or no valid text; the socket is closed",
    "frame_too_large": "a frame is longer than max_message + 64 KiB; the socket is closed",
    "bad_message": "a frame has a wrong shape or a value of a wrong type",
    "user_limit": "the programs of this user have together as much as they may",
    "hello_first": "the first request must be hello",
    "unsupported_protocol": "the daemon speaks none of the protocol versions offered",
    "too_many_clients": "the daemon serves as many sockets as it may; this one is closed",
    "too_many_requests": "too many requests of this socket are unanswered",
    "too_many_handles": "too many handles and subscriptions on this socket",
    "slow_client": "the client does not read what is sent to it; the socket is closed",
    "stopping": "the daemon is stopping",
    "internal": "the daemon failed at this request; its log says why",
    # of requests
    "unknown_method": "there is no such method",
    "bad_params": "a parameter is missing, unknown, or of a wrong type or value",
    "bad_target": "this target cannot be used for that",
    "unknown_target": "no such connection or service is declared",
    "unknown_channel": "the connection has no channel of that label",
    "unknown_message": "no message of that id is set aside",
    "unknown_handle": "no such handle or subscription was ever given on this socket",
    "conflict": "it is declared with other options",
    "not_empty": "messages wait in the session",
    "name_taken": "the user name is claimed with another key",
    "no_key": "no key is held for this user name",
    "key_exists": "another key is held for this user name",
    "key_in_use": "a declared service needs this key",
    "key_failed": "a key file cannot be read or written",
    "reserved_label": "labels that begin with rondevu are refused on links",
    "options_differ": "the channel exists with other options",
    "in_use": "the channel has a receiver already",
    "producer_in_use": "the producer has a live handle on that channel already",
    "detached": "the handle was taken away while it was being made",
    "not_found": "the signalling server knows no such thing",
    "signalling": "the signalling server could not be asked or refused",
    "file_exists": "there is a file of that name already",
    "backup_failed": "the copy of the store cannot be written",
    "bad_config": "the configuration file cannot be used; nothing has been changed",
    "restart_needed": "only a restart of the daemon can use the configuration file; nothing has been changed",
    "timeout": "it did not come about in time",
    # of rejected messages
    "window": "more than send_window messages or bytes were unconfirmed",
    "bad_option": "an option of the message is unknown or has a wrong value",
    "bad_payload": "a payload must be text or binary",
    "too_large": "the message is longer than max_message",
    "queue_full": "the outbox is full",
    "store_full": "all queues together hold what they may (max_store_bytes)",
    "closed": "the channel or connection is closed",
    "failed": "the connection has failed and is not tried any more",
    "blocked": "the peer is blocked",
    "disk_full": "the store's disk is full",
    "store_failed": "the store cannot write",
    # of removed messages and gaps
    "expired": "older than its maximum age, or its session has expired",
    "overflow": "removed to make room",
    "purged": "removed on request, or its connection was closed",
    "damaged": "the store found it damaged",
    "lost": "a side has lost its store or went back to an earlier copy",
    # of detached handles
    "taken_over": "another program attached with takeover",
    "access_withdrawn": "the right to use it was withdrawn",
}
"""Every code with its meaning. Codes are for ever: add to them, do not rename them."""


class RondevuClientError(Exception):
    """Base of all errors of this library."""


class DaemonUnavailable(RondevuClientError):
    """Nobody answers; the message lists what was tried and how to start the daemon."""


class ConnectionLost(RondevuClientError):
    """The socket is closed. What was sent and not accepted is undecided."""


class ProtocolError(RondevuClientError):
    """The other end does not speak this protocol. `code` is one of `CODES`."""

    code = "bad_message"


class BadFrame(ProtocolError):
    """Bytes that are no frame; `code` is ``bad_frame`` or ``frame_too_large``. Nothing behind them is interpreted."""

    def __init__(self, message: str, code: str = "bad_frame") -> None:
        super().__init__(message)
        self.code = code


class BadMessage(ProtocolError):
    """A frame of a wrong shape; `msgid` is set where it was a request that can be answered."""

    def __init__(self, message: str, msgid: int | None = None) -> None:
        super().__init__(message)
        self.msgid = msgid


class RequestRefused(RondevuClientError):
    """The daemon refused a request.

    Attributes:
        code: one of `CODES`.
        message: what the daemon says about it.
        data: further facts, or None.
    """

    def __init__(self, code: str, message: str, data: dict[str, Any] | None = None) -> None:
        super().__init__(f"{message} ({code})")
        self.code = code
        self.message = message
        self.data = data


class MessageRejected(RondevuClientError):
    """The daemon did not store a message; sending it again takes a new number.

    Attributes:
        seq: its number.
        code: one of `CODES`.
    """

    def __init__(self, seq: int, code: str, message: str) -> None:
        super().__init__(f"message {seq} was rejected: {message} ({code})")
        self.seq = seq
        self.code = code
        self.message = message


class RemovedRange(NamedTuple):
    first: int
    last: int
    reason: str


class MessagesRemoved(RondevuClientError):
    """Messages that were accepted will not reach the peer.

    Attributes:
        ranges: their numbers, with the reasons.
        unnumbered: how many more were removed while there was no socket to say which, or were too many to list.
    """

    def __init__(self, ranges: Sequence[RemovedRange], unnumbered: int = 0) -> None:
        self.ranges = list(ranges)
        self.unnumbered = unnumbered
        parts = [
            f"{r.first} to {r.last} ({r.reason})" if r.first != r.last else f"{r.first} ({r.reason})" for r in ranges
        ]
        if unnumbered:
            parts.append(f"{unnumbered} without a number")
        super().__init__("messages were removed and will not reach the peer: " + ", ".join(parts))


class NotAcknowledged(RondevuClientError):
    """Everything has left the daemon, but this peer acknowledges nothing: nobody can say whether it arrived."""


class Detached(RondevuClientError):
    """The channel is attached no longer; what was sent and not accepted is undecided."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"detached: {CODES.get(reason, reason)} ({reason})")
        self.reason = reason
