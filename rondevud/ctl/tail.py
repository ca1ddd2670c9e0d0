"""Look on while messages arrive."""

from __future__ import annotations

import base64
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from rondevud.ctl.common import Settings, json_option, label_argument, pass_settings, say, target_argument
from rondevud.ctl.output import is_terminal, printable, show_json_line

if TYPE_CHECKING:
    from rondevu_client.channel import Channel
    from rondevu_client.client import Daemon
    from rondevu_client.inbox import Message


@click.command(short_help="Print messages as they arrive, without taking them.")
@target_argument
@label_argument
@json_option
@pass_settings
def tail(settings: Settings, target: str, label: str) -> None:
    """Print the messages that arrive from now on, one to a line, without taking them from anybody.

    TARGET may be service:USER/FQN: the messages of all its connections, each line beginning with the connection id.
    Text is printed as it is (on a terminal with control characters escaped), binary as b'…'. Ctrl-C ends it.

    \b
    JSON, one line for each message:
      {connection_id, label, id, enqueued_at, attempt, text}     text
      {connection_id, label, id, enqueued_at, attempt, base64}   binary
      {connection_id, label, gap: {first, next, count, reason}}  messages that will not come
    """
    from rondevud.ctl.following import follow  # noqa: PLC0415 - loads asyncio

    lines = _Lines(with_connection=target.startswith("service:"))
    show: Callable[[Message], None] = partial(show_message, label) if settings.json else lines.show

    async def work(daemon: Daemon) -> None:
        channel = await daemon.attach(target, label, mode="observe")

        channel.on("gap", lambda gap: show_gap(channel, gap, as_json=settings.json))
        channel.on("overrun", lambda data: say(f"{data.get('count', '?')} messages or events were not shown: too fast"))
        async for message in channel:
            show(message)

    follow(settings, work)


def show_gap(channel: Channel, gap: dict[str, Any], *, as_json: bool) -> None:
    """Messages that will not come: with JSON in their place among the others, else a word on stderr."""
    if as_json:
        connection_id = gap.pop("connection_id", channel.connection_id)
        show_json_line({"connection_id": connection_id, "label": channel.label, "gap": gap})
    else:
        say(f"{gap.get('count') or '?'} messages will not come ({gap.get('reason', '?')})")


def show_message(label: str, message: Message) -> None:
    """A message in one line of JSON."""
    row: dict[str, Any] = {
        "connection_id": message.connection_id,
        "label": label,
        "id": message.id,
        "enqueued_at": message.enqueued_at,
        "attempt": message.attempt,
    }
    if isinstance(message.data, bytes):
        row["base64"] = base64.b64encode(message.data).decode()
    else:
        row["text"] = message.data
    show_json_line(row)


class _Lines:
    def __init__(self, *, with_connection: bool) -> None:
        self._with_connection = with_connection
        self._escape = is_terminal()

    def show(self, message: Message) -> None:
        text = repr(message.data) if isinstance(message.data, bytes) else message.data
        if self._escape:
            text = printable(text)
        if self._with_connection:
            text = f"{message.connection_id}  {text}"
        click.echo(text, color=True)  # not stripped of anything
        sys.stdout.flush()


COMMANDS = (tail,)
