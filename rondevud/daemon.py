"""The daemon: its parts, in the order in which they start, and backwards when they stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from rondevud import __version__, clock, logs, open_files, systemd
from rondevud.care import Care
from rondevud.config import Config
from rondevud.durable.session import Environment
from rondevud.errors import ConfigError, RequestError, TransportError
from rondevud.events import EventBus
from rondevud.house import House
from rondevud.ipc.server import Server
from rondevud.metrics import Metrics
from rondevud.network import NetworkWatch
from rondevud.policies import find_group, policy_of
from rondevud.records import ForgetProducers
from rondevud.signalling.base import Signalling
from rondevud.signalling.identity import Identities
from rondevud.signalling.opening import open_signalling
from rondevud.statedir import DATABASE, StateDirectory
from rondevud.store.memory import MemoryStore
from rondevud.store.sqlite import SqliteStore
from rondevud.transport.base import Engine, IceServer
from rondevud.transport.choice import choose, make_engine
from rondevud.transport.self_test import check_webrtc

logger = logging.getLogger(__name__)

STOP_TIMEOUT = 15.0
"""Seconds that an orderly stop may take; what is left then is ended with the process."""

PART_TIMEOUT = 10.0
"""Seconds that one part may take of them, before it is cancelled and the next one is stopped."""

HUNG = 10.0
"""Seconds without progress of the store's thread after which the watchdog is fed no more."""

STATUS_INTERVAL = 5.0
"""Seconds between two looks whether the status has changed."""

HOUSEKEEPING = 3_600.0
PRODUCERS_KEPT = 7 * 86_400.0
"""Seconds after its last use that what is known of a producer is kept."""


async def run(
    config: Config,
    *,
    config_path: Path | None,
    state_dir: Path,
    socket: Path,
    ready: Callable[[], None] | None = None,
    self_test: bool = False,
) -> int:
    """Run until SIGTERM or SIGINT; a second one ends the process at once. Returns the exit code.

    `config_path` is where `config` came from, and is read again at SIGHUP; `ready` is called when the socket answers. With
    `self_test` it does not start where WebRTC does not work. Raises `ConfigError`, `StateDirectoryError`, `StoreError`,
    `ListenError` or `SelfTestFailed` when it cannot start.
    """
    open_files.raise_limit()
    unhandled = logs.UnhandledExceptions()
    unhandled.install(asyncio.get_running_loop())
    stopping = asyncio.Event()
    reload_wanted = asyncio.Event()
    _handle_signals(stopping, reload_wanted)
    broken = asyncio.Event()

    def give_up() -> None:
        broken.set()
        stopping.set()

    if self_test:
        await test_webrtc(choose(config.transport.engine, _ice_servers(config)))
    async with contextlib.AsyncExitStack() as stack:
        house = await start(stack, config, state_dir, socket, config_path, broken=give_up)
        reloads = asyncio.get_running_loop().create_task(_reload_loop(house, reload_wanted), name="reloads")
        stack.callback(reloads.cancel)
        systemd.ready(f"listening on {socket}")
        logger.info(
            "rondevud %s is ready: socket %s, state %s", __version__, socket, state_dir, extra=logs.fields("ready")
        )
        if ready is not None:
            ready()
        await stopping.wait()
        systemd.stopping()
        logger.info("stopping", extra=logs.fields("stopping"))
        code = await _stop(stack)
        return code or int(broken.is_set())


async def test_webrtc(name: str) -> None:
    """Whether WebRTC works in this environment with that engine, without asking any server. Raises `SelfTestFailed`."""
    loop = asyncio.get_running_loop()
    engine = make_engine(name)
    before = loop.get_exception_handler()
    _absorb_library_errors(loop, engine)
    try:
        await check_webrtc(engine)
    finally:
        await engine.close()
        loop.set_exception_handler(before)


async def _stop(stack: contextlib.AsyncExitStack) -> int:
    """Stop all parts; the exit code. Ends the process when they are not stopped after `STOP_TIMEOUT`."""
    stop = asyncio.get_running_loop().create_task(stack.aclose(), name="stop")
    await asyncio.wait({stop}, timeout=STOP_TIMEOUT)
    if not stop.done():
        logger.error("stopping took longer than %.0f s; ended", STOP_TIMEOUT)
        logging.shutdown()
        os._exit(1)
    try:
        stop.result()
    except TimeoutError:  # of a part, which has been logged
        return 1
    return 0


