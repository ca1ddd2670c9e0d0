"""One session of ``rondevu.link.1`` (sans-I/O): its links, which come and go, and its channels, which stay.

    frames, outcomes of the store, time ──► Session ──► effects: frames, store operations, events

The owner feeds `open_link`/`accept_link`, `receive`, `completed`, `tick`, …, then calls `flush` once and carries out what
it returns, in order. Nothing here waits, reads a clock or knows what a socket is.

What lives here: the hello, links that supersede each other, liveness, the engine's buffer. Channels live in `lanes`, their
halves in `outgoing` and `incoming`. Of several links of a session the one with the highest number is current; from its
welcome on, older ones are ignored.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from rondevud.durable import frames
from rondevud.durable.effects import (
    CloseLink,
    Effect,
    Execute,
    LinkDown,
    LinkKey,
    LinkUp,
    Recovered,
    SessionFailed,
    Suspect,
    Transmit,
)
from rondevud.durable.frames import GoodbyeCode, RefuseCode
from rondevud.durable.handshake import Fingerprints, is_proof, prove
from rondevud.durable.incoming import InboxLimits
from rondevud.durable.lanes import Lanes
from rondevud.durable.states import LINK_TRANSITIONS, LinkState, check
from rondevud.errors import PeerError, StoreError, StoreFailed
from rondevud.records import (
    ChannelRecord,
    Durability,
    Operation,
    PeerKind,
    Role,
    SaveSession,
    SessionRecord,
    Stamp,
)
from rondevud.transport.base import ChannelOptions

HELLO_TIMEOUT = 10.0
"""Seconds from the opening of the data channel to the welcome."""

SUSPECT_AFTER = 4.0
"""Seconds of silence; four heartbeats of the peer if that is longer. Silences over 4 s come 0.2 to 0.5 times an hour at 5 %
loss with heartbeats of 1 s (measured)."""

DEAD_AFTER = 15.0
"""Seconds of silence after which a link is given up even if no other has taken over; 15 heartbeats if that is longer."""

HEARTBEAT_MOST = 60.0
"""Seconds between two heartbeats that a peer may announce at most: slower ones count as this."""

NOTHING_HEARD = 0
"""The number of a ping that says: I have heard nothing of you for so long that I suspect this link."""

PINGS_UNANSWERED = 4
"""Pings in a heartbeat while the last one is not answered: what follows a lost packet is what has it sent again before its
timer ends. Silences over 4 s on an idle link with 5 % loss fell from one an hour to none in 20 hours (simulated)."""

GOODBYE_TIMEOUT = 1.0
"""Seconds of silence for which the answer to a goodbye is waited for: aiortc never transmits what was sent right before
``close()``."""

GOODBYE_MOST = 5.0
"""Seconds that it is waited for at most. While the peer is heard, the goodbye is on its way behind what was sent before it:
256 KiB take more than two seconds at 100 KB/s."""

GOODBYES_OVER = GOODBYE_MOST + 1.0
"""Seconds after which no goodbye is under way any more."""

LATE = 1.0
"""Seconds by which a timer may fire late before that time counts as one in which this process did not run."""

BUFFER_LEAST = 32 * 1024
BUFFER_MOST = 256 * 1024
"""Bounds of what is left in the engine's buffer: a ping behind 256 KiB at 1 % loss took 1 to 4 s, behind 16 MiB 5 to 9 s."""

CONFLICTS = 3
CONFLICT_WINDOW = 600.0
"""Superseded so often within so many seconds by hellos of somebody else: two copies of one state directory are running."""

HELLOS = 5
"""Hellos on one link at most (unknown sessions, older links)."""


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """What a session needs to know. Durations are seconds, sizes bytes."""

    name: str = ""
    """The connection's name, as the other side shows it."""
    daemon: str = "rondevud"
    max_message: int = 16 * 1024 * 1024
    heartbeat: float = 1.0
    session_expiry: float | None = 7 * 86_400.0
    max_channels: int = 64
    reserved_labels: bool = False
    """Whether programs may use labels that begin with ``rondevu``: towards plain peers only."""


