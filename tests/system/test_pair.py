"""Two machines, set up as the README says, and a program on one that sends to the other. One story, in this order."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.system.load import ENOUGH, PYTHON, Sender, numbers
from tests.system.machine import ROOT, Machine, wait_until

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

README = (ROOT / "README.md").read_text(encoding="utf-8")
ADDRESS_IN_README = "192.0.2.1"
# Not in the README: tests do not want to wait for the pauses between two attempts.
QUICK = "[reconnect]\nbackoff_max = 2\n"
RECEIVER = f"""
[Unit]
After=rondevud.socket
[Service]
ExecStart={PYTHON} /srv/programs/receiver.py
StandardOutput=append:/srv/received
[Install]
WantedBy=multi-user.target
"""
"""A program of alice's that comes back with the machine."""


def configurations(address: str) -> list[str]:
    """Of both machines, as the README has them."""
    part = README[README.index("**Two machines.**") : README.index("## When things fail")]
    return [text.replace(ADDRESS_IN_README, address) for text in re.findall("```toml\n(.*?)```", part, re.DOTALL)]


def install(machine: Machine, package: str, config: str) -> None:
    machine.run("apt-get", "install", "--yes", f"/srv/{package}")
    (machine.root / "etc/rondevud/config.toml").write_text(config)
    machine.run("systemctl", "restart", "rondevud")


@pytest.fixture(scope="module")
def pair(alice, bob, package):
    of_alice, of_bob = configurations(alice.address)
    with ThreadPoolExecutor(2) as pool:
        for done in [
            pool.submit(install, alice, package.name, of_alice),
            pool.submit(install, bob, package.name, of_bob + QUICK),
        ]:
            done.result()
    (alice.root / "etc/systemd/system/receiver.service").write_text(RECEIVER)
    alice.run("systemctl", "daemon-reload")
    alice.run("systemctl", "enable", "--now", "receiver")
    yield alice, bob
    for machine in (alice, bob):
        machine.run("apt-get", "purge", "--yes", "rondevud")


def received(alice: Machine) -> list[int]:
    path = alice.root / "srv/received"
    return numbers(path.read_text()) if path.exists() else []


def until_received(alice: Machine, count: int) -> None:
    wait_until(lambda: len(received(alice)) >= count, f"{count} messages come", 300)


def test_messages_pass_between_machines(pair):
    alice, bob = pair
    bob.run("rondevuctl", "wait", "alice-chat", "connected", "--timeout", "100")
    bob.run("rondevuctl", "send", "alice-chat", "main", "0", "--wait", "acknowledged")
    until_received(alice, 1)
    assert received(alice) == [0]


def reboot(machine: Machine) -> None:
    machine.reboot()


def cut_power(machine: Machine) -> None:
    machine.cut_power()
    machine.start()


@pytest.mark.parametrize("how", [reboot, cut_power])
def test_one_boots_while_the_other_sends(pair, tmp_path, how):
    alice, bob = pair
    before = len(received(alice))
    sender = Sender(bob, tmp_path)
    try:
        until_received(alice, before + ENOUGH)
        how(alice)
        until_received(alice, len(received(alice)) + ENOUGH)
        sent = sender.stop()
        until_received(alice, before + sent)
        assert received(alice)[before:] == list(range(sent))
    finally:
        sender.close()


def test_what_was_accepted_before_the_power_was_cut_arrives(pair):
    alice, bob = pair
    before = len(received(alice))
    alice.run("systemctl", "stop", "receiver.service", "rondevud.service", "rondevud.socket")
    for number in range(3):
        bob.run("rondevuctl", "send", "alice-chat", "main", str(number))
    cut_power(bob)
    alice.run("systemctl", "start", "rondevud.service", "receiver.service")
    bob.run("rondevuctl", "wait", "alice-chat", "drained", "--timeout", "100")
    until_received(alice, before + 3)
    assert received(alice)[before:] == [0, 1, 2]
