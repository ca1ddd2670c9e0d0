"""From what users write (the file, options over the socket) to what the durable layer is told."""

from __future__ import annotations

from typing import Any

import msgpack

from rondevud import config as configuration
from rondevud.config import Config, ConnectionConfig, QueueConfig, ServiceConfig
from rondevud.durable.incoming import InboxLimits
from rondevud.durable.ports import Configure
from rondevud.durable.settings import (
    ChannelSettings,
    ConnectionSettings,
    OutboxLimits,
    PeerChoice,
    Reconnect,
    ServiceSettings,
)
from rondevud.errors import ConfigError, RequestError
from rondevud.records import Durability
from rondevud.transport.base import RELIABLE, ChannelOptions

MAX_CHANNELS = 64
"""Channels of one connection, at either side."""


def channel_configurer(
    config: Config, queue: QueueConfig, declared: dict[str, configuration.ChannelOptions], *, ephemeral: bool = False
) -> Configure:
    """What resolves the options of one channel of a service or connection whose own ``queue`` table is `queue`.

    `declared` are the channels that were declared with it; their options hold when nothing else is said. The channels of
    what is `ephemeral` have durability `memory`.
    """

    def configure(label: str, options: dict[str, Any] | None, plain: bool) -> ChannelSettings:
        own = declared.get(label)
        if options:
            try:
                own = configuration.channel_options(options)
            except ConfigError as error:
                raise RequestError("bad_params", str(error)) from error
        tables = (queue,) if own is None else (queue, own)
        if ephemeral:
            refuse_disk(*tables)
        durability = Durability.MEMORY if ephemeral else configuration.merge(config.queue, *tables).durability
        reliability = ChannelOptions() if own is None else _reliability(own)
        loose = plain or reliability != RELIABLE
        limits = configuration.queue_limits(config.queue, *tables, durability=durability, plain=loose)
        inbox = configuration.inbox_limits(config.queue, *tables)
        return ChannelSettings(
            durability,
            OutboxLimits(limits.max_count, limits.max_bytes, limits.max_age, limits.overflow),
            InboxLimits(inbox.max_count, inbox.max_bytes, inbox.max_deliveries),
            msgpack.packb(options) if options else b"",
            reliability,
        )

    return configure


def _reliability(options: configuration.ChannelOptions) -> ChannelOptions:
    return ChannelOptions(options.ordered, options.max_retransmits, options.max_packet_life_time)


def refuse_disk(*tables: QueueConfig) -> None:
    """Raises ``bad_params`` where the durability `disk` is asked for: nothing ephemeral is written."""
    if any("durability" in table.model_fields_set and table.durability is Durability.DISK for table in tables):
        raise RequestError("bad_params", "durability: expected memory: what is ephemeral is not written to disk")


def connection_settings(config: Config, declared: ConnectionConfig, *, in_file: bool) -> ConnectionSettings:
    reconnect = configuration.resolve_reconnect(config.reconnect, declared.reconnect, in_file=in_file)
    return ConnectionSettings(
        declared.name,
        declared.username,
        declared.fqn,
        declared.uuid,
        tuple(channel.label for channel in declared.channels),
        PeerChoice(declared.peer),
        Reconnect(
            reconnect.attempts_until_contact,
            reconnect.attempts,
            reconnect.backoff_base,
            reconnect.backoff_max,
            reconnect.jitter,
            reconnect.connection_timeout,
        ),
        reconnect.heartbeat,
        config.daemon.max_message,
    )


def service_settings(config: Config, declared: ServiceConfig) -> ServiceSettings:
    reconnect = configuration.resolve_reconnect(config.reconnect, declared.reconnect, in_file=True)
    return ServiceSettings(
        declared.username,
        declared.fqn,
        declared.public,
        declared.metadata,
        declared.ttl,
        declared.ttl_refresh_margin,
        declared.pool_size,
        declared.polling_interval,
        _limit(declared.session_expiry),
        PeerChoice(declared.peer),
        _whole(declared.max_connections),
        _whole(declared.max_sessions),
        _whole(declared.max_channels) or MAX_CHANNELS,
        reconnect.heartbeat,
        config.daemon.max_message,
    )


def connection_from(
    name: str | None,
    options: dict[str, Any],
    *,
    username: str | None = None,
    fqn: str | None = None,
    uuid: str | None = None,
) -> ConnectionConfig:
    """The declaration in a request. Raises `RequestError` ``bad_params``."""
    said = {"name": name, "username": username, "fqn": fqn, "uuid": uuid}
    try:
        declared = configuration.connection_declaration({**options, **{k: v for k, v in said.items() if v is not None}})
    except ConfigError as error:
        raise RequestError("bad_params", str(error)) from error
    if len(declared.channels) > MAX_CHANNELS:
        raise RequestError("bad_params", f"channels: {len(declared.channels)} channels, at most {MAX_CHANNELS}")
    return declared


def service_from(username: str, fqn: str, options: dict[str, Any]) -> ServiceConfig:
    """The declaration in a request. Raises `RequestError` ``bad_params``."""
    try:
        return configuration.service_declaration({**options, "username": username, "fqn": fqn})
    except ConfigError as error:
        raise RequestError("bad_params", str(error)) from error


def differences(has: ConnectionConfig | ServiceConfig, asked: ConnectionConfig | ServiceConfig) -> list[str]:
    """The keys in which two declarations of one thing differ."""
    one, other = has.model_dump(), asked.model_dump()
    return sorted(key for key in one if one[key] != other[key])


def _limit(value: float) -> float | None:
    return None if value == float("inf") else value


def _whole(value: float) -> int | None:
    return None if value == float("inf") else int(value)
