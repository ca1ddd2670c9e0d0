"""Labels without frames: a session on the memory store, over data channels of which the test sees both ends."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from rondevud import clock
from rondevud.durable import frames, plain
from rondevud.durable.frames import GoodbyeCode
from rondevud.durable.handshake import Fingerprints
from rondevud.durable.incoming import InboxLimits
from rondevud.durable.link import LinkSettings
from rondevud.durable.session import DurableSession, Environment
from rondevud.durable.settings import ChannelSettings, OutboxLimits
from rondevud.durable.states import ChannelState
from rondevud.errors import RequestError, TransportError
from rondevud.records import Durability, LoadSessions, PeerKind, Role, SessionRecord
from rondevud.store.memory import MemoryStore
from rondevud.transport import base
from rondevud.transport.base import RELIABLE, CandidatePair, ChannelOptions, ConnectionState

SERVICE = "rondevu-service"


def nothing(*_: Any) -> None:
    """Stand in for a handler that nobody has set."""


class Line:
    """A data channel: what is sent stays in the buffer until the test lets it pass."""

    def __init__(self, label: str, *, options: ChannelOptions = RELIABLE, is_open: bool = True) -> None:
        self.label = label
        self.protocol = ""
        self.options = options
        self.state = base.ChannelState.OPEN if is_open else base.ChannelState.CONNECTING
        self.buffered_amount_low_threshold = 0
        self.unacknowledged = 0
        self.buffer: list[str | bytes] = []
        self.passed: list[str | bytes] = []
        self.on_open: Callable[[], None] = nothing
        self.on_message: Callable[[str | bytes], None] = nothing
        self.on_close: Callable[[], None] = nothing
        self.on_buffered_amount_low: Callable[[], None] = nothing

    @property
    def buffered_amount(self) -> int:
        return sum(map(len, self.buffer))

    def send(self, message: str | bytes) -> None:
        if self.state is not base.ChannelState.OPEN:
            raise TransportError("not open")
        self.buffer.append(message)

    def open(self) -> None:
        self.state = base.ChannelState.OPEN
        self.on_open()

    def let_pass(self, count: int = 1_000_000) -> None:
        self.passed += self.buffer[:count]
        del self.buffer[:count]
        if self.buffered_amount <= self.buffered_amount_low_threshold:
            self.on_buffered_amount_low()

    def close(self) -> None:
        """This end closes: the other one confirms that when `confirm` is called."""
        self.state = base.ChannelState.CLOSED

    def confirm(self) -> None:
        self.state = base.ChannelState.CLOSED
        self.on_close()


class Wire:
    """A WebRTC connection."""

    def __init__(self) -> None:
        self.state = ConnectionState.CONNECTED
        self.max_message_size = 1_000
        self.lines: list[Line] = []
        """The data channels that were opened here."""
        self.on_state: Callable[[ConnectionState], None] = nothing
        self.on_data_channel: Callable[[Any], None] = nothing

    def create_data_channel(self, label: str, *, options: ChannelOptions) -> Line:
        self.lines.append(Line(label, options=options, is_open=False))
        return self.lines[-1]

    def end(self) -> None:
        self.state = ConnectionState.CLOSED
        for line in self.lines:
            line.on_close()
        self.on_state(self.state)


class Owner:
    """What a DurableConnection is to its session."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.discarded: list[Any] = []

    def link_up(self, _session: Any, _effect: Any) -> None:
        self.told.append("up")

    def link_down(self, _session: Any, effect: Any) -> None:
        self.told.append(f"down {effect.code}")

    def refusal(self, _session: Any) -> None:
        return None

    def discard(self, connection: Any) -> None:
        self.discarded.append(connection)


class Listener:
    """A producer's and a receiver's program."""

    def __init__(self) -> None:
        self.received: list[Any] = []
        self.ids: list[str] = []
        self.told: list[Any] = []

    def messages(self, _tag: int, rows: list[list[Any]]) -> None:
        self.received += [row[0] for row in rows]
        self.ids += [row[1] for row in rows]

    def __getattr__(self, name: str) -> Any:
        return lambda *facts: self.told.append((name, *facts))


