"""A machine of its own: Debian with systemd as process 1, in a container; several are joined by a bridge of the test's.

`tests/system/run` makes what they are made of, and ends what is left of them.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]

PATIENCE = 120.0 * float(os.environ.get("RONDEVUD_TIME_SCALE", "1"))
"""Seconds after which a wait has failed."""

GLANCE = 0.1
"""Seconds between two looks at something that does not say when it changes."""

BRIDGE = "machines"
REBOOTED = 133
"""What the container's manager ends with when the machine wants to be booted again: it leaves that to who started it."""

ENVIRON = ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8")
NETWORK = "[Match]\nName=host0\n[Network]\nAddress={}/24\n"


def given(name: str) -> Path:
    """What `tests/system/run` made: ``ROOT``, ``PACKAGE``, ``SPACE``. Raises `LookupError` where that was not run."""
    path = os.environ.get(f"RONDEVUD_{name}")
    if path is None:
        raise LookupError("the tests of the whole machine are run by `make test-system`")
    return ROOT / path


def overlay(lower: Path, directory: Path) -> Path:
    """A place in `directory` that looks like `lower` and can be changed; gone with the namespace of the run."""
    upper, work, place = (directory / name for name in ("upper", "work", "root"))
    for path in (upper, work, place):
        path.mkdir(parents=True)
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", place], check=True, timeout=60)
    return place


