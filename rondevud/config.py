"""The configuration: one model per section of the TOML file, defaults in the models, unknown keys refused.

Durations are seconds, sizes bytes. A *limit* is a number from 1 on (or a positive number of seconds); ``0`` and
``"unlimited"`` lift it and stand in the models as `math.inf`, so that `None` can mean "not set". The resolved records
(`Limits`, `InboxLimits`, `Reconnect`) have no unset values any more; there `None` means unlimited, as in the store.

`load` reads a file; `connection_options`, `service_options` and `channel_options` judge by the same rules what a program
sends over the socket. All of them raise `ConfigError`, whose text has one line per mistake.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    Strict,
    ValidationError,
    model_validator,
)

from rondevud import config_values as values
from rondevud.config_text import Location, Problem, problem_of, render, shown
from rondevud.errors import ConfigError
from rondevud.records import Durability

MAX_MESSAGE = 16 * 1024 * 1024
"""Bytes of one message, unless configured (design: the link's rule 8)."""

MAX_QUEUE_BYTES = 256 * 1024 * 1024
"""Bytes of an outbox, unless configured. Also in memory, where the seed had no bound but the machine."""


# --- values --------------------------------------------------------------------------------------------------------

Text: TypeAlias = Annotated[str, Strict()]
Flag: TypeAlias = Annotated[bool, Strict()]
Number: TypeAlias = Annotated[float, Strict()]
Whole: TypeAlias = Annotated[int, Strict()]
Seconds: TypeAlias = Annotated[float, PlainValidator(values.seconds)]
CountLimit: TypeAlias = Annotated[int | float, PlainValidator(values.count_limit)]
SecondsLimit: TypeAlias = Annotated[float, PlainValidator(values.seconds_limit)]
AbsolutePath: TypeAlias = Annotated[Path, PlainValidator(values.absolute_path)]
Label: TypeAlias = Annotated[Text, AfterValidator(values.label)]
Peer: TypeAlias = Literal["auto", "link", "plain"]
Overflow: TypeAlias = Literal["drop_oldest", "reject", "block"]
Username: TypeAlias = Annotated[Text, AfterValidator(values.username)]
Fqn: TypeAlias = Annotated[Text, AfterValidator(values.fqn)]
Uuid: TypeAlias = Annotated[Text, AfterValidator(str.lower), AfterValidator(values.uuid)]
Id: TypeAlias = Annotated[Whole, Field(ge=0, lt=2**32 - 1)]
ShellPatterns: TypeAlias = Annotated[
    tuple[Annotated[Text, Field(min_length=1)], ...], BeforeValidator(values.listed), Field(min_length=1)
]
IceUrl: TypeAlias = Annotated[Text, AfterValidator(values.ice_url)]


# --- sections ------------------------------------------------------------------------------------------------------


class Section(BaseModel):
    """Base of all sections: unchangeable, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class DaemonConfig(Section):
    """``[daemon]``. Paths that are not set follow `default_paths`."""

    state_dir: AbsolutePath | None = None
    socket: AbsolutePath | None = None
    socket_mode: Annotated[int, PlainValidator(values.octal_mode)] = 0o600
    socket_group: Text | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    max_message: Annotated[Whole, Field(ge=1024, le=256 * 1024 * 1024)] = MAX_MESSAGE


class SignallingConfig(Section):
    """``[signalling]``. Without `url` only the embedded server can be meant."""

    url: Annotated[Text, AfterValidator(values.url)] | None = None
    protocol: Annotated[Literal["auto", "rest"], BeforeValidator(values.without("rpc"))] = "auto"
    request_timeout: Seconds = 10.0


class RendezvousConfig(Section):
    """``[rendezvous]``: the embedded signalling server."""

    enabled: Flag = False
    listen: Annotated[Text, AfterValidator(values.listen)] = "127.0.0.1:3000"
    store: Annotated[Text, AfterValidator(values.rendezvous_store)] = "sqlite"


class IceServerConfig(Section):
    """A STUN or TURN server; the credential appears in no text about it."""

    urls: Annotated[tuple[IceUrl, ...], BeforeValidator(values.listed), Field(min_length=1)]
    username: Text | None = None
    credential: Annotated[Text | None, Field(repr=False)] = None

    @model_validator(mode="after")
    def _turn_needs_credentials(self) -> IceServerConfig:
        if any(url.startswith("turn") for url in self.urls) and not (self.username and self.credential):
            raise ValueError('a turn: server needs "username" and "credential"')
        return self


class TransportConfig(Section):
    """``[transport]``. No STUN server is asked unless `ice_servers` names one."""

    engine: Annotated[Literal["auto", "aiortc", "libdatachannel"], AfterValidator(values.installed)] = "auto"
    """"auto": libdatachannel where it can be loaded, else aiortc."""
    ice_servers: tuple[Annotated[IceServerConfig, BeforeValidator(values.table_of("urls"))], ...] = ()
    port_range: Annotated[None, BeforeValidator(values.not_yet("a range of ports"))] = None


class QueueConfig(Section):
    """The `queue` table of a service or connection, and all of ``[queue]`` but one key.

    `None`: the default of the channel's kind.
    """

    durability: Durability = Durability.DISK
    max_queue_size: CountLimit | None = None
    max_queue_bytes: CountLimit | None = None
    max_message_age: SecondsLimit | None = None
    overflow: Overflow | None = None
    inbox_size: CountLimit = 10_000
    inbox_bytes: CountLimit = math.inf
    inbox_max_age: Annotated[float, PlainValidator(values.unlimited_only("an age limit of the inbox"))] = math.inf
    max_deliveries: CountLimit = math.inf


class StoreQueueConfig(QueueConfig):
    """``[queue]`` itself, with what holds for all queues together."""

    max_store_bytes: CountLimit = math.inf
    """Payload bytes of all queues of the store, both directions."""

    @property
    def store_limit(self) -> int | None:
        """The same; None = unlimited."""
        return limit(self.max_store_bytes)


class ReconnectConfig(Section):
    """``[reconnect]``, and the `reconnect` table of a service or connection."""

    max_attempts: CountLimit | None = None
    """`None`: see `resolve_reconnect`."""
    backoff_base: Seconds = 1.0
    backoff_max: Seconds = 30.0
    jitter: Annotated[Number, Field(ge=0, le=1)] = 0.2
    connection_timeout: Seconds = 30.0
    heartbeat: Seconds = 1.0


class AccessRule(Section):
    """``[[access.rule]]``: what one user or group may. See `rondevud.access`."""

    user: Text | None = None
    uid: Id | None = None
    group: Text | None = None
    gid: Id | None = None
    allow: Annotated[
        tuple[Literal["observe", "use", "administer"], ...], BeforeValidator(values.listed), Field(min_length=1)
    ]
    connections: ShellPatterns | None = None
    services: ShellPatterns | None = None
    labels: ShellPatterns | None = None

    @model_validator(mode="after")
    def _one_subject(self) -> AccessRule:
        if sum(given is not None for given in (self.user, self.uid, self.group, self.gid)) != 1:
            raise ValueError('expected one of "user", "uid", "group" and "gid"')
        return self


class AccessConfig(Section):
    """``[access]``. Without rules the daemon's own user and root may do everything, nobody else anything.

    The limits are of each user's programs together; those two users have none.
    """

    rule: tuple[AccessRule, ...] = ()
    max_clients: CountLimit = 100
    max_parked_bytes: CountLimit = 64 * 1024 * 1024
    max_queue_bytes: CountLimit = 1024 * 1024 * 1024


class MetricsConfig(Section):
    """``[metrics]``."""

    listen: Annotated[Text, AfterValidator(values.metrics_listen)] | None = None
    """``unix:PATH`` or a loopback ``HOST:PORT``; None: metrics are not served."""


class ChannelOptions(QueueConfig):
    """Options of one channel: its reliability and the keys of ``[queue]``."""

    ordered: Flag = True
    max_retransmits: Annotated[Whole, Field(ge=0, le=65_535)] | None = None
    max_packet_life_time: Annotated[Whole, Field(ge=0, le=65_535)] | None = None
    """Milliseconds."""

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if self.max_retransmits is not None and self.max_packet_life_time is not None:
            raise ValueError('expected at most one of "max_retransmits" and "max_packet_life_time"')
        return self


class ChannelConfig(ChannelOptions):
    """An entry of `channels`: a label, or a table with the label and its options."""

    label: Label


class ConnectionOptions(Section):
    """What may be said about a connection besides its name and target."""

    peer: Peer = "auto"
    channels: tuple[Annotated[ChannelConfig, BeforeValidator(values.table_of("label"))], ...] = ()
    queue: QueueConfig = QueueConfig()
    reconnect: ReconnectConfig = ReconnectConfig()

    @model_validator(mode="after")
    def _reserved_labels(self) -> Self:
        reserved = [channel.label for channel in self.channels if channel.label.startswith("rondevu")]
        if reserved and self.peer != "plain":
            text = 'labels that begin with "rondevu" are reserved, but with peer = "plain"'
            raise ValueError(f"the label {shown(reserved[0])}: {text}")
        return self


class ConnectionConfig(ConnectionOptions):
    """``[[connection]]``. `name` is USER/FQN or uuid/UUID when it was not given."""

    name: Annotated[Text, AfterValidator(values.connection_name)]
    username: Username | None = None
    fqn: Fqn | None = None
    uuid: Uuid | None = None

    @property
    def target(self) -> str:
        """What is connected to: ``USER/FQN`` or ``uuid/UUID``."""
        return f"uuid/{self.uuid}" if self.uuid else f"{self.username}/{self.fqn}"

    @model_validator(mode="before")
    @classmethod
    def _name_unnamed(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or data.get("name") is not None:
            return data
        target = f"uuid/{data['uuid']}" if "uuid" in data else f"{data.get('username')}/{data.get('fqn')}"
        return {**data, "name": target.lower()}

    @model_validator(mode="after")
    def _one_target(self) -> ConnectionConfig:
        by_name = (self.username is not None, self.fqn is not None)
        if any(by_name) == (self.uuid is not None) or any(by_name) != all(by_name):
            raise ValueError('expected either "username" and "fqn", or "uuid"')
        return self


class ServiceOptions(Section):
    """What may be said about a service besides its name."""

    public: Flag = False
    metadata: Annotated[Any, AfterValidator(values.json_value)] = None
    ttl: Seconds = 300.0
    ttl_refresh_margin: Annotated[Number, Field(gt=0, lt=1)] = 0.2
    """Share of the TTL that is left when it is refreshed: 0.2 refreshes at 80 %."""
    pool_size: Annotated[Whole, Field(ge=1, le=100)] = 1
    """A signalling server takes at most 100 offers in one request."""
    polling_interval: Seconds = 2.0
    session_expiry: SecondsLimit = 7 * 24 * 3600.0
    peer: Peer = "auto"
    max_connections: CountLimit = 100
    max_sessions: CountLimit = 1_000
    max_channels: CountLimit = 64
    queue: QueueConfig = QueueConfig()
    reconnect: ReconnectConfig = ReconnectConfig()


class ServiceConfig(ServiceOptions):
    """``[[service]]``."""

    username: Username
    fqn: Fqn

    @property
    def name(self) -> str:
        return f"{self.username}/{self.fqn}"


class Config(Section):
    """The whole file."""

    daemon: DaemonConfig = DaemonConfig()
    signalling: SignallingConfig = SignallingConfig()
    rendezvous: RendezvousConfig = RendezvousConfig()
    transport: TransportConfig = TransportConfig()
    queue: StoreQueueConfig = StoreQueueConfig()
    reconnect: ReconnectConfig = ReconnectConfig()
    access: AccessConfig = AccessConfig()
    metrics: MetricsConfig = MetricsConfig()
    services: Annotated[tuple[ServiceConfig, ...], Field(alias="service")] = ()
    connections: Annotated[tuple[ConnectionConfig, ...], Field(alias="connection")] = ()


# --- reading -------------------------------------------------------------------------------------------------------

Model = TypeVar("Model", bound=Section)


def load(path: Path | None) -> Config:
    """The configuration in that file; without one, the defaults. Raises `ConfigError` with all that is wrong."""
    if path is None:
        return Config()
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text: {error.reason} at byte {error.start}") from error
    return parse(text, str(path))


def parse(text: str, source: str) -> Config:
    """The configuration in that TOML text; `source` names it in the `ConfigError`."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        what, line = _syntax_error(str(error), text)
        raise ConfigError(f"{source}:{line}: not valid TOML: {what}") from error
    config = _validate(Config, data, source, text)
    if problems := _judgelimit(config):
        raise ConfigError(render(problems, source, text))
    return config


def connection_options(data: Mapping[str, Any]) -> ConnectionOptions:
    return _validate(ConnectionOptions, data, "options")


def service_options(data: Mapping[str, Any]) -> ServiceOptions:
    return _validate(ServiceOptions, data, "options")


def channel_options(data: Mapping[str, Any]) -> ChannelOptions:
    return _validate(ChannelOptions, data, "options")


def connection_declaration(data: Mapping[str, Any]) -> ConnectionConfig:
    """A whole ``[[connection]]`` from a map: options, target and perhaps the name."""
    return _validate(ConnectionConfig, data, "connection")


def service_declaration(data: Mapping[str, Any]) -> ServiceConfig:
    """A whole ``[[service]]`` from a map."""
    return _validate(ServiceConfig, data, "service")


def _validate(model: type[Model], data: Mapping[str, Any], source: str, toml: str = "") -> Model:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        found = error.errors(include_url=False)
        problems = [problem_of(details, _keys_at(model, details["loc"][:-1])) for details in found]
        raise ConfigError(render(problems, source, toml)) from None


def _syntax_error(message: str, text: str) -> tuple[str, int]:
    """Text and line of a message of tomllib's, which ends in ``(at line L, column C)`` or ``(at end of document)``."""
    place = re.search(r" \(at line (\d+), column (\d+)\)", message)
    if place is None:
        return message, text.count("\n") + 1
    twice = re.match(r"Cannot declare \((.*?),?\) twice", message)
    if twice is not None:
        table = ".".join(re.findall("'([^']*)'", twice[1]))
        return f"the table [{table}] stands in the file twice", int(place[1])
    return message.replace(place[0], f" (column {place[2]})"), int(place[1])


def _judgelimit(config: Config) -> list[Problem]:
    """What no section can see by itself."""
    problems: list[Problem] = []
    for kind, names in (
        ("service", [service.name for service in config.services]),
        ("connection", [connection.name for connection in config.connections]),
    ):
        for index, name in enumerate(names):
            if name in names[:index]:
                text = f"{shown(name)} stands in the file twice, first as {kind}[{names.index(name)}]"
                problems.append(Problem((kind, index), text))
    for index, connection in enumerate(config.connections):
        labels = [channel.label for channel in connection.channels]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        place = ("connection", index, "channels")
        problems.extend(Problem(place, f"the label {shown(label)} stands here twice") for label in twice)
    if (config.services or config.connections) and config.signalling.url is None and not config.rendezvous.enabled:
        text = "missing: services and connections need a signalling server ([rendezvous] enabled = true embeds one)"
        problems.append(Problem(("signalling", "url"), text))
    return problems


def _keys_at(model: type[Section], location: Location) -> list[str]:
    """The keys that the table at `location` may have."""
    current: type[Section] | None = model
    for part in location:
        if isinstance(part, int) or current is None:
            continue
        fields = {field.alias or name: field for name, field in current.model_fields.items()}
        current = _section_in(fields[part].annotation) if part in fields else None
    return [] if current is None else [field.alias or name for name, field in current.model_fields.items()]


def _section_in(annotation: Any) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_in(part)) is not None), None)


