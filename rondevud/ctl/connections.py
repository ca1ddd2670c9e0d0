"""Connections: to services elsewhere, and of peers to services here."""

from __future__ import annotations

import math

import click

from rondevud.ctl.common import Settings, ask, connection_argument, json_option, pass_settings
from rondevud.ctl.output import show_record, show_rows, with_service

COLUMNS = (
    "connection_id", "name", "service", "state", "peer_name", "kind", "channels", "queue_size", "waiting", "error",
)  # fmt: skip


@click.command()
@json_option
@pass_settings
def connections(settings: Settings) -> None:
    """List the connections of both sides.

    JSON: a list of {connection_id, name, service, target, state, kind, peer_name, channels, queue_size, waiting,
    round_trip, suspect, ephemeral, attempt, error}. On the connecting side name and target are set, on the other one
    service. queue_size is what the peer has not acknowledged, waiting what no program here has taken.
    """
    rows = ask(settings, "connections")
    show_rows(rows if settings.json else with_service(rows), COLUMNS, as_json=settings.json, none="no connections")


@click.command()
@click.argument("user", required=False)
@click.argument("fqn", required=False)
@click.option("--uuid", metavar="UUID", help="The service by its UUID, instead of USER and FQN.")
@click.option("--name", metavar="NAME", help="How to call the connection. [default: USER/FQN, or uuid/UUID]")
@json_option
@pass_settings
def connect(settings: Settings, user: str | None, fqn: str | None, uuid: str | None, name: str | None) -> None:
    """Declare a connection to the service FQN of USER. Answers at once; `wait` waits until it is up.

    May be repeated: a name is one connection.

    JSON: {connection_id, name, state, created}.
    """
    if (uuid is None) == (user is None) or (user is None) != (fqn is None):
        raise click.UsageError("connect takes either USER and FQN, or --uuid UUID")
    show_record(ask(settings, "connect", username=user, fqn=fqn, uuid=uuid, name=name), as_json=settings.json)


@click.command()
@connection_argument
@click.option("--drain", type=click.FloatRange(0), metavar="S", help="Seconds for what is queued. [default: 10]")
@json_option
@pass_settings
def close(settings: Settings, target: str, drain: float | None) -> None:
    """End a connection for good, on both sides.

    JSON: {}.
    """
    show_record(ask(settings, "close", taking=drain, target=target, drain=drain), as_json=settings.json)


@click.command(short_help="Dial anew, now.")
@connection_argument
@json_option
@pass_settings
def reconnect(settings: Settings, target: str) -> None:
    """Dial anew, now: drops the link a connection has, or tries again one that failed.

    JSON: {state}.
    """
    show_record(ask(settings, "reconnect", target=target), as_json=settings.json)


@click.command(short_help="Wait until a connection is connected or drained.")
@connection_argument
@click.argument("what", type=click.Choice(["connected", "drained"]))
@click.option(
    "--timeout", type=click.FloatRange(0), metavar="S", help="Seconds to wait at most. [default: without end]"
)
@json_option
@pass_settings
def wait(settings: Settings, target: str, what: str, timeout: float | None) -> None:
    """Wait until a connection is connected, or drained: the peer has everything that was sent.

    Exit code 4 when it did not come about in time, 1 when it never will (failed, closed).

    JSON: {connection_id}.
    """
    limit = math.inf if timeout is None else timeout
    answer = ask(settings, "wait", taking=limit, target=target, timeout=timeout, **{"for": what})
    show_record(answer, as_json=settings.json)


COMMANDS = (connections, connect, close, reconnect, wait)
