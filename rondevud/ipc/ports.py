"""What the socket needs of the rest of the daemon.

`House` is the daemon as the methods of the socket see it, `Channel` one label of one connection, `Producer` and `Receiver`
the two halves of an attachment to it. Everything is called in the event loop. What is refused is raised as
`rondevud.errors.RequestError` with a code of ``rondevu_client.errors``; any other exception is a bug of the daemon.

Rows and answers are maps that msgpack can carry, with the keys of the socket's specification; the socket hands them on
unchanged. `target` is a connection's name or id, or ``service:USER/FQN``; one that does not exist: ``unknown_target``.

Listeners are called synchronously, in the order in which things happened. They never raise, never block and never call
back into the object that calls them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias

from rondevud.access import Subject
from rondevud.events import EventBus, Scope

Data: TypeAlias = dict[str, Any]
"""A map that goes over the socket: text keys, values that msgpack can carry."""
Payload: TypeAlias = str | bytes

ReceiveMode: TypeAlias = Literal["exclusive", "shared", "observe"]

Direction: TypeAlias = Literal["out", "in", "both", "failed"]


class ProducerListener(Protocol):
    """Hears what became of a producer's messages. Numbers are the producer's own."""

    def accepted(self, upto_seq: int) -> None:
        """Every number up to `upto_seq` is decided: stored, unless `rejected` named it before."""

    def rejected(self, seq: int, code: str, message: str) -> None:
        """Not stored and never will be; always before the `accepted` that passes `seq`."""

    def removed(self, from_seq: int, upto_seq: int, reason: str) -> None:
        """Accepted, but will not reach the peer; before the `acknowledged` that passes it."""

    def sent(self, upto_seq: int) -> None:
        """Everything up to `upto_seq` was handed to a data channel, what was rejected or removed aside; if asked for."""

    def acknowledged(self, upto_seq: int) -> None:
        """The peer's store has everything up to `upto_seq`, what was removed aside."""

    def detached(self, reason: str) -> None:
        """The producer is dead (taken over, channel closed, access withdrawn); nothing comes after this."""


class Producer(Protocol):
    """The sending half of an attachment; one live object per channel and producer name."""

    @property
    def last_seq(self) -> int:
        """The last number decided; 0 = none yet."""

    @property
    def rejected(self) -> Sequence[tuple[int, str]]:
        """Which of the last 1,024 decided numbers were rejected, and with which code."""

    @property
    def acknowledged_seq(self) -> int: ...

    @property
    def removed(self) -> int:
        """How many of this producer's messages were ever removed."""

    def send(self, first_seq: int, payloads: list[Payload], max_age: float | None) -> None:
        """Take messages numbered ``first_seq, first_seq + 1, …``; the outcome comes through the listener, never from here.

        Never blocks and never raises. Numbers may jump, and numbers that were decided before are answered again in the
        same way and not stored again. Payloads are within `Channel.max_message`, `max_age` is positive seconds or None;
        the listener may be called from within. The window is the socket's business, not the producer's.
        """

    def confirm_sent(self) -> None:
        """From now on the listener hears `sent`, at once when there is something to say; before the first `send`."""

    def reject(self, first_seq: int, count: int, code: str, message: str) -> None:
        """The socket refuses these numbers (beyond the window, a bad option, too large): they are spent.

        The listener hears `rejected` for each at once (earlier numbers may still be undecided) and an `accepted` that
        passes them in their turn. They are kept like the producer's own rejections, so that a client that lost its
        socket learns of them.
        """

    def close(self) -> None:
        """The client is gone: parked messages are forgotten, the listener is not called again. May be repeated."""


class ReceiverListener(Protocol):
    """Hears what a receiver delivers. Tags count 1, 2, … per receiver, over messages and gaps."""

    def messages(self, tag: int, rows: list[tuple[Any, ...]]) -> None:
        """Messages tagged ``tag, tag + 1, …``; a row is ``[payload, id, enqueued, attempt]``.

        Never more than the credit. A receiver over a whole service adds the connection id as fifth element.
        """

    def gap(self, tag: int, gap: Data) -> None:
        """Messages that will not come: ``{first, next, count, reason}``; takes a tag and a credit."""

    def missed(self, count: int) -> None:
        """`count` messages were not copied to this observer (no credit, or paused)."""

    def detached(self, reason: str) -> None:
        """The receiver is dead; nothing comes after this."""


