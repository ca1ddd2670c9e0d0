"""Two daemons' link machines over a simulated path, on a clock that jumps from event to event.

Each side has the real machine (`rondevud.durable.link.Session`) and a store in memory that commits `COMMIT` seconds after
it was asked. What the shell around the machine does is done here in the same order: tell it the engine's buffer, flush,
carry out, set one timer. The connecting side also dials a second link when it suspects the first, by the rules of
`rondevud.durable.connection`: given up if the first is heard again before hello, after `ATTEMPT` seconds in any case, then
tried again after `PAUSE`.

A second link is a stream of its own over the same path. How long it takes until it is open is drawn from what has to be said
until then (`dial_time`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Any

from rondevud.durable import frames
from rondevud.durable.dialling import ATTEMPT
from rondevud.durable.effects import (
    CloseLink,
    CreateLabel,
    Execute,
    LinkDown,
    LinkUp,
    Recovered,
    SessionFailed,
    Suspect,
    Transmit,
)
from rondevud.durable.handshake import Fingerprints, judge_hello
from rondevud.durable.incoming import InboxLimits
from rondevud.durable.link import LinkSettings, Session
from rondevud.durable.session import BUFFER_LOW
from rondevud.records import (
    AckIn,
    CreateChannel,
    Durability,
    Receive,
    Role,
    SaveSession,
    SessionRecord,
    Stamp,
)
from rondevud.store.memory import MemoryTables
from rondevud.transport.base import RELIABLE
from tests.simulation.path import Clock, Stream, Timer, Way

PRINTS = Fingerprints(b"o" * 32, b"a" * 32)
LABEL = "bulk"

COMMIT = 0.005
"""Seconds from a store operation to its outcome."""

BULK_QUEUE = 24
"""Messages that bulk keeps in the outbox."""

BULK_MESSAGE = 16_000
"""Bytes: one fills a frame."""

PAUSE = 1.0
"""Seconds between two attempts to dial."""

SIGNALLING = 0.2
"""Seconds of one request to the signalling server."""

POLLING = 2.0
"""Seconds between two looks of the service for answers: its default."""

HANDSHAKES = (0.5, 1.0, 1.0, 3.0, 3.0)
"""Seconds until the first repetition of each round trip that has to succeed before a channel is open, doubled after that:
an ICE check, two of DTLS, two of SCTP."""


def dial_time(random: Random, there: Way, back: Way) -> float:
    """Seconds from the wish for a link to an open data channel."""
    seconds = 2 * SIGNALLING + random.uniform(0, POLLING)
    for first in HANDSHAKES:
        patience = first
        while random.random() < there.loss or random.random() < back.loss:
            seconds += patience
            patience *= 2
        seconds += random.uniform(there.least, there.most) + random.uniform(back.least, back.most)
    return seconds


@dataclass
class Wire:
    """One link: a stream each way, by receiving side."""

    key: int
    streams: dict[str, Stream] = field(default_factory=dict)


def other(side: str) -> str:
    return "s" if side == "c" else "c"


class Side:
    """A daemon with one session. `c` is the connecting side."""

    def __init__(self, pair: Pair, name: str, *, bulk: bool) -> None:
        self.pair = pair
        self.name = name
        self.bulk = bulk
        """Whether its outbox never becomes empty."""
        self.session: Session | None = None
        self.running = True
        self.heard_at = 0.0
        """When the last message of the current link arrived here."""
        self.suspects: list[float] = []
        self.longest_silence = 0.0
        """Of the silences that have ended."""
        self.events: list[tuple[float, Any]] = []
        """Everything the machine reported."""
        self.received = 0
        """Bytes of payload stored."""
        self._tables = MemoryTables()
        self._waiting: list[tuple[Any, Callable[[Any], None]]] = []
        self._committing = False
        self._timer_due: float | None = None
        self._putting = False
        self._creating = False
        self._held: list[tuple[Wire, bytes]] = []
        if name == "c":
            self._begin(SessionRecord("conn-c", Role.CONNECTING, "chat", b"", b""))

    def _begin(self, record: SessionRecord) -> None:
        self.session = Session(
            record,
            [],
            LinkSettings(name=self.name),
            clock_us=self.pair.microseconds(),
            random=self.pair.random.randbytes,
        )

    @property
    def machine(self) -> Session:
        assert self.session is not None
        return self.session

    # --- the life of the process -----------------------------------------------------------------------------------

    def halt(self) -> None:
        """The process stops running; what comes meanwhile waits for it."""
        self.running = False

    def wake(self) -> None:
        """It goes on: its timers fire late."""
        self.running = True
        self._timer_due = None
        self._tick_now()
        self._commit_soon()
        held, self._held = self._held, []
        for wire, message in held:
            self.take(wire, message)

    # --- in --------------------------------------------------------------------------------------------------------

    def take(self, wire: Wire, message: bytes) -> None:
        """A message has arrived."""
        if not self.running:
            self._held.append((wire, message))
            return
        now = self.pair.clock.now
        if self.session is None or (self.name == "s" and wire.key not in self.machine._links):
            self._greet(wire, message)
            return
        if self.machine.current == wire.key:
            self.longest_silence = max(self.longest_silence, now - self.heard_at)
            self.heard_at = now
        self.machine.receive(wire.key, message, now)
        self.flush()

    def _greet(self, wire: Wire, message: bytes) -> None:
        hello = frames.decode(message)
        if not isinstance(hello, frames.Hello):
            return
        known = self.session.record if self.session is not None else None
        refuse = judge_hello(hello, known, PRINTS)
        if refuse is not None:
            self.pair.transmit(self.name, wire.key, frames.encode(refuse))
            return
        resumed = self.session is not None
        if not resumed:
            self._begin(SessionRecord("conn-s", Role.SERVICE, "service", hello.session, hello.token or b""))
        self.machine.accept_link(wire.key, hello, PRINTS, self.pair.clock.now, resumed=resumed)
        self.flush()

    def _tick(self, due: float) -> None:
        if due == self._timer_due and self.running:
            self._timer_due = None
            wanted = self.machine._wake
            if wanted is not None and wanted > self.pair.clock.now:
                self._set_timer(wanted)
            else:
                self._tick_now()

    def _tick_now(self) -> None:
        self.machine.tick(self.pair.clock.now)
        self.flush()

    # --- out -------------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        if not self.running or self.session is None:
            return
        machine, now = self.session, self.pair.clock.now
        for wire in self.pair.wires.values():
            machine.buffered(wire.key, wire.streams[other(self.name)].buffered)
        for effect in machine.flush(now, Stamp("boot", now, now)):
            self._carry_out(effect)
        due = machine.next_wakeup()
        if due is not None:
            self._set_timer(due)

    def _set_timer(self, due: float) -> None:
        """At the time or a little later, as timers are."""
        if self._timer_due is None or due < self._timer_due:
            self._timer_due = max(self.pair.clock.now, due) + self.pair.random.uniform(0, 0.002)
            self.pair.clock.at(self._timer_due, self._tick, self._timer_due)

    def _carry_out(self, effect: Any) -> None:
        now = self.pair.clock.now
        match effect:
            case Transmit():
                self.pair.transmit(self.name, effect.link, effect.data)
                return
            case Execute():
                self._submit(effect.operation, self._completed(effect.operation))
                return
            case CloseLink():
                self.pair.close(effect.link)
                return
            case CreateLabel():
                self._create()
            case Suspect():
                self.suspects.append(now)
            case LinkUp():
                self.heard_at = now
                if self.bulk and LABEL not in self.machine.lanes:
                    self._create()
            case SessionFailed():
                raise AssertionError(f"{self.name}: {effect}")
            case _:
                pass
        self.events.append((now, effect))
        if self.name == "c" and isinstance(effect, Suspect | Recovered | LinkDown | LinkUp):
            self.pair.dialling(effect)

    # --- the store and the programs --------------------------------------------------------------------------------

    def _submit(self, operation: Any, done: Callable[[Any], None]) -> None:
        self._waiting.append((operation, done))
        self._commit_soon()

    def _commit_soon(self) -> None:
        if not self._committing and self._waiting:
            self._committing = True
            self.pair.clock.at(self.pair.clock.now + COMMIT, self._commit)

    def _commit(self) -> None:
        self._committing = False
        if not self.running:
            return
        waiting, self._waiting = self._waiting, []
        for operation, done in waiting:
            done(self._tables.execute(operation))
        self._fill()
        self.flush()

    def _completed(self, operation: Any) -> Callable[[Any], None]:
        def done(outcome: Any) -> None:
            self.machine.completed(operation, outcome)
            if isinstance(operation, Receive) and outcome.rows:
                self.received += outcome.size
                row = outcome.first_row + outcome.rows
                self._submit(AckIn(operation.channel, row), self._taken)

        return done

    def _taken(self, outcome: Any) -> None:
        """The program has read, and acknowledged."""
        self.machine.lanes.taken(LABEL, outcome.messages, outcome.size)

    def _create(self) -> None:
        if self._creating:
            return
        self._creating = True
        connection, epoch = self.machine.record.connection_id, self.pair.random.randbytes(8)
        self._submit(SaveSession(self.machine.record), lambda _: None)
        self._submit(CreateChannel(connection, LABEL, Durability.DISK, epoch), self._created)

    def _created(self, record: Any) -> None:
        self.machine.lanes.add(record, InboxLimits(), RELIABLE)

    def _fill(self) -> None:
        """Bulk: keep the outbox full."""
        if not self.bulk or self._putting or LABEL not in self.machine.lanes:
            return
        out = self.machine.lanes[LABEL].out
        if out.stored_next - max(out.acked, self._first_number(out)) >= BULK_QUEUE:
            return
        self._putting = True
        stamp = Stamp("boot", self.pair.clock.now, self.pair.clock.now)
        put = self.machine.lanes.put(LABEL, (b"x" * BULK_MESSAGE,) * BULK_QUEUE, stamp)
        self._submit(put, self._put_done(put))

    @staticmethod
    def _first_number(out: Any) -> int:
        return int(out._known[1])

    def _put_done(self, put: Any) -> Callable[[Any], None]:
        def done(outcome: Any) -> None:
            self._putting = False
            self.machine.completed(put, outcome)

        return done


class Pair:
    """Two daemons, the path between them, and the links on it. `bulk` names the sides that always have something to send."""

    def __init__(self, seed: int, timer: Timer, there: Way, back: Way, *, bulk: str = "", redial: bool = True) -> None:
        """`there` leads from the connecting side to the service, `back` from the service to it."""
        self.random = Random(seed)
        self.clock = Clock()
        self.timer = timer
        self.ways = {"s": there, "c": back}
        """By receiving side."""
        self.redial = redial
        self.wires: dict[int, Wire] = {}
        self.dials = 0
        self.dials_cancelled = 0
        self._keys = count(1)
        self._dial: int | None = None
        """The number of the attempt under way."""
        self._greeting: int | None = None
        """The link on which hello is about to be said or has been."""
        self.sides = {name: Side(self, name, bulk=name in bulk) for name in "cs"}
        self._open()

    def microseconds(self) -> int:
        return 10**15 + int(self.clock.now * 1_000_000)

    @property
    def link_changes(self) -> int:
        """How often the connecting side went over to another link."""
        return sum(isinstance(event, LinkUp) for _, event in self.sides["c"].events) - 1

    # --- links -----------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        """The connecting side has an open data channel on a new connection."""
        wire = Wire(next(self._keys))
        for name in "cs":
            wire.streams[name] = Stream(
                self.clock,
                self.random,
                self.timer,
                self.ways[name],
                self.ways[other(name)],
                lambda message, name=name: self.sides[name].take(wire, message),
                lambda name=name: self._drained(wire, other(name)),
            )
        self.wires[wire.key] = wire
        side = self.sides["c"]
        side.machine.open_link(wire.key, PRINTS, self.clock.now, self.microseconds())
        self._greeting = wire.key
        side.flush()

    def _drained(self, wire: Wire, name: str) -> None:
        """Messages have left the engine's buffer: the machine is told once little is left."""
        if wire.streams[other(name)].buffered <= BUFFER_LOW:
            self.sides[name].flush()

    def transmit(self, name: str, key: Any, data: bytes) -> None:
        wire = self.wires.get(key)
        if wire is not None:
            wire.streams[other(name)].send(data)

    def close(self, key: Any) -> None:
        """One end closes the connection. The other is told (closing is said beside the stream)."""
        wire = self.wires.pop(key, None)
        if wire is None:
            return
        for name, stream in wire.streams.items():
            stream.close()
            self.ways[name].carry(self.clock, self.random, self._closed, name, key)

    def _closed(self, name: str, key: Any) -> None:
        side = self.sides[name]
        if side.session is not None and side.running:
            side.machine.link_lost(key, self.clock.now)
            side.flush()

    # --- dialling --------------------------------------------------------------------------------------------------

    def dialling(self, effect: Any) -> None:
        """What the connecting side makes of what its machine reports."""
        if isinstance(effect, LinkUp):
            self._dial = self._greeting = None
        elif isinstance(effect, Recovered):
            if self._dial is not None and self._greeting is None:
                self._dial = None
                self.dials_cancelled += 1
        elif isinstance(effect, LinkDown) and effect.link == self._greeting:
            self._greeting = self._dial = None
            self.clock.at(self.clock.now + PAUSE, self._begin_dial)
        elif not isinstance(effect, LinkDown) or effect.current:
            self._begin_dial()

    @property
    def _wanted(self) -> bool:
        machine = self.sides["c"].machine
        return self.redial and (machine.current is None or machine.suspect)

    def _begin_dial(self) -> None:
        if self._dial is not None or not self._wanted:
            return
        self.dials += 1
        self._dial = number = self.dials
        seconds = dial_time(self.random, self.ways["s"], self.ways["c"])
        self.clock.at(self.clock.now + min(seconds, ATTEMPT), self._dialled, number, seconds < ATTEMPT)
        self.clock.at(self.clock.now + ATTEMPT, self._give_up, number)

    def _dialled(self, number: int, opened: bool) -> None:
        if number == self._dial and opened and self._wanted:
            self._open()

    def _give_up(self, number: int) -> None:
        if number != self._dial:
            return
        self._dial = None
        key, self._greeting = self._greeting, None
        if key is not None:
            self.sides["c"].machine.drop_link(key, self.clock.now)
            self.sides["c"].flush()
        self.clock.at(self.clock.now + PAUSE, self._begin_dial)
