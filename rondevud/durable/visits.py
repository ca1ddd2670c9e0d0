"""The sessions of a service, one for each peer that came: made, found, closed, forgotten.

A session stays when its link is lost, with its connection id and its queues, until the peer comes back, closes, or
`session_expiry` is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from rondevud.backoff import Trouble, delays
from rondevud.durable.closing import Drain, store_end
from rondevud.durable.effects import LinkDown, LinkUp, Recovered, SessionFailed, Suspect
from rondevud.durable.frames import GoodbyeCode, Refuse, RefuseCode
from rondevud.durable.link import GOODBYES_OVER, LinkSettings
from rondevud.durable.ports import Configure
from rondevud.durable.session import DurableSession, Environment
from rondevud.durable.settings import PeerChoice, ServiceSettings
from rondevud.durable.states import CONNECTION_TRANSITIONS, ConnectionState, check
from rondevud.durable.tasks import Tasks
from rondevud.errors import RequestError, StoreError
from rondevud.logs import fields
from rondevud.records import ChannelRecord, DeleteSession, PeerKind, Reason, Role, SaveSession, SessionRecord
from rondevud.transport.base import PeerConnection

logger = logging.getLogger(__name__)

KEPT_LONGER = 30 * 86_400.0
"""Seconds that token, epochs and numbers outlive the queues of an absent peer."""

ABSENCE_STEP = 60.0
"""Seconds between two looks at how long peers have been absent."""

ABSENCE_SAVED = 600.0
"""Seconds of absence after which it is written down: what a restart may forget of it."""

CLOSES = 5.0
"""Seconds that a stop gives the closes under way."""


class Visit:
    """A session of the service as its users see it: one connection."""

    def __init__(self, session: DurableSession) -> None:
        self.session = session
        self.state = ConnectionState.CLOSED if session.record.closed else ConnectionState.DISCONNECTED
        self.absent_saved = session.record.absent
        self.closing: asyncio.Task[None] | None = None
        """The one task that ends this connection, however many ask for it."""
        self.drain = Drain(session)
        self.kicked_until = -math.inf
        """Until when its peer is told to try later, in the time of the clock."""

    def enter(self, state: ConnectionState) -> None:
        """Change the state, and say so."""
        previous = self.state
        check(CONNECTION_TRANSITIONS, previous, state)
        self.state = state
        self.session.event("state", {"new": str(state), "previous": str(previous)})

    @property
    def kept(self) -> bool:
        """Whether its peer may come back."""
        return self.state is not ConnectionState.CLOSED and not self.session.record.blocked

    @property
    def ending(self) -> bool:
        """Whether the closing task is at work."""
        return self.closing is not None and not self.closing.done()


class Visits(Mapping[str, Visit]):
    """By connection id. It is the owner of the sessions."""

    def __init__(
        self,
        settings: ServiceSettings,
        *,
        environment: Environment,
        configure: Configure,
        count: Callable[[str], None],
        changed: Callable[[bool], None],
    ) -> None:
        """`changed` is called when a peer is there, or (true) is missed and expected back."""
        self.tasks = Tasks(settings.name)
        """Closes and discards: they are waited for."""
        self._visits: dict[str, Visit] = {}
        self._settings = settings
        self._environment = environment
        self._configure = configure
        self._count = count
        self._changed = changed
        self.trouble = Trouble(_new_delays)
        """With counting absence."""
        self._making: set[bytes] = set()
        """Sessions of peers whose row is being stored."""
        self._arriving = 0
        """How many those are, plain peers included."""

    def __getitem__(self, connection_id: str) -> Visit:
        return self._visits[connection_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._visits)

    def __len__(self) -> int:
        return len(self._visits)

    @property
    def _name(self) -> str:
        return self._settings.name

    def reconfigure(self, settings: ServiceSettings, configure: Configure) -> None:
        """Other limits: of queues for what is accepted from now on, of links from the next one on."""
        self._settings = settings
        self._configure = configure
        for visit in self._visits.values():
            visit.session.reconfigure(self._link_settings, configure)

    @property
    def _link_settings(self) -> LinkSettings:
        return LinkSettings(
            daemon=f"rondevud/{self._environment.version}",
            max_message=self._settings.max_message,
            heartbeat=self._settings.heartbeat,
            session_expiry=self._settings.session_expiry,
            max_channels=self._settings.max_channels,
            reserved_labels=self._settings.peer is PeerChoice.PLAIN,
        )

    # --- coming ----------------------------------------------------------------------------------------------------

    def restore(self, record: SessionRecord, channels: list[ChannelRecord]) -> Visit:
        """A session of the store, or one that has just been stored."""
        session = DurableSession(
            record,
            channels,
            environment=self._environment,
            settings=self._link_settings,
            configure=self._configure,
            owner=self,
            service=self._name,
        )
        visit = self._visits[record.connection_id] = Visit(session)
        if record.closed:
            session.end()
        return visit

    async def make(self, session: bytes, token: bytes) -> Visit:
        """The session of a peer that is on a link. Raises `StoreError`."""
        self._making.add(session)
        try:
            return await self._make(SessionRecord(_new_id(), Role.SERVICE, self._name, session, token))
        finally:
            self._making.discard(session)

    async def make_plain(self, answerer: str) -> Visit:
        """The session of a plain peer. Raises `StoreError`."""
        record = SessionRecord(
            _new_id(), Role.SERVICE, self._name, b"", b"", kind=PeerKind.PLAIN, answerer=answerer[:255]
        )
        return await self._make(record)

    async def _make(self, record: SessionRecord) -> Visit:
        self._arriving += 1
        try:
            await self._environment.disk.execute(SaveSession(record))
        finally:
            self._arriving -= 1
        return self.restore(record, [])

    def is_known(self, session: bytes) -> bool:
        """Whether there is a session of that id, or is about to be."""
        return session in self._making or self.find(session) is not None

    def find(self, session: bytes) -> Visit | None:
        for visit in self._visits.values():
            if visit.session.record.session == session and visit.state is not ConnectionState.CLOSED:
                return visit
        return None

    def returning(self, answerer: str) -> Visit | None:
        """The connection of a plain peer that comes back: known by its answerer id, and without a live connection."""
        for visit in self._visits.values():
            record = visit.session.record
            known = record.kind is PeerKind.PLAIN and record.answerer == answerer[:255]
            if known and not visit.session.linked and visit.state is not ConnectionState.CLOSED:
                return visit
        return None

    def too_many(self, known: Visit | None) -> Refuse | None:
        limit = self._settings.max_connections
        live = self._arriving
        live += sum(visit.session.connected for visit in self._visits.values() if visit is not known)
        if limit is not None and live >= limit:
            return Refuse(RefuseCode.TOO_MANY, f"{live} peers are connected", 0)
        return None

    def make_place(self) -> Refuse | None:
        """Room for one more session: the one longest absent with nothing queued either way goes first."""
        self.forget_read()
        limit = self._settings.max_sessions
        kept = [visit for visit in self._visits.values() if visit.kept]
        if limit is None or len(kept) + self._arriving < limit:
            return None
        idle = [visit for visit in kept if not visit.session.connected and _empty(visit.session)]
        if not idle:
            return Refuse(RefuseCode.TOO_MANY, f"{len(kept)} sessions are kept", 0)
        oldest = max(idle, key=lambda visit: visit.session.record.absent)
        self._forget(oldest)
        return None

    def keeps_out(self, visit: Visit) -> Refuse | None:
        """Why the peer of a session, which has shown that it is, must not have a link now."""
        if visit.session.record.blocked:
            return Refuse(RefuseCode.DENIED, "this session is blocked", 0)
        if self._environment.clock.monotonic() < visit.kicked_until:
            return Refuse(RefuseCode.TRY_LATER, "this session was sent away for a while", 0)
        return None

    def keeps_out_plain(self, answerer: str) -> Refuse | None:
        """The same for a plain peer, by the word of the signalling server."""
        records = ((visit, visit.session.record) for visit in self._visits.values())
        its = [visit for visit, has in records if has.kind is PeerKind.PLAIN and has.answerer == answerer[:255]]
        return next((refuse for visit in its if (refuse := self.keeps_out(visit)) is not None), None)

    @property
    def missing(self) -> int:
        """Sessions whose link is gone or suspect: their peers are about to dial."""
        return sum(
            visit.session.record.absent < KEPT_LONGER and (not visit.session.connected or visit.session.suspect)
            for visit in self._visits.values()
            if visit.kept and visit.session.record.kind is PeerKind.LINK
        )

    # --- closing ---------------------------------------------------------------------------------------------------

    async def close_all(self, drain: float) -> None:
        closes = [self.close(connection_id, drain) for connection_id in list(self._visits)]
        for outcome in await asyncio.gather(*closes, return_exceptions=True):
            if isinstance(outcome, Exception):  # the closing task has logged it with its traceback
                logger.warning("%s: a connection was not closed in order: %r", self._name, outcome)

    async def close(self, connection_id: str, drain: float) -> None:
        """End one connection for good; returns when it has ended, whoever began to end it. Idempotent."""
        visit = self._visits.get(connection_id)
        if visit is not None and (visit.ending or visit.state is not ConnectionState.CLOSED):
            await asyncio.shield(self._begin_close(visit, drain, "local"))

    def _begin_close(self, visit: Visit, drain: float, by: str) -> asyncio.Task[None]:
        visit.drain.hurry(drain)
        if visit.closing is None or visit.closing.done():
            visit.closing = self.tasks.spawn(self._close(visit, by), f"close {visit.session.connection_id}")
        return visit.closing

    async def _close(self, visit: Visit, by: str) -> None:
        session = visit.session
        if by == "local":
            await visit.drain.run()
        if visit.state is ConnectionState.CLOSED:
            return
        visit.enter(ConnectionState.CLOSED)
        try:
            await store_end(session, f"{self._name} {session.connection_id}")
        finally:
            session.say_goodbye(GoodbyeCode.CLOSING, "closed")
            session.end()
        await self._goodbyes_said(session)
        session.event("closed", {"by": by})
        self._publish("disconnection", {"reason": by}, session.connection_id)

    async def end_closes(self) -> None:
        """Finish the closes under way. A connection that still drains stays: nothing is given up because of a stop."""
        now = asyncio.get_running_loop().time()
        closes = []
        for visit in self._visits.values():
            if visit.closing is not None:
                if visit.state is not ConnectionState.CLOSED and visit.drain.until > now:
                    visit.closing.cancel()
                closes.append(visit.closing)
        if closes:
            await asyncio.wait(closes, timeout=CLOSES)

    def say_goodbye(self, code: GoodbyeCode, reason: str) -> None:
        for visit in self._visits.values():
            visit.session.say_goodbye(code, reason)

    async def let_go(self) -> None:
        """Wait until the goodbyes are said, then stop the sessions; what waits in them can still be read."""
        sessions = [visit.session for visit in self._visits.values()]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GOODBYES_OVER):
                await asyncio.gather(*(session.goodbyes_said() for session in sessions))
        for session in sessions:
            session.stop()

    # --- sending away ----------------------------------------------------------------------------------------------

    def kick(self, visit: Visit, pause: float) -> bool:
        """End the link now, and tell the peer to try later for `pause` seconds. Answers whether there was a link."""
        visit.kicked_until = self._environment.clock.monotonic() + pause
        return self._part(visit, "sent away for a while")

    async def block(self, visit: Visit) -> bool:
        """Refuse the peer from now on, and end the link. Answers whether there was one. Raises `StoreError`."""
        await self._set_blocked(visit, blocked=True)
        for channel in visit.session.channels.values():
            channel.outbox.settle()
        return self._part(visit, "blocked")

    async def unblock(self, visit: Visit) -> None:
        """Take the peer again. Raises `StoreError`."""
        await self._set_blocked(visit, blocked=False)
        self._changed(True)

    async def _set_blocked(self, visit: Visit, *, blocked: bool) -> None:
        session = visit.session
        before = session.record.blocked
        session.machine.record = replace(session.record, blocked=blocked)
        try:
            await self._environment.disk.execute(SaveSession(session.record))
        except StoreError:
            session.machine.record = replace(session.record, blocked=before)
            raise

    def _part(self, visit: Visit, reason: str) -> bool:
        linked = visit.session.connected
        visit.session.say_goodbye(GoodbyeCode.RESTARTING, reason)
        return linked

    async def forget(self, visit: Visit, *, force: bool) -> dict[str, int]:
        """Delete a session with everything in it: how many messages that were, ``out`` and ``in``.

        The peer is told `unknown_session` when it comes again. Raises ``not_empty`` where messages wait, unless `force`, and
        `RequestError` or `StoreError` of a store that fails; what is not deleted then can be forgotten again.
        """
        session = visit.session
        if not force:
            _refuse_waiting(session)
        self.kick(visit, math.inf)
        await self._goodbyes_said(session)
        purged = {"out": 0, "in": 0}
        try:
            if not force:
                _refuse_waiting(session)  # something may have come until the goodbye
            for channel in list(session.channels.values()):
                gone = await channel.purge("both")
                purged = {direction: count + gone[direction] for direction, count in purged.items()}
        finally:
            visit.kicked_until = -math.inf
        self._forget(visit)
        await self._environment.disk.execute(DeleteSession(session.connection_id))
        return purged

    async def _goodbyes_said(self, session: DurableSession) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GOODBYES_OVER):
                await session.goodbyes_said()

    # --- absence ---------------------------------------------------------------------------------------------------

    async def count_absence(self) -> None:
        """Count the time that peers are absent while this daemon runs; end what has been held long enough."""
        while True:
            await asyncio.sleep(ABSENCE_STEP)
            self.forget_read()
            for visit in list(self._visits.values()):
                try:
                    await self._add_absence(visit)
                except (RequestError, StoreError) as error:
                    logger.warning("%s %s: absence: %s", self._name, visit.session.connection_id, error)
                except Exception as error:
                    logger.exception("%s %s: counting absence failed", self._name, visit.session.connection_id)
                    self.trouble.add(error)
                else:
                    self.trouble.end()

    async def _add_absence(self, visit: Visit) -> None:
        session, expiry = visit.session, self._settings.session_expiry
        if visit.state is ConnectionState.CLOSED or session.connected:
            return
        before = session.record.absent
        absent = before + ABSENCE_STEP
        session.machine.record = replace(session.record, absent=absent)
        if absent - visit.absent_saved >= ABSENCE_SAVED:
            visit.absent_saved = absent
            await self._environment.disk.execute(SaveSession(session.record))
        if expiry is None or absent < expiry or session.record.blocked:
            return
        if before < expiry:
            self._publish("disconnection", {"reason": "expired"}, session.connection_id)
        if any(channel.outbox.count for channel in session.channels.values()):
            await self._expire(session)
        elif absent >= expiry + (KEPT_LONGER if session.record.kind is PeerKind.LINK else 0.0) and _empty(session):
            self._forget(visit)

    async def _expire(self, session: DurableSession) -> None:
        """What is held for an absent peer goes, and is reported; numbers stay, so that it can be told."""
        for channel in list(session.channels.values()):
            if not session.connected:
                await channel.remove_all(Reason.EXPIRED)

    def forget_read(self) -> None:
        """Forget closed connections in which nothing waits any more, once their goodbyes have been said."""
        for visit in list(self._visits.values()):
            ended = visit.session.record.closed and not visit.ending and not visit.session.linked
            if ended and _nothing_waits(visit.session):
                self._forget(visit)

    def _forget(self, visit: Visit) -> None:
        """Delete a session with everything in it; whoever uses it is told."""
        session = visit.session
        if visit.state is not ConnectionState.CLOSED:
            visit.enter(ConnectionState.CLOSED)
            session.end()
            self._publish("disconnection", {"reason": "forgotten"}, session.connection_id)
        self._visits.pop(session.connection_id, None)
        session.forget()

    # --- owner of the sessions -------------------------------------------------------------------------------------

    def link_up(self, session: DurableSession, effect: LinkUp) -> None:
        visit = self._visits[session.connection_id]
        visit.absent_saved = 0.0
        if visit.state is not ConnectionState.CONNECTED:
            visit.enter(ConnectionState.CONNECTED)
            session.event("connected", {"resumed": effect.resumed})
            how = "resumed" if effect.resumed else "new session"
            logger.info(
                "%s %s: connected (%s)",
                self._name,
                session.connection_id,
                how,
                extra=fields("connected", session.connection_id),
            )
        if not effect.resumed:
            self._count("connections")
            facts = {"peer_name": session.record.peer_name, "kind": str(session.record.kind)}
            self._publish("connection", facts, session.connection_id)
        self._changed(False)

    def link_down(self, session: DurableSession, effect: LinkDown) -> None:
        if not effect.current:
            return
        visit = self._visits[session.connection_id]
        if visit.state is ConnectionState.CLOSED:
            return
        if effect.code == GoodbyeCode.CLOSING:
            self._begin_close(visit, 0.0, "peer")
            return
        visit.enter(ConnectionState.DISCONNECTED)
        session.event("disconnected", {"reason": effect.code, "message": effect.reason})
        logger.info(
            "%s %s: link lost: %s: %s",
            self._name,
            session.connection_id,
            effect.code,
            effect.reason,
            extra=fields("disconnected", session.connection_id),
        )
        self._changed(True)

    def suspect(self, session: DurableSession, effect: Suspect) -> None:
        session.event("suspect", {"silence": round(effect.silence, 1), "unheard": effect.unheard})
        logger.info(
            "%s %s: %s",
            self._name,
            session.connection_id,
            effect.as_text(),
            extra=fields("suspect", session.connection_id),
        )
        self._changed(True)

    def recovered(self, session: DurableSession, effect: Recovered) -> None:
        session.event("recovered", {})

    def session_failed(self, session: DurableSession, effect: SessionFailed) -> None:
        logger.error("%s %s: %s: %s", self._name, session.connection_id, effect.code, effect.reason)
        facts = {"context": "session", "code": effect.code, "message": effect.reason}
        self._publish("error", facts, session.connection_id)

    def refusal(self, session: DurableSession) -> tuple[str, str] | None:
        visit = self._visits.get(session.connection_id)
        if visit is None or visit.state is ConnectionState.CLOSED:
            return "closed", "the connection is closed"
        if session.record.blocked:
            return "blocked", "the peer is blocked"
        return None

    def discard(self, connection: PeerConnection) -> None:
        self.tasks.spawn(connection.close(), f"close a connection of {self._name}")

    def _publish(self, name: str, data: dict[str, Any], connection_id: str | None = None) -> None:
        self._environment.publish(name, data, service=self._name, connection_id=connection_id)


def _new_delays() -> Iterator[float]:
    return delays(ABSENCE_STEP, ABSENCE_STEP, 0.0, random.random)


def _new_id() -> str:
    return f"conn-{secrets.token_hex(8)}"


def _empty(session: DurableSession) -> bool:
    return all(not channel.keeps and not channel.outbox.count for channel in session.channels.values())


def _refuse_waiting(session: DurableSession) -> None:
    """Raises ``not_empty`` where messages wait."""
    channels = session.channels.values()
    queued, waiting = sum(channel.outbox.count for channel in channels), sum(channel.waiting for channel in channels)
    if queued or waiting:
        message = f"{queued} messages wait for the peer and {waiting} for programs here"
        raise RequestError("not_empty", message, {"queue_size": queued, "waiting": waiting})


def _nothing_waits(session: DurableSession) -> bool:
    return all(not channel.keeps for channel in session.channels.values())
