"""The metrics there are, and which counter of the daemon is told under which name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from rondevud.families import Described, Kind
from rondevud.records import Reason

CHANNEL = ("connection", "label")


class Told(NamedTuple):
    """Where a counter goes: a metric, and the labels that say which of its counters this is."""

    metric: str
    labels: Mapping[str, str] = MappingProxyType({})


_REASONS = [str(reason) for reason in Reason if reason is not Reason.RESTART]

CHANNEL_COUNTERS = {
    "accepted": Told("messages_accepted_total"),
    "sent": Told("messages_sent_total"),
    "acknowledged": Told("messages_acknowledged_total"),
    "received": Told("messages_received_total"),
    "delivered": Told("messages_delivered_total"),
    "redelivered": Told("messages_redelivered_total"),
    "duplicates_dropped": Told("messages_duplicate_total"),
    "in_doubt": Told("messages_in_doubt_total"),
    "overflow_rejected": Told("messages_rejected_total"),
    "inbox_overflow": Told("inbox_dropped_total", {"reason": "overflow"}),
    "dropped_in": Told("inbox_dropped_total", {"reason": "undelivered"}),
    "purged_in": Told("inbox_dropped_total", {"reason": "purged"}),
    "damaged": Told("inbox_dropped_total", {"reason": "damaged"}),
    "failed": Told("messages_set_aside_total"),
    "gaps_out": Told("gaps_total", {"direction": "out", "reason": "lost"}),
    **{f"removed_{reason}": Told("messages_removed_total", {"reason": reason}) for reason in _REASONS},
    **{f"gaps_{reason}": Told("gaps_total", {"direction": "in", "reason": reason}) for reason in _REASONS},
}

SESSION_COUNTERS = {
    "protocol_errors": Told("link_protocol_errors_total"),
    "impostors": Told("link_impostors_total"),
    "sessions_forgotten": Told("link_sessions_forgotten_total"),
}

SERVICE_COUNTERS = {
    "connections": Told("service_connections_total"),
    "offers": Told("service_offers_total"),
    "answers_ignored": Told("service_answers_dropped_total", {"reason": "ignored"}),
    "greetings_discarded": Told("service_answers_dropped_total", {"reason": "greeting"}),
    "refused_answers": Told("service_answers_dropped_total", {"reason": "refused"}),
}
"""Of a service, besides ``refused_`` with a code and a context with ``_errors``."""

DAEMON_COUNTERS = {
    "plain_dropped": Told("plain_messages_dropped_total"),
    "stray_channels": Told("stray_channels_total"),
}

ENGINE_COUNTERS = {
    name: Told("engine_incidents_total", {"incident": name})
    for name in (
        "background_errors",
        "candidates_ignored",
        "close_errors",
        "connections_refused",
        "early_messages_dropped",
        "forced_closes",
        "handler_errors",
        "malformed_channels",
        "malformed_messages",
        "messages_after_close",
        "queued_closes",
        "slow_closes",
        "tasks_left",
    )
}

SIGNALLING_COUNTERS = {
    "retries": Told("signalling_retries_total"),
    "candidates_dropped": Told("signalling_candidates_dropped_total"),
}

TABLES = {
    "channel": CHANNEL_COUNTERS,
    "session": SESSION_COUNTERS,
    "service": SERVICE_COUNTERS,
    "daemon": DAEMON_COUNTERS,
    "engine": ENGINE_COUNTERS,
    "signalling": SIGNALLING_COUNTERS,
}


def told(scope: str, counter: str) -> Told:
    """The metric for a counter of one of `TABLES`; one that nobody has named goes into ``other_total``."""
    known = TABLES[scope].get(counter)
    if known is not None:
        return known
    if scope == "service" and counter.startswith("refused_"):
        return Told("service_peers_refused_total", {"reason": counter.removeprefix("refused_")})
    if scope == "service" and counter.endswith("_errors"):
        return Told("service_errors_total", {"context": counter.removesuffix("_errors")})
    return Told("other_total", {"scope": scope, "counter": counter})


def _all(kind: Kind, labels: tuple[str, ...], helps: dict[str, str]) -> dict[str, Described]:
    return {name: Described(kind, text, labels) for name, text in helps.items()}


METRICS: dict[str, Described] = {
    **_all(
        "counter",
        CHANNEL,
        {
            "messages_accepted_total": "Messages of programs here that were stored.",
            "messages_sent_total": "Messages put on the way to the peer; sent again counts again.",
            "messages_acknowledged_total": "Messages that the peer's store has.",
            "messages_received_total": "Messages of the peer that were stored.",
            "messages_delivered_total": "Messages given to programs here.",
            "messages_redelivered_total": "Those of them that may have been given before.",
            "messages_duplicate_total": "Messages of the peer that were here already, and were dropped.",
            "messages_in_doubt_total": "Messages removed, or lost with a plain peer's connection, after they had been sent.",
            "messages_rejected_total": "Messages of programs here that were refused because the outbox was full.",
            "messages_set_aside_total": "Messages set aside after max_deliveries.",
        },
    ),
    "messages_removed_total": Described("counter", "Messages taken out of the outbox unsent.", (*CHANNEL, "reason")),
    "inbox_dropped_total": Described("counter", "Received messages that no program will get.", (*CHANNEL, "reason")),
    "gaps_total": Described("counter", "Gaps told to programs or by peers.", (*CHANNEL, "direction", "reason")),
    **_all(
        "histogram",
        (),
        {
            "message_accept_seconds": "From the reading of a program's message to its commit.",
            "message_acknowledge_seconds": "From that commit to the peer's acknowledgement.",
            "message_delivery_seconds": "From the commit of a received message to its first delivery to a program.",
        },
    ),
    "messages_untimed_total": Described("counter", "Acknowledged messages that are not in the histogram of that."),
    **_all(
        "gauge",
        CHANNEL,
        {
            "outbox_messages": "Messages that the peer has not acknowledged.",
            "outbox_bytes": "Their bytes.",
            "outbox_oldest_age_seconds": "Age of the oldest of them; absent without one.",
            "outbox_parked": "Submissions of programs that wait for room.",
            "channel_buffered_bytes": "Bytes on their way to the peer.",
            "channel_producers": "Programs that can send.",
            "channel_attached": "Whether a program receives.",
            "inbox_messages": "Messages and gaps that no program has acknowledged.",
            "inbox_bytes": "Their bytes.",
            "inbox_oldest_age_seconds": "How long the oldest of them has been here; absent without one.",
            "set_aside_messages": "Messages that are set aside.",
        },
    ),
    "channel_messages_total": Described(
        "counter", "What became of all messages of a channel; kept with it over restarts.", (*CHANNEL, "fate")
    ),
    **_all(
        "gauge",
        ("connection",),
        {
            "connection_up": "Whether a link or a plain peer's connection carries it.",
            "connection_suspect": "Whether nothing was heard for too long.",
            "connection_attempts": "Attempts to connect that failed one after another.",
            "connection_round_trip_seconds": "Of the last ping; absent without one.",
        },
    ),
    "connection_info": Described("gauge", "1; says what a connection is.", ("connection", "service", "target", "kind")),
    "connections": Described(
        "gauge", "Connections of both sides, those included that are not told by name.", ("state",)
    ),
    "connected": Described("gauge", "Connections that are up, by kind of peer.", ("kind",)),
    "sessions": Described("gauge", "Sessions that are kept."),
    "channels": Described("gauge", "Channels of all of them."),
    "channels_unlisted": Described("gauge", "Channels that are told of together, without their names."),
    "services": Described("gauge", "Services that are declared."),
    **_all(
        "gauge",
        ("service",),
        {
            "service_published": "Whether the signalling server has it.",
            "service_offers": "Offers that can be taken now.",
            "service_pool_size": "Offers that are to be open.",
            "service_sessions": "Peers of the service, also those that are away.",
            "service_connected": "Peers of the service that are up.",
        },
    ),
    **_all(
        "counter",
        ("service",),
        {
            "service_connections_total": "Peers that came.",
            "service_offers_total": "Offers that were made.",
        },
    ),
    "service_answers_dropped_total": Described("counter", "Answers to offers of no use.", ("service", "reason")),
    "service_peers_refused_total": Described("counter", "Peers that were refused.", ("service", "reason")),
    "service_errors_total": Described("counter", "Failures of the service's work.", ("service", "context")),
    **_all(
        "counter",
        (),
        {
            "link_protocol_errors_total": "Links ended because of what the peer sent.",
            "link_impostors_total": "Peers that could not prove to be who they were.",
            "link_sessions_forgotten_total": "Sessions that the peer did not know any more.",
            "plain_messages_dropped_total": "Messages of plain peers on channels that there are not.",
            "stray_channels_total": "Data channels of peers that fit nothing, closed.",
            "signalling_retries_total": "Requests to the signalling server that were made again.",
            "signalling_candidates_dropped_total": "Candidates beyond what one offer may have.",
            "clients_refused_total": "Sockets closed because there were too many.",
            "events_total": "Events, whoever got them.",
            "metrics_refused_total": "Connections for metrics closed because there were too many.",
            "metrics_incomplete_total": "Looks at the metrics for which the store did not answer in time.",
        },
    ),
    "engine_incidents_total": Described("counter", "What went wrong in the WebRTC library.", ("incident",)),
    "other_total": Described("counter", "Counters without a metric of their own.", ("scope", "counter")),
    **_all(
        "gauge",
        (),
        {
            "clients": "Programs on the socket.",
            "client_handles": "Channels they are attached to.",
            "client_unread_bytes": "Bytes they have not read.",
            "tasks": "Tasks under way in the daemon.",
            "engine_closing": "WebRTC connections that are given up and not closed yet.",
            "start_time_seconds": "When the daemon started, since 1970.",
            "store_ok": "Whether the store can write.",
            "store_bytes": "Payload bytes in all queues on disk.",
            "store_limit_bytes": "How many there may be; absent when unlimited.",
        },
    ),
    "info": Described("gauge", "1; says what runs.", ("version", "instance", "engine", "signalling")),
}
