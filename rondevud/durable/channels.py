"""The channels of a session, by label: made in the store, opened anew, told their settings."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol

import msgpack

from rondevud.durable import frames
from rondevud.durable.budget import Budget
from rondevud.durable.channel import DurableChannel, SessionPort
from rondevud.durable.ports import Configure, Store
from rondevud.durable.settings import ChannelSettings
from rondevud.durable.states import ChannelState
from rondevud.errors import RequestError, StoreError
from rondevud.latencies import Latencies
from rondevud.records import ChannelRecord, CreateChannel, Durability, SaveSession, SessionRecord, SetChannelOptions
from rondevud.transport.base import RELIABLE, ChannelOptions

logger = logging.getLogger(__name__)

CREATE_RETRY = 5.0
"""Seconds until a channel that the peer announced, and that the store did not make, is tried again."""


class Host(SessionPort, Protocol):
    """What the channels need of their session."""

    @property
    def record(self) -> SessionRecord: ...

    @property
    def connected(self) -> bool: ...

    def store(self, durability: Durability) -> Store: ...

    def budget(self, durability: Durability) -> Budget: ...

    @property
    def latencies(self) -> Latencies: ...

    def schedule_flush(self) -> None: ...


class Channels(Mapping[str, DurableChannel]):
    """By label. `most` is how many there may be; `reserved` whether programs may use labels that begin with ``rondevu``."""

    def __init__(self, host: Host, configure: Configure, *, most: int, reserved: bool) -> None:
        self._host = host
        self._configure = configure
        self._most = most
        self._reserved = reserved
        self._channels: dict[str, DurableChannel] = {}
        self._by_id: dict[int, DurableChannel] = {}
        self._creating: dict[str, asyncio.Task[DurableChannel]] = {}
        self._announcing: set[str] = set()
        """Labels of the peer that are being made, to be offered to programs then."""
        self._retries: dict[str, asyncio.TimerHandle] = {}
        """Labels of the peer that are to be made again, until the link on which it announced them is gone."""
        self._reopening: dict[int, list[asyncio.Future[None]]] = {}
        self._stopped = False

    def __getitem__(self, label: str) -> DurableChannel:
        return self._channels[label]

    def __iter__(self) -> Iterator[str]:
        return iter(self._channels)

    def __len__(self) -> int:
        return len(self._channels)

    def by_id(self, channel_id: int) -> DurableChannel | None:
        return self._by_id.get(channel_id)

    @property
    def _plain(self) -> bool:
        return self._host.lanes.plain

    def restore(self, record: ChannelRecord, settings: ChannelSettings) -> None:
        """A channel of the store, whose lane there is."""
        self._add(record, settings)

    def reconfigure(self, configure: Configure, *, most: int, reserved: bool) -> None:
        """Other limits, for what is accepted from now on."""
        self._configure, self._most, self._reserved = configure, most, reserved
        self.apply()

    def is_making(self, label: str) -> bool:
        """Whether a channel of that label is being made."""
        return label in self._creating

    def apply(self) -> None:
        """Tell every channel the settings that hold for it now: they depend on what the peer has shown itself to be."""
        for channel in self._channels.values():
            has = channel.settings
            options = stored_settings(self._configure, channel.label, has.options, has.durability, plain=self._plain)
            channel.reconfigure(options)

    def take_options(self, label: str, options: ChannelOptions) -> None:
        """The peer announced the label with another reliability, and its wins."""
        channel = self._channels[label]
        said = _said(channel.settings.options) or {}
        for key in ("ordered", "max_retransmits", "max_packet_life_time"):
            said.pop(key, None)
        taken = _reliability(options)
        channel.reconfigure(self._configure(label, said | taken, self._plain))
        self._host.execute(SetChannelOptions(channel.id, channel.settings.options))
        channel.event("options_differ", {"taken": taken})

    # --- for programs ----------------------------------------------------------------------------------------------

    async def open(self, label: str, options: dict[str, Any] | None, *, create: bool) -> DurableChannel:
        """The channel of that label; made, or opened anew, when there is none and `create` is true. Raises `RequestError`.

        In a session that has ended there is only what waits to be read.
        """
        create = create and not self._host.record.closed
        channel = self._channels.get(label)
        if channel is None and not create:
            raise RequestError("unknown_channel", f"{self._host.connection_id} has no channel {label!r}")
        if channel is None:
            if label.startswith("rondevu") and not self._reserved:
                raise RequestError("reserved_label", "labels that begin with rondevu are reserved")
            if not frames.valid_label(label):
                raise RequestError("bad_params", f"a label has 1 to {frames.MAX_LABEL} bytes of UTF-8")
            channel = await asyncio.shield(self._create(label, options))
            channel.made_by_attach = True
            return channel
        if options:
            _compare_options(self._configure(label, options, self._plain), channel.settings, label)
        if create and channel.state is ChannelState.CLOSED:
            await self._reopen(channel)
        return channel

    async def _reopen(self, channel: DurableChannel) -> None:
        """Open a closed label anew, and wait until it is (rule 9 of the link)."""
        waiter = asyncio.get_running_loop().create_future()
        self._reopening.setdefault(channel.id, []).append(waiter)
        self._host.lanes.reopen(channel.label)
        self._host.schedule_flush()
        await waiter
        channel.made_by_attach = True

    def reopened(self, channel_id: int, *, by_peer: bool) -> None:
        """A new epoch is stored: go on with who waited for it, or (`by_peer`, if nobody did) offer the label to programs."""
        waiters = self._reopening.pop(channel_id, [])
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        channel = self._by_id.get(channel_id)
        if by_peer and not waiters and channel is not None:
            channel.event("channel", {"waiting": channel.waiting})

    # --- for the peer ----------------------------------------------------------------------------------------------

    def peer_opened(self, label: str, options: ChannelOptions = RELIABLE) -> bool:
        """The peer uses a label that may be new here: make it. False = that is refused."""
        self._retries.pop(label, None)
        if label in self._channels or label in self._announcing:
            return True
        try:
            task = self._create(label, None if options == RELIABLE else _reliability(options))
        except RequestError as error:
            logger.warning("%s: the peer's channel %r is refused: %s", self._host.connection_id, label, error)
            return False
        self._announcing.add(label)
        task.add_done_callback(lambda task: self._announce(label, options, task))
        return True

    def _announce(self, label: str, options: ChannelOptions, task: asyncio.Task[DurableChannel]) -> None:
        self._announcing.discard(label)
        if task.cancelled():
            return
        if task.exception() is None:
            task.result().event("channel", {"waiting": 0})
        elif self._host.connected and not self._stopped and label not in self._retries:
            loop = asyncio.get_running_loop()
            self._retries[label] = loop.call_later(CREATE_RETRY, self.peer_opened, label, options)

    def forget_retries(self) -> None:
        """What the peer announced is over with its link."""
        for timer in self._retries.values():
            timer.cancel()
        self._retries.clear()

    # --- making ----------------------------------------------------------------------------------------------------

    def _create(self, label: str, options: dict[str, Any] | None) -> asyncio.Task[DurableChannel]:
        task = self._creating.get(label)
        if task is None:
            # One that has just been made is in both for a moment.
            if len(self._channels.keys() | self._creating.keys()) >= self._most:
                raise RequestError("bad_params", f"{self._host.connection_id} has {self._most} channels already")
            settings = self._configure(label, options, self._plain)
            name = f"create channel {self._host.connection_id} {label}"
            task = asyncio.get_running_loop().create_task(self._make(label, settings), name=name)
            self._creating[label] = task
            task.add_done_callback(lambda _task: self._created(label))
        return task

    def _created(self, label: str) -> None:
        task = self._creating.pop(label)
        if not task.cancelled() and task.exception() is not None:
            logger.warning("%s: channel %r could not be made: %s", self._host.connection_id, label, task.exception())

    async def _make(self, label: str, settings: ChannelSettings) -> DurableChannel:
        epoch = secrets.token_bytes(frames.EPOCH_BYTES)
        create = CreateChannel(self._host.connection_id, label, settings.durability, epoch, settings.options)
        store = self._host.store(settings.durability)
        store.submit(SaveSession(self._host.record))
        try:
            record = await store.execute(create)
        except StoreError as error:
            raise RequestError("store_failed", f"the channel could not be stored: {error}") from error
        self._host.lanes.add(record, settings.inbox, settings.reliability)
        channel = self._add(record, settings)
        self._host.schedule_flush()
        return channel

    def _add(self, record: ChannelRecord, settings: ChannelSettings) -> DurableChannel:
        budget = self._host.budget(record.durability)
        channel = DurableChannel(
            record, self._host.lanes[record.label], settings, self._host, budget, self._host.latencies
        )
        self._channels[record.label] = self._by_id[record.id] = channel
        return channel

    # --- the end ---------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Make nothing more. Idempotent."""
        self._stopped = True
        self.forget_retries()
        for task in self._creating.values():
            task.cancel()
        for channel_id in list(self._reopening):
            self.reopened(channel_id, by_peer=False)


