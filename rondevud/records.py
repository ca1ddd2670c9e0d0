"""What the durable layer and the stores say to each other.

An *operation* is a frozen description of one piece of work for a store; its result type is its type parameter. A store
executes operations in the order in which they were submitted, each one atomically, and answers in that same order, after
the commit that made them durable (see `rondevud.durable.ports.Store`). Operations that may touch many rows do at most
`SLICE` of them and answer with ``more=True``; who submitted them submits them again.

Message numbers (``seq``) are 64-bit integers that rise by one and jump at a start of the daemon; ``next`` is always the
first number *behind* a range. 0 stands for "none yet": real numbers start at 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import count, repeat
from operator import itemgetter
from typing import Generic, NamedTuple, TypeAlias, TypeVar

Result = TypeVar("Result")

#: A message: `str` is text, `bytes` is binary, `None` closes the channel behind what was queued before it.
Payload: TypeAlias = str | bytes | None

SLICE = 5_000
"""Rows that one operation deletes at most, so that a large purge does not stall confirmations."""

PAGE_MESSAGES = 2_048
"""Rows that one page of a queue holds at most."""

PAGE_BYTES = 1024 * 1024
"""Payload bytes after which a page ends; it holds one message at least, whatever its size."""

REJECTED_KEPT = 1_024
"""Rejected numbers that are remembered for each producer."""


class Durability(StrEnum):
    DISK = "disk"
    MEMORY = "memory"


class Role(StrEnum):
    """Which side of a session this daemon is."""

    CONNECTING = "connecting"
    SERVICE = "service"


class PeerKind(StrEnum):
    """What the other side of a session has shown itself to be."""

    UNKNOWN = ""
    """No contact so far."""
    LINK = "link"
    """It speaks ``rondevu.link.1``: from then on nothing else is taken for it."""
    PLAIN = "plain"
    """A WebRTC peer without link: messages without frames, numbers and acknowledgements."""


class Reason(StrEnum):
    """Why numbers will not come (link frame 12)."""

    EXPIRED = "expired"
    OVERFLOW = "overflow"
    PURGED = "purged"
    TOO_LARGE = "too_large"
    DAMAGED = "damaged"
    LOST = "lost"
    RESTART = "restart"


@dataclass(frozen=True, slots=True)
class Stamp:
    """A moment, for ages: within one boot ages are differences of `boottime`, across boots of `wall`, never below 0."""

    boot: str
    """The kernel's boot id."""
    boottime: float
    """CLOCK_BOOTTIME in seconds."""
    wall: float
    """Seconds since 1970."""


class Removal(NamedTuple):
    """Numbers ``first … next - 1`` will not come; `messages` is how many messages that were, None where nobody knows."""

    first: int
    next: int
    reason: Reason
    messages: int | None


class OutMessage(NamedTuple):
    seq: int
    payload: Payload


def payload_size(payload: Payload) -> int:
    """Bytes of a payload: text counts as UTF-8, the closing message as nothing.

    Raises `UnicodeEncodeError` for text that UTF-8 cannot carry.
    """
    if isinstance(payload, bytes):
        return len(payload)
    if payload is None:
        return 0
    return len(payload) if payload.isascii() else len(payload.encode())


def payload_sizes(payloads: Sequence[Payload]) -> list[int]:
    """`payload_size` of each, at a fraction of the price where all are binary, or all plain text."""
    types = set(map(type, payloads))
    if types == {bytes} or (types == {str} and all(map(str.isascii, payloads))):  # type: ignore[arg-type]
        return list(map(len, payloads))  # type: ignore[arg-type]
    return list(map(payload_size, payloads))


def out_messages(first: int, payloads: Iterable[Payload]) -> Iterator[OutMessage]:
    """Messages with consecutive numbers from `first` on; a third of the price of calling `OutMessage` for each."""
    fields = zip(count(first), payloads)
    return map(tuple.__new__, repeat(OutMessage), fields)


OutItem: TypeAlias = OutMessage | Removal


class ProducerRange(NamedTuple):
    """Numbers ``first … last`` of one producer (its own numbers), `messages` messages of them."""

    producer: int
    first: int
    last: int
    messages: int


class Removed(NamedTuple):
    """What one operation took out of an outbox."""

    first: int
    next: int
    reason: Reason
    messages: int
    size: int
    """Payload bytes."""
    producers: tuple[ProducerRange, ...]


class InMessage(NamedTuple):
    """One row of an inbox. `row` rises with each row of the channel; it never starts again."""

    row: int
    epoch: bytes
    seq: int
    payload: Payload
    enqueued: float
    """When this daemon stored it, seconds since 1970."""
    tries: int = 0
    """Deliveries that have been counted against it (see `rondevud.failed`)."""


