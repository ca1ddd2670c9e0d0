"""Methods about user names at the signalling server, and about their keys."""

from __future__ import annotations

from typing import Any

from rondevud.ipc.session import Session
from rondevud.ipc.table import Table, flag, text


async def claim(session: Session, params: dict[str, Any]) -> dict[str, Any]:
    return await session.house.claim(params["username"])


async def check(session: Session, params: dict[str, Any]) -> dict[str, Any]:
    return await session.house.check(params["username"])


def key_list(session: Session, _params: dict[str, Any]) -> list[dict[str, Any]]:
    return session.house.keys.list()


def key_show(session: Session, params: dict[str, Any]) -> dict[str, Any]:
    return session.house.keys.show(params["username"])


def key_export(session: Session, params: dict[str, Any]) -> dict[str, Any]:
    return session.house.keys.export(params["username"])


def key_generate(session: Session, params: dict[str, Any]) -> dict[str, Any]:
    return session.house.keys.generate(params["username"])


def key_import(session: Session, params: dict[str, Any]) -> dict[str, Any]:
    return session.house.keys.import_key(params["username"], params["private_key"], force=params["force"])


def key_delete(session: Session, params: dict[str, Any]) -> dict[str, Any]:
    return session.house.keys.delete(params["username"])


def register(table: Table) -> None:
    user = text(required=True)
    table.method("claim", "Claim a user name with this daemon's key for it.", username=user)(claim)
    table.method("check", "Whether a user name is free or whose it is.", username=user)(check)
    table.method("key_list", "The user names that have a key here.")(key_list)
    table.method("key_show", "The public key of a user name.", username=user)(key_show)
    table.method("key_export", "The private key of a user name.", username=user)(key_export)
    table.method("key_generate", "Make a key without asking a server.", username=user)(key_generate)
    table.method(
        "key_import", "Take a private key that was exported.", username=user, private_key=text(required=True), force=flag()
    )(key_import)  # fmt: skip
    table.method("key_delete", "Remove a key for good.", username=user)(key_delete)
