"""The few words of SDP that two daemons exchange: the link mark and the certificate fingerprints.

Everything is read from the text that signalling carried: WebRTC engines drop attributes they do not know (aiortc and
Chromium drop ``x-rondevu-link``).
"""

from __future__ import annotations

import contextlib
import ipaddress
import re

from rondevud.durable.frames import VERSION
from rondevud.errors import TransportError
from rondevud.signalling.base import Candidate

_MEDIA = re.compile(r"^m=", re.MULTILINE)
_MARK = re.compile(r"^a=x-rondevu-link:([0-9 ]+?)[ \t]*\r?$", re.MULTILINE)
_CANDIDATE = re.compile(r"^a=(candidate:[^\r\n]+)", re.MULTILINE)
_FINGERPRINT = re.compile(
    r"^a=fingerprint:sha-256[ \t]+([0-9a-f]{2}(?::[0-9a-f]{2}){31})[ \t]*\r?$", re.MULTILINE | re.IGNORECASE
)


def mark(sdp: str, version: int = VERSION) -> str:
    """`sdp` with the session-level line that offers, or chooses, the link protocol."""
    end = "\n" if "\n" in sdp and "\r\n" not in sdp else "\r\n"
    head, media = _split(sdp)
    if head and not head.endswith("\n"):
        head += end
    return f"{head}a=x-rondevu-link:{version}{end}{media}"


def link_versions(sdp: str) -> frozenset[int]:
    """The versions of the link protocol that the writer of `sdp` speaks; empty = a plain peer."""
    found = _MARK.search(_split(sdp)[0])
    return frozenset(int(word) for word in found[1].split()[:16] if len(word) < 10) if found else frozenset()


def fingerprint(sdp: str) -> bytes:
    """The SHA-256 fingerprint of the writer's certificate, 32 bytes. Raises `TransportError` when there is none."""
    found = _FINGERPRINT.search(sdp)
    if found is None:
        raise TransportError("the SDP has no a=fingerprint:sha-256 line")
    return bytes.fromhex(found[1].replace(":", ""))


def candidates(sdp: str) -> list[Candidate]:
    """The candidates in `sdp`, as they are trickled."""
    return [Candidate(line, "0", 0) for line in _CANDIDATE.findall(sdp)]


def addresses(sdp: str) -> frozenset[str]:
    """The addresses of the candidates in `sdp`, in their usual spelling; names are left out."""
    found = set()
    for line in _CANDIDATE.findall(sdp):
        with contextlib.suppress(ValueError, IndexError):
            found.add(str(ipaddress.ip_address(line.split()[4])))
    return frozenset(found)


def _split(sdp: str) -> tuple[str, str]:
    """The session level, and the media sections."""
    media = _MEDIA.search(sdp)
    return (sdp[: media.start()], sdp[media.start() :]) if media else (sdp, "")
