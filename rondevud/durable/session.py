"""DurableSession: the shell around the link machine. It has the clock, the store, the data channels and the timers.

    data channels ──messages──► Session (link.py) ──effects──► data channels, store, owner

Whatever feeds the machine asks for a flush; one flush per turn of the loop carries out everything that came of it. What goes
without frames (plain peers, unreliable labels) is `rondevud.durable.unframed`'s business, over the same lanes and stores.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from rondevud import failpoints
from rondevud.durable import frames
from rondevud.durable.budget import Budget
from rondevud.durable.channel import DurableChannel
from rondevud.durable.channels import Channels, stored_settings
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
from rondevud.durable.greeting import send_frame
from rondevud.durable.handshake import Fingerprints
from rondevud.durable.incoming import ROOM
from rondevud.durable.lanes import Lanes
from rondevud.durable.link import LinkSettings, Session
from rondevud.durable.ports import Clock, Configure, Publish, Store
from rondevud.durable.unframed import Unframed
from rondevud.errors import RequestError, StoreError, TransportError
from rondevud.latencies import Latencies
from rondevud.records import (
    ChannelRecord,
    DeleteSession,
    Durability,
    Operation,
    Payload,
    PeerKind,
    Put,
    SaveSession,
    SessionRecord,
    SetEpoch,
    Stamp,
)
from rondevud.transport.base import ConnectionState as TransportState
from rondevud.transport.base import DataChannel, Message, PeerConnection

logger = logging.getLogger(__name__)

BUFFER_LOW = 16 * 1024
"""Bytes in the engine's buffer at which more is handed over."""


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


