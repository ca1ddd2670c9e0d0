"""The unit's restrictions and the engine on libdatachannel, between two machines. One story, in this order.

The package has the release's own Python, for which there may be no libdatachannel; so the daemon, its libraries and the
interpreter are those of the tests here, and everything else is the package's.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.engines import HAS_WHEELS
from tests.system.machine import ROOT, Machine, given, wait_until
from tests.system.test_pair import QUICK, configurations, install

pytestmark = [
    pytest.mark.system,
    pytest.mark.soak,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not HAS_WHEELS, reason="there is no libdatachannel for this Python or machine"),
]

HOME = Path("opt/native")
PYTHON = f"/{HOME}/bin/python"
DROP_INS = "etc/systemd/system/rondevud.service.d"
DROP_IN = f"""[Service]
Environment=PYTHONHOME=/{HOME} LD_LIBRARY_PATH=/{HOME}/lib
ExecStart=
ExecStart={PYTHON} -m rondevud run --self-test
"""
ENGINE = '[transport]\nengine = "libdatachannel"\n'
LARGE = 200_000
"""Bytes of a message that takes several frames."""

LEFT_OUT = shutil.ignore_patterns(
    *("__pycache__", "test", "idlelib", "ensurepip", "lib2to3", "site-packages", "config-*"),
    *("av", "av.libs", "pip", "mypy*", "hypothesis*", "ruff*", "librt", "ast_serialize"),
)
"""What is large, and what a daemon with this engine never loads."""


def copy_python(to: Path) -> None:
    """The interpreter of the tests with its libraries, and the daemon of this checkout."""
    library = to / "lib" / Path(sysconfig.get_path("stdlib")).name
    shutil.copytree(sysconfig.get_path("stdlib"), library, ignore=LEFT_OUT)
    packages = library / "site-packages"
    for kind in ("purelib", "platlib"):
        shutil.copytree(sysconfig.get_path(kind), packages, ignore=LEFT_OUT, dirs_exist_ok=True)
    for name, source in (("rondevud", ROOT), ("rondevu_client", ROOT / "client_lib")):
        shutil.copytree(source / name, packages / name, ignore=LEFT_OUT, dirs_exist_ok=True)
    (to / "bin").mkdir()
    shutil.copy(Path(sys.executable).resolve(), to / "bin/python")
    for shared in Path(sysconfig.get_config_var("LIBDIR")).glob("libpython3*.so*"):
        shutil.copy(shared, to / "lib")


@pytest.fixture(scope="module")
def python():
    made = given("SPACE") / "native-python"
    copy_python(made)
    yield made
    shutil.rmtree(made)


def prepare(machine: Machine, package: str, config: str, python: Path) -> None:
    shutil.copytree(python, machine.root / HOME)
    (machine.root / DROP_INS).mkdir(exist_ok=True)
    (machine.root / DROP_INS / "native.conf").write_text(DROP_IN)
    install(machine, package, config + ENGINE)


@pytest.fixture(scope="module")
def pair(alice, bob, package, python):
    of_alice, of_bob = configurations(alice.address)
    with ThreadPoolExecutor(2) as pool:
        for done in [
            pool.submit(prepare, alice, package.name, of_alice, python),
            pool.submit(prepare, bob, package.name, of_bob + QUICK, python),
        ]:
            done.result()
    yield alice, bob
    for machine in (alice, bob):
        machine.run("apt-get", "purge", "--yes", "rondevud")
        shutil.rmtree(machine.root / DROP_INS)
        shutil.rmtree(machine.root / HOME)


def send(machine: Machine, count: int) -> None:
    """A message of so many bytes; returns when the other machine's store has it."""
    message = f"head -c {count} /dev/zero | tr '\\0' x"
    machine.run("sh", "-c", f"{message} | rondevuctl send alice-chat main - --wait acknowledged")


def filters(machine: Machine, pid: str) -> int:
    """How many seccomp filters a process is under; the container's own are among them."""
    status = machine.run("cat", f"/proc/{pid}/status").stdout
    found = re.search(r"^Seccomp_filters:\t(\d+)$", status, re.MULTILINE)
    assert found, f"the kernel does not tell: {status}"
    return int(found[1])


def test_messages_pass_under_the_restrictions_of_the_unit(pair):
    _, bob = pair
    bob.run("rondevuctl", "wait", "alice-chat", "connected", "--timeout", "100")
    for count in (1, LARGE):
        send(bob, count)
    for machine in pair:
        assert json.loads(machine.run("rondevuctl", "--json", "status").stdout)["engine"] == "libdatachannel"
        pid = machine.property("MainPID")
        assert "/libdatachannel_ext." in machine.run("cat", f"/proc/{pid}/maps").stdout
        assert filters(machine, pid) > filters(machine, "1")


def test_a_link_whose_peer_was_killed_is_closed_and_another_made(pair):
    alice, bob = pair
    bob.run("systemctl", "kill", "--signal=KILL", "rondevud")
    wait_until(lambda: bob.run("systemctl", "is-active", "rondevud", check=False).stdout == "active\n", "it runs again")
    bob.run("rondevuctl", "wait", "alice-chat", "connected", "--timeout", "100")
    send(bob, LARGE)
    wait_until(
        lambda: json.loads(alice.run("rondevuctl", "--json", "status").stdout)["closing"] == 0,
        "the connection to what was killed is closed",
    )


def test_this_engine_needs_no_memory_that_is_both_written_and_executed(pair):
    """Unlike aiortc, for which the unit allows it."""
    _, bob = pair
    before = filters(bob, bob.property("MainPID"))
    for machine in pair:
        (machine.root / DROP_INS / "memory.conf").write_text("[Service]\nMemoryDenyWriteExecute=yes\n")
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "restart", "rondevud")
    assert filters(bob, bob.property("MainPID")) > before
    bob.run("rondevuctl", "wait", "alice-chat", "connected", "--timeout", "100")
    send(bob, LARGE)


def test_they_stop_in_order(pair):
    for machine in pair:
        machine.run("systemctl", "stop", "rondevud.socket", "rondevud.service")
        assert (machine.property("Result"), machine.property("ExecMainStatus")) == ("success", "0")
        assert "Traceback" not in machine.journal("--unit=rondevud.service")
