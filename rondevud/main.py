"""``rondevud``: arguments → configuration → log → run. What takes long to load is loaded by the command that needs it."""

from __future__ import annotations

import asyncio
import faulthandler
import json
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from rondevud import __version__
from rondevud.errors import ConfigError, RondevuError, StateDirectoryError, StoreError, StoreFailed

if TYPE_CHECKING:
    from rondevud.config import Config
    from rondevud.doctor import Report

Result = TypeVar("Result")

FAILED = 1
FINDINGS = 1
NO_STATE_DIRECTORY = 3
INTERRUPTED = 130

EXIT_CODES = """\b
Exit codes:
  0    done, or stopped by SIGTERM or Ctrl-C
  1    failed; what was wrong stands on stderr
  2    usage: a wrong command, option or argument
  3    the state directory is in use by another daemon, or cannot be used (doctor: cannot be looked at)
  130, 143  ended at once by a second Ctrl-C or SIGTERM

\b
Environment:
  RONDEVUD_LOOP=asyncio  use Python's own event loop instead of uvloop"""

PATH = click.Path(path_type=Path)


ARGUMENTS = "rondevud.arguments"


class Cli(click.Group):
    """The group of all commands; turns what they raise into a message on stderr and an exit code."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[ARGUMENTS] = tuple(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RondevuError as error:
            lines = [*str(error).splitlines(), *_as_its_owner(error, ctx.meta[ARGUMENTS])]
            click.echo("\n".join(f"rondevud: {line}" for line in lines), err=True)
            ctx.exit(NO_STATE_DIRECTORY if isinstance(error, StateDirectoryError) else FAILED)
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)


def _as_its_owner(error: RondevuError, arguments: Sequence[str]) -> Iterator[str]:
    """For root, who can be the owner of that state directory: how it is typed."""
    if isinstance(error, StateDirectoryError) and error.owner is not None and os.geteuid() == 0:
        command = ["runuser", "-u", error.owner, "--", "rondevud", *arguments]
        # The owner's own default is another directory.
        where = [] if "--state-dir" in command else ["--state-dir", str(error.path)]
        yield f"what is made in it has to be its owner's: {shlex.join([*command, *where])}"


@click.group(cls=Cli, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="rondevud")
def main() -> None:
    """Durable WebRTC data channels for every program of a machine. `rondevuctl` talks to a running daemon."""


@main.command(short_help="Run the daemon.")
@click.option("--config", "config_path", type=PATH, metavar="FILE", help="Instead of the default; see check-config.")
@click.option("--socket", type=PATH, metavar="PATH", help="Where programs find the daemon.")
@click.option("--state-dir", type=PATH, metavar="DIR", help="Where it keeps keys, queues and sessions.")
@click.option("--self-test", is_flag=True, help="Do not start where WebRTC does not work; see `rondevud self-test`.")
@click.pass_context
def run(
    context: click.Context, config_path: Path | None, socket: Path | None, state_dir: Path | None, self_test: bool
) -> None:
    """Run the daemon until SIGTERM or Ctrl-C; a second one ends it at once.

    Without options it reads $XDG_CONFIG_HOME/rondevud/config.toml (as root /etc/rondevud/config.toml) if there is one,
    keeps its state in $STATE_DIRECTORY, else $XDG_STATE_HOME/rondevud (as root /var/lib/rondevud), and listens on
    $XDG_RUNTIME_DIR/rondevud.sock (as root /run/rondevud/rondevud.sock). Options win over the file.
    A unit's $CONFIGURATION_DIRECTORY and $RUNTIME_DIRECTORY go before those, and a socket that systemd hands over before
    any path. Keys of user names in $CREDENTIALS_DIRECTORY (USER.key) are taken over.
    """
    path, config = _load(config_path)

    from rondevud import daemon, logs  # noqa: PLC0415
    from rondevud.transport.choice import may_end_in_order  # noqa: PLC0415

    faulthandler.enable()  # a watchdog's SIGABRT shows where every thread stands
    logs.set_up(config.daemon.log_level)
    found_socket, found_state = _places(config)
    work = daemon.run(
        config,
        config_path=path,
        state_dir=(state_dir or found_state).absolute(),
        socket=(socket or found_socket).absolute(),
        self_test=self_test,
    )
    code = _run_loop(work)
    if not may_end_in_order():
        logging.shutdown()
        os._exit(code)
    context.exit(code)


@main.command("self-test", short_help="See whether WebRTC works in this environment.")
@click.option("--engine", type=click.Choice(["auto", "aiortc", "libdatachannel"]), default="auto", show_default=True)
def self_test(engine: str) -> None:
    """See whether WebRTC works in this environment: two connections in this process, a message there and back.

    No server is asked and nothing is stored. Where a unit or container denies what is needed, stderr says what
    (exit code 1). The unit's own restrictions are tried with `rondevud run --self-test`, which it starts with.
    """
    from rondevud import daemon, logs  # noqa: PLC0415

    logs.set_up("info")
    _run_loop(daemon.test_webrtc(engine))
    click.echo("WebRTC works here")


@main.command("check-config", short_help="Check a configuration file, and say what it means.")
@click.argument("file", type=PATH, required=False)
@click.option("--state-dir", type=PATH, metavar="DIR", help="As of `rondevud run`; is only looked into.")
def check_config(file: Path | None, state_dir: Path | None) -> None:
    """Check a configuration file; without FILE the one that `rondevud run` would read.

    Says what is wrong on stderr, with file, line and key (exit code 1), or what the daemon would do. Warns on stderr of
    messages that wait to be sent for what does not stand in the file any more.
    """
    from rondevud.policies import find_group, policy_of  # noqa: PLC0415

    path, config = _load(file)
    try:
        policy_of(config.access)
        find_group(config.daemon.socket_group)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    socket, found_state = _places(config)
    state_dir = state_dir or found_state
    click.echo(f"{path}: correct" if path else "no configuration file, which is fine: these are the defaults")
    for name, value in _summary(config, socket, state_dir):
        click.echo(f"  {name:<12}{value}")
    for warning in _left_behind(config, state_dir):
        click.echo(f"rondevud: warning: {warning}", err=True)


@main.command(short_help="Look whether a stopped daemon's state is whole; mend it.")
@click.option("--state-dir", type=PATH, metavar="DIR", help="As of `rondevud run`; must be there.")
@click.option("--repair", is_flag=True, help="Mend what can be mended; the store is copied beside it first.")
@click.option("--json", "as_json", is_flag=True, help="Answer with JSON.")
@click.pass_context
def doctor(context: click.Context, state_dir: Path | None, repair: bool, as_json: bool) -> None:
    """Look whether what a daemon keeps is as it was written, while the daemon does not run.

    Reads everything: checksums of all rows, counts and numbers of queues, what SQLite finds, keys, free space. Prints a line
    for each finding, with what it means and what can be done. Exit code 0: nothing is wrong (or nothing any more);
    1: something is; 3: it cannot be looked at. `rondevuctl doctor` asks a running daemon.

    --repair invents nothing: damaged messages become gaps that are reported to both sides, damaged sessions are set
    aside, counts are made true; everything else is kept.

    JSON: {clean, findings, copy, mended, remaining}; a finding is {kind, where, found, meaning, advice, harmless}.
    """
    from rondevud import doctor as doctors  # noqa: PLC0415

    directory = (state_dir or _places(_load(None)[1])[1]).absolute()
    try:
        report = doctors.examine(directory, mend=repair)
    except StoreError as error:
        click.echo(f"rondevud: {error}", err=True)
        context.exit(NO_STATE_DIRECTORY)
    if as_json:
        click.echo(json.dumps(report.as_map(), ensure_ascii=False))
    else:
        for line in _lines(report):
            click.echo(line)
    context.exit(0 if report.clean else FINDINGS)


@main.command(short_help="Put a backup in the place of a stopped daemon's store.")
@click.argument("file", type=PATH)
@click.option("--state-dir", type=PATH, metavar="DIR", help="As of `rondevud run`; made if it is not there.")
@click.pass_context
def restore(context: click.Context, file: Path, state_dir: Path | None) -> None:
    """Put FILE, which `rondevuctl backup` made, in the place of the store, while the daemon does not run.

    The store that was there is kept beside it. FILE stays as it is, and is refused if it is no whole copy of a store or
    comes from a newer version. What was accepted here since the copy was made is gone, and reported to the peers at the
    next start; what they sent since is reported to programs here (`lost`). Keys are not touched.

    Exit code 0: done; 1: nothing was changed, stderr says why; 3: the state directory is in use, or cannot be used.
    """
    from rondevud.statedir import DATABASE, StateDirectory  # noqa: PLC0415
    from rondevud.store.replacement import put_back  # noqa: PLC0415

    directory = (state_dir or _places(_load(None)[1])[1]).absolute()
    with StateDirectory(directory):
        kept = put_back(file, directory / DATABASE)
    click.echo(f"restored {directory / DATABASE} from {file}")
    if kept is not None:
        click.echo(f"the store that was there is kept in {kept}")


def _lines(report: Report) -> Iterator[str]:
    from rondevud.doctor import as_line  # noqa: PLC0415

    yield from map(as_line, report.findings)
    if report.copy is not None:
        yield f"mended; as it was, the store is kept in {report.copy}"
    for done in report.mended:
        yield f"mended: {done}"
    if report.mended and report.remaining is not None:
        yield from (f"still there: {as_line(finding)}" for finding in report.remaining)
    if report.clean:
        yield "nothing is wrong"


@main.command(short_help="Run a signalling server.")
@click.option("--listen", default="127.0.0.1:3000", show_default=True, metavar="HOST:PORT", help="Port 0: any.")
@click.option(
    "--store",
    default="sqlite",
    show_default=True,
    metavar="URL",
    help="sqlite (a file in the state directory), sqlite:PATH or memory.",
)
@click.option(
    "--state-dir",
    type=PATH,
    metavar="DIR",
    help="For --store sqlite; else $STATE_DIRECTORY, or rondevud-rendezvous beside the daemon's own.",
)
def rendezvous(listen: str, store: str, state_dir: Path | None) -> None:
    """Run a signalling server, by which daemons find each other; prints its URL when it listens.

    It only introduces: messages go from daemon to daemon. Where the daemons reach it over a network, put a proxy with
    TLS in front of it.
    """
    from rondevud import logs  # noqa: PLC0415

    logs.set_up("info")
    host, port = _read_listen(listen)
    directory = None
    if store == "sqlite":
        from rondevud.statedir import StateDirectory  # noqa: PLC0415

        directory = StateDirectory((state_dir or _rendezvous_directory()).absolute())
    try:
        _run_loop(_serve(host, port, store, directory.path if directory else Path()))
    finally:
        if directory is not None:
            directory.close()


@main.command(short_help="Watch messages survive, in half a minute.")
@click.option(
    "--messages",
    type=click.IntRange(100, 100_000),
    default=400,
    show_default=True,
    metavar="N",
    help="How many go each way.",
)
@click.option("--plain", is_flag=True, help="Lines instead of a live display, on a terminal too.")
@click.pass_context
def demo(context: click.Context, messages: int, plain: bool) -> None:
    """Watch messages survive: two daemons, three programs and a signalling server on this machine, in half a minute.

    A program, a link and a daemon are killed while numbered messages go both ways. Ends with exit code 0 only if every
    message arrived exactly once and in order, as the programs themselves counted. Nothing is left behind.
    """
    from rondevud.demo import Lines, play  # noqa: PLC0415

    if plain or not sys.stdout.isatty():
        context.exit(asyncio.run(play(Lines(), messages)))

    from rondevud.ctl.live import LiveTable  # noqa: PLC0415

    with LiveTable() as screen:
        code = asyncio.run(play(screen, messages))
    context.exit(code)


def _load(given: Path | None) -> tuple[Path | None, Config]:
    """The configuration and where it comes from. Raises `ConfigError`."""
    from rondevud import config  # noqa: PLC0415

    path = given or _if_there(config.default_paths(os.environ, os.geteuid()).config)
    return path, config.load(path)


def _if_there(path: Path) -> Path | None:
    """None for a file that does not exist; one that may not be read is an error for who reads it."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        return path
    return path


