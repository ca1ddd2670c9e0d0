"""Looking into queues and emptying them."""

from __future__ import annotations

from typing import Any

from rondevud.ipc.session import Session
from rondevud.ipc.table import Table, choice, text


def channels(session: Session, params: dict[str, Any]) -> list[dict[str, Any]]:
    return session.house.channels(params["target"])


async def queue(session: Session, params: dict[str, Any]) -> dict[str, Any]:
    return await session.house.queue(params["target"], params["label"])


async def purge(session: Session, params: dict[str, Any]) -> dict[str, Any]:
    return await session.house.purge(params["target"], params["label"], params["direction"])


def register(table: Table) -> None:
    table.method("channels", "The channels of a connection or service.", target=text(required=True))(channels)
    table.method("queue", "What a channel holds.", target=text(required=True), label=text(required=True))(queue)
    table.method(
        "purge",
        "Remove what a channel holds.",
        target=text(required=True),
        label=text(required=True),
        direction=choice("out", "in", "both", required=True),
    )(purge)
