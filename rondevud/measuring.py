"""A look at the whole daemon for its metrics: what its parts count anyway, read when somebody asks.

By name there are `MOST_CHANNELS` channels, `MOST_CONNECTIONS` connections and `MOST_SERVICES` services, first come, first
served; all others are one series without their names (see `rondevud.families.Roster`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rondevud.accounts import Accounts
from rondevud.durable.channel import DurableChannel
from rondevud.durable.session import DurableSession
from rondevud.errors import RequestError
from rondevud.families import Counted, Family, Report, Roster
from rondevud.house import House
from rondevud.metric_names import METRICS, TABLES, told

MOST_CHANNELS = 100
MOST_CONNECTIONS = 100
MOST_SERVICES = 100

STORE_PATIENCE = 3.0
"""Seconds for the store to answer for ages and totals; the report goes without them then."""

Data = dict[str, Any]


class Measuring:
    """Looks at `house` as often as it is asked; counters in the reports only rise."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._channels = Roster(MOST_CHANNELS)
        self._connections = Roster(MOST_CONNECTIONS)
        self._services = Roster(MOST_SERVICES)
        self._looking = asyncio.Lock()
        self._started = 0.0
        self._late: set[asyncio.Task[Accounts]] = set()
        """Reads that the store has not answered in time."""
        self.incomplete = 0
        """Reports for which the store did not answer in time."""
        self.refused = 0
        """For whoever serves the reports: connections closed because there were too many."""

    async def look(self) -> list[Family]:
        """All metrics that have values now."""
        async with self._looking:
            report = Report(METRICS)
            self._house.holdings.prune()
            listed = self._look_at_channels(report)
            await self._add_accounts(report, listed)
            self._look_at_connections(report)
            self._look_at_services(report)
            await self._look_at_daemon(report)
            self._add_latencies(report)
        return [family for family in report.families.values() if family.samples]

    def stop(self) -> None:
        """Wait for nothing any more."""
        for task in self._late:
            task.cancel()

    def _late_done(self, task: asyncio.Task[Accounts]) -> None:
        self._late.discard(task)
        if not task.cancelled():
            task.exception()  # nobody wants it any more

    # --- channels --------------------------------------------------------------------------------------------------

    def _look_at_channels(self, report: Report) -> list[tuple[DurableChannel, dict[str, str]]]:
        sessions = self._house.holdings.sessions(None)
        there = [
            Counted(channel, self._names(session) | {"label": channel.label}, channel.counted(), self._foreign(session))
            for session in sessions
            for channel in session.channels.values()
        ]
        past = self._house.holdings.environment.past.channels
        listed, rest = self._channels.look(there, past)
        for counted in listed:
            _add_counters(report, "channel", counted.counters, counted.labels)
            _add_channel(report, [counted.key], counted.labels)
        _add_counters(report, "channel", rest, {})
        unlisted = [counted.key for counted in there if counted.key in self._channels.unlisted]
        _add_channel(report, unlisted, {})
        report.add("channels", len(there))
        report.add("channels_unlisted", len(unlisted))
        report.add("sessions", len(sessions))
        return [(counted.key, counted.labels) for counted in listed if isinstance(counted.key, DurableChannel)]

    async def _add_accounts(self, report: Report, listed: list[tuple[DurableChannel, dict[str, str]]]) -> None:
        """Ages and totals stand in the store, and are read from it together."""
        if not listed:
            return
        if self._late:  # what was asked for then still waits: nothing is heaped on it
            self.incomplete += 1
            return
        create = asyncio.get_running_loop().create_task
        reading = [create(channel.books(), name="metrics: accounts") for channel, _ in listed]
        done, late = await asyncio.wait(reading, timeout=STORE_PATIENCE)
        self._late |= late
        for task in late:
            task.add_done_callback(self._late_done)
        now, missing = time.time(), bool(late)
        for task, (_, labels) in zip(reading, listed, strict=True):
            if task not in done:
                continue
            try:
                books = task.result()
            except RequestError:
                missing = True
                continue
            report.add("outbox_oldest_age_seconds", _age(books.out_oldest, now), **labels)
            report.add("inbox_oldest_age_seconds", _age(books.in_oldest, now), **labels)
            for fate, count in asdict(books.totals).items():
                report.add("channel_messages_total", count, **labels, fate=fate)
        self.incomplete += missing

    def _names(self, session: DurableSession) -> dict[str, str]:
        """A connection's name where that names it alone, else its id."""
        holdings, id_ = self._house.holdings, session.connection_id
        made = holdings.by_id.get(id_)
        named = made is not None and holdings.by_name.get(made.settings.name) is made
        return {"connection": made.settings.name if made is not None and named else id_}

    def _foreign(self, session: DurableSession) -> bool:
        return session.connection_id not in self._house.holdings.by_id

    # --- connections and services ----------------------------------------------------------------------------------

    def _look_at_connections(self, report: Report) -> None:
        rows = {row["connection_id"]: row for row in self._house.connections()}
        sessions = [session for session in self._house.holdings.sessions(None) if session.connection_id in rows]
        there = [Counted(session, self._names(session), {}, self._foreign(session)) for session in sessions]
        listed, _ = self._connections.look(there, {})
        for counted in listed:
            if isinstance(counted.key, DurableSession):
                _add_connection(report, rows[counted.key.connection_id], counted.key, counted.labels)
        for state in ("connecting", "connected", "reconnecting", "disconnected", "failed", "closed"):
            report.add("connections", sum(row["state"] == state for row in rows.values()), state=state)
        for kind in ("link", "plain"):
            up = sum(s.connected and rows[s.connection_id]["kind"] == kind for s in sessions)
            report.add("connected", up, kind=kind)
        counters = self._house.holdings.environment.past.sessions.copy()
        for session in self._house.holdings.sessions(None):
            counters.update(session.machine.counters)
        _add_counters(report, "session", counters, {})

    def _look_at_services(self, report: Report) -> None:
        holdings = self._house.holdings
        there = [Counted(s, {"service": s.name}, s.counters) for s in holdings.services.values()]
        past = holdings.environment.past.services.copy()
        for service in holdings.undeclared:
            past.update(service.counters)
        listed, rest = self._services.look(there, past)
        rows = {row["service"]: row for row in self._house.services()}
        for counted in listed:
            row = rows[counted.labels["service"]]
            report.add("service_published", row["published"], **counted.labels)
            report.add("service_offers", row["offers"], **counted.labels)
            report.add("service_pool_size", row["pool_size"], **counted.labels)
            report.add("service_sessions", row["connections"], **counted.labels)
            report.add("service_connected", row["connected"], **counted.labels)
            _add_counters(report, "service", counted.counters, counted.labels)
        _add_counters(report, "service", rest, {}, zeros=False)

    # --- the rest --------------------------------------------------------------------------------------------------

    async def _look_at_daemon(self, report: Report) -> None:
        status = await self._house.status()
        words = ("version", "instance", "engine", "signalling")
        report.add("info", 1, **{word: status[word] or "" for word in words})
        for name in ("services", "clients", "tasks", "store_bytes"):
            report.add(name, status[name])
        report.add("engine_closing", status["closing"])
        self._started = self._started or time.time() - status["uptime"]
        report.add("start_time_seconds", self._started)
        report.add("store_ok", status["store"] == "ok")
        report.add("store_limit_bytes", status["max_store_bytes"])
        clients = self._house.clients()
        report.add("client_handles", sum(client["handles"] for client in clients))
        report.add("client_unread_bytes", sum(client["unread_bytes"] for client in clients))
        report.add("clients_refused_total", self._house.clients_refused())
        report.add("events_total", self._house.events.next - 1)
        report.add("metrics_refused_total", self.refused)
        report.add("metrics_incomplete_total", self.incomplete)
        _add_counters(report, "daemon", status["counters"], {})
        _add_counters(report, "engine", status["engine_counters"], {})
        _add_counters(report, "signalling", status["signalling_counters"], {})

    def _add_latencies(self, report: Report) -> None:
        latencies = self._house.holdings.environment.latencies
        report.add_histogram("message_accept_seconds", latencies.accept)
        report.add_histogram("message_acknowledge_seconds", latencies.acknowledge)
        report.add_histogram("message_delivery_seconds", latencies.deliver)
        report.add("messages_untimed_total", latencies.untimed)