class House:
    """One session, its store and its events."""

    def __init__(self, store: MemoryStore, *, reserved_labels: bool = False) -> None:
        self.store = store
        self.events: list[tuple[str, dict[str, Any], str | None]] = []
        self.limits = OutboxLimits()
        self.owner = Owner()
        self.settings = LinkSettings(daemon="test", max_channels=4, reserved_labels=reserved_labels)
        self.environment = Environment(store, store, clock, self.publish, 1_000_000, "test")
        self.record = SessionRecord("conn-1", Role.CONNECTING, "chat", b"", b"")
        self.session = self.start([])

    def publish(self, name: str, data: Any = None, *, label: str | None = None, **_facts: Any) -> None:
        self.events.append((name, data, label))

    def start(self, channels: list[Any]) -> DurableSession:
        return DurableSession(
            self.record,
            channels,
            environment=self.environment,
            settings=self.settings,
            configure=self.configure,
            owner=self.owner,
            service=None,
        )

    def configure(self, _label: str, options: dict[str, Any] | None, plain: bool) -> ChannelSettings:
        reliability = ChannelOptions(**options) if options else RELIABLE
        limits = OutboxLimits(max_count=100) if plain else self.limits
        return ChannelSettings(Durability.MEMORY, limits, InboxLimits(), b"", reliability)

    async def restart(self) -> None:
        self.session.stop()
        loaded = await self.store.execute(LoadSessions())
        (self.record,) = loaded.sessions
        self.session = self.start(loaded.channels)

    def connect(self, *lines: Line, dialled: bool = True) -> Wire:
        wire = Wire()
        self.session.open_plain(wire, list(lines), dialled=dialled)
        return wire

    async def settle(self) -> None:
        """Until nothing more happens by itself."""
        for _ in range(60):
            await asyncio.sleep(0)

    async def producer(self, label: str = "main", listener: Listener | None = None) -> Any:
        channel = await self.session.channel(label, None)
        return await channel.open_producer(None, listener or Listener(), False)

    async def receiver(self, label: str = "main") -> Listener:
        listener = Listener()
        receiver = await self.session.channels[label].open_receiver("exclusive", listener, False)
        receiver.credit(1_000)
        return listener

    def named(self, name: str) -> list[Any]:
        return [(data, label) for event, data, label in self.events if event == name]

    def counters(self, label: str = "main") -> Counter[str]:
        return self.session.channels[label].counters


@pytest.fixture
async def store() -> AsyncIterator[MemoryStore]:
    store = MemoryStore(asyncio.get_running_loop())
    yield store
    await store.close()


@pytest.fixture
async def house(store) -> AsyncIterator[House]:
    house = House(store)
    yield house
    house.session.stop()


async def opened(house: House) -> tuple[Wire, Line]:
    """A plain connection with the label "main" open."""
    await house.session.channel("main", None)
    wire = house.connect()
    await house.settle()
    (line,) = wire.lines
    line.open()
    await house.settle()
    return wire, line


# --- out -------------------------------------------------------------------------------------------------------------


async def test_what_was_queued_goes_out_in_order_before_what_is_sent_later(house):
    producer = await house.producer()
    producer.send(1, ["one", b"two"], None)
    await house.settle()
    wire = house.connect()
    await house.settle()
    producer.send(3, ["three"], None)
    await house.settle()
    (line,) = wire.lines
    assert line.buffer == []
    line.open()
    producer.send(4, ["four"], None)
    await house.settle()
    assert line.buffer == ["one", b"two", "three", "four"]


async def test_the_first_contact_shows_the_kind_and_brings_its_limits(house):
    channel = await house.session.channel("main", None)
    assert channel.acknowledges is None
    assert channel.outbox.limits.max_count is None
    await opened(house)
    assert channel.acknowledges is False
    assert channel.outbox.limits.max_count == 100
    assert house.session.record.kind is PeerKind.PLAIN
    assert [data["acknowledges"] for data, _ in house.named("open")] == [False]


async def test_a_message_leaves_the_outbox_when_the_engines_buffer_has_passed_it_on(house):
    _wire, line = await opened(house)
    producer = await house.producer()
    producer.send(1, ["one", "two", "three"], None)
    await house.settle()
    channel = house.session.channels["main"]
    assert channel.outbox.count == 3
    line.let_pass(2)
    await house.settle()
    assert channel.outbox.count == 1
    line.let_pass()
    await asyncio.wait_for(channel.outbox.drained(), 5)
    assert line.passed == ["one", "two", "three"]
    assert (channel.counters["sent"], channel.counters["acknowledged"]) == (3, 0)