@dataclass(slots=True)
class _Link:
    key: LinkKey
    number: int
    fingerprints: Fingerprints
    now: float
    state: LinkState = LinkState.GREETING
    greeted: bool = False
    session: bytes = b""
    """The session that the last hello on this link named."""
    hellos: int = 0
    peer_max: int = 0
    peer_heartbeat: float = 1.0
    """Seconds after which the peer says something."""
    deadline: float | None = None
    parted: float = 0.0
    """When goodbye was said."""
    heard: float = 0.0
    said: float = 0.0
    silent: bool = False
    """Whether nothing has been heard for too long."""
    unheard: bool = False
    """Whether the peer says the same of this side."""
    buffered: int = 0
    pings: int = 0
    pinged: dict[int, float] = field(default_factory=dict)
    asked: float | None = None
    """Since when no ping has been answered."""
    round_trip: float | None = None
    confirmed: deque[tuple[float, int]] = field(default_factory=deque)
    confirmed_bytes: int = 0

    def __post_init__(self) -> None:
        self.heard = self.said = self.now
        self.deadline = self.now + HELLO_TIMEOUT

    @property
    def suspect(self) -> bool:
        return self.silent or self.unheard

    @property
    def suspect_after(self) -> float:
        """Seconds of silence."""
        return max(SUSPECT_AFTER, 4 * min(self.peer_heartbeat, HEARTBEAT_MOST))

    @property
    def dead_after(self) -> float:
        """Seconds of silence."""
        return max(DEAD_AFTER, 15 * min(self.peer_heartbeat, HEARTBEAT_MOST))

    def enter(self, state: LinkState) -> None:
        check(LINK_TRANSITIONS, self.state, state)
        self.state = state


