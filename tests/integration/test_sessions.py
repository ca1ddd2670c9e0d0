"""Sessions listed, forgotten, and their peers sent away: for a while, and until further notice."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from rondevu_client import MessageRejected, RequestRefused
from rondevud.durable.visits import KEPT_LONGER
from tests.integration.daemons import FQN, PATIENCE, SCALE, Pair, exchange_few, open_pair, take, watch

pytestmark = [pytest.mark.webrtc, pytest.mark.timeout(120 * SCALE)]


def service_of(place):
    return place.house.holdings.services[f"alice/{FQN}"]


async def far_session(pair):
    """The row of the service's one session."""
    (row,) = await pair.program.sessions()
    return row


async def until_counted(pair, counter, count=1):
    async with asyncio.timeout(PATIENCE):
        while service_of(pair.home).counters[counter] < count:
            await asyncio.sleep(0.01)


# --- listing ---------------------------------------------------------------------------------------------------------


async def test_both_sides_list_a_session_and_what_waits_in_it(world):
    pair = await open_pair(world)
    await pair.leave()
    await pair.near.send("four")
    await pair.near.flush()
    near_id, far_id = await pair.ids()
    near, far = (await pair.visitor.sessions())[0], await far_session(pair)
    assert (near["connection_id"], near["role"], near["name"], near["state"]) == (
        near_id,
        "connecting",
        "chat",
        "connected",
    )
    assert (far["connection_id"], far["role"], far["service"], far["state"]) == (
        far_id,
        "service",
        f"alice/{FQN}",
        "connected",
    )
    assert (far["peer_name"], far["kind"], far["waiting"], far["waiting_bytes"]) == ("chat", "link", 1, 4)
    assert [far[key] for key in ("absent", "expires_in", "forgotten_in", "blocked")] == [None, None, None, False]
    assert await pair.program.sessions(f"service:alice/{FQN}") == [far]
    assert await pair.program.sessions(far_id) == [far]
    with pytest.raises(RequestRefused, match="unknown_target"):
        await pair.program.sessions("nobody")


async def test_an_absent_session_says_for_how_long_and_when_it_expires(world):
    pair = await open_pair(world, session_expiry=600)
    gone = await watch(pair.program)
    await pair.away.stop()
    await gone.next("disconnected")
    await pair.far.send("for later")
    (visit,) = service_of(pair.home).visits.values()
    for absent, state, expires_in in ((60.0, "absent", 540.0), (700.0, "expired", 0.0)):
        visit.session.machine.record = replace(visit.session.record, absent=absent)
        row = await far_session(pair)
        assert (row["state"], row["absent"], row["expires_in"]) == (state, absent, expires_in)
        assert row["forgotten_in"] == 600 + KEPT_LONGER - absent
        assert (row["queue_size"], row["queue_bytes"]) == (1, 9)


# --- kicking ---------------------------------------------------------------------------------------------------------


async def test_a_peer_that_is_kicked_stays_away_for_a_while_and_comes_back_with_everything(world):
    pair = await open_pair(world)
    _, far_id = await pair.ids()
    lost = await watch(pair.visitor)
    assert await pair.program.kick(far_id, 10 * PATIENCE) == {"connection_id": far_id, "was_connected": True}
    assert (await lost.next("disconnected"))["message"] == "sent away for a while"
    await until_counted(pair, "refused_try_later")
    await pair.near.send("sent meanwhile")
    assert (await far_session(pair))["state"] == "absent"
    assert await pair.program.kick(far_id, 0) == {"connection_id": far_id, "was_connected": False}
    await pair.connected()
    assert (await take(pair.far, 1))[0].data == "sent meanwhile"
    assert (await pair.ids())[1] == far_id


# --- blocking --------------------------------------------------------------------------------------------------------


async def test_a_blocked_peer_is_refused_also_after_a_restart_until_it_is_unblocked(world):
    pair = await open_pair(world)
    _, far_id = await pair.ids()
    failed = await watch(pair.visitor)
    answer = await pair.program.block(far_id)
    assert answer == {"connection_id": far_id, "blocked": True, "was_connected": True}
    assert (await failed.next("failed"))["code"] == "denied"
    with pytest.raises(MessageRejected, match="blocked"):
        await pair.far.send("too late")
    await pair.home.restart()
    assert (await far_session(pair))["blocked"] is True
    await pair.visitor.reconnect("chat")
    assert (await failed.next("failed"))["code"] == "denied"
    assert await pair.program.unblock(far_id) == {"connection_id": far_id, "blocked": False}
    await pair.visitor.reconnect("chat")
    await pair.connected()
    await exchange_few(pair.near, pair.far)


