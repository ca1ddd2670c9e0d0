"""What a program receives on one attachment of one channel: what it has not taken, and what it is done with. No I/O.

Messages and gaps have tags that rise by one. What the program takes gives credit back to the daemon; what it is done with
is acknowledged, cumulatively. An attachment that is made again has an inbox of its own: tags of an earlier one mean nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias

from rondevu_client.outbox import Payload

Gap: TypeAlias = dict[str, Any]
"""``{first, next, count, reason}`` of messages that will not come."""


class Message:
    """One message received."""

    __slots__ = ("_inbox", "_tag", "attempt", "connection_id", "data", "enqueued_at", "id")

    def __init__(self, inbox: Inbox, tag: int, row: list[Any], connection_id: str) -> None:
        """`row` is ``[payload, id, enqueued, attempt]``, with the connection id behind where it is not the channel's."""
        self._inbox = inbox
        self._tag = tag
        self.data: Payload = row[0]
        """`str` for text, `bytes` for binary."""
        self.id: str = row[1]
        """The same in every redelivery."""
        self.enqueued_at: float = row[2]
        """When the daemon stored it, seconds since 1970."""
        self.attempt: int = row[3]
        """1 for the first delivery."""
        self.connection_id: str = row[4] if len(row) > 4 else connection_id

    def __repr__(self) -> str:
        return f"<Message {self.id} of {self.connection_id}, attempt {self.attempt}, {len(self.data)} long>"

    @property
    def redelivered(self) -> bool:
        """Whether it may have been delivered before."""
        return self.attempt > 1

    async def ack(self) -> None:
        """Done with this message and all before it on its channel. Nothing happens if the socket broke since."""
        self._inbox.acknowledge(self._tag)


class Inbox:
    """`on_due` is called when there may be something to tell the daemon: `take_ack`, `take_credit`."""

    def __init__(self, credit: int, on_due: Callable[[], None]) -> None:
        self._credit = credit
        self._on_due = on_due
        self._items: deque[tuple[int, Message | Gap]] = deque()
        self._last_taken = 0
        self._consumed = 0
        """Taken, and no credit given back for it yet."""
        self._held: dict[object, int] = {}
        """Tag of the message that each consumer has and is not done with."""
        self._ack_due = 0
        self._acked = 0

    def __len__(self) -> int:
        return len(self._items)

    def put(self, tag: int, item: Message | Gap) -> None:
        self._items.append((tag, item))

    def clear(self) -> None:
        """Forget what was not taken."""
        self._items.clear()

    def take(self) -> Message | Gap:
        """The next one. Raises `IndexError` when there is none."""
        self._last_taken, item = self._items.popleft()
        self._consumed += 1
        self._on_due()
        return item

    def take_messages(self, most: int) -> list[Message]:
        """What else is there, up to a gap."""
        taken: list[Message] = []
        items = self._items
        while items and len(taken) < most and isinstance(items[0][1], Message):
            taken.append(items.popleft()[1])  # type: ignore[arg-type]
        if taken:
            self._last_taken = taken[-1]._tag
            self._consumed += len(taken)
            self._on_due()
        return taken

    def acknowledge(self, upto: int) -> None:
        """Done with everything up to that tag."""
        self._ack_due = max(upto, self._ack_due)
        self._on_due()

    def hold(self, consumer: object, message: Message) -> None:
        """`consumer` has that message until `release`."""
        self._held[consumer] = message._tag

    @property
    def consumers(self) -> list[object]:
        """Who has a message."""
        return list(self._held)

    def release(self, consumer: object) -> None:
        """`consumer` is done with what it has, if it has anything."""
        if self._held.pop(consumer, 0):
            self.acknowledge_taken()

    def acknowledge_taken(self) -> None:
        """Done with everything taken, up to the oldest message that a consumer still has."""
        self.acknowledge(min(self._held.values()) - 1 if self._held else self._last_taken)

    def take_ack(self) -> int | None:
        """The tag to acknowledge, once; None when there is nothing new."""
        if self._ack_due <= self._acked:
            return None
        self._acked = self._ack_due
        return self._acked

    def take_credit(self) -> int | None:
        """Credit to give back, in pieces of half of it; None while it is less."""
        if not self._consumed or self._consumed < self._credit // 2:
            return None
        consumed, self._consumed = self._consumed, 0
        return consumed