async def test_what_had_not_left_the_buffer_goes_again_and_what_was_on_its_way_is_counted(house):
    wire, line = await opened(house)
    producer = await house.producer()
    producer.send(1, ["one", "two", "three", "four"], None)
    await house.settle()
    line.let_pass(3)
    await house.settle()
    line.unacknowledged = len("two" + "three")
    wire.end()
    await house.settle()
    assert house.owner.told == ["up", "down transport"]
    assert house.counters()["in_doubt"] == 2
    assert house.session.channels["main"].outbox.count == 1
    again = house.connect()
    await house.settle()
    again.lines[0].open()
    await house.settle()
    assert again.lines[0].buffer == ["four"]


async def test_what_left_the_buffer_just_before_the_end_does_not_go_again(house):
    wire, line = await opened(house)
    (await house.producer()).send(1, ["one", "two"], None)
    await house.settle()
    line.buffer.pop(0)  # the session has not been told
    wire.end()
    await house.settle()
    wire = house.connect()
    await house.settle()
    wire.lines[0].open()
    await house.settle()
    assert wire.lines[0].buffer == ["two"]


async def test_the_queue_outlives_a_start_of_the_daemon(house):
    await opened(house)
    producer = await house.producer()
    producer.send(1, ["one", "two"], None)
    await house.settle()
    await house.restart()
    assert house.session.channels["main"].acknowledges is False
    wire = house.connect()
    await house.settle()
    wire.lines[0].open()
    await house.settle()
    assert wire.lines[0].buffer == ["one", "two"]


async def test_handing_over_pauses_at_the_high_mark_and_goes_on_at_the_low_one(house, monkeypatch):
    monkeypatch.setattr(plain, "BUFFER_HIGH", 100)
    monkeypatch.setattr(plain, "BUFFER_LOW", 50)
    _wire, line = await opened(house)
    producer = await house.producer()
    producer.send(1, [f"{number:010}" for number in range(30)], None)
    await house.settle()
    assert line.buffered_amount == 100
    line.let_pass(4)
    await house.settle()
    assert line.buffered_amount == 60
    line.let_pass(1)
    await house.settle()
    assert line.buffered_amount == 100
    while line.buffer:
        line.let_pass()
        await house.settle()
    assert line.passed == [f"{number:010}" for number in range(30)]


async def test_a_message_the_peer_cannot_take_is_removed_and_told_and_the_next_ones_go(house):
    _wire, line = await opened(house)
    listener = Listener()
    producer = await house.producer(listener=listener)
    producer.send(1, ["one", "x" * 1_001, "three"], None)
    await house.settle()
    assert line.buffer == ["one", "three"]
    assert ("removed", 2, 2, "too_large") in listener.told
    assert house.counters()["removed_too_large"] == 1


async def test_a_data_channel_that_refuses_a_message_is_closed_and_the_message_goes_on_the_next(house):
    wire, line = await opened(house)

    def refuse(_message: str | bytes) -> None:
        raise TransportError("for a test")

    line.send = refuse
    (await house.producer()).send(1, ["one"], None)
    await house.settle()
    assert line.state is base.ChannelState.CLOSED
    line.confirm()
    await house.settle()
    wire.lines[1].open()
    await house.settle()
    assert wire.lines[1].buffer == ["one"]


async def test_options_of_a_label_hold_for_every_data_channel_that_is_opened_for_it(house):
    options = ChannelOptions(ordered=False, max_retransmits=0)
    await house.session.channel("fast", {"ordered": False, "max_retransmits": 0})
    for _ in range(2):
        wire = house.connect()
        await house.settle()
        assert [line.options for line in wire.lines] == [options]
        wire.end()


# --- in --------------------------------------------------------------------------------------------------------------


async def test_messages_come_in_with_ids_that_no_later_message_has_whatever_happens_to_the_store(house):
    _wire, line = await opened(house)
    reader = await house.receiver()
    for message in ("one", b"two", ""):
        line.on_message(message)
    await house.settle()
    assert reader.received == ["one", b"two", ""]
    assert reader.ids == [f"plain-{number}" for number in (1_000_000, 1_000_001, 1_000_002)]


