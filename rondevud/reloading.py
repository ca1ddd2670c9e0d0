"""Taking a changed configuration file over while the daemon runs: what a restart would do, disturbing nothing else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rondevud import config as configuration
from rondevud import systemd
from rondevud.access import Policy
from rondevud.config import Config, ConnectionConfig, ServiceConfig
from rondevud.durable.states import ConnectionState
from rondevud.endings import Endings
from rondevud.errors import ConfigError, RequestError, StoreError
from rondevud.holdings import Declaration, Holdings, Options, Origin, store_errors
from rondevud.logs import fields
from rondevud.owners import Key
from rondevud.policies import policy_of
from rondevud.records import DeclarationKind, DeleteDeclaration

logger = logging.getLogger(__name__)

APPLIED = ("services", "connections", "queue", "reconnect", "access", "metrics")
"""What of the file is taken over; everything else needs a restart."""

STOP_WAIT = 5.0
"""Seconds that a cancelled reload gets to end."""


@dataclass(slots=True)
class Changes:
    """What a reload did, by name; services as ``service:USER/FQN``. What is restored to a start's state counts as added."""

    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    """Also the tables that hold for all: ``queue``, ``reconnect``, ``access`` and ``metrics``."""
    removed: list[str] = field(default_factory=list)
    restart_needed: list[str] = field(default_factory=list)
    """Keys as ``section.key`` whose new values are not used before the daemon is started again."""
    detached: int = 0
    """Handles of programs that may not use any more what they were attached to."""

    def as_map(self) -> dict[str, Any]:
        lists = {name: sorted(getattr(self, name)) for name in ("added", "changed", "removed", "restart_needed")}
        return {**lists, "detached": self.detached}


def described(changes: Mapping[str, Any]) -> str:
    """What a reload did, in a line."""
    words = [f"{word} {', '.join(changes[word])}" for word in ("added", "changed", "removed") if changes[word]]
    if changes["restart_needed"]:
        words.append(f"needs a restart: {', '.join(changes['restart_needed'])}")
    if changes["detached"]:
        words.append(f"{changes['detached']} attachments ended by new rules")
    return "; ".join(words) or "nothing has changed"


