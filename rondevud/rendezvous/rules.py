"""The rules of the signalling server (REST API of the seed era), without I/O.

Every request is one method: what came in, the time (milliseconds since 1970) and, where the API asks for it, the
authenticated peer. Answers are JSON values; what is refused raises `Refusal` with its status and text. The order of the
checks is the order in which the methods are written, and part of the protocol.

A service points at one offer, the one that came with its publication. Its *pool* is not stored: it is every unanswered
offer of the peer that published it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import uuid
from dataclasses import dataclass
from typing import Any

from rondevud.rendezvous import json_text
from rondevud.rendezvous.checks import (
    INTERNAL,
    MAX_OFFER_SECRET,
    Refusal,
    check_fqn,
    check_sdp,
    check_signed_message,
    check_username,
    effective_ttl,
    is_absent,
    parse_since,
    require_members,
)
from rondevud.rendezvous.credentials import Credentials
from rondevud.rendezvous.records import (
    CandidateRole,
    DuplicateOffer,
    KeyInUse,
    Offer,
    Service,
    Storage,
    Username,
)

USERNAME_TTL = 365 * 24 * 3600 * 1000
"""Milliseconds a claim lasts."""

DUPLICATE_OFFER = "UNIQUE constraint failed: offers.id"
MISSING_TTL = "NOT NULL constraint failed: offers.expires_at"


@dataclass(frozen=True, slots=True)
class Limits:
    """Durations in milliseconds. The defaults are those of the seed's server."""

    default_ttl: int = 60_000
    min_ttl: int = 60_000
    max_ttl: int = 86_400_000
    max_offers: int = 100
    """Offers in one request."""
    max_candidates: int = 1_000
    """Candidates of one offer, both sides together."""
    max_candidate_size: int = 4_096
    """Bytes of one candidate as JSON; a browser's has about 200."""


