"""The pool of offers: how many it asks the signalling server to take."""

from __future__ import annotations

import itertools

from rondevud.durable.pool import OfferPool
from rondevud.durable.settings import ServiceSettings
from rondevud.signalling.base import PoolOffer


class Server:
    """Takes offers and remembers how many came in each request."""

    def __init__(self):
        self.requests = []
        self._ids = itertools.count()

    async def add_offers(self, sdps, *, ttl):
        self.requests.append(len(sdps))
        return [PoolOffer(f"offer-{next(self._ids)}", ttl) for _ in sdps]


class Connection:
    def create_data_channel(self, label):
        return label

    async def create_offer(self):
        return "v=0\r\nm=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\n"


class Engine:
    def create_peer_connection(self):
        return Connection()


async def test_a_request_brings_ten_offers_at_most():
    server = Server()
    settings = ServiceSettings("alice", "com.example.chat@1.0.0", pool_size=13)
    pool = OfferPool(settings, server, Engine(), lambda: 0.0, lambda connection: None)
    assert [await pool.refill(missed=0) for _ in range(3)] == [10, 3, 0]
    assert server.requests == [10, 3]
    assert pool.size == 13
