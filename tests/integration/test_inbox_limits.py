"""What a peer sends that nothing holds back, while no program reads it."""

from __future__ import annotations

import asyncio

import pytest

from tests.integration.daemons import PATIENCE, SCALE, open_pair, send_stream, watch
from tests.integration.daemons import payload as stream_payload

pytestmark = [pytest.mark.webrtc, pytest.mark.timeout(120 * SCALE)]


@pytest.mark.parametrize(("policy", "left"), [("drop_oldest", range(40, 50)), ("reject", range(10))])
async def test_a_plain_peers_full_inbox_keeps_its_limit_by_its_policy_and_says_how_many_it_dropped(world, policy, left):
    queue = {"max_queue_size": 10, "overflow": policy}
    pair = await open_pair(world, away='[queue]\noverflow = "block"\n', peer="plain", queue=queue)
    await pair.leave()
    events = await watch(pair.program)
    await send_stream(pair.near, "flood", 50)
    dropped = 0
    async with asyncio.timeout(PATIENCE):
        while dropped < 40:
            event = await events.next("queue_overflow", direction="in")
            assert event["policy"] == policy
            dropped += event["count"]
        (connection,) = await pair.program.connections()
        far = await pair.program.attach(connection["connection_id"], "main")
        assert [(await anext(far)).data for _ in left] == [stream_payload("flood", number) for number in left]
        counters = (await pair.program.queue(connection["connection_id"], "main"))["counters"]
    assert (dropped, counters["inbox_overflow"]) == (40, 40)
