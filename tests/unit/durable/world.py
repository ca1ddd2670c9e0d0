"""Two daemons' sessions, their stores and the links between them, without any I/O: what the link tests drive.

A node's store commits late: operations wait in `Node.pending` until `Node.commit`, and a crash loses those that wait. A
copy of a node's store can be taken and put back. A link is two queues of frames that never reorder within themselves, may
repeat a frame, and lose their tail when the link dies. Every node keeps a history of what its store has committed: what it
sent, received and removed. The history is part of the store, so it goes back with it.

`World.settle` ends all faults and lets everything run to rest; `World.verify` then holds the two histories against each
other: exactly once and in order, or a spoken gap.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import count, pairwise
from random import Random
from typing import Any

import msgpack

from rondevud.durable import frames, link, outgoing
from rondevud.durable.effects import (
    ChannelResumed,
    CloseLink,
    CreateLabel,
    Execute,
    SessionFailed,
    Transmit,
)
from rondevud.durable.handshake import Fingerprints, judge_hello
from rondevud.durable.incoming import InboxLimits
from rondevud.durable.link import LinkSettings, Session
from rondevud.durable.outgoing import Direction, VerdictKind
from rondevud.errors import StoreError, StoreFailed
from rondevud.records import (
    AckIn,
    CreateChannel,
    DeleteSession,
    Durability,
    LoadSessions,
    OutMessage,
    Put,
    ReadIn,
    ReadOut,
    Reason,
    Receive,
    Remove,
    Role,
    SaveSession,
    SessionRecord,
    SetEpoch,
    Stamp,
    Trim,
)
from rondevud.store.base import Limits
from rondevud.store.memory import MemoryTables
from rondevud.transport.base import RELIABLE, ChannelOptions

PRINTS = Fingerprints(b"o" * 32, b"a" * 32)
LABELS = ("alpha", "beta")
SMALL = Limits(slice_rows=5, page_messages=6, page_bytes=400)
HOUR_US = 3_600_000_000


def shrink(set_attribute: Callable[[Any, str, int], None] = setattr) -> None:
    """Make all bounds so small that a few short messages reach them. Messages over 64 bytes go in pieces."""
    set_attribute(frames, "PACK", 64)
    set_attribute(link, "BUFFER_LEAST", 256)
    set_attribute(link, "BUFFER_MOST", 1024)
    set_attribute(outgoing, "LOADED_MESSAGES", 16)
    set_attribute(outgoing, "LOADED_BYTES", 1024)
    set_attribute(outgoing, "READ_AHEAD", 4)
    set_attribute(outgoing, "IN_FLIGHT_FRAMES", 8)


@dataclass
class Sent:
    """One message in the history of its sender."""

    payload: Any
    seq: int
    removed: Reason | None = None
    unsure: bool = False
    """Stored when its number may have been given before (`Node.unsure`), and no [8] has told since."""
    over: bool = False
    """Acknowledged in an epoch that has ended: what the peer may lose of it later is not told (rule 5 counts one epoch)."""


@dataclass
class History:
    """What one store has committed for one label, in this life of the store."""

    sent: list[Sent] = field(default_factory=list)
    received: list[tuple[str, Any]] = field(default_factory=list)
    """("message", (epoch, seq, payload)) and ("gap", (epoch, Removal))."""

    def copy(self) -> History:
        return History([replace(s) for s in self.sent], list(self.received))


@dataclass
class Disk:
    """A store and its history."""

    tables: MemoryTables = field(default_factory=lambda: MemoryTables(limits=SMALL))
    histories: dict[int, History] = field(default_factory=lambda: defaultdict(History))
    """By channel."""

    def copy(self) -> Disk:
        copy = Disk(self.tables.copy())
        copy.histories.update({channel: history.copy() for channel, history in self.histories.items()})
        return copy

    def history(self, connection: str, label: str) -> History:
        for record in self.tables.execute(LoadSessions()).channels:
            if (record.connection_id, record.label) == (connection, label):
                return self.histories[record.id]
        return History()


class Wire:
    """One link: two queues and two ends that may each be gone."""

    def __init__(self, key: int) -> None:
        self.key = key
        self.queues: dict[str, deque[bytes]] = {"c": deque(), "s": deque()}
        """By receiving side."""
        self.there = {"c": True, "s": True}
        self.accepting = False


def other(side: str) -> str:
    return "s" if side == "c" else "c"


class Node:
    """A daemon: a disk, and while it runs, the sessions on it."""

    def __init__(self, world: World, side: str) -> None:
        self.world = world
        self.side = side
        self.disk = Disk()
        self.copies: list[Disk] = []
        self.pending: deque[tuple[Any, Any]] = deque()
        self.sessions: dict[str, Session] = {}
        self.by_link: dict[int, Session] = {}
        self.creating: set[tuple[str, str]] = set()
        self.making: set[bytes] = set()
        self.gaps = 0
        self.protocol_errors = 0
        """Of sessions that have ended."""
        self.failed: list[SessionFailed] = []
        self.events: list[Any] = []
        """All effects but frames and operations, in order."""
        self.put_next = count(1)
        self.behind = 0
        """Microseconds by which this machine's clock has been set back."""
        self.unsure = False
        """Whether this start may give numbers again that were given before the store went back."""
        self.sure: set[int] = set()
        """Channels of which the peer's [8] has shown by now whether it does."""

    def clock_us(self) -> int:
        """This machine's clock: microseconds since 1970."""
        return self.world.clock_us() - self.behind

    # --- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        loaded = self.disk.tables.execute(LoadSessions())
        assert not loaded.damaged
        for record in loaded.sessions:
            channels = [c for c in loaded.channels if c.connection_id == record.connection_id]
            self._add_session(record, channels)
        if self.side == "c" and not self.sessions:
            record = SessionRecord("conn-c", Role.CONNECTING, "test", b"", b"")
            self._add_session(record, [])

    def _add_session(self, record: SessionRecord, channels: list[Any]) -> Session:
        session = Session(
            record,
            [(channel, self.world.limits, RELIABLE) for channel in channels],
            self.world.settings[self.side],
            clock_us=self.clock_us(),
            random=self.world.random.randbytes,
        )
        self.sessions[record.connection_id] = session
        return session

    def crash(self) -> None:
        self.protocol_errors = self.count_protocol_errors()
        self.pending.clear()
        self.sessions.clear()
        self.by_link.clear()
        self.creating.clear()
        self.making.clear()
        for wire in self.world.wires.values():
            wire.there[self.side] = False
            wire.queues[self.side].clear()

    def count_protocol_errors(self) -> int:
        return self.protocol_errors + sum(s.counters.get("protocol_errors", 0) for s in self.sessions.values())

    def restart(self) -> None:
        """Starts are never so close that one clock could have given the numbers of the start before."""
        self.world.now += 0.001
        for history in self.disk.histories.values():
            self.world.blind.update(sent.payload for sent in history.sent if sent.unsure)
        self.sure.clear()
        self.crash()
        self.start()
        self.unsure = self.side in self.world.went_back and self.behind > 0

    def take_copy(self) -> None:
        self.copies.append(self.disk.copy())
        del self.copies[:-4]

    def set_clock_back(self, hours: int) -> None:
        """The clock is wrong from now on; the daemon sees it at its next start and with its next link."""
        self.behind = min(self.behind + hours * HOUR_US, 9 * HOUR_US)

    def go_back(self, index: int) -> None:
        """The store is replaced by an earlier copy of itself (and the daemon started anew)."""
        if not self.copies:
            return
        self.world.went_back.add(self.side)
        index %= len(self.copies)
        self.disk = self.copies[index].copy()
        del self.copies[index + 1 :]
        self.restart()

    def restore_snapshot(self, index: int) -> None:
        """A virtual machine is put back: its store, and for a while its clock."""
        if self.copies:
            self.set_clock_back(1)
            self.go_back(index)

    # --- store -----------------------------------------------------------------------------------------------------

    def submit(self, operation: Any, done: Any) -> None:
        self.pending.append((operation, done))

    def commit(self, number: int) -> None:
        """One commit of up to `number` operations; then their outcomes."""
        outcomes = []
        for _ in range(min(number, len(self.pending))):
            operation, done = self.pending.popleft()
            try:
                outcome = self.disk.tables.execute(operation)
                self._record(operation, outcome)
            except StoreError as error:
                outcome = error
            outcomes.append((done, outcome))
        for done, outcome in outcomes:
            done(outcome)

    def fail_commit(self) -> None:
        """A commit failed: everything that waits is answered with the failure, in order."""
        waiting, self.pending = self.pending, deque()
        for _, done in waiting:
            done(StoreFailed("the disk is full"))

    def _record(self, operation: Any, outcome: Any) -> None:
        match operation:
            case Put():
                history = self.disk.histories[operation.channel]
                for seq, payload in enumerate(operation.payloads, outcome.first):
                    unsure = self.unsure and operation.channel not in self.sure
                    history.sent.append(Sent(payload, seq, unsure=unsure))
            case SetEpoch():
                self.be_sure(operation.channel)
                held = self.disk.tables._channels[operation.channel].outbox.messages
                for sent in self.disk.histories[operation.channel].sent:
                    sent.over |= held.get(sent.seq) is None
            case Receive():
                history = self.disk.histories[operation.channel]
                for item in operation.items:
                    if isinstance(item, OutMessage):
                        history.received.append(("message", (operation.epoch, item.seq, item.payload)))
                    else:
                        history.received.append(("gap", (operation.epoch, item)))
            case Trim() | Remove():
                history = self.disk.histories[operation.channel]
                for gone in outcome.removed:
                    for sent in history.sent:
                        if gone.first <= sent.seq < gone.next and sent.removed is None:
                            sent.removed = gone.reason
            case ReadOut():
                assert not outcome.damaged, f"{self.side}: {outcome.damaged} called damaged, and nothing is"
            case _:
                pass

    # --- sessions --------------------------------------------------------------------------------------------------

    def session(self) -> Session | None:
        """The session in use: the one the connecting side has, or else the one with the latest link."""
        live = [s for s in self.sessions.values() if not s.record.closed]
        wanted = next((s.record.session for s in self.world.nodes["c"].sessions.values()), b"")
        return max(live, key=lambda s: (s.record.session == wanted, s.record.link), default=None)

    def carry_out(self, session: Session) -> None:
        """Flush a session and do what it wants."""
        wire = self.world.wires.get(session.current)
        if wire is not None:
            session.buffered(wire.key, sum(map(len, wire.queues[other(self.side)])))
        for effect in session.flush(self.world.now, self.world.stamp()):
            if not isinstance(effect, Transmit | Execute):
                self.events.append(effect)
            match effect:
                case Transmit():
                    self.world.transmit(self.side, effect.link, effect.data)
                case Execute():
                    self.execute(session, effect.operation)
                case CloseLink():
                    self.world.close_end(self.side, effect.link)
                case CreateLabel():
                    self.create(session, effect.label, effect.options)
                case SessionFailed():
                    self.failed.append(effect)
                case ChannelResumed():
                    self.gaps += effect.verdict.kind is VerdictKind.GAP
                    lane = session.lanes[effect.label]
                    if effect.verdict.direction is Direction.OUT and not lane.out.needs_epoch:
                        self.be_sure(lane.out.channel)
                case _:
                    pass

    def be_sure(self, channel: int) -> None:
        self.sure.add(channel)
        for sent in self.disk.histories[channel].sent:
            sent.unsure = False

    def execute(self, session: Session, operation: Any) -> None:
        def done(outcome: Any) -> None:
            if session in self.sessions.values():
                session.completed(operation, outcome)
                self.carry_out(session)

        if operation is not None:
            self.submit(operation, done)

    def create(self, session: Session, label: str, options: ChannelOptions = RELIABLE) -> None:
        key = (session.record.connection_id, label)
        if key in self.creating or label in session.lanes:
            return
        self.creating.add(key)
        epoch = self.world.random.randbytes(8)

        def saved(outcome: Any) -> None:
            if isinstance(outcome, StoreError) or session not in self.sessions.values():
                self.creating.discard(key)
                return
            create = CreateChannel(session.record.connection_id, label, Durability.DISK, epoch)
            self.submit(create, created)

        def created(outcome: Any) -> None:
            self.creating.discard(key)
            if session not in self.sessions.values():
                return
            if isinstance(outcome, StoreError):
                self.create(session, label, options)
                return
            session.lanes.add(outcome, self.world.limits, options)
            self.carry_out(session)

        self.submit(SaveSession(session.record), saved)

    # --- programs --------------------------------------------------------------------------------------------------

    def put(self, label: str, sizes: list[int]) -> None:
        session = self.session()
        if session is None:
            return
        lane = session.lanes.get(label)
        if lane is None:
            self.create(session, label)
            return
        if lane.closing or lane.out.closed or lane.incoming.received_closed or lane.drawing:
            return
        payloads = tuple(self._payload(size) for size in sizes)
        self.execute(session, session.lanes.put(label, payloads, self.world.stamp()))

    def _payload(self, size: int) -> str | bytes:
        name = f"{self.side}{next(self.put_next)}"
        return name.ljust(size, ".") if size % 2 else name.encode().ljust(size, b".")

    def close_label(self, label: str) -> None:
        session = self.session()
        if session is not None and label in session.lanes and not session.lanes[label].drawing:
            self.execute(session, session.lanes.close(label, self.world.stamp()))

    def reopen_label(self, label: str) -> None:
        session = self.session()
        if session is not None and label in session.lanes:
            session.lanes.reopen(label)
            self.carry_out(session)

    def trim(self, label: str, left: int) -> None:
        session = self.session()
        if session is not None and label in session.lanes:
            self.execute(session, Trim(session.lanes[label].out.channel, left, None))

    def purge(self, label: str, seqs: int) -> None:
        session = self.session()
        if session is not None and label in session.lanes:
            lane = session.lanes[label]
            first = max(1, lane.out.stored_next - seqs)
            self.execute(session, Remove(lane.out.channel, first, lane.out.stored_next, Reason.PURGED))

    def read(self, label: str) -> None:
        """The program takes one page of its inbox and acknowledges it."""
        session = self.session()
        if session is None or label not in session.lanes:
            return
        channel = session.lanes[label].out.channel

        def page(outcome: Any) -> None:
            if isinstance(outcome, StoreError) or not outcome.items:
                return
            self.submit(AckIn(channel, outcome.next_row), taken)

        def taken(outcome: Any) -> None:
            if isinstance(outcome, StoreError) or label not in session.lanes:
                return
            session.lanes.taken(label, outcome.messages, outcome.size)
            self.carry_out(session)

        self.submit(ReadIn(channel, 0), page)

    def forget(self) -> None:
        """The service's side forgets its session with everything in it."""
        session = self.session()
        if session is not None and self.side == "s":
            self.world.forgotten = True
            self.protocol_errors += session.counters.get("protocol_errors", 0)
            for key in [key for key, owner in self.by_link.items() if owner is session]:
                del self.by_link[key]
                self.world.close_end(self.side, key)
            del self.sessions[session.record.connection_id]
            self._delete(session.record.connection_id)

    def _delete(self, connection: str) -> None:
        def done(outcome: Any) -> None:
            if isinstance(outcome, StoreError):
                self._delete(connection)

        self.submit(DeleteSession(connection), done)

    def tick(self) -> None:
        for session in list(self.sessions.values()):
            session.next_wakeup()
            session.tick(self.world.now)
            self.carry_out(session)