def _places(config: Config) -> tuple[Path, Path]:
    """Socket and state directory, without options."""
    from rondevud.config import default_paths  # noqa: PLC0415

    paths = default_paths(os.environ, os.geteuid())
    return config.daemon.socket or paths.socket, config.daemon.state_dir or paths.state_dir


def _summary(config: Config, socket: Path, state_dir: Path) -> list[tuple[str, str]]:
    embedded = f"this daemon's own, http://{config.rendezvous.listen}" if config.rendezvous.enabled else None
    return [
        ("socket", str(socket)),
        ("state", str(state_dir)),
        ("signalling", embedded or config.signalling.url or "none: services and connections need one"),
        ("ice servers", ", ".join(url for server in config.transport.ice_servers for url in server.urls) or "none"),
        ("services", ", ".join(service.name for service in config.services) or "none in the file"),
        ("connections", ", ".join(connection.name for connection in config.connections) or "none in the file"),
        ("log level", config.daemon.log_level),
    ]


def _left_behind(config: Config, state_dir: Path) -> list[str]:
    """What waits to be sent and would be held with that configuration: a line for each session."""
    from rondevud.records import Role  # noqa: PLC0415
    from rondevud.statedir import DATABASE  # noqa: PLC0415
    from rondevud.store.unsent import read_unsent  # noqa: PLC0415

    if _if_there(state_dir / DATABASE) is None:
        return []
    try:
        found = read_unsent(state_dir / DATABASE)
    except StoreFailed as error:
        return [str(error)]
    declared = {(Role.CONNECTING, connection.name, connection.target) for connection in config.connections}
    declared |= {(Role.SERVICE, service.name, "") for service in config.services}
    return [
        f"{unsent.messages} messages wait to be sent for {unsent.declaration}"
        + (f" (to {unsent.target})" if unsent.target else " (from the service)")
        + ", which is not declared: they will be held until it is declared again, or purged"
        for unsent in found
        if (unsent.role, unsent.declaration, unsent.target) not in declared
    ]


