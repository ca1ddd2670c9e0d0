"""What the daemon holds: connections and services, made, found by name and connection id, and forgotten."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple
from weakref import WeakValueDictionary

from rondevud.access import Subject
from rondevud.config import ChannelOptions, Config, ConnectionConfig, ServiceConfig
from rondevud.declarations import (
    channel_configurer,
    connection_from,
    connection_settings,
    service_from,
    service_settings,
)
from rondevud.durable.connection import DurableConnection
from rondevud.durable.ports import Configure
from rondevud.durable.service import DurableService
from rondevud.durable.session import DurableSession, Environment
from rondevud.durable.settings import ConnectionSettings
from rondevud.durable.states import ConnectionState
from rondevud.durable.visits import Visit
from rondevud.errors import RequestError, StoreError
from rondevud.events import EventBus, Scope
from rondevud.owners import Key, Owners
from rondevud.records import ChannelRecord, DeclarationKind, DeleteDeclaration, Role, SaveSession, SessionRecord
from rondevud.signalling.base import Signalling
from rondevud.transport.base import Engine

Options = ConnectionConfig | ServiceConfig


class Origin(StrEnum):
    """Where something was declared, which decides how long it stays declared."""

    FILE = "file"
    """In the configuration: as long as it stands there."""
    SOCKET = "socket"
    """By a program: until `close` or `withdraw`; it stands in the store."""
    EPHEMERAL = "ephemeral"
    """By a program, for as long as its socket is open; it stands in no file, nor does anything that belongs to it."""


class Declaration(NamedTuple):
    options: Options
    origin: Origin


class Holdings:
    """All connections and services, the declared ones and those that are only held."""

    def __init__(
        self, config: Config, environment: Environment, signalling: Signalling | None, engine: Engine, events: EventBus
    ) -> None:
        self.config = config
        self.environment = environment
        self.events = events
        self.by_name: dict[str, DurableConnection] = {}
        """The declared connections."""
        self.by_id: dict[str, DurableConnection] = {}
        """All of them: also those that are not declared any more, while something waits in them."""
        self.services: dict[str, DurableService] = {}
        """The declared services, by ``USER/FQN``."""
        self.undeclared: list[DurableService] = []
        """Services that are not declared any more, while they have sessions."""
        self.declared: dict[Key, Declaration] = {}
        self.stopping = False
        """Nothing is made, started or ended any more."""
        self.owners = Owners()
        """Of what is ephemeral."""
        self._signalling = signalling
        self._engine = engine
        self._changing: WeakValueDictionary[Key, asyncio.Lock] = WeakValueDictionary()
        self._in_memory = environment.in_memory()

    @property
    def signalling(self) -> Signalling:
        """Raises `RequestError` when there is none."""
        if self._signalling is None:
            raise RequestError("signalling", "no signalling server is configured: [signalling] url")
        return self._signalling

    @property
    def can_reach_out(self) -> bool:
        """Whether there is a signalling server: nothing can be made without."""
        return self._signalling is not None

    def refuse_if_stopping(self) -> None:
        """Raises ``stopping`` when the daemon is: what is begun now would be stopped by nobody."""
        if self.stopping:
            raise RequestError("stopping", "the daemon is stopping")

    def changing(self, kind: DeclarationKind, name: str) -> asyncio.Lock:
        """Held by who changes one declared thing; it may be held over drains and requests, others go on meanwhile."""
        return self._changing.setdefault((kind, name), asyncio.Lock())

    # --- connections -----------------------------------------------------------------------------------------------

    async def new_connection(self, options: ConnectionConfig, origin: Origin) -> DurableConnection:
        """A declared connection with a new session. Raises `StoreError`."""
        connection_id = f"conn-{secrets.token_hex(8)}"
        record = SessionRecord(connection_id, Role.CONNECTING, options.name, b"", b"", target=options.target)
        await self._environment_of(origin).disk.execute(SaveSession(record))
        return self.add_connection(options, origin, record, [])

    def add_connection(
        self, options: ConnectionConfig, origin: Origin, record: SessionRecord, channels: list[ChannelRecord]
    ) -> DurableConnection:
        """A declared connection with a session of the store."""
        connection = self._make_connection(options, origin, record, channels)
        self._enlist(options, origin, connection)
        return connection

    def hold_connection(self, record: SessionRecord, channels: list[ChannelRecord]) -> DurableConnection:
        """The session of a connection that is not declared any more: it can be read and purged."""
        head, _, tail = record.target.partition("/")
        target = {"username": head, "fqn": tail} if "@" in tail else {"uuid": tail}
        options = connection_from(record.declaration, target)
        connection = self._make_connection(options, Origin.SOCKET, record, channels)
        self.by_id[record.connection_id] = connection
        return connection

    def hold_declared(self, connection: DurableConnection) -> None:
        """It is not declared any more; what waits in it is kept, and goes on when it is declared again."""
        name = connection.settings.name
        del self.by_name[name]
        self._undeclare(DeclarationKind.CONNECTION, name)
        give_up_undeclared(connection)

    def reconfigure_connection(self, options: ConnectionConfig, origin: Origin) -> DurableConnection:
        """Other options of a declared connection with the same target."""
        connection = self.by_name[options.name]
        connection.reconfigure(*self._settings_of(options, origin))
        self._enlist(options, origin, connection)
        return connection

    def take_over_connection(self, options: ConnectionConfig, origin: Origin) -> DurableConnection | None:
        """The held connection of that name and target, which is declared again: it goes on when it is started."""
        for connection in self.by_id.values():
            has = connection.settings
            held = self.by_name.get(has.name) is not connection and connection.state is not ConnectionState.CLOSED
            if held and (has.name, has.target) == (options.name, options.target):
                connection.reconfigure(*self._settings_of(options, origin))
                self._enlist(options, origin, connection)
                return connection
        return None

    def _enlist(self, options: ConnectionConfig, origin: Origin, connection: DurableConnection) -> None:
        self.declared[DeclarationKind.CONNECTION, options.name] = Declaration(options, origin)
        self.by_name[options.name] = self.by_id[connection.connection_id] = connection

    def _make_connection(
        self, options: ConnectionConfig, origin: Origin, record: SessionRecord, channels: list[ChannelRecord]
    ) -> DurableConnection:
        settings, configure = self._settings_of(options, origin)
        return DurableConnection(
            settings,
            record,
            channels,
            environment=self._environment_of(origin),
            signalling=self.signalling,
            engine=self._engine,
            configure=configure,
        )

    def _settings_of(self, options: ConnectionConfig, origin: Origin) -> tuple[ConnectionSettings, Configure]:
        channels: dict[str, ChannelOptions] = {channel.label: channel for channel in options.channels}
        return (
            connection_settings(self.config, options, in_file=origin is Origin.FILE),
            channel_configurer(self.config, options.queue, channels, ephemeral=origin is Origin.EPHEMERAL),
        )

    def _environment_of(self, origin: Origin) -> Environment:
        return self._in_memory if origin is Origin.EPHEMERAL else self.environment

    # --- services --------------------------------------------------------------------------------------------------

    def add_service(self, options: ServiceConfig, origin: Origin) -> DurableService:
        """A declared service; with the sessions that are held for its name, if there are some."""
        service = None if origin is Origin.EPHEMERAL else self._held_service(options.name)
        if service is None:
            service = self._make_service(options, origin)
        else:
            self.undeclared.remove(service)
            service.release()
            self._reconfigure(service, options, origin)
        self.services[options.name] = service
        self.declared[DeclarationKind.SERVICE, options.name] = Declaration(options, origin)
        return service

    def reconfigure_service(self, options: ServiceConfig, origin: Origin) -> None:
        """Other options of a declared service."""
        self._reconfigure(self.services[options.name], options, origin)
        self.declared[DeclarationKind.SERVICE, options.name] = Declaration(options, origin)

    def _reconfigure(self, service: DurableService, options: ServiceConfig, origin: Origin) -> None:
        service.reconfigure(service_settings(self.config, options), self._channels_of(options, origin))

    def _channels_of(self, options: ServiceConfig, origin: Origin) -> Configure:
        return channel_configurer(self.config, options.queue, {}, ephemeral=origin is Origin.EPHEMERAL)

    def _held_service(self, name: str) -> DurableService | None:
        return next((held for held in self.undeclared if held.name == name and not held.ephemeral), None)

    def undeclared_service(self, name: str) -> DurableService:
        """What holds the sessions of a service that is not declared any more, as long as a declared one would."""
        service = self._held_service(name)
        if service is not None:
            return service
        username, _, fqn = name.partition("/")
        service = self._make_service(service_from(username, fqn, {}), Origin.SOCKET)
        service.stopped = True
        self.undeclared.append(service)
        return service

    def _make_service(self, options: ServiceConfig, origin: Origin) -> DurableService:
        return DurableService(
            service_settings(self.config, options),
            environment=self._environment_of(origin),
            signalling=self.signalling,
            engine=self._engine,
            configure=self._channels_of(options, origin),
        )

    def all_services(self) -> list[DurableService]:
        return [*self.services.values(), *self.undeclared]

    # --- finding ---------------------------------------------------------------------------------------------------

    def connection(self, target: str) -> DurableConnection:
        """By name or id. Raises ``unknown_target``, like all that find."""
        connection = self.by_name.get(target) or self.by_id.get(target)
        if connection is None or (over(connection.session) and not connection.ending):
            raise RequestError("unknown_target", f"no connection or service is called {target!r}")
        return connection

    def service(self, name: str) -> DurableService:
        service = self.services.get(name)
        if service is None:
            raise RequestError("unknown_target", f"no service {name!r} is declared here")
        return service

    def services_of(self, username: str) -> list[str]:
        """The names of a user's declared services."""
        return [name for name, service in self.services.items() if service.settings.username == username]

    def visit(self, target: str) -> tuple[DurableService, Visit] | None:
        """A connection that a service took, by its id."""
        for service in self.all_services():
            if target in service.visits and not over(service.visits[target].session):
                return service, service.visits[target]
        return None

    def session(self, target: str) -> DurableSession:
        """Of either side."""
        if target.startswith("service:"):
            raise RequestError("bad_target", "this needs a connection, not a service")
        found = self.visit(target)
        return found[1].session if found is not None else self.connection(target).session

    def sessions(self, target: str | None) -> list[DurableSession]:
        """Of a connection, of a service, or all."""
        if target is None:
            visits = [visit for service in self.all_services() for visit in service.visits.values()]
            return [made.session for made in self.by_id.values()] + [visit.session for visit in visits]
        if target.startswith("service:"):
            return [visit.session for visit in self.service(target[8:]).visits.values()]
        return [self.session(target)]

    def subject(self, target: str) -> Subject | None:
        """What rules of access say of a target; None for one that does not exist. Knows also what is over."""
        if target.startswith("service:"):
            return Subject(service=target[8:])
        connection = self.by_name.get(target) or self.by_id.get(target)
        if connection is not None:
            return Subject(connection=connection.settings.name)
        taken = next((service for service in self.all_services() if target in service.visits), None)
        return None if taken is None else Subject(service=taken.name)

    def resolve(self, target: str) -> Scope:
        """The events of a target."""
        if target.startswith("service:"):
            return Scope(service=self.service(target[8:]).name)
        return Scope(connection_id=self.session(target).connection_id)

    # --- forgetting ------------------------------------------------------------------------------------------------

    def forget_name(self, connection: DurableConnection) -> None:
        """A closed connection's name is free again, unless it has been given to another one."""
        name = connection.settings.name
        if self.by_name.get(name) is connection:
            del self.by_name[name]
            self._undeclare(DeclarationKind.CONNECTION, name)
            if not connection.ephemeral:
                self.environment.disk.submit(DeleteDeclaration(DeclarationKind.CONNECTION, name))

    def forget_service(self, service: DurableService) -> None:
        """It is not declared any more; its sessions stay, as far as something waits in them or they are held."""
        del self.services[service.name]
        self._undeclare(DeclarationKind.SERVICE, service.name)
        self.undeclared.append(service)

    def _undeclare(self, kind: DeclarationKind, name: str) -> None:
        self.declared.pop((kind, name), None)
        self.owners.forget((kind, name))

    def prune(self) -> None:
        """Forget closed connections in which nothing waits any more, once the goodbyes are said."""
        for connection in list(self.by_id.values()):
            if over(connection.session) and not connection.ending and not connection.session.linked:
                del self.by_id[connection.connection_id]
                self.forget_name(connection)
                connection.session.forget()
        for service in self.all_services():
            if not any(visit.session.record.closed and visit.session.linked for visit in service.visits.values()):
                service.forget_read()
        for service in [service for service in self.undeclared if not service.visits]:
            self.undeclared.remove(service)
            self.environment.past.services.update(service.counters)
            service.release()


def give_up_undeclared(connection: DurableConnection) -> None:
    """Nobody dials for it: what waits can be read and purged, and goes on when it is declared again."""
    unsent = sum(channel.outbox.count for channel in connection.session.channels.values())
    message = f"it is not declared any more, with {unsent} messages to be sent; declaring it again lets it go on"
    connection.give_up("undeclared", message)


def over(session: DurableSession) -> bool:
    """Whether a session is closed and nothing waits in it any more, or is set aside."""
    return session.record.closed and not any(channel.keeps for channel in session.channels.values())


@contextlib.contextmanager
def store_errors() -> Iterator[None]:
    """What a program is told when the store fails at its request."""
    try:
        yield
    except StoreError as error:
        raise RequestError(getattr(error, "code", "store_failed"), str(error)) from error