class InGap(NamedTuple):
    """A row of an inbox that says which messages will not come."""

    row: int
    epoch: bytes
    removal: Removal
    enqueued: float


def in_messages(first_row: int, epoch: bytes, messages: Sequence[OutMessage], enqueued: float) -> Iterator[InMessage]:
    """Rows of an inbox from `first_row` on for messages that have just been received, none of them a closing one."""
    fields = zip(
        count(first_row),
        repeat(epoch),
        map(itemgetter(0), messages),
        map(itemgetter(1), messages),
        repeat(enqueued),
        repeat(0),
    )
    return map(tuple.__new__, repeat(InMessage), fields)


InItem: TypeAlias = InMessage | InGap


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """One session; connection ids are unique in a store, session ids are not (a daemon may connect to its own service)."""

    connection_id: str
    role: Role
    declaration: str
    """Name of the connection (connecting side) or ``USER/FQN`` of the service."""
    session: bytes
    """16 random bytes, drawn by the connecting side."""
    token: bytes
    """32 random bytes, drawn by the connecting side. Secret."""
    link: int = 0
    """Highest link number seen or dialled."""
    welcomed: bool = False
    """Whether a welcome has been seen (connecting side): from then on the token itself is not sent."""
    contacted: bool = False
    """Whether there has been a link at all."""
    peer_name: str = ""
    """What the other side calls this connection; shown, never trusted."""
    closed: bool = False
    """Ended for good; the row stays while the inbox of one of its channels holds something."""
    absent: float = 0.0
    """Seconds this daemon has run since the last link."""
    kind: PeerKind = PeerKind.UNKNOWN
    answerer: str = ""
    """Service side, plain peer: the answerer id under which the signalling server knows it. The server's word, no proof."""
    target: str = ""
    """Connecting side: what is dialled, ``USER/FQN`` or ``uuid/UUID``; what waits here is for nobody else."""
    blocked: bool = False
    """Service side: whether the peer is refused until somebody says otherwise."""


class ChannelRecord(NamedTuple):
    """A channel as the store knows it. Queue counts are messages and payload bytes."""

    id: int
    connection_id: str
    label: str
    durability: Durability
    options: bytes = b""
    """msgpack map of the channel's own limits, opaque to the store."""
    epoch: bytes = b""
    """8 random bytes that name the numbers this side gives."""
    next: int = 1
    """The number behind the last one given."""
    acked: int = 0
    """Highest ``recv_next`` the peer has confirmed in this epoch; 0 = nothing."""
    acked_count: int = 0
    """Messages acknowledged in this epoch."""
    peer_epoch: bytes = b""
    """Epoch of the numbers the peer gives; empty = unknown."""
    recv_next: int = 0
    """The number behind the last one stored from the peer; 0 = nothing in this epoch."""
    recv_count: int = 0
    """Messages stored from the peer in this epoch, those it reported as lost included."""
    out_count: int = 0
    out_bytes: int = 0
    in_count: int = 0
    """Rows of the inbox, gaps included: whether something waits."""
    in_bytes: int = 0
    in_gaps: int = 0
    """Rows of the inbox that are gaps, those found damaged included."""
    out_closed: int = 0
    """Number of this side's closing message; 0 = not closed."""
    in_closed: int = 0
    """1 = the peer's closing message has been stored; 2 = and this side has opened the label anew since."""
    attached: bool = False
    """Whether a receiving client has ever attached: decides at which attempt old messages begin."""
    failed: int = 0
    """Messages that are set aside because programs died of them, and their payload bytes."""
    failed_bytes: int = 0


class ProducerRecord(NamedTuple):
    """What is kept of one producer in one channel. Numbers are the producer's own."""

    id: int
    name: bytes
    last_seq: int = 0
    """The last number decided."""
    rejected: tuple[tuple[int, str], ...] = ()
    """Which of the last `REJECTED_KEPT` numbers were rejected, and with which code."""
    acknowledged_seq: int = 0
    removed: int = 0
    """How many of its messages were ever removed."""
    unreported: int = 0
    """How many of its messages were removed since the `OpenProducer` before this one."""


class Operation(Generic[Result]):
    """Base of all operations; the parameter is the type of the result."""

    __slots__ = ()


# --- sessions and declarations -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SaveSession(Operation[None]):
    """Insert or replace the row of ``session.connection_id``."""

    session: SessionRecord


@dataclass(frozen=True, slots=True)
class DeleteSession(Operation[None]):
    """Remove a session with its channels, queues and producers."""

    connection_id: str


