"""The requests of the socket that are answered with facts; rows and keys are those of ``rondevuctl --json``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, TypeAlias, cast

Data: TypeAlias = dict[str, Any]
Rows: TypeAlias = list[dict[str, Any]]


class Requests(ABC):
    """What a daemon object can be asked. `target` is a connection's name or id, or ``service:USER/FQN``.

    All raise `RequestRefused` (``unknown_target`` for one that is not declared), `ConnectionLost`, `TimeoutError`.
    """

    request_timeout: float
    """Seconds until a request that was not answered fails."""

    @abstractmethod
    async def call(self, method: str, params: Data | None = None, *, timeout: float | None = None) -> Any:
        """Any request of the socket. Parameters that are None are left out.

        `timeout` is in seconds for everything, waiting for a daemon that is away included; None: `request_timeout` for the
        answer of a daemon that is there. Raises `RequestRefused`, `ConnectionLost`, `TimeoutError`.
        """

    @abstractmethod
    async def _ask(self, method: str, params: Data | None, limit: float | None) -> Any:
        """Ask when the daemon is there; `limit` is in seconds for one attempt's answer, None: as long as it takes."""

    async def _fact(self, method: str, *, taking: float | None = None, **params: Any) -> Data:
        """An answer that is one map; the daemon takes `taking` seconds on purpose."""
        return cast("Data", await self._ask(method, params, self.request_timeout + (taking or 0)))

    async def _rows(self, method: str, **params: Any) -> Rows:
        return cast("Rows", await self.call(method, params))

    # --- what there is -----------------------------------------------------------------------------------------

    async def status(self) -> Data:
        """How the daemon is: version, signalling server, store, counts and counters."""
        return await self._fact("status")

    async def services(self) -> Rows:
        """The declared services, with publication and pool."""
        return await self._rows("services")

    async def connections(self) -> Rows:
        """The connections of both sides, with their states."""
        return await self._rows("connections")

    async def clients(self) -> Rows:
        """The programs at the daemon's socket."""
        return await self._rows("clients")

    async def channels(self, target: str) -> Rows:
        """The channels of a connection or service, with their queues."""
        return await self._rows("channels", target=target)

    async def why(self, target: str) -> Data:
        """Why a connection or service is as it is."""
        return await self._fact("why", target=target)

    async def reload(self) -> Data:
        """Make the daemon take its changed configuration file over: ``{added, changed, removed, restart_needed}``."""
        return await self._fact("reload")

    async def doctor(self) -> Rows:
        """What is not as it should be in the daemon's store: ``{kind, where, found, meaning, advice, harmless}``."""
        return await self._rows("doctor")

    async def back_up(self, path: str, *, force: bool = False) -> Data:
        """Let the daemon copy its store, as it is now, to the absolute `path`: ``{path, bytes}``."""
        return await self._fact("backup", path=path, force=force)

    # --- services and connections ------------------------------------------------------------------------------

    async def withdraw(
        self, username: str, fqn: str, *, drain: float | None = None, keep_connections: bool = False
    ) -> Data:
        """Remove a service with its offers and, unless they are kept, connections (`drain`: seconds for queues; 10)."""
        facts = {"username": username, "fqn": fqn, "keep_connections": keep_connections}
        return await self._fact("withdraw", taking=drain, drain=drain, **facts)

    async def close_connection(self, target: str, drain: float | None = None) -> Data:
        """End a connection for good, on both sides, after at most `drain` seconds (10) of waiting for its queues."""
        return await self._fact("close", taking=drain, target=target, drain=drain)

    async def reconnect(self, target: str) -> Data:
        """Dial now, and again if it had failed; a connection of a service is cut, so that the peer dials."""
        return await self._fact("reconnect", target=target)

    # --- sessions ----------------------------------------------------------------------------------------------

    async def sessions(self, target: str | None = None) -> Rows:
        """The sessions that the daemon keeps, of `target` or all, those of absent and blocked peers included."""
        return await self._rows("sessions", target=target)

    async def forget(self, target: str, *, force: bool = False) -> Data:
        """Delete a session that a service took, and with `force` the messages in it: ``{connection_id, purged}``.

        Its peer starts a new one when it comes again. Raises `RequestRefused`: ``not_empty``, ``bad_target``.
        """
        return await self._fact("forget", target=target, force=force)

    async def kick(self, target: str, pause: float | None = None) -> Data:
        """End the link of such a session now; its peer is told to try later for `pause` seconds (10)."""
        return await self._fact("kick", target=target, pause=pause)

    async def block(self, target: str) -> Data:
        """End the link of such a session, and refuse its peer until `unblock`, also after restarts."""
        return await self._fact("block", target=target)

    async def unblock(self, target: str) -> Data:
        """Take its peer again."""
        return await self._fact("unblock", target=target)

    # --- queues ------------------------------------------------------------------------------------------------

    async def queue(self, target: str, label: str) -> Data:
        """What a channel holds: ``queue_size``, ``queue_bytes``, ``buffered_amount``, ``waiting``, ``waiting_bytes``, …."""
        return await self._fact("queue", target=target, label=label)

    async def purge(self, target: str, label: str, direction: str, id: str | None = None) -> Data:  # noqa: A002
        """Remove what is queued ``out``, ``in`` or ``both``, or what is set aside (``failed``; with `id` that message).

        How much that was.
        """
        return await self._fact("purge", target=target, label=label, direction=direction, **_named(id))

    async def failed(self, target: str, label: str, most: int = 100) -> Rows:
        """Messages that are set aside because programs died of them (``max_deliveries``), the oldest first:

        ``{id, attempts, size, text, head, enqueued_at, failed_at}``.
        """
        return await self._rows("failed", target=target, label=label, most=most)

    async def put_back(self, target: str, label: str, id: str | None = None) -> Data:  # noqa: A002
        """Let what is set aside, all of it or one message, wait for programs again; how many that were."""
        return await self._fact("put_back", target=target, label=label, **_named(id))

    # --- user names and keys -----------------------------------------------------------------------------------

    async def claim(self, username: str) -> Data:
        """Claim a user name at the signalling server, with a new key if there is none. Raises ``name_taken``."""
        return await self._fact("claim", username=username)

    async def check(self, username: str) -> Data:
        """Whether the signalling server knows a user name, and whose it is."""
        return await self._fact("check", username=username)

    async def key_list(self) -> Rows:
        """The keys that the daemon holds: ``{username, public_key, file}``."""
        return await self._rows("key_list")

    async def key_show(self, username: str) -> Data:
        """One of them. Raises ``no_key``."""
        return await self._fact("key_show", username=username)

    async def key_generate(self, username: str) -> Data:
        """Make a key without asking a server. Raises ``key_exists``."""
        return await self._fact("key_generate", username=username)

    async def key_export(self, username: str) -> Data:
        """``{username, private_key}``, in base64 as the JavaScript clients have it. Raises ``no_key``."""
        return await self._fact("key_export", username=username)

    async def key_import(self, username: str, private_key: str, *, force: bool = False) -> Data:
        """Take a private key that was exported. Raises ``key_exists`` for another one, unless `force` replaces it."""
        return await self._fact("key_import", username=username, private_key=private_key, force=force)

    async def key_delete(self, username: str) -> Data:
        """Remove a key for good. Raises ``no_key``, and ``key_in_use`` while a service of that user is declared."""
        return await self._fact("key_delete", username=username)


def _named(id_: str | None) -> Data:
    """The parameter that names one message; without one it is left out."""
    return {} if id_ is None else {"id": id_}
