"""How declared things are described over the socket: the rows of ``rondevuctl --json``. Keys are for ever: add to them."""

from __future__ import annotations

from typing import Any

from rondevud.durable.connection import DurableConnection
from rondevud.durable.service import DurableService
from rondevud.durable.session import DurableSession
from rondevud.durable.visits import KEPT_LONGER, Visit
from rondevud.records import PeerKind

Data = dict[str, Any]


def of_service(service: DurableService) -> Data:
    """One row of `services`; times are seconds since 1970 by the signalling server's clock."""
    publication = service.pool.publication
    return {
        "service": service.name,
        "username": service.settings.username,
        "fqn": service.settings.fqn,
        "published": service.published.is_set(),
        "service_id": publication.service_id if publication else None,
        "uuid": publication.uuid if publication else None,
        "expires_at": publication.expires_at if publication else None,
        "offers": service.pool.size,
        "pool_size": service.settings.pool_size,
        "ephemeral": service.ephemeral,
        "connections": len(service.visits),
        "connected": sum(visit.session.connected for visit in service.visits.values()),
        "error": service.last_error,
        "pool": {
            "active_offers": service.pool.size,
            "active_connections": sum(visit.session.connected for visit in service.visits.values()),
            "total_connections_handled": service.counters["connections"],
            "failed_offer_creations": service.counters["publish_errors"],
        },
        "counters": dict(service.counters),
    }


def of_connection(connection: DurableConnection) -> Data:
    """A row of `connections`: one that this daemon made."""
    return {
        **_session(connection.session),
        "name": connection.settings.name,
        "service": None,
        "target": connection.settings.target,
        "state": str(connection.state),
        "ephemeral": connection.ephemeral,
        "attempt": connection.attempt,
        "error": connection.error,
    }


def of_visit(service: DurableService, visit: Visit) -> Data:
    """A row of `connections`: one that a service took."""
    return {
        **_session(visit.session),
        "name": None,
        "service": service.name,
        "target": None,
        "state": str(visit.state),
        "ephemeral": service.ephemeral,
        "attempt": 0,
        "error": None,
    }


def of_visiting_session(service: DurableService, visit: Visit) -> Data:
    """A row of `sessions`: one that a service keeps. Spans are in time that this daemon runs."""
    session, expiry = visit.session, service.settings.session_expiry
    record = session.record
    gone = not session.connected and not record.closed
    expires = gone and not record.blocked and expiry is not None
    kept = (KEPT_LONGER if record.kind is PeerKind.LINK else 0.0) + (expiry or 0.0)
    state = "closed" if record.closed else "absent" if gone else "connected"
    if expires and record.absent >= (expiry or 0.0):
        state = "expired"
    return {
        **_kept(session),
        "role": str(record.role),
        "name": None,
        "service": service.name,
        "target": None,
        "state": state,
        "blocked": record.blocked,
        "absent": record.absent if gone else None,
        "expires_in": max(0.0, (expiry or 0.0) - record.absent) if expires else None,
        "forgotten_in": max(0.0, kept - record.absent) if expires else None,
        "ephemeral": service.ephemeral,
    }


def of_made_session(connection: DurableConnection) -> Data:
    """A row of `sessions`: one of a connection that this daemon made; nothing of it expires."""
    session = connection.session
    return {
        **_kept(session),
        "role": str(session.record.role),
        "name": connection.settings.name,
        "service": None,
        "target": connection.settings.target,
        "state": "closed" if session.record.closed else "connected" if session.connected else "absent",
        "blocked": False,
        "absent": None,
        "expires_in": None,
        "forgotten_in": None,
        "ephemeral": connection.ephemeral,
    }


def _kept(session: DurableSession) -> Data:
    channels = session.channels.values()
    return {
        "connection_id": session.connection_id,
        "peer_name": session.record.peer_name,
        "kind": str(session.record.kind) or None,
        "channels": len(session.channels),
        "queue_size": sum(channel.outbox.count for channel in channels),
        "queue_bytes": sum(channel.outbox.size for channel in channels),
        "waiting": sum(channel.waiting for channel in channels),
        "waiting_bytes": sum(channel.waiting_bytes for channel in channels),
    }


def _session(session: DurableSession) -> Data:
    channels = session.channels.values()
    return {
        "connection_id": session.connection_id,
        "peer_name": session.record.peer_name,
        "kind": str(session.record.kind) or None,
        "channels": len(session.channels),
        "queue_size": sum(channel.outbox.count for channel in channels),
        "waiting": sum(channel.waiting for channel in channels),
        "round_trip": session.machine.round_trip,
        "suspect": session.suspect,
    }


def snapshot(row: Data, session: DurableSession) -> Data:
    """The row of a snapshot: a few words of the connection's row, and its channels."""
    return {key: row[key] for key in ("connection_id", "name", "state", "peer_name", "kind")} | {
        "channels": [
            {
                "label": channel.label,
                "state": str(channel.state),
                "waiting": channel.waiting,
                "attached": channel.inbox.attached,
            }
            for channel in session.channels.values()
        ]
    }
