"""A service with its sessions, a good peer and room for bad ones: everything real but WebRTC, signalling and the disk."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

from rondevud import clock
from rondevud.durable import frames
from rondevud.durable.greeting import Greeting
from rondevud.durable.handshake import Fingerprints
from rondevud.durable.incoming import InboxLimits
from rondevud.durable.link import LinkSettings
from rondevud.durable.reception import Reception
from rondevud.durable.session import DurableSession, Environment
from rondevud.durable.settings import ChannelSettings, OutboxLimits, ServiceSettings
from rondevud.durable.visits import Visit, Visits
from rondevud.errors import PeerError, TransportError
from rondevud.records import Durability, Role, SessionRecord
from rondevud.store.memory import MemoryStore
from rondevud.transport.base import RELIABLE, CandidatePair, ChannelOptions, ChannelState, ConnectionState, Message

PRINTS = Fingerprints(b"o" * 32, b"a" * 32)
SETTINGS = ServiceSettings("alice", "com.example.chat@1.0.0", max_sessions=20, max_channels=8, max_message=100_000)


def nothing(*_: Any, **__: Any) -> None:
    """Stand in for a handler that nobody has set."""


class Line:
    """One end of a data channel. What is sent goes to the other end in a later turn of the loop, or is kept for a test."""

    def __init__(self, wire: Wire, label: str, protocol: str = "", options: ChannelOptions = RELIABLE) -> None:
        self.label, self.protocol, self.options = label, protocol, options
        self.state = ChannelState.OPEN
        self.buffered_amount = self.buffered_amount_low_threshold = self.unacknowledged = 0
        self.on_open: Callable[[], None] = nothing
        self.on_message: Callable[[Message], None] = nothing
        self.on_close: Callable[[], None] = nothing
        self.on_buffered_amount_low: Callable[[], None] = nothing
        self.sent: list[Message] = []
        """What nobody at the other end has taken."""
        self.other: Line | None = None
        self.wire = wire

    def send(self, message: Message) -> None:
        if self.state is not ChannelState.OPEN:
            raise TransportError("not open")
        if self.other is None:
            self.sent.append(message)
        else:
            asyncio.get_running_loop().call_soon(self.other.take, message)

    def take(self, message: Message) -> None:
        """A message arrives at this end."""
        if self.state is ChannelState.OPEN:
            self.on_message(message)

    def close(self) -> None:
        self.state = ChannelState.CLOSED


class Wire:
    """One end of a WebRTC connection."""

    def __init__(self) -> None:
        self.state = ConnectionState.CONNECTED
        self.max_message_size = 262_144
        self.selected_pair: CandidatePair | None = None
        self.on_state: Callable[[ConnectionState], None] = nothing
        self.on_data_channel: Callable[[Any], None] = nothing
        self.lines: list[Line] = []

    def create_data_channel(self, label: str, *, protocol: str = "", options: ChannelOptions = RELIABLE) -> Line:
        self.lines.append(Line(self, label, protocol, options))
        return self.lines[-1]

    def end(self) -> None:
        """The connection is over, whoever ended it. Idempotent."""
        if self.state is not ConnectionState.CLOSED:
            self.state = ConnectionState.CLOSED
            for line in self.lines:
                line.state = ChannelState.CLOSED
            self.on_state(self.state)

    async def close(self) -> None:
        self.end()


class Program:
    """A producer's and a receiver's program."""

    def __init__(self) -> None:
        self.received: list[Any] = []
        self._receiver: Any = None

    async def listen(self, channel: Any) -> None:
        """Take and acknowledge whatever comes."""
        self._receiver = await channel.open_receiver("exclusive", self, False)
        self._receiver.credit(2**30)

    def messages(self, tag: int, rows: list[list[Any]]) -> None:
        self.received += [row[0] for row in rows]
        asyncio.get_running_loop().call_soon(self._receiver.ack, tag + len(rows) - 1)

    def __getattr__(self, _name: str) -> Callable[..., None]:
        return nothing


class Owner:
    """What a DurableConnection is to its session."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def link_up(self, _session: Any, _effect: Any) -> None:
        self.told.append("up")

    def link_down(self, _session: Any, effect: Any) -> None:
        self.told.append(f"down {effect.code}")

    def suspect(self, _session: Any, _effect: Any) -> None:
        self.told.append("suspect")

    def recovered(self, _session: Any, _effect: Any) -> None:
        self.told.append("recovered")

    def session_failed(self, _session: Any, effect: Any) -> None:
        self.told.append(f"failed {effect.code}")

    def refusal(self, _session: Any) -> None:
        return None

    def discard(self, connection: Any) -> None:
        asyncio.get_running_loop().call_soon(connection.end)


