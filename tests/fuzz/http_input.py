"""What a bad client of the signalling server asks, and what a bad server answers: right, and damaged."""

from __future__ import annotations

from typing import Any

from rondevud.signalling.identity import Identities
from tests.fuzz.mutator import Case

FQN = "com.example.chat@1.0.0"
CANDIDATE = {"candidate": "candidate:1 1 udp 2130706431 127.0.0.1 5000 typ host", "sdpMid": "0", "sdpMLineIndex": 0}
DATES = (
    "Wed, 21 Oct 2015 07:28:00 GMT",
    "Fri, 31 Dec 9999 23:59:59 -2359",
    "Mon, 01 Jan 0001 00:00:00 +2359",
    "Wed, 21 Oct 2015 07:28:00 +9999",
    "Wed, 99 Oct 99999 99:99:99 GMT",
    "yesterday",
)
RETRIES = ("0", "1", "-1", "1.5", "9" * 30, "\u0663", "\u00b2", "1e9", "", *DATES)
STATUSES = (200, 200, 200, 201, 204, 301, 400, 401, 403, 404, 409, 418, 429, 500, 500, 502, 503, 599, 999)
ERRORS = (
    "No available offers",
    "Associated offer not found",
    "Offer already answered",
    "Offer not found or expired",
    "Timestamp too old or too far in future (tolerance: 300s)",
    "UNIQUE constraint failed: offers.id",
    "Invalid SDP in offer",
    "Username not claimed",
)


class Asking:
    """Requests of one bad client; it has a key, a name, and what the server gave it."""

    def __init__(self, identities: Identities) -> None:
        self._identity = identities.obtain("mallory")
        self.authorization = ""
        self.uuid = "3fa85f64-5717-4562-b3fc-2c963f66afa6"
        self.offer_id = "0" * 64
        self.service_id = "none"

    def learn(self, answer: Any) -> None:
        """Take over what an answer tells."""
        if not isinstance(answer, dict):
            return
        if isinstance(answer.get("peerId"), str):
            self.authorization = f"Bearer {answer['peerId']}:{answer['secret']}"
        self.uuid = answer.get("uuid") or self.uuid
        self.offer_id = answer.get("offerId") or self.offer_id
        self.service_id = answer.get("serviceId") or self.service_id

    def _signed(self, message: str) -> dict[str, str]:
        return {"message": message, "signature": self._identity.sign(message)}

    def request(self, case: Case, now: int) -> tuple[str, str, Any]:
        """Method, path and body of a right request, about."""
        random = case.random
        sdp = f"v=0 {random.randrange(10**6)}"
        offer = random.choice((self.offer_id, self.offer_id, "0" * 64))
        whose = {"username": "mallory", "serviceFqn": FQN, "sdp": sdp}
        method, path, body = random.choice(
            (
                ("POST", "/register", dict),
                ("POST", "/usernames/claim", lambda: self._claim(now)),
                ("GET", "/usernames/mallory", None),
                ("GET", "/usernames/mallory/services", None),
                (
                    "POST",
                    "/services",
                    lambda: (
                        whose
                        | {"ttl": 60_000, "isPublic": True, "metadata": case.value(2)}
                        | self._signed(f"publish:mallory:{FQN}:{now}")
                    ),
                ),
                ("GET", f"/services/{self.uuid}", None),
                ("DELETE", f"/services/{self.service_id}", lambda: {"username": "mallory"}),
                ("POST", "/index/mallory/query", lambda: {"serviceFqn": FQN}),
                (
                    "POST",
                    "/offers",
                    lambda: {"offers": [{"sdp": sdp, "ttl": 60_000, "secret": "s"}, {"sdp": f"{sdp}b"}]},
                ),
                ("GET", "/offers/mine", None),
                ("GET", "/offers/answers", None),
                ("DELETE", f"/offers/{offer}", None),
                ("POST", f"/offers/{offer}/answer", lambda: {"sdp": sdp, "secret": "s"}),
                ("POST", f"/offers/{offer}/ice-candidates", lambda: {"candidates": [CANDIDATE, case.value(2)]}),
                ("GET", f"/offers/{offer}/ice-candidates?since={random.choice((0, -1, 'x', '1e999', '%00'))}", None),
                ("GET", "/health", None),
            )
        )
        return method, path, None if body is None else body()

    def _claim(self, now: int) -> dict[str, str]:
        who = {"username": "mallory", "publicKey": self._identity.public_key}
        return who | self._signed(f"claim:mallory:{now}")


def answers(case: Case, sdp: str) -> dict[str, Any]:
    """A right body for each route that a daemon asks."""
    offer = f"offer-{case.random.randrange(100)}"
    soon, time = 1_700_000_300_000, 1_700_000_000_000
    return {
        "register": {"peerId": "peer", "secret": "secret"},
        "claim": {"username": "alice", "claimedAt": time, "expiresAt": soon},
        "check": {"username": "alice", "available": False, "publicKey": "k", "claimedAt": time, "expiresAt": soon},
        "publish": {"serviceId": "service", "uuid": "uuid", "offerId": offer, "expiresAt": soon},
        "add_offers": {"offers": [{"id": offer, "createdAt": time, "expiresAt": soon}]},
        "mine": {"offers": [{"id": offer, "sdp": sdp, "createdAt": time, "expiresAt": soon, "answered": False}]},
        "answers": {"answers": [{"offerId": offer, "answererId": "peer-b", "sdp": "sdp", "answeredAt": time}]},
        "find": {"uuid": "uuid", "allowed": True},
        "discover": {"username": "alice", "serviceFqn": FQN, "offerId": offer, "sdp": "sdp"},
        "answer": {"success": True},
        "read_candidates": {"candidates": [{"candidate": CANDIDATE, "createdAt": time}]},
        "add_candidates": {"count": 1},
        "health": {"status": "ok", "timestamp": time},
        "delete": {"success": True},
    }


def headers(case: Case) -> dict[str, str]:
    """Headers of an answer that mean something to the client."""
    found = {}
    if case.chance(0.5):
        found["Date"] = case.random.choice(DATES)
    if case.chance(0.3):
        found["Retry-After"] = case.random.choice(RETRIES)
    if case.chance(0.1):
        found["Age"] = "5"
    if case.chance(0.1):
        found["Location"] = case.text()
    return found
