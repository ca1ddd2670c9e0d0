"""What the signalling server stores, and what it asks of a storage. Times are integers, milliseconds since 1970."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol


class CandidateRole(StrEnum):
    """Who posted a candidate: the peer that made the offer, or anybody else."""

    OFFERER = "offerer"
    ANSWERER = "answerer"


@dataclass(frozen=True, slots=True)
class Username:
    username: str
    public_key: str
    """Base64 of the 32 bytes, as it came."""
    claimed_at: int
    expires_at: int


@dataclass(frozen=True, slots=True)
class Offer:
    id: str
    peer_id: str
    sdp: str
    secret: str | None
    created_at: int
    expires_at: int
    answerer_id: str | None = None
    answer_sdp: str | None = None
    answered_at: int | None = None


@dataclass(frozen=True, slots=True)
class Service:
    id: str
    uuid: str
    username: str
    fqn: str
    offer_id: str
    peer_id: str
    """The peer that published it: its unanswered offers are the pool."""
    public: bool
    metadata: str | None
    """JSON text."""
    created_at: int
    expires_at: int


@dataclass(frozen=True, slots=True)
class StoredCandidate:
    candidate: Any
    """Any JSON value, relayed as it came."""
    created_at: int


class DuplicateOffer(Exception):
    """There is a live offer with that id; nothing was stored."""


class KeyInUse(Exception):
    """The public key belongs to another user name; nothing was stored."""


class Storage(Protocol):
    """Synchronous; each method is one transaction. `now` decides what has expired: reads never show that."""

    def auth_secret(self) -> bytes:
        """32 bytes drawn when the storage was made: credentials live as long as they are the same."""

    def username(self, username: str, now: int) -> Username | None: ...

    def save_username(self, username: Username) -> None:
        """Insert or replace. Raises `KeyInUse`."""

    def add_offers(self, offers: list[Offer], now: int) -> None:
        """All or none. Raises `DuplicateOffer`."""

    def offer(self, offer_id: str, now: int) -> Offer | None: ...

    def offers_of(self, peer_id: str, now: int) -> list[Offer]:
        """Newest first."""

    def answered_offers_of(self, peer_id: str, now: int) -> list[Offer]:
        """Newest answer first."""

    def open_offer_of(self, peer_id: str, now: int) -> Offer | None:
        """The newest unanswered offer."""

    def answer_offer(self, offer_id: str, answerer_id: str, sdp: str, now: int) -> bool:
        """Whether the offer was there and nobody had answered it."""

    def delete_offer(self, offer_id: str, peer_id: str, now: int) -> bool:
        """With its candidates and the service that was published with it. Whether it was there and that peer's."""

    def publish(self, service: Service, offer: Offer, now: int) -> None:
        """Store both and replace the service of that user name and FQN, or change nothing. Raises `DuplicateOffer`."""

    def service(self, uuid: str, now: int) -> Service | None: ...

    def find_service(self, username: str, fqn: str, now: int) -> Service | None: ...

    def services_of(self, username: str, now: int) -> list[Service]:
        """Newest first."""

    def delete_service(self, service_id: str, username: str, peer_id: str, now: int) -> bool:
        """Whether there was one with that id, of that user name, published by that peer."""

    def add_candidates(self, offer_id: str, role: CandidateRole, candidates: list[Any], now: int) -> None:
        """Stamp them by one millisecond each, from `now` on, but always behind the last one of that offer and role."""

    def count_candidates(self, offer_id: str) -> int: ...

    def candidates(self, offer_id: str, role: CandidateRole, since: float) -> list[StoredCandidate]:
        """Those stamped later than `since`, oldest first."""

    def delete_expired(self, now: int) -> int:
        """Remove what has expired for good; answers how many rows went."""

    def close(self) -> None: ...
