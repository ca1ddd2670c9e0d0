"""What the daemon tells of a connection or service that somebody wonders about."""

from __future__ import annotations

import pytest

from rondevud.ctl.why import explain
from tests.integration.daemons import FQN, PATIENCE, exchange_few, open_pair, watch

pytestmark = [pytest.mark.webrtc]


def page(answer) -> dict[str, str]:
    return dict(explain(answer))


async def test_a_connection_that_works_is_explained_from_both_ends(world):
    pair = await open_pair(world)
    await exchange_few(pair.near, pair.far)
    await pair.near.flush()
    await pair.far.flush()
    near_id, far_id = await pair.ids()
    near, far = await pair.visitor.why("chat"), await pair.program.why(far_id)
    for answer in (near, far):
        assert (answer["state"], answer["next"], answer["next_in"]) == ("connected", "keep", None)
        link = answer["link"]
        assert (link["kind"], link["path"], link["suspect"]) == ("link", "direct", False)
        assert link["local"] in link["local_candidates"]
        assert link["silence"] >= 0
        assert 0 < link["round_trip"] < PATIENCE
        (channel,) = answer["channels"]
        assert set(channel["verdicts"]) == {"in", "out"}
        assert channel["acknowledged_ago"] >= 0
        assert answer["signalling"]["reachable"] is True
        assert answer["signalling"]["url"] == world.url
        assert answer["ice_servers"] == []
        assert "connected" in [event["name"] for event in answer["recent"]]
    assert near["connection_id"] == near_id
    assert near["offer"]["uuid"] == pair.service.uuid
    assert near["link"]["local"].split()[0] == far["link"]["remote"].split()[0]
    assert page(near)["path"].startswith("direct: ")
    assert "none is configured" in page(near)["STUN, TURN"]
    assert page(far)["taken by"] == f"alice/{FQN}, from chat"


async def test_a_service_tells_its_offers_and_when_it_publishes_again(world):
    pair = await open_pair(world, pool_size=3)
    events = await watch(pair.program)
    answer = await pair.program.why(f"service:alice/{FQN}")
    while len(answer["open_offers"]) < 3:  # it is being refilled
        answer = await pair.program.why(f"service:alice/{FQN}")
    assert answer["next"] == "refresh"
    assert 0 < answer["next_in"] <= 300
    assert all(0 <= offer["age"] < PATIENCE and offer["usable"] for offer in answer["open_offers"])
    assert (answer["connected"], answer["awaited"]) == (1, 0)
    assert answer["pool"]["total_connections_handled"] == 1
    await pair.away.stop()
    await events.next("disconnected")
    assert (await pair.program.why(f"service:alice/{FQN}"))["awaited"] == 1
    (row,) = await pair.program.connections()
    left = await pair.program.why(row["connection_id"])
    assert (left["next"], left["link"]) == ("wait_for_peer", None)
    assert left["recent"][-1]["data"]["reason"] == "restarting"


async def test_a_name_that_nobody_has_is_explained_by_its_errors_and_attempts(world):
    visitor = await (await world.daemon("away")).client()
    events = await watch(visitor)
    await visitor.connect("nobody", FQN, name="wrong")
    await events.next("reconnecting", attempt=2)
    answer = await visitor.why("wrong")
    assert answer["next"] in {"dial", "dialling"}
    assert answer["max_attempts"] == 10
    assert (answer["link"], answer["offer"]) == (None, None)
    assert answer["signalling"]["reachable"] is True
    assert {"not_found"} == {event["data"]["code"] for event in answer["recent"] if event["name"] == "reconnecting"}
    assert "of 10 attempts have failed" in page(answer)["next"]
    await events.next("failed")
    assert page(await visitor.why("wrong"))["next"] == "nothing by itself; `rondevuctl reconnect` tries again"


async def test_a_signalling_server_that_is_away_is_named_with_its_last_error(world):
    visitor = await (await world.daemon("away")).client()
    await visitor.check("alice")
    await world.stop_signalling()
    events = await watch(visitor)
    await visitor.connect("alice", FQN, name="chat")
    await events.next("reconnecting")
    state = (await visitor.why("chat"))["signalling"]
    assert state["reachable"] is False
    assert state["answered_ago"] >= state["failed_ago"] >= 0
    assert "no connection" in state["error"]
    assert "is not reachable" in page(await visitor.why("chat"))["signalling"]
