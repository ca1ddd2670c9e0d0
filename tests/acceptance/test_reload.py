"""SIGHUP: a running daemon takes its changed configuration file over, and tells systemd."""

from __future__ import annotations

import asyncio
import signal
import sys

import pytest

from tests.acceptance.processes import LIMIT, PATIENCE, Daemon, Stage

pytestmark = [pytest.mark.acceptance, pytest.mark.once, LIMIT]

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


async def test_soon_after_a_reload_the_status_line_is_the_usual_one(stage):
    daemon = stage.daemon("alice")
    await daemon.start()
    usual = "STATUS=0 of 0 connections up, 0 services, 0 programs, 0 bytes queued"
    await daemon.until_told(usual)
    await reload(daemon, "[access]\nmax_clients = 5\n")  # with a line of its own
    await daemon.until_told(usual)


async def test_hangups_in_a_row_end_in_what_the_file_says_last(stage):
    daemon = stage.daemon("alice")
    process = await daemon.start()
    for number in range(20):
        daemon.reconfigure(connection(f"c{number}"))
        process.send(signal.SIGHUP)
    await reload(daemon, connection("last"))  # or one before it: several signals may be one reload
    there: list[str] = []
    try:
        async with asyncio.timeout(PATIENCE):
            while (there := await names(daemon)) != ["last"]:
                pass
    except TimeoutError:
        raise AssertionError(f"there is {there}\n{process.log.read_text()}") from None


async def check_config(stage: Stage, daemon: Daemon, extra: str) -> str:
    """What `check-config` says on stderr of another file, with the state directory of that daemon."""
    daemon.reconfigure(extra)
    stage.checks = getattr(stage, "checks", 0) + 1
    process = await stage.start(
        f"check-{stage.checks}",
        [
            sys.executable,
            "-m",
            "rondevud",
            "check-config",
            f"{stage.path}/alice.toml",
            "--state-dir",
            str(daemon.state),
        ],
    )
    assert await process.exited() == 0
    return process.log.read_text()


async def test_check_config_warns_of_what_waits_for_a_connection_that_is_not_in_the_file_any_more(stage):
    daemon = stage.daemon("alice", connection("one"))
    assert await check_config(stage, daemon, connection("one")) == ""
    await daemon.start()
    async with daemon.client() as client:
        await client.connect("alice", FQN, name="own")
        for target in ("one", "own"):
            channel = await client.attach(target, "main")
            await channel.send("waits")
    await assert_warned(stage, daemon)
    await daemon.kill()
    await assert_warned(stage, daemon)
    await daemon.start()
    await daemon.stop()
    await assert_warned(stage, daemon)
    assert not [path for path in daemon.state.iterdir() if path.name.endswith(("-wal", "-shm"))]


async def assert_warned(stage: Stage, daemon: Daemon) -> None:
    for text in ("", connection("one", username="bobby")):
        said = await check_config(stage, daemon, text)
        assert said.startswith(f"rondevud: warning: 1 messages wait to be sent for one (to alice/{FQN})")
        assert len(said.splitlines()) == 1
    assert await check_config(stage, daemon, connection("one")) == ""


async def test_check_config_says_which_database_it_cannot_read(stage):
    daemon = stage.daemon("alice")
    daemon.state.mkdir()
    (daemon.state / "rondevud.sqlite3").write_text("no database, but long enough to be looked at by SQLite" * 9)
    assert "rondevud.sqlite3: cannot be read: file is not a database" in await check_config(stage, daemon, "")
