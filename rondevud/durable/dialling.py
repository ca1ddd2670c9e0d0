"""One attempt to reach a service: an offer is taken and answered, and what comes of it is a link or a plain connection."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

from rondevud.durable import frames, sdp
from rondevud.durable.contact import Contact, Trickle
from rondevud.durable.effects import LinkDown, LinkUp
from rondevud.durable.frames import GoodbyeCode
from rondevud.durable.handshake import Fingerprints
from rondevud.durable.session import DurableSession
from rondevud.durable.settings import ConnectionSettings, PeerChoice
from rondevud.errors import RondevuError, SignallingError, SignallingRejected, TransportError
from rondevud.records import PeerKind
from rondevud.signalling.base import DiscoveredOffer, Signalling
from rondevud.transport.base import ChannelState, ConnectionState, DataChannel, Engine, PeerConnection

ATTEMPT = 8.0
"""Seconds that a dial after a loss, or beside a suspect link, may take: ICE checks are repeated after 0.5, 1, 2, 4, 8, 16 s,
and a path that came back late in an attempt is found sooner by the next one."""

LOOK_AGAIN = 2.0
"""Seconds between two looks, while an answered offer leads to nothing, at whether the service has been published anew. A
daemon that is killed leaves its offers at the server; when it is back, the attempt on one of them is best given up."""

AT_ONCE = (0.0, 0.0)

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


class Dialler:
    """Makes the attempts of one connection, one at a time."""

    def __init__(
        self, session: DurableSession, signalling: Signalling, engine: Engine, discard: Callable[[PeerConnection], None]
    ) -> None:
        self.offer: DiscoveredOffer | None = None
        """The one that was taken last."""
        self.moved = False
        """Whether the local address of the link there is has gone."""
        self._session = session
        self._signalling = signalling
        self._engine = engine
        self._discard = discard
        self._greetings: dict[int, asyncio.Future[LinkUp | LinkDown]] = {}
        """Links on which hello has been said, by key."""

    @property
    def greeting(self) -> bool:
        """Whether the attempt has come as far as hello."""
        return bool(self._greetings)

    @property
    def wanted(self) -> bool:
        """Whether the session needs a link, or another one."""
        return not self._session.connected or self._session.suspect or self.moved

    async def dial(self, settings: ConnectionSettings) -> None:
        """One attempt. Raises `DialError`, `SignallingError`, `TransportError` or `TimeoutError`."""
        again = self._session.record.kind is PeerKind.LINK
        try:
            async with asyncio.timeout(ATTEMPT if again else settings.reconnect.connection_timeout):
                await self._attempt(settings)
        except Exception:
            self.give_up()
            raise
        finally:
            self._greetings.clear()

    async def _attempt(self, settings: ConnectionSettings) -> None:
        self.offer = None
        offer = self.offer = await self._discover(settings)
        plain = self._is_plain(offer, settings.peer)
        connection = self._engine.create_peer_connection()
        try:
            await (self._contact(connection, offer) if plain else self._link(connection, offer, settings))
        except BaseException:
            if not self._session.has(connection):
                self._discard(connection)
            raise

    def give_up(self) -> None:
        """Say goodbye where an attempt has come as far as hello. Who cancels an attempt does this, or ends the session."""
        for key in list(self._greetings):
            self._session.drop_link(key)

    def settle(self, effect: LinkUp | LinkDown) -> None:
        """A link is up, or is down: the answer to hello."""
        if isinstance(effect, LinkUp):
            self.moved = False
        outcome = self._greetings.get(effect.link)  # type: ignore[call-overload]
        if outcome is not None and not outcome.done():
            outcome.set_result(effect)

    async def _discover(self, settings: ConnectionSettings) -> DiscoveredOffer:
        if settings.uuid is not None:
            return await self._signalling.discover_uuid(settings.uuid)
        return await self._signalling.discover(settings.username or "", settings.fqn or "")

    def _is_plain(self, offer: DiscoveredOffer, choice: PeerChoice) -> bool:
        """Whether to take the offer as a plain peer's. Raises `DialError` where only a link will do."""
        if choice is PeerChoice.PLAIN:
            return True
        if frames.VERSION in sdp.link_versions(offer.sdp):
            return False
        if choice is PeerChoice.LINK or self._session.record.kind is PeerKind.LINK:
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
        if self.wanted:
            self._session.open_plain(connection, contact.channels, dialled=True)
        else:
            self._discard(connection)

    async def _link(self, connection: PeerConnection, offer: DiscoveredOffer, settings: ConnectionSettings) -> None:
        """Answer the offer, open the data channel, say hello, wait for the verdict."""
        closed = asyncio.get_running_loop().create_future()
        connection.on_state = lambda state: _resolve(closed, state is ConnectionState.CLOSED)
        answer = sdp.mark(await connection.create_answer(offer.sdp))
        fingerprints = Fingerprints(sdp.fingerprint(offer.sdp), sdp.fingerprint(answer))
        channel = connection.create_data_channel(frames.LABEL, protocol=frames.PROTOCOL)
        opened = asyncio.get_running_loop().create_future()
        channel.on_open = lambda: _resolve(opened, channel.state is ChannelState.OPEN)
        await self._signalling.answer(offer.offer_id, answer)
        outdated = asyncio.create_task(self._published_anew(offer, settings), name="is the offer outdated")
        try:
            await _first({opened, closed}, outdated)
            if not opened.done():
                raise TransportError("the WebRTC connection ended before the data channel was open")
            await self._greet(connection, channel, fingerprints, outdated)
        finally:
            outdated.cancel()

    async def _published_anew(self, offer: DiscoveredOffer, settings: ConnectionSettings) -> None:
        """Wait until the service of that offer has been published anew, as far as its server tells."""
        while True:
            await asyncio.sleep(LOOK_AGAIN)
            with contextlib.suppress(SignallingError):
                now = await self._discover(settings)
                if now.publication != offer.publication:
                    return

    async def _greet(
        self,
        connection: PeerConnection,
        channel: DataChannel,
        fingerprints: Fingerprints,
        outdated: asyncio.Future[None],
    ) -> None:
        if not self.wanted:  # the suspect link was heard again
            self._discard(connection)
            return
        key = self._session.open_link(connection, channel, fingerprints)
        outcome = self._greetings[key] = asyncio.get_running_loop().create_future()
        await _first({outcome}, outdated)
        effect = outcome.result()
        if isinstance(effect, LinkDown):
            busy = effect.code in {frames.RefuseCode.TOO_MANY, frames.RefuseCode.TRY_LATER, GoodbyeCode.RESTARTING}
            raise DialError(f"refused: {effect.code}: {effect.reason}", effect.code, counts=not busy)


