"""A machine of its own: Debian with systemd as process 1, in a container without a network.

The root comes from the mirror that this machine's apt uses, and is kept between runs under the user's cache directory.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rondevud-tests"
RELEASE = "bookworm"
PACKAGES = "systemd,systemd-sysv,dbus,python3,init-system-helpers,libsystemd0,procps,zlib1g,libstdc++6"
LEFT_OUT = ("doc", "locale", "man")
"""Of /usr/share: what no test looks at."""

PATIENCE = 120.0 * float(os.environ.get("RONDEVUD_TIME_SCALE", "1"))
"""Seconds after which a wait has failed."""

GLANCE = 0.1
"""Seconds between two looks at something that does not say when it changes."""


def mirror() -> str:
    """Where this machine's apt gets the release from. Raises `LookupError`."""
    for path in (*Path("/etc/apt/sources.list.d").glob("*"), Path("/etc/apt/sources.list")):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            text = path.read_text()
            if found := re.search(r"^(?:URIs:|deb(?: \[.*\])?) *(\S+/debian/?)(?:\s|$)", text, re.MULTILINE):
                return found[1]
    raise LookupError("no source of Debian packages in /etc/apt: there is nothing to make a machine from")


def base() -> Path:
    """The archive of the root, made when there is none."""
    archive = CACHE / f"{RELEASE}.tar"
    if not archive.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        unfinished = archive.with_suffix(".unfinished.tar")
        command = ["mmdebstrap", "--variant=minbase", f"--include={PACKAGES}", "--dpkgopt=force-unsafe-io"]
        command += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in LEFT_OUT]
        subprocess.run([*command, RELEASE, str(unfinished), mirror()], check=True, timeout=900)
        unfinished.rename(archive)
    return archive


class Machine:
    """A machine that runs, from `boot` to the end of the block."""

    def __init__(self, root: Path, leader: int) -> None:
        self.root = root
        self._leader = leader

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
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def inside(self, *command: str) -> list[str]:
        environ = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8"]
        environ += ["DEBIAN_FRONTEND=noninteractive"]
        enter = ["nsenter", f"--target={self._leader}", "--all", "--root", "--wd", "--"]
        # nsenter forks: whoever ends it ends the command, too.
        return [*enter, "setpriv", "--pdeathsig=KILL", *environ, *command]

    def property(self, name: str, unit: str = "rondevud.service") -> str:
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).stdout.strip()

    def journal(self, *match: str) -> str:
        return self.run("journalctl", "--no-pager", "--quiet", "-o", "cat", *match).stdout


def wait_until(true: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
    """Look until it is true; raises `AssertionError` when it does not become so."""
    end = time.monotonic() + patience
    while not true():
        assert time.monotonic() < end, f"it did not come about: {what}"
        time.sleep(GLANCE)


@contextlib.contextmanager
def boot(directory: Path) -> Iterator[Machine]:
    """A fresh machine, whose root is in `directory`."""
    root = directory / "root"
    root.mkdir()
    subprocess.run(["tar", "-xf", base(), "-C", root, "--numeric-owner", "--exclude=./dev/*"], check=True, timeout=300)
    (root / "etc/machine-id").write_text("")
    (root / "etc/systemd/system/getty.target").symlink_to("/dev/null")
    log = (directory / "console").open("wb")
    command = ["systemd-nspawn", "-D", str(root), "--register=no", "--keep-unit", "--private-network", "--boot"]
    nspawn = subprocess.Popen(
        [*command, "--console=pipe"], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
    )
    try:
        machine = Machine(root, leader_of(nspawn))
        # "degraded" is what a container without hardware may be; the daemon's own units are looked at one by one.
        wait_until(lambda: machine.run("systemctl", "is-system-running", check=False).stdout.strip() in {
            "running", "degraded"}, "the machine has started")  # fmt: skip
        yield machine
    finally:
        nspawn.send_signal(signal.SIGTERM)
        try:
            nspawn.wait(30)
        except subprocess.TimeoutExpired:
            nspawn.kill()
            nspawn.wait(30)
        log.close()
        shutil.rmtree(root, ignore_errors=True)


def leader_of(nspawn: subprocess.Popen[bytes]) -> int:
    """The process in the container that is number 1 there."""
    children = Path(f"/proc/{nspawn.pid}/task/{nspawn.pid}/children")

    def found() -> int | None:
        assert nspawn.poll() is None, "the container has ended"
        for child in children.read_text().split():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                    return int(child)
        return None

    wait_until(found, "process 1 runs")
    leader = found()
    assert leader is not None
    return leader
