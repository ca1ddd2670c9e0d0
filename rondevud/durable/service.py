"""DurableService: published at the signalling server, with a pool of open offers, and the sessions of those who came.

Two tasks: one keeps the publication and the pool (refresh before the TTL ends, refill, expiry), one polls for answers. Each
answered offer is received in a task of its own (`rondevud.durable.reception`); what comes of it is a session among `visits`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

from rondevud.backoff import Trouble, delays
from rondevud.durable.frames import GoodbyeCode
from rondevud.durable.pool import OfferPool, PendingOffer
from rondevud.durable.ports import Configure
from rondevud.durable.reception import Reception
from rondevud.durable.session import Environment
from rondevud.durable.settings import ServiceSettings
from rondevud.durable.tasks import Tasks
from rondevud.durable.visits import Visits
from rondevud.errors import PeerError, RondevuError, SignallingError, SignallingRejected, TransportError
from rondevud.logs import fields
from rondevud.records import ChannelRecord, SessionRecord
from rondevud.signalling.base import Answer, Signalling
from rondevud.transport.base import Engine

logger = logging.getLogger(__name__)

RETRY = (1.0, 30.0)
"""Seconds between attempts to publish: the first, and the longest, pause; doubled in between, with jitter."""

FIRST_MINUTE = 60.0
"""Seconds from the first failure on in which attempts to publish follow each other soon, if peers are missed."""

FIRST_MINUTE_DELAY = 2.0

POLL_RETRY = 5.0
"""Seconds between polls that fail, at most: whoever dials waits for the first that succeeds."""

MISSING_POLL = 0.5
"""Seconds between two polls while a session is without a link."""

GREETINGS_MOST = 64
"""Answered offers that are waited for at once; answers beyond that are discarded: anybody can send some."""

WITHDRAWAL = 2.0
"""Seconds that a stop gives the signalling server to forget our offers; it forgets them by itself when their TTL ends."""


class DurableService:
    """The service: its publication, its offers, and who comes by them."""

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
        self.counters: Counter[str] = Counter()
        self.ephemeral = environment.ephemeral
        self.stopped = False
        self._environment = environment
        self._publishing = Trouble(_new_delays)
        self._unpublished_at: float | None = None
        """When publishing began to fail."""
        self._polling = Trouble(_new_delays)
        self._publisher = signalling.publisher(settings.username, settings.fqn)
        self.visits = Visits(
            settings,
            environment=environment,
            configure=configure,
            count=self._count,
            changed=self._visits_changed,
        )
        self.pool = OfferPool(settings, self._publisher, engine, environment.clock.monotonic, self.visits.discard)
        self.published = asyncio.Event()
        """Set while the service is published, as far as we know."""
        self._changed = asyncio.Event()
        self._missed = asyncio.Event()
        self._reception = Reception(self.name, self.visits, self._publisher, self._count, environment.count)
        self._greetings = Tasks(self.name)
        """Answers on their way to a link: they are cancelled at the end."""
        self._loops: list[asyncio.Task[None]] = []
        self._holding: asyncio.Task[None] | None = None
        """Counts absence while the service is only held."""

    @property
    def name(self) -> str:
        """``USER/FQN``."""
        return self.settings.name

    @property
    def last_error(self) -> str | None:
        """What keeps failing at present; None when nothing does."""
        return self._publishing.message or self._polling.message or self.visits.trouble.message

    # --- life ------------------------------------------------------------------------------------------------------

    def restore(self, record: SessionRecord, channels: list[ChannelRecord]) -> None:
        """A session of the store, before `start`."""
        self.visits.restore(record, channels)

    def start(self) -> None:
        """Publish, and take whoever comes. A signalling server that is down only delays that."""
        self.stopped = False
        for work, what in (
            (self._publication_loop(), "publication"),
            (self._answers_loop(), "answers"),
            (self.visits.count_absence(), "absence"),
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
            self._holding = asyncio.get_running_loop().create_task(self.visits.count_absence(), name=name)

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
        self.pool.reconfigure(settings)
        self.visits.reconfigure(settings, configure)
        self._visits_changed(True)

    async def stop(self) -> None:
        """The daemon stops: peers are told to come back; the service stays declared.

        Its offers leave the server first: a peer that dialled one of them would wait for nobody.
        """
        await self._end_loops()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WITHDRAWAL):
                await self._withdraw_offers()
        await self.visits.end_closes()
        self.visits.say_goodbye(GoodbyeCode.RESTARTING, "the daemon stops")
        await self._let_go()

    async def withdraw(self, drain: float, *, keep_connections: bool) -> None:
        """Remove the service and its offers from the server; close its connections, or `hold` them until they end."""
        await self._end_loops()
        self.published.clear()
        await self._withdraw_offers()
        self.pool.forget()
        if keep_connections:
            self.hold()
        else:
            await self.visits.close_all(drain)
            await self._let_go()
        self._publish("closed", {})

    def hurry(self, drain: float) -> None:
        """The connections that are being closed, or are about to be, drain for so many seconds from now on at most."""
        for visit in self.visits.values():
            visit.drain.hurry(drain)

    async def _withdraw_offers(self) -> None:
        """An error ends neither a stop nor a withdrawal: the server forgets offers by itself."""
        try:
            await self._publisher.withdraw()
        except RondevuError as error:
            logger.info("%s: its offers stay at the server until their TTL ends: %s", self.name, error)

    async def close(self, connection_id: str, drain: float) -> None:
        """End one connection for good: see `Visits.close`."""
        await self.visits.close(connection_id, drain)

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
        await self.visits.let_go()
        self.pool.close()
        await self.visits.tasks.finished(5.0)

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
                await self._wait(self._publish_delay(error))
            else:
                self._end_trouble(self._publishing, "publish")
                self._unpublished_at = None
                due = self.pool.next_change()
                now = self._environment.clock.monotonic()
                await self._wait(max(0.05, due - now) if due is not None else RETRY[1], changes=True)

    def _publish_delay(self, error: Exception) -> float:
        """Seconds until the next attempt to publish."""
        now = self._environment.clock.monotonic()
        if self._unpublished_at is None:
            self._unpublished_at = now
        delay = self._publishing.delay(error)
        if self.visits.missing and now - self._unpublished_at < FIRST_MINUTE:
            soon = random.SystemRandom().uniform(0.2, FIRST_MINUTE_DELAY)
            return max(min(delay, soon), getattr(error, "retry_after", None) or 0.0)
        return delay

    def _tell_trouble(self, trouble: Trouble, error: Exception, context: str) -> None:
        """Count a failure and tell the service's programs; what is news goes into the log, bugs with their traceback."""
        self.counters[f"{context}_errors"] += 1
        known = isinstance(error, RondevuError)
        if trouble.add(error):
            level = logging.WARNING if known else logging.ERROR
            logger.log(level, "%s: %s: %s", self.name, context, error, exc_info=None if known else error)
        code = getattr(error, "code", "signalling") if known else "internal"
        self._publish("error", {"context": context, "code": code, "message": trouble.message})

    def _end_trouble(self, trouble: Trouble, context: str) -> None:
        if trouble.end():
            logger.info("%s: %s: works again", self.name, context)

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
            await self.pool.delete_useless()
            if await self.pool.refill(self.visits.missing):
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
            logger.info("%s: published as %s", self.name, publication.uuid, extra=fields("published"))
        else:
            self._publish("ttl_refreshed", {"expires_at": publication.expires_at})

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
                self._end_trouble(self._polling, "poll")
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
        if self.visits.missing:
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
            self.visits.discard(offer.connection)
            return
        self._greetings.spawn(self._greet(offer, answer), f"greet {self.name}")

    async def _greet(self, offer: PendingOffer, answer: Answer) -> None:
        try:
            await self._reception.receive(offer, answer, self.settings.peer)
        except (PeerError, TransportError) as error:
            self._count("refused_answers")
            logger.info("%s: an answer came to nothing: %s", self.name, error)
            self._publish("error", {"context": "connection", "code": "connection", "message": str(error)})
            self.visits.discard(offer.connection)
        except BaseException:
            self.visits.discard(offer.connection)
            raise
        await self._delete_answered(answer.offer_id)

    async def _delete_answered(self, offer_id: str) -> None:
        """Servers repeat an answer with every poll until its offer is gone; nobody needs it once the connection is up."""
        try:
            await self._publisher.delete_offer(offer_id)
        except SignallingError as error:
            logger.debug("%s: an answered offer stays at the server until its TTL ends: %s", self.name, error)

    # --- what its parts tell ---------------------------------------------------------------------------------------

    def forget_read(self) -> None:
        """Forget closed connections in which nothing waits any more: see `Visits.forget_read`."""
        self.visits.forget_read()

    def addresses_gone(self, addresses: set[str]) -> None:
        """This machine has lost these addresses: offers that name them are replaced at once."""
        if self.pool.addresses_gone(addresses):
            self._changed.set()

    def _visits_changed(self, missed: bool) -> None:
        """A peer is there, or `missed` and expected back: other offers are wanted, or answers sooner."""
        if missed:
            self._missed.set()
        self._changed.set()

    def _count(self, counter: str) -> None:
        self.counters[counter] += 1

    def _publish(self, name: str, data: dict[str, Any]) -> None:
        self._environment.publish(name, data, service=self.name)


def _is_forgotten(error: Exception) -> bool:
    """Whether the signalling server does not know, or not any more, the peer that publishes."""
    return isinstance(error, SignallingRejected) and error.code == "unauthorized"


def _new_delays() -> Iterator[float]:
    first, longest = RETRY
    return delays(first, longest, 0.2, random.SystemRandom().random)