# --- what holds in the end -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one outbox; `None` = unlimited."""

    max_count: int | None
    max_bytes: int | None
    max_age: float | None
    overflow: Overflow


@dataclass(frozen=True, slots=True)
class InboxLimits:
    """Limits of one inbox; `None` = unlimited."""

    max_count: int | None
    max_bytes: int | None
    max_age: float | None
    max_deliveries: int | None = None


@dataclass(frozen=True, slots=True)
class Reconnect:
    """How a connection comes back. `None` attempts = it never gives up."""

    attempts_until_contact: int | None
    attempts: int | None
    backoff_base: float
    backoff_max: float
    jitter: float
    connection_timeout: float
    heartbeat: float


Table = TypeVar("Table", QueueConfig, ReconnectConfig)


def merge(table: Table, *overrides: Table) -> Table:
    """`table` with the keys that were given in the overrides, the last one winning. Other keys of theirs are ignored."""
    known = type(table).model_fields
    given = {key: getattr(other, key) for other in overrides for key in other.model_fields_set if key in known}
    return table.model_copy(update=given)


def queue_limits(
    queue: QueueConfig, *overrides: QueueConfig, durability: Durability | None = None, plain: bool = False
) -> Limits:
    """The limits of an outbox under the global table and its overrides (service or connection, then channel).

    Limits that nobody set are those of the kind: on a link with durability `disk` only the bytes are limited and what
    does not fit is rejected; with `memory`, and towards `plain` peers, 1,000 messages of at most 60 s, oldest dropped.
    `durability` is the channel's own; `None` takes it from the tables.
    """
    merged = merge(queue, *overrides)
    on_disk = (durability or merged.durability) is Durability.DISK and not plain
    count = merged.max_queue_size or (math.inf if on_disk else 1_000)
    age = merged.max_message_age or (math.inf if on_disk else 60.0)
    return Limits(
        max_count=limit(count),
        max_bytes=limit(merged.max_queue_bytes or MAX_QUEUE_BYTES),
        max_age=None if age == math.inf else age,
        overflow=merged.overflow or ("reject" if on_disk else "drop_oldest"),
    )