class Reloading:
    """Reloads the file at `path`, one time after another; each ends, whoever asked for it leaves."""

    def __init__(
        self, holdings: Holdings, endings: Endings, path: Path | None, set_policy: Callable[[Policy], int]
    ) -> None:
        """`set_policy` makes other rules of access hold, and answers how many handles end by that."""
        self._set_policy = set_policy
        self._holdings = holdings
        self._endings = endings
        self._path = path
        self.apply_metrics: Callable[[str | None], Awaitable[None]] | None = None
        """Serves metrics at another place, or nowhere; raises `ConfigError`."""
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[dict[str, Any]]] = set()

    async def reload(self) -> dict[str, Any]:
        """``{added, changed, removed, restart_needed, detached}``.

        Raises ``bad_config`` when the file changes nothing because of a mistake in it, ``restart_needed`` when it changes
        nothing because only a restart can use it, ``store_failed`` when a part could not be carried out; the next reload
        tries that again.
        """
        task = asyncio.get_running_loop().create_task(self._reload(), name="reload")
        self._tasks.add(task)
        task.add_done_callback(self._done)
        await asyncio.wait({task})
        if task.cancelled():
            raise RequestError("stopping", "the daemon is stopping")
        return task.result()

    async def stop(self) -> None:
        """The daemon stops: what is not taken over by now is at the next start."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=STOP_WAIT)

    def _done(self, task: asyncio.Task[dict[str, Any]]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # it has been told, also when nobody waits for it any more

    async def _reload(self) -> dict[str, Any]:
        async with self._turn:
            systemd.reloading()
            status = f"{self._path} was not taken over"
            try:
                new, policy = self._load()
                await self._move_metrics(new)
                changes = (await self._take_over(new, policy)).as_map()
                status = f"took {self._path} over"
            except Exception as error:
                raise self._failed(error) from error
            finally:
                systemd.ready(status)
        logger.info(
            "reloaded %s: %s",
            self._path,
            described(changes),
            extra=fields("reloaded"),
        )
        self._holdings.events.publish("reloaded", changes)
        return changes

    def _failed(self, error: Exception) -> RequestError:
        """Tell it, and answer what whoever asked is told."""
        if isinstance(error, RequestError):
            said = "Nothing is reloaded: %s" if error.code in {"bad_config", "restart_needed"} else "Reloading: %s"
            logger.warning(said, error, extra=fields("reload_failed"))
            refusal = error
        else:
            logger.error("The reload failed", exc_info=error, extra=fields("reload_failed"))
            refusal = RequestError("internal", "the reload failed; the daemon's log says why")
        self._holdings.events.publish("reload_failed", {"code": refusal.code, "message": str(refusal)})
        return refusal

    def _load(self) -> tuple[Config, Policy]:
        if self._path is None:
            raise RequestError(
                "restart_needed", "this daemon was started without a configuration file: restart it with one"
            )
        try:
            new = configuration.load(self._path)
        except ConfigError as error:
            raise RequestError("bad_config", str(error)) from error
        try:
            policy = policy_of(new.access)
        except ConfigError as error:
            raise RequestError("bad_config", f"{self._path}: {error}") from error
        if (new.services or new.connections) and not self._holdings.can_reach_out:
            raise RequestError(
                "restart_needed",
                f"{self._path}: services and connections need a signalling server, and this daemon was started without one:"
                " what the file says of it ([signalling] url, [rendezvous]) holds from the next start on",
            )
        return new, policy

    async def _move_metrics(self, new: Config) -> None:
        """First of all: what cannot be listened at is a mistake in the file, which changes nothing then."""
        if self.apply_metrics is not None:
            try:
                await self.apply_metrics(new.metrics.listen)
            except ConfigError as error:
                raise RequestError("bad_config", f"{self._path}: {error}") from error

    async def _take_over(self, new: Config, policy: Policy) -> Changes:
        holdings, changes = self._holdings, Changes(restart_needed=_others(self._holdings.config, new))
        old = holdings.config
        holdings.config = old.model_copy(update={name: getattr(new, name) for name in APPLIED})
        holdings.environment.budget.set_limit(holdings.config.queue.store_limit)
        changes.detached = self._set_policy(policy)
        changes.changed += [table for table in ("queue", "reconnect") if getattr(old, table) != getattr(new, table)]
        everything = bool(changes.changed)
        changes.changed += [table for table in ("access", "metrics") if getattr(old, table) != getattr(new, table)]
        wanted: dict[Key, Options] = {(DeclarationKind.SERVICE, service.name): service for service in new.services}
        wanted |= {(DeclarationKind.CONNECTION, connection.name): connection for connection in new.connections}
        known = set(holdings.declared)
        outcomes = await asyncio.gather(
            *(self._change(key, wanted.get(key), changes, always=everything) for key in known | set(wanted)),
            return_exceptions=True,
        )
        for outcome in outcomes:
            if isinstance(outcome, StoreError):
                with store_errors():
                    raise outcome
            if isinstance(outcome, BaseException):
                raise outcome
        return changes

    async def _change(self, key: Key, wanted: Options | None, changes: Changes, *, always: bool) -> None:
        """Bring one thing to what the file wants of it. `always`: the tables that hold for all have changed, too."""
        async with self._holdings.changing(*key):
            has, name = self._present(key), _shown(key)
            if wanted is None:
                if has is not None and has.origin is Origin.FILE:
                    await self._remove(key)
                    changes.removed.append(name)
                elif has is not None and always:
                    await self._reconfigure(has.options, has.origin)
                    changes.changed.append(name)
            elif has is None:
                await self._add(wanted)
                changes.added.append(name)
            elif has.origin is Origin.EPHEMERAL or _target(has.options) != _target(wanted):
                await self._replace(key, has, wanted)
                changes.removed.append(name)
                changes.added.append(name)
            elif always or has != Declaration(wanted, Origin.FILE):
                await self._forget_saved(key, has)
                await self._reconfigure(wanted, Origin.FILE)
                changes.changed.append(name)
            elif isinstance(wanted, ConnectionConfig):
                await self._holdings.by_name[name].make_missing_channels()

    def _present(self, key: Key) -> Declaration | None:
        """What is declared and at work: not what was closed."""
        kind, name = key
        has = self._holdings.declared.get(key)
        if has is None:
            return None
        if kind is DeclarationKind.SERVICE:
            return has
        connection = self._holdings.by_name[name]
        if connection.state is ConnectionState.CLOSED or connection.ending:
            return None
        return has

    async def _add(self, wanted: Options) -> None:
        holdings = self._holdings
        if isinstance(wanted, ServiceConfig):
            holdings.add_service(wanted, Origin.FILE).start()
            return
        closed = holdings.by_name.get(wanted.name)
        if closed is not None:
            await closed.wait_ended()
            holdings.forget_name(closed)
        connection = holdings.take_over_connection(wanted, Origin.FILE)
        if connection is None:
            connection = await holdings.new_connection(wanted, Origin.FILE)
        await connection.start()

    async def _reconfigure(self, options: Options, origin: Origin) -> None:
        if isinstance(options, ServiceConfig):
            self._holdings.reconfigure_service(options, origin)
        else:
            connection = self._holdings.reconfigure_connection(options, origin)
            await connection.make_channels()

    async def _replace(self, key: Key, has: Declaration, wanted: Options) -> None:
        """Another target, or something ephemeral in the way of what stands in the file: another thing of that name."""
        if has.origin is Origin.EPHEMERAL:
            await self._endings.end(key)
        else:
            await self._remove(key)
            await self._forget_saved(key, has)
        await self._add(wanted)

    async def _remove(self, key: Key) -> None:
        """Sessions of services, and connections in which something waits to be sent, are held."""
        kind, name = key
        if kind is DeclarationKind.SERVICE:
            service = self._holdings.services[name]
            await service.retire()
            self._holdings.forget_service(service)
            self._holdings.prune()
            return
        connection = self._holdings.by_name[name]
        if connection.session.busy:
            self._holdings.hold_declared(connection)
        else:
            await self._endings.end(key)

    async def _forget_saved(self, key: Key, has: Declaration) -> None:
        """What stands in the file stands there only."""
        if has.origin is Origin.SOCKET:
            await self._holdings.environment.disk.execute(DeleteDeclaration(*key))


def _others(old: Config, new: Config) -> list[str]:
    """Keys of the sections that are not taken over, where they differ."""
    sections = [name for name in Config.model_fields if name not in APPLIED]
    return [
        f"{section}.{key}"
        for section in sections
        for key in type(getattr(new, section)).model_fields
        if getattr(getattr(old, section), key) != getattr(getattr(new, section), key)
    ]


def _target(options: Options) -> str:
    return options.target if isinstance(options, ConnectionConfig) else options.name


def _shown(key: Key) -> str:
    kind, name = key
    return f"service:{name}" if kind is DeclarationKind.SERVICE else name
