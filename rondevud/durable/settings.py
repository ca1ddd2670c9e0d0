"""What the durable layer is told about its limits and times, resolved from whatever the user wrote.

Durations are seconds, sizes bytes of payload; None = no limit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from rondevud.durable.incoming import InboxLimits
from rondevud.records import Durability
from rondevud.transport.base import RELIABLE, ChannelOptions


class PeerChoice(StrEnum):
    """Which peers are wanted."""

    AUTO = "auto"
    """What each contact shows, until there has been a link: then links only."""
    LINK = "link"
    """Links only."""
    PLAIN = "plain"
    """Plain peers only: nothing is marked as a link, and no link is taken."""


@dataclass(frozen=True, slots=True)
class OutboxLimits:
    max_count: int | None = None
    max_bytes: int | None = 256 * 1024 * 1024
    max_age: float | None = None
    overflow: str = "reject"
    """``drop_oldest``, ``reject`` or ``block``; what it means: `rondevud.durable.outbox`."""


@dataclass(frozen=True, slots=True)
class ChannelSettings:
    """One channel's limits. `options` is what the user said about it, to tell later whether somebody says otherwise."""

    durability: Durability = Durability.DISK
    outbox: OutboxLimits = OutboxLimits()
    inbox: InboxLimits = field(default_factory=lambda: InboxLimits(max_count=10_000))
    options: bytes = b""
    reliability: ChannelOptions = RELIABLE


@dataclass(frozen=True, slots=True)
class Reconnect:
    """How a connection comes back. The defaults are the seed's."""

    attempts_until_contact: int | None = 10
    attempts: int | None = None
    backoff_base: float = 1.0
    backoff_max: float = 30.0
    jitter: float = 0.2
    connection_timeout: float = 30.0


@dataclass(frozen=True, slots=True)
class ConnectionSettings:
    """A DurableConnection. Exactly one of (`username`, `fqn`) and `uuid` is set."""

    name: str
    username: str | None = None
    fqn: str | None = None
    uuid: str | None = None
    channels: tuple[str, ...] = ()
    """Labels that exist from the beginning."""
    peer: PeerChoice = PeerChoice.AUTO
    reconnect: Reconnect = Reconnect()
    heartbeat: float = 1.0
    max_message: int = 16 * 1024 * 1024

    @property
    def target(self) -> str:
        """What is connected to, for people."""
        return f"uuid/{self.uuid}" if self.uuid else f"{self.username}/{self.fqn}"


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """A DurableService."""

    username: str
    fqn: str
    public: bool = False
    metadata: object = field(default=None, hash=False)
    ttl: float = 300.0
    ttl_refresh_margin: float = 0.2
    """Share of the TTL that is left when it is refreshed."""
    pool_size: int = 1
    polling_interval: float = 2.0
    session_expiry: float | None = 7 * 86_400.0
    peer: PeerChoice = PeerChoice.AUTO
    max_connections: int | None = 100
    max_sessions: int | None = 1_000
    max_channels: int = 64
    heartbeat: float = 1.0
    max_message: int = 16 * 1024 * 1024

    @property
    def name(self) -> str:
        return f"{self.username}/{self.fqn}"
