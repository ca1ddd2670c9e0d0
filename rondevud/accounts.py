"""A channel's books: what became of all its messages, kept in its row and changed with the messages themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from rondevud.records import ChannelRecord, Operation, Reason

_REMOVED = frozenset({Reason.EXPIRED, Reason.OVERFLOW, Reason.PURGED, Reason.TOO_LARGE, Reason.DAMAGED})


@dataclass(slots=True)
class Totals:
    """What became of all messages of a channel since it was made (or since its store has had version 2).

    Always, at every commit:

        accepted = acknowledged + expired + overflow + purged + too_large + damaged + lost + out_count
        received = taken + purged_in + overflow_in + damaged_in + failed + (in_count - in_gaps)

    with the other counts of the channel's record: `failed` is how many messages are set aside at present. A closing
    message counts on its sender's side like any other; it never gets into the inbox, so it is not among what the receiver
    has `received`.
    """

    accepted: int = 0
    acknowledged: int = 0
    """The peer has stored it; a plain peer: it was handed over."""
    expired: int = 0
    overflow: int = 0
    purged: int = 0
    too_large: int = 0
    damaged: int = 0
    lost: int = 0
    """Removed for any other reason."""
    received: int = 0
    taken: int = 0
    """Acknowledged by a program here."""
    purged_in: int = 0
    overflow_in: int = 0
    damaged_in: int = 0

    def remove(self, reason: Reason, count: int) -> None:
        """`count` messages were taken out of the outbox."""
        name = str(reason) if reason in _REMOVED else "lost"
        setattr(self, name, getattr(self, name) + count)

    def mistakes(self, record: ChannelRecord) -> list[str]:
        """What does not add up, for people; nothing, if all is well."""
        removed = self.expired + self.overflow + self.purged + self.too_large + self.damaged + self.lost
        out = self.acknowledged + removed + record.out_count
        removed_in = self.purged_in + self.overflow_in + self.damaged_in
        held = record.in_count - record.in_gaps
        in_ = self.taken + removed_in + record.failed + held
        found = []
        if self.accepted != out:
            text = f"{self.acknowledged} acknowledged, {removed} removed and {record.out_count} held"
            found.append(f"{self.accepted} messages were accepted, and there are {text}")
        if self.received != in_:
            text = f"{self.taken} taken, {removed_in} removed, {record.failed} set aside and {held} held"
            found.append(f"{self.received} messages were received, and there are {text}")
        return found

    def settle(self, record: ChannelRecord) -> None:
        """Make them add up with what `record` counts: what is lacking was damaged, what is too much came somehow."""
        removed = self.expired + self.overflow + self.purged + self.too_large + self.damaged + self.lost
        lacking = self.accepted - self.acknowledged - removed - record.out_count
        self.damaged += max(0, lacking)
        self.accepted += max(0, -lacking)
        removed_in = self.purged_in + self.overflow_in + self.damaged_in
        lacking = self.received - self.taken - removed_in - record.failed - (record.in_count - record.in_gaps)
        self.damaged_in += max(0, lacking)
        self.received += max(0, -lacking)


class Accounts(NamedTuple):
    """A channel's books at one commit."""

    totals: Totals
    out_count: int
    in_count: int
    in_gaps: int
    failed: int
    out_oldest: float | None
    """When the oldest message in the outbox was accepted, seconds since 1970; None without one, or where nobody knows."""
    in_oldest: float | None
    """When the oldest row of the inbox was stored."""


@dataclass(frozen=True, slots=True)
class ReadAccounts(Operation[Accounts]):
    channel: int
