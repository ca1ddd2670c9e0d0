"""The sessions of a service: how they end, how long they are kept, and what strangers can make it hold."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

import pytest

from rondevu_client import Detached
from rondevud.durable import frames, greeting, sdp, service, visits
from rondevud.durable.visits import ABSENCE_STEP, KEPT_LONGER
from rondevud.errors import RequestError, StateDirectoryError, StoreFailed
from rondevud.records import LoadSessions, SaveSession
from rondevud.signalling.base import Answer
from rondevud.signalling.identity import Identities
from rondevud.signalling.rest import RestSignalling
from rondevud.transport.aiortc import AiortcEngine
from tests.integration.daemons import (
    FQN,
    PATIENCE,
    SCALE,
    Ear,
    exchange_few,
    open_pair,
    watch,
)

pytestmark = [pytest.mark.webrtc, pytest.mark.timeout(120 * SCALE)]


def service_of(place):
    return place.house.holdings.services[f"alice/{FQN}"]


async def visit_of(pair):
    """The service's only visit, and its service."""
    _, far = await pair.ids()
    home = service_of(pair.home)
    return home, home.visits[far]


def absent_for(visit, seconds):
    visit.session.machine.record = replace(visit.session.record, absent=seconds)


async def lose_the_peer(pair):
    """The connecting daemon stops, and the service has noticed."""
    gone = await watch(pair.program)
    await pair.away.stop()
    await gone.next("disconnected")


# --- closing ---------------------------------------------------------------------------------------------------------


async def test_a_visit_closed_by_several_at_once_is_closed_for_all(world):
    pair = await open_pair(world)
    home, visit = await visit_of(pair)
    await lose_the_peer(pair)
    await pair.far.send("never delivered")
    closed = await watch(pair.program)
    connection_id = visit.session.connection_id
    await asyncio.gather(*(home.close(connection_id, drain) for drain in (100 * PATIENCE, 0.1)))
    assert (await closed.next("closed"))["by"] == "local"
    assert closed.counts["disconnection"] == 0
    await home.close(connection_id, 0)
    assert await pair.program.connections() == []


async def test_a_peer_that_closes_ends_the_drain_of_its_visit(world):
    pair = await open_pair(world)
    home, visit = await visit_of(pair)
    visit.session.machine.lanes["main"].out.link_lost()  # nothing flows: the drain has to wait
    await pair.far.send("never delivered")
    closing = asyncio.ensure_future(home.close(visit.session.connection_id, 100 * PATIENCE))
    await pair.connection.close(drain=0)
    await asyncio.wait_for(closing, PATIENCE)


async def test_looking_at_the_list_while_a_visit_is_closed_keeps_its_goodbye(world):
    pair = await open_pair(world)
    home, visit = await visit_of(pair)
    closed = Ear(pair.connection, "closed")
    session = visit.session
    closing = asyncio.ensure_future(home.close(session.connection_id, PATIENCE))
    while not closing.done():
        home.forget_read()
        assert session.connection_id in home.visits or not session.linked
        await asyncio.sleep(0)
    assert (await closed.next("closed"))["by"] == "peer"
    home.forget_read()
    assert not home.visits


async def test_a_visit_is_closed_and_its_peer_told_though_the_store_fails(world, monkeypatch):
    pair = await open_pair(world)
    home, visit = await visit_of(pair)
    closed, told = await watch(pair.visitor), await watch(pair.program)

    async def fail(*_args, **_options):
        raise RequestError("disk_full", "no space")

    async def fail_to_mark():
        raise StoreFailed("no space", "disk_full")

    monkeypatch.setattr(visit.session.channels["main"], "remove_all", fail)
    monkeypatch.setattr(visit.session, "mark_closed", fail_to_mark)
    await home.close(visit.session.connection_id, PATIENCE)
    assert (await closed.next("closed"))["by"] == "peer"
    assert (await told.next("disconnection"))["reason"] == "local"
    with pytest.raises(Detached):
        await pair.far.send("too late")


