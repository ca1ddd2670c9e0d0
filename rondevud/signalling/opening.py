"""Which client a signalling server gets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rondevud.errors import ConfigError
from rondevud.signalling.identity import Identities
from rondevud.signalling.rest import RestSignalling

if TYPE_CHECKING:
    import aiohttp


async def open_signalling(
    url: str,
    protocol: str,
    identities: Identities,
    *,
    session: aiohttp.ClientSession | None = None,
    timeout: float = 10.0,
    user_agent: str = "rondevud",
) -> RestSignalling:
    """A client for ``protocol`` ``rest`` or ``auto`` (which is the same as long as there is one).

    Asks nothing of the server, so that one that is down does not keep the daemon from starting. Raises `ConfigError`.
    """
    if protocol == "rpc":
        raise ConfigError("signalling protocol rpc: not in this version")
    if protocol not in {"auto", "rest"}:
        raise ConfigError(f"signalling protocol {protocol!r}: expected auto or rest")
    return RestSignalling(url, identities, session=session, timeout=timeout, user_agent=user_agent)
