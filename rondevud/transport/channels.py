"""What the data channels of every engine have in common."""

from __future__ import annotations

from typing import Any

from rondevud.errors import TransportError
from rondevud.transport.base import MAX_LABEL, MAX_RELIABILITY, ChannelOptions


def nothing(*_: Any) -> None:
    """Stand in for a handler that nobody has set."""


def check_channel(label: str, protocol: str, options: ChannelOptions) -> None:
    """Raise `TransportError` for what cannot be opened."""
    for what, text in (("label", label), ("protocol", protocol)):
        try:
            size = len(text.encode())
        except UnicodeEncodeError as error:
            raise TransportError(f"the {what} of a channel is not valid Unicode: {error.reason}") from error
        if size > MAX_LABEL:
            raise TransportError(f"the {what} of a channel has {size} bytes, at most {MAX_LABEL} are possible")
    limits = [each for each in (options.max_retransmits, options.max_packet_life_time) if each is not None]
    if len(limits) > 1:
        raise TransportError("max_retransmits and max_packet_life_time cannot both be given")
    if any(not 0 <= each <= MAX_RELIABILITY for each in limits):
        raise TransportError(f"max_retransmits and max_packet_life_time must be from 0 to {MAX_RELIABILITY}")
