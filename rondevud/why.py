"""Why a connection or a service is as it is: everything that explains it, on one page. Keys are for ever: add to them.

Spans are seconds; times are seconds since 1970.
"""

from __future__ import annotations

from typing import Any

from rondevud import rows
from rondevud.durable.channel import DurableChannel
from rondevud.durable.connection import DurableConnection
from rondevud.durable.service import DurableService
from rondevud.durable.session import DurableSession
from rondevud.durable.states import ConnectionState
from rondevud.durable.visits import Visit
from rondevud.events import EventBus, Scope
from rondevud.signalling.base import Signalling

Data = dict[str, Any]

TELLING = frozenset({
    "connected", "disconnected", "disconnection", "error", "failed", "gap", "message_expired", "options_differ",
    "queue_overflow", "reconnecting", "recovered", "suspect",
})  # fmt: skip
"""Events that explain something."""

RECENT = 10
"""Events shown."""


class Surroundings:
    """What explains a connection beyond itself."""

    def __init__(
        self, events: EventBus, signalling_url: str | None, signalling: Signalling | None, ice_servers: list[str]
    ) -> None:
        self._events = events
        self._signalling_url = signalling_url
        self._signalling = signalling
        self._ice_servers = ice_servers

    def facts(self, scope: Scope) -> Data:
        """``{signalling, ice_servers, recent}``."""
        told = [event for event in self._events.replay(0, scope).events if event.name in TELLING]
        return {
            "signalling": self._signalling_facts(),
            "ice_servers": self._ice_servers,
            "recent": [{"number": e.number, "at": e.at, "name": e.name, "data": e.data} for e in told[-RECENT:]],
        }

    def _signalling_facts(self) -> Data:
        health = self._signalling.health if self._signalling else None
        return {
            "url": self._signalling_url,
            "reachable": health.reachable if health else None,
            "answered_ago": health.answered_ago if health else None,
            "failed_ago": health.failed_ago if health else None,
            "error": health.error if health else None,
        }


def of_connection(connection: DurableConnection, around: Surroundings) -> Data:
    """A connection that this daemon made."""
    session = connection.session
    offer = connection.offer
    next_step, next_in = _next_of_connection(connection)
    return {
        **rows.of_connection(connection),
        "max_attempts": connection.max_attempts,
        "next": next_step,
        "next_in": next_in,
        "offer": {"offer_id": offer.offer_id, "uuid": offer.uuid} if offer else None,
        "dialled_ago": _ago(session, connection.dialled_at),
        **_session(session),
        **around.facts(Scope(connection_id=session.connection_id)),
    }


def _next_of_connection(connection: DurableConnection) -> tuple[str, float | None]:
    session = connection.session
    if connection.state in {ConnectionState.FAILED, ConnectionState.CLOSED}:
        return "nothing", None
    if connection.dialling:
        return "dialling", None
    if session.connected:
        return "keep", None
    return "dial", _until(session, connection.retry_at)


def of_visit(service: DurableService, visit: Visit, around: Surroundings) -> Data:
    """A connection that a service took: its peer dials."""
    session, expiry = visit.session, service.settings.session_expiry
    next_step, next_in = "nothing", None
    if session.connected:
        next_step = "keep"
    elif visit.state is not ConnectionState.CLOSED:
        next_step = "wait_for_peer"
        next_in = None if expiry is None else max(0.0, expiry - session.record.absent)
    return {
        **rows.of_visit(service, visit),
        "next": next_step,
        "next_in": next_in,
        **_session(session),
        **around.facts(Scope(connection_id=session.connection_id)),
    }


def of_service(service: DurableService, now: float, around: Surroundings) -> Data:
    """A service; `now` is the time of the clock."""
    refresh_at = service.pool.refresh_at
    return {
        **rows.of_service(service),
        "next": "refresh" if service.published.is_set() else "nothing" if service.stopped else "publish",
        "next_in": None if refresh_at is None else max(0.0, refresh_at - now),
        "open_offers": [
            {
                "offer_id": offer.offer_id,
                "age": now - offer.published,
                "expires_in": max(0.0, offer.expires - now),
                "usable": offer.fresh_until > now,
            }
            for offer in service.pool.offers()
        ],
        "awaited": sum(
            visit.state is not ConnectionState.CLOSED and not visit.session.connected
            for visit in service.visits.values()
        ),
        **around.facts(Scope(service=service.name)),
    }


def _session(session: DurableSession) -> Data:
    return {
        "counters": dict(session.machine.counters),
        "link": _link(session),
        "channels": [_channel(session, channel) for channel in session.channels.values()],
    }


def _link(session: DurableSession) -> Data | None:
    connection = session.peer_connection
    if connection is None:
        return None
    pair, candidates = connection.selected_pair, connection.ice_candidates
    relayed = pair is not None and "relay" in {pair.local_type, pair.remote_type}
    return {
        "kind": str(session.record.kind),
        "path": None if pair is None else "relayed" if relayed else "direct",
        "local": f"{pair.local} {pair.local_type}" if pair else None,
        "remote": f"{pair.remote} {pair.remote_type}" if pair else None,
        "local_candidates": list(candidates.local),
        "remote_candidates": list(candidates.remote),
        "round_trip": session.machine.round_trip,
        "silence": session.machine.silence(session.now()),
        "suspect": session.suspect,
    }


def _channel(session: DurableSession, channel: DurableChannel) -> Data:
    verdicts = {
        str(direction): {"kind": str(verdict.kind), "messages": verdict.messages}
        for direction, verdict in channel.link_verdicts.items()
    }
    return {
        **channel.facts(),
        "verdicts": {"in": verdicts.get("in"), "out": verdicts.get("out")},
        "acknowledged_ago": _ago(session, channel.acknowledged_at),
    }


def _ago(session: DurableSession, at: float | None) -> float | None:
    return None if at is None else session.now() - at


def _until(session: DurableSession, at: float | None) -> float:
    return 0.0 if at is None else max(0.0, at - session.now())
