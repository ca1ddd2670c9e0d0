"""SIGHUP: a running daemon takes its changed configuration file over, and tells systemd."""

from __future__ import annotations

import asyncio
import signal

import pytest

from tests.acceptance.processes import LIMIT, PATIENCE, Daemon, Stage

pytestmark = [pytest.mark.acceptance, LIMIT]

FQN = "com.example.reload@1.0.0"


def connection(name: str, username: str = "alice") -> str:
    return f'[[connection]]\nname = "{name}"\nusername = "{username}"\nfqn = "{FQN}"\n'


@pytest.fixture
async def stage(tmp_path):
    async with Stage(tmp_path) as stage:
        await stage.rendezvous.start()
        yield stage


async def reload(daemon: Daemon, extra: str) -> None:
    """Another file, SIGHUP, and what systemd waits for."""
    daemon.reconfigure(extra)
    assert daemon.process is not None
    daemon.process.send(signal.SIGHUP)
    await daemon.until_told("RELOADING=1")
    await daemon.until_told("READY=1")


async def names(daemon: Daemon) -> list[str]:
    async with daemon.client() as client:
        return sorted(row["name"] for row in await client.connections())


async def test_a_changed_file_is_taken_over_and_survives_a_restart(stage):
    daemon = stage.daemon("alice", connection("one"))
    await daemon.start()
    service = f'[[service]]\nusername = "alice"\nfqn = "{FQN}"\npolling_interval = 0.2\n'
    await reload(daemon, connection("two") + service)
    async with daemon.client() as client:
        await client.wait("two", "connected", PATIENCE)
        assert [row["service"] for row in await client.services()] == [f"alice/{FQN}"]
        named = [row["name"] for row in await client.connections() if row["name"]]
        assert named == ["two"]
    assert await daemon.stop() == 0
    await daemon.start()
    async with daemon.client() as client:
        await client.wait("two", "connected", PATIENCE)


async def test_a_bad_file_changes_nothing_and_the_log_says_why(stage):
    daemon = stage.daemon("alice", connection("one"))
    process = await daemon.start()
    await reload(daemon, connection("two") + "[queue]\nmax_queue_sise = 5\n")
    assert await names(daemon) == ["one"]
    said = process.log.read_text()
    assert f"{stage.path}/alice.toml:" in said
    assert "max_queue_sise" in said
    await reload(daemon, connection("two"))
    assert await names(daemon) == ["two"]


async def test_hangups_in_a_row_end_in_what_the_file_says_last(stage):
    daemon = stage.daemon("alice")
    process = await daemon.start()
    for number in range(20):
        daemon.reconfigure(connection(f"c{number}"))
        process.send(signal.SIGHUP)
    await reload(daemon, connection("last"))  # or one before it: several signals may be one reload
    async with asyncio.timeout(PATIENCE):
        while await names(daemon) != ["last"]:
            pass
