"""What the signalling server checks in a request, with the texts it answers. Sans-I/O: time comes as an argument.

A failed check raises `Refusal`. The texts are part of the protocol: clients show and compare them.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

MESSAGE_WINDOW = 300_000
"""Milliseconds by which the timestamp of a signed message may differ from the server's clock."""

MAX_SDP = 65_536
"""UTF-16 units."""

MAX_OFFER_SECRET = 128
"""Characters of an offer's secret that are kept."""

_USERNAME = re.compile(r"[a-z0-9][a-z0-9-]*[a-z0-9]")
_LABEL = r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
_SERVICE_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})+")
_VERSION = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+(?:-[a-z0-9.-]+)?")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_TIMESTAMP = re.compile(r"-?[0-9]{1,20}")

INTERNAL = "Internal server error"


class Refusal(Exception):
    """A request that is refused, with the HTTP status and the members of the answer."""

    def __init__(self, status: int, error: str, **members: str) -> None:
        super().__init__(error)
        self.status = status
        self.body: dict[str, Any] = {"error": error, **members}


def is_absent(value: Any) -> bool:
    """What the protocol calls missing or empty: no value, an empty text, 0 or false (but not an empty list or map)."""
    return value is None or value is False or (isinstance(value, (str, int, float)) and not value)


def require_members(body: Any, *names: str) -> dict[str, Any]:
    """The body as a map that has all of these members. A list or a bare value counts as an empty map."""
    members = body if isinstance(body, dict) else {}
    if any(is_absent(members.get(name)) for name in names):
        plural = "s" if len(names) > 1 else ""
        raise Refusal(400, f"Missing required parameter{plural}: {', '.join(names)}")
    return members


def check_username(username: Any) -> str:
    if not isinstance(username, str):
        raise Refusal(400, "Username must be a string")
    if len(username) < 3:
        raise Refusal(400, "Username must be at least 3 characters")
    if len(username) > 32:
        raise Refusal(400, "Username must be at most 32 characters")
    if not _USERNAME.fullmatch(username):
        raise Refusal(
            400, "Username must be lowercase alphanumeric with optional dashes, and start/end with alphanumeric"
        )
    return username


def check_fqn(fqn: Any) -> str:
    """``name@version``: a name of at least two labels, a version of three numbers."""
    parts = fqn.split("@") if isinstance(fqn, str) else []
    if len(parts) != 2:
        raise Refusal(400, "Service FQN must be in format: service-name@version")
    name, version = parts
    if len(name) > 128:  # before the pattern, so that its work stays small; at least 3 follows from two labels
        raise Refusal(400, "Service name must be 3-128 characters")
    if not _SERVICE_NAME.fullmatch(name):
        raise Refusal(400, "Service name must be reverse domain notation (e.g., com.example.service)")
    if len(version) > 256 or not _VERSION.fullmatch(version):
        raise Refusal(400, "Version must be semantic versioning (e.g., 1.0.0, 2.1.3-beta)")
    return str(fqn)


def check_sdp(sdp: Any, *, status: int = 400, invalid: str = "Invalid SDP") -> str:
    if not isinstance(sdp, str) or not sdp:
        raise Refusal(status, invalid)
    if len(sdp) > MAX_SDP or len(sdp.encode("utf-16-le")) > 2 * MAX_SDP:
        raise Refusal(status, "SDP too large (max 64KB)")
    return sdp


def check_signed_message(message: str, words: list[str], public_key: Any, signature: Any, now: int) -> None:
    """`message` is ``word:word:…:timestamp`` inside the window, and signed.

    Raises `Refusal` with status 400; `words` are the parts before the timestamp.
    """
    *start, stamp = message.split(":")
    if start != words:
        expected = ":".join([words[0], *(("{username}", "{serviceFqn}")[: len(words) - 1]), "{timestamp}"])
        raise Refusal(400, f"Invalid message format (expected: {expected})")
    if not _TIMESTAMP.fullmatch(stamp):
        raise Refusal(400, "Invalid timestamp in message")
    if abs(now - int(stamp)) > MESSAGE_WINDOW:
        raise Refusal(400, f"Timestamp too old or too far in future (tolerance: {MESSAGE_WINDOW // 1000}s)")
    if not _is_signed(message, public_key, signature):
        raise Refusal(400, "Invalid signature")


def _is_signed(message: str, public_key: Any, signature: Any) -> bool:
    try:
        key = Ed25519PublicKey.from_public_bytes(decode_base64(public_key))
        key.verify(decode_base64(signature), message.encode())
    except (ValueError, InvalidSignature):
        return False
    return True


def decode_base64(text: Any) -> bytes:
    """Standard base64, padding optional. Raises `ValueError`."""
    if not isinstance(text, str):
        raise ValueError("not a text")  # noqa: TRY004 - one error for all that is not base64
    stripped = text.rstrip("=")
    try:
        return base64.b64decode(stripped + "=" * (-len(stripped) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from error


def effective_ttl(ttl: Any, *, default: int, minimum: int, maximum: int) -> int | None:
    """Milliseconds an offer lives: what was asked for, within the bounds. None when `ttl` is not a number."""
    if is_absent(ttl):
        ttl = default
    elif isinstance(ttl, str):
        text = ttl.strip()
        ttl = float(text) if len(text) <= 64 and _NUMBER.fullmatch(text) else math.nan
    if not isinstance(ttl, (int, float)) or ttl != ttl:  # noqa: PLR0124 - only NaN differs from itself
        return None
    return int(min(max(ttl, minimum), maximum))


def parse_since(text: str | None) -> float:
    """Where to read candidates from: 0 without a parameter, infinity (nothing is newer) when it is not a number."""
    if not text:
        return 0.0
    return float(text) if len(text) <= 64 and _NUMBER.fullmatch(text) else math.inf
