"""What strangers can make a service hold: sessions, links, labels, and what they send against the rules."""

from __future__ import annotations

import asyncio
import contextlib
import os

import msgpack
import pytest

from rondevud.durable import frames, link, sdp
from rondevud.durable.frames import GoodbyeCode, RefuseCode
from rondevud.errors import SignallingRejected
from rondevud.records import Durability
from rondevud.signalling.identity import Identities
from rondevud.signalling.rest import RestSignalling
from rondevud.transport.aiortc import AiortcEngine
from tests.integration.daemons import FQN, PATIENCE, SCALE, exchange_few, open_pair, watch

pytestmark = [pytest.mark.webrtc, pytest.mark.timeout(120 * SCALE)]


class Guest:
    """A peer on the data channel of a link that says what a test wants."""

    def __init__(self, connection, channel):
        self.connection = connection
        self.channel = channel
        self.heard = asyncio.Queue()
        self.open, self.gone = asyncio.Event(), asyncio.Event()
        channel.on_message = lambda message: self.heard.put_nowait(frames.decode(message))
        channel.on_open = self.open.set
        channel.on_close = self.gone.set

    def say(self, frame):
        self.channel.send(frame if isinstance(frame, bytes) else frames.encode(frame))

    async def next(self, kind):
        """The next frame of that kind."""
        async with asyncio.timeout(PATIENCE):
            while True:
                frame = await self.heard.get()
                if isinstance(frame, kind):
                    return frame

    async def open_label(self, label):
        """A new label, with its first [8] from either side."""
        self.say(frames.Channel(label, b"epoch-gu", b"", 0, 0, 1_000_000, Durability.DISK))
        return await self.next(frames.Channel)

    async def leave(self):
        await self.connection.close()


class Strangers:
    """Where guests come from: signalling and WebRTC without a daemon."""

    def __init__(self, signalling, engine):
        self._signalling = signalling
        self._engine = engine

    async def greet(self, heartbeat=60.0):
        """Somebody new, with the answer to the hello: a welcome, or a refusal."""
        guest = await self._dial()
        hello = frames.Hello(os.urandom(16), 1, os.urandom(32), None, "stranger", "test", 2**24, heartbeat)
        guest.say(hello)
        return guest, await guest.next((frames.Welcome, frames.Refuse))

    async def welcome(self):
        guest, answer = await self.greet()
        assert isinstance(answer, frames.Welcome)
        return guest

    async def _dial(self):
        async with asyncio.timeout(PATIENCE):
            while True:
                with contextlib.suppress(SignallingRejected):  # no offer left
                    offer = await self._signalling.discover("alice", FQN)
                    connection = self._engine.create_peer_connection()
                    answer = sdp.mark(await connection.create_answer(offer.sdp))
                    guest = Guest(connection, connection.create_data_channel(frames.LABEL, protocol=frames.PROTOCOL))
                    await self._signalling.answer(offer.offer_id, answer)
                    await guest.open.wait()
                    return guest


@pytest.fixture
async def strangers(world, tmp_path):
    signalling = RestSignalling(world.url, Identities(tmp_path / "stranger"))
    engine = AiortcEngine()
    yield Strangers(signalling, engine)
    await engine.close()
    await signalling.close()


def service_of(place):
    return place.house.holdings.services[f"alice/{FQN}"]


async def until(condition):
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_peer_that_makes_session_after_session_fills_its_places_and_disturbs_nobody(world, strangers):
    pair = await open_pair(world, max_sessions=3)
    _, far_id = await pair.ids()
    visits = service_of(pair.home).visits
    forgotten = await watch(pair.program)
    for _ in range(6):
        guest = await strangers.welcome()
        await guest.leave()
        await until(lambda: sum(visit.session.connected for visit in visits.values()) == 1)
        assert len(visits) <= 3
    for _ in range(4):
        assert (await forgotten.next("disconnection"))["reason"] == "forgotten"
    assert far_id in visits
    await exchange_few(pair.near, pair.far)


async def test_sessions_that_hold_something_make_no_place_and_the_next_stranger_is_told_so(world, strangers):
    pair = await open_pair(world, max_sessions=2)
    guest = await strangers.welcome()
    await guest.open_label("gift")
    guest.say(frames.Data("gift", 1, ["something"]))
    await guest.next(frames.Ack)
    await guest.leave()
    home = service_of(pair.home)
    await until(lambda: sum(visit.session.connected for visit in home.visits.values()) == 1)
    _, answer = await strangers.greet()
    assert (answer.code, answer.reason) == (RefuseCode.TOO_MANY, "2 sessions are kept")
    assert home.counters["refused_too_many"] == 1
    await exchange_few(pair.near, pair.far)