def _add_counters(
    report: Report, scope: str, counters: Mapping[str, int], labels: dict[str, str], *, zeros: bool = True
) -> None:
    """All of them, with `zeros` those included that have counted nothing yet: an alert sees the first time, too."""
    named = dict.fromkeys(TABLES[scope], 0) if zeros else {}
    for counter, count in {**named, **counters}.items():
        where = told(scope, counter)
        report.add(where.metric, count, **labels, **where.labels)


def _add_channel(report: Report, keys: list[object], labels: dict[str, str]) -> None:
    """The gauges of a channel, or the sums over several."""
    channels = [key for key in keys if isinstance(key, DurableChannel)]
    rows = [channel.facts() for channel in channels]
    for metric, key in (
        ("outbox_messages", "queue_size"),
        ("outbox_bytes", "queue_bytes"),
        ("outbox_parked", "parked"),
        ("channel_buffered_bytes", "buffered_amount"),
        ("channel_producers", "producers"),
        ("channel_attached", "attached"),
        ("inbox_messages", "waiting"),
        ("inbox_bytes", "waiting_bytes"),
        ("set_aside_messages", "failed"),
    ):
        report.add(metric, sum(row[key] for row in rows), **labels)


def _add_connection(report: Report, row: Data, session: DurableSession, labels: dict[str, str]) -> None:
    report.add("connection_up", session.connected, **labels)
    report.add("connection_suspect", row["suspect"], **labels)
    report.add("connection_attempts", row["attempt"], **labels)
    report.add("connection_round_trip_seconds", row["round_trip"], **labels)
    words = {word: row[word] or "" for word in ("service", "target", "kind")}
    report.add("connection_info", 1, **labels, **words)


def _age(at: float | None, now: float) -> float | None:
    return None if at is None else max(0.0, now - at)
