"""What the daemon needs of a Rondevu signalling server, whatever generation its API is.

Times are seconds since 1970 by the *server's* clock unless said otherwise, durations are seconds. Every call may raise
`SignallingUnreachable`, `SignallingRejected` or `SignallingGarbled` (see `rondevud.errors`) and has a time-out of its own;
`SignallingRejected.code` tells callers what to do next.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Publication:
    """A service as published."""

    service_id: str
    uuid: str
    offer_id: str
    """The offer that was sent with the publication; deleting it may delete the service."""
    ttl: float
    """Seconds the server gave it, from the moment of the answer: safe to measure on the local monotonic clock."""
    expires_at: float


@dataclass(frozen=True, slots=True)
class PoolOffer:
    """An offer in the pool of a service."""

    offer_id: str
    ttl: float
    """Seconds the server gave it, from the moment of the answer."""


@dataclass(frozen=True, slots=True)
class DiscoveredOffer:
    """An unanswered offer of a service, as a client gets it."""

    username: str
    fqn: str
    uuid: str
    offer_id: str
    sdp: str
    publication: str = ""
    """The service id of the publication at present; another one when the service is published anew. Empty: not told."""


@dataclass(frozen=True, slots=True)
class Answer:
    offer_id: str
    answerer_id: str
    """The server's word; no proof."""
    sdp: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """A trickled ICE candidate, as browsers serialise it (RTCIceCandidate.toJSON)."""

    candidate: str
    sdp_mid: str | None = None
    sdp_m_line_index: int | None = None


class Health:
    """How the last requests to a signalling server went."""

    def __init__(self, steady: Callable[[], float]) -> None:
        """`steady` gives seconds of a clock that never jumps."""
        self._steady = steady
        self._answered: float | None = None
        self._failed: float | None = None
        self.error: str | None = None
        """Of the last request that failed."""

    def answered(self) -> None:
        self._answered = self._steady()

    def failed(self, error: Exception) -> None:
        self._failed, self.error = self._steady(), str(error)

    @property
    def reachable(self) -> bool | None:
        """Whether the last request was answered; None before the first."""
        if self._failed is None:
            return None if self._answered is None else True
        return self._answered is not None and self._answered > self._failed

    @property
    def answered_ago(self) -> float | None:
        """Seconds."""
        return None if self._answered is None else self._steady() - self._answered

    @property
    def failed_ago(self) -> float | None:
        """Seconds."""
        return None if self._failed is None else self._steady() - self._failed


class ServicePublisher(Protocol):
    """One service at the signalling server, under peer credentials of its own (services that share credentials share
    their pool). Registers by itself, again when the server has forgotten it."""

    async def publish(self, sdp: str, *, ttl: float, public: bool, metadata: Any) -> Publication:
        """Publish the service with one offer, or publish it again: offers that are out stay usable."""

    async def add_offers(self, sdps: list[str], *, ttl: float) -> list[PoolOffer]:
        """More offers for the pool, in the order given."""

    async def answers(self) -> list[Answer]:
        """Answers to offers of this service that no earlier call returned."""

    async def candidates(self, offer_id: str) -> list[Candidate]:
        """Candidates of the answerer that no earlier call for this offer returned."""

    async def add_candidates(self, offer_id: str, candidates: list[Candidate]) -> None: ...

    async def delete_offer(self, offer_id: str) -> None:
        """Remove an offer; that it is gone already is no error."""

    async def withdraw(self) -> None:
        """Remove service and offers; idempotent."""


class Signalling(Protocol):
    """A signalling server as seen by one daemon."""

    @property
    def health(self) -> Health: ...

    @property
    def counters(self) -> Counter[str]:
        """What was repeated or dropped, by name; they only rise."""

    async def claim(self, username: str) -> float:
        """Claim, or renew, a user name with this daemon's key for it (made when there is none).

        Returns when the claim ends. Raises `SignallingRejected` with code ``name_taken`` when another key holds it.
        """

    async def check(self, username: str) -> dict[str, Any]:
        """``{"username", "available", "public_key"?, "claimed_at"?, "expires_at"?}``."""

    def publisher(self, username: str, fqn: str) -> ServicePublisher: ...

    async def discover(self, username: str, fqn: str) -> DiscoveredOffer:
        """An unanswered offer. ``not_found``: no such service; ``no_offer``: all offers are taken, try again shortly."""

    async def discover_uuid(self, uuid: str) -> DiscoveredOffer: ...

    async def answer(self, offer_id: str, sdp: str) -> None:
        """Answer an offer. ``offer_taken``: somebody was faster, or the offer has expired."""

    async def offer_candidates(self, offer_id: str) -> list[Candidate]:
        """The offerer's trickled candidates that no earlier call for this offer returned."""

    async def add_answer_candidates(self, offer_id: str, candidates: list[Candidate]) -> None: ...

    def network_changed(self) -> None:
        """This machine has lost an address or changed its routes: what is under way may wait for nobody."""

    async def close(self) -> None: ...
