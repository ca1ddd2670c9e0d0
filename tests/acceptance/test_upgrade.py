"""A newer version takes the place of an older one: under load, and where it has to change the store."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import shutil
import signal
import sqlite3
from pathlib import Path

import pytest

from rondevu_client import Channel, __version__
from rondevu_client.stream import Event, EventStream
from rondevud.statedir import DATABASE
from tests.acceptance.processes import CONNECTION, LIMIT, PATIENCE, ROOT, Daemon, Stage
from tests.acceptance.programs.patient import patient_client
from tests.acceptance.test_daemon_killed import assert_drained, finish, start_both_ways
from tests.acceptance.test_failpoints import UPGRADING
from tests.unit.store.test_upgrades import DATA, IN, OUT

pytestmark = [pytest.mark.acceptance, pytest.mark.once, LIMIT]

CI = "upgrade.within"


@pytest.mark.parametrize("point", [p if p == CI else pytest.param(p, marks=pytest.mark.soak) for p in UPGRADING])
async def test_a_daemon_dies_in_the_upgrade(tmp_path, point):
    async with Stage(tmp_path) as stage:
        service, connection = await stage.declared_pair()
        connection.state.mkdir(mode=0o700, exist_ok=True)
        (connection.state / DATABASE).write_bytes(gzip.decompress((DATA / "store-version-1.sqlite3.gz").read_bytes()))
        await service.start()
        process = await connection.start(f"{point}:1")
        assert await process.exited() == -signal.SIGKILL
        await connection.start()
        async with patient_client(connection.socket, "near") as near, patient_client(service.socket, "far") as far:
            await near.wait(CONNECTION, "drained", PATIENCE)
            totals = (await near.queue(CONNECTION, "main"))["totals"]
            assert (totals["accepted"], totals["acknowledged"]) == (len(OUT), len(OUT))
            channel = await near.attach(CONNECTION, "main")
            assert await take(channel, len(IN)) == [f"in {number}" for number in IN]
            other = await far.attach(await service.connection_id(), "main")
            assert await take(other, len(OUT)) == [f"out {number}" for number in OUT]


async def take(channel: Channel, count: int) -> list[str]:
    """So many messages."""
    async with asyncio.timeout(PATIENCE):
        got = [await channel.receive() for _ in range(count)]
    return [message.data.decode() if isinstance(message.data, bytes) else message.data for message in got]


OTHER_VERSION = "0.0.9"


def install_other_version(place: Path) -> Path:
    """The sources as another version; where that is."""
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "rondevud", place / "rondevud", ignore=ignored)
    shutil.copytree(ROOT / "client_lib", place / "client_lib", ignore=ignored)
    stated = place / "client_lib" / "rondevu_client" / "__init__.py"
    text = stated.read_text()
    stated.write_text(text.replace(f'__version__ = "{__version__}"', f'__version__ = "{OTHER_VERSION}"'))
    assert OTHER_VERSION in stated.read_text()
    return place


async def version(daemon: Daemon) -> str:
    async with daemon.client() as client:
        return str((await client.status())["version"])


async def until_back(events: EventStream) -> list[Event]:
    """What happens until the connection stands again after a loss."""
    heard: list[Event] = []
    async with asyncio.timeout(PATIENCE):
        while not heard or heard[-1].name != "connected":
            heard.append(await anext(events))
    return heard


@pytest.mark.parametrize("which", ["service", "connection"])
async def test_an_upgrade_under_load_loses_nothing_and_the_peer_comes_back_at_once(tmp_path, which):
    async with Stage(tmp_path) as stage:
        other = install_other_version(tmp_path / "other")
        service, connection = await stage.declared_pair()
        upgraded, peer = (service, connection) if which == "service" else (connection, service)
        upgraded.source, upgraded.env = other, {"PYTHONPATH": str(other / "client_lib")}
        await service.start()
        await connection.start()
        async with connection.client() as client:
            await client.wait(CONNECTION, "connected", PATIENCE)
        assert (await version(upgraded), await version(peer)) == (OTHER_VERSION, __version__)
        ids, programs = await start_both_ways(stage, service, connection, 2_000)
        await programs[0].until_count("received", 500)
        async with contextlib.AsyncExitStack() as stack:
            client = await stack.enter_async_context(peer.client())
            events = await client.subscribe()
            assert await upgraded.stop() == 0
            upgraded.source, upgraded.env = ROOT, {}
            await upgraded.start()
            assert await version(upgraded) == __version__
            heard = await until_back(events)
        if peer is connection:
            assert_dialled_soon(heard)
        await finish(stage, programs, 2_000)
        await assert_drained(ids)


def assert_dialled_soon(events: list[Event]) -> None:
    """It was told that the other daemon restarts, and dialled within two seconds of that, whatever its backoff."""
    told = [event.data for event in events if event.name == "disconnected"]
    assert [data["reason"] for data in told] == ["restarting"]
    waits = [event.data["next_retry_in"] for event in events if event.name == "reconnecting"]
    assert waits
    assert waits[0] <= 2


async def test_a_store_of_a_newer_version_is_refused_and_left_as_it_is(tmp_path):
    async with Stage(tmp_path) as stage:
        await stage.rendezvous.start()
        daemon = stage.daemon("alice")
        await daemon.start()
        assert await daemon.stop() == 0
        path = daemon.state / DATABASE
        with contextlib.closing(sqlite3.connect(path)) as store:
            known = store.execute("PRAGMA user_version").fetchone()[0]
            store.execute("PRAGMA user_version = 99")
        before = path.read_bytes()
        process = await daemon.begin()
        assert await process.exited() not in {0, -signal.SIGKILL}
        assert f"{path} has schema version 99; this program knows versions up to {known}" in process.log.read_text()
        assert path.read_bytes() == before
