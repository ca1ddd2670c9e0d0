"""The sessions that are kept, as the methods of the socket see them: listed, forgotten, their peers sent away."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from rondevud import rows
from rondevud.durable.service import DurableService
from rondevud.durable.visits import Visit
from rondevud.errors import RequestError
from rondevud.holdings import Holdings, over, store_errors

Data = dict[str, Any]


class Sessions:
    """Those of connections can be listed only: who dials closes, or reconnects. Every method raises `RequestError`."""

    def __init__(self, holdings: Holdings) -> None:
        self._holdings = holdings
        self._under_way: set[asyncio.Task[Any]] = set()

    def list(self, target: str | None) -> list[Data]:
        """Of a connection, of a service, or all; also of peers that are absent or blocked."""
        holdings = self._holdings
        wanted = None if target is None else {session.connection_id for session in holdings.sessions(target)}
        listed = [rows.of_made_session(made) for made in holdings.by_id.values() if not over(made.session)]
        for service in holdings.all_services():
            visits = [visit for visit in service.visits.values() if not over(visit.session)]
            listed += [rows.of_visiting_session(service, visit) for visit in visits]
        return [row for row in listed if wanted is None or row["connection_id"] in wanted]

    async def forget(self, target: str, *, force: bool) -> Data:
        """Delete a session with what waits in it, for which there has to be `force`."""
        service, visit = self._find(target)
        purged = await self._see_through(service.visits.forget(visit, force=force), f"forget {target}")
        self._holdings.prune()
        return {"connection_id": target, "purged": purged}

    async def kick(self, target: str, pause: float) -> Data:
        """End the link; for `pause` seconds the peer is told to try later."""
        service, visit = self._find(target)
        return {"connection_id": target, "was_connected": service.visits.kick(visit, pause)}

    async def block(self, target: str) -> Data:
        """End the link, and refuse the peer until `unblock`. Idempotent."""
        service, visit = self._find(target)
        linked = await self._see_through(service.visits.block(visit), f"block {target}")
        return {"connection_id": target, "blocked": True, "was_connected": linked}

    async def unblock(self, target: str) -> Data:
        """Take the peer again. Idempotent."""
        service, visit = self._find(target)
        await self._see_through(service.visits.unblock(visit), f"unblock {target}")
        return {"connection_id": target, "blocked": False}

    def _find(self, target: str) -> tuple[DurableService, Visit]:
        self._holdings.refuse_if_stopping()
        if target.startswith("service:"):
            raise RequestError("bad_target", "this needs the id of one session, not a service")
        found = self._holdings.visit(target)
        if found is None:
            self._holdings.connection(target)
            raise RequestError("bad_target", f"{target} is a connection of this side: it can be closed or reconnected")
        if found[1].ending:
            raise RequestError("unknown_target", f"{target} is being closed")
        return found

    async def _see_through(self, work: Coroutine[Any, Any, Any], name: str) -> Any:
        """Do it to its end, also if the program that asked for it leaves."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._under_way.add(task)
        task.add_done_callback(self._done)
        await asyncio.wait({task})
        with store_errors():
            return task.result()

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # it has been told, also when nobody waits for it any more