class Table:
    """A service on a store in memory, and a good peer that is connected to it and passes messages both ways."""

    def __init__(self) -> None:
        self.counters: Counter[str] = Counter()
        self.store = MemoryStore(asyncio.get_running_loop())
        self.environment = Environment(self.store, self.store, clock, nothing, 1_000_000, "test")
        self.visits = Visits(
            SETTINGS, environment=self.environment, configure=configure, count=self.count, changed=nothing
        )
        self.reception = Reception("test", self.visits, None, self.count, self.count)  # type: ignore[arg-type]
        self.owner = Owner()
        self.good = self.new_session("good", self.owner)
        self._greetings: set[asyncio.Task[None]] = set()
        self._passed = self._checked = 0

    def count(self, counter: str) -> None:
        self.counters[counter] += 1

    def new_session(self, name: str, owner: Owner) -> DurableSession:
        """A connecting side's."""
        return DurableSession(
            SessionRecord(f"conn-{name}", Role.CONNECTING, name, b"", b""),
            [],
            environment=self.environment,
            settings=LinkSettings(name=name, max_channels=8, max_message=100_000),
            configure=configure,
            owner=owner,
            service=None,
        )

    def arrive(self) -> Line:
        """A peer has answered an offer, connected, and opened the channel of a link: its other end, at the service."""
        wire = Wire()
        line = wire.create_data_channel(frames.LABEL, protocol=frames.PROTOCOL)
        arrival = Greeting(wire, self.count)
        wire.on_state(ConnectionState.CONNECTED)
        wire.on_data_channel(line)
        task = asyncio.get_running_loop().create_task(self._greet(wire, arrival))
        self._greetings.add(task)
        task.add_done_callback(self._greetings.discard)
        return line

    async def _greet(self, wire: Wire, arrival: Greeting) -> None:
        """As the service does it."""
        try:
            channel, hello = await arrival.hello()
            await self.reception._admit(wire, channel, hello, PRINTS)
        except (PeerError, TransportError):
            self.visits.discard(wire)

    def visit(self, session: bytes) -> Visit | None:
        return self.visits.find(session)

    def forget(self, session: bytes) -> None:
        visit = self.visits.find(session)
        if visit is not None:
            self.visits._forget(visit)

    # --- the good peer ---------------------------------------------------------------------------------------------

    async def connect_good(self) -> None:
        near_wire = Wire()
        near, far = near_wire.create_data_channel(frames.LABEL, protocol=frames.PROTOCOL), self.arrive()
        near.other, far.other = far, near
        await settle()
        self.good.open_link(near_wire, near, PRINTS)
        channel = await self.good.channel("main", None)
        self._heard = [Program(), Program()]
        self._producers = [await channel.open_producer(None, Program(), False)]
        await self._heard[0].listen(channel)
        await until(lambda: bool(self._good_visit().session.channels))
        channel = self._good_visit().session.channels["main"]
        self._producers.append(await channel.open_producer(None, Program(), False))
        await self._heard[1].listen(channel)

    def _good_visit(self) -> Visit:
        visit = self.visits.find(self.good.record.session)
        assert visit is not None
        return visit

    def say(self) -> None:
        """One more message each way."""
        self._passed += 1
        for producer in self._producers:
            producer.send(self._passed, [f"message {self._passed}"], None)

    async def check_good(self) -> None:
        """Everything said since the last check has arrived, in order, over the one link that there has been."""
        sent = [f"message {number}" for number in range(self._checked + 1, self._passed + 1)]
        await until(lambda: all(len(program.received) >= len(sent) for program in self._heard))
        assert [program.received for program in self._heard] == [sent, sent]
        assert self.owner.told == ["up"]
        self._checked = self._passed
        for program in self._heard:
            program.received.clear()

    # --- the end ---------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        for task in self._greetings:
            task.cancel()
        self.good.stop()
        for visit in self.visits.values():
            visit.session.stop()
        await self.visits.tasks.finished(5.0)
        await self.store.close()


def configure(_label: str, options: dict[str, Any] | None, _plain: bool) -> ChannelSettings:
    reliability = ChannelOptions(**options) if options else RELIABLE
    limits = InboxLimits(max_count=1_000, max_bytes=1_000_000)
    return ChannelSettings(Durability.DISK, OutboxLimits(), limits, b"", reliability)


async def settle(turns: int = 12) -> None:
    """Until little more happens by itself."""
    for _ in range(turns):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0)
