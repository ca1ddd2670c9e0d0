"""DurableService: published at the signalling server, with a pool of open offers, and the sessions of those who came.

Two tasks: one keeps the publication and the pool (refresh before the TTL ends, refill, expiry), one polls for answers. Each
answered offer is greeted in a task of its own: data channel, hello, then it is a link of a session. A session stays when
its link is lost, with its connection id and its queues, until the peer comes back, closes, or `session_expiry` is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import secrets
from collections import Counter
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from rondevud.backoff import Trouble, delays
from rondevud.durable import frames, greeting, sdp
from rondevud.durable.contact import Contact, Trickle
from rondevud.durable.effects import LinkDown, LinkUp, Recovered, SessionFailed, Suspect
from rondevud.durable.frames import GoodbyeCode, Refuse, RefuseCode
from rondevud.durable.greeting import CONNECTING, Greeting
from rondevud.durable.handshake import Fingerprints, judge_hello
from rondevud.durable.link import GOODBYE_TIMEOUT, LinkSettings
from rondevud.durable.pool import OfferPool, PendingOffer, accept_answer
from rondevud.durable.ports import Configure
from rondevud.durable.session import DurableSession, Environment
from rondevud.durable.settings import PeerChoice, ServiceSettings
from rondevud.durable.states import CONNECTION_TRANSITIONS, ConnectionState, check
from rondevud.errors import (
    PeerError,
    RequestError,
    RondevuError,
    SignallingError,
    SignallingRejected,
    StoreError,
    TransportError,
)
from rondevud.records import ChannelRecord, PeerKind, Reason, Role, SaveSession, SessionRecord
from rondevud.signalling.base import Answer, Signalling
from rondevud.transport.base import DataChannel, Engine, PeerConnection

logger = logging.getLogger(__name__)

RETRY = (1.0, 30.0)
"""Seconds between attempts to publish: the first, and the longest, pause; doubled in between, with jitter."""

POLL_RETRY = 5.0
"""Seconds between polls that fail, at most: whoever dials waits for the first that succeeds."""

MISSING_POLL = 0.5
"""Seconds between two polls while a session is without a link."""

KEPT_LONGER = 30 * 86_400.0
"""Seconds that token, epochs and numbers outlive the queues of an absent peer."""

ABSENCE_STEP = 60.0
"""Seconds between two looks at how long peers have been absent."""

ABSENCE_SAVED = 600.0
"""Seconds of absence after which it is written down: what a restart may forget of it."""

PLAIN_CONNECTING = 30.0
"""Seconds that a plain peer gets from its answer to a connection: the seed's timeout; candidates may come slowly."""

GREETINGS_MOST = 64
"""Answered offers that are waited for at once; answers beyond that are discarded: anybody can send some."""

CLOSES = 5.0
"""Seconds that a stop gives the closes under way."""

WITHDRAWAL = 2.0
"""Seconds that a stop gives the signalling server to forget our offers; it forgets them by itself when their TTL ends."""


class Visit:
    """A session of the service as its users see it: one connection."""

    def __init__(self, session: DurableSession) -> None:
        self.session = session
        self.state = ConnectionState.CLOSED if session.record.closed else ConnectionState.DISCONNECTED
        self.absent_saved = session.record.absent
        self.closing: asyncio.Task[None] | None = None
        """The one task that ends this connection, however many ask for it."""
        self.drain_until = math.inf
        """When the closing task gives up what is not acknowledged, in the time of the loop."""
        self._draining: asyncio.Timeout | None = None

    @property
    def ending(self) -> bool:
        """Whether the closing task is at work."""
        return self.closing is not None and not self.closing.done()

    def hurry(self, drain: float) -> None:
        """Drain for so many seconds from now on at most."""
        self.drain_until = min(self.drain_until, asyncio.get_running_loop().time() + drain)
        if self._draining is not None and not self._draining.expired():
            self._draining.reschedule(self.drain_until)

    async def drain(self) -> None:
        """Close all labels, and wait until the peer has everything or the time is over."""
        for label in list(self.session.channels):
            self.session.close_label(label)
        try:
            async with asyncio.timeout_at(self.drain_until) as self._draining:
                await self.session.drained()
        except TimeoutError:
            pass
        finally:
            self._draining = None