class Receiver(Protocol):
    """The receiving half of an attachment. Delivers nothing before the first credit."""

    def credit(self, n: int) -> None:
        """`n` more messages or gaps may be delivered; adds up (to at most 2³¹)."""

    def ack(self, upto_tag: int) -> None:
        """Everything up to `upto_tag` needs no more delivery; cumulative. Numbers not yet delivered count as the last."""

    def pause(self) -> None:
        """Deliver nothing until `resume`: the client does not read. May be called from within a listener's call."""

    def resume(self) -> None: ...

    def close(self) -> None:
        """The client is gone: what it had not acknowledged goes back to the inbox. May be repeated."""


class BufferWatch(Protocol):
    """Waits for what is under way to the peer to become little."""

    threshold: int
    """Bytes."""

    def close(self) -> None: ...


class Channel(Protocol):
    """One label of one connection, whether or not a link is up."""

    @property
    def connection_id(self) -> str: ...

    @property
    def label(self) -> str: ...

    @property
    def state(self) -> str:
        """``connecting`` (no link, or not announced on it), ``open``, ``closing`` or ``closed``."""

    @property
    def waiting(self) -> int:
        """Messages and gaps in the inbox that nobody has acknowledged."""

    @property
    def waiting_bytes(self) -> int: ...

    @property
    def queue_bytes(self) -> int:
        """Payload bytes in the outbox."""

    @property
    def max_message(self) -> int:
        """Bytes of the largest payload this daemon takes here (text: its UTF-8 length)."""

    @property
    def ephemeral(self) -> bool:
        """Whether its connection ends with the programs that declared it, and with the daemon."""

    @property
    def acknowledges(self) -> bool | None:
        """Whether the peer acknowledges; None before the first contact."""

    def verdict(self, producer: bytes | None) -> Mapping[str, str]:
        """``{"in": …, "out": …}`` for the attachment that is being made: each ``new``, ``resumed`` or ``gap``.

        Asked once per attach, after its producer and receiver were opened and before the receiver has credit. ``new``
        is for the attach that made the channel, the first one to ask.
        """

    async def open_producer(self, name: bytes | None, listener: ProducerListener, takeover: bool) -> Producer:
        """The producer of that name (1 to 64 bytes), or one of which nothing is kept.

        Raises ``producer_in_use`` when the name has a live producer here and `takeover` is false; with `takeover` the
        old one's listener hears ``detached("taken_over")``.
        """

    def watch_buffer(self, threshold: int, heard: Callable[[int], None]) -> BufferWatch:
        """Call `heard` with the bytes sent and not acknowledged whenever they have fallen from above `threshold` to it."""

    async def open_receiver(self, mode: ReceiveMode, listener: ReceiverListener, takeover: bool) -> Receiver:
        """``exclusive``: alone; ``shared``: each message to one of them; ``observe``: any number beside them, with copies.

        An exclusive receiver beside others (or others beside it): raises ``in_use``, or takes the place of all of them.
        """


class Keys(Protocol):
    """The keys of user names. A key is described as ``{username, public_key, file}``; without one: ``no_key``."""

    def list(self) -> list[Data]: ...

    def show(self, username: str) -> Data: ...

    def export(self, username: str) -> Data:
        """``{username, private_key}``"""

    def generate(self, username: str) -> Data:
        """Raises ``key_exists``."""

    def import_key(self, username: str, private_key: str, *, force: bool) -> Data:
        """With ``kept``, the file of the key that was replaced; another one is with `force` only, else ``key_exists``."""

    def delete(self, username: str) -> Data:
        """Raises ``key_in_use`` while a service of that user is declared."""


class Care(Protocol):
    """The store's health."""

    async def examine(self) -> list[Data]:
        """``[{kind, where, found, meaning, advice, harmless}]``, what is not as it should be."""

    async def back_up(self, path: str, *, force: bool) -> Data:
        """A copy of the store: ``{path, bytes}``. Raises ``file_exists`` (without `force`) and ``backup_failed``."""


