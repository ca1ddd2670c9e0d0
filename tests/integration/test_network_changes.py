"""What connections, services and links do when the kernel tells of other addresses and routes."""

from __future__ import annotations

import asyncio

import pytest

from rondevud.durable import sdp
from rondevud.errors import SignallingRejected
from rondevud.network import Change
from tests.integration.daemons import FQN, PATIENCE, SCALE, exchange_few, open_pair

pytestmark = [pytest.mark.webrtc, pytest.mark.timeout(120 * SCALE)]


class Dials:
    """The dials of a pair's connection from now on: each hangs at the signalling server until it is let go."""

    def __init__(self, pair, monkeypatch) -> None:
        self.house = pair.away.house
        self.connection = self.house.holdings.by_name["chat"]
        self.answers: asyncio.Queue[Exception] = asyncio.Queue()
        self._begun: asyncio.Queue[None] = asyncio.Queue()
        monkeypatch.setattr(self.house.holdings.signalling, "discover", self._discover)

    async def _discover(self, _username: str, _fqn: str) -> None:
        self._begun.put_nowait(None)
        raise await self.answers.get()

    async def begun(self) -> None:
        await asyncio.wait_for(self._begun.get(), PATIENCE)

    def given_up_by(self, change: Change) -> bool:
        """Whether a change of the network ends the dial under way."""
        task = self.connection._dialling
        self.house.network_changed(change)
        return task.cancelling() > 0


@pytest.fixture
async def dials(world, monkeypatch) -> Dials:
    pair = await open_pair(world)
    dials = Dials(pair, monkeypatch)
    dials.connection.session.cut()
    await dials.begun()
    return dials


async def test_a_dial_goes_on_while_the_addresses_it_began_with_are_there(dials):
    assert not dials.given_up_by(Change(added={"192.0.2.1"}))
    assert not dials.given_up_by(Change(removed={"192.0.2.1"}))
    assert not dials.given_up_by(Change(routes=True))
    assert dials.given_up_by(Change(removed={"192.0.2.2"}))
    await dials.begun()
    assert not dials.given_up_by(Change(removed={"192.0.2.3"})), "twice within a few seconds"


async def test_a_dial_that_is_not_young_is_begun_anew_when_a_default_route_changes(dials):
    dials.connection.dialled_at -= 10.0
    assert dials.given_up_by(Change(routes=True))
    await dials.begun()


async def test_a_dial_that_has_said_hello_waits_for_the_answer(dials):
    dials.connection._dialler._greetings[-1] = asyncio.get_running_loop().create_future()
    assert not dials.given_up_by(Change(removed={"192.0.2.2"}))


async def test_a_dial_that_failed_while_the_network_changed_is_no_attempt_and_is_soon_repeated(dials):
    dials.connection._lost_at = None
    dials.connection._delays = iter(lambda: 10_000.0, None)
    dials.house.network_changed(Change(added={"192.0.2.1"}))
    dials.answers.put_nowait(SignallingRejected("no such service", code="not_found", status=404))
    await dials.begun()
    assert dials.connection.attempt == 0


async def test_a_default_route_that_changes_makes_no_dial_beside_a_link_and_measures_it(world):
    pair = await open_pair(world)
    sessions = [pair.away.session("chat"), pair.home.session((await pair.ids())[1])]
    for place, session in zip((pair.away, pair.home), sessions, strict=True):
        pings = session.machine._current.pings
        place.house.network_changed(Change(routes=True))
        assert session.machine._current.pings == pings + 1
    assert not pair.away.house.holdings.by_name["chat"].dialling


async def test_offers_that_name_an_address_that_has_gone_are_replaced_and_deleted_at_the_server(world):
    pair = await open_pair(world, pool_size=3)
    service = pair.home.house.holdings.services[f"alice/{FQN}"]

    async def listed() -> set[str]:
        mine = await service._publisher._request("GET", "/offers/mine")
        return {offer["id"] for offer in mine.body["offers"] if not offer["answered"]}

    async def replaced(before: set[str]) -> None:
        async with asyncio.timeout(PATIENCE):
            while service.pool.size < 3 or await listed() & before:
                await asyncio.sleep(0)

    async with asyncio.timeout(PATIENCE):
        while service.pool.size < 3:
            await asyncio.sleep(0)
    offers = service.pool.offers()
    before = {offer.offer_id for offer in offers}
    pair.home.house.network_changed(Change(removed={"192.0.2.1"}))
    assert service.pool.offers() == offers
    (address, *_) = sdp.addresses(offers[0].sdp)
    pair.home.house.network_changed(Change(removed={address}))
    await replaced(before)
    assert before.isdisjoint(offer.offer_id for offer in service.pool.offers())
    await exchange_few(pair.near, pair.far)
    await pair.visitor.reconnect("chat")
    await exchange_few(pair.near, pair.far)
