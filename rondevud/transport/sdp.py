"""Checks on session descriptions and candidates that came from strangers, before an engine sees them.

Engines answer a bad text with whatever their parser stumbles over, some of it in background tasks that nobody awaits.
What can be said about a text without them is said here, as a `TransportError` that names the problem.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from typing import Literal, NamedTuple, TypeAlias

from rondevud.errors import TransportError

Kind: TypeAlias = Literal["offer", "answer"]
Attributes: TypeAlias = dict[str, list[str]]

MAX_SDP = 64 * 1024
"""Characters of a description; those of browsers with data channels only have about 1,000 to 3,000."""

MAX_CANDIDATES = 64
"""Candidates taken from one peer: each is a destination that this machine sends checks to."""

MAX_ADDRESS = 45
"""Characters of the longest spelling of an IPv6 address: one that ends with an IPv4 address."""

_MEDIA = re.compile(r"m=application (\d{1,5}) ((?:UDP/|TCP/)?DTLS/SCTP) (\S+)\s*")
_CREDENTIAL = re.compile(r"[\x21-\x7e]{1,256}")
_FINGERPRINT = re.compile(r"(?i:sha-(?:256|384|512)) [0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2}){31,63}")
_LOOKED_AT = ("mid", "group", "sctp-port", "ice-ufrag", "ice-pwd", "fingerprint", "setup")
_SETUP = {"offer": ("actpass", "active", "passive"), "answer": ("active", "passive")}


class Candidate(NamedTuple):
    """A UDP candidate of component 1 whose address is an IP address."""

    foundation: str
    priority: int
    address: str
    port: int
    type: str
    """``host``, ``srflx`` or ``relay``."""


class Description(NamedTuple):
    text: str
    """The description without the candidates that cannot be used, and without ``end-of-candidates``."""
    candidates: int
    ignored: int
    """How many candidates were taken out: mDNS names, TCP, other components, malformed or too many."""


def parse_candidate(text: str) -> Candidate | None:
    """Read ``candidate:…`` (RFC 8839 §5.1, with or without ``a=``); None when it cannot be used.

    That is: a name in place of an address (browsers hide theirs behind ``….local``), another transport than UDP, a
    component other than 1, a link-local IPv6 address (it says nothing without its interface), or a malformed line.
    """
    words = text.strip().removeprefix("a=").removeprefix("candidate:").split()
    if len(words) < 8 or words[6] != "typ" or words[7] not in {"host", "srflx", "relay"}:
        return None
    foundation, component, transport, priority, address, port = words[:6]
    if component != "1" or transport.lower() != "udp" or not _is_number(priority, 2**32) or not _is_number(port, 2**16):
        return None
    ip = _connectable(address) if len(address) <= MAX_ADDRESS else None
    return None if ip is None else Candidate(foundation[:32], int(priority), ip, int(port), words[7])


@functools.lru_cache(maxsize=256)
def _connectable(address: str) -> str | None:
    """An IP address that something can be sent to, in its usual spelling; else None."""
    try:
        ip = ipaddress.IPv6Address(address) if ":" in address else ipaddress.IPv4Address(address)
    except ValueError:
        return None
    if ip.is_unspecified or ip.is_multicast or "%" in address or (ip.version == 6 and ip.is_link_local):
        return None
    return str(ip)


def check_description(text: str, kind: Kind) -> Description:
    """Make sure that `text` describes one data section that can be connected to, and take bad candidates out.

    Raises `TransportError`. The end of candidates is taken out too: engines give up when they have tried everything that
    was announced, or ignore what is trickled later, though a peer may still turn up from an address nobody announced.
    """
    if len(text) > MAX_SDP:
        raise TransportError(f"unusable {kind}: {len(text)} characters long, at most {MAX_SDP} are taken")
    lines = text.splitlines()
    if not lines or not lines[0].startswith("v="):
        raise TransportError(f"unusable {kind}: not an SDP text (it does not begin with v=)")
    attributes = _attributes(lines)
    _check_media([line for line in lines if line.startswith("m=")], attributes, kind)
    _check_security(attributes, kind)
    kept = []
    candidates = ignored = 0
    for line in lines:
        if line.startswith("a=candidate:"):
            if candidates == MAX_CANDIDATES or parse_candidate(line) is None:
                ignored += 1
                continue
            candidates += 1
        elif line.rstrip() == "a=end-of-candidates":
            continue
        kept.append(line)
    return Description("\r\n".join(kept) + "\r\n", candidates, ignored)


def _check_media(media: list[str], attributes: Attributes, kind: Kind) -> None:
    if not any(line.startswith("m=application ") for line in media):
        raise TransportError(f"unusable {kind}: no data section (m=application)")
    if len(media) > 1:
        raise TransportError(f"unusable {kind}: {len(media)} media sections, only one for data is supported")
    match = _MEDIA.fullmatch(media[0])
    if match is None:
        raise TransportError(f"unusable {kind}: the data section is not SCTP over DTLS: {media[0][:80]!r}")
    if match[1] == "0":
        raise TransportError(f"unusable {kind}: the data section is rejected (port 0)")
    # The older form "DTLS/SCTP 5000" names the SCTP port instead of a=sctp-port (RFC 8841 and its drafts before -26).
    ports = [match[3]] if match[2] == "DTLS/SCTP" else attributes["sctp-port"]
    if len(ports) != 1 or not _is_number(ports[0], 2**16):
        raise TransportError(f"unusable {kind}: no valid SCTP port (a=sctp-port)")
    for group in attributes["group"]:
        semantic, first, *others = (*group.split(), "", "")
        # aiortc would take the transport of the section that is named first, which is none.
        if semantic == "BUNDLE" and first not in attributes["mid"] and not set(others).isdisjoint(attributes["mid"]):
            raise TransportError(
                f"unusable {kind}: the data section is bundled with one that is not there: {first[:80]!r}"
            )


def _check_security(attributes: Attributes, kind: Kind) -> None:
    for name, meaning in (("ice-ufrag", "ICE user name"), ("ice-pwd", "ICE password")):
        values = attributes[name]
        if not values or not all(_CREDENTIAL.fullmatch(value) for value in values):
            raise TransportError(f"unusable {kind}: no valid {meaning} (a={name})")
    if not any(_FINGERPRINT.fullmatch(value) for value in attributes["fingerprint"]):
        raise TransportError(f"unusable {kind}: no certificate fingerprint (a=fingerprint with sha-256 or longer)")
    setup = attributes["setup"]
    if not setup or setup[-1] not in _SETUP[kind]:
        raise TransportError(f"unusable {kind}: DTLS role (a=setup) is not one of {', '.join(_SETUP[kind])}")


def _attributes(lines: list[str]) -> Attributes:
    """The values of the lines ``a=NAME:VALUE`` of every name that is looked at."""
    found: Attributes = {name: [] for name in _LOOKED_AT}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon and name.startswith("a=") and name[2:] in found:
            found[name[2:]].append(value.strip())
    return found


def _is_number(text: str, limit: int) -> bool:
    """Whether `text` is a decimal number from 1 to limit - 1 (`str.isdigit` alone takes other scripts' digits)."""
    return text.isascii() and text.isdigit() and len(text) <= 10 and 0 < int(text) < limit