def inbox_limits(queue: QueueConfig, *overrides: QueueConfig) -> InboxLimits:
    """The limits of an inbox of a link. (A plain peer's inbox has the limits of its queue: `queue_limits`.)"""
    merged = merge(queue, *overrides)
    age = None if merged.inbox_max_age == math.inf else merged.inbox_max_age
    size, size_bytes, deliveries = map(limit, (merged.inbox_size, merged.inbox_bytes, merged.max_deliveries))
    return InboxLimits(size, size_bytes, age, deliveries)


def resolve_reconnect(reconnect: ReconnectConfig, *overrides: ReconnectConfig, in_file: bool) -> Reconnect:
    """How a connection comes back under the global table and its own.

    Attempts that nobody set: without end once there has been a session, and from the beginning for a connection that
    stands in the file; ten until the first contact for one made over the socket (a wrong name must fail).
    """
    merged = merge(reconnect, *overrides)
    attempts = limit(merged.max_attempts or math.inf)
    first = 10 if merged.max_attempts is None and not in_file else attempts
    return Reconnect(
        attempts_until_contact=first,
        attempts=attempts,
        backoff_base=merged.backoff_base,
        backoff_max=merged.backoff_max,
        jitter=merged.jitter,
        connection_timeout=merged.connection_timeout,
        heartbeat=merged.heartbeat,
    )