def wait_until(true: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
    """Look until it is true; raises `AssertionError` when it does not become so."""
    end = time.monotonic() + patience
    while not true():
        assert time.monotonic() < end, f"it did not come about: {what}"
        time.sleep(GLANCE)


class Machine:
    """A machine that is booted with `start`; its root can be looked at in `root` at any time."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address
        self._directory = given("SPACE") / name
        self.root = overlay(given("ROOT"), self._directory)
        self._console = self._directory / "console"
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._leader = 0
        (self.root / "etc/machine-id").write_text("")
        (self.root / "etc/hostname").write_text(f"{name}\n")
        (self.root / "etc/systemd/network/10-host0.network").write_text(NETWORK.format(address))
        system = self.root / "etc/systemd/system"
        # Nobody logs in at a console, and there is no network to look for updates in.
        for unit in ("getty.target", "apt-daily.timer", "apt-daily-upgrade.timer"):
            (system / unit).symlink_to("/dev/null")
        (system / "multi-user.target.wants/systemd-networkd.service").symlink_to(
            "/lib/systemd/system/systemd-networkd.service"
        )

    def start(self) -> None:
        """Boot, and wait until everything that belongs to that has been done."""
        command = ["systemd-nspawn", "--quiet", "-D", str(self.root), "-M", self.name, "--register=no", "--keep-unit"]
        command += [f"--network-bridge={BRIDGE}", "--console=pipe", "--resolv-conf=off", "--timezone=off", "--boot"]
        with self._console.open("ab") as log:
            self._nspawn = subprocess.Popen(
                [*in_cgroup(self.name), *command], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        self._leader = 0
        self._leader = self._find_leader(self._nspawn)
        # "degraded" is what a container without hardware may be; the daemon's own units are looked at one by one.
        wait_until(self._is_up, f"{self.name} has started: {self.tell()}")

    def _is_up(self) -> bool:
        state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
        return state in {"running", "degraded"}

    def _find_leader(self, nspawn: subprocess.Popen[bytes]) -> int:
        """The process that is number 1 in there."""
        children = Path(f"/proc/{nspawn.pid}/task/{nspawn.pid}/children")
        found: list[int] = []

        def look() -> bool:
            assert nspawn.poll() is None, f"{self.name} has ended: {self.tell()}"
            for child in children.read_text().split():
                with contextlib.suppress(OSError):
                    if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                        found.append(int(child))
            return bool(found)

        wait_until(look, f"process 1 of {self.name} runs")
        return found[0]

    def cut_power(self) -> None:
        """All of its processes end at once. Idempotent."""
        if self._nspawn is not None:
            # The manager of the container looks after its process 1 only until that runs by itself.
            if self._leader and self._nspawn.poll() is None:
                os.kill(self._leader, signal.SIGKILL)
            self._nspawn.kill()
            self._nspawn.wait(PATIENCE)
            self._nspawn = None
            # Else the link to the bridge stands until the kernel has ended the last process and the network of the machine.
            link = f"vb-{self.name}"
            subprocess.run(["ip", "link", "delete", link], check=False, capture_output=True, timeout=60)
            wait_until(lambda: link not in {name for _, name in socket.if_nameindex()}, f"{link} is gone")

    def reboot(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        """As its administrator would; `meanwhile` is called while it is down."""
        assert self._nspawn is not None
        self.run("systemctl", "reboot", "--no-block", check=False)
        ended = self._nspawn.wait(PATIENCE)
        assert ended == REBOOTED, f"{self.name} ended with {ended} instead of rebooting: {self.tell()}"
        meanwhile()
        self.start()

    def tell(self) -> str:
        return self._console.read_text(errors="replace")[-2000:] if self._console.exists() else ""

    def run(self, *command: str, check: bool = True, timeout: float = PATIENCE) -> subprocess.CompletedProcess[str]:
        """Run a command as root in there. Raises `AssertionError` with its output when it fails, unless `check` is off."""
        done = subprocess.run(
            self.inside(*command),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if check and done.returncode != 0:
            journal = self.journal("--lines=30")
            raise AssertionError(f"{self.name}: {command}: {done.returncode}\n{done.stdout}{done.stderr}\n{journal}")
        return done

    def inside(self, *command: str) -> list[str]:
        environ = ["env", "-i", *ENVIRON, "HOME=/root", "DEBIAN_FRONTEND=noninteractive"]
        enter = ["nsenter", f"--target={self._leader}", "--all", "--root", "--wd", "--"]
        # nsenter forks: whoever ends it ends the command, too.
        return [*enter, "setpriv", "--pdeathsig=KILL", *environ, *command]

    def property(self, name: str, unit: str = "rondevud.service") -> str:
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).stdout.strip()

    def journal(self, *match: str) -> str:
        return self.run("journalctl", "--no-pager", "--quiet", "-o", "cat", *match, check=False).stdout


@contextlib.contextmanager
def booted(name: str, address: str) -> Iterator[Machine]:
    """A fresh machine, until the end of the block."""
    machine = Machine(name, address)
    try:
        machine.start()
        yield machine
    finally:
        machine.cut_power()


def make_bridge() -> None:
    """What joins the machines, and nothing else: the run has a network namespace of its own."""
    for words in (
        ["link", "set", "lo", "up"],
        ["link", "add", BRIDGE, "type", "bridge"],
        ["link", "set", BRIDGE, "up"],
    ):
        subprocess.run(["ip", *words], check=True, timeout=60)


def in_cgroup(name: str) -> list[str]:
    """What to put before a command so that it runs in a cgroup of its own in each hierarchy that systemd takes up.

    A machine's manager thinks the one that it finds itself in its own.
    """
    mine = {names: path for _, names, path in (line.split(":", 2) for line in _lines("/proc/self/cgroup"))}
    files = []
    for line in _lines("/proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ")
        if kind == "cgroup2":
            names = ""
        elif kind == "cgroup" and (found := re.search(r"\bname=systemd\b", options)):
            names = found[0]
        else:
            continue
        top, place = before.split(" ")[3:5]
        below = Path(place) / os.path.relpath(mine[names], top)
        path = below / f"{os.environ['RONDEVUD_CGROUP']}-{name}"
        path.mkdir(exist_ok=True)
        files.append(str(path / "cgroup.procs"))
    assert files, "no cgroups are mounted that systemd could use"
    return ["bash", "-c", 'while [ "$1" != -- ]; do echo $$ >"$1"; shift; done; shift; exec "$@"', "bash", *files, "--"]


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()
