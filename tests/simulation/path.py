"""A path that loses, delays and swallows packets, an ordered reliable stream over it, and the clock of all that (virtual).

Modelled, after what SCTP does (RFC 9260) and how aiortc does it:

* messages are cut into packets of at most `PACKET` bytes, which do not share packets; a message is heard when all of its
  packets, and all of those before it, are there (one lost packet holds up everything behind it);
* each packet is lost with the same chance, independently of the others, and takes a delay of its own, so that packets
  overtake each other; every packet that arrives is answered with an acknowledgement (all up to a number, and what is there
  beyond), which is lost and delayed likewise;
* a packet that three acknowledgements have passed over is sent again at once, the window halved (fast retransmit), once
  for all losses in what was under way;
* one timer for the earliest packet without acknowledgement: when it ends, everything that is not acknowledged is sent
  again, in order, within a window of one packet. `Timer` says how long it is: it may double until a packet that was sent
  only once is acknowledged;
* a congestion window: three packets in the beginning, one more for each acknowledgement in slow start, one more a round
  trip after that; four packets at least after a fast retransmit, one after a time-out; `WINDOW` packets at most; no more
  than four new packets at once (two while it recovers);
* the engine's buffer: messages not yet cut up. That happens one message at a time, when no packet of the one before waits.

Not modelled: a limit of bandwidth and queues in the network, bursts of loss, delayed acknowledgements, a receiver's window,
bundling, measuring the round trip (the timers of the issue are constants), ICE consent and the end of an association that
gives up: the machine's own limits come long before those.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Any

PACKET = 1_200
"""Bytes of a packet at most."""

WINDOW = 32
"""Packets under way at most."""

MISSES = 3
"""Acknowledgements that pass over a packet until it is taken for lost."""


class Clock:
    """The time of a simulation, and what is to happen in it."""

    def __init__(self, now: float = 1_000.0) -> None:
        self.now = now
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = count()

    def at(self, time: float, action: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._events, (time, next(self._numbers), action, arguments))

    def run_until(self, end: float, over: Callable[[], bool] = lambda: False) -> None:
        """Let everything happen that is due before `end`, or until `over`."""
        events = self._events
        while events and events[0][0] < end and not over():
            self.now, _, action, arguments = heapq.heappop(events)
            action(*arguments)
        if not over():
            self.now = end


@dataclass(frozen=True)
class Timer:
    """Seconds until a packet is sent again, the first time; doubled each time after that, or not."""

    first: float
    doubling: bool

    def __str__(self) -> str:
        return f"{self.first:g} s {'doubling' if self.doubling else 'constant'}"


@dataclass
class Way:
    """One direction of a path. `least` and `most` are the bounds of the delay, in seconds; `loss` is a share."""

    least: float
    most: float
    loss: float
    blocked: bool = False
    """Whether nothing that is sent from now on arrives."""

    def carry(self, clock: Clock, random: Random, arrive: Callable[..., None], *arguments: Any) -> None:
        if not self.blocked and random.random() >= self.loss:
            clock.at(clock.now + self.least + (self.most - self.least) * random.random(), arrive, *arguments)


class _Packet:
    __slots__ = ("acknowledged", "again", "message", "misses", "number", "sent", "size", "under_way")

    def __init__(self, number: int, size: int, message: bytes | None) -> None:
        self.number = number
        self.size = size
        self.message = message
        """What is complete with this packet; None: more is to come."""
        self.sent = 0
        self.misses = 0
        self.acknowledged = self.again = self.under_way = False


class Stream:
    """Both ends of one direction: messages are sent here, and `deliver` hears them at the other side."""

    def __init__(
        self,
        clock: Clock,
        random: Random,
        timer: Timer,
        there: Way,
        back: Way,
        deliver: Callable[[bytes], None],
        drained: Callable[[], None],
    ) -> None:
        """`drained` is called when messages have left the buffer."""
        self.buffered = 0
        """Bytes in the engine's buffer."""
        self.closed = False
        self.packets = 0
        """Sent so far, repetitions included."""
        self._clock = clock
        self._random = random
        self._timer = timer
        self._there, self._back = there, back
        self._deliver = deliver
        self._drained = drained
        self._messages: deque[bytes] = deque()
        self._unsent: deque[_Packet] = deque()
        self._sent: deque[_Packet] = deque()
        self._next = 1
        self._acknowledged_upto = 0
        self._window: float = 3 * PACKET
        self._threshold: float = WINDOW * PACKET
        self._under_way = 0
        """Bytes sent and neither acknowledged nor taken for lost."""
        self._grown = 0
        self._recovered_at: int | None = None
        """The number with whose acknowledgement a fast retransmit is over; None: there is none."""
        self._repeat_first = False
        self._newest = 0
        """The last packet that an acknowledgement was the first to name."""
        self._backoff = 0
        self._expiry: float | None = None
        self._expiry_due: float | None = None
        """When the event comes that looks at `_expiry`."""
        # the other end
        self._received_upto = 0
        self._beyond: dict[int, _Packet] = {}

    def send(self, message: bytes) -> None:
        self._messages.append(message)
        self.buffered += len(message)
        self._transmit()

    def close(self) -> None:
        """Nothing is sent and nothing arrives any more."""
        self.closed = True
        self._messages.clear()
        self._unsent.clear()
        self._sent.clear()
        self._expiry = None

    # --- the sending end -------------------------------------------------------------------------------------------

    def _cut(self) -> None:
        """Take the next message out of the buffer."""
        message = self._messages.popleft()
        self.buffered -= len(message)
        for start in range(0, len(message), PACKET):
            last = start + PACKET >= len(message)
            size = min(PACKET, len(message) - start)
            self._unsent.append(_Packet(self._next, size, message if last else None))
            self._next += 1

    def _transmit(self) -> None:
        burst = (4 if self._recovered_at is None else 2) * PACKET
        window = min(self._under_way + burst, self._window)
        if not self._repeat(window):
            return
        drained = False
        while self._under_way < window:
            if not self._unsent:
                if not self._messages:
                    break
                self._cut()
                drained = True
            packet = self._unsent.popleft()
            self._sent.append(packet)
            self._put(packet)
            if self._expiry is None:
                self._start_timer()
        if drained:
            self._clock.at(self._clock.now, self._tell_drained)

    def _tell_drained(self) -> None:
        if not self.closed:
            self._drained()

    def _repeat(self, window: float) -> bool:
        """Send again what is to be sent again; whether the window has room for more."""
        first = True
        for packet in self._sent:
            if packet.again:
                if self._repeat_first:
                    self._repeat_first = False
                elif self._under_way >= window:
                    return False
                packet.again = False
                packet.misses = 0
                self._put(packet)
                if first:
                    self._start_timer()
            first = False
        return True

    def _put(self, packet: _Packet) -> None:
        packet.sent += 1
        packet.under_way = True
        self._under_way += packet.size
        self.packets += 1
        self._there.carry(self._clock, self._random, self._arrive, packet)

    def _land(self, packet: _Packet) -> None:
        if packet.under_way:
            packet.under_way = False
            self._under_way -= packet.size

    def _start_timer(self) -> None:
        self._expiry = self._clock.now + self._timer.first * 2**self._backoff
        if self._expiry_due is None or self._expiry_due > self._expiry:
            self._expiry_due = self._expiry
            self._clock.at(self._expiry, self._look_at_timer, self._expiry)

    def _look_at_timer(self, due: float) -> None:
        if due != self._expiry_due:
            return
        self._expiry_due = None
        if self._expiry is None:
            return
        if self._expiry > self._clock.now:  # it was started again since
            self._expiry_due = self._expiry
            self._clock.at(self._expiry, self._look_at_timer, self._expiry)
            return
        self._expire()

    def _expire(self) -> None:
        self._expiry = None
        self._backoff = min(self._backoff + 1, 6) if self._timer.doubling else 0
        for packet in self._sent:
            self._land(packet)
            packet.again = not packet.acknowledged
        self._recovered_at = None
        self._threshold = max(self._window / 2, 4 * PACKET)
        self._window = PACKET
        self._grown = 0
        self._transmit()

    def _take_acknowledgement(self, upto: int, beyond: frozenset[int]) -> None:
        if self.closed or upto < self._acknowledged_upto:
            return
        self._acknowledged_upto = upto
        full = self._under_way >= self._window
        sent, moved, size = self._sent, False, 0
        while sent and sent[0].number <= upto:
            packet = sent.popleft()
            if not packet.acknowledged:
                size += packet.size
            if packet.sent == 1:
                self._backoff = 0
            self._land(packet)
            moved = True
        lost = False
        if beyond and sent:
            size += self._take_gaps(beyond)
            lost = self._strike()
        self._adjust_window(upto, moved=moved, full=full, size=size, lost=lost)
        if not sent:
            self._expiry = None
        elif moved:
            self._start_timer()
        self._transmit()

    def _take_gaps(self, beyond: frozenset[int]) -> int:
        size = 0
        self._newest = 0
        for packet in self._sent:
            if packet.number in beyond and not packet.acknowledged:
                packet.acknowledged = True
                packet.again = False
                size += packet.size
                self._land(packet)
                self._newest = packet.number
        return size

    def _strike(self) -> bool:
        """Count against what the newest acknowledged packet has passed over; whether something is taken for lost."""
        lost = False
        for packet in self._sent:
            if packet.number > self._newest:
                break
            if not packet.acknowledged:
                packet.misses += 1
                if packet.misses == MISSES:
                    packet.misses = 0
                    packet.again = True
                    self._land(packet)
                    lost = True
        return lost

    def _adjust_window(self, upto: int, *, moved: bool, full: bool, size: int, lost: bool) -> None:
        if self._recovered_at is not None:
            if upto >= self._recovered_at:
                self._recovered_at = None
            return
        if moved and full:
            if self._window <= self._threshold:
                self._window += min(size, PACKET)
            else:
                self._grown += size
                if self._grown >= self._window:
                    self._grown = 0
                    self._window += PACKET
            self._window = min(self._window, WINDOW * PACKET)
        if lost:
            self._threshold = self._window = max(self._window / 2, 4 * PACKET)
            self._grown = 0
            self._recovered_at = self._sent[-1].number
            self._repeat_first = True

    # --- the receiving end -----------------------------------------------------------------------------------------

    def _arrive(self, packet: _Packet) -> None:
        if self.closed:
            return
        if packet.number > self._received_upto:
            self._beyond[packet.number] = packet
            while (following := self._beyond.pop(self._received_upto + 1, None)) is not None:
                self._received_upto += 1
                if following.message is not None:
                    self._deliver(following.message)
                    if self.closed:
                        return
        upto, beyond = self._received_upto, frozenset(self._beyond)
        self._back.carry(self._clock, self._random, self._take_acknowledgement, upto, beyond)