async def test_a_label_that_the_peer_opens_becomes_a_channel_and_loses_nothing_meanwhile(house):
    wire = house.connect()
    line = Line("theirs")
    wire.on_data_channel(line)
    line.on_message("early")
    line.on_message("also early")
    await house.settle()
    assert [label for _, label in house.named("channel")] == ["theirs"] * 2
    reader = await house.receiver("theirs")
    await house.settle()
    assert reader.received == ["early", "also early"]


async def test_the_offers_own_label_exists_when_a_message_comes_on_it(house):
    line = Line(SERVICE)
    house.connect(line, dialled=False)
    await house.settle()
    assert SERVICE not in house.session.channels
    line.on_message("hello")
    await house.settle()
    reader = await house.receiver(SERVICE)
    await house.settle()
    assert reader.received == ["hello"]


async def test_a_label_is_one_channel_that_answers_where_it_was_last_spoken_to(house):
    wire, first = await opened(house)
    producer, reader = await house.producer(), await house.receiver()
    second = Line("main")
    wire.on_data_channel(second)
    first.on_message("on the first")
    await house.settle()
    producer.send(1, ["to the first"], None)
    await house.settle()
    assert first.buffer == ["to the first"]
    first.let_pass()
    second.on_message("on the second")
    await house.settle()
    producer.send(2, ["to the second"], None)
    await house.settle()
    assert second.buffer == ["to the second"]
    assert reader.received == ["on the first", "on the second"]


async def test_another_data_channel_takes_over_what_the_closed_one_had_not_passed_on(house):
    wire, first = await opened(house)
    second = Line("main")
    wire.on_data_channel(second)
    first.on_message("here")
    await house.settle()
    (await house.producer()).send(1, ["one", "two"], None)
    await house.settle()
    first.let_pass(1)
    await house.settle()
    first.confirm()
    await house.settle()
    assert second.buffer == ["two"]
    assert house.named("close") == []


@pytest.mark.parametrize("label", ["", "x" * 256])
async def test_labels_that_cannot_be_channels_are_closed_and_counted(house, label):
    wire, line = house.connect(), Line(label)
    wire.on_data_channel(line)
    assert line.state is base.ChannelState.CLOSED
    assert house.environment.counters["plain_dropped"] == 1


async def test_a_peer_cannot_open_more_labels_than_are_allowed(house):
    wire = house.connect()
    lines = [Line(f"label {number}") for number in range(6)]
    for line in lines:
        wire.on_data_channel(line)
    await house.settle()
    assert len(house.session.channels) == 4
    assert [line.state is base.ChannelState.CLOSED for line in lines] == [False] * 4 + [True] * 2


async def test_what_comes_for_a_channel_that_cannot_be_made_in_time_is_bounded_and_counted(house, monkeypatch):
    monkeypatch.setattr(plain, "EARLY_MESSAGES", 3)
    wire, line = house.connect(), Line("theirs")
    wire.on_data_channel(line)
    for number in range(5):
        line.on_message(str(number))
    assert house.environment.counters["plain_dropped"] == 2
    await house.settle()
    reader = await house.receiver("theirs")
    await house.settle()
    assert reader.received == ["0", "1", "2"]


# --- opening and closing ---------------------------------------------------------------------------------------------


async def test_the_side_that_was_dialled_opens_a_label_only_when_nobody_has_and_something_waits(house, monkeypatch):
    monkeypatch.setattr(plain, "OPEN_LATER", 0.0)
    producer = await house.producer()
    await house.session.channel("idle", None)
    wire = house.connect(dialled=False)
    await house.settle()
    assert wire.lines == []
    producer.send(1, ["one"], None)
    await house.settle()
    assert [line.label for line in wire.lines] == ["main"]


async def test_a_data_channel_closed_by_the_peer_is_an_event_and_opened_again_for_the_next_message(house):
    wire, line = await opened(house)
    line.confirm()
    await house.settle()
    channel = house.session.channels["main"]
    assert [label for _, label in house.named("close")] == ["main"]
    assert channel.state is ChannelState.CONNECTING
    assert len(wire.lines) == 1
    (await house.producer()).send(1, ["again"], None)
    await house.settle()
    wire.lines[1].open()
    await house.settle()
    assert wire.lines[1].buffer == ["again"]
    assert channel.state is ChannelState.OPEN


