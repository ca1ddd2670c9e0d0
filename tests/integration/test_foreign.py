"""The hand-made foreign peers among themselves: they connect in the combinations in which the real ones were seen to."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.integration.daemons import SCALE, open_world
from tests.integration.foreign import SERVICE_LABEL, Foreigners, Refused

pytestmark = [pytest.mark.webrtc, pytest.mark.timeout(120 * SCALE)]

SHORT = 2.0 * SCALE
"""Seconds after which a connection that cannot come about is given up."""


@pytest.fixture
async def foreigners(tmp_path) -> AsyncIterator[Foreigners]:
    async with open_world(tmp_path) as world, Foreigners(world.url) as foreigners:
        yield foreigners


@pytest.mark.parametrize("trickles", [False, True])
async def test_a_0_9_2_service_and_a_client_talk_on_the_services_own_data_channel(foreigners, trickles):
    service = await foreigners.service(version="0.9.2")
    client = await foreigners.client(service.target, trickles=trickles)
    await client.connect()
    near = await client.next_incoming(SERVICE_LABEL)
    far = await service.next_channel()
    near.send("text")
    near.send(b"binary")
    assert [await far.receive(), await far.receive()] == ["text", b"binary"]
    far.send("back")
    assert await near.receive() == "back"


async def test_a_0_9_0_service_and_client_never_connect(foreigners):
    service = await foreigners.service(channel_timeout=SHORT)
    client = await foreigners.client(service.target, max_attempts=0, timeout=SHORT)
    with pytest.raises(TimeoutError):
        await client.connect()
    assert [await service.next_failure()] == client.answered


async def test_a_message_on_a_label_of_its_own_vanishes_at_a_0_9_2_service(foreigners):
    service = await foreigners.service(version="0.9.2")
    client = await foreigners.client(service.target)
    near = client.create_channel("chat")
    await client.connect()
    far = await service.next_channel()
    await near.opened()
    near.send("vanishes")
    heard = await client.next_incoming(SERVICE_LABEL)
    heard.send("arrives")
    assert await far.receive() == "arrives"
    (live,) = service.live
    assert live.arrivals.labels == ["chat"]


async def test_a_service_whose_only_offer_is_taken_has_none_until_it_polls_again(foreigners):
    service = await foreigners.service(version="0.9.2")
    service.polling.clear()
    taken = await foreigners.consume_offer(service.uuid)
    client = await foreigners.client(service.uuid)
    with pytest.raises(Refused, match="503 No available offers"):
        await client.connect()
    service.polling.set()
    await client.connected()
    await service.next_channel()
    assert service.handled == [taken, *client.answered]


async def test_a_refresh_closes_everything_and_a_client_by_name_finds_the_service_again(foreigners):
    service = await foreigners.service(version="0.9.2", pool_size=3)
    uuid = service.uuid
    client = await foreigners.client(service.target)
    await client.connect()
    await service.next_channel()
    await service.refresh()
    await service.next_channel()
    await client.connected()
    assert len(client.answered) == 2
    assert service.uuid == uuid  # of the embedded server; the seed's gives another