class Session:
    """The machine. `channels` are those of the store; `clock_us` is microseconds since 1970 at the daemon's start."""

    def __init__(
        self,
        record: SessionRecord,
        channels: Iterable[tuple[ChannelRecord, InboxLimits, ChannelOptions]],
        settings: LinkSettings,
        *,
        clock_us: int,
        random: Callable[[int], bytes],
        offer: Callable[[Durability], int | None] = lambda _durability: None,
    ) -> None:
        """`offer`: see `Lanes`."""
        self.record = record
        self.settings = settings
        self.counters: dict[str, int] = {}
        self.lanes = Lanes(
            channels,
            settings.max_channels,
            plain=record.kind is PeerKind.PLAIN,
            connecting=record.role is Role.CONNECTING,
            clock_us=clock_us,
            random=random,
            emit=self._emit,
            offer=offer,
        )
        self._random = random
        self._links: dict[LinkKey, _Link] = {}
        self._current: _Link | None = None
        self._effects: list[Effect] = []
        self._greeted = 0
        """Highest link number in a hello that was sent."""
        self._conflicts: deque[float] = deque()
        self._now = 0.0
        self._wake: float | None = None
        self._woke = -math.inf
        """When this process last went on after it had not run for a while."""

    # --- links -----------------------------------------------------------------------------------------------------

    @property
    def current(self) -> LinkKey | None:
        """The link that carries the session; None while there is none."""
        return self._current.key if self._current else None

    @property
    def suspect(self) -> bool:
        """Whether the current link has been silent for too long."""
        return self._current is not None and self._current.suspect

    @property
    def round_trip(self) -> float | None:
        """Seconds of the last ping on the current link; None when there was none."""
        return self._current.round_trip if self._current else None

    def silence(self, now: float) -> float | None:
        """Seconds since something was heard on the current link."""
        return now - self._current.heard if self._current else None

    def open_link(self, key: LinkKey, fingerprints: Fingerprints, now: float, wall_us: int) -> None:
        """Connecting side: a data channel is open. Hello goes out when its link number has been stored."""
        self._now = now
        if not self.record.session:
            self._draw_session()
        number = max(self.record.link + 1, wall_us)
        self._links[key] = _Link(key, number, fingerprints, now)
        self._save(link=number)

    def accept_link(
        self, key: LinkKey, hello: frames.Hello, fingerprints: Fingerprints, now: float, *, resumed: bool
    ) -> None:
        """Service side: `hello`, which `handshake.judge_hello` found good, has come on a link of this session."""
        self._now = now
        link = _Link(key, hello.link, fingerprints, now, peer_max=hello.max_message, peer_heartbeat=hello.heartbeat)
        self._links[key] = link
        self._save(link=hello.link, contacted=True, peer_name=hello.name[:255], absent=0.0, kind=PeerKind.LINK)
        proof = prove("welcome", self.record.token, self.record.session, hello.link, fingerprints) if resumed else None
        settings = self.settings
        welcome = frames.Welcome(
            resumed,
            hello.link,
            proof,
            settings.daemon,
            settings.max_message,
            settings.heartbeat,
            settings.session_expiry,
        )
        self._transmit(link, frames.encode(welcome))
        self._up(link, resumed=resumed)

    def plain_contact(self) -> None:
        """The peer is a plain one: data channels without frames carry the labels."""
        self.lanes.plain = True
        self._save(contacted=True, absent=0.0, kind=PeerKind.PLAIN)

    def link_lost(self, key: LinkKey, now: float, reason: str = "the connection broke") -> None:
        """The WebRTC connection of a link has ended."""
        self._now = now
        link = self._links.get(key)
        if link is not None:
            self._end(link, "transport", reason)
            self._remove(link)

    def drop_link(self, key: LinkKey, now: float) -> None:
        """Give up a link that has not been welcomed yet: with a goodbye if hello has been said."""
        self._now = now
        link = self._links.get(key)
        if link is None or link.state is not LinkState.GREETING:
            return
        if link.greeted:
            self._goodbye(link, GoodbyeCode.TIMEOUT, "given up before the welcome came")
        else:
            self._close(link)

    def say_goodbye(self, code: GoodbyeCode, reason: str, now: float) -> None:
        """End all links with a goodbye; `CloseLink` follows when it was answered or `GOODBYE_TIMEOUT` has passed."""
        self._now = now
        for link in list(self._links.values()):
            if link.state in {LinkState.GREETING, LinkState.UP}:
                self._goodbye(link, code, reason)

    @property
    def links(self) -> int:
        """Links that have not been closed yet, goodbyes under way included."""
        return len(self._links)

    def _up(self, link: _Link, *, resumed: bool) -> None:
        older = self._current
        link.enter(LinkState.UP)
        link.deadline = None
        if self.lanes.plain:
            self.lanes.end_plain()
        self.lanes.attach(link.peer_max)
        self._current = link
        for other in list(self._links.values()):
            if other is not link and other.number < link.number and other.state in {LinkState.UP, LinkState.GREETING}:
                self._supersede(other)
        self._effects.append(LinkUp(link.key, resumed, older is not None))

    def _supersede(self, link: _Link) -> None:
        self._effects.append(LinkDown(link.key, False, GoodbyeCode.SUPERSEDED, "a newer link took over"))
        link.enter(LinkState.OLD)
        self._part(link, GoodbyeCode.SUPERSEDED, "a newer link took over")

    def _goodbye(self, link: _Link, code: GoodbyeCode, reason: str) -> None:
        self._part(link, code, reason[:500])
        self._end(link, code, reason)
        link.enter(LinkState.CLOSING)

    def _part(self, link: _Link, code: GoodbyeCode, reason: str) -> None:
        self._transmit(link, frames.encode(frames.Goodbye(code, reason)))
        link.parted = self._now
        link.deadline = self._now + GOODBYE_TIMEOUT

    def _end(self, link: _Link, code: str, reason: str) -> None:
        """The link stops serving the session (its connection may live on for the goodbye)."""
        current = link is self._current
        if current:
            self._current = None
            self.lanes.ask_store()  # what the peer has confirmed by now counts
            self.lanes.detach()
        if link.state in {LinkState.GREETING, LinkState.UP}:
            self._effects.append(LinkDown(link.key, current, code, reason))

    def _remove(self, link: _Link) -> None:
        link.enter(LinkState.CLOSED)
        del self._links[link.key]

    def _close(self, link: _Link) -> None:
        self._remove(link)
        self._effects.append(CloseLink(link.key))

    # --- the record ------------------------------------------------------------------------------------------------

    def _draw_session(self) -> None:
        self.record = replace(
            self.record,
            session=self._random(frames.SESSION_BYTES),
            token=self._random(frames.TOKEN_BYTES),
            welcomed=False,
        )

    def _save(self, **changes: Any) -> None:
        self.record = replace(self.record, **changes)
        self._effects.append(Execute(SaveSession(self.record)))

    def _saved(self, record: SessionRecord) -> None:
        for link in self._links.values():
            fits = record.session == self.record.session and record.link >= link.number
            if self.record.role is Role.CONNECTING and link.state is LinkState.GREETING and not link.greeted and fits:
                self._hello(link)

    def _hello(self, link: _Link) -> None:
        record, settings = self.record, self.settings
        link.greeted = True
        link.session = record.session
        link.hellos += 1
        self._greeted = max(self._greeted, link.number)
        proof = None
        if record.welcomed:
            proof = prove("hello", record.token, record.session, link.number, link.fingerprints)
        hello = frames.Hello(
            record.session,
            link.number,
            None if proof else record.token,
            proof,
            settings.name,
            settings.daemon,
            settings.max_message,
            settings.heartbeat,
        )
        self._transmit(link, frames.encode(hello))

    # --- frames ----------------------------------------------------------------------------------------------------

    def receive(self, key: LinkKey, data: bytes | str, now: float) -> None:
        """One message of the data channel of a link."""
        self._now = now
        self._check_late()
        link = self._links.get(key)
        if link is None:
            return
        self._heard(link, now)
        try:
            frame = frames.decode(data)
            if isinstance(frame, frames.Goodbye):
                self._on_goodbye(link, frame)
            elif link.state is LinkState.GREETING:
                self._on_greeting(link, frame)
            elif link is self._current:
                self._on_frame(link, frame)
        except PeerError as error:
            self._count("protocol_errors")
            if link.state in {LinkState.GREETING, LinkState.UP}:
                self._goodbye(link, GoodbyeCode.PROTOCOL, str(error))

    def _on_goodbye(self, link: _Link, frame: frames.Goodbye) -> None:
        if link.state in {LinkState.OLD, LinkState.CLOSING}:
            self._close(link)
            return
        stranger = link is self._current and link.number == self._greeted and self.record.role is Role.CONNECTING
        if frame.code is GoodbyeCode.SUPERSEDED and stranger:  # a later hello of ours would explain it
            self._superseded_by_stranger()
        self._goodbye(link, frame.code, frame.reason)

    def _superseded_by_stranger(self) -> None:
        self._conflicts.append(self._now)
        while self._conflicts[0] < self._now - CONFLICT_WINDOW:
            self._conflicts.popleft()
        if len(self._conflicts) >= CONFLICTS:
            reason = "another daemon speaks for this session: two copies of one state directory are running"
            self._effects.append(SessionFailed("session_conflict", reason))

    def _on_greeting(self, link: _Link, frame: frames.Frame) -> None:
        if isinstance(frame, frames.Welcome):
            self._on_welcome(link, frame)
        elif isinstance(frame, frames.Refuse):
            self._on_refuse(link, frame)
        else:
            raise PeerError(f"{type(frame).__name__} instead of a welcome")

    def _on_welcome(self, link: _Link, frame: frames.Welcome) -> None:
        if not link.greeted or frame.link != link.number or link.session != self.record.session:
            raise PeerError("a welcome to another hello")
        if self.record.welcomed and not (
            frame.resumed and is_proof(frame.proof, "welcome", self.record, link.number, link.fingerprints)
        ):
            self._count("impostors")
            raise PeerError("a welcome without proof that this is the other side of the session")
        link.peer_max = frame.max_message
        link.peer_heartbeat = frame.heartbeat
        if self._current is not None and self._current.number > link.number:
            self._supersede(link)
            return
        self._save(welcomed=True, contacted=True, kind=PeerKind.LINK)
        self._up(link, resumed=frame.resumed)

    def _on_refuse(self, link: _Link, frame: frames.Refuse) -> None:
        again = link.hellos < HELLOS
        if frame.code is RefuseCode.UNKNOWN_SESSION and again:
            if link.session == self.record.session:  # else another link has been told already
                self._count("sessions_forgotten")
                self._draw_session()
            self._hello_again(link)
        elif frame.code is RefuseCode.OLDER_LINK and again and not self._has_newer(link):
            link.number = max(self.record.link, frame.link) + 1
            self._hello_again(link)
        else:
            if frame.code is RefuseCode.DENIED:
                self._effects.append(SessionFailed("denied", frame.reason))
            self._end(link, frame.code, frame.reason)
            self._close(link)

    def _hello_again(self, link: _Link) -> None:
        link.greeted = False
        self._save(link=max(self.record.link, link.number))

    def _has_newer(self, link: _Link) -> bool:
        return any(other.number > link.number for other in self._links.values())

    def _on_frame(self, link: _Link, frame: frames.Frame) -> None:
        match frame:
            case frames.Ping():
                self._transmit(link, frames.encode(frames.Pong(frame.n)))
                self._hears(link, frame.n != NOTHING_HEARD)
            case frames.Pong():
                link.asked = None
                sent = link.pinged.pop(frame.n, None)
                if sent is not None:
                    link.round_trip = self._now - sent
            case frames.Data() | frames.Piece() | frames.Ack() | frames.Skip() | frames.Channel():
                confirmed = self.lanes.receive(frame, self.settings.max_message)
                if confirmed:
                    link.confirmed.append((self._now, confirmed))
                    link.confirmed_bytes += confirmed
            case _:
                raise PeerError(f"{type(frame).__name__} on a link that is up")

    # --- outcomes of the store -------------------------------------------------------------------------------------

    def completed(self, operation: Operation[Any], outcome: Any) -> int:
        """The outcome of an operation of this session: its result, or a `StoreError`.

        Operations come back in the order in which they were submitted. Answers how many removed messages are in doubt.
        """
        if isinstance(operation, SaveSession):
            if isinstance(outcome, StoreFailed):
                self._effects.append(Execute(SaveSession(self.record)))
            elif isinstance(outcome, StoreError):  # would not get better by being tried again
                self._effects.append(SessionFailed("store_conflict", f"the session could not be stored: {outcome}"))
            else:
                self._saved(operation.session)
            return 0
        return self.lanes.completed(operation, outcome)

    # --- time ------------------------------------------------------------------------------------------------------

    def next_wakeup(self) -> float | None:
        """When `tick` is due, in the time of `now`; None while nothing is."""
        due = [link.deadline for link in self._links.values() if link.deadline is not None]
        if self._current is not None:
            link = self._current
            due.append(self._next_ping(link))
            due.append(link.heard + (link.dead_after if link.silent else link.suspect_after))
        self._wake = min(due, default=None)
        return self._wake

    def tick(self, now: float) -> None:
        """Time has passed: heartbeats, silence, goodbyes and hellos that were not answered."""
        self._now = now
        self._check_late()
        for link in list(self._links.values()):
            if link.deadline is not None and now >= link.deadline:
                self._overdue(link)
            elif link is self._current:
                self._check_liveness(link)

    def _check_late(self) -> None:
        """Time in which this process did not run is not silence of the peer."""
        if self._wake is None or self._now <= self._wake + LATE:
            return
        seconds = self._now - self._wake
        self._wake, self._woke = None, self._now
        for link in self._links.values():
            link.heard = min(self._now, link.heard + seconds)
            link.parted += seconds
            if link.deadline is not None:
                link.deadline += seconds

    def _overdue(self, link: _Link) -> None:
        if link.state is LinkState.GREETING:
            self._goodbye(link, GoodbyeCode.TIMEOUT, "no welcome in time")
            return
        patience = min(link.heard + GOODBYE_TIMEOUT, link.parted + GOODBYE_MOST)
        if self._now < patience:
            link.deadline = patience
        else:
            self._close(link)

    def _check_liveness(self, link: _Link) -> None:
        silence = self._now - link.heard
        if silence >= link.dead_after:
            self._goodbye(link, GoodbyeCode.TIMEOUT, f"nothing heard for {silence:.0f} s")
            return
        if silence >= link.suspect_after and not link.silent:
            if not link.unheard:
                self._effects.append(Suspect(link.key, silence, unheard=False))
            link.silent = True
            self._ping(link)
        elif self._now >= self._next_ping(link):
            self._ping(link)

    def ping(self, now: float) -> None:
        """Measure the round trip of the current link now; the next heartbeat need not say it."""
        self._now = now
        if self._current is not None:
            self._ping(self._current)

    @property
    def pinging(self) -> bool:
        """Whether the answer to the last ping on the current link has not come."""
        return self._current is not None and bool(self._current.pinged)

    def _next_ping(self, link: _Link) -> float:
        """When the next ping is due if nothing else is said."""
        heartbeat = self.settings.heartbeat
        patience = max(heartbeat, 2 * (link.round_trip or 0.0))
        if link.asked is None or self._now < link.asked + patience:
            return link.said + heartbeat
        return link.said + heartbeat / PINGS_UNANSWERED

    def _ping(self, link: _Link) -> None:
        link.pings += 1
        number = NOTHING_HEARD if link.silent else link.pings
        link.pinged = {number: self._now}
        link.asked = self._now if link.asked is None else link.asked
        self._transmit(link, frames.encode(frames.Ping(number)))

    def _heard(self, link: _Link, now: float) -> None:
        link.heard = now
        if link.silent:
            link.silent = False
            if not link.unheard:
                self._effects.append(Recovered(link.key))
            if link is self._current:
                self._ping(link)  # which tells the peer that it is heard

    def _hears(self, link: _Link, hears: bool) -> None:
        """The peer says whether it hears this side; of what it did not hear while this process stood still it need not."""
        if link.unheard is not hears or (not hears and self._now < self._woke + link.suspect_after):
            return
        link.unheard = not hears
        if not link.silent:
            silence = self._now - link.heard
            self._effects.append(Recovered(link.key) if hears else Suspect(link.key, silence, unheard=True))

    # --- output ----------------------------------------------------------------------------------------------------

    def buffered(self, key: LinkKey, amount: int) -> None:
        """What the engine's buffer of a link holds, in bytes; to be told before `flush`."""
        link = self._links.get(key)
        if link is not None:
            link.buffered = amount

    def flush(self, now: float, stamp: Stamp) -> list[Effect]:
        """Everything to be done now, in order."""
        self._now = now
        link = self._current
        if link is not None:
            for data in self.lanes.announcements():
                self._transmit(link, data)
        self.lanes.store_received(stamp)
        if link is not None:
            for data in self.lanes.acknowledgements():
                self._transmit(link, data)
            self._pump(link)
        self.lanes.ask_store()
        effects, self._effects = self._effects, []
        return effects

    def _pump(self, link: _Link) -> None:
        """Send while the engine's buffer may take more."""
        limit = self._buffer_limit(link)
        while link.buffered < limit:
            data = self.lanes.next_frame()
            if data is None:
                return
            self._transmit(link, data)

    def _buffer_limit(self, link: _Link) -> int:
        """Bytes: what the peer confirmed within the last second, within bounds."""
        while link.confirmed and link.confirmed[0][0] < self._now - 1.0:
            link.confirmed_bytes -= link.confirmed.popleft()[1]
        return min(BUFFER_MOST, max(BUFFER_LEAST, link.confirmed_bytes))

    def _transmit(self, link: _Link, data: bytes) -> None:
        link.said = self._now
        link.buffered += len(data)
        self._effects.append(Transmit(link.key, data))

    def _emit(self, effect: Effect) -> None:
        self._effects.append(effect)

    def _count(self, counter: str) -> None:
        self.counters[counter] = self.counters.get(counter, 0) + 1