class World:
    """Two nodes, their links, a clock, and one source of chance."""

    def __init__(self, seed: int = 0, *, limits: InboxLimits | None = None, max_message: int = 400) -> None:
        self.random = Random(seed)
        self.faults: list[str] = []
        """Names of the faults that the plain driver gives this world."""
        self.limits = limits or InboxLimits(max_count=12)
        self.settings = {
            "c": LinkSettings(name="c"),
            "s": LinkSettings(name="s", max_message=max_message),
        }
        self.now = 1_000.0
        self.wires: dict[int, Wire] = {}
        self.keys = count(1)
        self.connections = count(1)
        self.went_back: set[str] = set()
        self.blind: set[Any] = set()
        """Messages that a daemon stored on a store and with a clock that both went back, and that was started once more
        before it saw its peer: nothing tells it any longer that it has given their numbers twice."""
        self.forgotten = False
        self.tampered = False
        """Whether a link did what no transport does: repeated a frame, or lost one and went on."""
        self.most_links = 0
        self.nodes = {side: Node(self, side) for side in "cs"}
        for node in self.nodes.values():
            node.start()

    def clock_us(self) -> int:
        return 10 * HOUR_US + int(self.now * 1_000_000)

    def stamp(self) -> Stamp:
        return Stamp("boot", self.now, self.now)

    # --- links -----------------------------------------------------------------------------------------------------

    def pass_time(self, seconds: float, side: str) -> None:
        """Time passes; one side's timers have fired."""
        self.now += seconds
        self.nodes[side].tick()

    def connect(self) -> None:
        """The connecting side opens another link."""
        session = self.nodes["c"].session()
        if session is None or len(self.live_wires()) >= 3:
            return
        wire = Wire(next(self.keys))
        self.wires[wire.key] = wire
        self.now += 0.001
        session.open_link(wire.key, PRINTS, self.now, self.nodes["c"].clock_us())
        self.nodes["c"].by_link[wire.key] = session
        self.nodes["c"].carry_out(session)

    def live_wires(self) -> list[Wire]:
        return [wire for wire in self.wires.values() if all(wire.there.values())]

    def transmit(self, side: str, key: Any, data: bytes) -> None:
        wire = self.wires[key]
        if wire.there[side] and wire.there[other(side)]:
            wire.queues[other(side)].append(data)

    def close_end(self, side: str, key: Any) -> None:
        """One end closes its connection; the other will notice."""
        self.wires[key].there[side] = False
        self.wires[key].queues[side].clear()

    def cut(self, key: int, keep: int) -> None:
        """The link dies: of what is under way the first `keep` frames arrive each way, the rest does not."""
        wire = self.wires[key]
        for side, queue in wire.queues.items():
            while len(queue) > keep:
                queue.pop()
            if not queue and wire.there[side]:
                self.lose_end(side, key)
        wire.there = {"c": False, "s": False}

    def lose_end(self, side: str, key: int) -> None:
        """One end learns that the link is gone."""
        self.wires[key].there[side] = False
        session = self.nodes[side].by_link.pop(key, None)
        if session is not None:
            session.link_lost(key, self.now)
            self.nodes[side].carry_out(session)

    def lose_frame(self, key: int, side: str, index: int) -> None:
        """A message, a piece or a removal is lost on a link that lives on: as from a peer that skips one.

        Only where that can be noticed: behind what came before in its epoch, and before another message (a removal
        names just the number behind it).
        """
        queue = self.wires[key].queues[side]
        session = self.nodes[side].by_link.get(key)
        known = {label for label, lane in session.lanes.items() if lane.incoming._received_next} if session else set()
        places: list[int] = []
        last: dict[str, int] = {}
        for place, array in enumerate(map(msgpack.unpackb, queue)):
            kind, label = array[0], array[1]
            if kind == 8:
                known.discard(label)
            elif kind in {9, 10, 12} and label in known:
                if kind != 12 and label in last:
                    places.append(last[label])
                last[label] = place
        if places:
            self.tampered = True
            del queue[places[index % len(places)]]

    def deliver(self, key: int, side: str, *, repeat: bool = False) -> bool:
        """One frame arrives at `side`; with `repeat` it stays and will arrive again."""
        queue = self.wires[key].queues[side]
        if not queue:
            return False
        self.tampered |= repeat
        data = queue[0] if repeat else queue.popleft()
        node = self.nodes[side]
        session = node.by_link.get(key)
        if session is not None:
            session.receive(key, data, self.now)
            node.carry_out(session)
        elif side == "s" and not self.wires[key].accepting:
            self._greet(key, data)
        self._drained(self.nodes[other(side)], key, queue)
        self.most_links = max(self.most_links, self._links_up())
        return True

    def _drained(self, node: Node, key: int, queue: deque[bytes]) -> None:
        """The engine's buffer has run low: the sender may go on."""
        session = node.by_link.get(key)
        if session is not None and session.current == key and sum(map(len, queue)) < link.BUFFER_LEAST // 2:
            node.carry_out(session)

    def _links_up(self) -> int:
        """Links that one session has at once; those whose other end is gone do not count."""
        live = {wire.key for wire in self.live_wires()}
        sessions = [s for node in self.nodes.values() for s in node.sessions.values()]
        return max((len(live & s._links.keys()) for s in sessions if s.current is not None), default=0)

    def _greet(self, key: int, data: bytes) -> None:
        node, wire = self.nodes["s"], self.wires[key]
        hello = frames.decode(data)
        if not isinstance(hello, frames.Hello) or not wire.there["s"]:
            return
        known = next((s for s in node.sessions.values() if s.record.session == hello.session), None)
        refuse = judge_hello(hello, known.record if known else None, PRINTS)
        if refuse is None and hello.session in node.making:
            refuse = frames.Refuse(frames.RefuseCode.TRY_LATER, "this session is being made", 0)
        if refuse is not None:
            self.transmit("s", key, frames.encode(refuse))
        elif known is not None:
            self._accept(node, known, key, hello, resumed=True)
        else:
            wire.accepting = True
            self._accept_new(node, wire, hello)

    def _accept_new(self, node: Node, wire: Wire, hello: frames.Hello) -> None:
        connection = f"conn-s{next(self.connections)}"
        record = SessionRecord(connection, Role.SERVICE, "test", hello.session, hello.token or b"", link=0)
        node.making.add(hello.session)

        def saved(outcome: Any) -> None:
            wire.accepting = False
            node.making.discard(hello.session)
            if isinstance(outcome, StoreError):
                return
            session = node._add_session(record, [])
            if wire.there["s"]:
                self._accept(node, session, wire.key, hello, resumed=False)

        node.submit(SaveSession(record), saved)

    def _accept(self, node: Node, session: Session, key: int, hello: frames.Hello, *, resumed: bool) -> None:
        node.by_link[key] = session
        session.accept_link(key, hello, PRINTS, self.now, resumed=resumed)
        node.carry_out(session)

    # --- the end ---------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """No more faults: a fresh link, everything delivered, committed, read."""
        for key in list(self.wires):
            self.run()
            self.cut(key, 0)
        for key, wire in self.wires.items():
            for side in "cs":
                wire.queues[side].clear()
                self.lose_end(side, key)
        errors = {side: node.count_protocol_errors() for side, node in self.nodes.items()}
        for _ in range(60):
            session = self.nodes["c"].session()
            if session is not None and session.current is None:
                self.connect()
            self.run()
            if self._at_rest():
                for side, node in self.nodes.items():
                    assert node.count_protocol_errors() == errors[side], f"{side}: protocol errors at the end"
                return
            self.now += 0.5
            for node in self.nodes.values():
                node.tick()
        raise AssertionError(f"no rest: {self._why_no_rest()}")

    def run(self) -> None:
        """Deliver and commit everything that is under way."""
        for _ in range(10_000):
            moved = False
            for key in list(self.wires):
                for side in "cs":
                    moved |= self.deliver(key, side)
            for node in self.nodes.values():
                moved |= bool(node.pending)
                node.commit(100)
            if not moved:
                return
        raise AssertionError("frames without end")

    def _at_rest(self) -> bool:
        """Whether everything is out of both queues; programs go on reading while it is not."""
        rest = True
        for node in self.nodes.values():
            session = node.session()
            rest &= session is not None and session.current is not None
            for record in node.disk.tables.execute(LoadSessions()).channels:
                if session is not None and record.connection_id == session.record.connection_id:
                    rest &= not record.in_count and not record.out_count
                    node.read(record.label)
        return rest

    def _why_no_rest(self) -> str:
        said = []
        for node in self.nodes.values():
            session = node.session()
            if session is None:
                said.append(f"{node.side}: no session")
                continue
            said.append(f"{node.side}: current {session.current} {session.counters} failed {node.failed}")
            said.extend(f"  {channel}" for channel in node.disk.tables.execute(LoadSessions()).channels)
        return "\n".join(said)

    def verify(self) -> None:
        """Every promise about the two histories."""
        for side, node in self.nodes.items():
            assert not node.failed, f"{side}: {node.failed}"
            faultless = not (self.tampered or self.forgotten or self.went_back)
            assert not faultless or not node.count_protocol_errors(), f"{side}: protocol errors, and nobody broke it"
        connections = {side: node.session().record.connection_id for side, node in self.nodes.items()}
        for side in "cs":
            sender, receiver = self.nodes[side].disk, self.nodes[other(side)].disk
            for label in LABELS:
                sent = sender.history(connections[side], label)
                received = receiver.history(connections[other(side)], label)
                self._verify_label(side, label, sent, received)
            self._verify_counts(self.nodes[side])
        if not self.went_back and not self.forgotten:
            assert self.nodes["c"].gaps == self.nodes["s"].gaps == 0, "a gap was spoken, and nothing was lost"

    def _verify_label(self, side: str, label: str, sent: History, received: History) -> None:
        where = f"{side} → {other(side)}, {label}"
        got = [entry for kind, entry in received.received if kind == "message"]
        gaps = [entry for kind, entry in received.received if kind == "gap"]
        arrived = [payload for _, _, payload in got if payload is not None]
        known = {s.payload for s in sent.sent}
        for entries in _between_epochs(received.received, reopened=side in self.went_back):
            for (epoch, seq, _), (next_epoch, next_seq, _) in pairwise(entries):
                assert epoch != next_epoch or seq < next_seq, f"{where}: {next_seq} after {seq}"
            part = [payload for _, _, payload in entries if payload is not None]
            assert len(set(part)) == len(part), f"{where}: twice: {_twice(part)}"
            order = [payload for payload in part if payload in known]
            wanted = [s.payload for s in sent.sent if s.payload in set(order)]
            assert order == wanted, f"{where}: out of order"
        if side not in self.went_back and not self.forgotten:
            assert set(arrived) <= known, f"{where}: nobody sent {set(arrived) - known}"
        peer_lost = self.forgotten or other(side) in self.went_back
        lane = self.nodes[side].session().lanes.get(label)
        if lane is not None and lane.closed and peer_lost:
            return  # both sides were done with this label before one of them lost its memory of it
        got_or_blind = {None, *self.blind, *arrived}
        for message in sent.sent:
            if message.payload not in got_or_blind and not (message.over and peer_lost):
                self._verify_missing(where, message, gaps)
        if not self.went_back and not self.forgotten:
            unspoken = [gap for _, gap in gaps if gap.reason in {Reason.LOST, Reason.DAMAGED}]
            assert not unspoken, f"{where}: {unspoken} spoken, and nothing was lost"
        elif self.went_back == {other(side)} and not self.forgotten:
            self._verify_lost_counts(where, sent, arrived, gaps)

    def _verify_missing(self, where: str, message: Sent, gaps: list[Any]) -> None:
        covering = [gap for _, gap in gaps if gap.next == 0 or gap.first <= message.seq < gap.next]
        assert covering, f"{where}: {message} is missing, and no gap says so: {gaps}"
        if message.removed is None and where[0] not in self.went_back:  # who went back may have removed it before
            assert any(gap.reason is Reason.LOST for gap in covering), f"{where}: {message} is missing as {covering}"

    def _verify_lost_counts(self, where: str, sent: History, arrived: list[Any], gaps: list[Any]) -> None:
        """Only the receiver went back: what it is told to have lost is what it has lost (closing messages aside)."""
        told = sum(gap.messages or 0 for _, gap in gaps if gap.reason is Reason.LOST)
        missing = [s for s in sent.sent if s.payload not in arrived and s.removed is None and s.payload is not None]
        if not any(s.removed for s in sent.sent) and not any(s.payload is None for s in sent.sent):
            assert told == len(missing), f"{where}: {told} called lost, {len(missing)} are"

    def _verify_counts(self, node: Node) -> None:
        session = node.session()
        assert session is not None
        for record in node.disk.tables.execute(LoadSessions()).channels:
            if record.connection_id == session.record.connection_id:
                incoming = session.lanes[record.label].incoming
                assert (incoming.in_count, incoming.in_bytes) == (record.in_count, record.in_bytes)
                assert (incoming.recv_next, incoming.recv_count) == (record.recv_next, record.recv_count)
                assert incoming.closed == session.lanes[record.label].closed, f"{node.side}: {record} half closed"


