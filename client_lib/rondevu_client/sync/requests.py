"""The requests of the socket that are answered with facts, with calls that block."""

from __future__ import annotations

from typing import Any

from rondevu_client import client as aio
from rondevu_client.requests import Data, Rows
from rondevu_client.sync.facade import Facade


class Requests(Facade):
    """What a daemon object can be asked, as in `rondevu_client.requests.Requests`; `timeout` is in seconds."""

    _inner: aio.Daemon

    def call(self, method: str, params: Data | None = None, *, timeout: float | None = None) -> Any:
        """Any request of the socket. Raises `RequestRefused`, `ConnectionLost`, `TimeoutError`."""
        return self._run(None, self._inner.call, method, params, timeout=timeout)

    # --- what there is -----------------------------------------------------------------------------------------

    def status(self, *, timeout: float | None = None) -> Data:
        """How the daemon is: version, signalling server, store, counts and counters."""
        return self._run(timeout, self._inner.status)

    def services(self, *, timeout: float | None = None) -> Rows:
        """The declared services, with publication and pool."""
        return self._run(timeout, self._inner.services)

    def connections(self, *, timeout: float | None = None) -> Rows:
        """The connections of both sides, with their states."""
        return self._run(timeout, self._inner.connections)

    def clients(self, *, timeout: float | None = None) -> Rows:
        """The programs at the daemon's socket."""
        return self._run(timeout, self._inner.clients)

    def channels(self, target: str, *, timeout: float | None = None) -> Rows:
        """The channels of a connection or service, with their queues."""
        return self._run(timeout, self._inner.channels, target)

    def why(self, target: str, *, timeout: float | None = None) -> Data:
        """Why a connection or service is as it is."""
        return self._run(timeout, self._inner.why, target)

    def reload(self, *, timeout: float | None = None) -> Data:
        """Make the daemon take its changed configuration file over: ``{added, changed, removed, restart_needed}``."""
        return self._run(timeout, self._inner.reload)

    def doctor(self, *, timeout: float | None = None) -> Rows:
        """What is not as it should be in the daemon's store: ``{kind, where, found, meaning, advice, harmless}``."""
        return self._run(timeout, self._inner.doctor)

    def back_up(self, path: str, *, force: bool = False, timeout: float | None = None) -> Data:
        """Let the daemon copy its store, as it is now, to the absolute `path`: ``{path, bytes}``."""
        return self._run(timeout, self._inner.back_up, path, force=force)

    # --- services and connections ------------------------------------------------------------------------------

    def withdraw(
        self,
        username: str,
        fqn: str,
        *,
        drain: float | None = None,
        keep_connections: bool = False,
        timeout: float | None = None,
    ) -> Data:
        """Remove a service with its offers and, unless they are kept, connections (`drain`: seconds for queues; 10)."""
        return self._run(timeout, self._inner.withdraw, username, fqn, drain=drain, keep_connections=keep_connections)

    def close_connection(self, target: str, drain: float | None = None, *, timeout: float | None = None) -> Data:
        """End a connection for good, on both sides, after at most `drain` seconds (10) of waiting for its queues."""
        return self._run(timeout, self._inner.close_connection, target, drain)

    def reconnect(self, target: str, *, timeout: float | None = None) -> Data:
        """Dial now, and again if it had failed; a connection of a service is cut, so that the peer dials."""
        return self._run(timeout, self._inner.reconnect, target)

    # --- sessions ----------------------------------------------------------------------------------------------

    def sessions(self, target: str | None = None, *, timeout: float | None = None) -> Rows:
        """The sessions that the daemon keeps, of `target` or all, those of absent and blocked peers included."""
        return self._run(timeout, self._inner.sessions, target)

    def forget(self, target: str, *, force: bool = False, timeout: float | None = None) -> Data:
        """Delete a session that a service took, and with `force` the messages in it: ``{connection_id, purged}``.

        Its peer starts a new one when it comes again. Raises `RequestRefused`: ``not_empty``, ``bad_target``.
        """
        return self._run(timeout, self._inner.forget, target, force=force)

    def kick(self, target: str, pause: float | None = None, *, timeout: float | None = None) -> Data:
        """End the link of such a session now; its peer is told to try later for `pause` seconds (10)."""
        return self._run(timeout, self._inner.kick, target, pause)

    def block(self, target: str, *, timeout: float | None = None) -> Data:
        """End the link of such a session, and refuse its peer until `unblock`, also after restarts."""
        return self._run(timeout, self._inner.block, target)

    def unblock(self, target: str, *, timeout: float | None = None) -> Data:
        """Take its peer again."""
        return self._run(timeout, self._inner.unblock, target)

    # --- queues ------------------------------------------------------------------------------------------------

    def queue(self, target: str, label: str, *, timeout: float | None = None) -> Data:
        """What a channel holds: ``queue_size``, ``queue_bytes``, ``buffered_amount``, ``waiting``, ``waiting_bytes``, …."""
        return self._run(timeout, self._inner.queue, target, label)

    def purge(
        self,
        target: str,
        label: str,
        direction: str,
        id: str | None = None,  # noqa: A002
        *,
        timeout: float | None = None,
    ) -> Data:
        """Remove what is queued ``out``, ``in`` or ``both``, or what is set aside (``failed``; with `id` that message).

        How much that was.
        """
        return self._run(timeout, self._inner.purge, target, label, direction, id)

    def failed(self, target: str, label: str, most: int = 100, *, timeout: float | None = None) -> Rows:
        """Messages that are set aside because programs died of them (``max_deliveries``), the oldest first:

        ``{id, attempts, size, text, head, enqueued_at, failed_at}``.
        """
        return self._run(timeout, self._inner.failed, target, label, most)

    def put_back(
        self,
        target: str,
        label: str,
        id: str | None = None,  # noqa: A002
        *,
        timeout: float | None = None,
    ) -> Data:
        """Let what is set aside, all of it or one message, wait for programs again; how many that were."""
        return self._run(timeout, self._inner.put_back, target, label, id)

    # --- user names and keys -----------------------------------------------------------------------------------

    def claim(self, username: str, *, timeout: float | None = None) -> Data:
        """Claim a user name at the signalling server, with a new key if there is none. Raises ``name_taken``."""
        return self._run(timeout, self._inner.claim, username)

    def check(self, username: str, *, timeout: float | None = None) -> Data:
        """Whether the signalling server knows a user name, and whose it is."""
        return self._run(timeout, self._inner.check, username)

    def key_list(self, *, timeout: float | None = None) -> Rows:
        """The keys that the daemon holds: ``{username, public_key, file}``."""
        return self._run(timeout, self._inner.key_list)

    def key_show(self, username: str, *, timeout: float | None = None) -> Data:
        """One of them. Raises ``no_key``."""
        return self._run(timeout, self._inner.key_show, username)

    def key_generate(self, username: str, *, timeout: float | None = None) -> Data:
        """Make a key without asking a server. Raises ``key_exists``."""
        return self._run(timeout, self._inner.key_generate, username)

    def key_export(self, username: str, *, timeout: float | None = None) -> Data:
        """``{username, private_key}``, in base64 as the JavaScript clients have it. Raises ``no_key``."""
        return self._run(timeout, self._inner.key_export, username)

    def key_import(self, username: str, private_key: str, *, force: bool = False, timeout: float | None = None) -> Data:
        """Take a private key that was exported. Raises ``key_exists`` for another one, unless `force` replaces it."""
        return self._run(timeout, self._inner.key_import, username, private_key, force=force)

    def key_delete(self, username: str, *, timeout: float | None = None) -> Data:
        """Remove a key for good. Raises ``no_key``, and ``key_in_use`` while a service of that user is declared."""
        return self._run(timeout, self._inner.key_delete, username)
