"""One daemon for each state directory, one for each socket, whatever its predecessor left behind."""

from __future__ import annotations

import pytest

from tests.acceptance.processes import LIMIT, Daemon, Stage

pytestmark = [pytest.mark.acceptance, pytest.mark.once, LIMIT]


@pytest.fixture
async def stage(tmp_path):
    async with Stage(tmp_path) as stage:
        await stage.rendezvous.start()
        yield stage


async def refused(stage: Stage, daemon: Daemon, **other) -> tuple[int, str]:
    """Exit code and what it said, of a daemon that must not start."""
    process = await daemon.begin(**other)
    code = await process.exited()
    return code, process.log.read_text()


async def test_a_second_daemon_on_a_state_directory_refuses_and_names_the_first(stage):
    daemon = stage.daemon("alice")
    first = await daemon.start()
    code, said = await refused(stage, daemon, socket=stage.path / "other.sock")
    assert code == 3
    assert f"in use by process {first.pid}" in said
    async with daemon.client() as client:
        assert (await client.status())["pid"] == first.pid


async def test_after_a_kill_the_lock_and_the_socket_file_keep_nobody_out(stage):
    daemon = stage.daemon("alice")
    first = await daemon.start()
    await daemon.kill()
    assert daemon.socket.is_socket()
    assert (daemon.state / "lock").read_text().strip() == str(first.pid)
    second = await daemon.start()
    async with daemon.client() as client:
        assert (await client.status())["pid"] == second.pid


async def test_a_socket_at_which_somebody_answers_is_left_alone(stage):
    daemon = stage.daemon("alice")
    first = await daemon.start()
    code, said = await refused(stage, daemon, state_dir=stage.path / "other")
    assert code == 1
    assert f"another process listens at {daemon.socket}" in said
    async with daemon.client() as client:
        assert (await client.status())["pid"] == first.pid


async def test_a_symbolic_link_in_place_of_the_socket_is_refused(stage):
    daemon = stage.daemon("alice")
    daemon.socket.symlink_to(stage.path / "elsewhere.sock")
    code, said = await refused(stage, daemon)
    assert code == 1
    assert f"{daemon.socket} is a symbolic link" in said
    assert daemon.socket.is_symlink()
    assert not (stage.path / "elsewhere.sock").exists()


async def test_a_file_in_place_of_the_socket_is_refused_and_kept(stage):
    daemon = stage.daemon("alice")
    daemon.socket.write_text("precious")
    code, said = await refused(stage, daemon)
    assert code == 1
    assert f"{daemon.socket} exists and is not a socket" in said
    assert daemon.socket.read_text() == "precious"


async def test_an_orderly_stop_leaves_no_socket_file_and_lets_the_directory_go(stage):
    daemon = stage.daemon("alice")
    first = await daemon.start()
    await daemon.stop()
    assert first.exit_code == 0
    assert not daemon.socket.exists()
    await daemon.start()
