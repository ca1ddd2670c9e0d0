"""What of a session goes without frames: everything towards a plain peer, unreliable labels towards another daemon."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from rondevud.durable.channels import Channels
from rondevud.durable.lanes import Lanes
from rondevud.durable.link import GOODBYE_TIMEOUT
from rondevud.durable.plain import Carry, PlainLink
from rondevud.durable.pool import SERVICE_LABEL
from rondevud.durable.tasks import Tasks
from rondevud.errors import TransportError
from rondevud.records import Reason, payload_size
from rondevud.transport.base import ConnectionState, DataChannel, Message, PeerConnection

logger = logging.getLogger(__name__)


class Session(Protocol):
    """What is needed of the session."""

    connection_id: str

    @property
    def lanes(self) -> Lanes: ...

    @property
    def channels(self) -> Channels: ...

    def count(self, counter: str) -> None: ...

    def schedule_flush(self) -> None: ...

    def plain_ended(self, connection: PeerConnection, reason: str | None) -> None:
        """The connection with the plain peer is over; without a `reason` it was this side that ended it."""


class Unframed:
    """The carries of one session, and the connection with a plain peer if that is what it has."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._plain: PlainLink | None = None
        self._parting: asyncio.TimerHandle | None = None
        """Ends a plain connection whose data channels do not close by themselves."""
        self._carries: dict[str, Carry] = {}
        """The unreliable labels of the current link."""
        self._late: list[Carry] = []
        """Of connections that are gone, with messages whose channel is still being made."""
        self._tasks = Tasks(session.connection_id)

    @property
    def lanes(self) -> Lanes:
        return self._session.lanes

    @property
    def connection(self) -> PeerConnection | None:
        """The connection with a plain peer."""
        return self._plain.connection if self._plain else None

    @property
    def up(self) -> bool:
        """Whether a plain peer is connected."""
        return self._plain is not None and self._parting is None

    def schedule_flush(self) -> None:
        self._session.schedule_flush()

    def flush(self) -> None:
        """Move what can be moved."""
        if self._plain is not None:
            self._plain.flush()
        for carry in (*self._carries.values(), *self._late):
            carry.flush()
        self._late = [carry for carry in self._late if self._still_waits(carry)]

    def _still_waits(self, carry: Carry) -> bool:
        if carry.waiting and carry.lane is None and not self._session.channels.is_making(carry.label):
            carry.drop_early()
        return carry.waiting

    # --- a plain peer ----------------------------------------------------------------------------------------------

    def open(self, connection: PeerConnection, channels: list[DataChannel], *, dialled: bool, most: int) -> None:
        """A connection with a plain peer is up; `channels` are the data channels that it has so far."""
        self.drop()  # one is enough
        plain = self._plain = PlainLink(self, connection, channels, dialled=dialled, max_channels=most)
        connection.on_state = lambda state: self._state_changed(plain, state)
        if connection.state is ConnectionState.CLOSED:  # behind what the engine has kept of its data channels
            asyncio.get_running_loop().call_soon(self._state_changed, plain, connection.state)

    def _state_changed(self, plain: PlainLink, state: ConnectionState) -> None:
        if state is ConnectionState.CLOSED and plain is self._plain:
            # While parting it has been given up already: the peer's end of it is no news.
            self.drop("the connection was closed" if self._parting is None else None)

    def part(self) -> None:
        """Close the data channels behind what was sent, then the connection, within `GOODBYE_TIMEOUT`. Idempotent."""
        if self._plain is not None and self._parting is None:
            self._parting = asyncio.get_running_loop().call_later(GOODBYE_TIMEOUT, self.drop)
            self._plain.part(self.drop)

    def drop(self, reason: str | None = None) -> None:
        """End the connection with a plain peer as it is, if there is one."""
        plain, self._plain = self._plain, None
        if self._parting is not None:
            self._parting.cancel()
            self._parting = None
        if plain is not None:
            self._late += plain.end()
            self._session.plain_ended(plain.connection, reason)

    # --- unreliable labels of a link -------------------------------------------------------------------------------

    def open_label(self, label: str, connection: PeerConnection) -> None:
        """Both sides have announced it on the current link: the connecting one opens its data channel."""
        carry = self._carry(label, connection)
        if not carry.carried:
            try:
                carry.open()
            except TransportError as error:
                logger.warning("%s: label %r cannot be opened: %s", self._session.connection_id, label, error)

    def accept(self, channel: DataChannel, connection: PeerConnection, *, current: bool) -> None:
        """The peer opened a data channel on a link: for an unreliable label that is known, or by mistake."""
        lane = self.lanes.get(channel.label)
        if lane is not None and lane.unreliable and current:
            self._carry(channel.label, connection).add(channel)
        elif channel.label != SERVICE_LABEL:  # every offer has that one; on a link nobody uses it
            known = self._session.connection_id
            logger.info("%s: a data channel %.40r that no link announced is closed", known, channel.label)
            self._session.count("stray_channels")
            channel.close()

    def _carry(self, label: str, connection: PeerConnection) -> Carry:
        if label not in self._carries:
            self._carries[label] = Carry(label, self, connection)
        return self._carries[label]

    def link_ended(self) -> None:
        """The link that the unreliable labels belong to carries the session no more."""
        for carry in self._carries.values():
            carry.end()
        self._carries.clear()

    # --- host of the carries ---------------------------------------------------------------------------------------

    def want_channel(self, label: str) -> bool:
        return self._session.channels.peer_opened(label)

    def unsent(self, label: str) -> bool:
        channel = self._session.channels.get(label)
        return channel is not None and channel.outbox.count > 0

    def label_opened(self, label: str) -> None:
        self._session.channels[label].opened(None)

    def label_stopped(self, label: str) -> None:
        self._session.channels[label].link_lost()

    def label_closed(self, label: str) -> None:
        self._session.channels[label].event("close", {})
        if self._plain is None:  # on a link that is the end of it: daemons close no data channel by accident
            self._tasks.spawn(self._end_label(label), f"end label {label}")

    async def _end_label(self, label: str) -> None:
        """The peer closed an unreliable label: nobody is left who could take what is queued."""
        channel = self._session.channels[label]
        await channel.remove_all(Reason.PURGED)
        channel.close()
        if label in self._carries:
            self._carries[label].over = True

    def in_doubt(self, label: str, count: int) -> None:
        self._session.channels[label].in_doubt(count)

    def dropped(self, label: str) -> None:
        channel = self._session.channels.get(label)
        if channel is not None:
            channel.count("dropped_in")
        else:
            self._session.count("plain_dropped")

    def refuses(self, label: str, message: Message) -> bool:
        incoming = self.lanes[label].incoming
        size = incoming.unstored_bytes + payload_size(message)
        return self._session.channels[label].inbox.refuses(incoming.unstored_items + 1, size)

    def stop(self) -> None:
        """No more tasks and connections. Idempotent."""
        self._tasks.cancel()
        for carry in self._late:
            carry.drop_early()
        self._late.clear()
        self.link_ended()
        self.drop()
