"""What the shell can complete from the daemon that runs. Without one there is nothing to complete, and no word about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

PATIENCE = 2.0
"""Seconds that the daemon has to answer: somebody is typing."""


def complete_connection(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Connections by name; by id those that have none, or when an id is being typed."""
    by_id = incomplete.startswith("conn-")
    found = []
    for row in _ask(context, "connections"):
        name = row["connection_id"] if by_id or not row["name"] else row["name"]
        found.append(_item(name, f"{row['state']}, {row['service'] or row['target']}"))
    return _beginning(found, incomplete)


def complete_target(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The same, and services."""
    services = [_item(f"service:{row['service']}", "service") for row in _ask(context, "services")]
    return complete_connection(context, parameter, incomplete) + _beginning(services, incomplete)


def complete_session(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Sessions that services took, by id."""
    found = []
    for row in _ask(context, "sessions"):
        if row["service"]:
            state = f"{row['state']}, blocked" if row["blocked"] else row["state"]
            found.append(_item(row["connection_id"], f"{state}, {row['service']}"))
    return _beginning(found, incomplete)


def complete_label(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Labels of the target that stands before."""
    target = context.params.get("target")
    rows = _ask(context, "channels", target=target) if target else []
    labels = {row["label"]: _item(row["label"], row["state"]) for row in rows}
    return _beginning(list(labels.values()), incomplete)


def _item(value: str, about: str) -> CompletionItem:
    from click.shell_completion import CompletionItem  # noqa: PLC0415 - loaded when a shell asks

    return CompletionItem(value, help=about)


def _beginning(items: list[CompletionItem], incomplete: str) -> list[CompletionItem]:
    return [item for item in items if item.value.startswith(incomplete)]


def _ask(context: click.Context, method: str, **params: Any) -> list[dict[str, Any]]:
    from rondevu_client import asking  # noqa: PLC0415 - only when a shell completes
    from rondevu_client.errors import RondevuClientError  # noqa: PLC0415

    given = context.find_root().params.get("socket")
    try:
        rows: list[dict[str, Any]] = asking.ask(
            method, params, given=given, client="rondevuctl (completion)", limit=PATIENCE
        )
    except (RondevuClientError, OSError):  # a time-out is one of the latter
        return []
    return rows