def dial_error(error: Exception) -> DialError | None:
    """What a failed attempt means; None for an error that nobody expects."""
    if isinstance(error, DialError):
        return error
    if isinstance(error, SignallingRejected):
        return _rejected(error)
    if isinstance(error, SignallingError):
        return DialError(str(error), "signalling", counts=False, retry_after=error.retry_after)
    if isinstance(error, TransportError | TimeoutError):
        return DialError(str(error) or "the connection did not come up in time", "connection", counts=True)
    return None


async def _first(futures: set[asyncio.Future[Any]], outdated: asyncio.Future[None]) -> None:
    """Wait for one of `futures`. Raises `DialError` when the offer that was answered is outdated before."""
    await asyncio.wait({*futures, outdated}, return_when=asyncio.FIRST_COMPLETED)
    if not any(future.done() for future in futures):
        outdated.result()
        raise DialError("the service was published anew meanwhile", "offer_outdated", counts=False, delay=AT_ONCE)


def _resolve(future: asyncio.Future[None], now: bool) -> None:
    if now and not future.done():
        future.set_result(None)


def _rejected(error: SignallingRejected) -> DialError:
    if error.code in {"no_offer", "offer_taken"}:
        return DialError(str(error), error.code, counts=False, delay=BUSY_DELAY, retry_after=error.retry_after)
    counts = error.code != "unauthorized"  # that says something of the server, and nothing of what is asked for
    return DialError(str(error), error.code, counts=counts, retry_after=error.retry_after)