def _stop_later(stack: contextlib.AsyncExitStack, part: str, stop: Callable[[], Awaitable[None]]) -> None:
    """Have `stack` stop a part, for `PART_TIMEOUT` at most: one that hangs keeps no other from being stopped."""

    async def within_time() -> None:
        try:
            async with asyncio.timeout(PART_TIMEOUT):
                await stop()
        except TimeoutError:
            logger.error("stopping %s took longer than %.0f s", part, PART_TIMEOUT)  # noqa: TRY400 - no traceback helps
            raise

    stack.push_async_callback(within_time)


async def start(
    stack: contextlib.AsyncExitStack,
    config: Config,
    state_dir: Path,
    socket: Path,
    config_path: Path | None = None,
    *,
    broken: Callable[[], None] = lambda: None,
) -> House:
    """Everything in its order, up to a socket that answers; `stack` gets how each part is stopped.

    Does without signal handlers, so that several daemons fit into one loop. Raises what `run` raises; close `stack` then.
    `broken` is called when the daemon cannot do its work any more: it is best started anew.
    """
    loop = asyncio.get_running_loop()
    group = find_group(config.daemon.socket_group)
    policy = policy_of(config.access)
    descriptor = find_descriptor()
    state = stack.enter_context(StateDirectory(state_dir))
    start_us = clock.wall_microseconds()
    disk = await SqliteStore.open(state.path / DATABASE)
    _stop_later(stack, "the store", disk.close)
    memory = MemoryStore(loop)
    _stop_later(stack, "the memory store", memory.close)
    events = EventBus()
    environment = Environment(disk, memory, clock, events.publish, start_us, __version__)
    environment.budget.set_limit(config.queue.store_limit)
    url = await _start_rendezvous(stack, config, state.path) or config.signalling.url
    identities = Identities(state.path / "keys")
    if credentials := os.environ.get("CREDENTIALS_DIRECTORY"):
        identities.take_credentials(Path(credentials))
    signalling = await _open_signalling(stack, config, url, identities)
    engine = _make_engine(config)
    _stop_later(stack, "the WebRTC engine", engine.close)
    _absorb_library_errors(loop, engine)
    house = House(config, environment, signalling, engine, events, identities, Care(disk), config_path)
    house.signalling_url = url
    await house.load()
    server = Server(
        house,
        path=socket if descriptor is None else None,
        descriptor=descriptor,
        mode=config.daemon.socket_mode,
        group=group,
        max_message=config.daemon.max_message,
        policy=policy,
        counters=environment.counters,
    )
    house.clients, house.clients_refused = server.clients, lambda: server.refused
    house.set_policy = server.set_policy
    await server.start()
    _stop_later(stack, "the socket", server.stop)
    _stop_later(stack, "connections and services", house.stop)
    stack.callback(events.publish, "stopping", {"restarting": True})
    await house.start()
    metrics = Metrics(house, mode=config.daemon.socket_mode, group=group)
    _stop_later(stack, "metrics", metrics.stop)
    await metrics.change(config.metrics.listen)
    house.on_metrics(metrics.change)
    watch = NetworkWatch(house.network_changed)
    watch.start()
    stack.callback(watch.stop)
    for work, name in (
        (_housekeeping(house, disk, memory), "housekeeping"),
        (_watchdog(disk), "watchdog"),
        (_tell_status(house), "status"),
        (_watch_store(disk, broken), "store watch"),
    ):
        task = loop.create_task(work, name=name)
        stack.callback(task.cancel)
    if disk.moved_aside is not None:
        events.publish("gap", {"reason": "damaged", "count": None, "moved_aside": str(disk.moved_aside)})
    return house


def find_descriptor() -> int | None:
    """The listening socket that systemd handed over, None where it did not. Raises `ConfigError` for several."""
    descriptors = systemd.take_listen_fds()
    if len(descriptors) > 1:
        raise ConfigError(
            f"{len(descriptors)} sockets were handed over (LISTEN_FDS), and the daemon listens at one: "
            "rondevud.socket must have a single ListenStream="
        )
    return descriptors[0] if descriptors else None


