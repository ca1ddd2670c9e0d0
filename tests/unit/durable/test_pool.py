"""The pool of offers: how many it asks the signalling server to take, and which it gives up with an address."""

from __future__ import annotations

from itertools import count
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rondevud.durable.pool import OfferPool
from rondevud.durable.settings import ServiceSettings
from rondevud.errors import SignallingRejected, SignallingUnreachable
from rondevud.signalling.base import PoolOffer, Publication

GONE = "192.0.2.1"


class Machine:
    """An engine whose offers name the address that this machine has at the time."""

    def __init__(self) -> None:
        self.address = GONE
        self.discarded: list[Any] = []

    def create_peer_connection(self) -> Any:
        return SimpleNamespace(create_data_channel=lambda _label: None, create_offer=self._offer)

    async def _offer(self) -> str:
        return f"v=0\r\nm=application\r\na=candidate:1 1 udp 1 {self.address} 5000 typ host\r\n"


class Server:
    """A publisher that numbers offers; `refusals` come one after another in place of deletions."""

    def __init__(self) -> None:
        self.requests: list[int] = []
        """How many offers came in each request."""
        self.deleted: list[str] = []
        self.refusals: list[Exception] = []
        self.asked = lambda: None
        """Called while offers are on their way to the server."""
        self._numbers = count(1)

    async def publish(self, _sdp: str, **_options: Any) -> Publication:
        self.asked()
        number = next(self._numbers)
        return Publication("service", "uuid", str(number), 300.0, 0.0)

    async def add_offers(self, sdps: list[str], *, ttl: float) -> list[PoolOffer]:
        self.asked()
        self.requests.append(len(sdps))
        return [PoolOffer(str(next(self._numbers)), ttl) for _ in sdps]

    async def delete_offer(self, offer_id: str) -> None:
        if self.refusals:
            raise self.refusals.pop(0)
        self.deleted.append(offer_id)


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def server() -> Server:
    return Server()


def make_pool(machine: Machine, server: Server, size: int) -> OfferPool:
    settings = ServiceSettings("alice", "com.example.chat@1.0.0", pool_size=size)
    return OfferPool(settings, cast("Any", server), cast("Any", machine), lambda: 1000.0, machine.discarded.append)


@pytest.fixture
async def pool(machine, server) -> OfferPool:
    pool = make_pool(machine, server, 3)
    await pool.publish()
    await pool.refill(0)
    return pool


def ids(pool: OfferPool) -> set[str]:
    return {offer.offer_id for offer in pool.offers()}


async def test_a_request_brings_ten_offers_at_most(machine, server):
    pool = make_pool(machine, server, 13)
    assert [await pool.refill(missed=0) for _ in range(3)] == [10, 3, 0]
    assert server.requests == [10, 3]
    assert pool.size == 13


async def test_offers_that_name_the_address_are_given_up_deleted_and_published_anew(pool, machine, server):
    assert not pool.addresses_gone({"192.0.2.9"})
    assert pool.addresses_gone({GONE})
    assert (pool.size, len(machine.discarded), pool.refresh_at) == (0, 3, 1000.0)
    machine.address = "192.0.2.2"
    await pool.publish()
    await pool.delete_useless()
    await pool.refill(0)
    assert set(server.deleted) == {"1", "2", "3"}
    assert ids(pool) == {"4", "5", "6"}
    assert pool.refresh_at > 1000.0


async def test_offers_whose_address_goes_while_they_are_made_are_given_up_when_they_are_there(pool, machine, server):
    server.asked = lambda: pool.addresses_gone({GONE})
    await pool.publish()
    assert (ids(pool), pool.refresh_at) == (set(), 1000.0)
    await pool.refill(0)
    assert ids(pool) == set()
    machine.address = "192.0.2.2"
    await pool.refill(0)
    assert len(ids(pool)) == 3


async def test_a_deletion_that_does_not_reach_the_server_is_repeated_and_one_that_is_refused_is_not(pool, server):
    pool.addresses_gone({GONE})
    server.refusals = [
        SignallingUnreachable("no network"),
        SignallingRejected("no", code="refused", status=400),
        SignallingRejected("who?", code="unauthorized", status=401),
    ]
    with pytest.raises(SignallingUnreachable):
        await pool.delete_useless()
    with pytest.raises(SignallingRejected, match="who"):
        await pool.delete_useless()
    await pool.delete_useless()
    await pool.delete_useless()
    assert len(server.deleted) == 2