class Sessions(Protocol):
    """The sessions that are kept. All but `list` are for those that a service took: others are ``bad_target``."""

    def list(self, target: str | None) -> list[Data]: ...

    async def forget(self, target: str, *, force: bool) -> Data:
        """``{connection_id, purged: {out, in}}``. Raises ``not_empty`` where messages wait, unless `force`."""

    async def kick(self, target: str, pause: float) -> Data:
        """``{connection_id, was_connected}``; for `pause` seconds the peer is told to try later."""

    async def block(self, target: str) -> Data:
        """``{connection_id, blocked, was_connected}``"""

    async def unblock(self, target: str) -> Data:
        """``{connection_id, blocked}``"""


class House(Protocol):
    """The daemon."""

    @property
    def version(self) -> str: ...

    @property
    def instance(self) -> str:
        """Changes with each start of the daemon."""

    @property
    def events(self) -> EventBus: ...

    @property
    def keys(self) -> Keys: ...

    @property
    def care(self) -> Care: ...

    @property
    def sessions(self) -> Sessions: ...

    async def status(self) -> Data: ...

    def services(self) -> list[Data]: ...

    def connections(self) -> list[Data]: ...

    def channels(self, target: str) -> list[Data]: ...

    async def claim(self, username: str) -> Data: ...

    async def check(self, username: str) -> Data:
        """``{username, available, holder, public_key, own_key, claimed_at, expires_at}``."""

    async def expose(self, username: str, fqn: str, options: Data, ephemeral: bool, owner: object) -> Data:
        """``{service_id, uuid, expires_at, created}``; idempotent by user and FQN, else ``conflict``."""

    async def reload(self) -> Data:
        """Take the configuration file over: ``{added, changed, removed, restart_needed}``, names and keys.

        Raises ``bad_config`` when the file cannot be used, ``restart_needed`` when only a restart can use it; nothing is
        changed then.
        """

    async def withdraw(self, username: str, fqn: str, drain: float | None, keep_connections: bool) -> Data:
        """`drain` in seconds, None = the default (10)."""

    async def connect(
        self,
        *,
        username: str | None,
        fqn: str | None,
        uuid: str | None,
        name: str | None,
        options: Data,
        ephemeral: bool,
        owner: object,
    ) -> Data:
        """``{connection_id, name, state, created}``. Either `username` and `fqn` are given or `uuid`, never both."""

    async def close(self, target: str, drain: float | None) -> Data: ...

    async def reconnect(self, target: str) -> Data: ...

    async def wait(self, target: str, what: Literal["connected", "drained"], timeout: float | None) -> Data:
        """Answers when it is so; raises ``timeout`` after `timeout` seconds (None: no limit; cancelled with its socket)."""

    async def why(self, target: str) -> Data: ...

    def snapshot(self, target: str | None) -> list[Data]:
        """Rows ``{connection_id, name, state, peer_name, kind, channels: [{label, state, waiting, attached}]}``."""

    async def channel(self, target: str, label: str, options: Data | None, create: bool) -> Channel:
        """The channel of that label, made when there is none and `create` is true (else ``unknown_channel``).

        `options` that differ from an existing channel's: ``options_differ``, naming them. ``service:USER/FQN`` (only
        with `create` false) answers one that covers all connections of the service, for observers.
        """

    async def close_channel(self, target: str, label: str) -> Data: ...

    async def queue(self, target: str, label: str) -> Data:
        """At least ``queue_size``, ``queue_bytes``, ``buffered_amount`` (outbox), ``waiting``, ``waiting_bytes``."""

    async def purge(self, target: str, label: str, direction: Direction, id_: str | None) -> Data:
        """`id_` is of a message that is set aside, with ``failed`` only. Raises ``unknown_message``."""

    async def failed(self, target: str, label: str, most: int) -> list[Data]:
        """Messages that are set aside, the oldest first: ``{id, attempts, size, text, head, enqueued_at, failed_at}``."""

    async def put_back(self, target: str, label: str, id_: str | None) -> Data:
        """Let one of them (None: all) wait again. Raises ``unknown_message``."""

    def subject(self, target: str) -> Subject | None:
        """What rules of access say of a target, also of one that is ending; None for one that does not exist."""

    def resolve(self, target: str) -> Scope:
        """The events of a target, for subscriptions."""

    def owner_gone(self, owner: object) -> None:
        """The socket that made declarations as `owner` is closed; called once for each, also when it made none."""
