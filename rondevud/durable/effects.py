"""What a session machine wants done, and what it reports: its output, to be carried out in order."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, TypeAlias

from rondevud.durable.outgoing import Verdict
from rondevud.records import Durability, Operation
from rondevud.transport.base import RELIABLE, ChannelOptions

LinkKey: TypeAlias = Hashable
"""Whatever the owner calls a link by."""


@dataclass(frozen=True, slots=True)
class Transmit:
    """Hand one frame to the data channel of a link."""

    link: LinkKey
    data: bytes


@dataclass(frozen=True, slots=True)
class CloseLink:
    """Close the WebRTC connection of a link now: the goodbyes have been said, or there is nobody to say them to."""

    link: LinkKey


@dataclass(frozen=True, slots=True)
class Execute:
    """Submit an operation to the store and hand its outcome to `Session.completed`."""

    operation: Operation[Any]


@dataclass(frozen=True, slots=True)
class CreateLabel:
    """The peer announced a label that is new here: make the channel in the store, then `Session.add_channel`."""

    label: str
    durability: Durability
    options: ChannelOptions = RELIABLE


@dataclass(frozen=True, slots=True)
class OpenDataChannel:
    """Both sides have announced an unreliable label on the current link: open a data channel for it."""

    label: str


@dataclass(frozen=True, slots=True)
class OptionsTaken:
    """The two sides announced a label with other options; from now on it has the peer's, which win."""

    label: str
    options: ChannelOptions


@dataclass(frozen=True, slots=True)
class LinkUp:
    """A link carries the session from now on. `resumed` is what the welcome said."""

    link: LinkKey
    resumed: bool
    replaced: bool
    """Whether another link of the session was up until now."""


@dataclass(frozen=True, slots=True)
class LinkDown:
    """A link no longer serves. When `current`, the session has no link now.

    `code` is a goodbye's, a refuse's, or ``transport`` (the connection broke). A welcome without a proof is ``protocol``.
    """

    link: LinkKey
    current: bool
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Suspect:
    """Nothing has been heard on the current link for `silence` seconds; or it is the peer that says so of this side."""

    link: LinkKey
    silence: float
    unheard: bool
    """Whether it is the peer that hears nothing."""

    def as_text(self) -> str:
        return "the peer hears nothing any more" if self.unheard else f"nothing heard for {self.silence:.1f} s"


@dataclass(frozen=True, slots=True)
class Recovered:
    """The suspect link has been heard again."""

    link: LinkKey


@dataclass(frozen=True, slots=True)
class ChannelResumed:
    """Rule 10: the verdict on one direction of a channel on this link."""

    label: str
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class ChannelOpened:
    """Both [8] of the current link are there: what is sent goes out."""

    label: str
    peer_durability: Durability


@dataclass(frozen=True, slots=True)
class ChannelClosed:
    """Both closing messages have been stored and acknowledged."""

    label: str


@dataclass(frozen=True, slots=True)
class SessionFailed:
    """The session cannot go on without somebody's help: ``session_conflict``, ``denied`` or ``store_conflict``."""

    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class LabelRefused:
    """The peer announced one label more than `max_channels`; it waits unanswered."""

    label: str
    reason: str


Effect: TypeAlias = (
    Transmit
    | CloseLink
    | Execute
    | CreateLabel
    | OpenDataChannel
    | OptionsTaken
    | LinkUp
    | LinkDown
    | Suspect
    | Recovered
    | ChannelResumed
    | ChannelOpened
    | ChannelClosed
    | SessionFailed
    | LabelRefused
)
