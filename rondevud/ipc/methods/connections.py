"""Methods about connections."""

from __future__ import annotations

from typing import Any

from rondevud.errors import RequestError
from rondevud.ipc.session import Session
from rondevud.ipc.table import Table, choice, flag, mapping, seconds, text


def connections(session: Session, _params: dict[str, Any]) -> list[dict[str, Any]]:
    return session.visible(session.house.connections())


async def connect(session: Session, params: dict[str, Any]) -> dict[str, Any]:
    given = [key for key in ("username", "fqn", "uuid") if params[key] is not None]
    if given not in (["username", "fqn"], ["uuid"]):
        raise RequestError(
            "bad_params", f"connect takes username and fqn, or uuid, not {' and '.join(given) or 'none'}"
        )
    return await session.house.connect(
        username=params["username"],
        fqn=params["fqn"],
        uuid=params["uuid"],
        name=params["name"],
        options=params["options"] or {},
        ephemeral=params["ephemeral"],
        owner=session,
    )


async def close(session: Session, params: dict[str, Any]) -> dict[str, Any]:
    return await session.house.close(params["target"], params["drain"])


async def reconnect(session: Session, params: dict[str, Any]) -> dict[str, Any]:
    return await session.house.reconnect(params["target"])


async def wait(session: Session, params: dict[str, Any]) -> dict[str, Any]:
    return await session.house.wait(params["target"], params["for"], params["timeout"])


async def why(session: Session, params: dict[str, Any]) -> dict[str, Any]:
    return await session.house.why(params["target"])


def register(table: Table) -> None:
    table.method("connections", "The connections of both sides.")(connections)
    table.method(
        "connect",
        "Declare a connection to a service; idempotent by name.",
        username=text(),
        fqn=text(),
        uuid=text(),
        name=text(),
        options=mapping(),
        ephemeral=flag(),
    )(connect)
    table.method("close", "End a connection for good.", target=text(required=True), drain=seconds())(close)
    table.method("reconnect", "Try now.", target=text(required=True))(reconnect)
    table.method(
        "wait",
        "Answer when the connection has come to a state.",
        target=text(required=True),
        timeout=seconds(),
        **{"for": choice("connected", "drained", required=True)},
    )(wait)
    table.method("why", "Why a connection or service is as it is.", target=text(required=True))(why)