def limit(value: float) -> int | None:
    """A limit of a section as the resolved records have it."""
    return None if value == math.inf else int(value)


@dataclass(frozen=True, slots=True)
class Paths:
    """Where a daemon looks without options."""

    config: Path
    state_dir: Path
    socket: Path


def default_paths(environ: Mapping[str, str], uid: int) -> Paths:
    """The paths for that environment and user; the directories of a unit (systemd.exec(5)) go first.

    Relative XDG directories count as not set, as their specification says.
    """
    root = uid == 0
    home = Path(environ.get("HOME") or "/nonexistent")

    def directory(variable: str, default: Path) -> Path:
        value = Path(environ.get(variable, ""))
        return value if value.is_absolute() else default

    config = Path("/etc") if root else directory("XDG_CONFIG_HOME", home / ".config")
    state = Path("/var/lib") if root else directory("XDG_STATE_HOME", home / ".local/state")
    runtime = Path("/run/rondevud") if root else directory("XDG_RUNTIME_DIR", Path(f"/run/user/{uid}"))

    def of_unit(kind: str, default: Path) -> Path:
        given = environ.get(f"{kind}_DIRECTORY", "").split(":")[0]  # systemd separates several by colons
        return Path(given) if given else default

    return Paths(
        config=of_unit("CONFIGURATION", config / "rondevud") / "config.toml",
        state_dir=of_unit("STATE", state / "rondevud"),
        socket=of_unit("RUNTIME", runtime) / "rondevud.sock",
    )