async def test_no_more_peers_are_connected_at_once_than_allowed(world, strangers):
    pair = await open_pair(world, max_connections=2)
    guest = await strangers.welcome()
    _, answer = await strangers.greet()
    assert (answer.code, answer.reason) == (RefuseCode.TOO_MANY, "2 peers are connected")
    await guest.leave()
    visits = service_of(pair.home).visits
    await until(lambda: sum(visit.session.connected for visit in visits.values()) == 1)
    await strangers.welcome()
    await exchange_few(pair.near, pair.far)


async def test_those_who_come_in_the_same_moment_do_not_pass_the_limits_together(world):
    pair = await open_pair(world, max_sessions=3, max_connections=4)
    visits = service_of(pair.home).visits

    async def come():
        refuse = visits.too_many(None) or visits.make_place()
        if refuse is None:
            await visits.make(os.urandom(16), os.urandom(32))
        return refuse

    outcomes = await asyncio.gather(*(come() for _ in range(8)))
    assert len(visits) == 3
    assert [refuse.code for refuse in outcomes if refuse] == [RefuseCode.TOO_MANY] * 6


async def test_a_peer_that_says_hello_and_then_nothing_loses_its_link(world, strangers, monkeypatch):
    monkeypatch.setattr(link, "SUSPECT_AFTER", 0.3)
    monkeypatch.setattr(link, "DEAD_AFTER", 0.6)
    pair = await open_pair(world)
    guest, _ = await strangers.greet(heartbeat=0.01)
    goodbye = await guest.next(frames.Goodbye)
    assert goodbye.code is GoodbyeCode.TIMEOUT
    assert goodbye.reason.startswith("nothing heard for")
    await asyncio.wait_for(guest.gone.wait(), PATIENCE)
    await exchange_few(pair.near, pair.far)


async def test_a_peer_that_opens_label_after_label_gets_as_many_as_a_session_may_have(world, strangers):
    pair = await open_pair(world, max_channels=4)
    refused = await watch(pair.program)
    guest = await strangers.welcome()
    for number in range(10):
        guest.say(frames.Channel(f"label-{number}", b"epoch-gu", b"", 0, 0, 1_000, Durability.DISK))
    for number in range(4, 10):
        error = await refused.next("error", code="label_refused")
        assert (error["label"], error["message"]) == (f"label-{number}", "more than 4 channels")
    (row,) = [row for row in await pair.program.sessions() if row["peer_name"] == "stranger"]
    session = pair.home.session(row["connection_id"])
    await until(lambda: len(session.channels) == 4 and not session.channels._creating)
    assert len(await pair.program.channels(row["connection_id"])) == 4
    guest.say(frames.Ping(7))
    assert (await guest.next(frames.Pong)).n == 7
    await exchange_few(pair.near, pair.far)


@pytest.mark.parametrize(("label", "fits"), [("ä" * 127 + "x", True), ("ä" * 128, False), ("", False)])
async def test_labels_have_1_to_255_bytes(world, strangers, label, fits):
    pair = await open_pair(world)
    guest = await strangers.welcome()
    told = {"epoch": b"epoch-gu", "peer_epoch": None, "recv_next": None, "recv_count": None, "room": 1_000}
    guest.say(msgpack.packb([8, label, {**told, "durability": "disk"}]))
    if fits:
        assert (await guest.next(frames.Channel)).label == label
    else:
        assert (await guest.next(frames.Goodbye)).code is GoodbyeCode.PROTOCOL
    await exchange_few(pair.near, pair.far)


async def test_a_peer_that_floods_gets_no_further_than_the_room_it_was_offered(world, strangers):
    pair = await open_pair(world, queue={"inbox_size": 10})
    guest = await strangers.welcome()
    room = (await guest.open_label("flood")).room
    with contextlib.suppress(Exception):  # the link ends in the middle of it
        for seq in range(1, 2_000):
            guest.say(frames.Data("flood", seq, ["x" * 1_000]))
    goodbye = await guest.next(frames.Goodbye)
    assert (goodbye.code, "beyond the room" in goodbye.reason) == (GoodbyeCode.PROTOCOL, True)
    (row,) = [row for row in await pair.program.sessions() if row["peer_name"] == "stranger"]
    assert row["waiting_bytes"] <= room + 1_000
    await exchange_few(pair.near, pair.far)


async def test_a_session_counts_its_absence_over_restarts_and_not_while_the_daemon_is_away(world):
    pair = await open_pair(world, session_expiry=600)
    gone = await watch(pair.program)
    await pair.away.stop()
    await gone.next("disconnected")
    for _ in range(2):
        (visit,) = service_of(pair.home).visits.values()
        visit.absent_saved = -1_000.0  # written down each time
        await service_of(pair.home).visits._add_absence(visit)
        await pair.home.restart()
    (row,) = await pair.program.sessions()
    assert (row["absent"], row["expires_in"]) == (120.0, 480.0)
