"""The sender's side of one file. No I/O: answers in; what to read and say out.

    OFFERING ──offer said──▶ WAITING ──resume──▶ SENDING ──done / refused──▶ over
        ▲                                           │
        └───────── unknown, lost, a gap, a rejected message ─────────┘

The channel is ordered: when the receiver answers an offer, it has seen all that was sent before, also by a run of the
program that was killed. So `received` in a resume is where to go on, whatever happened.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TypeAlias

from rondevud.ctl.files.protocol import (
    CHUNK,
    WINDOW,
    Answer,
    Chunk,
    Done,
    End,
    Lost,
    NotAMessage,
    Offer,
    Progress,
    Refused,
    Resume,
    Unknown,
)


class State(enum.Enum):
    OFFERING = "offering"
    """The offer has to be said (again)."""
    WAITING = "waiting"
    """It was said; the receiver has not answered."""
    SENDING = "sending"
    DONE = "done"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Read:
    """Bytes of the file that are due."""

    offset: int
    length: int


Due: TypeAlias = Offer | End | Read


class Outgoing:
    """One file on its way out; at most `window` bytes of it are under way, in pieces of `chunk` bytes or what the receiver
    takes."""

    def __init__(self, offer: Offer, *, window: int = WINDOW, chunk: int = CHUNK) -> None:
        self.offer = offer
        self.state = State.OFFERING
        self.received = 0
        """Bytes on the receiver's disk."""
        self.resumed_at: int | None = None
        """What the receiver had when it first answered."""
        self.name = ""
        """What the file is called there, once it is done."""
        self.refusal: Refused | None = None
        self._window = window
        self._own_chunk = self._chunk = chunk
        self._position = 0
        self._end_said = False

    @property
    def over(self) -> bool:
        return self.state in {State.DONE, State.REFUSED}

    def due(self) -> Due | None:
        """What to do now, each time once; None: wait for an answer. What is read is said with `chunk`."""
        if self.state is State.OFFERING:
            self.state = State.WAITING
            return self.offer
        if self.state is not State.SENDING:
            return None
        left = self.offer.size - self._position
        if not left:
            said, self._end_said = self._end_said, True
            return None if said else End(self.offer.id)
        length = min(left, self._chunk)
        under_way = self._position - self.received
        if under_way and under_way + length > self._window:
            return None
        read = Read(self._position, length)
        self._position += length
        return read

    def chunk(self, read: Read, data: bytes) -> Chunk:
        return Chunk(self.offer.id, read.offset, data)

    def offer_again(self) -> None:
        """Something may have been lost on the way: ask the receiver where it stands."""
        if not self.over:
            self.state = State.OFFERING

    def take(self, answer: Answer) -> None:
        """An answer about this file. One to another run is passed over. Raises `NotAMessage` for an impossible one."""
        if self.over:
            return
        if isinstance(answer, Lost):
            self.offer_again()
        elif isinstance(answer, Unknown):
            if self.state is State.SENDING:
                self.offer_again()
        elif answer.run != self.offer.run:
            return
        elif isinstance(answer, Resume):
            self._resume(answer)
        elif isinstance(answer, Progress):
            self._check(answer.received)
            self.received = max(self.received, answer.received)
            self._position = max(self._position, self.received)
        elif isinstance(answer, Done):
            self.state, self.name, self.received = State.DONE, answer.name, self.offer.size
        else:
            self.state, self.refusal = State.REFUSED, answer

    def _resume(self, answer: Resume) -> None:
        self._check(answer.received)
        if self.state is State.OFFERING:
            return  # it is about to be asked again
        self.state = State.SENDING
        self.received = self._position = answer.received
        self._end_said = False
        self._chunk = min(self._own_chunk, answer.chunk)
        if self.resumed_at is None:
            self.resumed_at = answer.received

    def _check(self, received: int) -> None:
        if received > self.offer.size:
            raise NotAMessage(f"the receiver speaks of {received} bytes of a file of {self.offer.size}")
