"""What can be said when a channel is attached to."""

from __future__ import annotations

from typing import Any, TypedDict

CREDIT = 256
"""Messages a channel receives ahead of the program."""


class AttachParameters(TypedDict, total=False):
    """What `Daemon.attach` takes beside target and label."""

    mode: str
    """``exclusive`` (receive alone; the default), ``shared`` (each message to one of several), ``observe`` (see a copy) or
    ``send``."""
    takeover: bool
    """Take it from who has it; else `RequestRefused` with ``in_use`` or ``producer_in_use``."""
    producer: bytes | None
    """1 to 64 bytes under which the numbers of what is sent are kept, for a program with an outbox of its own."""
    credit: int
    """Messages to receive ahead of the program; 256."""
    confirm_sent: bool
    """Whether the daemon is to say what it has handed to a data channel, for `Channel.wait_sent`; false."""
    auto_ack: bool
    """Whether asking for the next message acknowledges the one before it; true."""
    ordered: bool | None
    """Whether messages keep their order; true. If not, or with one of the next two, the channel is unreliable: what is sent
    is not acknowledged by the peer. These and `options` count where this makes the channel, else: ``options_differ``."""
    max_retransmits: int | None
    """How often a message is sent again before it is given up."""
    max_packet_life_time: int | None
    """Milliseconds for which a message is sent again before it is given up."""
    options: dict[str, Any] | None
    """Further options of the channel, such as ``durability`` and the limits of its queue."""


def attach_request(parameters: AttachParameters) -> tuple[dict[str, Any], int]:
    """The parameters of the request, and the credit. Raises `ValueError`."""
    mode, credit = parameters.get("mode", "exclusive"), parameters.get("credit", CREDIT)
    if credit < 1:
        raise ValueError("credit must be 1 or more")
    options = dict(parameters.get("options") or {})
    reliability = {
        "ordered": parameters.get("ordered"),
        "max_retransmits": parameters.get("max_retransmits"),
        "max_packet_life_time": parameters.get("max_packet_life_time"),
    }
    options |= {key: value for key, value in reliability.items() if value is not None}
    request = {
        "mode": mode,
        "acknowledged": mode != "observe",
        "confirm_sent": parameters.get("confirm_sent") or None,
        "options": options or None,
    }
    return request, credit if mode != "send" else 0