async def _start_rendezvous(stack: contextlib.AsyncExitStack, config: Config, state_dir: Path) -> str | None:
    """The embedded signalling server, if it is wanted; answers its URL."""
    if not config.rendezvous.enabled:
        return None
    from rondevud.rendezvous import app as rendezvous  # noqa: PLC0415 - hardly any daemon is a signalling server, too
    from rondevud.rendezvous.storage import open_storage  # noqa: PLC0415

    storage = open_storage(config.rendezvous.store, state_dir)
    stack.callback(storage.close)
    host, _, port = config.rendezvous.listen.rpartition(":")
    server = await rendezvous.start(host.strip("[]"), int(port), storage, rendezvous.Settings(version=__version__))
    _stop_later(stack, "the embedded signalling server", server.close)
    return server.url


async def _open_signalling(
    stack: contextlib.AsyncExitStack, config: Config, url: str | None, identities: Identities
) -> Signalling | None:
    if url is None:
        return None
    signalling = await open_signalling(
        url,
        config.signalling.protocol,
        identities,
        timeout=config.signalling.request_timeout,
        user_agent=f"rondevud/{__version__}",
    )
    _stop_later(stack, "the signalling client", signalling.close)
    return signalling


def _ice_servers(config: Config) -> list[IceServer]:
    return [
        IceServer(tuple(server.urls), server.username, server.credential) for server in config.transport.ice_servers
    ]


def _make_engine(config: Config) -> Engine:
    """Raises `ConfigError`."""
    try:
        engine = make_engine(config.transport.engine, _ice_servers(config))
    except TransportError as error:
        raise ConfigError(f"transport: {error}") from error
    logger.info("the WebRTC engine is %s", engine.name)
    return engine


def _absorb_library_errors(loop: asyncio.AbstractEventLoop, engine: Engine) -> None:
    """Exceptions of the WebRTC library's own background tasks are counted by the engine, not reported as ours."""
    ours = loop.get_exception_handler()

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        if engine.absorb(context):
            return
        if ours is not None:
            ours(loop, context)
        else:
            loop.default_exception_handler(context)

    loop.set_exception_handler(handle)


def _handle_signals(stopping: asyncio.Event, reload_wanted: asyncio.Event) -> None:
    def stop(number: int) -> None:
        if stopping.is_set():
            os._exit(128 + number)
        stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    loop.add_signal_handler(signal.SIGHUP, reload_wanted.set)


async def _reload_loop(house: House, wanted: asyncio.Event) -> None:
    """Reload as often as it is wanted; what comes of it stands in the log and is an event."""
    while True:
        await wanted.wait()
        wanted.clear()
        try:
            await house.reload()
        except RequestError as error:
            logger.debug("the reload came to nothing: %s", error.code)


async def _housekeeping(house: House, *stores: SqliteStore | MemoryStore) -> None:
    """Forget producers that have long not been used; one that a program has a handle on is in use."""
    while True:
        keep = house.live_producers()
        for store in stores:
            store.submit(ForgetProducers(PRODUCERS_KEPT, clock.stamp(), keep))
        await asyncio.sleep(HOUSEKEEPING)


async def _watchdog(disk: SqliteStore) -> None:
    """Fed only while this loop and the writer's thread are alive."""
    interval = systemd.watchdog_interval()
    while interval is not None:
        if disk.alive() < HUNG:
            systemd.feed_watchdog()
        await asyncio.sleep(interval / 2)


async def _tell_status(house: House) -> None:
    """Keep the line of ``systemctl status`` true."""
    while os.environ.get("NOTIFY_SOCKET"):
        systemd.status(summary(await house.status()))  # also when it is the same: a reload writes a line of its own
        await asyncio.sleep(STATUS_INTERVAL)


def summary(status: Mapping[str, Any]) -> str:
    """What `House.status` answers, in a line."""
    parts = [
        f"{status['connected']} of {status['connections']} connections up",
        f"{status['services']} services",
        f"{status['clients']} programs",
        f"{status['store_bytes']:,} bytes queued",
    ]
    if status["store"] != "ok":
        parts.insert(0, f"STORE FAILS ({status['store']})")
    return ", ".join(parts)


async def _watch_store(disk: SqliteStore, broken: Callable[[], None]) -> None:
    """What a daemon knows and what it stored must not part; its successor begins with what was stored."""
    await disk.broken()
    logger.critical("the store or what depends on it is broken: the daemon ends, to be started anew")
    broken()