class Past:
    """Counts of channels, sessions and services that are there no more, since the daemon started."""

    def __init__(self) -> None:
        self.channels: Counter[str] = Counter()
        self.sessions: Counter[str] = Counter()
        self.services: Counter[str] = Counter()


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
        self.budget = Budget()
        """What the queues on disk may hold together."""
        self.unlimited = Budget()
        self.latencies = Latencies()
        self.past = Past()
        """What channels and sessions had counted that are there no more."""

    def count(self, counter: str) -> None:
        self.counters[counter] += 1

    def in_memory(self) -> Environment:
        """The same for sessions of which nothing is to be written: what others keep on disk they keep in memory."""
        other = Environment(self.memory, self.memory, self.clock, self.publish, self.start_us, self.version)
        other.counters, other.latencies, other.past = self.counters, self.latencies, self.past
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
        self.channels = Channels(self, configure, most=settings.max_channels, reserved=settings.reserved_labels)
        self._environment = environment
        self._settings = settings
        """What the next link begins with."""
        self._owner = owner
        self._links: dict[int, _Link] = {}
        self._next_key = 1
        self._unframed = Unframed(self)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0
        self._flush_due = False
        self._stopped = False
        self._unlinked: asyncio.Future[None] | None = None
        self._measured: asyncio.Future[None] | None = None
        """Set when the round trip that somebody waits for has been measured."""
        plain = record.kind is PeerKind.PLAIN
        configured = [(c, stored_settings(configure, c.label, c.options, c.durability, plain=plain)) for c in channels]
        self.machine = Session(
            record,
            [(channel, settings_.inbox, settings_.reliability) for channel, settings_ in configured],
            settings,
            clock_us=environment.start_us,
            random=secrets.token_bytes,
            offer=lambda durability: self.budget(durability).offer(),
        )
        for channel, settings_ in configured:
            self.channels.restore(channel, settings_)

    # --- links -----------------------------------------------------------------------------------------------------

    @property
    def record(self) -> SessionRecord:
        return self.machine.record

    @property
    def lanes(self) -> Lanes:
        return self.machine.lanes

    @property
    def connected(self) -> bool:
        return self.machine.current is not None or self._unframed.up

    @property
    def peer_connection(self) -> PeerConnection | None:
        """The WebRTC connection that carries the session now."""
        link = self._links.get(self.machine.current)  # type: ignore[call-overload]
        return link.connection if link is not None else self._unframed.connection

    @property
    def local_address(self) -> str | None:
        """The address of this machine that the current link uses."""
        link = self._links.get(self.machine.current)  # type: ignore[call-overload]
        connection = link.connection if link is not None else self._unframed.connection
        pair = connection.selected_pair if connection is not None else None
        return pair.local.rpartition(":")[0].strip("[]") if pair is not None else None

    @property
    def suspect(self) -> bool:
        """Whether nothing has been heard on the current link for too long."""
        return self.machine.suspect

    @property
    def linked(self) -> bool:
        """Whether any link is left, one that only waits for its goodbye included."""
        return bool(self._links) or self._unframed.connection is not None

    def cut(self) -> None:
        """Close every link of the session without a word, as if the network had."""
        for key in list(self._links):
            self._lost(key, "cut on request")
        self._unframed.drop("cut on request")

    async def measure(self, patience: float) -> None:
        """Measure the round trip of the link, if there is one; gives up after `patience` seconds."""
        if self.machine.current is None:
            return
        if self._measured is None:
            self._measured = asyncio.get_running_loop().create_future()
            self.machine.ping(self.now())
            self.schedule_flush()
        measured = self._measured
        await asyncio.wait({measured}, timeout=patience)
        if self._measured is measured:  # no answer: the next one asks again
            self._measured = None

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
        """Give up a link that has not been welcomed; does nothing to others."""
        self.machine.drop_link(key, self.now())
        self.schedule_flush()

    def has(self, connection: PeerConnection) -> bool:
        """Whether a link here is on that connection: the session closes it then."""
        return any(link.connection is connection for link in self._links.values())

    def say_goodbye(self, code: frames.GoodbyeCode, reason: str) -> None:
        """End every link; a plain peer sees its data channels close, behind what was sent."""
        self.machine.say_goodbye(code, reason, self.now())
        if self._unframed.up:
            self._unframed.part()
            self._link_down(LinkDown(None, True, code, reason))
        self.schedule_flush()

    def reconfigure(self, settings: LinkSettings, configure: Configure) -> None:
        """Other limits from now on; a link that is up stays as it was agreed."""
        self._settings = settings
        self.channels.reconfigure(configure, most=settings.max_channels, reserved=settings.reserved_labels)
        self.schedule_flush()

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
        connection.on_data_channel = lambda channel: self._accept_channel(key, connection, channel)
        return key

    def _receive(self, key: int, message: Message) -> None:
        try:
            failpoints.hit_frame("receive.before", message)
            self.machine.receive(key, message, self.now())
            failpoints.hit_frame("receive.after", message)
        except Exception:
            logger.exception("%s: link %s could not receive", self.connection_id, key)
            self._break(key)
        if self._measured is not None and not self.machine.pinging:
            self._measured.set_result(None)
            self._measured = None
        self.schedule_flush()

    def _state_changed(self, key: int, state: TransportState) -> None:
        if state is TransportState.CLOSED:
            self._lost(key, "the connection was closed")

    def _accept_channel(self, key: int, connection: PeerConnection, channel: DataChannel) -> None:
        self._unframed.accept(channel, connection, current=key == self.machine.current)

    def _lost(self, key: int, reason: str) -> None:
        link = self._take_link(key)
        if link is not None:
            self._owner.discard(link.connection)
            self.machine.link_lost(key, self.now(), reason)
            self.schedule_flush()

    # --- a plain peer ----------------------------------------------------------------------------------------------

    def open_plain(self, connection: PeerConnection, channels: list[DataChannel], *, dialled: bool) -> None:
        """A connection with a plain peer is up; `channels` are the data channels that it has so far."""
        resumed = self.record.contacted
        self.machine.plain_contact()
        self.channels.apply()
        self._unframed.open(connection, channels, dialled=dialled, most=self._settings.max_channels)
        self._owner.link_up(self, LinkUp(None, resumed, False))
        self.schedule_flush()

    def plain_ended(self, connection: PeerConnection, reason: str | None) -> None:
        self._owner.discard(connection)
        self._tell_unlinked()
        if reason is not None and not self._stopped:
            self._link_down(LinkDown(None, True, "transport", reason))
        self.schedule_flush()

    # --- channels --------------------------------------------------------------------------------------------------

    async def channel(self, label: str, options: dict[str, Any] | None, *, create: bool = True) -> DurableChannel:
        """The channel of that label: see `Channels.open`."""
        return await self.channels.open(label, options, create=create)

    # --- store -----------------------------------------------------------------------------------------------------

    def store(self, durability: Durability) -> Store:
        return self._environment.disk if durability is Durability.DISK else self._environment.memory

    @property
    def ephemeral(self) -> bool:
        return self._environment.ephemeral

    def budget(self, durability: Durability) -> Budget:
        """What the queues of that durability may hold together."""
        environment = self._environment
        limited = durability is Durability.DISK and not environment.ephemeral
        return environment.budget if limited else environment.unlimited

    @property
    def latencies(self) -> Latencies:
        return self._environment.latencies

    def store_failing(self, durability: Durability) -> StoreError | None:
        return self.store(durability).failing

    def execute(self, operation: Operation[Any], done: Callable[[Any], None] | None = None) -> None:
        """Submit an operation of this session. The machine hears the outcome first, then the channel, then `done`."""
        channel = self.channels.by_id(getattr(operation, "channel", 0))
        store = self.store(channel.settings.durability if channel else Durability.DISK)

        def completed(outcome: Any) -> None:
            failpoints.hit_operation("stored", operation)
            in_doubt = self.machine.completed(operation, outcome)
            if isinstance(operation, SetEpoch) and not isinstance(outcome, StoreError):
                self.channels.reopened(operation.channel, by_peer=operation.reopen)
            if channel is not None:
                channel.completed(operation, outcome, in_doubt)
            if done is not None:
                done(outcome)
            self.schedule_flush()

        if channel is not None:
            channel.submitted(operation)
        store.submit(operation, completed)

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

    def count(self, counter: str) -> None:
        self._environment.count(counter)

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
        self._unframed.flush()
        for effect in self.machine.flush(self.now(), self.stamp()):
            try:
                self._carry_out(effect)
            except Exception:
                logger.exception("%s: %s failed", self.connection_id, type(effect).__name__)
        for channel in self.channels.values():
            try:
                channel.flushed()
            except Exception:
                logger.exception("%s: %r could not go on", self.connection_id, channel.label)
        self._watch_budget()
        self._set_timer()

    def _watch_budget(self) -> None:
        """While the store cannot offer a peer all the room there may be, look again when that changes."""
        offered = self._environment.budget.offer() if self.machine.current is not None else None
        if offered is not None and offered < ROOM:
            self._environment.budget.wait(self.schedule_flush)

    def _set_timer(self) -> None:
        """See that `_tick` is called when it is due, or before: each message defers the next heartbeat."""
        due = None if self._stopped else self.machine.next_wakeup()
        if self._timer is not None:
            if due is not None and self._timer_due <= due:
                return
            self._timer.cancel()
            self._timer = None
        if due is not None:
            self._timer_due = due
            self._timer = asyncio.get_running_loop().call_later(max(0.0, due - self.now()), self._tick)

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
                self.channels.peer_opened(effect.label, effect.options)
            case OpenDataChannel():
                self._open_label(effect.label)
            case OptionsTaken():
                self.channels.take_options(effect.label, effect.options)
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
                self._unframed.link_ended()
                self._unframed.drop()
                self.channels.apply()
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
            send_frame(link.channel, effect.data)
        except TransportError as error:
            logger.debug("%s: link %s cannot send: %s", self.connection_id, effect.link, error)
            loop = asyncio.get_running_loop()
            loop.call_soon(self._lost, effect.link, str(error))  # type: ignore[arg-type]
        except Exception:
            logger.exception("%s: link %s could not send", self.connection_id, effect.link)
            self._break(effect.link)

    def _break(self, key: Any) -> None:
        """A frame was dealt with in part, or not at all: on another link both sides begin with what they have stored."""
        asyncio.get_running_loop().call_soon(self._lost, key, "an error in this daemon")

    def _open_label(self, label: str) -> None:
        link = self._links.get(self.machine.current)  # type: ignore[call-overload]
        if link is not None:
            self._unframed.open_label(label, link.connection)

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
            self._unframed.link_ended()
        self._owner.link_down(self, effect)
        if effect.current:
            self.channels.forget_retries()
            for channel in self.channels.values():
                channel.link_lost()

    # --- the end ---------------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether something in the outboxes is neither acknowledged nor removed."""
        return any(channel.outbox.busy for channel in self.channels.values())

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
        self.channels.stop()
        if not self.record.closed:
            self.stop_reading()
        for link in self._links.values():
            self._owner.discard(link.connection)
        self._links.clear()
        self._unframed.stop()
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
        for channel in self.channels.values():
            channel.forget()
            self._environment.past.channels.update(channel.counted())
        self._environment.past.sessions.update(self.machine.counters)
        for store in (self._environment.disk, self._environment.memory):
            store.submit(DeleteSession(self.connection_id))
