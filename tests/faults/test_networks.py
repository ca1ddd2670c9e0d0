"""Two machines whose network changes: an address is another one, a cable is pulled. Each has a network namespace of its own.

service ──eth0── switch (a bridge, with the signalling server) ──eth0── connecting side
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.acceptance.processes import CONNECTION, PATIENCE, SCALE, Daemon, Stage
from tests.faults.pair import LOOK, declare, until_line
from tests.jury.trial import CONNECTING, SERVICE, Trial

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.once,
    pytest.mark.skipif(
        os.geteuid() != 0 and not os.environ.get("CI"),
        reason="only root can make network namespaces and pull their cables",
    ),
]

NET = "10.83.7."
SIGNALLING = f"{NET}1"
ADDRESSES = {SERVICE: (f"{NET}11", f"{NET}12"), CONNECTING: (f"{NET}21", f"{NET}22")}
"""Of each machine: the one that it has, and the one that it gets."""

COUNT = 600
"""Messages on each label in each direction."""

PULLED = 5.0
"""Seconds for which a cable is out: long enough that both sides miss each other."""

AT_ONCE = 3.0
"""Seconds from a change of the network to the dial; silence alone makes one after 4 s at the soonest."""


class Networks:
    """The namespaces. Use `opened`."""

    def __init__(self) -> None:
        self._prefix = f"rondevud-{os.getpid()}-"
        self._made: list[str] = []

    @classmethod
    @contextlib.contextmanager
    def opened(cls) -> Iterator[Networks]:
        networks = cls()
        try:
            networks._build()
            yield networks
        finally:
            for name in networks._made:
                ip("netns", "del", name)

    def name(self, machine: str) -> str:
        return self._prefix + machine

    def within(self, machine: str) -> list[str]:
        """The command that runs another one there."""
        return ["ip", "netns", "exec", self.name(machine)]

    def ip(self, machine: str, *words: str) -> None:
        ip("-n", self.name(machine), *words)

    def _build(self) -> None:
        for machine in ("switch", *ADDRESSES):
            ip("netns", "add", self.name(machine))
            self._made.append(self.name(machine))
            self.ip(machine, "link", "set", "lo", "up")
        self.ip("switch", "link", "add", "bridge", "type", "bridge")
        self.ip("switch", "addr", "add", f"{SIGNALLING}/24", "dev", "bridge")
        self.ip("switch", "link", "set", "bridge", "up")
        for machine, (address, _) in ADDRESSES.items():
            there = ("peer", "name", "eth0", "netns", self.name(machine))
            self.ip("switch", "link", "add", machine, "type", "veth", *there)
            self.ip("switch", "link", "set", machine, "master", "bridge", "up")
            self.ip(machine, "addr", "add", f"{address}/24", "dev", "eth0")
            self.ip(machine, "link", "set", "eth0", "up")

    def readdress(self, machine: str) -> str:
        """The machine loses the address that it had and gets another; answers the new one."""
        old, new = ADDRESSES[machine]
        self.ip(machine, "addr", "del", f"{old}/24", "dev", "eth0")
        self.ip(machine, "addr", "add", f"{new}/24", "dev", "eth0")
        return new

    def pull(self, machine: str, *, at_switch: bool) -> None:
        self._set(machine, "down", at_switch=at_switch)

    def plug(self, machine: str, *, at_switch: bool) -> None:
        self._set(machine, "up", at_switch=at_switch)

    def _set(self, machine: str, state: str, *, at_switch: bool) -> None:
        """At the switch the machine only sees its carrier go; at its own end the interface is down."""
        place, device = ("switch", machine) if at_switch else (machine, "eth0")
        self.ip(place, "link", "set", device, state)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.mark.timeout(260 * SCALE)
async def test_messages_outlive_other_addresses_and_pulled_cables(tmp_path):
    """Of either side; the jury decides."""
    with Networks.opened() as networks:
        async with Stage(tmp_path, 240 * SCALE) as stage:
            trial = await start(stage, networks)
            part = 0
            for machine in (CONNECTING, SERVICE):
                changed = time.time()
                new = networks.readdress(machine)
                await until_line(trial.daemons[machine], f"The network changed: new .'{new}'", changed)
                if machine == CONNECTING:
                    await assert_dialled_since(trial.daemons[machine], changed)
                await until_linked_from(trial.daemons[machine], new)
                print(f"{machine}: a link from its new address after {time.time() - changed:.1f} s")
                await until_part(trial, part := part + 1)
            for machine, at_switch in ((CONNECTING, False), (SERVICE, True)):
                networks.pull(machine, at_switch=at_switch)
                await asyncio.sleep(PULLED)  # how long that lasts is the subject
                plugged = time.monotonic()
                counts = [program.count("received") for program in trial.programs.values()]
                networks.plug(machine, at_switch=at_switch)
                for program, count in zip(trial.programs.values(), counts, strict=True):
                    await program.until_count("received", count + 1)
                print(f"{machine}: messages again {time.monotonic() - plugged:.1f} s after the cable")
                await until_part(trial, part := part + 1)
            assert not await trial.verdict()


async def start(stage: Stage, networks: Networks) -> Trial:
    """Everything is there, and messages flow."""
    words = ("rendezvous", "--listen", f"{SIGNALLING}:3000", "--store", "memory")
    signalling = await stage.start("signalling", [*networks.within("switch"), sys.executable, "-m", "rondevud", *words])
    await signalling.until(lambda: bool(signalling.lines), "its URL")
    service, connection = declare(stage, signalling.lines[0][0])
    trial = Trial(stage, service, connection, 3 * PATIENCE, COUNT)
    for machine, daemon in trial.daemons.items():
        daemon.within = networks.within(machine)
        await daemon.start()
    await trial.connected()
    await trial.start_programs()
    await until_part(trial, 0)
    return trial


async def until_part(trial: Trial, part: int) -> None:
    """Wait until both programs have received so many fifths of what they will, and a little more."""
    for program in trial.programs.values():
        await program.until_count("received", part * 3 * COUNT // 5 + 10, 2 * PATIENCE)


async def assert_dialled_since(daemon: Daemon, changed: float) -> None:
    """It dials because of the change, and does not wait until its peer has been silent for long."""
    async with daemon.client() as client, asyncio.timeout(PATIENCE):
        while time.time() - (await client.why(CONNECTION))["dialled_ago"] < changed:
            await asyncio.sleep(LOOK)
        dialled = time.time() - (await client.why(CONNECTION))["dialled_ago"]
    assert dialled - changed <= AT_ONCE


async def until_linked_from(daemon: Daemon, address: str) -> None:
    """Wait until its link uses that address."""
    async with daemon.client() as client, asyncio.timeout(PATIENCE):
        (row,) = await client.connections()
        while True:
            link = (await client.why(row["connection_id"]))["link"]
            if link is not None and (link["local"] or "").startswith(f"{address}:"):
                return
            await asyncio.sleep(LOOK)
