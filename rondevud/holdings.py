"""What the daemon holds: connections and services, made, found by name and connection id, and forgotten."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Iterator
from weakref import WeakValueDictionary

from rondevud.config import Config, ConnectionConfig, ServiceConfig
from rondevud.declarations import channel_configurer, connection_settings, service_from, service_settings
from rondevud.durable.connection import DurableConnection
from rondevud.durable.ports import Configure
from rondevud.durable.service import DurableService, Visit
from rondevud.durable.session import DurableSession, Environment
from rondevud.durable.states import ConnectionState
from rondevud.errors import RequestError, StoreError
from rondevud.events import EventBus, Scope
from rondevud.records import ChannelRecord, DeclarationKind, DeleteDeclaration, Role, SaveSession, SessionRecord
from rondevud.signalling.base import Signalling
from rondevud.transport.base import Engine

Declared = ConnectionConfig | ServiceConfig

NOWHERE = "00000000-0000-0000-0000-000000000000"
"""UUID that a connection which is only held has as its target."""


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
        self.declared: dict[tuple[DeclarationKind, str], Declared] = {}
        self._signalling = signalling
        self._engine = engine
        self._changing: WeakValueDictionary[tuple[DeclarationKind, str], asyncio.Lock] = WeakValueDictionary()

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

    def changing(self, kind: DeclarationKind, name: str) -> asyncio.Lock:
        """Held by who changes one declared thing; it may be held over drains and requests, others go on meanwhile."""
        return self._changing.setdefault((kind, name), asyncio.Lock())

    # --- connections -----------------------------------------------------------------------------------------------

    async def new_record(self, name: str) -> SessionRecord:
        """A session of a connection that is new. Raises `StoreError`."""
        record = SessionRecord(f"conn-{secrets.token_hex(8)}", Role.CONNECTING, name, b"", b"")
        await self.environment.disk.execute(SaveSession(record))
        return record

    def add_connection(
        self, declared: ConnectionConfig, record: SessionRecord, channels: list[ChannelRecord], *, in_file: bool
    ) -> DurableConnection:
        connection = self._make_connection(declared, record, channels, in_file=in_file)
        self._enlist(declared, connection)
        return connection

    def hold_connection(self, record: SessionRecord, channels: list[ChannelRecord]) -> DurableConnection:
        """The session of a connection that is not declared any more: it can be read and purged."""
        declared = ConnectionConfig(name=record.declaration, uuid=NOWHERE)
        connection = self.by_id[record.connection_id] = self._make_connection(declared, record, channels, in_file=False)
        return connection

    def take_over_connection(self, declared: ConnectionConfig, *, in_file: bool) -> DurableConnection | None:
        """The held connection of that name, which is declared again: it goes on when it is started."""
        for connection in self.by_id.values():
            held = self.by_name.get(declared.name) is not connection
            if held and connection.settings.name == declared.name and connection.state is not ConnectionState.CLOSED:
                settings = connection_settings(self.config, declared, in_file=in_file)
                connection.reconfigure(settings, self._channels_of(declared))
                self._enlist(declared, connection)
                return connection
        return None

    def _enlist(self, declared: ConnectionConfig, connection: DurableConnection) -> None:
        self.declared[DeclarationKind.CONNECTION, declared.name] = declared
        self.by_name[declared.name] = self.by_id[connection.connection_id] = connection

    def _make_connection(
        self, declared: ConnectionConfig, record: SessionRecord, channels: list[ChannelRecord], *, in_file: bool
    ) -> DurableConnection:
        return DurableConnection(
            connection_settings(self.config, declared, in_file=in_file),
            record,
            channels,
            environment=self.environment,
            signalling=self.signalling,
            engine=self._engine,
            configure=self._channels_of(declared),
        )

    def _channels_of(self, declared: ConnectionConfig) -> Configure:
        return channel_configurer(
            self.config, declared.queue, {channel.label: channel for channel in declared.channels}
        )

    # --- services --------------------------------------------------------------------------------------------------

    def add_service(self, declared: ServiceConfig) -> DurableService:
        """A declared service; with the sessions that are held for its name, if there are some."""
        service = next((held for held in self.undeclared if held.name == declared.name), None)
        if service is None:
            service = self._make_service(declared)
        else:
            self.undeclared.remove(service)
            service.release()
            configure = channel_configurer(self.config, declared.queue, {})
            service.reconfigure(service_settings(self.config, declared), configure)
        self.services[declared.name] = service
        self.declared[DeclarationKind.SERVICE, declared.name] = declared
        return service

    def undeclared_service(self, name: str) -> DurableService:
        """What holds the sessions of a service that is not declared any more, as long as a declared one would."""
        for service in self.undeclared:
            if service.name == name:
                return service
        username, _, fqn = name.partition("/")
        service = self._make_service(service_from(username, fqn, {}))
        service.stopped = True
        self.undeclared.append(service)
        return service

    def _make_service(self, declared: ServiceConfig) -> DurableService:
        return DurableService(
            service_settings(self.config, declared),
            environment=self.environment,
            signalling=self.signalling,
            engine=self._engine,
            configure=channel_configurer(self.config, declared.queue, {}),
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
            self.declared.pop((DeclarationKind.CONNECTION, name), None)
            self.environment.disk.submit(DeleteDeclaration(DeclarationKind.CONNECTION, name))

    def forget_service(self, service: DurableService) -> None:
        """It has been withdrawn: what waits in its connections can be read."""
        del self.services[service.name]
        self.declared.pop((DeclarationKind.SERVICE, service.name), None)
        self.undeclared.append(service)

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
            service.release()


def over(session: DurableSession) -> bool:
    """Whether a session is closed and nothing waits in it any more."""
    return session.record.closed and not any(channel.waiting for channel in session.channels.values())


@contextlib.contextmanager
def store_errors() -> Iterator[None]:
    """What a program is told when the store fails at its request."""
    try:
        yield
    except StoreError as error:
        raise RequestError(getattr(error, "code", "store_failed"), str(error)) from error
