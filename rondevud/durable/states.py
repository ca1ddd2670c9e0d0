"""States and their transition tables; a transition that is not in a table is an error."""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

State = TypeVar("State", bound=StrEnum)


class LinkState(StrEnum):
    """One link, as one side sees it.

    GREETING ──welcome──► UP ──newer link──► OLD ──┐
       │                   │                       ├──► CLOSED
       └──────goodbye──────┴──► CLOSING ───────────┘
    """

    GREETING = "greeting"
    """Connecting side: hello sent, or about to be. (A service has no link before it has taken a hello.)"""
    UP = "up"
    """Welcome sent or received, and no newer link of the session has come so far."""
    OLD = "old"
    """A newer link took over: everything but a goodbye is ignored."""
    CLOSING = "closing"
    """Goodbye sent, or answered: waiting for the other side, for a second at most."""
    CLOSED = "closed"


LINK_TRANSITIONS: dict[LinkState, frozenset[LinkState]] = {
    LinkState.GREETING: frozenset({LinkState.UP, LinkState.OLD, LinkState.CLOSING, LinkState.CLOSED}),
    LinkState.UP: frozenset({LinkState.OLD, LinkState.CLOSING, LinkState.CLOSED}),
    LinkState.OLD: frozenset({LinkState.CLOSING, LinkState.CLOSED}),
    LinkState.CLOSING: frozenset({LinkState.CLOSED}),
    LinkState.CLOSED: frozenset(),
}


class ConnectionState(StrEnum):
    """A DurableConnection."""

    CONNECTING = "connecting"
    """No contact yet."""
    CONNECTED = "connected"
    RECONNECTING = "reconnecting"
    DISCONNECTED = "disconnected"
    """There was a link, and nobody dials: the service's side between two links."""
    FAILED = "failed"
    """Given up; everything held stays. `reconnect`, `connect` or a start of the daemon tries anew."""
    CLOSED = "closed"


CONNECTION_TRANSITIONS: dict[ConnectionState, frozenset[ConnectionState]] = {
    ConnectionState.CONNECTING: frozenset(
        {
            ConnectionState.CONNECTED,
            ConnectionState.RECONNECTING,
            ConnectionState.FAILED,
            ConnectionState.CLOSED,
        }
    ),
    ConnectionState.CONNECTED: frozenset(
        {
            ConnectionState.RECONNECTING,
            ConnectionState.DISCONNECTED,
            ConnectionState.FAILED,
            ConnectionState.CLOSED,
        }
    ),
    ConnectionState.RECONNECTING: frozenset(
        {ConnectionState.CONNECTED, ConnectionState.FAILED, ConnectionState.CLOSED}
    ),
    ConnectionState.DISCONNECTED: frozenset({ConnectionState.CONNECTED, ConnectionState.CLOSED}),
    ConnectionState.FAILED: frozenset(
        {ConnectionState.CONNECTING, ConnectionState.RECONNECTING, ConnectionState.CLOSED}
    ),
    ConnectionState.CLOSED: frozenset(),
}


class ChannelState(StrEnum):
    """A DurableChannel, as its users see it (W3C RTCDataChannelState)."""

    CONNECTING = "connecting"
    """No link, or the peer has not announced the channel on it: what is sent is queued."""
    OPEN = "open"
    CLOSING = "closing"
    """Closed here, or by the peer: nothing new is taken, what is queued is still delivered."""
    CLOSED = "closed"


def check(table: dict[State, frozenset[State]], old: State, new: State) -> None:
    """Raise `RuntimeError` when `table` has no way from `old` to `new`: a bug, not an outside event."""
    if new not in table[old]:
        raise RuntimeError(f"no transition from {old} to {new}")
