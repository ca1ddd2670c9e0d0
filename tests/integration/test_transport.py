"""The contract of `rondevud.transport.base`, over every engine against every engine, on both event loops."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import itertools
import json
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import uvloop

from rondevud.errors import TransportError
from rondevud.transport.base import (
    ChannelOptions,
    ChannelState,
    ConnectionState,
    DataChannel,
    Engine,
    IceServer,
    PeerConnection,
)
from tests.engines import ENGINES

pytestmark = pytest.mark.webrtc

PAIRS = list(itertools.product(ENGINES, repeat=2))

PATIENCE = 30.0
"""Seconds after which something that must happen has not."""


@contextlib.asynccontextmanager
async def running(*names: str) -> AsyncIterator[list[Engine]]:
    """Engines that are closed in the end; nothing that happened in the background may be left for others to report."""
    engines = [ENGINES[name]() for name in names]
    stray: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(
        lambda _, context: any(engine.absorb(context) for engine in engines) or stray.append(context)
    )
    try:
        yield engines
    finally:
        async with asyncio.timeout(PATIENCE):
            for engine in engines:
                await engine.close()
        gc.collect()  # "exception was never retrieved" is said by finalisers
        loop.set_exception_handler(None)
    assert not stray
    for engine in engines:
        assert not {"forced_closes", "close_errors", "tasks_left", "background_errors"} & set(engine.counters)


@pytest.fixture(params=PAIRS, ids="-".join)
async def engines(request) -> AsyncIterator[list[Engine]]:
    async with running(*request.param) as both:
        yield both


@pytest.fixture(params=list(ENGINES))
async def engine(request) -> AsyncIterator[Engine]:
    async with running(request.param) as (one,):
        yield one


async def soon(awaitable: Any) -> Any:
    return await asyncio.wait_for(awaitable, PATIENCE)


class Tap:
    """A channel and what its handlers were told, in order."""

    def __init__(self, channel: DataChannel) -> None:
        self.channel = channel
        self.events: asyncio.Queue[Any] = asyncio.Queue()
        self.closed = asyncio.Event()
        channel.on_open = lambda: self.events.put_nowait("open")
        channel.on_message = lambda message: self.events.put_nowait(("message", message))
        channel.on_close = self._close

    def _close(self) -> None:
        self.events.put_nowait("close")
        self.closed.set()

    async def next(self) -> Any:
        return await soon(self.events.get())

    async def message(self) -> Any:
        kind, message = await self.next()
        assert kind == "message"
        return message

    async def opened(self) -> Tap:
        assert await self.next() == "open"
        return self


class Side:
    """A peer connection with its states and the channels that the peer opened."""

    def __init__(self, engine: Engine) -> None:
        self.pc: PeerConnection = engine.create_peer_connection()
        self.states: list[ConnectionState] = []
        self.reached: dict[ConnectionState, asyncio.Event] = {state: asyncio.Event() for state in ConnectionState}
        self.incoming: asyncio.Queue[Tap] = asyncio.Queue()
        self.pc.on_state = self._state
        self.pc.on_data_channel = lambda channel: self.incoming.put_nowait(Tap(channel))

    def _state(self, state: ConnectionState) -> None:
        self.states.append(state)
        self.reached[state].set()

    async def until(self, state: ConnectionState) -> None:
        await soon(self.reached[state].wait())

    async def accepted(self) -> Tap:
        return await soon(self.incoming.get())

    def open(self, label: str, **arguments: Any) -> Tap:
        return Tap(self.pc.create_data_channel(label, **arguments))


async def shake_hands(caller: Side, callee: Side) -> None:
    offer = await soon(caller.pc.create_offer())
    await soon(caller.pc.accept_answer(await soon(callee.pc.create_answer(offer))))


async def connected(engines: list[Engine], label: str = "first") -> tuple[Side, Side, Tap, Tap]:
    caller, callee = Side(engines[0]), Side(engines[1])
    outgoing = caller.open(label)
    await shake_hands(caller, callee)
    await outgoing.opened()
    return caller, callee, outgoing, await callee.accepted()


class TestConnecting:
    async def test_both_sides_get_connected_and_see_the_channel_open(self, engines):
        caller, callee, outgoing, incoming = await connected(engines)
        await caller.until(ConnectionState.CONNECTED)
        await callee.until(ConnectionState.CONNECTED)
        assert caller.states == callee.states == [ConnectionState.CONNECTING, ConnectionState.CONNECTED]
        assert outgoing.channel.state is incoming.channel.state is ChannelState.OPEN
        assert incoming.channel.label == "first"

    async def test_the_pair_in_use_names_both_ends(self, engines):
        caller, callee, _, _ = await connected(engines)
        deadline = time.monotonic() + PATIENCE
        while True:  # one side can have settled on another pair for a moment
            mine, theirs = caller.pc.selected_pair, callee.pc.selected_pair
            assert mine is not None
            assert theirs is not None
            if (mine.local, mine.remote) == (theirs.remote, theirs.local) or time.monotonic() > deadline:
                break
            await asyncio.sleep(0.01)
        assert (mine.local, mine.remote) == (theirs.remote, theirs.local)
        assert mine.local_type == "host"

    async def test_no_pair_before_connecting(self, engine):
        assert engine.create_peer_connection().selected_pair is None

    async def test_the_answering_side_can_open_a_channel_too(self, engines):
        caller, callee, _, _ = await connected(engines)
        mine = callee.open("from the answerer")
        theirs = await caller.accepted()
        await mine.opened()
        mine.channel.send("hello")
        assert await theirs.message() == "hello"
        assert theirs.channel.label == "from the answerer"

    async def test_channels_that_both_open_the_moment_they_are_connected_stay_open(self, engines):
        for _ in range(10):
            caller, callee = Side(engines[0]), Side(engines[1])
            caller.open("first")
            opened: list[Tap] = []
            for side in (caller, callee):
                report = side.pc.on_state

                def open_at_once(
                    state: ConnectionState, side: Side = side, report: Any = report, opened: list[Tap] = opened
                ) -> None:
                    report(state)
                    if state is ConnectionState.CONNECTED:
                        opened.append(side.open("at once"))

                side.pc.on_state = open_at_once
            await shake_hands(caller, callee)
            shown = [await callee.accepted(), await callee.accepted(), await caller.accepted()]
            for tap in opened:
                await tap.opened()
            for tap in shown:
                tap.channel.send("works")
            for tap in opened:
                assert await tap.message() == "works"
            assert all(tap.events.empty() for tap in (*opened, *shown))
            await soon(asyncio.gather(caller.pc.close(), callee.pc.close()))

    async def test_descriptions_without_candidates_connect_from_the_addresses_seen(self, engines):
        caller, callee = Side(engines[0]), Side(engines[1])
        outgoing = caller.open("first")
        offer = await soon(caller.pc.create_offer())
        answer = await soon(callee.pc.create_answer(without_candidates(offer)))
        await soon(caller.pc.accept_answer(answer))
        await outgoing.opened()

    async def test_candidates_that_are_trickled_connect(self, engines):
        caller, callee = Side(engines[0]), Side(engines[1])
        outgoing = caller.open("first")
        offer = await soon(caller.pc.create_offer())
        answer = await soon(callee.pc.create_answer(without_candidates(offer)))
        for candidate in candidates(answer):  # before the description
            await caller.pc.add_candidate(candidate, "0", 0)
        await soon(caller.pc.accept_answer(without_candidates(answer)))
        for candidate in candidates(offer):
            await callee.pc.add_candidate(candidate, None, None)
        await callee.pc.add_candidate("", "0", 0)
        await outgoing.opened()

    async def test_candidates_that_came_before_the_offer_are_kept_for_it(self, engines):
        caller, callee = Side(engines[0]), Side(engines[1])
        outgoing = caller.open("first")
        offer = await soon(caller.pc.create_offer())
        for candidate in candidates(offer):
            await callee.pc.add_candidate(candidate, "0", 0)
        answer = await soon(callee.pc.create_answer(without_candidates(offer)))
        await soon(caller.pc.accept_answer(without_candidates(answer)))
        await outgoing.opened()  # only the answering side knew where to go

    async def test_candidates_that_cannot_be_used_are_counted_and_do_no_harm(self, engines):
        caller, callee = Side(engines[0]), Side(engines[1])
        outgoing = caller.open("first")
        offer = await soon(caller.pc.create_offer())
        hidden = "a=candidate:1 1 udp 2113937151 0f6f3a52-4d4b-4d5c-9a59-3d6d4e1f9a11.local 51234 typ host\r\n"
        answer = await soon(callee.pc.create_answer(offer.rstrip() + "\r\n" + hidden))
        await caller.pc.add_candidate("candidate:1 1 tcp 1 192.0.2.1 9 typ host tcptype active", "0", 0)
        await caller.pc.add_candidate("rubbish", "0", 0)
        await soon(caller.pc.accept_answer(answer))
        await outgoing.opened()
        counted = engines[0].counters["candidates_ignored"], engines[1].counters["candidates_ignored"]
        assert counted == ((3, 3) if engines[0] is engines[1] else (2, 1))

    async def test_a_server_that_never_answers_delays_the_offer_no_longer_than_the_gathering_time(self):
        # 0.2 s instead of 1 s: the library on its own waits 5 s.
        silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        silent.bind(("127.0.0.1", 0))
        urls = tuple(f"{kind}:127.0.0.1:{silent.getsockname()[1]}" for kind in ("stun", "turn"))
        for make in ENGINES.values():
            before = belongings()
            engine = make([IceServer(urls, "user", "secret")], gathering_time=0.2)
            side = Side(engine)
            side.open("first")
            async with asyncio.timeout(4.0):
                assert candidates(await side.pc.create_offer())
            await soon(engine.close())
            await nothing_left(before)
        silent.close()


class TestMessages:
    async def test_text_and_binary_keep_their_kind_and_order_both_ways(self, engines):
        _, _, outgoing, incoming = await connected(engines)
        messages = ["text", b"binary", "", b"", "grüße 聊天 🚀", bytes(range(256)), "\0"]
        for sender, receiver in ((outgoing, incoming), (incoming, outgoing)):
            for message in messages:
                sender.channel.send(message)
            assert [await receiver.message() for _ in messages] == messages

    async def test_a_large_message_arrives_whole(self, engines):
        _, _, outgoing, incoming = await connected(engines)
        large = os.urandom(200 * 1024)
        outgoing.channel.send(large)
        incoming.channel.send(large.hex()[: 200 * 1024])
        assert await incoming.message() == large
        assert await outgoing.message() == large.hex()[: 200 * 1024]

    async def test_a_message_beyond_the_limit_is_refused_and_the_channel_lives_on(self, engines):
        _, _, outgoing, incoming = await connected(engines)
        with pytest.raises(TransportError):
            outgoing.channel.send(bytes(300 * 1024))
        outgoing.channel.send("after")
        assert await incoming.message() == "after"

    async def test_text_that_is_no_unicode_is_refused_and_the_channel_lives_on(self, engines):
        _, _, outgoing, incoming = await connected(engines)
        with pytest.raises(TransportError):
            outgoing.channel.send("\ud800")
        outgoing.channel.send("after")
        assert await incoming.message() == "after"

    async def test_sending_on_a_channel_that_is_not_open_is_refused(self, engine):
        channel = engine.create_peer_connection().create_data_channel("first")
        assert channel.state is ChannelState.CONNECTING
        with pytest.raises(TransportError, match="connecting"):
            channel.send("too early")

    async def test_messages_sent_in_the_open_handler_arrive(self, engines):
        caller, callee = Side(engines[0]), Side(engines[1])
        channel = caller.pc.create_data_channel("first")

        def send_at_once() -> None:
            for number in range(200):
                channel.send(str(number))

        channel.on_open = send_at_once
        await shake_hands(caller, callee)
        incoming = await callee.accepted()
        assert [await incoming.message() for _ in range(200)] == [str(number) for number in range(200)]

    async def test_messages_before_the_handler_is_set_are_kept_in_order(self, engines):
        caller, callee = Side(engines[0]), Side(engines[1])
        waiting: asyncio.Queue[DataChannel] = asyncio.Queue()
        callee.pc.on_data_channel = waiting.put_nowait
        outgoing = caller.open("late")
        await shake_hands(caller, callee)
        await outgoing.opened()
        for number in range(50):
            outgoing.channel.send(str(number))
        second = caller.open("second")
        late = await soon(waiting.get())
        await second.opened()  # a round trip behind the 50 messages
        tap = Tap(late)
        outgoing.channel.send("50")
        assert [await tap.message() for _ in range(51)] == [str(number) for number in range(51)]

    async def test_three_channels_at_once_do_not_mix(self, engines):
        caller, callee = Side(engines[0]), Side(engines[1])
        outgoing = {label: caller.open(label) for label in ("one", "two", "three")}
        await shake_hands(caller, callee)
        for tap in outgoing.values():
            await tap.opened()
        incoming = {tap.channel.label: tap for tap in [await callee.accepted() for _ in outgoing]}
        for number in range(100):
            for label, tap in outgoing.items():
                tap.channel.send(f"{label} {number}")
        for label in outgoing:
            got = [await incoming[label].message() for _ in range(100)]
            assert got == [f"{label} {number}" for number in range(100)]

    async def test_the_buffer_fills_and_its_low_mark_is_reported(self, engines):
        _, _, outgoing, incoming = await connected(engines)
        outgoing.channel.buffered_amount_low_threshold = 64 * 1024
        outgoing.channel.on_buffered_amount_low = lambda: outgoing.events.put_nowait("low")
        for _ in range(20):
            outgoing.channel.send(bytes(64 * 1024))
        assert outgoing.channel.buffered_amount > 64 * 1024
        assert await outgoing.next() == "low"
        assert outgoing.channel.buffered_amount <= 64 * 1024
        for _ in range(20):
            assert len(await incoming.message()) == 64 * 1024

    async def test_an_exception_in_a_handler_is_counted_and_does_not_hurt(self, engines, caplog):
        _, callee, outgoing, incoming = await connected(engines)
        arrived: asyncio.Queue[Any] = asyncio.Queue()

        def fail(message: Any) -> None:
            arrived.put_nowait(message)
            raise RuntimeError("a bug in a handler")

        incoming.channel.on_message = fail
        outgoing.channel.send("one")
        outgoing.channel.send("two")
        assert [await soon(arrived.get()), await soon(arrived.get())] == ["one", "two"]
        assert callee.pc.state is ConnectionState.CONNECTED
        assert engines[1].counters["handler_errors"] == 2
        assert "a bug in a handler" in caplog.text


class TestChannels:
    @pytest.mark.parametrize("label", ["plain", "", "chät", "чат", "聊天", "🚀" * 20, "a b/c\t\"'", "x" * 1000])
    async def test_labels_and_protocols_arrive_as_they_were_given(self, engines, label):
        caller, callee, _, _ = await connected(engines)
        for mine, theirs in ((caller, callee), (callee, caller)):
            opened = mine.open(label, protocol=label)
            tap = await theirs.accepted()
            await opened.opened()
            assert (tap.channel.label, tap.channel.protocol) == (label, label)
            assert (opened.channel.label, opened.channel.protocol) == (label, label)
            assert len(tap.channel.label) == len(opened.channel.label) == len(label)
            tap.channel.send("works")
            assert await opened.message() == "works"

    @pytest.mark.parametrize(
        "options",
        [
            ChannelOptions(),
            ChannelOptions(ordered=False),
            ChannelOptions(max_retransmits=0),
            ChannelOptions(ordered=False, max_retransmits=3),
            ChannelOptions(max_packet_life_time=0),
            ChannelOptions(ordered=False, max_packet_life_time=65_535),
        ],
        ids=str,
    )
    async def test_reliability_options_pass(self, engines, options):
        caller, callee, _, _ = await connected(engines)
        opened = caller.open("unreliable", options=options)
        tap = await callee.accepted()
        assert tap.channel.options == opened.channel.options == options
        await opened.opened()
        opened.channel.send("to")
        assert await tap.message() == "to"
        tap.channel.send("fro")
        assert await opened.message() == "fro"

    @pytest.mark.parametrize(
        "arguments",
        [
            {"label": "ä" * 32_768},
            {"label": "x", "protocol": "x" * 65_536},
            {"label": "\ud800"},
            {"label": "x", "options": ChannelOptions(max_retransmits=1, max_packet_life_time=1)},
            {"label": "x", "options": ChannelOptions(max_retransmits=65_536)},
            {"label": "x", "options": ChannelOptions(max_packet_life_time=-1)},
        ],
    )
    async def test_what_cannot_be_opened_is_refused(self, engine, arguments):
        with pytest.raises(TransportError):
            engine.create_peer_connection().create_data_channel(**arguments)

    @pytest.mark.parametrize("closer", ["opener", "other"])
    async def test_a_closed_channel_is_closed_on_both_sides_behind_its_messages(self, engines, closer):
        caller, _, outgoing, incoming = await connected(engines)
        mine, theirs = (outgoing, incoming) if closer == "opener" else (incoming, outgoing)
        mine.channel.send("last words")
        mine.channel.close()
        mine.channel.close()
        assert mine.channel.state is ChannelState.CLOSED
        assert await theirs.message() == "last words"
        assert await theirs.next() == "close"
        assert theirs.channel.state is ChannelState.CLOSED
        assert await mine.next() == "close"
        assert caller.pc.state is ConnectionState.CONNECTED
        with pytest.raises(TransportError, match="closed"):
            theirs.channel.send("too late")

    async def test_a_label_can_be_closed_and_opened_again_and_again(self, engines):
        caller, callee, _, _ = await connected(engines)
        for number in range(5):
            opened = await caller.open("again").opened()
            tap = await callee.accepted()
            opened.channel.send(str(number))
            assert await tap.message() == str(number)
            (opened if number % 2 else tap).channel.close()
            assert await opened.next() == "close"
            assert await tap.next() == "close"

    async def test_a_channel_closed_before_it_opened_reports_its_end(self, engine):
        side = Side(engine)
        tap = side.open("first")
        tap.channel.close()
        assert await tap.next() == "close"
        assert tap.channel.state is ChannelState.CLOSED


class TestClosing:
    @pytest.mark.parametrize("closer", ["caller", "callee"])
    async def test_the_other_side_sees_the_end_of_channels_and_connection(self, engines, closer):
        caller, callee, outgoing, incoming = await connected(engines)
        mine, theirs = (caller, callee) if closer == "caller" else (callee, caller)
        await soon(mine.pc.close())
        await theirs.until(ConnectionState.CLOSED)
        for tap in (outgoing, incoming):
            assert await tap.next() == "close"
            assert tap.events.empty()
        assert caller.states == callee.states
        assert caller.states[-1] is ConnectionState.CLOSED

    async def test_channels_that_never_opened_are_closed_with_the_connection(self, engine):
        side = Side(engine)
        taps = [side.open("one"), side.open("two")]
        await soon(side.pc.create_offer())
        await soon(side.pc.close())
        assert [tap.events.get_nowait() for tap in taps] == ["close", "close"]
        assert {tap.channel.state for tap in taps} == {ChannelState.CLOSED}

    async def test_channels_report_their_end_before_the_connection_does(self, engines):
        caller, callee, outgoing, incoming = await connected(engines)
        order: list[str] = []
        for side, tap in ((caller, outgoing), (callee, incoming)):
            report, tap.channel.on_close = side.pc.on_state, lambda: order.append("channel")
            side.pc.on_state = lambda state, report=report: (order.append(state), report(state))
        await soon(caller.pc.close())
        await callee.until(ConnectionState.CLOSED)
        assert order == ["channel", "closed", "channel", "closed"]

    async def test_closing_twice_at_once_and_again_is_the_same(self, engines):
        caller, _, outgoing, _ = await connected(engines)
        await soon(asyncio.gather(caller.pc.close(), caller.pc.close()))
        await soon(caller.pc.close())
        assert caller.states.count(ConnectionState.CLOSED) == 1
        assert await outgoing.next() == "close"
        assert outgoing.events.empty()

    async def test_closing_in_a_handler_works(self, engines):
        caller, callee, outgoing, incoming = await connected(engines)
        closing: list[asyncio.Task[None]] = []
        incoming.channel.on_message = lambda _: closing.append(asyncio.ensure_future(callee.pc.close()))
        outgoing.channel.send("go away")
        await caller.until(ConnectionState.CLOSED)
        await soon(asyncio.gather(*closing))

    async def test_nothing_is_called_after_close_has_returned(self, engines):
        caller, callee, outgoing, incoming = await connected(engines)
        outgoing.channel.on_close = lambda: None
        for _ in range(100):
            incoming.channel.send("flood")
        await soon(outgoing.events.get())
        await soon(caller.pc.close())
        states, size = list(caller.states), outgoing.events.qsize()
        await callee.until(ConnectionState.CLOSED)
        await soon(callee.pc.close())
        assert (caller.states, outgoing.events.qsize()) == (states, size)

    async def test_a_closed_connection_refuses_everything(self, engine):
        side = Side(engine)
        side.open("first")
        offer = await soon(side.pc.create_offer())
        await soon(side.pc.close())
        for refused in (side.pc.create_offer(), side.pc.accept_answer(offer), side.pc.create_answer(offer)):
            with pytest.raises(TransportError, match="closed"):
                await soon(refused)
        with pytest.raises(TransportError, match="closed"):
            side.pc.create_data_channel("second")
        await side.pc.add_candidate("candidate:1 1 udp 1 192.0.2.1 9 typ host", "0", 0)

    async def test_a_new_connection_closes_without_having_done_anything(self, engine):
        side = Side(engine)
        await soon(side.pc.close())
        assert side.states == [ConnectionState.CLOSED]

    async def test_closing_while_an_offer_is_made_ends_it_and_leaves_nothing(self, engine):
        before = belongings()
        for _ in range(5):
            side = Side(engine)
            side.open("first")
            making = asyncio.ensure_future(side.pc.create_offer())
            await asyncio.sleep(0)
            await soon(side.pc.close())
            with pytest.raises(TransportError, match="closed"):
                await soon(making)
        await nothing_left(before)

    async def test_cancelling_whoever_waits_for_an_offer_leaves_nothing(self, engine):
        before = belongings()
        side = Side(engine)
        side.open("first")
        making = asyncio.ensure_future(side.pc.create_offer())
        await asyncio.sleep(0)
        making.cancel()
        with pytest.raises(asyncio.CancelledError):
            await making
        await soon(side.pc.close())
        await nothing_left(before)

    async def test_a_failure_that_nobody_waits_for_is_nobodys_surprise(self, engine):
        side = Side(engine)
        answering = asyncio.ensure_future(side.pc.create_answer("rubbish"))
        await asyncio.sleep(0)
        answering.cancel()
        with pytest.raises((asyncio.CancelledError, TransportError)):  # an engine may be done before it is cancelled
            await answering
        await soon(side.pc.close())  # the fixture sees what the loop would have reported

    async def test_closing_while_connecting_leaves_nothing(self, engines):
        before = belongings()
        caller, callee = Side(engines[0]), Side(engines[1])
        caller.open("first")
        await shake_hands(caller, callee)
        await soon(asyncio.gather(caller.pc.close(), callee.pc.close()))
        await nothing_left(before)

    async def test_a_peer_that_is_killed_leaves_a_connection_that_still_sends_and_closes(self, engine):
        before = belongings()
        side = Side(engine)
        outgoing = side.open("first")
        command = [sys.executable, "-c", ANSWERING_PEER]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            try:
                print(json.dumps(await soon(side.pc.create_offer())), file=child.stdin, flush=True)
                await soon(side.pc.accept_answer(json.loads(await soon(asyncio.to_thread(child.stdout.readline)))))
                await outgoing.opened()
            finally:
                child.kill()
        for _ in range(100):
            outgoing.channel.send(bytes(1_000))
        assert side.pc.state is ConnectionState.CONNECTED  # who is gone without a word is noticed by silence, not here
        await soon(side.pc.close())
        assert await outgoing.next() == "close"
        await nothing_left(before)

    async def test_a_closed_engine_has_closed_its_connections_and_makes_no_more(self, engines):
        caller, callee, _, _ = await connected(engines)
        await soon(engines[0].close())
        await soon(engines[0].close())
        assert caller.pc.state is ConnectionState.CLOSED
        await callee.until(ConnectionState.CLOSED)
        with pytest.raises(TransportError, match="closed"):
            engines[0].create_peer_connection()

    async def test_many_connections_leave_tasks_and_descriptors_as_they_were(self, engines):
        warm = await connected(engines)
        await soon(asyncio.gather(warm[0].pc.close(), warm[1].pc.close()))
        before = belongings()
        ours = all(engine.name == "aiortc" for engine in engines)
        for number in range(100 if ours else 10):  # of the other, unit/transport/test_libdatachannel.py makes more
            caller, callee, outgoing, incoming = await connected(engines)
            outgoing.channel.send("hello")
            assert await incoming.message() == "hello"
            first, second = (caller, callee) if number % 2 else (callee, caller)
            await soon(first.pc.close())
            await soon(second.pc.close())
        await nothing_left(before)


ANSWERING_PEER = """
import asyncio, json
from rondevud.transport.aiortc import AiortcEngine

