"""From an answered offer to a session: the connection, hello or plain contact, admission or a refusal with its reason."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import NoReturn

from rondevud.durable import frames, greeting, sdp
from rondevud.durable.contact import Contact, Trickle
from rondevud.durable.frames import Refuse, RefuseCode
from rondevud.durable.greeting import CONNECTING, Greeting, send_frame
from rondevud.durable.handshake import Fingerprints, judge_hello
from rondevud.durable.pool import PendingOffer, accept_answer
from rondevud.durable.settings import PeerChoice
from rondevud.durable.visits import Visits
from rondevud.errors import PeerError, StoreError, TransportError
from rondevud.signalling.base import Answer, ServicePublisher
from rondevud.transport.base import DataChannel, PeerConnection

logger = logging.getLogger(__name__)

PLAIN_CONNECTING = 30.0
"""Seconds that a plain peer gets from its answer to a connection: the seed's timeout; candidates may come slowly."""


class Reception:
    """Receives the peers of one service. `count` counts by name."""

    def __init__(
        self,
        name: str,
        visits: Visits,
        publisher: ServicePublisher,
        count: Callable[[str], None],
        stray: Callable[[str], None],
    ) -> None:
        """`stray` counts what peers do that no rule asks for."""
        self._name = name
        self._visits = visits
        self._publisher = publisher
        self._count = count
        self._stray = stray

    async def receive(self, offer: PendingOffer, answer: Answer, choice: PeerChoice) -> None:
        """Take the answer to an offer. Raises `PeerError` or `TransportError` when it comes to nothing.

        Then the connection is the caller's to close.
        """
        if _is_plain(answer, choice):
            await self._contact(offer, answer)
            return
        fingerprints = Fingerprints(sdp.fingerprint(offer.sdp), sdp.fingerprint(answer.sdp))
        arrival = Greeting(offer.connection, self._stray)
        await accept_answer(offer, answer.sdp, CONNECTING)
        channel, hello = await arrival.hello()
        await self._admit(offer.connection, channel, hello, fingerprints)

    # --- plain peers -----------------------------------------------------------------------------------------------

    async def _contact(self, offer: PendingOffer, answer: Answer) -> None:
        """Wait for the connection with a plain peer, and hand it to its session."""
        refuse = self._visits.keeps_out_plain(answer.answerer_id)
        if refuse is not None:
            self._refuse_plain(refuse)
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
        visit = self._visits.returning(answer.answerer_id)
        refuse = self._visits.too_many(visit) or (None if visit else self._visits.make_place())
        if refuse is not None:
            self._refuse_plain(refuse)
        if visit is None:
            try:
                visit = await self._visits.make_plain(answer.answerer_id)
            except StoreError as error:
                raise PeerError(f"store: {error}") from error
        visit.session.open_plain(offer.connection, contact.channels, dialled=False)

    def _refuse_plain(self, refuse: Refuse) -> NoReturn:
        """Such a peer hears no reason: its connection is closed."""
        self._count(f"refused_{refuse.code}")
        raise PeerError(f"{refuse.code}: {refuse.reason}")

    # --- links -----------------------------------------------------------------------------------------------------

    async def _admit(
        self, connection: PeerConnection, channel: DataChannel, hello: frames.Hello, fingerprints: Fingerprints
    ) -> None:
        known = self._visits.find(hello.session)
        refuse = (
            judge_hello(hello, known.session.record if known else None, fingerprints)
            or (self._visits.keeps_out(known) if known else None)
            or self._visits.too_many(known)
        )
        if refuse is not None and refuse.code is RefuseCode.UNKNOWN_SESSION:
            # The connecting side says hello again, in the same channel, under a new session.
            send_frame(channel, frames.encode(refuse))
            hello = await Greeting.again(connection, channel)
            await self._admit_new(connection, channel, hello, fingerprints)
        elif refuse is not None and refuse.code is RefuseCode.OLDER_LINK:
            send_frame(channel, frames.encode(refuse))
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
        if hello.token is None or self._visits.is_known(hello.session):
            await self._refuse(connection, channel, Refuse(RefuseCode.TRY_LATER, "this session is being made", 0))
            return
        refuse = self._visits.too_many(None) or self._visits.make_place()
        if refuse is not None:
            await self._refuse(connection, channel, refuse)
            return
        try:
            visit = await self._visits.make(hello.session, hello.token)
        except StoreError as error:
            await self._refuse(connection, channel, Refuse(RefuseCode.TRY_LATER, f"store: {error}"[:200], 0))
            return
        visit.session.accept_link(connection, channel, hello, fingerprints, resumed=False)

    async def _refuse(self, connection: PeerConnection, channel: DataChannel, refuse: Refuse) -> None:
        """Say why not; the connection is closed when the peer has had time to read it."""
        self._count(f"refused_{refuse.code}")
        logger.info("%s: a peer is refused: %s: %s", self._name, refuse.code, refuse.reason)
        await greeting.refuse(connection, channel, refuse)
        self._visits.discard(connection)


def _is_plain(answer: Answer, choice: PeerChoice) -> bool:
    """Whether to take the answer as a plain peer's. Raises `PeerError` where only a link will do."""
    if choice is PeerChoice.PLAIN:
        return True
    if frames.VERSION in sdp.link_versions(answer.sdp):
        return False
    if choice is PeerChoice.LINK:
        raise PeerError("not_a_link: the peer speaks no link, and peer is set to link")
    return True
