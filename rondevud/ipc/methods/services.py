"""Methods about services."""

from __future__ import annotations

from typing import Any

from rondevud.access import Subject
from rondevud.ipc.methods.events import begin_subscription
from rondevud.ipc.session import Session
from rondevud.ipc.table import Answer, Table, flag, mapping, seconds, text


def services(session: Session, _params: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in session.house.services() if session.may_see(Subject(service=row["service"]))]


async def expose(session: Session, params: dict[str, Any]) -> dict[str, Any] | Answer:
    username, fqn = params["username"], params["fqn"]
    exposed = await session.house.expose(username, fqn, params["options"] or {}, params["ephemeral"], session)
    if not params["subscribe"]:
        return exposed
    answer, then = begin_subscription(session, f"service:{username}/{fqn}", None)
    return Answer({**exposed, **answer}, then)


async def withdraw(session: Session, params: dict[str, Any]) -> dict[str, Any]:
    return await session.house.withdraw(params["username"], params["fqn"], params["drain"], params["keep_connections"])


def register(table: Table) -> None:
    table.method("services", "The declared services.")(services)
    table.method(
        "expose",
        "Declare a service and keep it published; idempotent.",
        username=text(required=True),
        fqn=text(required=True),
        options=mapping(),
        ephemeral=flag(),
        subscribe=flag(),
    )(expose)
    table.method(
        "withdraw",
        "Remove a service, its offers and its connections.",
        username=text(required=True),
        fqn=text(required=True),
        drain=seconds(),
        keep_connections=flag(),
    )(withdraw)