def stored_settings(
    configure: Configure, label: str, options: bytes, durability: Durability, *, plain: bool
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
    """As users write it."""
    said = {"max_retransmits": options.max_retransmits, "max_packet_life_time": options.max_packet_life_time}
    return {"ordered": options.ordered, **{key: value for key, value in said.items() if value is not None}}


def _compare_options(asked: ChannelSettings, has: ChannelSettings, label: str) -> None:
    one, other = _by_key(asked), _by_key(has)
    keys = sorted(key for key in one if one[key] != other[key])
    if keys:
        raise RequestError(
            "options_differ", f"channel {label!r} exists with other options: {', '.join(keys)}", {"keys": keys}
        )


def _by_key(settings: ChannelSettings) -> dict[str, Any]:
    """The settings by the keys under which users write them."""
    outbox, inbox, reliability = settings.outbox, settings.inbox, settings.reliability
    return {
        "durability": settings.durability,
        "max_queue_size": outbox.max_count,
        "max_queue_bytes": outbox.max_bytes,
        "max_message_age": outbox.max_age,
        "overflow": outbox.overflow,
        "inbox_size": inbox.max_count,
        "inbox_bytes": inbox.max_bytes,
        "max_deliveries": inbox.max_deliveries,
        "ordered": reliability.ordered,
        "max_retransmits": reliability.max_retransmits,
        "max_packet_life_time": reliability.max_packet_life_time,
    }
