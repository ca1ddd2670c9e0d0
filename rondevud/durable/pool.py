"""The pool of open offers of a service: always some out at the signalling server, none of them expired.

An offer is a WebRTC connection that waits for an answer. Offers are published with the service (`publish`, which is also
its refresh) or added to it; each is replaced before the server lets it expire, and kept a little longer than that, because
an answer may be on its way. A refresh publishes one more offer under the same credentials: offers that are out stay usable,
and live connections know nothing of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from rondevud.durable import sdp
from rondevud.durable.settings import PeerChoice, ServiceSettings
from rondevud.errors import SignallingGarbled, SignallingRejected, TransportError
from rondevud.signalling.base import Publication, ServicePublisher
from rondevud.transport.base import DataChannel, Engine, PeerConnection

logger = logging.getLogger(__name__)

SERVICE_LABEL = "rondevu-service"
"""Label of the data channel that makes the data section of an offer; on a link nobody uses it."""

OFFERS_MOST = 20
"""Offers kept at most, however many sessions are missed."""

BATCH = 10
"""Offers made in one request."""

GRACE = 10.0
"""Seconds that an expired offer is kept for an answer that came in time."""


@dataclass(slots=True)
class PendingOffer:
    """An offer that waits for its answer."""

    connection: PeerConnection
    channel: DataChannel
    """The one that every offer has."""
    sdp: str
    offer_id: str = ""
    published: float = 0.0
    """When it was, in the time of the clock."""
    fresh_until: float = 0.0
    """When it stops counting, in the time of the clock: before the server lets it expire."""
    expires: float = 0.0


class OfferPool:
    """Makes offers, publishes them, and gives up those that nobody answered in time."""

    def __init__(
        self,
        settings: ServiceSettings,
        publisher: ServicePublisher,
        engine: Engine,
        now: Callable[[], float],
        discard: Callable[[PeerConnection], None],
    ) -> None:
        self.publication: Publication | None = None
        self.refresh_at: float | None = None
        """When to publish again, in the time of `now`; None before the first publication."""
        self._settings = settings
        self._publisher = publisher
        self._engine = engine
        self._now = now
        self._discard = discard
        self._offers: dict[str, PendingOffer] = {}
        self._gone: set[str] = set()
        """Addresses that this machine has lost since it began to make the last offers."""
        self._useless: set[str] = set()
        """Offers given up before their time, to be deleted at the server."""

    @property
    def size(self) -> int:
        """Offers that a client can be given now."""
        now = self._now()
        return sum(offer.fresh_until > now for offer in self._offers.values())

    def offers(self) -> list[PendingOffer]:
        """Those that wait for an answer, the oldest first."""
        return sorted(self._offers.values(), key=lambda offer: offer.published)

    def wanted(self, missed: int) -> int:
        """Offers to have while `missed` sessions are without a link."""
        return max(self._settings.pool_size, min(self._settings.pool_size + missed, OFFERS_MOST))

    def reconfigure(self, settings: ServiceSettings) -> None:
        """Other settings from now on; what the server was told otherwise is due to be published again."""
        before, self._settings = self._settings, settings
        told = ("ttl", "public", "metadata")
        if self.publication is not None and any(getattr(before, key) != getattr(settings, key) for key in told):
            self.refresh_at = self._now()

    async def publish(self) -> Publication:
        """Publish the service, or publish it again, with one new offer. Raises `SignallingError`, `TransportError`."""
        self._gone.clear()
        offer = await self._make_offer()
        settings = self._settings
        try:
            publication = await self._publisher.publish(
                offer.sdp, ttl=settings.ttl, public=settings.public, metadata=settings.metadata
            )
        except BaseException:
            self._discard(offer.connection)
            raise
        self.publication = publication
        self.refresh_at = self._now() + publication.ttl * (1 - settings.ttl_refresh_margin)
        self._keep(offer, publication.offer_id, publication.ttl)
        self._drop_useless()
        return publication

    async def refill(self, missed: int) -> int:
        """Make and add the offers that are missing; answers how many. Raises like `publish`."""
        count = min(BATCH, self.wanted(missed) - self.size)
        if count <= 0:
            return 0
        self._gone.clear()
        offers: list[PendingOffer] = []
        try:
            for _ in range(count):
                offers.append(await self._make_offer())  # noqa: PERF401 - what has been made must be discarded on errors
            added = await self._publisher.add_offers([offer.sdp for offer in offers], ttl=self._settings.ttl)
        except BaseException:
            for offer in offers:
                self._discard(offer.connection)
            raise
        for offer, accepted in zip(offers, added, strict=True):
            self._keep(offer, accepted.offer_id, accepted.ttl)
        self._drop_useless()
        return count

    def take(self, offer_id: str) -> PendingOffer | None:
        """The offer that has been answered; None when it is not, or no longer, in the pool."""
        return self._offers.pop(offer_id, None)

    def drop_expired(self) -> int:
        """Give up offers whose time is over; answers how many."""
        now = self._now()
        gone = [offer for offer in self._offers.values() if offer.expires + GRACE <= now]
        for offer in gone:
            del self._offers[offer.offer_id]
            self._discard(offer.connection)
        return len(gone)

    def addresses_gone(self, addresses: set[str]) -> bool:
        """This machine has lost these addresses: give up the offers that name them; answers whether there were any.

        Offers that are being made are judged when they are there.
        """
        self._gone |= addresses
        return self._drop_useless()

    def _drop_useless(self) -> bool:
        """Give up the offers that name an address in `_gone`. The one of the publication calls for another one."""
        useless = [offer for offer in self._offers.values() if sdp.addresses(offer.sdp) & self._gone]
        for offer in useless:
            del self._offers[offer.offer_id]
            self._discard(offer.connection)
            self._useless.add(offer.offer_id)
            if self.publication is not None and offer.offer_id == self.publication.offer_id:
                self.refresh_at = self._now()
        return bool(useless)

    async def delete_useless(self) -> None:
        """Delete at the server what was given up before its time, so that nobody is handed it.

        Raises `SignallingUnreachable` and `SignallingRejected` ``unauthorized``; offers that cannot be deleted for another
        reason stay there until their TTL ends.
        """
        for offer_id in list(self._useless):
            try:
                await self._publisher.delete_offer(offer_id)
            except (SignallingRejected, SignallingGarbled) as error:
                if getattr(error, "code", None) == "unauthorized":
                    raise
                logger.info("An offer that has become useless stays at the server until its TTL ends: %s", error)
            self._useless.discard(offer_id)

    def next_change(self) -> float | None:
        """When an offer stops counting or the service is to be refreshed, in the time of `now`."""
        now = self._now()
        due = [offer.fresh_until for offer in self._offers.values() if offer.fresh_until > now]
        if self.refresh_at is not None:
            due.append(self.refresh_at)
        return min(due, default=None)

    def close(self) -> None:
        """Give up all offers; what the server knows of them is the publisher's to withdraw."""
        for offer in self._offers.values():
            self._discard(offer.connection)
        self._offers.clear()
        self._useless.clear()

    def forget(self) -> None:
        """The server has forgotten us: no offer of ours is usable any more."""
        self.close()
        self.publication = None
        self.refresh_at = None

    async def _make_offer(self) -> PendingOffer:
        connection = self._engine.create_peer_connection()
        try:
            channel = connection.create_data_channel(SERVICE_LABEL)
            text = await connection.create_offer()
            marked = text if self._settings.peer is PeerChoice.PLAIN else sdp.mark(text)
            return PendingOffer(connection, channel, marked)
        except BaseException:
            self._discard(connection)
            raise

    def _keep(self, offer: PendingOffer, offer_id: str, ttl: float) -> None:
        offer.offer_id = offer_id
        offer.published = self._now()
        offer.expires = self._now() + ttl
        offer.fresh_until = self._now() + ttl * (1 - self._settings.ttl_refresh_margin)
        self._offers[offer_id] = offer


async def accept_answer(offer: PendingOffer, answer: str, timeout: float) -> None:
    """Take an answer to an offer and wait for nothing. Raises `TransportError` for a text that is no answer to it."""
    try:
        async with asyncio.timeout(timeout):
            await offer.connection.accept_answer(answer)
    except TimeoutError:
        raise TransportError("the answer could not be taken in time") from None