async def test_a_close_that_the_peer_began_is_finished_when_the_daemon_stops(world, monkeypatch):
    pair = await open_pair(world)
    _, visit = await visit_of(pair)
    channel, stopping = visit.session.channels["main"], asyncio.Event()
    remove_all, entered = channel.remove_all, asyncio.Event()

    async def slow(reason, **options):
        entered.set()
        await stopping.wait()
        return await remove_all(reason, **options)

    monkeypatch.setattr(channel, "remove_all", slow)
    await pair.connection.close(drain=0)
    await asyncio.wait_for(entered.wait(), PATIENCE)
    asyncio.get_running_loop().call_later(0.2, stopping.set)
    await pair.home.restart()
    assert {row["state"] for row in await pair.program.connections()} <= {"closed"}


async def test_a_visit_can_be_closed_again_while_its_end_is_stored(world, monkeypatch):
    pair = await open_pair(world)
    home, visit = await visit_of(pair)
    mark_closed, entered, again = visit.session.mark_closed, asyncio.Event(), asyncio.Event()

    async def slow():
        entered.set()
        await again.wait()
        await mark_closed()

    monkeypatch.setattr(visit.session, "mark_closed", slow)
    first = asyncio.ensure_future(home.close(visit.session.connection_id, PATIENCE))
    await asyncio.wait_for(entered.wait(), PATIENCE)
    second = asyncio.ensure_future(home.close(visit.session.connection_id, 0))
    await asyncio.sleep(0)
    again.set()
    await asyncio.wait_for(asyncio.gather(first, second), PATIENCE)
    assert await pair.program.connections() == []


async def test_a_drain_under_way_loses_nothing_when_the_daemon_stops(world):
    pair = await open_pair(world)
    home, visit = await visit_of(pair)
    await lose_the_peer(pair)
    await pair.far.send("kept")
    closing = asyncio.ensure_future(home.close(visit.session.connection_id, 100 * PATIENCE))
    await asyncio.sleep(0)
    await pair.home.restart()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await pair.away.start()
    async with asyncio.timeout(PATIENCE):
        assert (await anext(pair.near)).data == "kept"


async def test_a_service_can_be_exposed_again_after_its_withdrawal_without_an_error(world):
    pair = await open_pair(world)
    events = await watch(pair.program)
    await pair.program.withdraw("alice", FQN, keep_connections=True)
    await pair.expose()
    await events.next("published")
    assert not events.counts["error"]
    await exchange_few(pair.near, pair.far)


# --- absence ---------------------------------------------------------------------------------------------------------


async def test_what_is_queued_after_the_expiry_expires_too_and_is_reported(world):
    pair = await open_pair(world, session_expiry=600)
    home, visit = await visit_of(pair)
    await lose_the_peer(pair)
    events = await watch(pair.program)
    absent_for(visit, 600 - ABSENCE_STEP)
    for text in ("before", "after"):
        await pair.far.send(text)
        await home.visits._add_absence(visit)
        assert (await events.next("message_expired"))["count"] == 1
    assert events.counts["disconnection"] == 1


async def test_a_session_with_something_queued_is_not_forgotten_in_silence(world):
    pair = await open_pair(world, session_expiry=600)
    home, visit = await visit_of(pair)
    await lose_the_peer(pair)
    await pair.far.send("held")
    absent_for(visit, 600 + KEPT_LONGER)
    events = await watch(pair.program)
    await home.visits._add_absence(visit)
    await events.next("message_expired")
    assert visit.session.connection_id in home.visits
    await home.visits._add_absence(visit)
    assert not home.visits


async def test_absence_counts_without_an_expiry_too(world):
    pair = await open_pair(world, session_expiry="unlimited")
    home, visit = await visit_of(pair)
    await lose_the_peer(pair)
    for _ in range(3):
        await home.visits._add_absence(visit)
    assert visit.session.record.absent == 3 * ABSENCE_STEP