def _read_listen(listen: str) -> tuple[str, int]:
    from rondevud.config_values import listen as check  # noqa: PLC0415

    try:
        host, _, port = check(listen).rpartition(":")
    except ValueError as error:
        raise click.BadParameter(f"{listen!r}: {error}", param_hint="--listen") from error
    return host.strip("[]"), int(port)


def _rendezvous_directory() -> Path:
    """Not the daemon's own: that belongs to one process at a time."""
    from rondevud.config import default_paths  # noqa: PLC0415

    path = default_paths(os.environ, os.geteuid()).state_dir
    return path if os.environ.get("STATE_DIRECTORY") else path.with_name(f"{path.name}-rendezvous")


async def _serve(host: str, port: int, store: str, state_dir: Path) -> int:
    from rondevud.rendezvous import app  # noqa: PLC0415
    from rondevud.rendezvous.storage import open_storage  # noqa: PLC0415

    stopping = asyncio.Event()
    _on_stop_signals(stopping.set)
    storage = open_storage(store, state_dir)
    try:
        server = await app.start(host, port, storage, app.Settings(version=__version__))
        try:
            click.echo(server.url)
            await stopping.wait()
        finally:
            await server.close()
    finally:
        storage.close()
    return 0


def _on_stop_signals(stop: Callable[[], None]) -> None:
    """Call `stop` at the first SIGTERM or SIGINT; the second one has its default effect."""
    loop = asyncio.get_running_loop()

    def take() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
        stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, take)


def _run_loop(work: Coroutine[Any, Any, Result]) -> Result:
    """In the loop of uvloop where it is installed and not switched off."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(work)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    wanted = os.environ.get("RONDEVUD_LOOP") or "uvloop"
    if wanted not in {"asyncio", "uvloop"}:
        raise click.UsageError(f"RONDEVUD_LOOP is {wanted!r}: expected asyncio or uvloop")
    if wanted == "asyncio":
        return None
    try:
        import uvloop  # noqa: PLC0415
    except ImportError:
        return None
    return uvloop.new_event_loop


if __name__ == "__main__":
    main()
