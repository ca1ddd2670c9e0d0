"""The client of the seed-era REST API.

Times are integers in milliseconds on the wire. Every publisher registers a peer of its own, because the server's pool of a
service is every open offer of the peer that published it; the connecting side has one peer for all its dials.

What is repeated after a broken connection, and why that does no harm:

* reading, deleting, registering (a peer is no state of the server), claiming (a second claim renews the first);
* posting candidates: who reads them drops what it has;
* answering: the first answer stays. "Already answered" behind a broken try is taken for our own answer, so the caller
  waits for a connection; if somebody else was faster, that wait ends by its own time-out;
* adding offers: they are stored all or none, and found again by their SDP.

A publication is not repeated: the seed's server removes the previous service (the one just published) before it finds out
that it has the same offer already. The caller publishes again with a new offer.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from rondevud.errors import SignallingRejected
from rondevud.signalling.base import Candidate, DiscoveredOffer, Health
from rondevud.signalling.clock import ServerClock
from rondevud.signalling.http import HttpClient, Reply, garbled, unreachable
from rondevud.signalling.identity import Identities
from rondevud.signalling.peer import Peer, TrickledCandidates, expect, quote_segment, rejected
from rondevud.signalling.publisher import RestPublisher
from rondevud.signalling.wire import MAX_TIME, Members

if TYPE_CHECKING:
    import aiohttp

_EXPIRED_MESSAGE = "Timestamp too old"


class RestSignalling:
    """A `rondevud.signalling.base.Signalling`. Nothing is asked of the server before the first call."""

    def __init__(
        self,
        url: str,
        identities: Identities,
        *,
        session: aiohttp.ClientSession | None = None,
        timeout: float = 10.0,
        user_agent: str = "rondevud",
        clock: ServerClock | None = None,
    ) -> None:
        """`timeout` is for each request with its repetitions. Raises `ConfigError` for a bad URL."""
        self._clock = clock or ServerClock()
        self._http = HttpClient(url, clock=self._clock, session=session, timeout=timeout, user_agent=user_agent)
        self._identities = identities
        self._peer = Peer(self._http)
        self._candidates = TrickledCandidates(self._peer, self._http.counters)

    @property
    def health(self) -> Health:
        return self._http.health

    @property
    def counters(self) -> Counter[str]:
        return self._http.counters

    def network_changed(self) -> None:
        self._http.network_changed()

    async def close(self) -> None:
        await self._http.close()

    def publisher(self, username: str, fqn: str) -> RestPublisher:
        return RestPublisher(self._http, self._clock, username, fqn, claim=self.claim, sign=self._sign)

    async def _sign(self, username: str, verb: str, *words: str) -> dict[str, str]:
        """``message`` and ``signature`` of ``verb:username:words:timestamp``, by the server's clock."""
        stamp = int(await self._server_time() * 1000)
        message = ":".join([verb, username, *words, str(stamp)])
        return {"message": message, "signature": self._identities.obtain(username).sign(message)}

    async def _server_time(self) -> float:
        if not self._clock.known:
            await self._learn_clock()
        return self._clock.now()

    async def _learn_clock(self) -> None:
        """Ask for the server's time. Without a ``Date`` the answer's own timestamp is taken, without both nothing."""
        sent = self._clock.steady()
        reply = await self._http.request("GET", "/health")
        stamp = reply.body.get("timestamp") if isinstance(reply.body, dict) else None
        if not self._clock.known and type(stamp) is int and 0 < stamp < MAX_TIME:
            self._clock.learn(stamp / 1000, stamp / 1000, sent=sent, received=self._clock.steady())

    async def claim(self, username: str) -> float:
        reply = await self._claim(username)
        if (reply.error or "").startswith(_EXPIRED_MESSAGE):  # a clock was set; the refusal's own Date has told
            reply = await self._claim(username)
        if reply.status == 500:
            await self._explain_failed_claim(reply, username)
        if reply.status == 409:
            raise SignallingRejected(
                f"user name {username} is held by another key ({reply.what})", code="name_taken", status=409
            )
        return Members(expect(reply).body, reply.what).seconds("expiresAt")

    async def _claim(self, username: str) -> Reply:
        public_key = self._identities.obtain(username).public_key
        body = {"username": username, "publicKey": public_key, **await self._sign(username, "claim")}
        return await self._http.request("POST", "/usernames/claim", body=body, accept={500})

    async def _explain_failed_claim(self, reply: Reply, username: str) -> None:
        """The server answers 500 to a key that has another name; with the name free, that is what happened."""
        if reply.error is not None and (await self.check(username))["available"]:
            raise SignallingRejected(
                f"the server refuses user name {username} to this key although it is free: "
                f"most likely the key holds another name there, and one key can hold one name only ({reply.what})",
                code="refused",
                status=reply.status,
            )
        raise unreachable(reply)

    async def check(self, username: str) -> dict[str, Any]:
        reply = expect(await self._http.request("GET", f"/usernames/{quote_segment(username)}"))
        members = Members(reply.body, reply.what)
        result: dict[str, Any] = {"username": members.text("username"), "available": members.flag("available")}
        if not result["available"]:
            result["public_key"] = members.text("publicKey")
            result["claimed_at"] = members.seconds("claimedAt")
            result["expires_at"] = members.seconds("expiresAt")
        return result

    async def discover(self, username: str, fqn: str) -> DiscoveredOffer:
        uuid = await self._find(username, fqn)
        try:
            return await self.discover_uuid(uuid)
        except SignallingRejected as error:
            if error.code != "not_found":
                raise
            again = await self._find(username, fqn)  # published again in between, under another UUID
            if again == uuid:
                raise
            return await self.discover_uuid(again)

    async def _find(self, username: str, fqn: str) -> str:
        path = f"/index/{quote_segment(username)}/query"
        reply = await self._http.request("POST", path, body={"serviceFqn": fqn})
        return Members(expect(reply, {404: "not_found"}).body, reply.what).identifier("uuid")

    async def discover_uuid(self, uuid: str) -> DiscoveredOffer:
        reply = await self._http.request("GET", f"/services/{quote_segment(uuid)}", accept={503})
        if reply.status == 503 and reply.error != "No available offers":
            raise unreachable(reply)  # not this API's word: something in front of the server has none
        if reply.error == "Associated offer not found":
            raise rejected(reply, "no_offer")
        members = Members(expect(reply, {404: "not_found", 503: "no_offer"}).body, reply.what)
        return DiscoveredOffer(
            username=members.text("username"),
            fqn=members.text("serviceFqn"),
            uuid=uuid,
            offer_id=members.identifier("offerId"),
            sdp=members.text("sdp"),
            publication=str(members.value("serviceId") or ""),
        )

    async def answer(self, offer_id: str, sdp: str) -> None:
        reply = await self._peer.request("POST", f"/offers/{quote_segment(offer_id)}/answer", body={"sdp": sdp})
        error = reply.error or ""
        if error.startswith("Offer already answered"):
            if reply.repeated:
                return
            raise rejected(reply, "offer_taken")
        if error.startswith("Offer not found"):
            raise rejected(reply, "offer_taken")
        if not Members(expect(reply).body, reply.what).flag("success"):
            raise garbled(reply, "neither a success nor an error")

    async def offer_candidates(self, offer_id: str) -> list[Candidate]:
        return await self._candidates.read(offer_id, renew=True)

    async def add_answer_candidates(self, offer_id: str, candidates: list[Candidate]) -> None:
        await self._candidates.post(offer_id, candidates, renew=True)
