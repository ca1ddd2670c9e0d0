"""What the programs of one user have together, and its caps."""

from __future__ import annotations

from weakref import WeakSet

from rondevud.access import Caps
from rondevud.ipc.ports import Channel


class Usage:
    """Of one uid, over all its sockets.

    What is queued is what waits in all channels that the user was a sender of since the daemon started, whoever sent it.
    """

    def __init__(self, caps: Caps) -> None:
        self.caps = caps
        self.clients = 0
        self.parked = 0
        """Payload bytes sent and not confirmed: they are in memory, and perhaps nowhere else."""
        self._channels: WeakSet[Channel] = WeakSet()
        self._queued = 0
        """At most so many bytes are queued or on their way there, as far as this user's own messages go."""

    def sends_on(self, channel: Channel) -> None:
        """The user has a producer there. Idempotent."""
        if channel not in self._channels:
            self._channels.add(channel)
            self._queued += channel.queue_bytes

    def set_caps(self, caps: Caps) -> None:
        self.caps = caps
        self._queued = self._count()

    def _count(self) -> int:
        return self.parked + sum(channel.queue_bytes for channel in self._channels)

    def client_refusal(self) -> str | None:
        """Why there cannot be one more client, if that is so."""
        if self.caps.max_clients is None or self.clients < self.caps.max_clients:
            return None
        return f"[access] max_clients: {self.clients} clients of this user are connected"

    def refusal(self, size: int) -> str | None:
        """Why a message of `size` bytes is not taken, if that is so; what is taken is counted."""
        most = self.caps.max_parked_bytes
        if most is not None and self.parked and self.parked + size > most:
            return f"[access] max_parked_bytes: {self.parked} bytes of this user are unconfirmed, of {most}"
        most = self.caps.max_queue_bytes
        if most is not None:
            if self._queued + size > most:
                self._queued = self._count()
            if self._queued + size > most:
                return f"[access] max_queue_bytes: {self._queued} bytes of this user are queued, of {most}"
            self._queued += size
        return None

    @property
    def empty(self) -> bool:
        """Whether it can be forgotten: nothing is connected, nothing waits."""
        return not self.clients and not any(channel.queue_bytes for channel in self._channels)
