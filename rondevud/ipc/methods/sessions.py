"""Methods about sessions: what is kept of peers, and how they are sent away."""

from __future__ import annotations

from typing import Any

from rondevud.ipc.session import Session
from rondevud.ipc.table import Table, flag, seconds, text

PAUSE = 10.0
"""Seconds that a peer which is kicked has to stay away, unless told otherwise."""


def sessions(session: Session, params: dict[str, Any]) -> list[dict[str, Any]]:
    return session.visible(session.house.sessions.list(params["target"]))


async def forget(session: Session, params: dict[str, Any]) -> dict[str, Any]:
    return await session.house.sessions.forget(params["target"], force=params["force"])


async def kick(session: Session, params: dict[str, Any]) -> dict[str, Any]:
    pause = PAUSE if params["pause"] is None else params["pause"]
    return await session.house.sessions.kick(params["target"], pause)


async def block(session: Session, params: dict[str, Any]) -> dict[str, Any]:
    return await session.house.sessions.block(params["target"])


async def unblock(session: Session, params: dict[str, Any]) -> dict[str, Any]:
    return await session.house.sessions.unblock(params["target"])


def register(table: Table) -> None:
    table.method("sessions", "The sessions that are kept, of a connection, a service, or all.", target=text())(sessions)
    table.method(
        "forget", "Delete a session, with force what waits in it, too.", target=text(required=True), force=flag()
    )(forget)
    table.method(
        "kick", "End a session's link; its peer may come back later.", target=text(required=True), pause=seconds()
    )(kick)
    table.method("block", "End a session's link and refuse its peer.", target=text(required=True))(block)
    table.method("unblock", "Take the peer of a session again.", target=text(required=True))(unblock)