async def test_what_waits_in_a_blocked_session_neither_expires_nor_makes_place_for_others(world):
    pair = await open_pair(world, session_expiry=600, max_sessions=1)
    _, far_id = await pair.ids()
    gone = await watch(pair.program)
    await pair.away.stop()
    await gone.next("disconnected")
    await pair.far.send("kept")
    await pair.program.block(far_id)
    visits = service_of(pair.home).visits
    visit = visits[far_id]
    visit.session.machine.record = replace(visit.session.record, absent=600 + 2 * KEPT_LONGER)
    await visits._add_absence(visit)
    assert visits.make_place() is None  # blocked ones take no place
    row = await far_session(pair)
    assert (row["state"], row["blocked"], row["queue_size"], row["expires_in"]) == ("absent", True, 1, None)


async def test_a_plain_peer_is_blocked_by_its_answerer_id(world):
    pair = Pair(world, await world.daemon("home"), await world.daemon("away"))
    await pair.expose(peer="plain")
    await pair.connect(reconnect={"connection_timeout": 2})  # what a blocked one takes to dial again
    _, far_id = await pair.ids()
    await pair.program.block(far_id)
    await until_counted(pair, "refused_denied")
    assert [row["connection_id"] for row in await pair.program.sessions()] == [far_id]
    await pair.program.unblock(far_id)
    await pair.program.wait(far_id, "connected", PATIENCE)
    assert [row["connection_id"] for row in await pair.program.sessions()] == [far_id]


# --- forgetting ------------------------------------------------------------------------------------------------------


async def test_a_session_in_which_messages_wait_is_forgotten_by_force_only_and_its_peer_told_of_the_gap(world):
    pair = await open_pair(world)
    await pair.leave()
    await pair.near.send("unread")
    await pair.near.flush()
    _, far_id = await pair.ids()
    with pytest.raises(RequestRefused) as refused:
        await pair.program.forget(far_id)
    assert (refused.value.code, refused.value.data) == ("not_empty", {"queue_size": 0, "waiting": 1})
    assert (await far_session(pair))["state"] == "connected"
    told, gap = await watch(pair.program), await watch(pair.visitor)
    answer = await pair.program.forget(far_id, force=True)
    assert answer == {"connection_id": far_id, "purged": {"out": 0, "in": 1}}
    assert (await told.next("purged"))["count"] == 1
    assert (await told.next("disconnection"))["reason"] == "forgotten"
    lost = await gap.next("gap", direction="out")
    assert (lost["count"], lost["reason"]) == (1, "lost")
    await pair.visitor.wait("chat", "connected", PATIENCE)
    assert (await far_session(pair))["connection_id"] != far_id
    assert (await pair.program.status())["store_bytes"] == 0


async def test_a_forgotten_session_does_not_come_back_with_a_restart(world):
    pair = await open_pair(world)
    gone = await watch(pair.program)
    await pair.away.stop()
    await gone.next("disconnected")
    await pair.far.send("never")
    row = await far_session(pair)
    assert (await pair.program.forget(row["connection_id"], force=True))["purged"] == {"out": 1, "in": 0}
    await pair.home.restart()
    assert await pair.program.sessions() == []


async def test_a_message_that_comes_while_its_session_is_being_forgotten_keeps_it(world, monkeypatch):
    pair = await open_pair(world)
    await pair.leave()
    _, far_id = await pair.ids()
    visits = service_of(pair.home).visits
    said = visits._goodbyes_said

    async def late(session):
        await said(session)
        monkeypatch.setattr(session.channels["main"].inbox, "count", 1)

    monkeypatch.setattr(visits, "_goodbyes_said", late)
    with pytest.raises(RequestRefused, match="not_empty"):
        await pair.program.forget(far_id)
    monkeypatch.undo()
    await pair.connected()
    assert (await pair.ids())[1] == far_id


@pytest.mark.parametrize("method", ["forget", "kick", "block", "unblock"])
async def test_only_sessions_that_a_service_took_can_be_sent_away(world, method):
    place = await world.daemon("away")
    program = await place.client()
    connection = await program.connect("alice", FQN, name="chat")
    for target, code in ((connection.id, "bad_target"), ("chat", "bad_target"), ("nobody", "unknown_target")):
        with pytest.raises(RequestRefused) as refused:
            await program.call(method, {"target": target})
        assert refused.value.code == code
