"""`expose` and `connect`: what programs declare over the socket. Idempotent, and stored before they answer."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import msgpack

from rondevud.config import ConnectionConfig, ServiceConfig
from rondevud.declarations import differences, refuse_disk
from rondevud.durable.connection import DurableConnection
from rondevud.durable.service import DurableService
from rondevud.durable.states import ConnectionState
from rondevud.errors import RequestError, SignallingError, SignallingRejected, StoreError
from rondevud.holdings import Holdings, Options, Origin, store_errors
from rondevud.keys import key_errors
from rondevud.owners import Key
from rondevud.records import Declaration, DeclarationKind, DeleteDeclaration, SaveDeclaration

PUBLISH_WAIT = 10.0
"""Seconds that `expose` waits for the publication before it answers without one."""

Data = dict[str, Any]


class Declaring:
    """Adds to the holdings what programs ask for."""

    def __init__(self, holdings: Holdings) -> None:
        self._holdings = holdings

    async def connect(self, options: ConnectionConfig, owner: object | None) -> Data:
        """``{connection_id, name, state, created}``. Raises `RequestError`. With an `owner` it is ephemeral."""
        key = (DeclarationKind.CONNECTION, options.name)
        async with self._holdings.changing(*key):
            connection = await self._living(options.name)
            created = connection is None
            if connection is None:
                connection = await self._new_connection(options, owner)
                self._holdings.refuse_if_stopping()
                await connection.start()
            else:
                self._join(key, options, owner)
                if connection.state is ConnectionState.FAILED:
                    connection.reconnect()
                await connection.make_missing_channels()
        return {
            "connection_id": connection.connection_id,
            "name": options.name,
            "state": str(connection.state),
            "created": created,
        }

    async def _living(self, name: str) -> DurableConnection | None:
        """The connection of that name, unless it has ended; waits for an end that is under way."""
        connection = self._holdings.by_name.get(name)
        if connection is None:
            return None
        await connection.wait_ended()
        if connection.state is not ConnectionState.CLOSED:
            return connection
        self._holdings.forget_name(connection)
        return None

    async def _new_connection(self, options: ConnectionConfig, owner: object | None) -> DurableConnection:
        holdings, kind = self._holdings, DeclarationKind.CONNECTION
        _ = holdings.signalling  # raises without one, before anything is stored
        with store_errors():
            if owner is not None:
                refuse_disk(options.queue, *options.channels)
                connection = await holdings.new_connection(options, Origin.EPHEMERAL)
                holdings.owners.add((kind, options.name), owner)
                return connection
            await self._save(kind, options)
            held = holdings.take_over_connection(options, Origin.SOCKET)
            if held is not None:
                return held
            try:
                return await holdings.new_connection(options, Origin.SOCKET)
            except StoreError:
                holdings.environment.disk.submit(DeleteDeclaration(kind, options.name))
                raise

    async def expose(self, options: ServiceConfig, owner: object | None) -> Data:
        """``{service_id, uuid, expires_at, created}``. Raises `RequestError`. With an `owner` it is ephemeral."""
        key = (DeclarationKind.SERVICE, options.name)
        async with self._holdings.changing(*key):
            known = self._holdings.services.get(options.name)
            if known is None:
                await self._claim(options.username)
                service = await self._start_service(options, owner)
            else:
                self._join(key, options, owner)
                service = known
        if known is None:
            await _published(service)
        publication = service.pool.publication
        return {
            "service_id": publication.service_id if publication else None,
            "uuid": publication.uuid if publication else None,
            "expires_at": publication.expires_at if publication else None,
            "created": known is None,
        }

    async def _start_service(self, options: ServiceConfig, owner: object | None) -> DurableService:
        origin = Origin.SOCKET if owner is None else Origin.EPHEMERAL
        if owner is None:
            with store_errors():
                await self._save(DeclarationKind.SERVICE, options)
        else:
            refuse_disk(options.queue)
        self._holdings.refuse_if_stopping()
        service = self._holdings.add_service(options, origin)
        if owner is not None:
            self._holdings.owners.add((DeclarationKind.SERVICE, options.name), owner)
        service.start()
        return service

    async def _claim(self, username: str) -> None:
        """The name of a service that is being declared; a server that is down only delays the publication."""
        try:
            with key_errors():
                await self._holdings.signalling.claim(username)
        except SignallingRejected as error:
            code = error.code if error.code == "name_taken" else "signalling"
            raise RequestError(code, str(error)) from error
        except SignallingError:
            return

    def _join(self, key: Key, options: Options, owner: object | None) -> None:
        """Declare what is declared already. Raises ``conflict`` unless it is the same; `owner` shares what is ephemeral."""
        has = self._holdings.declared[key]
        if (owner is not None) != (has.origin is Origin.EPHEMERAL):
            how = "is not declared as ephemeral" if owner is not None else "is declared as ephemeral by another program"
            raise RequestError("conflict", f"{options.name} {how}", {"keys": ["ephemeral"]})
        differing = differences(has.options, options)
        if differing:
            keys = ", ".join(differing)
            raise RequestError("conflict", f"{options.name} is declared with other {keys}", {"keys": differing})
        if owner is not None:
            self._holdings.owners.add(key, owner)

    async def _save(self, kind: DeclarationKind, options: Options) -> None:
        said = options.model_dump(mode="json", exclude_unset=True, exclude={"name"})
        declaration = Declaration(kind, options.name, msgpack.packb(said))
        await self._holdings.environment.disk.execute(SaveDeclaration(declaration))


async def _published(service: DurableService) -> None:
    """Wait a while until it is."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PUBLISH_WAIT):
            await service.published.wait()
