"""What there is at a start: everything that the file and the store declare, with the sessions they had."""

from __future__ import annotations

import logging

import msgpack

from rondevud.config import ConnectionConfig, ServiceConfig
from rondevud.declarations import connection_from, service_from
from rondevud.errors import ConfigError, RequestError
from rondevud.holdings import Holdings, Options, Origin, give_up_undeclared
from rondevud.records import (
    ChannelRecord,
    Declaration,
    DeclarationKind,
    DeleteDeclaration,
    DeleteSession,
    Lacking,
    LoadDeclarations,
    LoadSessions,
    Reason,
    Role,
    SessionRecord,
)

logger = logging.getLogger(__name__)


async def restore(holdings: Holdings) -> None:
    """Fill `holdings`. Nothing is published or dialled, and no message is read. Raises `ConfigError`, `StoreError`."""
    await _Restoring(holdings).run()


class _Restoring:
    def __init__(self, holdings: Holdings) -> None:
        self._holdings = holdings
        self._store = holdings.environment.disk
        self._channels: dict[str, list[ChannelRecord]] = {}
        """By connection id."""
        self._unusable: set[tuple[DeclarationKind, str]] = set()
        """What stands in the store and cannot be used by this version; its sessions stay there untouched."""

    async def run(self) -> None:
        loaded = await self._store.execute(LoadSessions())
        for channel in loaded.channels:
            self._channels.setdefault(channel.connection_id, []).append(channel)
        for damaged in loaded.damaged:
            self._holdings.events.publish("gap", {"reason": "damaged", "count": None}, connection_id=damaged)
        for lack in loaded.lacking:
            self._tell(lack)
        services, connections = await self._declarations()
        if (services or connections) and not self._holdings.can_reach_out:
            names = [service.name for service, _ in services] + [connection.name for connection, _ in connections]
            raise ConfigError(f"signalling.url: missing: the state directory declares {', '.join(names)}")
        for service in services:
            self._holdings.add_service(*service)
        await self._restore_connections(connections, loaded.sessions)
        for record in loaded.sessions:
            if (_kind(record.role), record.declaration) in self._unusable:
                self._leave(record)
                continue
            if record.role is Role.SERVICE and record.declaration in self._holdings.services:
                self._holdings.services[record.declaration].restore(record, self._of(record))
            elif record.connection_id not in self._holdings.by_id:
                self._restore_undeclared(record)

    def _leave(self, record: SessionRecord) -> None:
        """It stays in the store as it is, and so do the bytes of its queues."""
        held = sum(channel.out_bytes + channel.in_bytes + channel.failed_bytes for channel in self._of(record))
        self._holdings.environment.budget.unused += held

    def _tell(self, lack: Lacking) -> None:
        """Say of both directions what the store does not know any more; how many messages that are nobody can."""
        about = {"connection_id": lack.connection_id or None, "label": lack.label or None}
        facts = {"reason": str(Reason.DAMAGED), "count": None}
        if lack.next > lack.first:
            data = {**facts, "direction": "out", "first": lack.first, "next": lack.next}
            self._holdings.events.publish("gap", data, **about)
        if lack.rows:
            self._holdings.events.publish("gap", {**facts, "direction": "in"}, **about)

    def _of(self, record: SessionRecord) -> list[ChannelRecord]:
        return self._channels.get(record.connection_id, [])

    async def _declarations(
        self,
    ) -> tuple[list[tuple[ServiceConfig, Origin]], list[tuple[ConnectionConfig, Origin]]]:
        """What the file declares, then what was declared over the socket; what stands in both is the file's from now on."""
        services = [(service, Origin.FILE) for service in self._holdings.config.services]
        connections = [(connection, Origin.FILE) for connection in self._holdings.config.connections]
        names = {(DeclarationKind.SERVICE, service.name) for service, _ in services}
        names |= {(DeclarationKind.CONNECTION, connection.name) for connection, _ in connections}
        for declaration in await self._store.execute(LoadDeclarations()):
            if (declaration.kind, declaration.name) in names:
                self._store.submit(DeleteDeclaration(declaration.kind, declaration.name))
                continue
            try:
                declared = _declared(declaration)
            except RequestError as error:
                self._unusable.add((declaration.kind, declaration.name))
                logger.error("The declaration of %s is not used: %s", declaration.name, error)  # noqa: TRY400 - as said
                continue
            if isinstance(declared, ServiceConfig):
                services.append((declared, Origin.SOCKET))
            else:
                connections.append((declared, Origin.SOCKET))
        return services, connections

    async def _restore_connections(
        self, connections: list[tuple[ConnectionConfig, Origin]], sessions: list[SessionRecord]
    ) -> None:
        made = [record for record in sessions if record.role is Role.CONNECTING]
        living = {(record.declaration, record.target): record for record in made if not record.closed}
        closed = {record.declaration for record in made if record.closed}
        for connection, origin in connections:
            record = living.get((connection.name, connection.target))
            if record is not None:
                self._holdings.add_connection(connection, origin, record, self._of(record))
            elif connection.name in closed and origin is not Origin.FILE:  # closed by the peer
                self._store.submit(DeleteDeclaration(DeclarationKind.CONNECTION, connection.name))
            else:
                await self._holdings.new_connection(connection, origin)

    def _restore_undeclared(self, record: SessionRecord) -> None:
        """A session that is closed, or whose declaration is gone: it is kept while something waits in it."""
        if not self._holdings.can_reach_out:
            self._leave(record)
            return  # what waits there stays in the store until a signalling server is configured again
        channels = self._of(record)
        if record.role is Role.SERVICE and not record.closed:
            self._holdings.undeclared_service(record.declaration).restore(record, channels)
            return
        unsent = 0 if record.closed else sum(channel.out_count for channel in channels)
        if not unsent and not any(channel.in_count or channel.failed for channel in channels):
            self._store.submit(DeleteSession(record.connection_id))
        elif record.role is Role.SERVICE:
            self._holdings.undeclared_service(record.declaration).restore(record, channels)
        else:
            connection = self._holdings.hold_connection(record, channels)
            if record.closed:
                connection.session.end()
            else:
                give_up_undeclared(connection)


def _kind(role: Role) -> DeclarationKind:
    return DeclarationKind.SERVICE if role is Role.SERVICE else DeclarationKind.CONNECTION


def _declared(declaration: Declaration) -> Options:
    """What was saved of a declaration. Raises `RequestError` when it cannot be used."""
    said = msgpack.unpackb(declaration.options)
    if declaration.kind is DeclarationKind.SERVICE:
        return service_from(said.pop("username"), said.pop("fqn"), said)
    return connection_from(declaration.name, said)
