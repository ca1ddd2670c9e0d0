"""What all commands share: where the daemon is asked, in which form is answered, and how a command ends."""

from __future__ import annotations

import gc
import os
import stat
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from rondevu_client.errors import ConnectionLost, DaemonUnavailable, MessageRejected, RequestRefused, RondevuClientError
from rondevud.ctl.completing import complete_connection, complete_label, complete_session, complete_target

if TYPE_CHECKING:
    from rondevu_client.client import Daemon

Result = TypeVar("Result")

REFUSED = 1
USAGE = 2
NO_DAEMON = 3
TIMED_OUT = 4
INTERRUPTED = 130

DAEMON_TIMEOUT = 15.0
NOTICE = 2.0
"""Seconds of waiting for the daemon after which whoever looks on is told."""

EXIT_CODES = """\b
Exit codes:
  0    done
  1    the daemon refused, or something failed on the way
  2    usage: a wrong command, option or argument
  3    no daemon answers, or its socket broke
  4    it did not come about in time
  130  interrupted"""


class Settings:
    """The options that stand before the command; no dataclass, which costs every command 3 ms."""

    def __init__(self, socket: str | None = None, json: bool = False, daemon_timeout: float = DAEMON_TIMEOUT) -> None:
        """`daemon_timeout` is in seconds, which a daemon has to answer, also one that is just being started."""
        self.socket = socket
        self.json = json
        self.daemon_timeout = daemon_timeout


pass_settings = click.make_pass_decorator(Settings)


def _switch_to_json(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        context.ensure_object(Settings).json = True


json_option = click.option(
    "--json", is_flag=True, expose_value=False, callback=_switch_to_json, help="Answer with JSON, as described above."
)
"""``--json`` behind the command, too."""

connection_argument = click.argument("target", shell_complete=complete_connection)
target_argument = click.argument("target", shell_complete=complete_target)
"""A connection or ``service:USER/FQN``."""
session_argument = click.argument("target", shell_complete=complete_session)
"""A session that a service took, by its connection id."""
label_argument = click.argument("label", shell_complete=complete_label)


def say(message: str) -> None:
    """A message for people, on stderr."""
    click.echo(f"rondevuctl: {message}", err=True)


class Cli(click.Group):
    """The group of all commands; turns what they raise into a line on stderr and an exit code."""

    def main(self, *args: Any, **more: Any) -> Any:
        try:
            return super().main(*args, **more)
        finally:
            # Nothing that is left is worth looking through for garbage, as an interpreter that ends does several times.
            gc.freeze()

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            end_quietly(ctx)
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)
        except (RondevuClientError, TimeoutError) as error:
            say(describe(error))
            ctx.exit(exit_code(error))
        return result


def exit_code(error: Exception) -> int:
    if isinstance(error, DaemonUnavailable | ConnectionLost):
        return NO_DAEMON
    if isinstance(error, TimeoutError) or (isinstance(error, RequestRefused) and error.code == "timeout"):
        return TIMED_OUT
    return REFUSED


HINTS = {
    "name_taken": "If the name is yours elsewhere: `rondevuctl key export` there, `rondevuctl key import --force` here.",
    "no_key": "`rondevuctl key list` shows the keys there are; `claim`, `key generate` and `key import` make one.",
    "key_exists": "`rondevuctl key import --force` replaces it and keeps the old one in a file beside it.",
    "unknown_target": "`rondevuctl connections` and `rondevuctl services` list what there is.",
    "unknown_channel": "`rondevuctl channels TARGET` lists what there is; `send` and `pipe` make one.",
    "unknown_message": "`rondevuctl queue TARGET LABEL --failed` lists what is set aside.",
    "failed": "`rondevuctl why TARGET` says more; `rondevuctl reconnect TARGET` tries again.",
    "conflict": "`close` or `withdraw` it first, or leave out what differs.",
    "timeout": "`rondevuctl why TARGET` says what is in the way.",
    "signalling": "Its URL stands in the configuration ([signalling] url); `rondevuctl status` shows it.",
    "bad_config": "`rondevud check-config FILE` shows every mistake.",
    "restart_needed": "`systemctl restart rondevud`, where it runs as the machine's service.",
    "not_empty": "`--purge` removes them, too.",
    "blocked": "`rondevuctl unblock TARGET` takes the peer again.",
    "store_full": "`rondevuctl sessions` shows who has how much; [queue] max_store_bytes is the limit.",
    "file_exists": "`--force` writes over it.",
    "backup_failed": "The daemon writes the file itself: it needs the right to, and room."
    " That of the machine writes as its own user, below /var/lib/rondevud.",
    "access_denied": "The rules in the daemon's configuration ([[access.rule]], see rondevud.toml(5)) say who may do what.",
    "in_use": "`rondevuctl clients` lists the programs; `tail` looks on without taking messages.",
}
"""What can be done about a refusal, by its code."""


def describe(error: Exception) -> str:
    """What went wrong, and what can be done about it."""
    if isinstance(error, TimeoutError):
        return str(error) or "no answer in time"
    hint = HINTS.get(error.code) if isinstance(error, RequestRefused | MessageRejected) else None
    return str(error) if hint is None else f"{error}\n{hint}"


def end_quietly(context: click.Context) -> NoReturn:
    """Who read our output has gone: nothing is wrong. What is still buffered must not fail at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    context.exit(0)


def run(settings: Settings, work: Callable[[Daemon], Awaitable[Result]], *, reconnect: bool = False) -> Result:
    """Do `work` with the daemon; with `reconnect` it may restart meanwhile. Raises `RondevuClientError`."""
    # Help and usage errors need neither asyncio nor the client: a command is typed more often than it is run.
    import asyncio  # noqa: PLC0415

    from rondevu_client.client import Daemon  # noqa: PLC0415

    async def use() -> Result:
        daemon = Daemon(settings.socket, reconnect, client=client_name(), hello_timeout=settings.daemon_timeout)
        notice = asyncio.get_running_loop().call_later(NOTICE, _say_what_is_waited_for)
        try:
            await daemon.open()
            notice.cancel()
            return await work(daemon)
        finally:
            notice.cancel()
            await daemon.close()

    return asyncio.run(use())


def ask(settings: Settings, method: str, *, taking: float | None = None, **params: Any) -> Any:
    """One request and its answer; parameters that are None are left out.

    `taking` is how many seconds the daemon takes for it on purpose. Raises `RondevuClientError`, `TimeoutError`.
    """
    from rondevu_client import asking  # noqa: PLC0415 - as above
    from rondevu_client.sockets import REQUEST_TIMEOUT  # noqa: PLC0415

    return asking.ask(
        method,
        params,
        given=settings.socket,
        client=client_name(),
        hello_timeout=settings.daemon_timeout,
        timeout=REQUEST_TIMEOUT + (taking or 0.0),
        notice=asking.Notice(NOTICE, _say_what_is_waited_for),
    )


def client_name() -> str:
    """How the daemon shows this program."""
    return f"rondevuctl (pid {os.getpid()})"


def _say_what_is_waited_for() -> None:
    if sys.stderr.isatty():
        say("waiting for the daemon …")


def is_pipe(fd: int) -> bool:
    """Whether who reads from `fd` can go away."""
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