async def main():
    connection = AiortcEngine().create_peer_connection()
    print(json.dumps(await connection.create_answer(json.loads(input()))), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


class TestBadDescriptions:
    async def test_garbage_is_no_offer(self, engine):
        for text in ("", "rubbish", "\0" * 65_536, "v=0\r\n" * 13_000, "x" * 1_000_000, "v=0\r\nm=application x\r\n"):
            side = Side(engine)
            with pytest.raises(TransportError, match="unusable offer"):
                await soon(side.pc.create_answer(text))
            await soon(side.pc.close())

    async def test_an_offer_with_any_one_line_missing_or_cut_is_answered_or_refused(self, engine):
        maker = Side(engine)
        maker.open("first")
        lines = (await soon(maker.pc.create_offer())).splitlines()
        for index, line in enumerate(lines):
            for changed in ([], [line[: len(line) // 2]], [line + "\ufffd"], [line.partition(":")[0]]):
                side = Side(engine)
                answer = ""
                with contextlib.suppress(TransportError):  # whatever else comes out is a bug
                    answer = await soon(
                        side.pc.create_answer("\r\n".join([*lines[:index], *changed, *lines[index + 1 :]]))
                    )
                assert not answer or "m=application" in answer
                await soon(side.pc.close())

    async def test_an_answer_that_does_not_fit_is_refused(self, engine):
        side, other = Side(engine), Side(engine)
        side.open("first")
        other.open("first")
        offer = await soon(side.pc.create_offer())
        with pytest.raises(TransportError, match="unusable answer"):
            await soon(side.pc.accept_answer(await soon(other.pc.create_offer())))  # an offer is no answer
        answer = await soon(Side(engine).pc.create_answer(offer))
        fresh = Side(engine)
        with pytest.raises(TransportError, match="unusable answer"):
            await soon(fresh.pc.accept_answer(answer))  # nothing was offered

    async def test_an_offer_needs_a_channel(self, engine):
        with pytest.raises(TransportError, match="data channel"):
            await soon(engine.create_peer_connection().create_offer())

    async def test_a_wrong_fingerprint_ends_the_connection(self, engines):
        caller, callee = Side(engines[0]), Side(engines[1])
        caller.open("first")
        offer = await soon(caller.pc.create_offer())
        lines = [line for line in offer.splitlines() if not line.startswith("a=fingerprint")]
        forged = [*lines, "a=fingerprint:sha-256 " + ":".join(["AB"] * 32)]
        answer = await soon(callee.pc.create_answer("\r\n".join(forged) + "\r\n"))
        await soon(caller.pc.accept_answer(answer))
        await callee.until(ConnectionState.CLOSED)
        assert callee.states == [ConnectionState.CONNECTING, ConnectionState.CLOSED]


def candidates(sdp: str) -> list[str]:
    return [line.removeprefix("a=") for line in sdp.splitlines() if line.startswith("a=candidate:")]


def without_candidates(sdp: str) -> str:
    return "".join(line + "\r\n" for line in sdp.splitlines() if not line.startswith(("a=candidate", "a=end-of")))


def belongings() -> tuple[set[asyncio.Task[Any]], int]:
    return asyncio.all_tasks(), descriptors_open()


def descriptors_open() -> int:
    return sum(1 for _ in pathlib.Path("/proc/self/fd").iterdir())


async def nothing_left(before: tuple[set[asyncio.Task[Any]], int]) -> None:
    """Tasks must be gone at once; the loop closes sockets one turn after it was told to."""
    tasks, descriptors = before
    assert asyncio.all_tasks() <= tasks
    gc.collect()
    deadline = time.monotonic() + PATIENCE
    while descriptors_open() > descriptors and time.monotonic() < deadline:
        await asyncio.sleep(0)
    assert descriptors_open() <= descriptors


def plain_tests(*groups: type) -> Iterator[Any]:
    """The tests above that need engines and nothing else."""
    for group in groups:
        for name, test in inspect.getmembers(group, inspect.iscoroutinefunction):
            parameters = set(inspect.signature(test).parameters) - {"self"}
            if len(parameters) == 1 and parameters <= {"engine", "engines"}:
                yield pytest.param(test, id=f"{group.__name__}-{name}")


def run_on_uvloop(name: str, test: Any) -> None:
    async def run() -> None:
        async with running(name, name) as engines:
            await test(None, engines if "engines" in inspect.signature(test).parameters else engines[0])

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


@pytest.mark.once
@pytest.mark.parametrize(
    "test", list(plain_tests(TestConnecting, TestMessages, TestChannels, TestClosing, TestBadDescriptions))
)
def test_the_same_on_uvloop(test):
    run_on_uvloop("aiortc", test)


@pytest.mark.once
@pytest.mark.skipif("libdatachannel" not in ENGINES, reason="there is no libdatachannel for this Python or machine")
@pytest.mark.parametrize("test", list(plain_tests(TestMessages)))
def test_the_same_on_uvloop_with_an_engine_that_only_wakes_the_loop(test):
    run_on_uvloop("libdatachannel", test)
