"""The socket file: whose it is, what it may replace, which mode it has."""

from __future__ import annotations

import os
import socket
import stat

import pytest

from rondevud.access import DAEMON, Policy, Verb
from rondevud.errors import ConfigError
from rondevud.ipc.access import Peer, default_policy, identify_peer
from rondevud.ipc.listening import adopt, listen_at
from rondevud.ipc.server import Server
from tests.unit.ipc.raw import raw_client


@pytest.fixture
def leave_socket(path):
    def leave():
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(path))
        return sock

    return leave


async def test_a_socket_nobody_answers_at_is_replaced(path, leave_socket):
    leave_socket().close()
    before = path.lstat().st_ino, path.lstat().st_ctime_ns
    sock = await listen_at(path)
    sock.close()
    assert (path.lstat().st_ino, path.lstat().st_ctime_ns) != before


async def test_a_socket_somebody_answers_at_is_left_alone(path, leave_socket):
    other = leave_socket()
    other.listen(1)
    with pytest.raises(ConfigError, match="another process listens"):
        await listen_at(path)
    with socket.socket(socket.AF_UNIX) as probe:
        probe.connect(str(path))
    other.close()


async def test_a_symbolic_link_is_refused_even_to_a_stale_socket(path, leave_socket, tmp_path):
    leave_socket().close()
    link = tmp_path / "link.sock"
    link.symlink_to(path)
    with pytest.raises(ConfigError, match="symbolic link"):
        await listen_at(link)
    assert link.is_symlink()


async def test_a_file_that_is_no_socket_is_refused_and_kept(path):
    path.write_text("precious")
    with pytest.raises(ConfigError, match="not a socket"):
        await listen_at(path)
    assert path.read_text() == "precious"


async def test_a_path_that_is_too_long_or_has_no_directory_is_named(tmp_path):
    with pytest.raises(ConfigError, match="longer than 107"):
        await listen_at(tmp_path / ("x" * 120))
    with pytest.raises(ConfigError, match="No such file or directory"):
        await listen_at(tmp_path / "absent" / "s")


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
async def test_the_socket_has_its_mode_whatever_the_umask(path, mode):
    before = os.umask(0)
    try:
        (await listen_at(path, mode=mode)).close()
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.lstat().st_mode) == mode


async def test_a_listening_descriptor_is_served_and_its_file_left_behind(path, house, leave_socket):
    listener = leave_socket()
    listener.listen(5)
    server = Server(house, descriptor=listener.detach())
    await server.start()
    async with raw_client(path) as client:
        assert await client.result("ping") == {}
    await server.stop()
    assert path.is_socket()


def test_descriptors_that_do_not_listen_are_refused(leave_socket, tmp_path):
    with leave_socket() as silent, pytest.raises(ConfigError, match="does not listen"):
        adopt(silent.fileno())
    with socket.socket(socket.AF_INET) as other, pytest.raises(ConfigError, match="not a Unix stream socket"):
        adopt(other.fileno())
    with (tmp_path / "file").open("w") as file, pytest.raises(ConfigError, match="not a socket"):
        adopt(file.fileno())


async def test_stopping_removes_the_socket_but_not_one_that_took_its_place(path, house, leave_socket):
    first = Server(house, path=path)
    await first.start()
    path.unlink()
    other = leave_socket()
    await first.stop()
    assert path.is_socket()
    other.close()
    second = Server(house, path=path)
    await second.start()
    await second.stop()
    assert not path.exists()


def test_the_owner_and_root_may_use_the_socket_and_nobody_else():
    assert default_policy().grants(os.getuid(), []).allows(Verb.ADMINISTER, DAEMON)
    assert default_policy().grants(0, []).allows(Verb.ADMINISTER, DAEMON)
    assert default_policy().grants(os.getuid() + 1, [0, os.getgid()]).nothing


def test_a_peer_is_who_the_kernel_says():
    left, right = socket.socketpair()
    with left, right:
        assert identify_peer(left) == Peer(os.getpid(), os.getuid(), os.getgid(), frozenset(os.getgroups()))


async def test_who_may_not_use_the_daemon_gets_one_error_and_is_closed(path, house):
    server = Server(house, path=path, policy=Policy(frozenset()))
    await server.start()
    try:
        async with raw_client(path, hello=False) as client:
            error = await client.refused("hello", protocol=[1])
            assert error["code"] == "access_denied"
            assert await client.next() is None
    finally:
        await server.stop()
