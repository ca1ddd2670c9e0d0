"""What the daemon makes of its configuration by itself; whole daemons run in `tests/integration`."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import os
import stat

import pytest
from click.testing import CliRunner

from rondevud import daemon, systemd
from rondevud.config import parse
from rondevud.errors import ConfigError
from rondevud.main import main
from rondevud.policies import find_group
from rondevud.signalling.identity import Identities


def other_group() -> int:
    """A group that new files of this process do not get by themselves; its own where there is no other it may give."""
    if os.geteuid() == 0:
        return 54_321
    return next((gid for gid in os.getgroups() if gid != os.getegid()), os.getegid())


async def test_the_socket_gets_the_group_of_the_configuration(tmp_path):
    gid, path = other_group(), tmp_path / "socket"
    config = parse(f'[daemon]\nsocket_group = "{gid}"\nsocket_mode = "0660"\n', "x")
    async with contextlib.AsyncExitStack() as stack:
        await daemon.start(stack, config, tmp_path / "state", path)
        found = path.stat()
        assert (found.st_gid, stat.S_IMODE(found.st_mode)) == (gid, 0o660)


async def test_an_unknown_group_stops_the_start_before_anything_is_made(tmp_path):
    config = parse('[daemon]\nsocket_group = "no-such-group"\n', "x")
    async with contextlib.AsyncExitStack() as stack:
        with pytest.raises(ConfigError, match=r"\[daemon\] socket_group: there is no group 'no-such-group'"):
            await daemon.start(stack, config, tmp_path / "state", tmp_path / "socket")
    assert not list(tmp_path.iterdir())


def test_a_group_is_found_by_name_or_number():
    known = grp.getgrgid(os.getegid())
    assert find_group(known.gr_name) == known.gr_gid
    assert find_group(str(known.gr_gid)) == known.gr_gid
    assert find_group("4294967294") == 4294967294
    assert find_group(None) is None


def test_an_unknown_group_in_the_file_is_told_without_a_start(tmp_path):
    (tmp_path / "c.toml").write_text('[daemon]\nsocket_group = "no-such-group"\n')
    done = CliRunner().invoke(main, ["check-config", str(tmp_path / "c.toml")])
    assert done.exit_code == 1
    assert f"rondevud: {tmp_path}/c.toml: [daemon] socket_group: there is no group 'no-such-group'" in done.output


@pytest.mark.parametrize("name", ["", "4294967295", "99999999999", "-1", "1.5", "٣", "a\0b"])
def test_what_is_no_group_is_refused_by_name(name):
    with pytest.raises(ConfigError, match="socket_group: there is no group"):
        find_group(name)


async def test_keys_among_the_credentials_are_taken(tmp_path, monkeypatch):
    (tmp_path / "credentials").mkdir()
    Identities(tmp_path / "credentials").obtain("alice")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    async with contextlib.AsyncExitStack() as stack:
        house = await daemon.start(stack, parse("", "x"), tmp_path / "state", tmp_path / "socket")
        assert [key["username"] for key in house.keys.list()] == ["alice"]


async def test_the_watchdog_is_fed_only_while_the_writer_makes_progress(monkeypatch):
    looks = iter([0.0, daemon.HUNG + 1, float("inf"), daemon.HUNG - 1, 0.0])
    told = []
    over = asyncio.Event()

    class Disk:
        def alive(self):
            try:
                told.append(next(looks))
            except StopIteration:
                over.set()
                return float("inf")
            return told[-1]

    monkeypatch.setattr(systemd, "watchdog_interval", lambda: 0.001)
    monkeypatch.setattr(systemd, "feed_watchdog", lambda: told.append("fed"))
    feeding = asyncio.create_task(daemon._watchdog(Disk()))
    await over.wait()
    feeding.cancel()
    assert told == [0.0, "fed", daemon.HUNG + 1, float("inf"), daemon.HUNG - 1, "fed", 0.0, "fed"]


def test_the_status_line_says_what_there_is_and_what_fails():
    status = {
        "connected": 1, "connections": 2, "services": 3, "clients": 4, "store_bytes": 5_000_000, "store": "ok",
    }  # fmt: skip
    line = "1 of 2 connections up, 3 services, 4 programs, 5,000,000 bytes queued"
    assert daemon.summary(status) == line
    assert daemon.summary(status | {"store": "disk full"}) == f"STORE FAILS (disk full), {line}"
