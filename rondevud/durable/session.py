"""DurableSession: the shell around the link machine. It has the clock, the store, the data channels and the timers.

    data channels ──messages──► Session (link.py) ──effects──► data channels, store, owner

Whatever feeds the machine asks for a flush; one flush per turn of the loop carries out everything that came of it. What goes
without frames (plain peers, unreliable labels) is carried by `rondevud.durable.plain`, over the same lanes and stores.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, Protocol

import msgpack

from rondevud.durable import frames
from rondevud.durable.channel import DurableChannel
from rondevud.durable.effects import (
    ChannelClosed,
    ChannelOpened,
    ChannelResumed,
    CloseLink,
    CreateLabel,
    Effect,
    Execute,
    LabelRefused,
    LinkDown,
    LinkUp,
    OpenDataChannel,
    OptionsTaken,
    Recovered,
    SessionFailed,
    Suspect,
    Transmit,
)
from rondevud.durable.handshake import Fingerprints
from rondevud.durable.lanes import Lanes
from rondevud.durable.link import GOODBYE_TIMEOUT, LinkSettings, Session
from rondevud.durable.plain import Carry, PlainLink
from rondevud.durable.pool import SERVICE_LABEL
from rondevud.durable.ports import Clock, Configure, Publish, Store
from rondevud.durable.settings import ChannelSettings
from rondevud.durable.states import ChannelState
from rondevud.errors import RequestError, StoreError, TransportError
from rondevud.records import (
    ChannelRecord,
    CreateChannel,
    DeleteSession,
    Durability,
    Operation,
    Payload,
    PeerKind,
    Put,
    Reason,
    SaveSession,
    SessionRecord,
    SetChannelOptions,
    SetEpoch,
    Stamp,
)
from rondevud.transport.base import RELIABLE, ChannelOptions, DataChannel, Message, PeerConnection
from rondevud.transport.base import ConnectionState as TransportState

logger = logging.getLogger(__name__)

BUFFER_LOW = 16 * 1024
"""Bytes in the engine's buffer at which more is handed over."""

CREATE_RETRY = 5.0
"""Seconds until a channel that the peer announced, and that the store did not make, is tried again."""


class Owner(Protocol):
    """Who has the session: a DurableConnection or a DurableService."""

    def link_up(self, session: DurableSession, effect: LinkUp) -> None: ...

    def link_down(self, session: DurableSession, effect: LinkDown) -> None: ...

    def suspect(self, session: DurableSession, effect: Suspect) -> None: ...

    def recovered(self, session: DurableSession, effect: Recovered) -> None: ...

    def session_failed(self, session: DurableSession, effect: SessionFailed) -> None: ...

    def refusal(self, session: DurableSession) -> tuple[str, str] | None:
        """Code and message with which new messages are refused; None = they are taken."""

    def discard(self, connection: PeerConnection) -> None:
        """Close a WebRTC connection in a task of the owner."""


class Environment:
    """What all sessions of a daemon share."""

    def __init__(self, disk: Store, memory: Store, clock: Clock, publish: Publish, start_us: int, version: str) -> None:
        self.disk = disk
        self.memory = memory
        self.clock = clock
        self.publish = publish
        self.start_us = start_us
        """Microseconds since 1970 at the start of the daemon: no number given now is below."""
        self.version = version
        self.ephemeral = False
        """Whether nothing of the sessions is written: `disk` is in memory, too."""
        self.counters: Counter[str] = Counter()

    def count(self, counter: str) -> None:
        self.counters[counter] += 1

    def in_memory(self) -> Environment:
        """The same for sessions of which nothing is to be written: what others keep on disk they keep in memory."""
        other = Environment(self.memory, self.memory, self.clock, self.publish, self.start_us, self.version)
        other.counters = self.counters
        other.ephemeral = True
        return other


class _Link:
    """A data channel that carries, or is to carry, the session."""

    def __init__(self, connection: PeerConnection, channel: DataChannel) -> None:
        self.connection = connection
        self.channel = channel