def _between_epochs(received: list[tuple[str, Any]], *, reopened: bool) -> list[list[tuple[bytes, int, Any]]]:
    """The messages, parted where a change of the sender's epoch was spoken: it may have sent again what was there.

    With `reopened` also where a new epoch followed a closing message: nobody can tell an application that opens a label
    anew from a store that has forgotten that it closed.
    """
    parts: list[list[tuple[bytes, int, Any]]] = [[]]
    for kind, entry in received:
        if kind == "gap":
            if entry[1].next == 0:
                parts.append([])
            continue
        before = parts[-1][-1] if parts[-1] else entry
        if reopened and before[2] is None and before[0] != entry[0]:
            parts.append([])
        parts[-1].append(entry)
    return parts


def _twice(payloads: list[Any]) -> list[Any]:
    seen: set[Any] = set()
    return [p for p in payloads if p in seen or seen.add(p)]


# --- one random step ------------------------------------------------------------------------------------------------


def random_step(world: World, random: Random) -> None:
    """One step of the plain driver, weighted towards traffic."""
    node = world.nodes[random.choice("cs")]
    label = random.choice(LABELS)
    choice = random.random()
    if choice < 0.42 and world.wires:
        key = random.choice(list(world.wires)[-4:])
        for _ in range(random.randint(1, 6)):
            world.deliver(key, node.side)
    elif choice < 0.62:
        node.commit(random.randint(1, 6))
    elif choice < 0.76:
        node.put(label, [random.choice([9, 10, 60, 150]) for _ in range(random.randint(1, 6))])
    elif choice < 0.81:
        world.connect()
    elif choice < 0.85:
        node.read(label)
    elif choice < 0.88:
        node.take_copy()
    elif world.faults:
        name = random.choices(world.faults, [FAULTS[name][0] for name in world.faults])[0]
        FAULTS[name][1](world, random, node, label)


