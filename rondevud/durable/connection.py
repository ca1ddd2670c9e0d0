"""DurableConnection: reaches a service, and reaches it again, for as long as its limits allow.

    CONNECTING ──link──► CONNECTED ──lost──► RECONNECTING ──link──► CONNECTED …
        └──────── attempts used up ────────────────┴──► FAILED ──reconnect──► …

One task dials (`rondevud.durable.dialling`) whenever a link is wanted: at the beginning, after a loss, and beside a link
that has become suspect. Everything about messages is the session's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Coroutine, Iterator
from typing import Any

from rondevud.backoff import delays
from rondevud.durable.closing import Drain, store_end
from rondevud.durable.dialling import DialError, Dialler, dial_error
from rondevud.durable.effects import LinkDown, LinkUp, Recovered, SessionFailed, Suspect
from rondevud.durable.frames import GoodbyeCode
from rondevud.durable.link import GOODBYES_OVER, LinkSettings
from rondevud.durable.ports import Configure
from rondevud.durable.session import DurableSession, Environment
from rondevud.durable.settings import ConnectionSettings, PeerChoice
from rondevud.durable.states import CONNECTION_TRANSITIONS, ConnectionState, check
from rondevud.durable.tasks import Tasks
from rondevud.errors import (
    RequestError,
)
from rondevud.logs import fields
from rondevud.records import ChannelRecord, SessionRecord
from rondevud.signalling.base import DiscoveredOffer, Signalling
from rondevud.transport.base import Engine, PeerConnection

logger = logging.getLogger(__name__)

FIRST_MINUTE = 60.0
"""Seconds after a loss in which attempts are not counted and follow each other within `FIRST_MINUTE_DELAY`."""

FIRST_MINUTE_DELAY = 2.0

OUTDATED = 2.0
"""Seconds after which a dial is begun anew when a default route changes: a younger one has most likely seen the change."""

CANCEL_EVERY = 5.0
"""Seconds at least between two dials that are given up because the network changed: each of them uses up an offer."""

STOOD = 10.0
"""Seconds that a link must have stood before the attempts are forgotten."""


class DurableConnection:
    """The connecting side of one session. It is the session's owner."""

    def __init__(
        self,
        settings: ConnectionSettings,
        record: SessionRecord,
        channels: list[ChannelRecord],
        *,
        environment: Environment,
        signalling: Signalling,
        engine: Engine,
        configure: Configure,
    ) -> None:
        self.settings = settings
        self.attempt = 0
        self.last_error: str | None = None
        self._unmade: dict[str, str] = {}
        """Why channels of the settings could not be made, by label; empty for one that is being made."""
        self.dialled_at: float | None = None
        """When the last dial began, and below when the next one will, in the time of the clock."""
        self.retry_at: float | None = None
        self.ephemeral = environment.ephemeral
        self.state = ConnectionState.CONNECTING
        self._environment = environment
        self._random = random.SystemRandom()
        self._delays: Iterator[float] = self._new_delays()
        self._wanted = asyncio.Event()
        self._soon = False
        self._added: set[str] | None = None
        """Addresses that this machine has got since the last dial began; None when the network is as it was."""
        self._cancelled_at: float | None = None
        """When a dial was last given up because the network had changed."""
        self._lost_at: float | None = None
        self._stood: asyncio.TimerHandle | None = None
        """Runs while the link is younger than `STOOD`."""
        self._redial: asyncio.TimerHandle | None = None
        self._dialling: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._discards = Tasks(settings.name)
        self._ending: asyncio.Task[None] | None = None
        self.session = DurableSession(
            record,
            channels,
            environment=environment,
            settings=self._link_settings(),
            configure=configure,
            owner=self,
            service=None,
        )
        self._drain = Drain(self.session)
        self._dialler = Dialler(self.session, signalling, engine, self.discard)
        if record.closed:
            self.state = ConnectionState.CLOSED

    @property
    def offer(self) -> DiscoveredOffer | None:
        """The one that was dialled last."""
        return self._dialler.offer

    @property
    def connection_id(self) -> str:
        return self.session.connection_id

    # --- life ------------------------------------------------------------------------------------------------------

    def _link_settings(self) -> LinkSettings:
        return LinkSettings(
            name=self.settings.name,
            daemon=f"rondevud/{self._environment.version}",
            max_message=self.settings.max_message,
            heartbeat=self.settings.heartbeat,
            reserved_labels=self.settings.peer is PeerChoice.PLAIN,
        )

    async def start(self) -> None:
        """Dial, again if the connection had failed, and make the channels of the settings.

        Where there has been a link in another life of the daemon, it counts as lost just now. A channel that cannot be made
        is logged, stands in `error` and is tried again with every link. May be called again.
        """
        if self.state is ConnectionState.CLOSED:
            return
        if self._task is None:
            if self.session.record.contacted:
                self._lost_at = self._now()
            self._task = asyncio.get_running_loop().create_task(self._run(), name=f"connection {self.settings.name}")
        if self.state is ConnectionState.FAILED:
            self.reconnect()
        self._wanted.set()
        await self.make_channels()

    def reconfigure(self, settings: ConnectionSettings, configure: Configure) -> None:
        """Take other settings over, of the same name; `start` makes the channels that they add.

        Limits of queues hold for what is accepted from now on; a link that is up stays as it was agreed.
        """
        self.settings = settings
        self._delays = self._new_delays()
        self.session.reconfigure(self._link_settings(), configure)

    async def make_channels(self) -> None:
        """The channels of the settings; one that cannot be made is logged and stands in `error`."""
        self._unmade = {label: self._unmade.get(label, "") for label in self.settings.channels}
        await self.make_missing_channels()

    async def make_missing_channels(self) -> None:
        """Those that could not be made. Others may have been closed since: they stay so."""
        for label in list(self._unmade):
            try:
                await self.session.channel(label, None)
            except RequestError as error:
                reason = f"channel {label!r}: {error}"
                if self._unmade.get(label) != reason:
                    logger.warning("%s: %s", self.settings.name, reason)
                self._unmade[label] = reason
            else:
                self._unmade.pop(label, None)

    @property
    def error(self) -> str | None:
        """What is wrong at present: why there is no link, or which channels could not be made; None when nothing is."""
        return self.last_error or "; ".join(filter(None, self._unmade.values())) or None

    async def stop(self) -> None:
        """The daemon stops: tell the peer to expect us back, and let go. A `close` that still drains is given up."""
        if self._ending is not None:
            if self._drain.running:
                self._ending.cancel()
            await asyncio.wait({self._ending})
        await self._end_tasks()
        self.session.say_goodbye(GoodbyeCode.RESTARTING, "the daemon stops")
        await self._let_go()

    async def close(self, drain: float) -> None:
        """End for good: what is queued gets `drain` seconds, then it is removed and reported as purged.

        There is one end, by whoever began it: others wait for it, and can hurry it; it goes on when they are cancelled.
        """
        self.hurry(drain)
        if self._ending is None and self.state is not ConnectionState.CLOSED:
            self._begin_end(self._drain_and_end())
        await self.wait_ended()

    def hurry(self, drain: float) -> None:
        """A close that is under way, or about to be, drains for so many seconds from now on at most."""
        self._drain.hurry(drain)

    async def wait_ended(self) -> None:
        """Wait for the end that has begun, if any."""
        if self._ending is not None:
            await asyncio.shield(self._ending)

    @property
    def ending(self) -> bool:
        """Whether a close has begun and is not finished, goodbyes included."""
        return self._ending is not None and not self._ending.done()

    def _begin_end(self, work: Coroutine[Any, Any, None]) -> None:
        self._ending = asyncio.get_running_loop().create_task(work, name=f"close {self.settings.name}")
        self._ending.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            logger.error("%s: closing failed", self.settings.name, exc_info=task.exception())

    async def _drain_and_end(self) -> None:
        await self._drain.run()
        await self._end("local")

    async def _end(self, by: str) -> None:
        """Remove what was not acknowledged, remember that this session is over, say goodbye.

        A store that fails is logged; everything else is done all the same.
        """
        await self._end_tasks()
        self._enter(ConnectionState.CLOSED)
        await store_end(self.session, self.settings.name)
        self.session.event("closed", {"by": by})
        self.session.end()
        self.session.say_goodbye(GoodbyeCode.CLOSING, "closed")
        await self._let_go()

    async def _let_go(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GOODBYES_OVER):
                await self.session.goodbyes_said()
        self.session.stop()
        await self._discards.finished(5.0)

    async def _end_tasks(self) -> None:
        for timer in (self._stood, self._redial):
            if timer is not None:
                timer.cancel()
        tasks = [task for task in (self._task, self._dialling) if task is not None and not task.done()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=5.0)

    def give_up(self, code: str, message: str) -> None:
        """Do not dial, and leave the link there is: the state is `failed`, with that reason, and what is held stays."""
        if self.state is ConnectionState.FAILED:
            self.last_error = message
        self._fail(code, message, permanent=True)
        self.session.say_goodbye(GoodbyeCode.RESTARTING, "given up for now")

    def reconnect(self) -> None:
        """Try now: dial again after `failed`; otherwise cut the link that is there and dial anew."""
        if self.state is ConnectionState.CLOSED:
            return
        self._forget_attempts()
        self._soon = True
        if self.state is ConnectionState.FAILED:
            contacted = self.session.record.contacted
            self._enter(ConnectionState.RECONNECTING if contacted else ConnectionState.CONNECTING)
        self.session.cut()
        self._wanted.set()

    def network_changed(self, added: set[str], removed: set[str], *, routes: bool) -> None:
        """This machine's addresses, or its default routes, changed: dial at once where that can help."""
        if self.session.local_address in removed:
            self._dialler.moved = True
        if self._dialling is None:
            if self._dialler.wanted:
                self._wanted.set()
            return
        had = removed - (self._added or set())
        self._added = (self._added or set()) | added
        age = self._now() - (self.dialled_at or 0.0)
        if had or (routes and age > OUTDATED):
            self._cancel_outdated()

    def _cancel_outdated(self) -> None:
        """Give up the dial that was begun in another network, unless it has come far or another was given up just now."""
        now = self._now()
        recently = self._cancelled_at is not None and now - self._cancelled_at < CANCEL_EVERY
        if self._dialling is not None and not self._dialler.greeting and not recently:
            self._cancelled_at = now
            self._dialling.cancel()

    # --- dialling --------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        """Dial whenever a link is wanted, until there is one."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            while self._dialler.wanted and self.state not in {ConnectionState.FAILED, ConnectionState.CLOSED}:
                self._dialling = asyncio.get_running_loop().create_task(self._dial(), name=f"dial {self.settings.name}")
                delay = await self._outcome(self._dialling)
                self._dialling = None
                if delay is not None:
                    await self._pause(delay)

    @property
    def dialling(self) -> bool:
        """Whether an attempt is under way."""
        return self._dialling is not None

    async def _outcome(self, dial: asyncio.Task[None]) -> float | None:
        """Wait for a dial; answers the seconds until the next one, None when none is needed."""
        try:
            await asyncio.wait({dial})
            if dial.cancelled():
                return None
            dial.result()
        except asyncio.CancelledError:
            dial.cancel()
            raise
        except Exception as error:
            known = dial_error(error)
            if known is None:
                logger.exception("%s: dialling failed", self.settings.name)
                known = DialError("an error in this daemon; its log says more", "internal", counts=True)
            return self._failed_dial(known)
        return None

    def _failed_dial(self, error: DialError) -> float | None:
        if self.state in {ConnectionState.FAILED, ConnectionState.CLOSED}:
            return None
        news = self.last_error != str(error)
        self.last_error = str(error)
        if not self._dialler.wanted:
            return None
        lost_now = self._lost_at is not None and self._now() - self._lost_at < FIRST_MINUTE
        early = lost_now or self._added is not None
        if error.counts and not early and not self.session.connected:
            self.attempt += 1
        limit = self.max_attempts
        if limit is not None and self.attempt >= limit:
            self._fail(error.code, f"given up after {self.attempt} attempts: {error}", permanent=True)
            return None
        delay = self._random.uniform(*error.delay) if error.delay else next(self._delays)
        if early and not error.delay:
            delay = min(delay, self._random.uniform(0.2, FIRST_MINUTE_DELAY))
        delay = max(delay, error.retry_after or 0.0)
        level = logging.INFO if news else logging.DEBUG
        logger.log(level, "%s: %s; trying again in %.1f s", self.settings.name, error, delay)
        self._tell_reconnecting(delay, error.code)
        return delay

    def _tell_reconnecting(self, delay: float, code: str) -> None:
        self.retry_at = self._now() + delay
        facts = {"attempt": self.attempt, "max_attempts": self.max_attempts, "next_retry_in": round(delay, 3)}
        self.session.event("reconnecting", {**facts, "code": str(code), "error": self.last_error})

    @property
    def max_attempts(self) -> int | None:
        """Failed attempts after which it gives up; None = never."""
        reconnect = self.settings.reconnect
        return reconnect.attempts if self.session.record.contacted else reconnect.attempts_until_contact

    async def _pause(self, delay: float) -> None:
        """Wait, unless somebody wants a link at once."""
        self._wanted.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._wanted.wait()
        self._wanted.clear()

    async def _dial(self) -> None:
        self._soon = False
        self._added = None
        self.dialled_at = self._now()
        await self._dialler.dial(self.settings)

    # --- owner of the session --------------------------------------------------------------------------------------

    def link_up(self, session: DurableSession, effect: LinkUp) -> None:
        self._dialler.settle(effect)
        if self.state in {ConnectionState.FAILED, ConnectionState.CLOSED}:  # this link came too late
            closed = self.state is ConnectionState.CLOSED
            session.say_goodbye(GoodbyeCode.CLOSING if closed else GoodbyeCode.RESTARTING, "given up meanwhile")
            return
        self.last_error = self._added = None
        for timer in (self._stood, self._redial):
            if timer is not None:
                timer.cancel()
        self._stood = asyncio.get_running_loop().call_later(STOOD, self._link_stood)
        if self.state is not ConnectionState.CONNECTED:
            self._enter(ConnectionState.CONNECTED)
            session.event("connected", {"resumed": effect.resumed})
        if self._unmade:
            self._discards.spawn(self.make_missing_channels(), f"channels of {self.settings.name}")
        logger.info(
            "%s: connected (%s)",
            self.settings.name,
            "resumed" if effect.resumed else "new session",
            extra=fields("connected", self.settings.name),
        )

    def link_down(self, session: DurableSession, effect: LinkDown) -> None:
        self._dialler.settle(effect)
        if not effect.current:
            return
        logger.info(
            "%s: link lost: %s: %s",
            self.settings.name,
            effect.code,
            effect.reason,
            extra=fields("disconnected", self.settings.name),
        )
        young, self._stood = self._stood, None
        if young is not None:
            young.cancel()
        if effect.code == GoodbyeCode.CLOSING and self.state is not ConnectionState.CLOSED:
            self._closed_by_peer()
            return
        if self.state is not ConnectionState.CONNECTED:
            return
        self._enter(ConnectionState.RECONNECTING)
        session.event("disconnected", {"reason": effect.code, "message": effect.reason})
        if effect.code == GoodbyeCode.PROTOCOL:
            self._lost_at = None
            self._failed_link(effect)
            return
        if self._lost_at is None:
            self._lost_at = self._now()
        delay = self._loss_delay(effect, young=young is not None)
        self._tell_reconnecting(delay, effect.code)
        self._dial_in(delay)

    def _loss_delay(self, effect: LinkDown, *, young: bool) -> float:
        """Seconds until the first dial after a loss; links that die young do not follow each other at once."""
        if self._soon:
            return 0.0
        if young:
            return min(next(self._delays), self._random.uniform(0.2, FIRST_MINUTE_DELAY))
        return self._random.uniform(0, 1) if effect.code == GoodbyeCode.RESTARTING else 0.0

    def _dial_in(self, delay: float) -> None:
        if self._redial is not None:
            self._redial.cancel()
        self._redial = asyncio.get_running_loop().call_later(delay, self._wanted.set)

    def _failed_link(self, effect: LinkDown) -> None:
        """The link died of broken rules: an attempt that failed, so that such links do not follow each other at once."""
        delay = self._failed_dial(DialError(f"{effect.code}: {effect.reason}", effect.code, counts=True))
        if delay is not None:
            self._dial_in(delay)

    def _closed_by_peer(self) -> None:
        if self._ending is None:
            self._begin_end(self._end("peer"))
        elif self._drain.running:  # nobody is left to acknowledge anything
            self._drain.hurry(0.0)

    def suspect(self, session: DurableSession, effect: Suspect) -> None:
        session.event("suspect", {"silence": round(effect.silence, 1), "unheard": effect.unheard})
        logger.info(
            "%s: %s: dialling a second link",
            self.settings.name,
            effect.as_text(),
            extra=fields("suspect", self.settings.name),
        )
        self._wanted.set()

    def recovered(self, session: DurableSession, effect: Recovered) -> None:
        session.event("recovered", {})
        if self._dialling is not None and not self._dialler.greeting:
            self._dialling.cancel()

    def session_failed(self, session: DurableSession, effect: SessionFailed) -> None:
        self._fail(effect.code, effect.reason, permanent=effect.code != "denied")

    def refusal(self, session: DurableSession) -> tuple[str, str] | None:
        if self.state is ConnectionState.FAILED:
            return "failed", f"the connection has failed: {self.last_error}; reconnect tries again"
        if self.state is ConnectionState.CLOSED:
            return "closed", "the connection is closed"
        return None

    def discard(self, connection: PeerConnection) -> None:
        self._discards.spawn(connection.close(), f"close a connection of {self.settings.name}")

    # --- states ----------------------------------------------------------------------------------------------------

    def _fail(self, code: str, message: str, *, permanent: bool) -> None:
        if self.state in {ConnectionState.FAILED, ConnectionState.CLOSED}:
            return
        self.last_error = message
        self._enter(ConnectionState.FAILED)
        if self._dialling is not None:
            self._dialling.cancel()
            self._dialler.give_up()
        self.session.event("failed", {"code": code, "message": message, "permanent": permanent})
        logger.warning("%s: failed: %s", self.settings.name, message, extra=fields("failed", self.settings.name))
        for channel in self.session.channels.values():
            channel.outbox.settle()

    def _enter(self, state: ConnectionState) -> None:
        previous = self.state
        check(CONNECTION_TRANSITIONS, previous, state)
        self.state = state
        self.session.event("state", {"new": str(state), "previous": str(previous)})

    def _link_stood(self) -> None:
        self._stood = None
        self._forget_attempts()

    def _forget_attempts(self) -> None:
        self.attempt = 0
        self._lost_at = None
        self._delays = self._new_delays()

    def _new_delays(self) -> Iterator[float]:
        reconnect = self.settings.reconnect
        return delays(reconnect.backoff_base, reconnect.backoff_max, reconnect.jitter, self._random.random)

    def _now(self) -> float:
        return self._environment.clock.monotonic()
