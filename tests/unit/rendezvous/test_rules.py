"""Rules of the server that the recordings do not show."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from rondevud.rendezvous.checks import Refusal, check_fqn, check_sdp, effective_ttl, parse_since
from rondevud.rendezvous.credentials import Credentials
from rondevud.rendezvous.limits import MAX_ADDRESSES, RateLimiter, is_loopback
from rondevud.rendezvous.rules import USERNAME_TTL, Limits, Rules, offer_id_of
from rondevud.rendezvous.storage import SqliteStorage

NOW = 1_800_000_000_000
FQN = "com.example.chat@1.0.0"
DATA = Path(__file__).parents[2] / "data"


@pytest.fixture
def storage() -> Iterator[SqliteStorage]:
    opened = SqliteStorage(":memory:")
    yield opened
    opened.close()


def signed(seed: int, message: str) -> dict[str, str]:
    key = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
    return {
        "publicKey": base64.b64encode(key.public_key().public_bytes_raw()).decode(),
        "message": message,
        "signature": base64.b64encode(key.sign(message.encode())).decode(),
    }


def claim(rules: Rules, username: str, seed: int = 1, now: int = NOW) -> dict[str, Any]:
    return rules.claim({"username": username, **signed(seed, f"claim:{username}:{now}")}, now)


def publish(rules: Rules, peer: str, sdp: str, now: int = NOW, **members: Any) -> dict[str, Any]:
    body = {"username": "alice", "serviceFqn": FQN, "sdp": sdp, **signed(1, f"publish:alice:{FQN}:{now}"), **members}
    return rules.publish(peer, body, now)


def recorded_rows() -> list[dict[str, Any]]:
    lines = (DATA / "rest-v0.2.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_recorded_credentials_open_under_the_recorded_key_only() -> None:
    given = [row["response"]["body"] for row in recorded_rows() if row["request"]["path"] == "/register"]
    assert len(given) == 5
    for one in given:
        header = f"Bearer {one['peerId']}:{one['secret']}"
        assert Credentials(bytes(range(32))).authenticate(header) == one["peerId"]
        with pytest.raises(Refusal, match="Invalid credentials"):
            Credentials(bytes(32)).authenticate(header)


def test_credentials_with_bytes_that_are_no_text_are_refused() -> None:
    credentials = Credentials(bytes(32))
    peer, secret = credentials.new_peer()
    for header in (f"Bearer \udcff:{secret}", f"Bearer {peer}:\udcff", f"Bearer :{secret}", f"Bearer {peer}:"):
        with pytest.raises(Refusal) as refusal:
            credentials.authenticate(header)
        assert refusal.value.status == 401


def test_a_key_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="16 bytes instead of 32"):
        Credentials(bytes(16))


def test_offer_ids_are_those_of_the_recorded_server() -> None:
    for row in recorded_rows():
        if row["case"] == "publish":
            assert offer_id_of(row["request"]["body"]["sdp"]) == row["response"]["body"]["offerId"]
            return
    pytest.fail("no such row")


def test_the_uuid_of_a_service_outlives_expiry_withdrawal_and_another_peer(storage: SqliteStorage) -> None:
    rules = Rules(storage)
    claim(rules, "alice")
    first = publish(rules, "p1", "offer 1")
    later = NOW + 10 * 60_000
    assert publish(rules, "p1", "offer 2", now=later)["uuid"] == first["uuid"]
    third = publish(rules, "p2", "offer 3", now=later)
    assert third["uuid"] == first["uuid"]
    rules.delete_service("p2", third["serviceId"], {"username": "alice"}, later)
    assert publish(rules, "p1", "offer 4", now=later)["uuid"] == first["uuid"]


def test_a_late_withdrawal_of_the_previous_publication_does_not_hit_the_new_one(storage: SqliteStorage) -> None:
    rules = Rules(storage)
    claim(rules, "alice")
    first = publish(rules, "p1", "offer 1")
    second = publish(rules, "p1", "offer 2")
    with pytest.raises(Refusal, match="Service not found"):
        rules.delete_service("p1", first["serviceId"], {"username": "alice"}, NOW)
    assert rules.service(second["uuid"], NOW)["serviceId"] == second["serviceId"]


@pytest.mark.parametrize("members", [{"sdp": 5}, {"sdp": "x" * 65_537}, {"ttl": "soon"}, {"sdp": "offer 1"}])
def test_a_refused_publication_leaves_the_previous_service(storage: SqliteStorage, members: dict[str, Any]) -> None:
    rules = Rules(storage)
    claim(rules, "alice")
    first = publish(rules, "p1", "offer 1")
    with pytest.raises(Refusal):
        publish(rules, "p1", **{"sdp": "offer 2", **members})
    assert rules.service(first["uuid"], NOW)["serviceId"] == first["serviceId"]


def test_an_expired_offer_can_come_again(storage: SqliteStorage) -> None:
    rules = Rules(storage)
    rules.create_offers("p1", {"offers": [{"sdp": "same"}]}, NOW)
    with pytest.raises(Refusal, match="UNIQUE"):
        rules.create_offers("p2", {"offers": [{"sdp": "new"}, {"sdp": "same"}]}, NOW + 59_999)
    assert rules.offers_of("p2", NOW + 59_999) == {"offers": []}
    rules.create_offers("p2", {"offers": [{"sdp": "same"}]}, NOW + 60_000)
    assert rules.offers_of("p1", NOW + 60_000) == {"offers": []}


def test_a_claim_that_has_ended_is_free(storage: SqliteStorage) -> None:
    rules = Rules(storage)
    claim(rules, "alice", seed=1)
    with pytest.raises(Refusal, match="different public key"):
        claim(rules, "alice", seed=2, now=NOW + USERNAME_TTL - 1)
    claim(rules, "alice", seed=2, now=NOW + USERNAME_TTL)
    assert rules.username("alice", NOW + USERNAME_TTL)["claimedAt"] == NOW + USERNAME_TTL


def test_claiming_again_prolongs_the_claim_and_keeps_its_beginning(storage: SqliteStorage) -> None:
    rules = Rules(storage)
    claim(rules, "alice")
    assert claim(rules, "alice", now=NOW + 5_000)["claimedAt"] == NOW + 5_000
    state = rules.username("alice", NOW + 5_000)
    assert (state["claimedAt"], state["expiresAt"]) == (NOW, NOW + 5_000 + USERNAME_TTL)


def test_publishing_prolongs_the_claim(storage: SqliteStorage) -> None:
    rules = Rules(storage)
    claim(rules, "alice")
    publish(rules, "p1", "offer", now=NOW + 5_000)
    state = rules.username("alice", NOW + 5_000)
    assert (state["claimedAt"], state["expiresAt"]) == (NOW, NOW + 5_000 + USERNAME_TTL)


def test_cleaning_up_removes_what_has_expired_and_nothing_else(storage: SqliteStorage) -> None:
    rules = Rules(storage)
    claim(rules, "alice")
    published = publish(rules, "p1", "short")
    rules.create_offers("p1", {"offers": [{"sdp": "long", "ttl": 300_000}]}, NOW)
    rules.add_candidates("p1", published["offerId"], {"candidates": [1, 2]}, NOW)
    assert storage.delete_expired(NOW + 59_999) == 0
    assert storage.delete_expired(NOW + 60_000) == 2
    assert storage.count_candidates(published["offerId"]) == 0
    assert [offer["sdp"] for offer in rules.offers_of("p1", NOW + 60_000)["offers"]] == ["long"]
    assert rules.username("alice", NOW)["available"] is False


def test_candidates_of_one_offer_are_bounded(storage: SqliteStorage) -> None:
    rules = Rules(storage, limits=Limits(max_candidates=3))
    offer = rules.create_offers("p1", {"offers": [{"sdp": "offer"}]}, NOW)["offers"][0]["id"]
    rules.add_candidates("p1", offer, {"candidates": [1, 2]}, NOW)
    with pytest.raises(Refusal, match="Too many candidates"):
        rules.add_candidates("p2", offer, {"candidates": [3, 4]}, NOW)
    rules.add_candidates("p2", offer, {"candidates": [3]}, NOW)


def test_a_candidate_is_bounded_in_bytes(storage: SqliteStorage) -> None:
    rules = Rules(storage, limits=Limits(max_candidate_size=10))
    offer = rules.create_offers("p1", {"offers": [{"sdp": "offer"}]}, NOW)["offers"][0]["id"]
    rules.add_candidates("p1", offer, {"candidates": ["ääää"]}, NOW)
    with pytest.raises(Refusal, match=r"Candidate too large \(max 10 bytes\)"):
        rules.add_candidates("p1", offer, {"candidates": [1, "äääää"]}, NOW)
    assert storage.count_candidates(offer) == 1


def test_who_reads_since_the_last_candidate_misses_none(storage: SqliteStorage) -> None:
    rules = Rules(storage)
    offer = rules.create_offers("p1", {"offers": [{"sdp": "offer"}]}, NOW)["offers"][0]["id"]
    since, read = "0", []
    for batch in ([1, 2, 3], [4], [5, 6], [7]):
        rules.add_candidates("p1", offer, {"candidates": batch}, NOW)
        found = rules.candidates("p2", offer, since, NOW)["candidates"]
        read += [one["candidate"] for one in found]
        since = str(found[-1]["createdAt"])
    assert read == [1, 2, 3, 4, 5, 6, 7]


def test_an_answer_needs_the_secret_of_the_offer_as_text(storage: SqliteStorage) -> None:
    rules = Rules(storage)
    offer = rules.create_offers("p1", {"offers": [{"sdp": "offer", "secret": 12}]}, NOW)["offers"][0]["id"]
    for wrong in (None, 12, "", "13"):
        with pytest.raises(Refusal, match="secret"):
            rules.answer("p2", offer, {"sdp": "answer", "secret": wrong}, NOW)
    rules.answer("p2", offer, {"sdp": "answer", "secret": "12"}, NOW)


@pytest.mark.parametrize(
    ("ttl", "effective"),
    [
        (None, 60_000),
        ("", 60_000),
        (False, 60_000),
        (True, 60_000),
        (90_000.7, 90_000),
        (" 90000 ", 90_000),
        ("9e4", 90_000),
        (math.inf, 86_400_000),
        (10**400, 86_400_000),
        (-(10**400), 60_000),
        ("1_000", None),
        ("nan", None),
        ("infinity", None),
        ("9" * 100, None),
        ([], None),
        ({}, None),
    ],
)
def test_any_ttl_becomes_a_bounded_number_or_none(ttl: Any, effective: int | None) -> None:
    assert effective_ttl(ttl, default=60_000, minimum=60_000, maximum=86_400_000) == effective


@pytest.mark.parametrize(("text", "since"), [(None, 0.0), ("", 0.0), ("0", 0.0), ("5.5", 5.5), ("abc", math.inf)])
def test_since_is_a_number_or_newer_than_everything(text: str | None, since: float) -> None:
    assert parse_since(text) == since


def test_an_sdp_counts_utf_16_units() -> None:
    assert check_sdp("\U0001f600" * 32_768)
    with pytest.raises(Refusal, match="too large"):
        check_sdp("\U0001f600" * 32_769)


@pytest.mark.parametrize(
    "fqn", [5, "", "@", "a.b@1.0.0\n", "a.b\n@1.0.0", "a@b@1.0.0", "a.b@1.0.0-", "." * 200 + "@1.0.0"]
)
def test_what_is_no_fqn_is_refused(fqn: Any) -> None:
    with pytest.raises(Refusal) as refusal:
        check_fqn(fqn)
    assert refusal.value.status == 400


def test_an_address_gets_its_burst_and_then_its_rate() -> None:
    limiter = RateLimiter(rate=2.0, burst=3)
    assert [limiter.check("192.0.2.1", 0.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert limiter.check("192.0.2.2", 0.0) == 0.0
    assert limiter.check("192.0.2.1", 0.5) == 0.0
    assert limiter.check("192.0.2.1", 0.5) == 0.5
    assert [limiter.check("192.0.2.1", 100.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]


def test_addresses_of_one_ipv6_network_share_a_bucket() -> None:
    limiter = RateLimiter(rate=1.0, burst=1)
    assert limiter.check("2001:db8::1", 0.0) == 0.0
    assert limiter.check("2001:db8::2", 0.0) == 1.0
    assert limiter.check("2001:db8:0:1::2", 0.0) == 0.0
    assert limiter.check("::ffff:192.0.2.1", 0.0) == 0.0
    assert limiter.check("192.0.2.1", 0.0) == 1.0


def test_the_limiter_remembers_a_bounded_number_of_addresses() -> None:
    limiter = RateLimiter(rate=1.0, burst=1)
    limiter.check("first", 0.0)
    for number in range(MAX_ADDRESSES):
        limiter.check(f"address {number}", 0.0)
    assert limiter.check("first", 0.0) == 0.0


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("192.0.2.1", False),
        ("::2", False),
        ("2001:db8::1", False),
        ("", False),
    ],
)
def test_loopback_addresses_are_known(address: str, expected: bool) -> None:
    assert is_loopback(address) is expected
