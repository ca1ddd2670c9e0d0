"""A rate limit per client address: token buckets. Sans-I/O, times are seconds of any steady clock."""

from __future__ import annotations

import functools
import ipaddress
from collections import OrderedDict

MAX_ADDRESSES = 10_000
"""Addresses remembered; beyond it the one not seen for longest starts afresh."""


class RateLimiter:
    """Lets `rate` requests a second pass for each address, and `burst` at once."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = float(burst)
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """Address → (tokens, when they were counted)."""

    def check(self, address: str, now: float) -> float:
        """Count a request; 0 when it may pass, else the seconds after which one would."""
        key = address_key(address)
        tokens, counted = self._buckets.pop(key, (self._burst, now))
        tokens = min(self._burst, tokens + max(0.0, now - counted) * self._rate)
        passes = tokens >= 1.0
        self._buckets[key] = (tokens - 1.0 if passes else tokens, now)
        if len(self._buckets) > MAX_ADDRESSES:
            self._buckets.popitem(last=False)
        return 0.0 if passes else (1.0 - tokens) / self._rate


def address_key(address: str) -> str:
    """What shares a bucket: an IPv4 address, or the /64 network of an IPv6 one."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.IPv6Network((int(parsed) >> 64 << 64, 64)))
    return str(parsed)


@functools.lru_cache(maxsize=1_000)
def is_loopback(address: str) -> bool:
    """Whether the address is this host's own."""
    try:
        return ipaddress.ip_address(address_key(address).partition("/")[0]).is_loopback or address == "::1"
    except ValueError:
        return False