class Rules:
    def __init__(self, storage: Storage, *, auth_secret: bytes | None = None, limits: Limits | None = None) -> None:
        """Without `auth_secret` (32 bytes) the storage's own is used."""
        self._storage = storage
        self._credentials = Credentials(storage.auth_secret() if auth_secret is None else auth_secret)
        self._limits = limits or Limits()

    # --- peers ---

    def register(self) -> dict[str, Any]:
        peer_id, secret = self._credentials.new_peer()
        return {"peerId": peer_id, "secret": secret}

    def authenticate(self, header: str | None) -> str:
        return self._credentials.authenticate(header)

    # --- user names ---

    def claim(self, body: Any, now: int) -> dict[str, Any]:
        members = require_members(body, "username", "publicKey", "signature", "message")
        username = check_username(members["username"])
        message, public_key = members["message"], members["publicKey"]
        if not isinstance(message, str):
            raise Refusal(500, INTERNAL)
        check_signed_message(message, ["claim", username], public_key, members["signature"], now)
        held = self._storage.username(username, now)
        if held is not None and held.public_key != public_key:
            raise Refusal(409, "Username already claimed by different public key")
        claimed_at = now if held is None else held.claimed_at
        try:
            self._storage.save_username(Username(username, public_key, claimed_at, now + USERNAME_TTL))
        except KeyInUse as error:
            raise Refusal(500, INTERNAL) from error
        return {"username": username, "claimedAt": now, "expiresAt": now + USERNAME_TTL}

    def username(self, username: str, now: int) -> dict[str, Any]:
        held = self._storage.username(username, now)
        if held is None:
            return {"username": username, "available": True}
        return {
            "username": username,
            "available": False,
            "claimedAt": held.claimed_at,
            "expiresAt": held.expires_at,
            "publicKey": held.public_key,
        }

    def services_of(self, username: str, now: int) -> dict[str, Any]:
        """The listing: a private service shows its UUID only, and metadata is a text that holds JSON."""
        services = []
        for service in self._storage.services_of(username, now):
            entry: dict[str, Any] = {"uuid": service.uuid, "isPublic": service.public}
            if service.public:
                entry["serviceFqn"] = service.fqn
                if service.metadata is not None:
                    entry["metadata"] = service.metadata
            services.append(entry)
        return {"username": username, "services": services}

    # --- services ---

    def publish(self, peer_id: str, body: Any, now: int) -> dict[str, Any]:
        """Publish or replace. The previous service goes only when nothing of the new one can be refused any more."""
        members = require_members(body, "username", "serviceFqn", "sdp")
        fqn = check_fqn(members["serviceFqn"])
        if is_absent(members.get("signature")) or is_absent(members.get("message")):
            raise Refusal(400, "Missing signature or message for username verification")
        owner = self._check_owner(members, fqn, now)
        sdp = check_sdp(members["sdp"])
        ttl = self._ttl(members.get("ttl"))
        if ttl is None:
            raise Refusal(500, INTERNAL, details=MISSING_TTL)
        offer = Offer(offer_id_of(sdp), peer_id, sdp, None, now, now + ttl)
        metadata = members.get("metadata")
        service = Service(
            id=str(uuid.uuid4()),
            uuid=self._credentials.service_uuid(owner.username, fqn),
            username=owner.username,
            fqn=fqn,
            offer_id=offer.id,
            peer_id=peer_id,
            public=not is_absent(members.get("isPublic")),
            metadata=None if metadata is None else json_text.write(metadata),
            created_at=now,
            expires_at=offer.expires_at,
        )
        try:
            self._storage.publish(service, offer, now)
        except DuplicateOffer as error:
            raise Refusal(500, INTERNAL, details=DUPLICATE_OFFER) from error
        self._storage.save_username(Username(owner.username, owner.public_key, owner.claimed_at, now + USERNAME_TTL))
        return {
            "serviceId": service.id,
            "uuid": service.uuid,
            "offerId": offer.id,
            "expiresAt": service.expires_at,
        }

    def _check_owner(self, members: dict[str, Any], fqn: str, now: int) -> Username:
        username, message = members["username"], members["message"]
        owner = self._storage.username(username, now) if isinstance(username, str) else None
        if owner is None:
            raise Refusal(404, "Username not claimed")
        if not isinstance(message, str):
            raise Refusal(500, INTERNAL, details="message is not a text")
        try:
            words = ["publish", owner.username, fqn]
            check_signed_message(message, words, owner.public_key, members["signature"], now)
        except Refusal as error:
            raise Refusal(403, "Invalid signature for username") from error
        return owner

    def _ttl(self, ttl: Any) -> int | None:
        limits = self._limits
        return effective_ttl(ttl, default=limits.default_ttl, minimum=limits.min_ttl, maximum=limits.max_ttl)

    def service(self, service_uuid: str, now: int) -> dict[str, Any]:
        """The service with the newest unanswered offer of its pool. Nothing is reserved."""
        service = self._storage.service(service_uuid, now)
        if service is None:
            raise Refusal(404, "Service not found")
        offer = self._storage.open_offer_of(service.peer_id, now)
        if offer is None:
            raise Refusal(
                503,
                "No available offers",
                message="All offers from this service are currently in use. Please try again later.",
            )
        answer: dict[str, Any] = {
            "serviceId": service.id,
            "username": service.username,
            "serviceFqn": service.fqn,
            "offerId": offer.id,
            "sdp": offer.sdp,
            "isPublic": service.public,
        }
        if service.metadata is not None:
            answer["metadata"] = json.loads(service.metadata)
        return answer | {"createdAt": service.created_at, "expiresAt": service.expires_at}

    def query(self, username: str, body: Any, now: int) -> dict[str, Any]:
        fqn = require_members(body, "serviceFqn")["serviceFqn"]
        service = self._storage.find_service(username, fqn, now) if isinstance(fqn, str) else None
        if service is None:
            raise Refusal(404, "Service not found")
        return {"uuid": service.uuid, "allowed": True}

    def delete_service(self, peer_id: str, service_id: str, body: Any, now: int) -> dict[str, Any]:
        username = require_members(body, "username")["username"]
        if not isinstance(username, str) or not self._storage.delete_service(service_id, username, peer_id, now):
            raise Refusal(404, "Service not found or not owned by this username")
        return {"success": True}

    # --- offers ---

    def create_offers(self, peer_id: str, body: Any, now: int) -> dict[str, Any]:
        entries = body.get("offers") if isinstance(body, dict) else None
        if not isinstance(entries, list) or not entries:
            raise Refusal(400, "Missing or invalid required parameter: offers (must be non-empty array)")
        if len(entries) > self._limits.max_offers:
            raise Refusal(400, f"Too many offers (max {self._limits.max_offers})")
        offers = [self._new_offer(peer_id, entry, now) for entry in entries]
        try:
            self._storage.add_offers(offers, now)
        except DuplicateOffer as error:
            raise Refusal(500, DUPLICATE_OFFER) from error
        return {
            "offers": [
                {
                    "id": offer.id,
                    "peerId": peer_id,
                    "expiresAt": offer.expires_at,
                    "createdAt": offer.created_at,
                    "hasSecret": offer.secret is not None,
                }
                for offer in offers
            ]
        }

    def _new_offer(self, peer_id: str, entry: Any, now: int) -> Offer:
        members = entry if isinstance(entry, dict) else {}
        sdp = check_sdp(members.get("sdp"), status=500, invalid="Invalid SDP in offer")
        ttl = self._ttl(members.get("ttl"))
        if ttl is None:
            raise Refusal(500, MISSING_TTL)
        secret = members.get("secret")
        if is_absent(secret):
            secret = None
        elif not isinstance(secret, str):
            secret = json_text.write(secret)
        kept = None if secret is None else secret[:MAX_OFFER_SECRET]
        return Offer(offer_id_of(sdp), peer_id, sdp, kept, now, now + ttl)

    def offers_of(self, peer_id: str, now: int) -> dict[str, Any]:
        offers = []
        for offer in self._storage.offers_of(peer_id, now):
            entry: dict[str, Any] = {
                "id": offer.id,
                "sdp": offer.sdp,
                "createdAt": offer.created_at,
                "expiresAt": offer.expires_at,
                "lastSeen": offer.created_at,  # there is no heartbeat that could change it
                "hasSecret": offer.secret is not None,
            }
            if offer.answerer_id is not None:
                entry["answererPeerId"] = offer.answerer_id
            offers.append(entry | {"answered": offer.answerer_id is not None})
        return {"offers": offers}

    def delete_offer(self, peer_id: str, offer_id: str, now: int) -> dict[str, Any]:
        """The service that was published with this offer goes with it."""
        if not self._storage.delete_offer(offer_id, peer_id, now):
            raise Refusal(404, "Offer not found or not owned by this peer")
        return {"success": True}

    # --- answers ---

    def answer(self, peer_id: str, offer_id: str, body: Any, now: int) -> dict[str, Any]:
        """First come, first served."""
        members = require_members(body, "sdp")
        sdp = check_sdp(members["sdp"])
        offer = self._storage.offer(offer_id, now)
        if offer is None:
            raise Refusal(400, "Offer not found or expired")
        if offer.secret is not None and not _same_text(offer.secret, members.get("secret")):
            raise Refusal(400, "Invalid or missing secret")
        if offer.answerer_id is not None:
            raise Refusal(400, "Offer already answered")
        if not self._storage.answer_offer(offer_id, peer_id, sdp, now):
            raise Refusal(400, "Offer already answered (race condition)")
        return {"success": True}

    def answers(self, peer_id: str, now: int) -> dict[str, Any]:
        """All answers, newest first; reading consumes nothing."""
        return {
            "answers": [
                {
                    "offerId": offer.id,
                    "answererId": offer.answerer_id,
                    "sdp": offer.answer_sdp,
                    "answeredAt": offer.answered_at,
                }
                for offer in self._storage.answered_offers_of(peer_id, now)
            ]
        }

    # --- candidates ---

    def add_candidates(self, peer_id: str, offer_id: str, body: Any, now: int) -> dict[str, Any]:
        """Entries are relayed as they came. Whoever did not make the offer is an answerer, answered or not."""
        candidates = body.get("candidates") if isinstance(body, dict) else None
        if not isinstance(candidates, list) or not candidates:
            raise Refusal(400, "Missing or invalid required parameter: candidates")
        offer = self._storage.offer(offer_id, now)
        if offer is None:
            raise Refusal(404, "Offer not found")
        if self._storage.count_candidates(offer_id) + len(candidates) > self._limits.max_candidates:
            raise Refusal(400, f"Too many candidates (max {self._limits.max_candidates} per offer)")
        most = self._limits.max_candidate_size
        if any(len(json_text.write(candidate).encode()) > most for candidate in candidates):
            raise Refusal(400, f"Candidate too large (max {most} bytes)")
        self._storage.add_candidates(offer_id, _role_of(peer_id, offer), candidates, now)
        return {"count": len(candidates)}

    def candidates(self, peer_id: str, offer_id: str, since: str | None, now: int) -> dict[str, Any]:
        """The other side's, newer than `since`; a `since` that is no number is newer than everything."""
        offer = self._storage.offer(offer_id, now)
        if offer is None:
            raise Refusal(404, "Offer not found")
        is_offerer = _role_of(peer_id, offer) is CandidateRole.OFFERER
        other = CandidateRole.ANSWERER if is_offerer else CandidateRole.OFFERER
        found = self._storage.candidates(offer_id, other, parse_since(since))
        return {"candidates": [{"candidate": one.candidate, "createdAt": one.created_at} for one in found]}


def _role_of(peer_id: str, offer: Offer) -> CandidateRole:
    return CandidateRole.OFFERER if peer_id == offer.peer_id else CandidateRole.ANSWERER


def _same_text(expected: str, given: Any) -> bool:
    return isinstance(given, str) and hmac.compare_digest(expected.encode(), given.encode())


def offer_id_of(sdp: str) -> str:
    """Hex SHA-256 over the compact JSON text ``{"sdp":…}``: the same SDP has the same id."""
    return hashlib.sha256(json_text.write({"sdp": sdp}).encode()).hexdigest()
