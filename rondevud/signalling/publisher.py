"""Publishing one service through the seed-era REST API. What is repeated, and why, stands in `rondevud.signalling.rest`."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

from rondevud.errors import SignallingError, SignallingRejected
from rondevud.signalling.base import Answer, Candidate, PoolOffer, Publication
from rondevud.signalling.clock import ServerClock
from rondevud.signalling.http import HttpClient, Reply, garbled, unreachable
from rondevud.signalling.peer import Peer, TrickledCandidates, expect, items_of, quote_segment, rejected
from rondevud.signalling.wire import Members

logger = logging.getLogger(__name__)

MAX_ANSWERS: Final = 8 * 1024 * 1024
"""Bytes of a list of answers or offers: the server repeats all that are alive, each with its SDP."""

MAX_OFFERS: Final = 100
"""Offers in one request, the server's limit."""

MIN_TTL: Final = 60.0
"""Seconds to which the server raises a shorter ttl."""

KEPT_BEHIND: Final = 60.0
"""Seconds for which an expired offer is still remembered."""

_DUPLICATE = "UNIQUE constraint failed"


class RestPublisher:
    """A `rondevud.signalling.base.ServicePublisher`.

    When the server does not know the peer any more, or its clock says that the publication is over, every call but `publish`
    and `withdraw` raises `SignallingRejected` ``unauthorized``: the service must be published again, with new offers.
    """

    def __init__(
        self,
        http: HttpClient,
        clock: ServerClock,
        username: str,
        fqn: str,
        *,
        claim: Callable[[str], Awaitable[float]],
        sign: Callable[..., Awaitable[dict[str, str]]],
    ) -> None:
        """`claim` claims a user name; `sign` gives the members ``message`` and ``signature`` for a user name, a verb and
        more words."""
        self._claim = claim
        self._sign = sign
        self._clock = clock
        self._username = username
        self._fqn = fqn
        self._peer = Peer(http)
        self._candidates = TrickledCandidates(self._peer, http.counters)
        self._publication: Publication | None = None
        self._published_as = 0
        """`Peer.number` of the publication."""
        self._over_at: float | None = None
        """When the server's own clock ends the publication, as far as that clock can be believed."""
        self._offers: dict[str, float] = {}
        """Offers that may be at the server, and when (steady clock) they have expired for certain."""
        self._handled: dict[str, float] = {}
        """Offers whose answers were passed on, and when they can be forgotten: the server repeats them until then."""
        self._postponed: set[str] = set()
        """Offers to delete once they are not the service's own offer any more."""

    async def publish(self, sdp: str, *, ttl: float, public: bool, metadata: Any) -> Publication:
        """Raises `SignallingRejected` ``offer_taken`` when the server has this very SDP: publish with a new offer. After
        `SignallingUnreachable` the publication may have been carried out; publish again, with a new offer too."""
        reply = await self._publish(sdp, ttl, public, metadata)
        if reply.status in {403, 404}:  # not claimed (any more), or not by this key: claiming tells which
            await self._claim(self._username)
            reply = await self._publish(sdp, ttl, public, metadata)
        if reply.status == 500:
            details = reply.body.get("details") if isinstance(reply.body, dict) else None
            raise rejected(reply, "offer_taken") if _DUPLICATE in str(details) else unreachable(reply)
        members = Members(expect(reply).body, reply.what)
        expires_at = members.seconds("expiresAt")
        publication = Publication(
            service_id=members.identifier("serviceId"),
            uuid=members.identifier("uuid"),
            offer_id=members.identifier("offerId"),
            ttl=self._ttl_until(expires_at, ttl),
            expires_at=expires_at,
        )
        if self._published_as != self._peer.number:
            self._forget_offers()
        self._publication, self._published_as = publication, self._peer.number
        left = self._clock.remaining(expires_at)
        self._over_at = expires_at if left is not None and left >= 1.0 else None
        self._remember_offer(publication.offer_id, publication.ttl)
        await self._delete_postponed()
        return publication

    async def _publish(self, sdp: str, ttl: float, public: bool, metadata: Any) -> Reply:
        body: dict[str, Any] = {
            "username": self._username,
            "serviceFqn": self._fqn,
            "sdp": sdp,
            "ttl": round(ttl * 1000),
            "isPublic": public,
        }
        if metadata is not None:
            body["metadata"] = metadata
        await self._peer.authorization()  # before signing: its answer tells the server's time
        body |= await self._sign(self._username, "publish", self._fqn)
        return await self._peer.request("POST", "/services", body=body, harmless=False, accept={500})

    def _ttl_until(self, expires_at: float, asked: float) -> float:
        """Seconds left by the server's clock, rounded down by what is not known of it.

        Never more than was asked for (or the server's minimum): a ``Date`` written by something else, with a clock that
        is late, must not delay a refresh. One that is early would leave nothing; then the minimum is taken.
        """
        most = max(asked, MIN_TTL)
        left = self._clock.remaining(expires_at)
        if left is None:
            return most
        if left < 1.0:
            logger.warning("the signalling server's Date and expiresAt contradict each other by %.0f s", most - left)
            return min(most, MIN_TTL)
        return min(left, most)

    async def add_offers(self, sdps: list[str], *, ttl: float) -> list[PoolOffer]:
        added: list[PoolOffer] = []
        for start in range(0, len(sdps), MAX_OFFERS):
            added += await self._add_offers(sdps[start : start + MAX_OFFERS], ttl)
        return added

    async def _add_offers(self, sdps: list[str], ttl: float) -> list[PoolOffer]:
        self._require_publication()
        body = {"offers": [{"sdp": sdp, "ttl": round(ttl * 1000)} for sdp in sdps]}
        reply = await self._request("POST", "/offers", body=body, accept={500})
        if reply.status == 500:
            error = reply.error or ""
            if _DUPLICATE in error:
                return await self._find_offers(reply, sdps, ttl)
            raise rejected(reply, "refused") if "SDP" in error else unreachable(reply)
        entries = items_of(expect(reply), "offers")
        if len(entries) != len(sdps):
            raise garbled(reply, f"{len(entries)} offers in the answer to {len(sdps)}")
        return [self._read_offer(entry, ttl) for entry in entries]

    async def _find_offers(self, refusal: Reply, sdps: list[str], ttl: float) -> list[PoolOffer]:
        """The offers of a request that was carried out although its answer was lost."""
        reply = expect(await self._request("GET", "/offers/mine", limit=MAX_ANSWERS))
        found = {entry.text("sdp"): entry for entry in items_of(reply, "offers") if not entry.value("answered")}
        if any(sdp not in found for sdp in sdps):
            raise rejected(refusal, "offer_taken")
        return [self._read_offer(found[sdp], ttl) for sdp in sdps]

    def _read_offer(self, entry: Members, asked: float) -> PoolOffer:
        """Both times are the server's, so no other clock is needed."""
        given = entry.seconds("expiresAt") - entry.seconds("createdAt")
        offer = PoolOffer(entry.identifier("id"), max(0.0, min(given, max(asked, MIN_TTL))))
        self._remember_offer(offer.offer_id, offer.ttl)
        return offer

    async def answers(self) -> list[Answer]:
        """Oldest first."""
        self._require_publication()
        reply = expect(await self._request("GET", "/offers/answers", limit=MAX_ANSWERS))
        self._check_clock()
        answers = [
            Answer(entry.identifier("offerId"), entry.identifier("answererId"), entry.text("sdp"))
            for entry in items_of(reply, "answers")
        ]
        now = self._clock.steady()
        self._handled = {offer_id: until for offer_id, until in self._handled.items() if until > now}
        self._offers = {offer_id: until for offer_id, until in self._offers.items() if until > now}
        new = [answer for answer in reversed(answers) if answer.offer_id not in self._handled]
        for answer in new:
            # An offer this object does not know can live for a day, the server's longest.
            self._handled[answer.offer_id] = self._offers.get(answer.offer_id, now + 86_400.0 + KEPT_BEHIND)
        return new

    async def candidates(self, offer_id: str) -> list[Candidate]:
        self._require_publication()
        return await self._candidates.read(offer_id, renew=False)

    async def add_candidates(self, offer_id: str, candidates: list[Candidate]) -> None:
        self._require_publication()
        await self._candidates.post(offer_id, candidates, renew=False)

    async def delete_offer(self, offer_id: str) -> None:
        """The offer that came with the publication is deleted after the next one: the service would go with it."""
        publication = self._require_publication()
        if offer_id == publication.offer_id:
            self._postponed.add(offer_id)
            return
        await self._delete_offer(offer_id)

    async def _delete_offer(self, offer_id: str) -> None:
        reply = await self._request("DELETE", f"/offers/{quote_segment(offer_id)}")
        if reply.status != 404:
            expect(reply)
        elif reply.error is None:
            raise garbled(reply, "not an answer of a Rondevu server")
        self._offers.pop(offer_id, None)
        self._candidates.seen.forget(offer_id)

    async def _delete_postponed(self) -> None:
        """As far as that works: they expire anyway."""
        while self._postponed:
            offer_id = self._postponed.pop()
            try:
                await self._delete_offer(offer_id)
            except SignallingError as error:
                logger.info("offer %s stays until it expires: %s", offer_id, error)

    async def withdraw(self) -> None:
        """The service first, so that nobody is given an offer that is about to go; then the offers."""
        publication = self._publication
        if publication is None:
            return
        path = f"/services/{quote_segment(publication.service_id)}"
        reply = await self._peer.request("DELETE", path, body={"username": self._username})
        if reply.status != 404:
            expect(reply)
        if self._published_as == self._peer.number:
            for offer_id in list(self._offers):
                await self._delete_offer(offer_id)
        self._publication = None
        self._forget_offers()

    # --- state ---

    def _check_clock(self) -> None:
        """A server whose clock was set forward has forgotten the service long before it is due to be published again."""
        left = None if self._over_at is None else self._clock.remaining(self._over_at)
        if left is not None and left <= 0.0:
            self._over_at = None
            raise SignallingRejected(
                f"{self._username} {self._fqn} has expired by the server's clock", code="unauthorized", status=401
            )

    def _require_publication(self) -> Publication:
        if self._publication is None or self._published_as != self._peer.number:
            raise SignallingRejected(
                f"{self._username} {self._fqn} is not published under the present peer", code="unauthorized", status=401
            )
        return self._publication

    async def _request(self, method: str, path: str, **options: Any) -> Reply:
        """As the peer of the publication; 401 is the end of it."""
        return await self._peer.request(method, path, renew=False, **options)

    def _remember_offer(self, offer_id: str, ttl: float) -> None:
        self._offers[offer_id] = self._clock.steady() + ttl + KEPT_BEHIND

    def _forget_offers(self) -> None:
        self._offers.clear()
        self._handled.clear()
        self._postponed.clear()