async def test_closing_a_label_closes_its_data_channels_behind_what_was_sent(house):
    wire, line = await opened(house)
    (await house.producer()).send(1, ["last"], None)
    await house.settle()
    channel = house.session.channels["main"]
    channel.close()
    await house.settle()
    assert (line.buffer, line.state) == (["last"], base.ChannelState.CLOSED)
    assert channel.state is ChannelState.CLOSING
    line.let_pass()
    line.confirm()
    await house.settle()
    assert channel.state is ChannelState.CLOSED
    assert len(wire.lines) == 1
    assert [label for _, label in house.named("close")] == ["main"]
    await house.restart()
    assert house.session.channels["main"].state is ChannelState.CLOSED


async def test_a_closed_label_is_opened_anew_by_either_side(house):
    wire, line = await opened(house)
    channel = house.session.channels["main"]
    for opener in ("program", "peer"):
        channel.close()
        await house.settle()
        line.let_pass()
        line.confirm()
        await house.settle()
        assert channel.state is ChannelState.CLOSED
        if opener == "program":
            await house.session.channel("main", None)
            (await house.producer()).send(1, ["again"], None)
            await house.settle()
            line = wire.lines[-1]
            line.open()
        else:
            line = Line("main")
            wire.on_data_channel(line)
        await house.settle()
        assert channel.state is ChannelState.OPEN


async def test_a_goodbye_closes_the_data_channels_first_and_waits_for_them(house):
    wire, line = await opened(house)
    house.session.say_goodbye("closing", "closed")
    await house.settle()
    assert line.state is base.ChannelState.CLOSED
    assert house.owner.discarded == []
    assert house.session.linked
    line.confirm()
    await asyncio.wait_for(house.session.goodbyes_said(), 5)
    assert house.owner.discarded == [wire]


async def test_a_goodbye_that_nobody_confirms_ends_by_itself(house, monkeypatch):
    monkeypatch.setattr("rondevud.durable.unframed.GOODBYE_TIMEOUT", 0.01)
    wire, _line = await opened(house)
    house.session.say_goodbye("closing", "closed")
    await asyncio.wait_for(house.session.goodbyes_said(), 5)
    assert house.owner.discarded == [wire]


# --- reserved labels -------------------------------------------------------------------------------------------------


async def test_reserved_labels_are_refused_unless_the_peer_is_said_to_be_plain(house, store):
    with pytest.raises(RequestError) as refused:
        await house.session.channel(SERVICE, None)
    assert refused.value.code == "reserved_label"
    allowed = House(store, reserved_labels=True)
    assert (await allowed.session.channel(SERVICE, None)).label == SERVICE
    allowed.session.stop()


# --- ends at bad moments ---------------------------------------------------------------------------------------------


async def test_what_came_while_the_channel_was_being_made_outlives_the_connection(house):
    line = Line("main")
    wire = house.connect(line, dialled=False)
    line.on_message("the only one")
    wire.end()
    await house.settle()
    reader = await house.receiver()
    await house.settle()
    assert reader.received == ["the only one"]


async def test_a_connection_that_ended_before_it_was_taken_gives_what_came_on_it(house):
    """As when the store was slow: the engine has kept the message for who sets the handler."""
    wire, line = Wire(), Line("main")
    line.state, wire.state = base.ChannelState.CLOSED, ConnectionState.CLOSED
    house.session.open_plain(wire, [line], dialled=False)
    line.on_message("kept by the engine")
    await house.settle()
    assert house.owner.told == ["up", "down transport"]
    assert house.owner.discarded == [wire]
    reader = await house.receiver()
    await house.settle()
    assert reader.received == ["kept by the engine"]


async def test_a_data_channel_that_closed_before_it_was_taken_does_not_block_its_label(house):
    line = Line("main")
    line.state = base.ChannelState.CLOSED
    await house.session.channel("main", None)
    wire = house.connect(line)
    (await house.producer()).send(1, ["one"], None)
    await house.settle()
    assert [opened.label for opened in wire.lines] == ["main"]


