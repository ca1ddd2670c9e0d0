"""The limit of open files: each client, each link and each open offer takes some."""

from __future__ import annotations

import logging
import resource

logger = logging.getLogger(__name__)

WANTED = 4_096
"""A thousand clients, a hundred links with their sockets for each network address, and as much again."""


def raise_limit() -> int:
    """Raise the soft limit to what is wanted, as far as the hard one allows; answers the limit that holds then.

    Systems give 1,024 by default, for the sake of programs that use select(2).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft == unlimited or soft >= WANTED:
        return WANTED if soft == unlimited else soft
    limit = WANTED if hard == unlimited else min(WANTED, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    if limit < WANTED:
        logger.warning("Only %d files may be open (%d are wanted): many clients may find no room", limit, WANTED)
    return limit