async def test_a_restart_soon_after_the_peer_is_back_remembers_no_absence(world):
    pair = await open_pair(world)
    _, visit = await visit_of(pair)
    await lose_the_peer(pair)
    absent_for(visit, 500_000.0)
    await pair.home.house._environment.disk.execute(SaveSession(visit.session.record))
    await pair.away.start()
    await pair.program.wait(visit.session.connection_id, "connected", PATIENCE)
    loaded = await pair.home.house._environment.disk.execute(LoadSessions())
    assert [record.absent for record in loaded.sessions] == [0.0]


# --- room for others -------------------------------------------------------------------------------------------------


async def third_peer(world, name="third"):
    visitor = await (await world.daemon(name)).client()
    connection = await visitor.connect("alice", FQN, name=name)
    await connection.wait("connected", PATIENCE)
    return connection


async def test_whoever_makes_place_for_another_is_told(world):
    pair = await open_pair(world, max_sessions=1)
    _, visit = await visit_of(pair)
    await lose_the_peer(pair)
    events = await watch(pair.program)
    await third_peer(world)
    gone = await events.next("disconnection")
    assert (gone["connection_id"], gone["reason"]) == (visit.session.connection_id, "forgotten")
    assert await asyncio.wait_for(pair.far.wait_detached(), PATIENCE) == "closed"
    assert visit.session.refusal == ("closed", "the connection is closed")


async def test_a_closed_connection_that_waits_to_be_read_takes_no_place(world):
    pair = await open_pair(world, max_sessions=1)
    await pair.leave()
    await pair.near.send("for later")
    await pair.near.flush()
    closed = await watch(pair.program)
    await pair.connection.close()
    await closed.next("closed")
    await third_peer(world)
    assert {row["state"] for row in await pair.program.connections()} == {"closed", "connected"}


# --- strangers -------------------------------------------------------------------------------------------------------


@pytest.fixture
async def stranger(world, tmp_path):
    """Signalling and WebRTC without a daemon."""
    signalling = RestSignalling(world.url, Identities(tmp_path / "stranger"))
    engine = AiortcEngine()
    yield signalling, engine
    await engine.close()
    await signalling.close()


async def test_answers_beyond_those_that_are_waited_for_are_discarded_and_counted(world, stranger, monkeypatch):
    _, engine = stranger
    monkeypatch.setattr(service, "GREETINGS_MOST", 1)
    pair = await open_pair(world, pool_size=2)
    home = service_of(pair.home)
    offers = dict(home.pool._offers)
    assert len(offers) == 2
    for offer in offers.values():
        connection = engine.create_peer_connection()
        connection.create_data_channel("chat")
        answer = sdp.mark(await connection.create_answer(offer.sdp))
        home._on_answer(Answer(offer.offer_id, "nobody", answer))
    assert len(home._greetings) == 1
    assert home.counters["greetings_discarded"] == 1
    await exchange_few(pair.near, pair.far)


async def knock(stranger, *messages):
    """Open the data channel of a link and say something there: what comes back until the connection is closed."""
    signalling, engine = stranger
    offer = await signalling.discover("alice", FQN)
    connection = engine.create_peer_connection()
    answer = sdp.mark(await connection.create_answer(offer.sdp))
    channel = connection.create_data_channel(frames.LABEL, protocol=frames.PROTOCOL)
    heard, closed = [], asyncio.Event()
    channel.on_message = lambda message: heard.append(frames.decode(message))
    channel.on_close = closed.set
    channel.on_open = lambda: [channel.send(message) for message in messages]
    await signalling.answer(offer.offer_id, answer)
    await asyncio.wait_for(closed.wait(), PATIENCE)
    return heard


