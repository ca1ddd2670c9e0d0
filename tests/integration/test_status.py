"""What `status` shows of what the daemon's parts have counted."""

from __future__ import annotations

import pytest

from rondevu_client import RequestRefused
from tests.integration.daemons import SCALE

pytestmark = [pytest.mark.webrtc, pytest.mark.timeout(60 * SCALE)]


async def test_what_the_engine_ignored_and_signalling_repeated_is_counted(world):
    place = await world.daemon("home")
    program = await place.client()
    status = await program.status()
    assert (status["engine_counters"], status["signalling_counters"]) == ({}, {})
    connection = place.house._engine.create_peer_connection()
    await connection.add_candidate("candidate:nonsense", "0", 0)
    await world.stop_signalling()
    with pytest.raises(RequestRefused):
        await program.check("alice")
    status = await program.status()
    assert status["engine_counters"]["candidates_ignored"] == 1
    assert status["signalling_counters"]["retries"] > 0
