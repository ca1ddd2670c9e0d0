"""Closes and withdrawals: each happens once, however many programs ask for it, and to its end, whichever of them leave."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from rondevud.durable.connection import DurableConnection
from rondevud.durable.service import DurableService
from rondevud.durable.visits import Visit
from rondevud.errors import RequestError, StoreError
from rondevud.holdings import Holdings, store_errors
from rondevud.owners import Key
from rondevud.records import DeclarationKind, DeleteDeclaration

logger = logging.getLogger(__name__)

DRAIN = 10.0
"""Seconds that a connection which is closed waits for acknowledgements, unless told otherwise."""

WAIT = 5.0
"""Seconds that a stop leaves to what is under way; twice: before and after everything else is stopped."""


class Endings:
    """What is being closed or withdrawn."""

    def __init__(self, holdings: Holdings) -> None:
        self.under_way: dict[str, asyncio.Task[None]] = {}
        """By what they end."""
        self._holdings = holdings
        holdings.owners.on_abandoned = self._abandon

    async def close(self, target: str, drain: float | None) -> None:
        """End a connection of either side. Raises `RequestError`."""
        if target.startswith("service:"):
            raise RequestError("bad_target", "a service is withdrawn, not closed")
        seconds = DRAIN if drain is None else drain
        found = self._holdings.visit(target)
        if found is not None:
            service, visit = found
            work = partial(_close_visit, service, visit, seconds)
            await self._see_through(f"close {target}", work, lambda: visit.drain.hurry(seconds))
            return
        connection = self._holdings.connection(target)
        work = partial(self._close_connection, connection, seconds)
        await self._see_through(f"close {connection.connection_id}", work, lambda: connection.hurry(seconds))

    async def withdraw(self, name: str, drain: float | None, *, keep_connections: bool) -> None:
        """Remove a service, and end its connections unless they are to be kept. Raises `RequestError`."""
        service = self._holdings.service(name)
        seconds = DRAIN if drain is None else drain
        work = partial(self._withdraw, name, seconds, keep_connections=keep_connections)
        await self._see_through(f"withdraw {name} {keep_connections}", work, lambda: service.hurry(seconds))

    async def end(self, key: Key) -> None:
        """End what is declared now, without draining; the caller holds the lock of `key`. Raises `StoreError`."""
        kind, name = key
        if kind is DeclarationKind.SERVICE:
            await self._end_service(self._holdings.services[name], 0.0, keep_connections=False)
        else:
            await self._close_connection(self._holdings.by_name[name], 0.0)

    async def finish(self) -> None:
        """The daemon stops: nothing ends by itself any more; wait a while for what is under way."""
        self._holdings.owners.stop()
        if self.under_way:
            await asyncio.wait(self.under_way.values(), timeout=WAIT)

    async def give_up(self) -> None:
        """Everything else has stopped: cancel what is still under way."""
        for task in self.under_way.values():
            task.cancel()
        await self.finish()

    async def _see_through(
        self, what: str, work: Callable[[], Coroutine[Any, Any, None]], hurry: Callable[[], None]
    ) -> None:
        """Do `work`, once at a time for `what`, to its end even if the program that asked for it leaves.

        What is under way already is hurried: the shortest drain that anybody asked for counts.
        """
        task = self.under_way.get(what)
        if task is None:
            task = self._begin(what, work)
        else:
            hurry()
        await asyncio.wait({task})
        if task.cancelled():
            raise RequestError("stopping", "the daemon is stopping")
        with store_errors():
            task.result()

    def _begin(self, what: str, work: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
        task = self.under_way[what] = asyncio.get_running_loop().create_task(work(), name=what)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self.under_way.pop(task.get_name(), None)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, (RequestError, StoreError)):
            logger.warning("%s: %s", task.get_name(), error)
        elif error is not None:
            logger.error("%s failed", task.get_name(), exc_info=error)

    async def _close_connection(self, connection: DurableConnection, drain: float) -> None:
        await connection.close(drain)
        self._holdings.forget_name(connection)
        self._holdings.prune()

    async def _withdraw(self, name: str, drain: float, *, keep_connections: bool) -> None:
        async with self._holdings.changing(DeclarationKind.SERVICE, name):
            service = self._holdings.service(name)
            if not service.ephemeral:
                await self._holdings.environment.disk.execute(DeleteDeclaration(DeclarationKind.SERVICE, name))
            await self._end_service(service, drain, keep_connections=keep_connections)

    async def _end_service(self, service: DurableService, drain: float, *, keep_connections: bool) -> None:
        await service.withdraw(drain, keep_connections=keep_connections)
        self._holdings.forget_service(service)
        self._holdings.prune()

    def _abandon(self, key: Key) -> None:
        """The last owner of what is ephemeral has been gone for long."""
        kind, name = key
        self._begin(f"end the abandoned {kind} {name}", lambda: self._end_abandoned(key))

    async def _end_abandoned(self, key: Key) -> None:
        kind, name = key
        async with self._holdings.changing(kind, name):
            if key not in self._holdings.declared or self._holdings.owners.owned(key):
                return  # ended by somebody, or declared again
            logger.info("%s is ephemeral, and its last owner is gone: ending it", name)
            try:
                await self.end(key)
            except Exception:
                self._holdings.owners.wait_again(key)
                raise


async def _close_visit(service: DurableService, visit: Visit, drain: float) -> None:
    await service.close(visit.session.connection_id, drain)
    await visit.session.goodbyes_said()
