"""What the daemon makes of its configuration by itself; whole daemons run in `tests/integration`."""

from __future__ import annotations

import contextlib
import grp
import os
import stat

import pytest

from rondevud import daemon
from rondevud.config import parse
from rondevud.errors import ConfigError


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
    assert daemon.find_group(known.gr_name) == known.gr_gid
    assert daemon.find_group(str(known.gr_gid)) == known.gr_gid
    assert daemon.find_group("4294967294") == 4294967294
    assert daemon.find_group(None) is None


@pytest.mark.parametrize("name", ["", "4294967295", "99999999999", "-1", "1.5", "٣", "a\0b"])
def test_what_is_no_group_is_refused_by_name(name):
    with pytest.raises(ConfigError, match="socket_group: there is no group"):
        daemon.find_group(name)
