"""DurableConnection: reaches a service, and reaches it again, for as long as its limits allow.

    CONNECTING ──link──► CONNECTED ──lost──► RECONNECTING ──link──► CONNECTED …
        └──────── attempts used up ────────────────┴──► FAILED ──reconnect──► …

One task dials whenever a link is wanted: at the beginning, after a loss, and beside a link that has become suspect. A dial
asks signalling for an offer and answers it; then it opens the data channel ``rondevu.link`` and says hello, or, when the
offer is a plain peer's, hands the connection over as it is. Everything about messages is the session's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Coroutine, Iterator
from functools import partial
from typing import Any

from rondevud.backoff import delays
from rondevud.durable import frames, sdp
from rondevud.durable.contact import Contact, Trickle
from rondevud.durable.effects import LinkDown, LinkUp, Recovered, SessionFailed, Suspect
from rondevud.durable.frames import GoodbyeCode
from rondevud.durable.handshake import Fingerprints
from rondevud.durable.link import LinkSettings
from rondevud.durable.ports import Configure
from rondevud.durable.session import DurableSession, Environment
from rondevud.durable.settings import ConnectionSettings, PeerChoice
from rondevud.durable.states import CONNECTION_TRANSITIONS, ConnectionState, check
from rondevud.durable.tasks import Tasks
from rondevud.errors import (
    RequestError,
    RondevuError,
    SignallingError,
    SignallingRejected,
    StoreError,
    TransportError,
)
from rondevud.records import ChannelRecord, PeerKind, Reason, SessionRecord
from rondevud.signalling.base import DiscoveredOffer, Signalling
from rondevud.transport.base import ChannelState as TransportChannelState
from rondevud.transport.base import ConnectionState as TransportState
from rondevud.transport.base import DataChannel, Engine, PeerConnection

logger = logging.getLogger(__name__)

ATTEMPT = 8.0
"""Seconds that a dial after a loss, or beside a suspect link, may take: ICE checks are repeated after 0.5, 1, 2, 4, 8, 16 s,
and a path that came back late in an attempt is found sooner by the next one."""

FIRST_MINUTE = 60.0
"""Seconds after a loss in which attempts are not counted and follow each other within `FIRST_MINUTE_DELAY`."""

FIRST_MINUTE_DELAY = 2.0

STOOD = 10.0
"""Seconds that a link must have stood before the attempts are forgotten."""

BUSY_DELAY = (0.3, 1.0)
"""Seconds, at random, until the next try when there was no offer left or somebody was faster."""


class DialError(RondevuError):
    """A dial that came to nothing. `counts` says whether that is one of the connection's attempts."""

    def __init__(
        self,
        message: str,
        code: str,
        *,
        counts: bool,
        delay: tuple[float, float] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.counts = counts
        self.delay = delay
        self.retry_after = retry_after
        """Seconds that the signalling server asked for, at least."""


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
        self.offer: DiscoveredOffer | None = None
        """The one that was dialled last."""
        self.dialled_at: float | None = None
        """When the last dial began, and below when the next one will, in the time of the clock."""
        self.retry_at: float | None = None
        self.ephemeral = environment.ephemeral
        self.state = ConnectionState.CONNECTING
        self._signalling = signalling
        self._engine = engine
        self._environment = environment
        self._random = random.SystemRandom()
        self._delays: Iterator[float] = self._new_delays()
        self._wanted = asyncio.Event()
        self._soon = False
        self._lost_at: float | None = None
        self._stood: asyncio.TimerHandle | None = None
        """Runs while the link is younger than `STOOD`."""
        self._redial: asyncio.TimerHandle | None = None
        self._dialling: asyncio.Task[None] | None = None
        self._outcomes: dict[int, asyncio.Future[LinkUp | LinkDown]] = {}
        self._task: asyncio.Task[None] | None = None
        self._discards = Tasks(settings.name)
        self._ending: asyncio.Task[None] | None = None
        self._draining: asyncio.Timeout | None = None
        self.session = DurableSession(
            record,
            channels,
            environment=environment,
            settings=self._link_settings(),
            configure=configure,
            owner=self,
            service=None,
        )
        if record.closed:
            self.state = ConnectionState.CLOSED

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

        A channel that cannot be made is logged and stands in `last_error`. May be called again.
        """
        if self.state is ConnectionState.CLOSED:
            return
        if self._task is None:
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
        """The channels of the settings; one that cannot be made is logged and stands in `last_error`."""
        for label in self.settings.channels:
            try:
                await self.session.channel(label, None)
            except RequestError as error:
                self.last_error = f"channel {label!r}: {error}"
                logger.warning("%s: %s", self.settings.name, self.last_error)

    async def stop(self) -> None:
        """The daemon stops: tell the peer to expect us back, and let go. A `close` that still drains is given up."""
        if self._ending is not None:
            if self._draining is not None:
                self._ending.cancel()
            await asyncio.wait({self._ending})
        await self._end_tasks()
        self.session.say_goodbye(GoodbyeCode.RESTARTING, "the daemon stops")
        await self._let_go()

    async def close(self, drain: float) -> None:
        """End for good: what is queued gets `drain` seconds, then it is removed and reported as purged.

        There is one end, by whoever began it: others wait for it, and it goes on when they are cancelled.
        """
        if self._ending is None and self.state is not ConnectionState.CLOSED:
            self._begin_end(self._drain_and_end(drain))
        await self.wait_ended()

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

    async def _drain_and_end(self, drain: float) -> None:
        for label in list(self.session.channels):
            self.session.close_label(label)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain) as self._draining:
                await self.session.drained()
        self._draining = None
        await self._end("local")

    async def _end(self, by: str) -> None:
        """Remove what was not acknowledged, remember that this session is over, say goodbye.

        A store that fails is logged; everything else is done all the same.
        """
        await self._end_tasks()
        self._enter(ConnectionState.CLOSED)
        for channel in list(self.session.channels.values()):
            await self._try_to_store(channel.remove_all(Reason.PURGED, keep_closing=False))
        await self._try_to_store(self.session.mark_closed())
        self.session.event("closed", {"by": by})
        self.session.end()
        self.session.say_goodbye(GoodbyeCode.CLOSING, "closed")
        await self._let_go()

    async def _try_to_store(self, work: Coroutine[Any, Any, Any]) -> None:
        try:
            await work
        except (RequestError, StoreError) as error:
            logger.warning("%s: the close is not stored: %s", self.settings.name, error)

    async def _let_go(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2.0):
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

    # --- dialling --------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        """Dial whenever a link is wanted, until there is one."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            while self._needs_link() and self.state not in {ConnectionState.FAILED, ConnectionState.CLOSED}:
                self._dialling = asyncio.get_running_loop().create_task(self._dial(), name=f"dial {self.settings.name}")
                delay = await self._outcome(self._dialling)
                self._dialling = None
                if delay is not None:
                    await self._pause(delay)

    @property
    def dialling(self) -> bool:
        """Whether an attempt is under way."""
        return self._dialling is not None

    def _needs_link(self) -> bool:
        return not self.session.connected or self.session.suspect

    async def _outcome(self, dial: asyncio.Task[None]) -> float | None:
        """Wait for a dial; answers the seconds until the next one, None when none is needed."""
        try:
            await asyncio.wait({dial})
            if dial.cancelled():
                return None
            dial.result()
        except DialError as error:
            return self._failed_dial(error)
        except SignallingRejected as error:
            return self._failed_dial(_rejected(error))
        except SignallingError as error:
            return self._failed_dial(DialError(str(error), "signalling", counts=False, retry_after=error.retry_after))
        except (TransportError, TimeoutError) as error:
            message = str(error) or "the connection did not come up in time"
            return self._failed_dial(DialError(message, "connection", counts=True))
        except asyncio.CancelledError:
            dial.cancel()
            raise
        except Exception:
            logger.exception("%s: dialling failed", self.settings.name)
            return self._failed_dial(DialError("an error in this daemon; its log says more", "internal", counts=True))
        return None

    def _failed_dial(self, error: DialError) -> float | None:
        if self.state in {ConnectionState.FAILED, ConnectionState.CLOSED}:
            return None
        news = self.last_error != str(error)
        self.last_error = str(error)
        if not self._needs_link():
            return None
        early = self._lost_at is not None and self._now() - self._lost_at < FIRST_MINUTE
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
        """One attempt. Raises `DialError`, `SignallingError`, `TransportError` or `TimeoutError`."""
        if self._soon:
            self._soon = False
        again = self.session.record.kind is PeerKind.LINK
        async with asyncio.timeout(ATTEMPT if again else self.settings.reconnect.connection_timeout):
            self.dialled_at, self.offer = self._now(), None
            offer = self.offer = await self._discover()
            plain = self._is_plain(offer)
            connection = self._engine.create_peer_connection()
            try:
                await (self._contact(connection, offer) if plain else self._link(connection, offer))
            except BaseException:
                self.discard(connection)
                raise

    async def _discover(self) -> DiscoveredOffer:
        settings = self.settings
        if settings.uuid is not None:
            return await self._signalling.discover_uuid(settings.uuid)
        return await self._signalling.discover(settings.username or "", settings.fqn or "")

    def _is_plain(self, offer: DiscoveredOffer) -> bool:
        """Whether to take the offer as a plain peer's. Raises `DialError` where only a link will do."""
        choice = self.settings.peer
        if choice is PeerChoice.PLAIN:
            return True
        if frames.VERSION in sdp.link_versions(offer.sdp):
            return False
        if choice is PeerChoice.LINK or self.session.record.kind is PeerKind.LINK:
            word = "peer is set to link" if choice is PeerChoice.LINK else "it was one before"
            raise DialError(f"not_a_link: the peer offers no link, and {word}", "not_a_link", counts=True)
        return True

    async def _contact(self, connection: PeerConnection, offer: DiscoveredOffer) -> None:
        """Answer the offer of a plain peer, and hand the connection over when it is up."""
        contact = Contact(connection)
        answer = await connection.create_answer(offer.sdp)
        await self._signalling.answer(offer.offer_id, answer)
        trickle = Trickle(
            sdp.candidates(answer),
            partial(self._signalling.add_answer_candidates, offer.offer_id),
            partial(self._signalling.offer_candidates, offer.offer_id),
        )
        await contact.connected(trickle)
        if self._needs_link():
            self.session.open_plain(connection, contact.channels, dialled=True)
        else:
            self.discard(connection)

    async def _link(self, connection: PeerConnection, offer: DiscoveredOffer) -> None:
        """Answer the offer, open the data channel, say hello, wait for the verdict."""
        closed = asyncio.get_running_loop().create_future()
        connection.on_state = lambda state: _resolve(closed, state is TransportState.CLOSED)
        answer = sdp.mark(await connection.create_answer(offer.sdp))
        fingerprints = Fingerprints(sdp.fingerprint(offer.sdp), sdp.fingerprint(answer))
        channel = connection.create_data_channel(frames.LABEL, protocol=frames.PROTOCOL)
        opened = asyncio.get_running_loop().create_future()
        channel.on_open = lambda: _resolve(opened, channel.state is TransportChannelState.OPEN)
        await self._signalling.answer(offer.offer_id, answer)
        await asyncio.wait({opened, closed}, return_when=asyncio.FIRST_COMPLETED)
        if not opened.done():
            raise TransportError("the WebRTC connection ended before the data channel was open")
        await self._greet(connection, channel, fingerprints)

    async def _greet(self, connection: PeerConnection, channel: DataChannel, fingerprints: Fingerprints) -> None:
        if not self._needs_link():  # the suspect link was heard again
            self.discard(connection)
            return
        key = self.session.open_link(connection, channel, fingerprints)
        outcome = self._outcomes[key] = asyncio.get_running_loop().create_future()
        try:
            effect = await outcome
        except BaseException:
            self.session.drop_link(key)
            raise
        finally:
            del self._outcomes[key]
        if isinstance(effect, LinkDown):
            busy = effect.code in {frames.RefuseCode.TOO_MANY, frames.RefuseCode.TRY_LATER, GoodbyeCode.RESTARTING}
            raise DialError(f"refused: {effect.code}: {effect.reason}", effect.code, counts=not busy)

    # --- owner of the session --------------------------------------------------------------------------------------

    def link_up(self, session: DurableSession, effect: LinkUp) -> None:
        self._settle_outcome(effect)
        if self.state in {ConnectionState.FAILED, ConnectionState.CLOSED}:  # this link came too late
            session.cut()
            return
        self.last_error = None
        for timer in (self._stood, self._redial):
            if timer is not None:
                timer.cancel()
        self._stood = asyncio.get_running_loop().call_later(STOOD, self._link_stood)
        if self.state is not ConnectionState.CONNECTED:
            self._enter(ConnectionState.CONNECTED)
            session.event("connected", {"resumed": effect.resumed})
        logger.info("%s: connected (%s)", self.settings.name, "resumed" if effect.resumed else "new session")

    def link_down(self, session: DurableSession, effect: LinkDown) -> None:
        self._settle_outcome(effect)
        if not effect.current:
            return
        logger.info("%s: link lost: %s: %s", self.settings.name, effect.code, effect.reason)
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
        elif self._draining is not None:  # nobody is left to acknowledge anything
            self._draining.reschedule(asyncio.get_running_loop().time())

    def _settle_outcome(self, effect: LinkUp | LinkDown) -> None:
        outcome = self._outcomes.get(effect.link)  # type: ignore[call-overload]
        if outcome is not None and not outcome.done():
            outcome.set_result(effect)

    def suspect(self, session: DurableSession, effect: Suspect) -> None:
        session.event("suspect", {"silence": round(effect.silence, 1)})
        logger.info("%s: nothing heard for %.1f s: dialling a second link", self.settings.name, effect.silence)
        self._wanted.set()

    def recovered(self, session: DurableSession, effect: Recovered) -> None:
        session.event("recovered", {})
        if self._dialling is not None and not self._outcomes:
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
        self.session.event("failed", {"code": code, "message": message, "permanent": permanent})
        logger.warning("%s: failed: %s", self.settings.name, message)
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


def _resolve(future: asyncio.Future[None], now: bool) -> None:
    if now and not future.done():
        future.set_result(None)


def _rejected(error: SignallingRejected) -> DialError:
    if error.code in {"no_offer", "offer_taken"}:
        return DialError(str(error), error.code, counts=False, delay=BUSY_DELAY, retry_after=error.retry_after)
    counts = error.code != "unauthorized"  # that says something of the server, and nothing of what is asked for
    return DialError(str(error), error.code, counts=counts, retry_after=error.retry_after)
