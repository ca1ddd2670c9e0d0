"""A peer of a seed-era server: its credentials, its requests, the candidates it trickles; and what refusals mean."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Collection
from typing import Any, Final
from urllib.parse import quote

from rondevud.errors import SignallingRejected
from rondevud.signalling.base import Candidate
from rondevud.signalling.http import MAX_ANSWER, HttpClient, Reply, garbled
from rondevud.signalling.wire import Members, candidate_from_json, candidate_to_json

MAX_CANDIDATE_OFFERS: Final = 256
"""Offers whose candidates are remembered; the one not asked for longest goes first."""

MAX_CANDIDATES: Final = 200
"""Candidates of one offer that are passed on."""


class Peer:
    """Peer credentials, made when they are needed."""

    def __init__(self, http: HttpClient) -> None:
        self._http = http
        self._authorization: str | None = None
        self._lock = asyncio.Lock()
        self._registrations = 0

    @property
    def number(self) -> int:
        """Another one for each registration; 0 while there is none."""
        return 0 if self._authorization is None else self._registrations

    async def authorization(self) -> str:
        async with self._lock:
            if self._authorization is None:
                reply = expect(await self._http.request("POST", "/register", body={}))
                members = Members(reply.body, reply.what)
                self._authorization = f"Bearer {members.identifier('peerId')}:{members.identifier('secret')}"
                self._registrations += 1
            return self._authorization

    def forget(self, authorization: str) -> None:
        """Unless somebody else has registered again meanwhile."""
        if self._authorization == authorization:
            self._authorization = None

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        renew: bool = True,
        harmless: bool = True,
        accept: Collection[int] = (),
        limit: int = MAX_ANSWER,
    ) -> Reply:
        """`HttpClient.request` as this peer. On 401 the peer is forgotten, and with `renew` a new one tries once more.

        Raises `SignallingRejected` ``unauthorized`` when it stays at that.
        """
        while True:
            authorization = await self.authorization()
            reply = await self._http.request(
                method, path, body=body, authorization=authorization, harmless=harmless, accept=accept, limit=limit
            )
            if reply.status != 401:
                return reply
            self.forget(authorization)
            if not renew:
                raise rejected(reply, "unauthorized")
            renew = False


class SeenCandidates:
    """Which candidates of which offer have been passed on; bounded, and what it drops is counted."""

    def __init__(self, counters: Counter[str]) -> None:
        """`counters` gets ``candidates_dropped``, those beyond `MAX_CANDIDATES`."""
        self._offers: OrderedDict[str, set[Candidate]] = OrderedDict()
        self._counters = counters

    def take_new(self, offer_id: str, candidates: list[Candidate]) -> list[Candidate]:
        seen = self._offers.setdefault(offer_id, set())
        self._offers.move_to_end(offer_id)
        if len(self._offers) > MAX_CANDIDATE_OFFERS:
            self._offers.popitem(last=False)
        new = [candidate for candidate in dict.fromkeys(candidates) if candidate not in seen]
        room = MAX_CANDIDATES - len(seen)
        if len(new) > room:
            self._counters["candidates_dropped"] += len(new) - room
        seen.update(new[:room])
        return new[:room]

    def forget(self, offer_id: str) -> None:
        self._offers.pop(offer_id, None)


class TrickledCandidates:
    """The candidates of both roles: the server decides by the peer which side's are stored and answered."""

    def __init__(self, peer: Peer, counters: Counter[str]) -> None:
        self._peer = peer
        self.seen = SeenCandidates(counters)

    async def read(self, offer_id: str, *, renew: bool) -> list[Candidate]:
        """From the beginning each time: a server stamps a batch into the future, and what comes after it would be lost
        to who reads from the last stamp on."""
        path = f"/offers/{quote_segment(offer_id)}/ice-candidates?since=0"
        reply = expect(await self._peer.request("GET", path, renew=renew), {404: "not_found"})
        found = [candidate_from_json(one.value("candidate")) for one in items_of(reply, "candidates")]
        return self.seen.take_new(offer_id, [one for one in found if one is not None])

    async def post(self, offer_id: str, candidates: list[Candidate], *, renew: bool) -> None:
        if not candidates:
            return
        body = {"candidates": [candidate_to_json(candidate) for candidate in candidates]}
        path = f"/offers/{quote_segment(offer_id)}/ice-candidates"
        expect(await self._peer.request("POST", path, body=body, renew=renew), {404: "not_found"})


def quote_segment(segment: str) -> str:
    return quote(segment, safe="")


def rejected(reply: Reply, code: str) -> SignallingRejected:
    message = f"{reply.what}: {reply.status}: {reply.error or reply.text or 'no text'}"
    return SignallingRejected(message, code=code, status=reply.status, retry_after=reply.retry_after)


def expect(reply: Reply, codes: dict[int, str] | None = None) -> Reply:
    """The reply, if it is a success. A refusal raises `SignallingRejected` with the code `codes` has for its status, else
    ``refused``. What is no JSON map, or a refusal without the protocol's error text, comes from no such server."""
    success = 200 <= reply.status < 300
    if not isinstance(reply.body, dict) or (not success and reply.error is None):
        raise garbled(reply, f"not an answer of a Rondevu server: {reply.text!r}")
    if success:
        return reply
    raise rejected(reply, (codes or {}).get(reply.status, "unauthorized" if reply.status == 401 else "refused"))


def items_of(reply: Reply, name: str) -> list[Members]:
    return Members(reply.body, reply.what).items(name)