class Lacking(NamedTuple):
    """What a channel had stored that is not there any more: its database went back."""

    connection_id: str
    """Empty when the channel itself is not there any more, nor known by name."""
    label: str
    channel: int
    first: int
    next: int
    """Numbers ``first … next - 1`` had been given in the outbox; the two are equal when none of them lack."""
    rows: int
    """How many rows of the inbox lack; of those that a program had acknowledged nobody misses anything."""

    again: int
    """How many rows of the inbox come again at most, although they had been acknowledged."""

    def as_text(self) -> str:
        name = (
            f"channel {self.label!r} of {self.connection_id}"
            if self.connection_id
            else f"channel {self.channel}, gone,"
        )
        numbers = f"the numbers {self.first} to {self.next - 1} of its outbox" if self.next > self.first else ""
        rows = f"{self.rows} rows of its inbox" if self.rows else ""
        again = f"that {self.again} messages of its inbox were taken" if self.again else ""
        return f"{name} does not know {', '.join(filter(None, (numbers, rows, again))) or 'all it had stored'}"


class Sessions(NamedTuple):
    sessions: list[SessionRecord]
    channels: list[ChannelRecord]
    damaged: list[str]
    """Connection ids whose session row or one of whose channel rows failed its checksum; they are not in the lists,
    and their rows have been set aside (moved to the table ``damaged_rows``), not deleted."""
    lacking: tuple[Lacking, ...] = ()
    """What the database does not know any more. Numbers that lack have been removed as `damaged`."""


@dataclass(frozen=True, slots=True)
class LoadSessions(Operation[Sessions]):
    """All sessions and channels. Reads no message."""


class DeclarationKind(StrEnum):
    SERVICE = "service"
    CONNECTION = "connection"


class Declaration(NamedTuple):
    kind: DeclarationKind
    name: str
    options: bytes
    """msgpack map, opaque to the store."""


@dataclass(frozen=True, slots=True)
class SaveDeclaration(Operation[None]):
    declaration: Declaration


@dataclass(frozen=True, slots=True)
class DeleteDeclaration(Operation[None]):
    kind: DeclarationKind
    name: str


@dataclass(frozen=True, slots=True)
class LoadDeclarations(Operation[list[Declaration]]):
    pass


# --- channels ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CreateChannel(Operation[ChannelRecord]):
    """A new channel of an existing session. Raises `StoreError` when the session has a channel of that label."""

    connection_id: str
    label: str
    durability: Durability
    epoch: bytes
    options: bytes = b""


@dataclass(frozen=True, slots=True)
class SetChannelOptions(Operation[None]):
    channel: int
    options: bytes


@dataclass(frozen=True, slots=True)
class SetEpoch(Operation[None]):
    """New epoch of this side's numbers: nothing is acknowledged in it; what is held keeps its numbers.

    `next` is raised to `floor` if it is below. ``reopen`` also clears ``out_closed`` and makes an ``in_closed`` of 1 2.
    """

    channel: int
    epoch: bytes
    floor: int
    reopen: bool = False


@dataclass(frozen=True, slots=True)
class MarkAttached(Operation[None]):
    """Set ``attached`` of the channel."""

    channel: int


# --- the outbox ----------------------------------------------------------------------------------------------------


class PutResult(NamedTuple):
    first: int
    """Number of the first payload; the others follow by one."""
    next: int
    size: int
    """Payload bytes stored."""
    jumped: bool
    """Whether numbers were skipped before `first` (a `restart` removal was written)."""


@dataclass(frozen=True, slots=True)
class Put(Operation[PutResult]):
    """Store messages behind all others of the outbox and number them, in one transaction.

    The first number is max(channel's next, `floor`); when that leaves numbers out, the removal ``(next, first, restart,
    0)`` is written with it. Text counts its UTF-8 length. A `None` payload (the last one) sets ``out_closed``.
    With `producer` > 0 the producer's row takes ``last_seq = first_seq + len(payloads) - 1`` and `rejected` is merged into
    its list; `producer` < 0 is an unnamed producer that has no row; 0 is nobody.
    """

    channel: int
    payloads: tuple[Payload, ...]
    stamp: Stamp
    floor: int = 0
    max_age: float | None = None
    """Seconds after which the messages expire; None = never."""
    producer: int = 0
    first_seq: int = 0
    rejected: tuple[tuple[int, str], ...] = ()


