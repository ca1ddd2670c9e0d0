"""How long a cut link keeps messages back: from the cut to the first message that was sent after it and arrived.

Two daemons in one loop over this host; the service polls for answers every 2 s, as it does unless told otherwise.

    python tests/bench/resume.py [TIMES]
"""

from __future__ import annotations

import asyncio
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from tests.integration.daemons import PATIENCE, Pair, open_pair, open_world

Cut = Callable[[Pair], Awaitable[None]]


async def by_connecting_side(pair: Pair) -> None:
    await pair.visitor.reconnect("chat")


async def by_service(pair: Pair) -> None:
    await pair.program.reconnect(pair.far.connection_id)


async def in_the_engine(pair: Pair) -> None:
    for connection in pair.home.peer_connections(pair.far.connection_id):
        await connection.close()


async def measure(pair: Pair, cut: Cut) -> float:
    """Seconds from a cut to the arrival of a message that was sent right after it."""
    await pair.connected()
    started = time.perf_counter()
    await cut(pair)
    await pair.near.send("after the cut")
    async with asyncio.timeout(PATIENCE):
        await anext(pair.far)
    return time.perf_counter() - started


async def main(times: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        async with open_world(pathlib.Path(directory)) as world:
            pair = await open_pair(world, polling_interval=2.0)
            for cut in (by_connecting_side, by_service, in_the_engine):
                taken = sorted([await measure(pair, cut) for _ in range(times)])
                print(
                    f"cut {cut.__name__.replace('_', ' ')}: median {statistics.median(taken):.2f} s, "
                    f"from {taken[0]:.2f} to {taken[-1]:.2f} s, {times} times"
                )


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20))