async def test_a_peer_that_says_no_hello_is_told_so_before_the_end(world, stranger, monkeypatch):
    monkeypatch.setattr(greeting, "HELLO_TIMEOUT", 0.5)
    await open_pair(world)
    (goodbye,) = await knock(stranger)
    assert goodbye == frames.Goodbye(frames.GoodbyeCode.TIMEOUT, "no hello in time")


async def test_a_peer_that_says_a_wrong_hello_is_told_so_before_the_end(world, stranger):
    await open_pair(world)
    (goodbye,) = await knock(stranger, frames.encode(frames.Ping(1)))
    assert goodbye == frames.Goodbye(frames.GoodbyeCode.PROTOCOL, "Ping instead of hello")


# --- failures --------------------------------------------------------------------------------------------------------


async def test_a_loop_goes_on_after_an_error_that_nobody_expected(world, monkeypatch):
    monkeypatch.setattr(logging.getLogger("rondevud.durable.service"), "propagate", False)  # it logs the traceback
    monkeypatch.setattr(service, "RETRY", (0.05, 0.05))
    pair = await open_pair(world)
    home = service_of(pair.home)
    events = await watch(pair.program)
    answers, refill, calls = home._publisher.answers, home.pool.refill, []

    async def fail_once():
        calls.append("answers")
        monkeypatch.setattr(home._publisher, "answers", answers)
        raise ValueError("a bug in polling")

    async def refill_fails_once(missed):
        calls.append("refill")
        monkeypatch.setattr(home.pool, "refill", refill)
        raise ValueError("a bug in the pool")

    monkeypatch.setattr(home._publisher, "answers", fail_once)
    monkeypatch.setattr(home.pool, "refill", refill_fails_once)
    home._changed.set()
    assert (await events.next("error"))["message"] == "a bug in the pool"
    await third_peer(world)
    assert sorted(calls) == ["answers", "refill"]
    assert not any(task.done() for task in home._loops)


async def test_a_key_that_cannot_be_read_ends_no_withdrawal(world, monkeypatch):
    pair = await open_pair(world)
    closed = Ear(pair.connection, "closed")

    async def fail():
        raise StateDirectoryError("the key is damaged")

    monkeypatch.setattr(service_of(pair.home)._publisher, "withdraw", fail)
    await pair.program.withdraw("alice", FQN)
    assert (await closed.next("closed"))["by"] == "peer"
    assert await pair.program.services() == []


async def test_counting_absence_goes_on_after_an_error_that_nobody_expected(world, monkeypatch):
    monkeypatch.setattr(logging.getLogger("rondevud.durable.visits"), "propagate", False)
    monkeypatch.setattr(visits, "ABSENCE_STEP", 0.01)
    pair = await open_pair(world)
    home = service_of(pair.home)
    again, calls = asyncio.Event(), []

    async def fail(visit):
        calls.append(visit)
        if len(calls) > 1:
            again.set()
        raise ValueError("a bug in counting")

    monkeypatch.setattr(home.visits, "_add_absence", fail)
    await lose_the_peer(pair)
    home._loops[2].cancel()
    loop = asyncio.ensure_future(home.visits.count_absence())
    await asyncio.wait_for(again.wait(), PATIENCE)
    assert home.last_error == "a bug in counting"
    loop.cancel()
    await asyncio.wait({loop})


async def test_a_connection_whose_greeting_fails_unexpectedly_is_closed(world, stranger, monkeypatch):
    monkeypatch.setattr(logging.getLogger("rondevud.durable.tasks"), "propagate", False)
    pair = await open_pair(world)
    home = service_of(pair.home)

    async def fail(*_args):
        raise ValueError("a bug in admitting")

    monkeypatch.setattr(home._reception, "_admit", fail)
    hello = frames.Hello(b"s" * 16, 1, b"t" * 32, None, "stranger", "test", 1000, 1.0)
    assert await knock(stranger, frames.encode(hello)) == []
