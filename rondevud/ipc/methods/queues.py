"""Looking into queues and emptying them."""

from __future__ import annotations

from typing import Any

from rondevud.errors import RequestError
from rondevud.ipc.session import Session
from rondevud.ipc.table import Table, choice, integer, text

MOST_FAILED = 1_000
"""Messages that one answer of `failed` describes at most."""


def channels(session: Session, params: dict[str, Any]) -> list[dict[str, Any]]:
    return session.visible(session.house.channels(params["target"]))


async def queue(session: Session, params: dict[str, Any]) -> dict[str, Any]:
    return await session.house.queue(params["target"], params["label"])


async def purge(session: Session, params: dict[str, Any]) -> dict[str, Any]:
    direction, id_ = params["direction"], params["id"]
    if id_ is not None and direction != "failed":
        raise RequestError("bad_params", "purge: id goes with the direction failed")
    return await session.house.purge(params["target"], params["label"], direction, id_)


async def failed(session: Session, params: dict[str, Any]) -> list[dict[str, Any]]:
    return await session.house.failed(params["target"], params["label"], params["most"])


async def put_back(session: Session, params: dict[str, Any]) -> dict[str, Any]:
    return await session.house.put_back(params["target"], params["label"], params["id"])


def register(table: Table) -> None:
    table.method("channels", "The channels of a connection or service.", target=text(required=True))(channels)
    table.method("queue", "What a channel holds.", target=text(required=True), label=text(required=True))(queue)
    table.method(
        "purge",
        "Remove what a channel holds.",
        target=text(required=True),
        label=text(required=True),
        direction=choice("out", "in", "both", "failed", required=True),
        id=text(),
    )(purge)
    table.method(
        "failed",
        "Messages that are set aside because programs died of them.",
        target=text(required=True),
        label=text(required=True),
        most=integer(1, MOST_FAILED, default=100),
    )(failed)
    table.method(
        "put_back",
        "Let messages that are set aside wait for programs again.",
        target=text(required=True),
        label=text(required=True),
        id=text(),
    )(put_back)
