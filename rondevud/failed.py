"""Messages that programs die of: what the durable layer and the stores say to each other about them.

A delivery counts against a message when its program went away while it was the first one that the program had not
acknowledged. A message against which too many count is *set aside*: taken out of the inbox, kept, and put back or deleted
only when somebody asks for that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from rondevud.records import Operation, Payload, Stamp


@dataclass(frozen=True, slots=True)
class CountTry(Operation[None]):
    """Remember with a message of the inbox that `tries` deliveries count against it; nothing if it is not there."""

    channel: int
    row: int
    tries: int


class Aside(NamedTuple):
    seq: int
    size: int


@dataclass(frozen=True, slots=True)
class SetAside(Operation[Aside | None]):
    """Take a message out of the inbox and keep it aside with its `tries`; None when it is not there, or a gap."""

    channel: int
    row: int
    tries: int
    stamp: Stamp


class FailedMessage(NamedTuple):
    """A message that is kept aside."""

    row: int
    """Its row of the inbox, where it was."""
    epoch: bytes
    seq: int
    payload: Payload
    tries: int
    enqueued: float
    failed: float
    """When it was set aside, seconds since 1970."""


class FailedPage(NamedTuple):
    messages: list[FailedMessage]
    next_row: int
    """Read on from this row; 0 = that is all."""


@dataclass(frozen=True, slots=True)
class ReadFailed(Operation[FailedPage]):
    """One page of what is kept aside, from row `row` on. Damaged rows are left out, and not held any more."""

    channel: int
    row: int


class Freed(NamedTuple):
    messages: int
    size: int
    first_row: int
    """Put back: row of the first of them in the inbox."""
    held: int
    """How many are still set aside."""
    more: bool


@dataclass(frozen=True, slots=True)
class FreeFailed(Operation[Freed]):
    """End the keeping aside of one message, or (`row` None) of all, in the order in which they had come.

    With `put_back` they go to the end of the inbox, with no deliveries counted; else they are deleted. A damaged one is
    deleted in either case, and counted as such.
    """

    channel: int
    row: int | None
    put_back: bool