class DurableSession:
    """One session and its channels."""

    def __init__(
        self,
        record: SessionRecord,
        channels: list[ChannelRecord],
        *,
        environment: Environment,
        settings: LinkSettings,
        configure: Configure,
        owner: Owner,
        service: str | None,
    ) -> None:
        self.connection_id = record.connection_id
        self.service = service
        self.channels: dict[str, DurableChannel] = {}
        self._by_id: dict[int, DurableChannel] = {}
        self._environment = environment
        self._configure = configure
        self._settings = settings
        """What the next link begins with."""
        self._owner = owner
        self._links: dict[int, _Link] = {}
        self._next_key = 1
        self._plain: PlainLink | None = None
        """The connection with a plain peer."""
        self._parting: asyncio.TimerHandle | None = None
        """Ends a plain connection whose data channels do not close by themselves."""
        self._carries: dict[str, Carry] = {}
        """The unreliable labels of the current link."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._creating: dict[str, asyncio.Task[DurableChannel]] = {}
        self._retries: dict[str, asyncio.TimerHandle] = {}
        """Labels of the peer that are to be made again, until the link on which it announced them is gone."""
        self._reopening: dict[int, list[asyncio.Future[None]]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._flush_due = False
        self._stopped = False
        self._unlinked: asyncio.Future[None] | None = None
        plain = record.kind is PeerKind.PLAIN
        configured = [(c, _stored_settings(configure, c.label, c.options, c.durability, plain)) for c in channels]
        self.machine = Session(
            record,
            [(channel, settings_.inbox, settings_.reliability) for channel, settings_ in configured],
            settings,
            clock_us=environment.start_us,
            random=secrets.token_bytes,
        )
        for channel, settings_ in configured:
            self._add(channel, settings_)

    # --- links -----------------------------------------------------------------------------------------------------

    @property
    def record(self) -> SessionRecord:
        return self.machine.record

    @property
    def lanes(self) -> Lanes:
        return self.machine.lanes

    @property
    def connected(self) -> bool:
        return self.machine.current is not None or self._plain is not None

    @property
    def suspect(self) -> bool:
        """Whether nothing has been heard on the current link for too long."""
        return self.machine.suspect

    @property
    def linked(self) -> bool:
        """Whether any link is left, one that only waits for its goodbye included."""
        return bool(self._links) or self._plain is not None

    def cut(self) -> None:
        """Close every link of the session without a word, as if the network had."""
        for key in list(self._links):
            self._lost(key, "cut on request")
        self._plain_lost("cut on request")

    def open_link(self, connection: PeerConnection, channel: DataChannel, fingerprints: Fingerprints) -> int:
        """Connecting side: the data channel is open; say hello on it. Answers the link's key."""
        key = self._attach(connection, channel)
        self.machine.open_link(key, fingerprints, self.now(), self._environment.clock.wall_microseconds())
        self.schedule_flush()
        return key

    def accept_link(
        self,
        connection: PeerConnection,
        channel: DataChannel,
        hello: frames.Hello,
        fingerprints: Fingerprints,
        *,
        resumed: bool,
    ) -> None:
        """Service side: a good hello has come on this data channel."""
        key = self._attach(connection, channel)
        self.machine.accept_link(key, hello, fingerprints, self.now(), resumed=resumed)
        self.schedule_flush()

    def drop_link(self, key: int) -> None:
        """Give up a link on which hello has not been said."""
        self.machine.drop_link(key, self.now())
        self.schedule_flush()

    def say_goodbye(self, code: frames.GoodbyeCode, reason: str) -> None:
        """End every link; a plain peer sees its data channels close, behind what was sent."""
        self.machine.say_goodbye(code, reason, self.now())
        if self._plain is not None and self._parting is None:
            self._parting = asyncio.get_running_loop().call_later(GOODBYE_TIMEOUT, self._plain_parted)
            self._plain.part(self._plain_parted)
        self.schedule_flush()

    def reconfigure(self, settings: LinkSettings, configure: Configure) -> None:
        """Other limits from now on; a link that is up stays as it was agreed."""
        self._settings = settings
        self._configure = configure
        self._reconfigure_channels()
        self.schedule_flush()

    def _reconfigure_channels(self) -> None:
        plain = self.lanes.plain
        for channel in self.channels.values():
            has = channel.settings
            channel.reconfigure(_stored_settings(self._configure, channel.label, has.options, has.durability, plain))

    def _attach(self, connection: PeerConnection, channel: DataChannel) -> int:
        self.machine.settings = self._settings
        key = self._next_key
        self._next_key += 1
        self._links[key] = _Link(connection, channel)
        channel.buffered_amount_low_threshold = BUFFER_LOW
        channel.on_buffered_amount_low = self.schedule_flush
        channel.on_close = lambda: self._lost(key, "the data channel was closed")
        channel.on_message = lambda message: self._receive(key, message)
        connection.on_state = lambda state: self._state_changed(key, state)
        connection.on_data_channel = lambda channel: self._accept_channel(key, channel)
        return key

    def _receive(self, key: int, message: Message) -> None:
        self.machine.receive(key, message, self.now())
        self.schedule_flush()

    def _state_changed(self, key: int, state: TransportState) -> None:
        if state is TransportState.CLOSED:
            self._lost(key, "the connection was closed")

    def _accept_channel(self, key: int, channel: DataChannel) -> None:
        """The peer opened a data channel on a link: for an unreliable label that both know, or by mistake."""
        lane = self.lanes.get(channel.label)
        if lane is not None and lane.unreliable and key == self.machine.current:
            self._carry(channel.label, self._links[key].connection).add(channel)
        elif channel.label != SERVICE_LABEL:  # every offer has that one; on a link nobody uses it
            logger.info("%s: a data channel %.40r that no link announced is closed", self.connection_id, channel.label)
            self._environment.count("stray_channels")
            channel.close()

    def _lost(self, key: int, reason: str) -> None:
        link = self._take_link(key)
        if link is not None:
            self._owner.discard(link.connection)
            self.machine.link_lost(key, self.now(), reason)
            self.schedule_flush()

    # --- without frames --------------------------------------------------------------------------------------------

    def open_plain(self, connection: PeerConnection, channels: list[DataChannel], *, dialled: bool) -> None:
        """A connection with a plain peer is up; `channels` are the data channels that it has so far."""
        resumed = self.record.contacted
        self.machine.plain_contact()
        self._reconfigure_channels()
        most = self._settings.max_channels
        plain = self._plain = PlainLink(self, connection, channels, dialled=dialled, max_channels=most)
        connection.on_state = lambda state: self._plain_state(plain, state)
        self._owner.link_up(self, LinkUp(None, resumed, False))
        self._plain_state(plain, connection.state)
        self.schedule_flush()

    def _plain_state(self, plain: PlainLink, state: TransportState) -> None:
        if state is TransportState.CLOSED and plain is self._plain:
            self._plain_lost("the connection was closed")

    def _plain_lost(self, reason: str) -> None:
        if self._plain is not None:
            self._drop_plain(self._plain)
            self._link_down(LinkDown(None, True, "transport", reason))
            self.schedule_flush()

    def _plain_parted(self) -> None:
        if self._plain is not None:
            self._drop_plain(self._plain)

    def _drop_plain(self, plain: PlainLink) -> None:
        self._plain = None
        if self._parting is not None:
            self._parting.cancel()
            self._parting = None
        plain.end()
        self._owner.discard(plain.connection)
        self._tell_unlinked()

    def _carry(self, label: str, connection: PeerConnection) -> Carry:
        if label not in self._carries:
            self._carries[label] = Carry(label, self, connection)
        return self._carries[label]

    def _open_data_channel(self, label: str) -> None:
        link = self._links.get(self.machine.current)  # type: ignore[call-overload]
        if link is not None and not self._carry(label, link.connection).carried:
            self._carries[label].open()

    def _end_carries(self) -> None:
        """The link that they belong to carries the session no more."""
        for carry in self._carries.values():
            carry.end()
        self._carries.clear()

    def _take_options(self, label: str, options: ChannelOptions) -> None:
        """The peer announced the label with other options, and its win."""
        channel = self.channels[label]
        said = _said(channel.settings.options) or {}
        for key in ("ordered", "max_retransmits", "max_packet_life_time"):
            said.pop(key, None)
        said |= _reliability(options)
        channel.reconfigure(self._configure(label, said, self.lanes.plain))
        self.execute(SetChannelOptions(channel.id, channel.settings.options))
        channel.event("options_differ", {"taken": _reliability(options)})

    # What the carries ask for:

    def want_channel(self, label: str) -> bool:
        """The peer uses a label that is new here. False = its channel cannot be made."""
        self._peer_opened(label)
        return label in self.channels or label in self._creating

    def unsent(self, label: str) -> bool:
        """Whether something waits in the outbox of that label."""
        return label in self.channels and bool(self.channels[label].outbox.count)

    def label_opened(self, label: str) -> None:
        self.channels[label].opened(None)

    def label_closed(self, label: str) -> None:
        """Its last data channel was closed while the connection is alive."""
        channel = self.channels[label]
        channel.event("close", {})
        channel.outbox.settle()
        if self._plain is None:  # on a link that is the end of it: daemons close no data channel by accident
            self._spawn(self._end_label(channel), f"end {self.connection_id} {label}")

    async def _end_label(self, channel: DurableChannel) -> None:
        """The peer closed an unreliable label: nobody is left who could take what is queued."""
        await channel.remove_all(Reason.PURGED)
        channel.close()

    def in_doubt(self, label: str, count: int) -> None:
        self.channels[label].in_doubt(count)

    def dropped(self, label: str) -> None:
        if label in self.channels:
            self.channels[label].count("dropped_in")
        else:
            self._environment.count("plain_dropped")

    def refuses(self, label: str, message: Message) -> bool:
        return False

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._spawned_done)

    def _spawned_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.warning("%s: %s: %s", self.connection_id, task.get_name(), task.exception())

    # --- channels --------------------------------------------------------------------------------------------------

    async def channel(self, label: str, options: dict[str, Any] | None, *, create: bool = True) -> DurableChannel:
        """The channel of that label; made, or opened anew, when there is none and `create` is true. Raises `RequestError`.

        In a session that has ended there is only what waits to be read.
        """
        create = create and not self.record.closed
        channel = self.channels.get(label)
        if channel is None and not create:
            raise RequestError("unknown_channel", f"{self.connection_id} has no channel {label!r}")
        if channel is None:
            if label.startswith("rondevu") and not self._settings.reserved_labels:
                raise RequestError("reserved_label", "labels that begin with rondevu are reserved")
            if not frames.valid_label(label):
                raise RequestError("bad_params", f"a label has 1 to {frames.MAX_LABEL} bytes of UTF-8")
            channel = await asyncio.shield(self._create(label, options))
            channel.made_by_attach = True
            return channel
        if options:
            _compare_options(self._configure(label, options, self.lanes.plain), channel.settings, label)
        if create and channel.state is ChannelState.CLOSED:
            await self._reopen(channel)
        return channel

    async def _reopen(self, channel: DurableChannel) -> None:
        """Open a closed label anew, and wait until it is (rule 9 of the link)."""
        waiter = asyncio.get_running_loop().create_future()
        self._reopening.setdefault(channel.id, []).append(waiter)
        self.machine.lanes.reopen(channel.label)
        self.schedule_flush()
        await waiter
        channel.made_by_attach = True

    def _create(
        self, label: str, options: dict[str, Any] | None, durability: Durability | None = None
    ) -> asyncio.Task[DurableChannel]:
        task = self._creating.get(label)
        if task is None:
            most = self._settings.max_channels
            if len(self.channels) + len(self._creating) >= most:
                raise RequestError("bad_params", f"{self.connection_id} has {most} channels already")
            settings = self._configure(label, options, self.lanes.plain)
            name = f"create channel {self.connection_id} {label}"
            task = asyncio.get_running_loop().create_task(self._make(label, settings), name=name)
            self._creating[label] = task
            task.add_done_callback(lambda _task: self._created(label))
        return task

    def _created(self, label: str) -> None:
        task = self._creating.pop(label)
        if not task.cancelled() and task.exception() is not None:
            logger.warning("%s: channel %r could not be made: %s", self.connection_id, label, task.exception())

    async def _make(self, label: str, settings: ChannelSettings) -> DurableChannel:
        store = self._store(settings.durability)
        create = CreateChannel(
            self.connection_id, label, settings.durability, secrets.token_bytes(frames.EPOCH_BYTES), settings.options
        )
        store.submit(SaveSession(self.record))
        try:
            record = await store.execute(create)
        except StoreError as error:
            raise RequestError("store_failed", f"the channel could not be stored: {error}") from error
        self.machine.lanes.add(record, settings.inbox, settings.reliability)
        channel = self._add(record, settings)
        self.schedule_flush()
        return channel

    def _add(self, record: ChannelRecord, settings: ChannelSettings) -> DurableChannel:
        channel = DurableChannel(record, self.machine.lanes[record.label], settings, self)
        self.channels[record.label] = self._by_id[record.id] = channel
        return channel

    def _peer_opened(self, label: str, options: ChannelOptions = RELIABLE) -> None:
        """The peer announced a label that is new here; it waits for our answer on this link."""
        self._retries.pop(label, None)
        if label in self.channels:
            return
        try:
            task = self._create(label, None if options == RELIABLE else _reliability(options))
        except RequestError as error:
            logger.warning("%s: the peer's channel %r is refused: %s", self.connection_id, label, error)
            return
        task.add_done_callback(lambda task: self._announce(label, task))

    def _announce(self, label: str, task: asyncio.Task[DurableChannel]) -> None:
        if task.cancelled():
            return
        if task.exception() is None:
            task.result().event("channel", {"waiting": 0})
        elif self.connected and not self._stopped and label not in self._retries:
            self._retries[label] = asyncio.get_running_loop().call_later(CREATE_RETRY, self._peer_opened, label)

    def _forget_retries(self) -> None:
        for timer in self._retries.values():
            timer.cancel()
        self._retries.clear()

    # --- store -----------------------------------------------------------------------------------------------------

    def _store(self, durability: Durability) -> Store:
        return self._environment.disk if durability is Durability.DISK else self._environment.memory

    def store_failing(self, durability: Durability) -> StoreError | None:
        return self._store(durability).failing

    def execute(self, operation: Operation[Any], done: Callable[[Any], None] | None = None) -> None:
        """Submit an operation of this session. The machine hears the outcome first, then the channel, then `done`."""
        channel = self._by_id.get(getattr(operation, "channel", 0))
        store = self._store(channel.settings.durability if channel else Durability.DISK)

        def completed(outcome: Any) -> None:
            in_doubt = self.machine.completed(operation, outcome)
            if isinstance(operation, SetEpoch) and not isinstance(outcome, StoreError):
                self._reopened(operation.channel, by_peer=operation.reopen)
            if channel is not None:
                channel.completed(operation, outcome, in_doubt)
            if done is not None:
                done(outcome)
            self.schedule_flush()

        if channel is not None:
            channel.submitted(operation)
        store.submit(operation, completed)

    def _reopened(self, channel_id: int, *, by_peer: bool) -> None:
        """A new epoch is stored: go on with who waited for it, or (`by_peer`, if nobody did) offer the label to programs."""
        waiters = self._reopening.pop(channel_id, [])
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        channel = self._by_id.get(channel_id)
        if by_peer and not waiters and channel is not None:
            channel.event("channel", {"waiting": channel.waiting})

    async def run(self, operation: Operation[Any]) -> Any:
        """`execute`, and wait. Raises `RequestError` when the store fails."""
        waiter: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def done(outcome: Any) -> None:
            if not waiter.done():
                waiter.set_result(outcome)

        self.execute(operation, done)
        outcome = await waiter
        if isinstance(outcome, StoreError):
            raise RequestError(getattr(outcome, "code", "store_failed"), str(outcome))
        return outcome

    # --- what channels ask for -------------------------------------------------------------------------------------

    @property
    def max_message(self) -> int:
        """Bytes of the largest message taken here."""
        return self._settings.max_message

    @property
    def refusal(self) -> tuple[str, str] | None:
        return self._owner.refusal(self)

    def now(self) -> float:
        return self._environment.clock.monotonic()

    def stamp(self) -> Stamp:
        return self._environment.clock.stamp()

    def put(self, label: str, payloads: tuple[Payload, ...], **facts: Any) -> Put:
        return self.machine.lanes.put(label, payloads, self.stamp(), **facts)

    def close_label(self, label: str) -> None:
        operation = self.machine.lanes.close(label, self.stamp())
        if operation is not None:
            self.execute(operation)

    def inbox_taken(self, label: str, count: int, size: int) -> None:
        if label in self.machine.lanes:
            self.machine.lanes.taken(label, count, size)
            self.schedule_flush()

    def event(self, name: str, data: dict[str, Any], label: str | None = None) -> None:
        self._environment.publish(name, data, service=self.service, connection_id=self.connection_id, label=label)

    # --- effects ---------------------------------------------------------------------------------------------------

    def schedule_flush(self) -> None:
        """Carry out what the machine wants, once, after what this turn of the loop brings."""
        if not self._flush_due and not self._stopped:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        if self._stopped:
            return
        for key, link in self._links.items():
            self.machine.buffered(key, link.channel.buffered_amount)
        if self._plain is not None:
            self._plain.flush()
        for carry in list(self._carries.values()):
            carry.flush()
        for effect in self.machine.flush(self.now(), self.stamp()):
            try:
                self._carry_out(effect)
            except Exception:
                logger.exception("%s: %s failed", self.connection_id, type(effect).__name__)
        self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self.machine.next_wakeup()
        if due is not None and not self._stopped:
            delay = max(0.0, due - self.now())
            self._timer = asyncio.get_running_loop().call_later(delay, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.machine.tick(self.now())
        self.schedule_flush()

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Transmit():
                self._transmit(effect)
            case Execute():
                self.execute(effect.operation)
            case CloseLink():
                self._close_link(effect.link)
            case CreateLabel():
                self._peer_opened(effect.label, effect.options)
            case OpenDataChannel():
                self._open_data_channel(effect.label)
            case OptionsTaken():
                self._take_options(effect.label, effect.options)
            case ChannelResumed() | ChannelOpened() | ChannelClosed() | LabelRefused():
                self._tell_channel(effect)
            case _:
                self._tell_owner(effect)

    def _tell_channel(self, effect: ChannelResumed | ChannelOpened | ChannelClosed | LabelRefused) -> None:
        match effect:
            case ChannelResumed():
                self.channels[effect.label].link_verdict(effect.verdict)
            case ChannelOpened():
                self.channels[effect.label].opened(effect.peer_durability)
            case ChannelClosed():
                self.channels[effect.label].link_closed()
            case LabelRefused():
                logger.warning("%s: label %r is refused: %s", self.connection_id, effect.label, effect.reason)
                self.event("error", {"code": "label_refused", "message": effect.reason}, effect.label)

    def _tell_owner(self, effect: LinkUp | LinkDown | Suspect | Recovered | SessionFailed) -> None:
        match effect:
            case LinkUp():
                self._end_carries()
                self._owner.link_up(self, effect)
            case LinkDown():
                self._link_down(effect)
            case Suspect():
                self._owner.suspect(self, effect)
            case Recovered():
                self._owner.recovered(self, effect)
            case SessionFailed():
                self._owner.session_failed(self, effect)

    def _transmit(self, effect: Transmit) -> None:
        link = self._links.get(effect.link)  # type: ignore[call-overload]
        if link is None:
            return
        try:
            link.channel.send(effect.data)
        except TransportError as error:
            logger.debug("%s: link %s cannot send: %s", self.connection_id, effect.link, error)
            loop = asyncio.get_running_loop()
            loop.call_soon(self._lost, effect.link, str(error))  # type: ignore[arg-type]

    def _close_link(self, key: Any) -> None:
        link = self._take_link(key)
        if link is not None:
            self._owner.discard(link.connection)

    def _take_link(self, key: Any) -> _Link | None:
        link = self._links.pop(key, None)
        self._tell_unlinked()
        return link

    def _tell_unlinked(self) -> None:
        if not self.linked and self._unlinked is not None and not self._unlinked.done():
            self._unlinked.set_result(None)

    def _link_down(self, effect: LinkDown) -> None:
        if effect.current:
            self._end_carries()
        self._owner.link_down(self, effect)
        if effect.current:
            self._forget_retries()
            for channel in self.channels.values():
                channel.link_lost()

    # --- the end ---------------------------------------------------------------------------------------------------

    async def drained(self) -> None:
        """Wait until everything in the outboxes is acknowledged or removed."""
        for channel in list(self.channels.values()):
            await channel.outbox.drained()

    async def goodbyes_said(self) -> None:
        """Wait until every link is closed, goodbyes included; the machine bounds the time."""
        if self.linked:
            if self._unlinked is None or self._unlinked.done():
                self._unlinked = asyncio.get_running_loop().create_future()
            await asyncio.wait({self._unlinked})  # others may wait for it, too: not to be cancelled with one of them

    def end(self) -> None:
        """The session is over: channels take nothing any more, links are closed."""
        for channel in self.channels.values():
            channel.end()

    def stop(self) -> None:
        """No more timers, flushes and links. Idempotent.

        What waits in a session that has ended can still be read, until `stop_reading`.
        """
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        self._forget_retries()
        for task in (*self._creating.values(), *self._tasks):
            task.cancel()
        for channel_id in list(self._reopening):
            self._reopened(channel_id, by_peer=False)
        if not self.record.closed:
            self.stop_reading()
        for link in self._links.values():
            self._owner.discard(link.connection)
        self._links.clear()
        if self._plain is not None:
            self._drop_plain(self._plain)
        self._tell_unlinked()

    def stop_reading(self) -> None:
        """The daemon stops, or the session is deleted: the channels do nothing any more. Idempotent."""
        for channel in self.channels.values():
            channel.stop()

    async def mark_closed(self) -> None:
        """Remember that this session has ended; what waits for programs stays."""
        self.machine.record = replace(self.record, closed=True)
        await self._environment.disk.execute(SaveSession(self.record))

    def forget(self) -> None:
        """Delete the session with everything in it from the stores."""
        self.stop()
        self.stop_reading()
        for store in (self._environment.disk, self._environment.memory):
            store.submit(DeleteSession(self.connection_id))


def _stored_settings(
    configure: Configure, label: str, options: bytes, durability: Durability, plain: bool
) -> ChannelSettings:
    """The settings of a channel that was made with `options`; its durability stays what it was then."""
    try:
        settings = configure(label, _said(options), plain)
    except RequestError:
        logger.warning("The stored options of channel %r are not valid any more; defaults are used", label)
        settings = configure(label, None, plain)
    return replace(settings, durability=durability)


def _said(options: bytes) -> dict[str, Any] | None:
    said: dict[str, Any] | None = msgpack.unpackb(options) if options else None
    return said


def _reliability(options: ChannelOptions) -> dict[str, Any]:
    """As users write them."""
    said = {"max_retransmits": options.max_retransmits, "max_packet_life_time": options.max_packet_life_time}
    return {"ordered": options.ordered, **{key: value for key, value in said.items() if value is not None}}


def _compare_options(asked: ChannelSettings, has: ChannelSettings, label: str) -> None:
    one = (asked.outbox, asked.inbox, asked.durability, asked.reliability)
    if one != (has.outbox, has.inbox, has.durability, has.reliability):
        raise RequestError("options_differ", f"channel {label!r} exists with other options")
