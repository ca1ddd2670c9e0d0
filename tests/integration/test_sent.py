"""What was *sent*, told apart from what was accepted and acknowledged, and how much of it is under way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.integration.daemons import PATIENCE, SCALE, Pair, open_pair, open_world
from tests.unit.ipc.raw import raw_client

pytestmark = [pytest.mark.webrtc, pytest.mark.timeout(120 * SCALE)]


@pytest.fixture
async def pair(tmp_path) -> AsyncIterator[Pair]:
    async with open_world(tmp_path) as world:
        yield await open_pair(world)


async def test_sent_comes_when_a_data_channel_has_the_messages_and_not_before(pair):
    async with raw_client(pair.away.socket) as client, asyncio.timeout(PATIENCE):
        request = {"target": "chat", "label": "main", "mode": "send", "confirm_sent": True, "acknowledged": True}
        handle = (await client.result("attach", **request))["handle"]
        client.notify("send", handle, 1, ["small", "large" * 50_000])
        while (await client.notification("sent"))[1] < 2:
            pass
        while (await client.notification("acknowledged"))[1] < 2:
            pass
        await pair.home.stop()
        client.notify("send", handle, 3, ["later"])
        assert await client.notification("accepted") == [handle, 3]
        assert (await client.result("queue", target="chat", label="main"))["queue_size"] == 1
        assert not [frame for frame in client.frames if getattr(frame, "method", "") == "sent"]
        await pair.home.start()
        assert await client.notification("sent") == [handle, 3]


async def test_a_sender_hears_when_little_of_what_it_sent_is_under_way(pair):
    async with raw_client(pair.away.socket) as client, asyncio.timeout(PATIENCE):
        request = {"target": "chat", "label": "main", "mode": "send", "threshold": 1_000}
        handle = (await client.result("attach", **request))["handle"]
        client.notify("send", handle, 1, ["x" * 10_000] * 20)
        while (event := await client.notification("event"))[2] != "buffered_amount_low":
            pass
        assert event[0] == handle
        assert event[3]["buffered_amount"] <= 1_000