async def test_a_second_connection_takes_the_place_of_the_first_in_order(house):
    wire, line = await opened(house)
    (await house.producer()).send(1, ["one", "two"], None)
    await house.settle()
    line.let_pass(1)
    await house.settle()
    second = house.connect()
    await house.settle()
    second.lines[0].open()
    await house.settle()
    line.let_pass()
    line.confirm()
    await house.settle()
    assert house.owner.discarded == [wire]
    assert second.lines[0].buffer == ["two"]
    assert house.session.channels["main"].outbox.count == 1
    assert house.named("close") == []


async def test_a_goodbye_tells_the_owner_as_one_on_a_link_does(house):
    _wire, line = await opened(house)
    house.session.say_goodbye(GoodbyeCode.RESTARTING, "given up for now")
    assert not house.session.connected
    line.confirm()
    await house.settle()
    assert house.owner.told == ["up", "down restarting"]


async def test_in_doubt_counts_what_its_own_data_channel_had_under_way(house):
    for label in ("main", "quiet"):
        await house.session.channel(label, None)
    wire = house.connect()
    await house.settle()
    for line in wire.lines:
        line.open()
    for label in ("quiet", "main"):
        (await house.producer(label)).send(1, ["a" * 10] * 5, None)
        await house.settle()
    for line in wire.lines:
        line.let_pass()
        line.unacknowledged = 30 if line.label == "main" else 0
    await house.settle()
    wire.end()
    await house.settle()
    assert [house.counters(label)["in_doubt"] for label in ("main", "quiet")] == [3, 0]


async def test_early_messages_are_bounded_in_bytes_too(house):
    line = Line("main")
    house.connect(line, dialled=False)
    for _ in range(10):
        line.on_message(b"x" * (plain.EARLY_BYTES // 4))
    assert house.environment.counters["plain_dropped"] == 6
    await house.settle()
    assert house.session.channels["main"].waiting == 4


async def test_a_data_channel_that_closes_with_messages_unsent_has_not_drained(house):
    _wire, line = await opened(house)
    heard: list[int] = []
    house.session.channels["main"].watch_buffer(3, heard.append)
    (await house.producer()).send(1, ["aaaa", "bbbb"], None)
    await house.settle()
    line.confirm()
    await house.settle()
    assert heard == []


# --- beside links ----------------------------------------------------------------------------------------------------


async def link_up(house: House) -> tuple[Wire, Line]:
    """A link with another daemon, as far as this side can tell."""
    wire, line = Wire(), Line(frames.LABEL)
    house.session.open_link(wire, line, Fingerprints(b"1" * 32, b"2" * 32))
    await house.settle()
    hello = frames.decode(line.buffer[-1])
    line.on_message(frames.encode(frames.Welcome(False, hello.link, None, "test", 1_000_000, 1.0, None)))
    await house.settle()
    return wire, line


async def test_a_link_after_a_plain_contact_ends_that_and_has_the_limits_of_links(house):
    wire, _line = await opened(house)
    channel = house.session.channels["main"]
    await link_up(house)
    assert house.session.record.kind is PeerKind.LINK
    assert channel.outbox.limits == house.limits
    assert house.owner.discarded == [wire]
    assert channel.acknowledges is None


async def test_an_unreliable_label_sends_nothing_twice_when_its_link_ends(house):
    options = ChannelOptions(ordered=False, max_retransmits=0)
    await house.session.channel("fast", {"ordered": False, "max_retransmits": 0})
    wire, line = await link_up(house)
    line.on_message(frames.encode(frames.Channel("fast", b"", b"", 0, 0, 0, Durability.MEMORY, options)))
    await house.settle()
    (data,) = wire.lines
    data.open()
    (await house.producer("fast")).send(1, ["aaaa", "bbbb", "cccc"], None)
    await house.settle()
    data.buffer.pop(0)
    data.buffer.pop(0)  # the session has not been told
    data.unacknowledged = 4
    wire.end()
    await house.settle()
    assert house.session.channels["fast"].outbox.count == 1
    assert house.counters("fast")["in_doubt"] == 1


async def test_the_local_address_of_a_connection_is_as_the_kernel_writes_it(house):
    wire, _line = await opened(house)
    wire.selected_pair = CandidatePair("[2001:db8::1]:5000", "host", "[2001:db8::2]:1", "host")
    assert house.session.local_address == "2001:db8::1"
