"""What the daemon keeps, as the methods of the socket see it: connections and services, by name and by connection id."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Literal
from weakref import WeakValueDictionary

import msgpack

from rondevud import rows
from rondevud.config import Config, ConnectionConfig, ServiceConfig
from rondevud.declarations import (
    channel_configurer,
    connection_from,
    connection_settings,
    differences,
    service_from,
    service_settings,
)
from rondevud.durable.channel import DurableChannel
from rondevud.durable.connection import DurableConnection
from rondevud.durable.service import DurableService, Visit
from rondevud.durable.session import DurableSession, Environment
from rondevud.durable.states import ConnectionState
from rondevud.errors import RequestError, SignallingError, SignallingRejected, StoreError
from rondevud.events import Event, EventBus, Scope
from rondevud.records import (
    ChannelRecord,
    Declaration,
    DeclarationKind,
    DeleteDeclaration,
    DeleteSession,
    LoadDeclarations,
    LoadSessions,
    Role,
    SaveDeclaration,
    SaveSession,
    SessionRecord,
)
from rondevud.service_channel import ServiceChannel
from rondevud.signalling.base import Signalling
from rondevud.transport.base import Engine

logger = logging.getLogger(__name__)

DRAIN = 10.0
"""Seconds that a connection which is closed waits for acknowledgements, unless told otherwise."""

ENDINGS_WAIT = 5.0
"""Seconds that a stop leaves to closes and withdrawals that are under way."""

PUBLISH_WAIT = 10.0
"""Seconds that `expose` waits for the publication before it answers without one."""

Data = dict[str, Any]


class House:
    """All declared things. `load`, then `start`; `stop` at the end."""

    def __init__(
        self, config: Config, environment: Environment, signalling: Signalling | None, engine: Engine, events: EventBus
    ) -> None:
        self.config = config
        self.events = events
        self.instance = secrets.token_hex(8)
        self.version = environment.version
        self.clients: Callable[[], list[Data]] = list
        self.signalling_url = config.signalling.url
        self._environment = environment
        self._signalling = signalling
        self._engine = engine
        self._started = time.monotonic()
        self._by_name: dict[str, DurableConnection] = {}
        self._by_id: dict[str, DurableConnection] = {}
        self._services: dict[str, DurableService] = {}
        self._withdrawn: list[DurableService] = []
        """Services that are gone but for closed connections with something to read."""
        self._declared: dict[tuple[DeclarationKind, str], ConnectionConfig | ServiceConfig] = {}
        self._holding: dict[DurableService, asyncio.Task[None]] = {}
        """What counts the absence of the peers of undeclared services."""
        self._unusable: set[tuple[DeclarationKind, str]] = set()
        """What stands in the store and cannot be used by this version; its sessions stay there untouched."""
        self._changing: WeakValueDictionary[tuple[DeclarationKind, str], asyncio.Lock] = WeakValueDictionary()
        """One for each declared thing that somebody is changing."""
        self._endings: dict[str, asyncio.Task[None]] = {}
        """Closes and withdrawals under way, by what they end."""

    # --- life ------------------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Everything the file and the store declare, with the sessions they had. Reads no message."""
        store = self._environment.disk
        loaded = await store.execute(LoadSessions())
        channels: dict[str, list[ChannelRecord]] = {}
        for channel in loaded.channels:
            channels.setdefault(channel.connection_id, []).append(channel)
        for damaged in loaded.damaged:
            self.events.publish("gap", {"reason": "damaged", "count": None}, connection_id=damaged)
        services, connections = await self._declarations()
        for service in services:
            self._add_service(service)
        records = {(record.role, record.declaration): record for record in loaded.sessions if not record.closed}
        closed = {record.declaration for record in loaded.sessions if record.closed and record.role is Role.CONNECTING}
        for connection, in_file in connections:
            if connection.name in closed and (Role.CONNECTING, connection.name) not in records and not in_file:
                store.submit(DeleteDeclaration(DeclarationKind.CONNECTION, connection.name))  # closed by the peer
                continue
            record = records.pop((Role.CONNECTING, connection.name), None) or await self._new_record(connection.name)
            self._add_connection(connection, record, channels.get(record.connection_id, []), in_file=in_file)
        for record in loaded.sessions:
            if (_kind(record.role), record.declaration) in self._unusable:
                continue
            if record.role is Role.SERVICE and record.declaration in self._services:
                self._services[record.declaration].restore(record, channels.get(record.connection_id, []))
            elif record.connection_id not in self._by_id:
                self._restore_rest(record, channels.get(record.connection_id, []))

    async def _declarations(self) -> tuple[list[ServiceConfig], list[tuple[ConnectionConfig, bool]]]:
        """What the file declares, then what was declared over the socket and does not stand in the file."""
        services = list(self.config.services)
        connections = [(connection, True) for connection in self.config.connections]
        names = {(DeclarationKind.SERVICE, service.name) for service in services}
        names |= {(DeclarationKind.CONNECTION, connection.name) for connection, _ in connections}
        for declaration in await self._environment.disk.execute(LoadDeclarations()):
            if (declaration.kind, declaration.name) in names:
                continue
            try:
                declared = _declared(declaration)
            except RequestError as error:
                self._unusable.add((declaration.kind, declaration.name))
                logger.error("The declaration of %s is not used: %s", declaration.name, error)  # noqa: TRY400 - as said
                continue
            if isinstance(declared, ServiceConfig):
                services.append(declared)
            else:
                connections.append((declared, False))
        return services, connections

    async def start(self) -> None:
        """Publish and dial. What fails at one of them is logged and stops no other."""
        for service in self._services.values():
            service.start()
        for service in self._withdrawn:
            work = service._absence_loop()  # all that still runs of it
            self._holding[service] = asyncio.get_running_loop().create_task(work, name=f"hold {service.name}")
        for connection in list(self._by_name.values()):
            try:
                await connection.start()
            except Exception:
                logger.exception("The connection %s could not be started", connection.settings.name)

    async def stop(self) -> None:
        """Tell peers to come back, and let go. Declarations stay. What fails at one of them is logged."""
        if self._endings:
            await asyncio.wait(self._endings.values(), timeout=ENDINGS_WAIT)
        for service in list(self._holding):
            self._release(service)
        outcomes = await asyncio.gather(
            *(connection.stop() for connection in self._by_id.values()),
            *(service.stop() for service in self._all_services()),
            return_exceptions=True,
        )
        for session in self._sessions(None):
            session.stop_reading()
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                logger.error("Stopping failed", exc_info=outcome)
        if self._endings:
            for task in self._endings.values():
                task.cancel()
            await asyncio.wait(self._endings.values(), timeout=ENDINGS_WAIT)

    # --- declaring -------------------------------------------------------------------------------------------------

    async def _new_record(self, name: str) -> SessionRecord:
        record = SessionRecord(f"conn-{secrets.token_hex(8)}", Role.CONNECTING, name, b"", b"")
        await self._environment.disk.execute(SaveSession(record))
        return record

    def _need_signalling(self) -> Signalling:
        if self._signalling is None:
            raise RequestError("signalling", "no signalling server is configured: [signalling] url")
        return self._signalling

    def _add_connection(
        self, declared: ConnectionConfig, record: SessionRecord, channels: list[ChannelRecord], *, in_file: bool
    ) -> DurableConnection:
        connection = self._make_connection(declared, record, channels, in_file=in_file)
        self._declared[DeclarationKind.CONNECTION, declared.name] = declared
        self._by_name[declared.name] = self._by_id[record.connection_id] = connection
        return connection

    def _make_connection(
        self, declared: ConnectionConfig, record: SessionRecord, channels: list[ChannelRecord], *, in_file: bool
    ) -> DurableConnection:
        return DurableConnection(
            connection_settings(self.config, declared, in_file=in_file),
            record,
            channels,
            environment=self._environment,
            signalling=self._need_signalling(),
            engine=self._engine,
            configure=channel_configurer(
                self.config, declared.queue, {channel.label: channel for channel in declared.channels}
            ),
        )

    def _restore_rest(self, record: SessionRecord, channels: list[ChannelRecord]) -> None:
        """A session that is closed, or whose declaration is gone: it is kept while something waits in it."""
        if self._signalling is None:
            return  # what waits there stays in the store until a signalling server is configured again
        if record.role is Role.SERVICE and not record.closed:
            self._undeclared_service(record.declaration).restore(record, channels)
            return
        unsent = 0 if record.closed else sum(channel.out_count for channel in channels)
        if not unsent and not any(channel.in_count for channel in channels):
            self._environment.disk.submit(DeleteSession(record.connection_id))
        elif record.role is Role.SERVICE:
            self._undeclared_service(record.declaration).restore(record, channels)
        else:
            self._hold_connection(record, channels, unsent)

    def _hold_connection(self, record: SessionRecord, channels: list[ChannelRecord], unsent: int) -> None:
        """Nobody dials for it: what waits can be read and purged, and goes on when its name is declared again."""
        declared = ConnectionConfig(name=record.declaration, uuid="00000000-0000-0000-0000-000000000000")
        connection = self._make_connection(declared, record, channels, in_file=False)
        self._by_id[record.connection_id] = connection
        if record.closed:
            connection.session.end()
        else:
            connection.give_up("undeclared", "it is not declared any more; declaring it again lets it go on")
            logger.warning("%s is not declared any more: %d messages wait to be sent", record.declaration, unsent)

    async def _take_held(self, name: str) -> tuple[SessionRecord, list[ChannelRecord]] | None:
        """The session of an undeclared connection of that name, which is declared again."""
        for connection in self._by_id.values():
            if connection.settings.name == name and not connection.session.record.closed:
                del self._by_id[connection.connection_id]
                connection.session.stop()
                loaded = await self._environment.disk.execute(LoadSessions())
                record = next(r for r in loaded.sessions if r.connection_id == connection.connection_id)
                return record, [c for c in loaded.channels if c.connection_id == record.connection_id]
        return None

    def _undeclared_service(self, name: str) -> DurableService:
        """Holds the sessions of a service that is not declared any more, as long as a declared one would."""
        for service in self._withdrawn:
            if service.name == name:
                return service
        username, _, fqn = name.partition("/")
        service = self._make_service(service_from(username, fqn, {}))
        service.stopped = True
        self._withdrawn.append(service)
        return service

    def _add_service(self, declared: ServiceConfig) -> DurableService:
        service = self._services[declared.name] = self._make_service(declared)
        self._declared[DeclarationKind.SERVICE, declared.name] = declared
        return service

    def _make_service(self, declared: ServiceConfig) -> DurableService:
        return DurableService(
            service_settings(self.config, declared),
            environment=self._environment,
            signalling=self._need_signalling(),
            engine=self._engine,
            configure=channel_configurer(self.config, declared.queue, {}),
        )

    async def _save(self, kind: DeclarationKind, declared: ConnectionConfig | ServiceConfig) -> None:
        said = declared.model_dump(mode="json", exclude_unset=True, exclude={"name"})
        await self._environment.disk.execute(SaveDeclaration(Declaration(kind, declared.name, msgpack.packb(said))))

    def _lock(self, kind: DeclarationKind, name: str) -> asyncio.Lock:
        """Held by who changes one declared thing; it may be held over drains and requests, others go on meanwhile."""
        return self._changing.setdefault((kind, name), asyncio.Lock())

    async def _see_through(self, what: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do `work`, once at a time for `what`, to its end even if the program that asked for it leaves."""
        task = self._endings.get(what)
        if task is None:
            task = self._endings[what] = asyncio.get_running_loop().create_task(work(), name=what)
            task.add_done_callback(self._seen_through)
        await asyncio.wait({task})
        if task.cancelled():
            raise RequestError("stopping", "the daemon is stopping")
        with _store_errors():
            task.result()

    def _seen_through(self, task: asyncio.Task[None]) -> None:
        self._endings.pop(task.get_name(), None)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, (RequestError, StoreError)):
            logger.warning("%s: %s", task.get_name(), error)
        elif error is not None:
            logger.error("%s failed", task.get_name(), exc_info=error)

    def _same(self, declared: ConnectionConfig | ServiceConfig) -> None:
        """Raises ``conflict`` when it is declared already with other options."""
        kind = DeclarationKind.SERVICE if isinstance(declared, ServiceConfig) else DeclarationKind.CONNECTION
        differing = differences(self._declared[kind, declared.name], declared)
        if differing:
            keys = ", ".join(differing)
            raise RequestError("conflict", f"{declared.name} is declared with other {keys}", {"keys": differing})

    async def connect(
        self,
        *,
        username: str | None,
        fqn: str | None,
        uuid: str | None,
        name: str | None,
        options: Data,
        ephemeral: bool,
        owner: object,
    ) -> Data:
        _refuse_ephemeral(ephemeral)
        self._need_signalling()
        declared = connection_from(name, username, fqn, uuid, options)
        async with self._lock(DeclarationKind.CONNECTION, declared.name):
            connection = await self._living(declared.name)
            created = connection is None
            if connection is None:
                record, channels = await self._declare_connection(declared)
                connection = self._add_connection(declared, record, channels, in_file=False)
                await connection.start()
            else:
                self._same(declared)
                if connection.state is ConnectionState.FAILED:
                    connection.reconnect()
        return {
            "connection_id": connection.connection_id,
            "name": declared.name,
            "state": str(connection.state),
            "created": created,
        }

    async def _declare_connection(self, declared: ConnectionConfig) -> tuple[SessionRecord, list[ChannelRecord]]:
        with _store_errors():
            await self._save(DeclarationKind.CONNECTION, declared)
            try:
                return await self._take_held(declared.name) or (await self._new_record(declared.name), [])
            except StoreError:
                self._environment.disk.submit(DeleteDeclaration(DeclarationKind.CONNECTION, declared.name))
                raise

    async def _living(self, name: str) -> DurableConnection | None:
        """The connection of that name, unless it has ended; waits for an end that is under way."""
        connection = self._by_name.get(name)
        if connection is None:
            return None
        await connection.wait_ended()
        if connection.state is not ConnectionState.CLOSED:
            return connection
        self._forget_name(connection)
        return None

    async def expose(self, username: str, fqn: str, options: Data, ephemeral: bool, owner: object) -> Data:
        _refuse_ephemeral(ephemeral)
        declared = service_from(username, fqn, options)
        async with self._lock(DeclarationKind.SERVICE, declared.name):
            service = self._services.get(declared.name)
            started = created = service is None
            if service is None:
                await self._claim_for(username)
                with _store_errors():
                    await self._save(DeclarationKind.SERVICE, declared)
                service = self._add_service(declared)
                service.start()
            else:
                self._same(declared)
                if service.stopped:  # withdrawn, and its connections kept
                    with _store_errors():
                        await self._save(DeclarationKind.SERVICE, declared)
                    service.start()
                    started = True
        if started:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PUBLISH_WAIT):
                    await service.published.wait()
        publication = service.pool.publication
        return {
            "service_id": publication.service_id if publication else None,
            "uuid": publication.uuid if publication else None,
            "expires_at": publication.expires_at if publication else None,
            "created": created,
        }

    async def _claim_for(self, username: str) -> None:
        """The name of a service that is being declared; a server that is down only delays the publication."""
        try:
            await self._need_signalling().claim(username)
        except SignallingRejected as error:
            code = error.code if error.code == "name_taken" else "signalling"
            raise RequestError(code, str(error)) from error
        except SignallingError:
            return

    async def claim(self, username: str) -> Data:
        expires_at = await self._ask(self._need_signalling().claim(username))
        return {"username": username, "expires_at": expires_at}

    async def check(self, username: str) -> Data:
        answer: Data = await self._ask(self._need_signalling().check(username))
        return answer

    async def _ask(self, question: Any) -> Any:
        try:
            return await question
        except SignallingRejected as error:
            code = error.code if error.code in {"name_taken", "not_found"} else "signalling"
            raise RequestError(code, str(error)) from error
        except SignallingError as error:
            raise RequestError("signalling", str(error)) from error

    async def withdraw(self, username: str, fqn: str, drain: float | None, keep_connections: bool) -> Data:
        name = f"{username}/{fqn}"
        self._service(name)
        seconds = DRAIN if drain is None else drain
        await self._see_through(
            f"withdraw {name} {keep_connections}", lambda: self._withdraw(name, seconds, keep_connections)
        )
        return {}

    async def _withdraw(self, name: str, drain: float, keep_connections: bool) -> None:
        async with self._lock(DeclarationKind.SERVICE, name):
            service = self._service(name)
            await self._environment.disk.execute(DeleteDeclaration(DeclarationKind.SERVICE, name))
            await service.withdraw(drain, keep_connections=keep_connections)
            if not keep_connections:
                del self._services[name]
                self._declared.pop((DeclarationKind.SERVICE, name), None)
                self._withdrawn.append(service)
                self._prune()

    async def close(self, target: str, drain: float | None) -> Data:
        seconds = DRAIN if drain is None else drain
        if target.startswith("service:"):
            raise RequestError("bad_target", "a service is withdrawn, not closed")
        service, visit = self._visit(target)
        if service is not None and visit is not None:
            await self._see_through(f"close {target}", lambda: _close_visit(service, visit, seconds))
            return {}
        connection = self._connection(target)
        what = f"close {connection.connection_id}"
        await self._see_through(what, lambda: self._close_connection(connection, seconds))
        return {}

    async def _close_connection(self, connection: DurableConnection, drain: float) -> None:
        await connection.close(drain)
        self._forget_name(connection)
        self._prune()

    def _forget_name(self, connection: DurableConnection) -> None:
        """A closed connection's name is free again, unless it has been given to another one."""
        name = connection.settings.name
        if self._by_name.get(name) is connection:
            del self._by_name[name]
            self._declared.pop((DeclarationKind.CONNECTION, name), None)
            self._environment.disk.submit(DeleteDeclaration(DeclarationKind.CONNECTION, name))

    def _prune(self) -> None:
        """Forget closed connections in which nothing waits any more, once the goodbyes are said."""
        for connection in list(self._by_id.values()):
            if _over(connection.session) and not connection.ending and not connection.session.linked:
                del self._by_id[connection.connection_id]
                self._forget_name(connection)
                connection.session.forget()
        for service in self._all_services():
            if not any(visit.session.record.closed and visit.session.linked for visit in service.visits.values()):
                service.forget_read()
        for service in [service for service in self._withdrawn if not service.visits]:
            self._withdrawn.remove(service)
            self._release(service)

    def _release(self, service: DurableService) -> None:
        task = self._holding.pop(service, None)
        if task is not None:
            task.cancel()

    def _all_services(self) -> list[DurableService]:
        return [*self._services.values(), *self._withdrawn]

    async def reconnect(self, target: str) -> Data:
        service, visit = self._visit(target)
        if service is not None and visit is not None:
            visit.session.cut()
            return {"state": str(visit.state)}
        connection = self._connection(target)
        if self._by_name.get(connection.settings.name) is not connection:
            raise RequestError("failed", f"{target} is not declared any more")
        connection.reconnect()
        return {"state": str(connection.state)}

    def owner_gone(self, owner: object) -> None:
        """The socket that made declarations is closed; they outlive it."""

    # --- finding ---------------------------------------------------------------------------------------------------

    def _connection(self, target: str) -> DurableConnection:
        connection = self._by_name.get(target) or self._by_id.get(target)
        if connection is None or (_over(connection.session) and not connection.ending):
            raise RequestError("unknown_target", f"no connection or service is called {target!r}")
        return connection

    def _service(self, name: str) -> DurableService:
        service = self._services.get(name)
        if service is None:
            raise RequestError("unknown_target", f"no service {name!r} is declared here")
        return service

    def _visit(self, target: str) -> tuple[DurableService | None, Visit | None]:
        for service in self._all_services():
            if target in service.visits and not _over(service.visits[target].session):
                return service, service.visits[target]
        return None, None

    def _session(self, target: str) -> DurableSession:
        if target.startswith("service:"):
            raise RequestError("bad_target", "this needs a connection, not a service")
        _, visit = self._visit(target)
        return visit.session if visit is not None else self._connection(target).session

    def _sessions(self, target: str | None) -> list[DurableSession]:
        if target is None:
            visits = [visit for service in self._all_services() for visit in service.visits.values()]
            return [c.session for c in self._by_id.values()] + [visit.session for visit in visits]
        if target.startswith("service:"):
            return [visit.session for visit in self._service(target[8:]).visits.values()]
        return [self._session(target)]

    def resolve(self, target: str) -> Scope:
        if target.startswith("service:"):
            return Scope(service=self._service(target[8:]).name)
        return Scope(connection_id=self._session(target).connection_id)

    # --- channels --------------------------------------------------------------------------------------------------

    async def channel(self, target: str, label: str, options: Data | None, create: bool) -> Any:
        if target.startswith("service:"):
            if create:
                raise RequestError("bad_target", "a whole service can only be observed")
            return ServiceChannel(self._service(target[8:]), label, self.events)
        return await self._session(target).channel(label, options, create=create)

    def _known_channel(self, target: str, label: str) -> DurableChannel:
        session = self._session(target)
        channel = session.channels.get(label)
        if channel is None:
            raise RequestError("unknown_channel", f"{target} has no channel {label!r}")
        return channel

    async def close_channel(self, target: str, label: str) -> Data:
        channel = self._known_channel(target, label)
        channel.close()
        return {"state": str(channel.state)}

    async def queue(self, target: str, label: str) -> Data:
        return self._known_channel(target, label).facts()

    async def purge(self, target: str, label: str, direction: Literal["out", "in", "both"]) -> Data:
        purged = await self._known_channel(target, label).purge(direction)
        return {"purged": purged}

    def live_producers(self) -> frozenset[int]:
        """Ids of the named producers that programs have a handle on now, in either store."""
        channels = (channel for session in self._sessions(None) for channel in session.channels.values())
        return frozenset(id_ for channel in channels for id_ in channel.outbox.producers if id_ > 0)

    # --- looking ---------------------------------------------------------------------------------------------------

    async def status(self) -> Data:
        failing = self._environment.disk.failing
        return {
            "version": self.version,
            "instance": self.instance,
            "pid": os.getpid(),
            "uptime": round(time.monotonic() - self._started, 3),
            "signalling": self.signalling_url,
            "engine": self._engine.name,
            "services": len(self._services),
            "connections": len(self._by_id) + sum(len(service.visits) for service in self._all_services()),
            "connected": sum(session.connected for session in self._sessions(None)),
            "clients": len(self.clients()),
            "store": "ok" if failing is None else str(failing),
            "counters": dict(self._environment.counters),
        }

    def services(self) -> list[Data]:
        return [rows.of_service(service) for service in self._services.values()]

    def connections(self) -> list[Data]:
        self._prune()
        listed = [rows.of_connection(made) for made in self._by_id.values() if not _over(made.session)]
        for service in self._all_services():
            listed += [rows.of_visit(service, visit) for visit in service.visits.values() if not _over(visit.session)]
        return listed

    def channels(self, target: str) -> list[Data]:
        return [channel.facts() for session in self._sessions(target) for channel in session.channels.values()]

    def snapshot(self, target: str | None) -> list[Data]:
        listed = {row["connection_id"]: row for row in self.connections()}
        return [
            rows.snapshot(listed[session.connection_id], session)
            for session in self._sessions(target)
            if session.connection_id in listed
        ]

    async def why(self, target: str) -> Data:
        if target.startswith("service:"):
            return rows.of_service(self._service(target[8:]))
        session = self._session(target)
        row = next((row for row in self.connections() if row["connection_id"] == session.connection_id), None)
        if row is None:
            raise RequestError("unknown_target", f"{target} is closed")
        return row | {"counters": dict(session.machine.counters), "channels": self.channels(session.connection_id)}

    async def wait(self, target: str, what: Literal["connected", "drained"], timeout: float | None) -> Data:
        session = self._session(target)
        try:
            async with asyncio.timeout(timeout):
                if what == "drained":
                    await session.drained()
                else:
                    await self._connected(session)
        except TimeoutError:
            raise RequestError("timeout", f"{target} is not {what} after {timeout} s") from None
        return {"connection_id": session.connection_id}

    async def _connected(self, session: DurableSession) -> None:
        """Wait for a link. Raises ``closed`` or ``failed`` when there will be none."""
        ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def heard(event: Event) -> None:
            if event.name in {"connected", "closed", "failed"} and event.data.get("label") is None and not ended.done():
                ended.set_result(event.name)

        subscription = self.events.subscribe(Scope(connection_id=session.connection_id), heard)
        try:
            if session.connected:
                return
            refusal = session.refusal or (await ended, f"{session.connection_id} is not tried any more")
        finally:
            subscription.close()
        if refusal[0] != "connected":
            raise RequestError(*refusal)


@contextlib.contextmanager
def _store_errors() -> Iterator[None]:
    """What a program is told when the store fails at its request."""
    try:
        yield
    except StoreError as error:
        raise RequestError(getattr(error, "code", "store_failed"), str(error)) from error


def _over(session: DurableSession) -> bool:
    """Whether a session is closed and nothing waits in it any more."""
    return session.record.closed and not any(channel.waiting for channel in session.channels.values())


async def _close_visit(service: DurableService, visit: Visit, drain: float) -> None:
    await service.close(visit.session.connection_id, drain)
    await visit.session.goodbyes_said()


def _kind(role: Role) -> DeclarationKind:
    return DeclarationKind.SERVICE if role is Role.SERVICE else DeclarationKind.CONNECTION


def _declared(declaration: Declaration) -> ConnectionConfig | ServiceConfig:
    """What was saved of a declaration. Raises `RequestError` when it cannot be used."""
    said = msgpack.unpackb(declaration.options)
    if declaration.kind is DeclarationKind.SERVICE:
        return service_from(said.pop("username"), said.pop("fqn"), said)
    username, fqn, uuid = (said.pop(key, None) for key in ("username", "fqn", "uuid"))
    return connection_from(declaration.name, username, fqn, uuid, said)


def _refuse_ephemeral(ephemeral: bool) -> None:
    if ephemeral:
        raise RequestError("bad_params", "ephemeral declarations are not in this version")
