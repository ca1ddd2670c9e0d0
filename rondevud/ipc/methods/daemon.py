"""Methods about the daemon itself."""

from __future__ import annotations

from typing import Any

from rondevu_client.protocol import PROTOCOL_VERSION
from rondevud.errors import RequestError
from rondevud.ipc.session import Session
from rondevud.ipc.table import Table, flag, integers, text

FEATURES = ["shared", "sent", "threshold"]
"""What this daemon has beyond version 1 of the protocol."""


def hello(session: Session, params: dict[str, Any]) -> dict[str, Any]:
    if PROTOCOL_VERSION not in params["protocol"]:
        message = f"this daemon speaks protocol {PROTOCOL_VERSION}, not {params['protocol'][:16]}"
        raise RequestError("unsupported_protocol", message, {"protocol": [PROTOCOL_VERSION]})
    session.greet(params["client"])
    house = session.house
    return {
        "protocol": PROTOCOL_VERSION,
        "version": house.version,
        "instance": house.instance,
        "features": FEATURES,
    }


def ping(_session: Session, _params: dict[str, Any]) -> dict[str, Any]:
    return {}


async def status(session: Session, _params: dict[str, Any]) -> dict[str, Any]:
    return await session.house.status()


async def reload(session: Session, _params: dict[str, Any]) -> dict[str, Any]:
    return await session.house.reload()


async def doctor(session: Session, _params: dict[str, Any]) -> list[dict[str, Any]]:
    return await session.house.care.examine()


async def backup(session: Session, params: dict[str, Any]) -> dict[str, Any]:
    return await session.house.care.back_up(params["path"], force=params["force"])


def clients(session: Session, _params: dict[str, Any]) -> list[dict[str, Any]]:
    """All of them, to who may see everything; else those of the same user."""
    rows = session.clients()
    return rows if session.sees_all else [row for row in rows if row["uid"] == session.peer.uid]


def register(table: Table) -> None:
    table.method("hello", "Agree on the protocol; the first request.", protocol=integers(), client=text(default=""))(
        hello
    )
    table.method("ping", "Answer.")(ping)
    table.method("status", "What the daemon does and how it is.")(status)
    table.method("reload", "Take the changed configuration file over.")(reload)
    table.method("doctor", "What is not as it should be in the store.")(doctor)
    table.method("backup", "Copy the store into a file.", path=text(required=True), force=flag())(backup)
    table.method("clients", "The programs on this socket.")(clients)
