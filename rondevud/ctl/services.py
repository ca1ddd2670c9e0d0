"""Services: what this machine offers."""

from __future__ import annotations

import json
from typing import Any

import click

from rondevud.ctl.common import Settings, ask, json_option, pass_settings, say
from rondevud.ctl.output import show_record, show_rows

COLUMNS = ("service", "published", "uuid", "offers", "pool_size", "connections", "connected", "expires_at", "error")


@click.command()
@json_option
@pass_settings
def services(settings: Settings) -> None:
    """List the services of this daemon.

    JSON: a list of {service, username, fqn, published, service_id, uuid, expires_at, offers, pool_size, connections,
    connected, ephemeral, error, pool, counters}; pool is {active_offers, active_connections, total_connections_handled,
    failed_offer_creations}, the latter two since the daemon started.
    """
    show_rows(ask(settings, "services"), COLUMNS, as_json=settings.json, none="no services")


def _read_json(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Any:
    if value is None:
        return None
    try:
        return json.loads(value)
    except ValueError as error:
        raise click.BadParameter(f"this is not JSON: {error}") from error


@click.command(short_help="Declare a service and keep it published.")
@click.argument("user")
@click.argument("fqn")
@click.option("--public", is_flag=True, help="List it under the user name.")
@click.option("--pool-size", type=click.IntRange(1, 100), metavar="N", help="Offers kept open. [default: 1]")
@click.option(
    "--ttl", type=click.FloatRange(0, min_open=True), metavar="S", help="Seconds a publication holds. [default: 300]"
)
@click.option("--metadata", callback=_read_json, metavar="JSON", help="What to publish about it.")
@json_option
@pass_settings
def expose(
    settings: Settings, user: str, fqn: str, public: bool, pool_size: int | None, ttl: float | None, metadata: Any
) -> None:
    """Declare the service FQN (NAME@VERSION) of USER, and keep it published; the user name is claimed first.

    May be repeated. With other options than before it is refused (conflict): withdraw it first.

    JSON: {service_id, uuid, expires_at, created}; the first three are null while it could not be published.
    """
    options = {"public": public or None, "pool_size": pool_size, "ttl": ttl, "metadata": metadata}
    given = {key: value for key, value in options.items() if value is not None}
    answer = ask(settings, "expose", username=user, fqn=fqn, options=given or None)
    show_record(answer, as_json=settings.json)
    if answer.get("uuid") is None:
        say("declared, but not published yet; `rondevuctl services` says why")


@click.command()
@click.argument("user")
@click.argument("fqn")
@click.option("--drain", type=click.FloatRange(0), metavar="S", help="Seconds for what is queued. [default: 10]")
@click.option("--keep-connections", is_flag=True, help="Leave its connections until they end.")
@json_option
@pass_settings
def withdraw(settings: Settings, user: str, fqn: str, drain: float | None, keep_connections: bool) -> None:
    """Remove a service, its offers and its connections.

    JSON: {}.
    """
    facts = {"username": user, "fqn": fqn, "drain": drain, "keep_connections": keep_connections}
    answer = ask(settings, "withdraw", taking=drain, **facts)
    show_record(answer, as_json=settings.json)


COMMANDS = (services, expose, withdraw)