class Acknowledged(NamedTuple):
    acked: int
    """The channel's ``acked`` now; less than asked for when `more`."""
    messages: int
    size: int
    producers: tuple[ProducerRange, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class Acknowledge(Operation[Acknowledged]):
    """Delete messages and removals below `recv_next` and set ``acked``, ``acked_count`` and the producers' numbers.

    A removal that only begins below `recv_next` stays, cut to begin there. Numbers below the channel's ``acked`` are a
    no-op. Numbers above the channel's ``next`` raise it: the store has been put back, the peer knows more than it does.
    """

    channel: int
    recv_next: int


class RemoveResult(NamedTuple):
    removed: list[Removed]
    """In order of their numbers; ranges cover no number of a message that is still held."""
    more: bool


@dataclass(frozen=True, slots=True)
class Expire(Operation[RemoveResult]):
    """Remove every message older than its own ``max_age`` at `stamp` (not a closing message)."""

    channel: int
    stamp: Stamp


@dataclass(frozen=True, slots=True)
class Trim(Operation[RemoveResult]):
    """Remove the oldest messages (`overflow`) until at most these many and these many bytes are left; None = no limit."""

    channel: int
    max_count: int | None
    max_bytes: int | None


@dataclass(frozen=True, slots=True)
class Remove(Operation[RemoveResult]):
    """Remove the messages numbered ``first … next - 1`` that are held; with ``keep_closing`` not a closing message."""

    channel: int
    first: int
    next: int
    reason: Reason
    keep_closing: bool = True


class OutPage(NamedTuple):
    items: list[OutItem]
    """Messages and removals from the number asked for on, in order and without a hole."""
    next: int
    """The number behind the last item; what follows is read from there."""
    end: bool
    """Whether the page reached the channel's next number."""
    damaged: list[Removed]
    """What this reading found damaged: rows that fail their checksum and holes without a removal. Removals have been
    written for them in the same transaction and stand in `items`."""


@dataclass(frozen=True, slots=True)
class ReadOut(Operation[OutPage]):
    """One page of the outbox. With `first` 0: from the lowest number held (message or removal)."""

    channel: int
    first: int


class NextExpiry(NamedTuple):
    seconds: float | None
    """Until the first message expires; None when none will."""


@dataclass(frozen=True, slots=True)
class FindExpiry(Operation[NextExpiry]):
    channel: int
    stamp: Stamp


# --- the inbox -----------------------------------------------------------------------------------------------------


class ReceiveResult(NamedTuple):
    first_row: int
    """Row of the first item that became a row of the inbox; rows follow by one."""
    rows: int
    size: int
    """Payload bytes stored."""


@dataclass(frozen=True, slots=True)
class Receive(Operation[ReceiveResult]):
    """Store what the peer sent, its epoch and ``recv_next`` in one transaction.

    Raises `StoreError` when the channel's (peer_epoch, recv_next) are not (`expect_epoch`, `expect_next`): the batch
    belongs to another state. Messages become rows of the inbox; so do removals with a count other than 0, except
    `restart`. A `None` payload sets ``in_closed`` and makes no row. A new `epoch` starts ``recv_count`` at 0 and clears
    ``in_closed``; ``recv_count`` rises by the messages and by the counts of `lost` removals.
    """

    channel: int
    expect_epoch: bytes
    expect_next: int
    epoch: bytes
    recv_next: int
    items: tuple[OutItem, ...]
    stamp: Stamp


class InPage(NamedTuple):
    items: list[InItem]
    next_row: int
    """Read on from this row."""
    damaged: int
    """Rows that failed their checksum: each stands in `items` as a gap with reason `damaged`."""
    gaps: int
    """What this reading added to the channel's ``in_gaps``: a damaged row may have been a gap before."""


@dataclass(frozen=True, slots=True)
class ReadIn(Operation[InPage]):
    """One page of the inbox from row `row` on, in order."""

    channel: int
    row: int


class InRemoved(NamedTuple):
    messages: int
    """Rows, gaps included."""
    size: int
    gaps: int
    next: int
    """No row asked for is left below this one; 0 = there was none."""
    more: bool


@dataclass(frozen=True, slots=True)
class AckIn(Operation[InRemoved]):
    """Delete the inbox's rows ``first_row … upto_row - 1``, in whatever order; the others stay.

    `messages`, `size` and `gaps` are what left the channel's counts. With `purge` no program has taken them.
    """

    channel: int
    upto_row: int
    first_row: int = 0
    purge: bool = False


@dataclass(frozen=True, slots=True)
class TrimIn(Operation[InRemoved]):
    """Delete the oldest rows of the inbox until at most these many and these many bytes are left; None = no limit."""

    channel: int
    max_count: int | None
    max_bytes: int | None


# --- producers -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OpenProducer(Operation[ProducerRecord]):
    """The producer of that name in that channel, made when there is none. Its ``last use`` becomes `stamp`.

    Answers ``unreported`` and sets it to 0 in the same transaction.
    """

    channel: int
    name: bytes
    stamp: Stamp


@dataclass(frozen=True, slots=True)
class ForgetProducers(Operation[int]):
    """Forget producers not used for `seconds` at `stamp`; answers how many."""

    seconds: float
    stamp: Stamp
    keep: frozenset[int] = field(default_factory=frozenset)
    """Ids with a live handle."""
