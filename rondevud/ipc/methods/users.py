"""Methods about user names at the signalling server."""

from __future__ import annotations

from typing import Any

from rondevud.ipc.session import Session
from rondevud.ipc.table import Table, text


async def claim(session: Session, params: dict[str, Any]) -> dict[str, Any]:
    return await session.house.claim(params["username"])


async def check(session: Session, params: dict[str, Any]) -> dict[str, Any]:
    return await session.house.check(params["username"])


def register(table: Table) -> None:
    table.method("claim", "Claim a user name with this daemon's key for it.", username=text(required=True))(claim)
    table.method("check", "Whether a user name is free or whose it is.", username=text(required=True))(check)