Fault = Callable[[World, Random, Node, str], object]


def _latest(world: World, random: Random) -> int:
    """The key of one of the latest links."""
    return random.choice(list(world.wires)[-3:])


FAULTS: dict[str, tuple[int, Fault]] = {
    "run": (10, lambda world, _random, _node, _label: world.run()),
    "time": (10, lambda world, random, node, _label: world.pass_time(random.choice([0.1, 1.0, 5.0, 20.0]), node.side)),
    "cut": (
        28,
        lambda world, random, _node, _label: world.wires and world.cut(_latest(world, random), random.randint(0, 3)),
    ),
    "restart": (10, lambda _world, _random, node, _label: node.restart()),
    "fail": (5, lambda _world, _random, node, _label: node.fail_commit()),
    "trim": (7, lambda _world, random, node, label: node.trim(label, random.randint(0, 3))),
    "purge": (4, lambda _world, random, node, label: node.purge(label, random.randint(1, 4))),
    "back": (8, lambda _world, random, node, _label: node.go_back(random.randint(0, 3))),
    "forget": (2, lambda world, _random, _node, _label: world.nodes["s"].forget()),
    "clock": (5, lambda _world, random, node, _label: node.set_clock_back(random.randint(1, 3))),
    "snapshot": (6, lambda _world, random, node, _label: node.restore_snapshot(random.randint(0, 3))),
    "close": (6, lambda _world, _random, node, label: node.close_label(label)),
    "reopen": (6, lambda _world, _random, node, label: node.reopen_label(label)),
    "repeat": (
        8,
        lambda world, random, node, _label: (
            world.wires and world.deliver(_latest(world, random), node.side, repeat=True)
        ),
    ),
    "lose": (
        20,
        lambda world, random, node, _label: (
            world.wires and world.lose_frame(_latest(world, random), node.side, random.randint(0, 3))
        ),
    ),
}
"""What goes wrong, by name, and how often: weights among those faults that a world has."""


def drive(seed: int, most_steps: int) -> World:
    """One world of up to `most_steps` random steps, brought to rest and verified; what fails names the seed.

    Each world has only some of the faults: the fewer there are, the further things go between two of a kind.
    """
    random, world = Random(seed), World(seed)
    world.faults = random.sample(sorted(FAULTS), random.randint(2, len(FAULTS)))
    try:
        for _ in range(random.randint(min(20, most_steps), most_steps)):
            random_step(world, random)
        world.settle()
        world.verify()
    except Exception as error:
        error.add_note(f"seed {seed}, up to {most_steps} steps")
        raise
    return world
