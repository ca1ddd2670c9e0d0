"""`expose` and `connect`: what programs declare over the socket. Idempotent, and stored before they answer."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import msgpack

from rondevud.config import ConnectionConfig, ServiceConfig
from rondevud.declarations import differences
from rondevud.durable.connection import DurableConnection
from rondevud.durable.service import DurableService
from rondevud.durable.states import ConnectionState
from rondevud.errors import RequestError, SignallingError, SignallingRejected, StoreError
from rondevud.holdings import Declared, Holdings, store_errors
from rondevud.keys import key_errors
from rondevud.records import Declaration, DeclarationKind, DeleteDeclaration, SaveDeclaration

PUBLISH_WAIT = 10.0
"""Seconds that `expose` waits for the publication before it answers without one."""

Data = dict[str, Any]


class Declaring:
    """Adds to the holdings what programs ask for."""

    def __init__(self, holdings: Holdings) -> None:
        self._holdings = holdings

    async def connect(self, declared: ConnectionConfig) -> Data:
        """``{connection_id, name, state, created}``. Raises `RequestError`."""
        async with self._holdings.changing(DeclarationKind.CONNECTION, declared.name):
            connection = await self._living(declared.name)
            created = connection is None
            if connection is None:
                connection = await self._new_connection(declared)
                await connection.start()
            else:
                self._same(DeclarationKind.CONNECTION, declared)
                if connection.state is ConnectionState.FAILED:
                    connection.reconnect()
        return {
            "connection_id": connection.connection_id,
            "name": declared.name,
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

    async def _new_connection(self, declared: ConnectionConfig) -> DurableConnection:
        holdings = self._holdings
        _ = holdings.signalling  # raises without one, before anything is stored
        with store_errors():
            await self._save(DeclarationKind.CONNECTION, declared)
            held = holdings.take_over_connection(declared, in_file=False)
            if held is not None:
                return held
            try:
                record = await holdings.new_record(declared.name)
            except StoreError:
                holdings.environment.disk.submit(DeleteDeclaration(DeclarationKind.CONNECTION, declared.name))
                raise
        return holdings.add_connection(declared, record, [], in_file=False)

    async def expose(self, declared: ServiceConfig) -> Data:
        """``{service_id, uuid, expires_at, created}``. Raises `RequestError`."""
        async with self._holdings.changing(DeclarationKind.SERVICE, declared.name):
            known = self._holdings.services.get(declared.name)
            if known is None:
                await self._claim(declared.username)
            else:
                self._same(DeclarationKind.SERVICE, declared)
            if known is None or known.stopped:  # stopped: withdrawn, and its connections kept
                service, started = await self._start_service(declared, known), True
            else:
                service, started = known, False
        if started:
            await _published(service)
        publication = service.pool.publication
        return {
            "service_id": publication.service_id if publication else None,
            "uuid": publication.uuid if publication else None,
            "expires_at": publication.expires_at if publication else None,
            "created": known is None,
        }

    async def _start_service(self, declared: ServiceConfig, known: DurableService | None) -> DurableService:
        with store_errors():
            await self._save(DeclarationKind.SERVICE, declared)
        service = known or self._holdings.add_service(declared)
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

    def _same(self, kind: DeclarationKind, declared: Declared) -> None:
        """Raises ``conflict`` when it is declared already with other options."""
        differing = differences(self._holdings.declared[kind, declared.name], declared)
        if differing:
            keys = ", ".join(differing)
            raise RequestError("conflict", f"{declared.name} is declared with other {keys}", {"keys": differing})

    async def _save(self, kind: DeclarationKind, declared: Declared) -> None:
        said = declared.model_dump(mode="json", exclude_unset=True, exclude={"name"})
        declaration = Declaration(kind, declared.name, msgpack.packb(said))
        await self._holdings.environment.disk.execute(SaveDeclaration(declaration))


async def _published(service: DurableService) -> None:
    """Wait a while until it is."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PUBLISH_WAIT):
            await service.published.wait()
