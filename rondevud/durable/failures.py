"""Messages that programs die of: how often each one was the end of a program, and what is set aside.

A delivery counts against the first message that a program had not acknowledged when it went away; what it was given beyond
that is not to blame. A delivery that is not the first one is counted, and stored, before it is made: so a message that takes
the daemon with it does not come for ever, only perhaps once more than it should.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from enum import Enum
from functools import partial
from typing import Any

from rondevud.durable.outbox import Host
from rondevud.errors import RequestError, StoreError
from rondevud.failed import Aside, CountTry, FailedMessage, FailedPage, Freed, FreeFailed, ReadFailed, SetAside
from rondevud.records import ChannelRecord, InMessage

logger = logging.getLogger(__name__)

HEAD_BYTES = 64
"""Bytes of a message that is set aside which its description shows."""


class Answer(Enum):
    """What became of a message about which the store was asked."""

    DELIVER = "deliver"
    """It may be handed over now."""
    ASIDE = "aside"
    """It has left the inbox."""
    READ = "read"
    """It has to be read again."""
    GONE = "gone"
    """It was removed meanwhile."""


class Failures:
    """Of one inbox. `limit` is after how many deliveries a message is set aside; None = never."""

    def __init__(self, record: ChannelRecord, host: Host, limit: int | None = None) -> None:
        self.limit = limit
        self.count = record.failed
        """Messages that are set aside."""
        self.size = record.failed_bytes
        """Their bytes of payload."""
        self._id = record.id
        self._name = f"{record.connection_id}/{record.label}"
        self._host = host
        self._tries: dict[int, int] = {}
        """By row, where it is more than 0."""
        self._counted: set[int] = set()
        """Rows whose delivery that is due, or under way, counts already."""
        self._apart: set[int] = set()
        """Rows that are in the store's hands, and that nobody gets before it has answered."""

    def __contains__(self, row: int) -> bool:
        """Whether nobody may have that row now."""
        return row in self._apart

    # --- what happens to messages ----------------------------------------------------------------------------------

    def given(self, message: InMessage) -> None:
        """One against which deliveries count is handed over."""
        self._tries.setdefault(message.row, message.tries)

    def gave_up(self, row: int) -> None:
        """A program went away, and `row` was the first one that it had not acknowledged."""
        if row in self._counted:
            self._counted.discard(row)
            return
        self._tries[row] = tries = self._tries.get(row, 0) + 1
        self._host.execute(CountTry(self._id, row, tries))

    def forget(self, first: int, behind: int) -> None:
        """The rows ``first … behind - 1`` are gone."""
        for rows in (self._counted, self._apart):
            rows.difference_update([row for row in rows if first <= row < behind])
        for row in [row for row in self._tries if first <= row < behind]:
            del self._tries[row]

    # --- before a delivery -----------------------------------------------------------------------------------------

    def judge(self, message: InMessage, *, redelivered: bool, again: Callable[[Answer], None]) -> bool:
        """Whether a message may be handed over now to a program that has nothing else.

        If not, nobody gets it until the store has answered; `again` hears what became of it.
        """
        row = message.row
        tries = self._tries.get(row, message.tries)
        if self.limit is None or (row in self._counted and tries <= self.limit):
            return True
        if tries >= self.limit:
            self._apart.add(row)
            operation = SetAside(self._id, row, tries, self._host.stamp())
            self._host.execute(operation, partial(self._set_aside, message, tries, again))
            return False
        if not redelivered and not tries:
            return True
        self._apart.add(row)
        self._tries[row] = tries + 1
        self._counted.add(row)
        self._host.execute(CountTry(self._id, row, tries + 1), partial(self._stored, row, again))
        return False

    def _stored(self, row: int, again: Callable[[Answer], None], _outcome: Any) -> None:
        """A count that cannot be stored keeps nobody from a message."""
        held = row in self._apart
        self._apart.discard(row)
        again(Answer.DELIVER if held else Answer.GONE)

    def _set_aside(
        self, message: InMessage, tries: int, again: Callable[[Answer], None], outcome: Aside | StoreError | None
    ) -> None:
        row = message.row
        if isinstance(outcome, Aside):
            self.forget(row, row + 1)
            self.count += 1
            self.size += outcome.size
            self._host.count("failed")
            facts = {"id": message_id(message), "attempts": tries, "size": outcome.size}
            logger.warning(
                "%s: message %s is set aside: delivered %d times and not acknowledged", self._name, facts["id"], tries
            )
            self._host.event("message_failed", facts)
            again(Answer.ASIDE)
        elif row in self._apart:
            self._apart.discard(row)
            self._counted.add(row)  # it can only be tried once more
            again(Answer.READ)
        else:
            again(Answer.GONE)

    # --- what is set aside -----------------------------------------------------------------------------------------

    async def read(self, most: int) -> list[dict[str, Any]]:
        """The `most` oldest ones, described. Raises `RequestError` when the store fails."""
        found: list[FailedMessage] = []
        row = 0
        while len(found) < most:
            page: FailedPage = await self._host.run(ReadFailed(self._id, row))
            found += page.messages
            row = page.next_row
            if not row:
                break
        return [_description(message) for message in found[:most]]

    async def find(self, id_: str) -> int:
        """The row of a message by its id. Raises `RequestError` ``unknown_message``."""
        row = 0
        while True:
            page: FailedPage = await self._host.run(ReadFailed(self._id, row))
            for message in page.messages:
                if message_id(message) == id_:
                    return message.row
            row = page.next_row
            if not row:
                raise RequestError("unknown_message", f"no message {id_[:100]!r} is set aside here")

    async def free(self, row: int | None, *, put_back: bool, heard: Callable[[Freed], None]) -> int:
        """Put one message (None: all) back or delete it; answers how many. Raises `RequestError`.

        The inbox offers it as `Inbox.put_back` and `Inbox.delete_failed`. `heard` is told of each slice before any later
        operation completes.
        """
        count, more = 0, True
        while more:
            answer: asyncio.Future[Freed | StoreError] = asyncio.get_running_loop().create_future()
            self._host.execute(FreeFailed(self._id, row, put_back), partial(self._freed, answer, heard))
            outcome = await answer
            if isinstance(outcome, StoreError):
                raise RequestError(getattr(outcome, "code", "store_failed"), str(outcome))
            count += outcome.messages
            more = outcome.more
        return count

    def _freed(
        self, answer: asyncio.Future[Freed | StoreError], heard: Callable[[Freed], None], outcome: Freed | StoreError
    ) -> None:
        if isinstance(outcome, Freed):
            self.count = outcome.held
            self.size = max(0, self.size - outcome.size) if self.count else 0
            heard(outcome)
        if not answer.done():
            answer.set_result(outcome)


def message_id(message: InMessage | FailedMessage) -> str:
    """The same in every delivery."""
    return f"{message.epoch.hex() or 'plain'}-{message.seq}"


def message_ids(messages: Sequence[InMessage]) -> list[str]:
    """`message_id` of each."""
    prefixes = {epoch: f"{epoch.hex() or 'plain'}-" for epoch in {message.epoch for message in messages}}
    return [f"{prefixes[message.epoch]}{message.seq}" for message in messages]


def _description(message: FailedMessage) -> dict[str, Any]:
    payload = message.payload or b""
    data = payload.encode() if isinstance(payload, str) else payload
    return {
        "id": message_id(message),
        "attempts": message.tries,
        "size": len(data),
        "text": isinstance(payload, str),
        "head": data[:HEAD_BYTES],
        "enqueued_at": message.enqueued,
        "failed_at": message.failed,
    }