class DurableService:
    """The service side of all its sessions. It is their owner."""

    def __init__(
        self,
        settings: ServiceSettings,
        *,
        environment: Environment,
        signalling: Signalling,
        engine: Engine,
        configure: Configure,
    ) -> None:
        self.settings = settings
        self.visits: dict[str, Visit] = {}
        """By connection id."""
        self.counters: Counter[str] = Counter()
        self.ephemeral = environment.ephemeral
        self.stopped = False
        self._environment = environment
        self._signalling = signalling
        self._configure = configure
        self._publishing = Trouble(_new_delays)
        self._polling = Trouble(_new_delays)
        self._counting = Trouble(_new_delays)
        self._publisher = signalling.publisher(settings.username, settings.fqn)
        self.pool = OfferPool(settings, self._publisher, engine, environment.clock.monotonic, self.discard)
        self.published = asyncio.Event()
        """Set while the service is published, as far as we know."""
        self._changed = asyncio.Event()
        self._missed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        """Closes and discards: they are waited for."""
        self._greetings: set[asyncio.Task[None]] = set()
        """Answers on their way to a link: they are cancelled."""
        self._loops: list[asyncio.Task[None]] = []
        self._holding: asyncio.Task[None] | None = None
        """Counts absence while the service is only held."""
        self._making: set[bytes] = set()
        self._link_settings = self._make_link_settings()

    @property
    def name(self) -> str:
        """``USER/FQN``."""
        return self.settings.name

    @property
    def last_error(self) -> str | None:
        """What keeps failing at present; None when nothing does."""
        return self._publishing.message or self._polling.message or self._counting.message

    # --- life ------------------------------------------------------------------------------------------------------

    def restore(self, record: SessionRecord, channels: list[ChannelRecord]) -> None:
        """A session of the store, before `start`."""
        self._add_session(record, channels)

    def start(self) -> None:
        """Publish, and take whoever comes. A signalling server that is down only delays that."""
        self.stopped = False
        for work, what in (
            (self._publication_loop(), "publication"),
            (self._answers_loop(), "answers"),
            (self._absence_loop(), "absence"),
        ):
            name = f"service {self.name} {what}"
            self._loops.append(asyncio.get_running_loop().create_task(work, name=name))

    def hold(self) -> None:
        """Keep the sessions of a service that is not declared any more as long as a declared one would; take nobody.

        Idempotent; `release` and `stop` end it.
        """
        self.stopped = True
        if self._holding is None:
            name = f"service {self.name} held"
            self._holding = asyncio.get_running_loop().create_task(self._absence_loop(), name=name)

    async def retire(self) -> None:
        """It is not declared any more: take it off the server, send its peers away for now, and `hold` their sessions."""
        await self._end_loops()
        self.published.clear()
        await self._withdraw_offers()
        self.pool.forget()
        for visit in self.visits.values():
            visit.session.say_goodbye(GoodbyeCode.RESTARTING, "the service is given up for now")
        self._publish("closed", {})
        self.hold()

    def release(self) -> None:
        """The sessions are not held any more: the service is declared again, or nothing is left. Idempotent."""
        task, self._holding = self._holding, None
        if task is not None:
            task.cancel()

    def reconfigure(self, settings: ServiceSettings, configure: Configure) -> None:
        """Take other settings over, of the same name, without disturbing anybody.

        Limits of queues hold for what is accepted from now on, what the peer is told at the beginning of a link from the
        next link on.
        """
        self.settings = settings
        self._configure = configure
        self._link_settings = self._make_link_settings()
        self.pool.reconfigure(settings)
        for visit in self.visits.values():
            visit.session.reconfigure(self._link_settings, configure)
        self._expect_back()

    def _make_link_settings(self) -> LinkSettings:
        return LinkSettings(
            daemon=f"rondevud/{self._environment.version}",
            max_message=self.settings.max_message,
            heartbeat=self.settings.heartbeat,
            session_expiry=self.settings.session_expiry,
            max_channels=self.settings.max_channels,
            reserved_labels=self.settings.peer is PeerChoice.PLAIN,
        )

    async def stop(self) -> None:
        """The daemon stops: peers are told to come back; the service stays declared.

        Its offers leave the server first: a peer that dialled one of them would wait for nobody.
        """
        await self._end_loops()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WITHDRAWAL):
                await self._withdraw_offers()
        await self._end_closes()
        for visit in self.visits.values():
            visit.session.say_goodbye(GoodbyeCode.RESTARTING, "the daemon stops")
        await self._let_go()

    async def withdraw(self, drain: float, *, keep_connections: bool) -> None:
        """Remove the service and its offers from the server; close its connections unless they are to be kept."""
        await self._end_loops()
        self.published.clear()
        await self._withdraw_offers()
        self.pool.forget()
        if not keep_connections:
            await self._close_all(drain)
            await self._let_go()
        self._publish("closed", {})

    async def _withdraw_offers(self) -> None:
        """An error ends neither a stop nor a withdrawal: the server forgets offers by itself."""
        try:
            await self._publisher.withdraw()
        except RondevuError as error:
            logger.info("%s: its offers stay at the server until their TTL ends: %s", self.name, error)

    async def _close_all(self, drain: float) -> None:
        closes = [self.close(connection_id, drain) for connection_id in list(self.visits)]
        for outcome in await asyncio.gather(*closes, return_exceptions=True):
            if isinstance(outcome, Exception):  # the closing task has logged it with its traceback
                logger.warning("%s: a connection was not closed in order: %r", self.name, outcome)

    async def close(self, connection_id: str, drain: float) -> None:
        """End one connection for good; returns when it has ended, whoever began to end it. Idempotent."""
        visit = self.visits.get(connection_id)
        if visit is not None and (visit.ending or visit.state is not ConnectionState.CLOSED):
            await asyncio.shield(self._begin_close(visit, drain, "local"))

    def _begin_close(self, visit: Visit, drain: float, by: str) -> asyncio.Task[None]:
        visit.hurry(drain)
        if visit.closing is None or visit.closing.done():
            visit.closing = self._spawn(self._close(visit, by), f"close {visit.session.connection_id}")
        return visit.closing

    async def _close(self, visit: Visit, by: str) -> None:
        session = visit.session
        if by == "local":
            await visit.drain()
        if visit.state is ConnectionState.CLOSED:
            return
        self._enter(visit, ConnectionState.CLOSED)
        try:
            await self._store_close(session)
        finally:
            session.say_goodbye(GoodbyeCode.CLOSING, "closed")
            session.end()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2 * GOODBYE_TIMEOUT):
                await session.goodbyes_said()
        session.event("closed", {"by": by})
        self._publish("disconnection", {"reason": by}, session.connection_id)

    async def _store_close(self, session: DurableSession) -> None:
        """Take what was not acknowledged out of the store. A store that fails does not keep the connection open."""
        try:
            for channel in list(session.channels.values()):
                await channel.remove_all(Reason.PURGED, keep_closing=False)
        except RequestError as error:
            logger.warning(
                "%s %s: closing: its messages stay in the store: %s", self.name, session.connection_id, error
            )
        try:
            await session.mark_closed()
        except StoreError as error:
            logger.warning("%s %s: closing: the end is not stored: %s", self.name, session.connection_id, error)

    async def _end_closes(self) -> None:
        """Finish the closes under way. A connection that still drains stays: nothing is given up because of a stop."""
        now = asyncio.get_running_loop().time()
        closes = []
        for visit in self.visits.values():
            if visit.closing is not None:
                if visit.state is not ConnectionState.CLOSED and visit.drain_until > now:
                    visit.closing.cancel()
                closes.append(visit.closing)
        if closes:
            await asyncio.wait(closes, timeout=CLOSES)

    async def _end_loops(self) -> None:
        self.stopped = True
        self.release()
        running = [*self._loops, *self._greetings]
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=5.0)
        self._loops.clear()

    async def _let_go(self) -> None:
        sessions = [visit.session for visit in self.visits.values()]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2 * GOODBYE_TIMEOUT):
                await asyncio.gather(*(session.goodbyes_said() for session in sessions))
        for session in sessions:
            session.stop()
        self.pool.close()
        while self._tasks:
            _, left = await asyncio.wait(self._tasks, timeout=5.0)
            if left:
                break

    # --- publication -----------------------------------------------------------------------------------------------

    async def _publication_loop(self) -> None:
        while True:
            self._changed.clear()
            try:
                await self._keep_published()
            except Exception as error:  # noqa: BLE001 - the edge of this task: told and logged
                if _is_forgotten(error):
                    self._forget_publication()
                self._tell_trouble(self._publishing, error, "publish")
                await self._wait(self._publishing.delay(error))
            else:
                self._publishing.end()
                due = self.pool.next_change()
                now = self._environment.clock.monotonic()
                await self._wait(max(0.05, due - now) if due is not None else RETRY[1], changes=True)

    def _tell_trouble(self, trouble: Trouble, error: Exception, context: str) -> None:
        """Count a failure and tell the service's programs; what is news goes into the log, bugs with their traceback."""
        self.counters[f"{context}_errors"] += 1
        known = isinstance(error, RondevuError)
        if trouble.add(error):
            level = logging.WARNING if known else logging.ERROR
            logger.log(level, "%s: %s: %s", self.name, context, error, exc_info=None if known else error)
        code = getattr(error, "code", "signalling") if known else "internal"
        self._publish("error", {"context": context, "code": code, "message": trouble.message})

    def _forget_publication(self) -> None:
        """The signalling server does not know us any more: everything has to be published again."""
        self.pool.forget()
        self.published.clear()
        self._changed.set()

    async def _keep_published(self) -> None:
        """Whatever is due now: publication, refresh, offers."""
        now = self._environment.clock.monotonic()
        if self.pool.refresh_at is None or self.pool.refresh_at <= now:
            await self._publish_service()
        try:
            if await self.pool.refill(self._missing):
                self.counters["offers"] += 1
        except SignallingRejected as error:
            if self.published.is_set() or not _is_forgotten(error):
                raise
            return  # a poll was told meanwhile that the server has forgotten us: everything is published again at once
        self.pool.drop_expired()

    async def _publish_service(self) -> None:
        before = self.pool.publication
        try:
            publication = await self.pool.publish()
        except SignallingRejected as error:
            if error.code == "offer_taken":
                raise SignallingError(str(error)) from error
            raise
        self.published.set()
        if before is None:
            facts = {"service_id": publication.service_id, "uuid": publication.uuid}
            self._publish("published", {**facts, "expires_at": publication.expires_at})
            logger.info("%s: published as %s", self.name, publication.uuid)
        else:
            self._publish("ttl_refreshed", {"expires_at": publication.expires_at})

    @property
    def _missing(self) -> int:
        """Sessions whose link is gone or suspect: their peers are about to dial."""
        return sum(
            visit.session.record.absent < KEPT_LONGER and (not visit.session.connected or visit.session.suspect)
            for visit in self.visits.values()
            if visit.state is not ConnectionState.CLOSED and visit.session.record.kind is PeerKind.LINK
        )

    async def _wait(self, seconds: float, *, changes: bool = False) -> None:
        """Sleep; with `changes` only until the pool changes."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await (self._changed.wait() if changes else asyncio.Event().wait())

    # --- answers ---------------------------------------------------------------------------------------------------

    async def _answers_loop(self) -> None:
        while True:
            await self.published.wait()
            try:
                for answer in await self._publisher.answers():
                    self._on_answer(answer)
            except Exception as error:  # noqa: BLE001 - the edge of this task: told and logged
                await self._poll_failed(error)
            else:
                self._polling.end()
                await self._pause_poll()

    async def _poll_failed(self, error: Exception) -> None:
        """Tell, and wait. A server that forgets us again and again gets publications further and further apart."""
        self._tell_trouble(self._polling, error, "poll")
        delay = self._polling.delay(error)
        if _is_forgotten(error):
            self._forget_publication()
        else:
            delay = max(min(delay, POLL_RETRY), getattr(error, "retry_after", None) or 0.0)
        await self._wait(delay)

    async def _pause_poll(self) -> None:
        """The polling interval; shorter as soon as a session is missed."""
        self._missed.clear()
        if self._missing:
            await asyncio.sleep(min(MISSING_POLL, self.settings.polling_interval))
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.polling_interval):
                await self._missed.wait()

    def _on_answer(self, answer: Answer) -> None:
        offer = self.pool.take(answer.offer_id)
        self._changed.set()
        if offer is None:
            logger.info("%s: an answer is ignored: its offer has been answered, has expired or is not ours", self.name)
            self.counters["answers_ignored"] += 1
            return
        if len(self._greetings) >= GREETINGS_MOST:
            self.counters["greetings_discarded"] += 1
            logger.warning("%s: an answer is discarded: %d others are waited for", self.name, len(self._greetings))
            self.discard(offer.connection)
            return
        self._spawn(self._greet(offer, answer), f"greet {self.name}", self._greetings)

    async def _greet(self, offer: PendingOffer, answer: Answer) -> None:
        """From an answer to a link of a session, or a plain connection, or to a refusal that names its reason."""
        try:
            if self._is_plain(answer):
                await self._contact(offer, answer)
                return
            fingerprints = Fingerprints(sdp.fingerprint(offer.sdp), sdp.fingerprint(answer.sdp))
            arrival = Greeting(offer.connection, self._environment.count)
            await accept_answer(offer, answer.sdp, CONNECTING)
            channel, hello = await arrival.hello()
            await self._admit(offer.connection, channel, hello, fingerprints)
        except (PeerError, TransportError) as error:
            self.counters["refused_answers"] += 1
            logger.info("%s: an answer came to nothing: %s", self.name, error)
            self._publish("error", {"context": "connection", "code": "connection", "message": str(error)})
            self.discard(offer.connection)
        except BaseException:
            self.discard(offer.connection)
            raise
        await self._delete_answered(answer.offer_id)

    async def _delete_answered(self, offer_id: str) -> None:
        """Servers repeat an answer with every poll until its offer is gone; nobody needs it once the connection is up."""
        try:
            await self._publisher.delete_offer(offer_id)
        except SignallingError as error:
            logger.debug("%s: an answered offer stays at the server until its TTL ends: %s", self.name, error)

    def _is_plain(self, answer: Answer) -> bool:
        """Whether to take the answer as a plain peer's. Raises `PeerError` where only a link will do."""
        choice = self.settings.peer
        if choice is PeerChoice.PLAIN:
            return True
        if frames.VERSION in sdp.link_versions(answer.sdp):
            return False
        if choice is PeerChoice.LINK:
            raise PeerError("not_a_link: the peer speaks no link, and peer is set to link")
        return True

    async def _contact(self, offer: PendingOffer, answer: Answer) -> None:
        """Wait for the connection with a plain peer, and hand it to its session."""
        contact = Contact(offer.connection, [offer.channel])
        trickle = Trickle(
            sdp.candidates(offer.sdp),
            partial(self._publisher.add_candidates, offer.offer_id),
            partial(self._publisher.candidates, offer.offer_id),
        )
        await accept_answer(offer, answer.sdp, CONNECTING)
        try:
            async with asyncio.timeout(PLAIN_CONNECTING):
                await contact.connected(trickle)
        except TimeoutError:
            raise TransportError("no connection with the plain peer in time") from None
        visit = self._returning(answer.answerer_id)
        refuse = self._too_many(visit) or (None if visit else self._make_place())
        if refuse is not None:
            self.counters[f"refused_{refuse.code}"] += 1
            raise PeerError(f"{refuse.code}: {refuse.reason}")
        if visit is None:
            visit = await self._make_plain_visit(answer.answerer_id)
        visit.session.open_plain(offer.connection, contact.channels, dialled=False)

    def _returning(self, answerer: str) -> Visit | None:
        """The connection of a plain peer that comes back: known by its answerer id, and without a live connection."""
        for visit in self.visits.values():
            record = visit.session.record
            if record.kind is PeerKind.PLAIN and record.answerer == answerer and not visit.session.linked:
                return visit if visit.state is not ConnectionState.CLOSED else None
        return None

    async def _make_plain_visit(self, answerer: str) -> Visit:
        connection_id = f"conn-{secrets.token_hex(8)}"
        record = SessionRecord(
            connection_id, Role.SERVICE, self.name, b"", b"", kind=PeerKind.PLAIN, answerer=answerer[:255]
        )
        try:
            await self._environment.disk.execute(SaveSession(record))
        except StoreError as error:
            raise PeerError(f"store: {error}") from error
        return self._add_session(record, [])

    async def _admit(
        self, connection: PeerConnection, channel: DataChannel, hello: frames.Hello, fingerprints: Fingerprints
    ) -> None:
        known = self._find(hello.session)
        refuse = judge_hello(hello, known.session.record if known else None, fingerprints) or self._too_many(known)
        if refuse is not None and refuse.code is RefuseCode.UNKNOWN_SESSION:
            # The connecting side says hello again, in the same channel, under a new session.
            channel.send(frames.encode(refuse))
            hello = await Greeting.again(connection, channel)
            await self._admit_new(connection, channel, hello, fingerprints)
        elif refuse is not None and refuse.code is RefuseCode.OLDER_LINK:
            channel.send(frames.encode(refuse))
            hello = await Greeting.again(connection, channel)
            await self._admit(connection, channel, hello, fingerprints)
        elif refuse is not None:
            await self._refuse(connection, channel, refuse)
        elif known is not None:
            known.session.accept_link(connection, channel, hello, fingerprints, resumed=True)
        else:
            await self._admit_new(connection, channel, hello, fingerprints)

    async def _admit_new(
        self, connection: PeerConnection, channel: DataChannel, hello: frames.Hello, fingerprints: Fingerprints
    ) -> None:
        if hello.token is None or self._find(hello.session) is not None or hello.session in self._making:
            await self._refuse(connection, channel, Refuse(RefuseCode.TRY_LATER, "this session is being made", 0))
            return
        refuse = self._too_many(None) or self._make_place()
        if refuse is not None:
            await self._refuse(connection, channel, refuse)
            return
        connection_id = f"conn-{secrets.token_hex(8)}"
        record = SessionRecord(connection_id, Role.SERVICE, self.name, hello.session, hello.token)
        self._making.add(hello.session)
        try:
            await self._environment.disk.execute(SaveSession(record))
        except StoreError as error:
            await self._refuse(connection, channel, Refuse(RefuseCode.TRY_LATER, f"store: {error}"[:200], 0))
            return
        finally:
            self._making.discard(hello.session)
        visit = self._add_session(record, [])
        visit.session.accept_link(connection, channel, hello, fingerprints, resumed=False)

    def _find(self, session: bytes) -> Visit | None:
        for visit in self.visits.values():
            if visit.session.record.session == session and visit.state is not ConnectionState.CLOSED:
                return visit
        return None

    def _too_many(self, known: Visit | None) -> Refuse | None:
        limit = self.settings.max_connections
        live = sum(visit.session.connected for visit in self.visits.values() if visit is not known)
        if limit is not None and live >= limit:
            return Refuse(RefuseCode.TOO_MANY, f"{live} peers are connected", 0)
        return None

    def _make_place(self) -> Refuse | None:
        """Room for one more session: the one longest absent with nothing queued either way goes first."""
        self.forget_read()
        limit = self.settings.max_sessions
        kept = [visit for visit in self.visits.values() if visit.state is not ConnectionState.CLOSED]
        if limit is None or len(kept) < limit:
            return None
        idle = [visit for visit in kept if not visit.session.connected and _empty(visit.session)]
        if not idle:
            return Refuse(RefuseCode.TOO_MANY, f"{len(kept)} sessions are kept", 0)
        oldest = max(idle, key=lambda visit: visit.session.record.absent)
        self._forget(oldest)
        return None

    async def _refuse(self, connection: PeerConnection, channel: DataChannel, refuse: Refuse) -> None:
        """Say why not; the connection is closed when the peer has had time to read it."""
        self.counters[f"refused_{refuse.code}"] += 1
        logger.info("%s: a peer is refused: %s: %s", self.name, refuse.code, refuse.reason)
        await greeting.refuse(connection, channel, refuse)
        self.discard(connection)

    # --- sessions --------------------------------------------------------------------------------------------------

    def _add_session(self, record: SessionRecord, channels: list[ChannelRecord]) -> Visit:
        session = DurableSession(
            record,
            channels,
            environment=self._environment,
            settings=self._link_settings,
            configure=self._configure,
            owner=self,
            service=self.name,
        )
        visit = self.visits[record.connection_id] = Visit(session)
        if record.closed:
            session.end()
        return visit

    async def _absence_loop(self) -> None:
        """Count the time that peers are absent while this daemon runs; end what has been held long enough."""
        while True:
            await asyncio.sleep(ABSENCE_STEP)
            self.forget_read()
            for visit in list(self.visits.values()):
                try:
                    await self._count_absence(visit)
                except (RequestError, StoreError) as error:
                    logger.warning("%s %s: absence: %s", self.name, visit.session.connection_id, error)
                except Exception as error:
                    logger.exception("%s %s: counting absence failed", self.name, visit.session.connection_id)
                    self._counting.add(error)
                else:
                    self._counting.end()

    async def _count_absence(self, visit: Visit) -> None:
        session, expiry = visit.session, self.settings.session_expiry
        if visit.state is ConnectionState.CLOSED or session.connected:
            return
        before = session.record.absent
        absent = before + ABSENCE_STEP
        session.machine.record = replace(session.record, absent=absent)
        if absent - visit.absent_saved >= ABSENCE_SAVED:
            visit.absent_saved = absent
            await self._environment.disk.execute(SaveSession(session.record))
        if expiry is None or absent < expiry:
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
        for visit in list(self.visits.values()):
            ended = visit.session.record.closed and not visit.ending and not visit.session.linked
            if ended and _nothing_waits(visit.session):
                self._forget(visit)

    def _forget(self, visit: Visit) -> None:
        """Delete a session with everything in it; whoever uses it is told."""
        session = visit.session
        if visit.state is not ConnectionState.CLOSED:
            self._enter(visit, ConnectionState.CLOSED)
            session.end()
            self._publish("disconnection", {"reason": "forgotten"}, session.connection_id)
        self.visits.pop(session.connection_id, None)
        session.forget()

    # --- owner of the sessions -------------------------------------------------------------------------------------

    def link_up(self, session: DurableSession, effect: LinkUp) -> None:
        visit = self.visits[session.connection_id]
        visit.absent_saved = 0.0
        if visit.state is not ConnectionState.CONNECTED:
            self._enter(visit, ConnectionState.CONNECTED)
            session.event("connected", {"resumed": effect.resumed})
        if not effect.resumed:
            self.counters["connections"] += 1
            facts = {"peer_name": session.record.peer_name, "kind": str(session.record.kind)}
            self._publish("connection", facts, session.connection_id)
        self._changed.set()

    def link_down(self, session: DurableSession, effect: LinkDown) -> None:
        if not effect.current:
            return
        visit = self.visits[session.connection_id]
        if visit.state is ConnectionState.CLOSED:
            return
        if effect.code == GoodbyeCode.CLOSING:
            self._begin_close(visit, 0.0, "peer")
            return
        self._enter(visit, ConnectionState.DISCONNECTED)
        session.event("disconnected", {"reason": effect.code, "message": effect.reason})
        logger.info("%s %s: link lost: %s: %s", self.name, session.connection_id, effect.code, effect.reason)
        self._expect_back()

    def suspect(self, session: DurableSession, effect: Suspect) -> None:
        session.event("suspect", {"silence": round(effect.silence, 1)})
        self._expect_back()

    def recovered(self, session: DurableSession, effect: Recovered) -> None:
        session.event("recovered", {})

    def session_failed(self, session: DurableSession, effect: SessionFailed) -> None:
        logger.error("%s %s: %s: %s", self.name, session.connection_id, effect.code, effect.reason)
        facts = {"context": "session", "code": effect.code, "message": effect.reason}
        self._publish("error", facts, session.connection_id)

    def refusal(self, session: DurableSession) -> tuple[str, str] | None:
        visit = self.visits.get(session.connection_id)
        if visit is None or visit.state is ConnectionState.CLOSED:
            return "closed", "the connection is closed"
        return None

    def discard(self, connection: PeerConnection) -> None:
        self._spawn(connection.close(), f"close a connection of {self.name}")

    def _expect_back(self) -> None:
        self._missed.set()
        self._changed.set()

    def _spawn(
        self, work: Coroutine[Any, Any, None], name: str, owner: set[asyncio.Task[None]] | None = None
    ) -> asyncio.Task[None]:
        owner = self._tasks if owner is None else owner
        task = asyncio.get_running_loop().create_task(work, name=name)
        owner.add(task)
        task.add_done_callback(owner.discard)
        task.add_done_callback(self._spawned_done)
        return task

    def _spawned_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            logger.error("%s: %s failed", self.name, task.get_name(), exc_info=task.exception())

    def _enter(self, visit: Visit, state: ConnectionState) -> None:
        previous = visit.state
        check(CONNECTION_TRANSITIONS, previous, state)
        visit.state = state
        visit.session.event("state", {"new": str(state), "previous": str(previous)})

    def _publish(self, name: str, data: dict[str, Any], connection_id: str | None = None) -> None:
        self._environment.publish(name, data, service=self.name, connection_id=connection_id)


def _empty(session: DurableSession) -> bool:
    return all(not channel.waiting and not channel.outbox.count for channel in session.channels.values())


def _nothing_waits(session: DurableSession) -> bool:
    return all(not channel.waiting for channel in session.channels.values())


def _is_forgotten(error: Exception) -> bool:
    """Whether the signalling server does not know, or not any more, the peer that publishes."""
    return isinstance(error, SignallingRejected) and error.code == "unauthorized"


def _new_delays() -> Iterator[float]:
    first, longest = RETRY
    return delays(first, longest, 0.2, random.SystemRandom().random)
