"""The daemon as the methods of the socket see it (`rondevud.ipc.ports.House`)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from rondevud import rows, why
from rondevud.access import Policy, Subject
from rondevud.care import Care
from rondevud.config import Config
from rondevud.declarations import connection_from, service_from
from rondevud.declaring import Declaring
from rondevud.durable.channel import DurableChannel
from rondevud.durable.session import DurableSession, Environment
from rondevud.endings import Endings
from rondevud.errors import RequestError, SignallingError, SignallingRejected
from rondevud.events import Event, EventBus, Scope
from rondevud.holdings import Holdings, over
from rondevud.keys import Keys, key_errors
from rondevud.network import Change
from rondevud.reloading import Reloading
from rondevud.restoring import restore
from rondevud.service_channel import ServiceChannel
from rondevud.sessions import Sessions
from rondevud.signalling.base import Signalling
from rondevud.signalling.identity import Identities
from rondevud.transport.base import Engine

logger = logging.getLogger(__name__)

MEASURE = 1.0
"""Seconds that `why` waits for a round trip on the link."""

Data = dict[str, Any]


class House:
    """All declared things. `load`, then `start`; `stop` at the end."""

    def __init__(
        self,
        config: Config,
        environment: Environment,
        signalling: Signalling | None,
        engine: Engine,
        events: EventBus,
        identities: Identities,
        care: Care,
        config_path: Path | None = None,
    ) -> None:
        self.events = events
        self.instance = secrets.token_hex(8)
        self.version = environment.version
        self.clients: Callable[[], list[Data]] = list
        self.clients_refused: Callable[[], int] = int
        self.set_policy: Callable[[Policy], int] = lambda _policy: 0
        """Makes other rules of access hold on the socket, and answers how many handles ended by that."""
        self.signalling_url = config.signalling.url
        self.holdings = Holdings(config, environment, signalling, engine, events)
        self.keys = Keys(identities, self.holdings.services_of)
        self.care = care
        self.endings = Endings(self.holdings)
        self.sessions = Sessions(self.holdings)
        self._declaring = Declaring(self.holdings)
        self._reloading = Reloading(self.holdings, self.endings, config_path, self._set_policy)
        self._environment = environment
        self._engine = engine
        self._started = time.monotonic()

    # --- life ------------------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Everything the file and the store declare, with the sessions they had. Reads no message."""
        await restore(self.holdings)

    async def start(self) -> None:
        """Publish and dial. What fails at one of them is logged and stops no other."""
        for service in self.holdings.services.values():
            service.start()
        for service in self.holdings.undeclared:
            service.hold()
        for connection in list(self.holdings.by_name.values()):
            try:
                await connection.start()
            except Exception:
                logger.exception("The connection %s could not be started", connection.settings.name)

    async def stop(self) -> None:
        """Tell peers to come back, and let go. Declarations stay. What fails at one of them is logged."""
        self.holdings.stopping = True
        await self._reloading.stop()
        await self.endings.finish()
        outcomes = await asyncio.gather(
            *(connection.stop() for connection in self.holdings.by_id.values()),
            *(service.stop() for service in self.holdings.all_services()),
            return_exceptions=True,
        )
        for session in self.holdings.sessions(None):
            session.stop_reading()
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                logger.error("Stopping failed", exc_info=outcome)
        await self.endings.give_up()

    # --- declaring and ending --------------------------------------------------------------------------------------

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
        self.holdings.refuse_if_stopping()
        return await self._declaring.connect(
            connection_from(name, options, username=username, fqn=fqn, uuid=uuid), owner if ephemeral else None
        )

    async def expose(self, username: str, fqn: str, options: Data, ephemeral: bool, owner: object) -> Data:
        self.holdings.refuse_if_stopping()
        return await self._declaring.expose(service_from(username, fqn, options), owner if ephemeral else None)

    def owner_gone(self, owner: object) -> None:
        """The socket that made declarations is closed; all but the ephemeral ones outlive it."""
        self.holdings.owners.gone(owner)

    def on_metrics(self, apply: Callable[[str | None], Awaitable[None]]) -> None:
        """What a reload calls with the place where metrics are to be served."""
        self._reloading.apply_metrics = apply

    def _set_policy(self, policy: Policy) -> int:
        return self.set_policy(policy)

    async def reload(self) -> Data:
        self.holdings.refuse_if_stopping()
        return await self._reloading.reload()

    async def withdraw(self, username: str, fqn: str, drain: float | None, keep_connections: bool) -> Data:
        self.holdings.refuse_if_stopping()
        await self.endings.withdraw(f"{username}/{fqn}", drain, keep_connections=keep_connections)
        return {}

    async def close(self, target: str, drain: float | None) -> Data:
        self.holdings.refuse_if_stopping()
        await self.endings.close(target, drain)
        return {}

    async def reconnect(self, target: str) -> Data:
        self.holdings.refuse_if_stopping()
        found = self.holdings.visit(target)
        if found is not None:
            _, visit = found
            visit.session.cut()
            return {"state": str(visit.state)}
        connection = self.holdings.connection(target)
        if self.holdings.by_name.get(connection.settings.name) is not connection:
            raise RequestError("failed", f"{target} is not declared any more")
        connection.reconnect()
        return {"state": str(connection.state)}

    # --- user names ------------------------------------------------------------------------------------------------

    async def claim(self, username: str) -> Data:
        expires_at = await self._ask(self.holdings.signalling.claim(username))
        return {"username": username, "expires_at": expires_at}

    async def check(self, username: str) -> Data:
        return self.keys.compare(await self._ask(self.holdings.signalling.check(username)))

    async def _ask(self, question: Any) -> Any:
        try:
            with key_errors():
                return await question
        except SignallingRejected as error:
            code = error.code if error.code in {"name_taken", "not_found"} else "signalling"
            raise RequestError(code, str(error)) from error
        except SignallingError as error:
            raise RequestError("signalling", str(error)) from error

    # --- channels --------------------------------------------------------------------------------------------------

    async def channel(self, target: str, label: str, options: Data | None, create: bool) -> Any:
        if create:
            self.holdings.refuse_if_stopping()
        if target.startswith("service:"):
            if create:
                raise RequestError("bad_target", "a whole service can only be observed")
            return ServiceChannel(self.holdings, self.holdings.service(target[8:]).name, label)
        return await self.holdings.session(target).channel(label, options, create=create)

    def _known_channel(self, target: str, label: str) -> DurableChannel:
        session = self.holdings.session(target)
        channel = session.channels.get(label)
        if channel is None:
            raise RequestError("unknown_channel", f"{target} has no channel {label!r}")
        return channel

    async def close_channel(self, target: str, label: str) -> Data:
        channel = self._known_channel(target, label)
        channel.close()
        return {"state": str(channel.state)}

    async def queue(self, target: str, label: str) -> Data:
        channel = self._known_channel(target, label)
        return channel.facts() | await channel.accounts()

    async def purge(
        self, target: str, label: str, direction: Literal["out", "in", "both", "failed"], id_: str | None
    ) -> Data:
        channel = self._known_channel(target, label)
        if direction == "failed":
            return {"purged": {"failed": await channel.purge_failed(id_)}}
        return {"purged": await channel.purge(direction)}

    async def failed(self, target: str, label: str, most: int) -> list[Data]:
        return await self._known_channel(target, label).inbox.failures.read(most)

    async def put_back(self, target: str, label: str, id_: str | None) -> Data:
        return {"put_back": await self._known_channel(target, label).put_back(id_)}

    def network_changed(self, change: Change) -> None:
        """This machine's addresses or default routes changed, or its cable is in again, which counts as a change of routes.

        Connections dial at once where that can help, services replace the offers that have become useless, and after a
        change of routes every link is measured: its peer hears at once where this machine is to be found now. Requests to
        the signalling server that may wait at an address which has gone are made again.
        """
        if self.holdings.can_reach_out and (change.removed or change.routes):
            self.holdings.signalling.network_changed()
        for connection in self.holdings.by_id.values():
            connection.network_changed(change.added, change.removed, routes=change.routes)
        for service in self.holdings.services.values():
            service.addresses_gone(change.removed)
        if change.routes:
            for session in self.holdings.sessions(None):
                session.machine.ping(session.now())
                session.schedule_flush()

    def live_producers(self) -> frozenset[int]:
        """Ids of the named producers that programs have a handle on now, in either store."""
        channels = (channel for session in self.holdings.sessions(None) for channel in session.channels.values())
        return frozenset(id_ for channel in channels for id_ in channel.outbox.producers if id_ > 0)

    def subject(self, target: str) -> Subject | None:
        return self.holdings.subject(target)

    def resolve(self, target: str) -> Scope:
        return self.holdings.resolve(target)

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
            "services": len(self.holdings.services),
            "connections": len(self.holdings.by_id)
            + sum(len(service.visits) for service in self.holdings.all_services()),
            "connected": sum(session.connected for session in self.holdings.sessions(None)),
            "clients": len(self.clients()),
            "tasks": len(asyncio.all_tasks()),
            "closing": self._engine.closing,
            "store": "ok" if failing is None else str(failing),
            "store_bytes": self._environment.budget.held,
            "max_store_bytes": self._environment.budget.limit,
            "counters": dict(self._environment.counters),
            "engine_counters": dict(self._engine.counters),
            "signalling_counters": dict(self.holdings.signalling.counters) if self.holdings.can_reach_out else {},
        }

    def services(self) -> list[Data]:
        return [rows.of_service(service) for service in self.holdings.services.values()]

    def connections(self) -> list[Data]:
        self.holdings.prune()
        listed = [rows.of_connection(made) for made in self.holdings.by_id.values() if not over(made.session)]
        for service in self.holdings.all_services():
            listed += [rows.of_visit(service, visit) for visit in service.visits.values() if not over(visit.session)]
        return listed

    def channels(self, target: str) -> list[Data]:
        return [channel.facts() for session in self.holdings.sessions(target) for channel in session.channels.values()]

    def snapshot(self, target: str | None) -> list[Data]:
        listed = {row["connection_id"]: row for row in self.connections()}
        return [
            rows.snapshot(listed[session.connection_id], session)
            for session in self.holdings.sessions(target)
            if session.connection_id in listed
        ]

    async def why(self, target: str) -> Data:
        signalling = self.holdings.signalling if self.holdings.can_reach_out else None
        servers = [url for server in self.holdings.config.transport.ice_servers for url in server.urls]
        around = why.Surroundings(self.events, self.signalling_url, signalling, servers)
        if target.startswith("service:"):
            return why.of_service(self.holdings.service(target[8:]), self._environment.clock.monotonic(), around)
        await self.holdings.session(target).measure(MEASURE)
        found = self.holdings.visit(target)
        if found is not None:
            return why.of_visit(*found, around)
        return why.of_connection(self.holdings.connection(target), around)

    async def wait(self, target: str, what: Literal["connected", "drained"], timeout: float | None) -> Data:
        session = self.holdings.session(target)
        try:
            async with asyncio.timeout(timeout):
                if what == "drained":
                    await self._drained(session)
                else:
                    await self._connected(session)
        except TimeoutError:
            raise RequestError("timeout", f"{target} is not {what} after {timeout} s") from None
        return {"connection_id": session.connection_id}

    async def _connected(self, session: DurableSession) -> None:
        """Wait for a link. Raises ``closed`` or ``failed`` when there will be none."""
        with self._first_event(session, "connected", "closed", "failed") as heard:
            if session.connected:
                return
            if session.refusal is not None:
                raise RequestError(*session.refusal)
            name = await heard
        if name != "connected":
            raise RequestError(name, f"{session.connection_id} is not tried any more")

    async def _drained(self, session: DurableSession) -> None:
        """Wait until nothing is queued. Raises ``closed`` or ``failed`` when what is queued will not go."""
        if not session.busy:
            return
        if session.refusal is not None:
            raise RequestError(*session.refusal)
        drained = asyncio.get_running_loop().create_task(session.drained(), name=f"drained {session.connection_id}")
        with self._first_event(session, "closed", "failed") as heard:
            futures: set[asyncio.Future[Any]] = {drained, heard}
            try:
                await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
                if not drained.done():
                    message = f"{session.connection_id} is not tried any more, with messages queued"
                    raise RequestError(heard.result(), message)
            finally:
                drained.cancel()

    @contextlib.contextmanager
    def _first_event(self, session: DurableSession, *names: str) -> Iterator[asyncio.Future[str]]:
        """The name of the first of these events of the connection itself, not of a channel."""
        first: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def heard(event: Event) -> None:
            if event.name in names and event.data.get("label") is None and not first.done():
                first.set_result(event.name)

        subscription = self.events.subscribe(Scope(connection_id=session.connection_id), heard)
        try:
            yield first
        finally:
            subscription.close()
