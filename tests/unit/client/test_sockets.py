"""Where the socket is looked for, and that asking is cheap."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from rondevu_client.sockets import SYSTEM_SOCKET, describe_problem, describe_unavailable, socket_candidates


def test_a_socket_that_is_given_is_the_only_one_tried():
    assert socket_candidates("/x/y", {"RONDEVU_SOCKET": "/z"}) == ["/x/y"]
    assert socket_candidates(Path("/x/y"), {}) == ["/x/y"]


def test_the_environment_comes_before_the_user_and_the_user_before_the_system():
    environ = {"RONDEVU_SOCKET": "/env.sock", "XDG_RUNTIME_DIR": "/run/user/5"}
    assert socket_candidates(None, environ) == ["/env.sock", "/run/user/5/rondevud.sock", SYSTEM_SOCKET]
    assert socket_candidates(None, {"RONDEVU_SOCKET": "", "XDG_RUNTIME_DIR": ""}) == [SYSTEM_SOCKET]


def test_who_may_not_open_a_socket_is_told_who_may_and_not_to_start_the_daemon():
    told = describe_unavailable(
        [("/a", describe_problem(FileNotFoundError())), ("/b", describe_problem(PermissionError()))]
    )
    assert "/b: you may not open it" in told
    assert "usermod -aG" in told
    assert "systemctl start" not in told


def test_who_finds_nobody_is_told_how_to_start_the_daemon():
    told = describe_unavailable([("/a", describe_problem(ConnectionRefusedError()))])
    assert "systemctl start rondevud" in told
    assert "usermod" not in told


def test_errors_and_version_need_no_asyncio():
    program = "import sys, rondevu_client; rondevu_client.RequestRefused; print('asyncio' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
