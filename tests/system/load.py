"""Programs on the machines: one that sends without a pause, and what came of it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.system.machine import PATIENCE, Machine, wait_until

PYTHON = "/usr/lib/rondevud/bin/python"
ENOUGH = 50
"""Messages by which a flow can be told from a remainder."""


def numbers(text: str) -> list[int]:
    """What a receiver printed, each message once: what came again has the id it had."""
    ids: dict[str, int] = {}
    for line in text.splitlines():
        match line.split():
            case ["got", number, name]:
                ids.setdefault(name, int(number))
    return list(ids.values())


class Program:
    """One of `programs`, on a machine until it ends or is closed."""

    def __init__(self, machine: Machine, directory: Path, name: str, *arguments: str) -> None:
        self._log = directory / f"{name}-{machine.name}"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                machine.inside(PYTHON, f"/srv/programs/{name}.py", *arguments),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def said(self) -> str:
        return self._log.read_text()

    def finish(self) -> str:
        """Wait for it to end well; what it said."""
        code = self._process.wait(PATIENCE)
        assert code == 0, self.said()
        return self.said()

    def close(self) -> None:
        self._process.kill()
        self._process.wait(30)


class Sender(Program):
    """Sends 0, 1, 2 … to alice until it is told to stop."""

    def __init__(self, machine: Machine, directory: Path) -> None:
        self._stop = machine.root / "srv/stop"
        self._stop.unlink(missing_ok=True)
        super().__init__(machine, directory, "sender", "/srv/stop")

    def stop(self) -> int:
        """Send no more, and wait until the other daemon has all; how many there were."""
        self._stop.touch()
        return int(self.finish().split()[-1])


class Load:
    """Sender and receiver, both at the daemon of one machine."""

    def __init__(self, machine: Machine, directory: Path) -> None:
        self._receiver = Program(machine, directory, "receiver")
        self._sender = Sender(machine, directory)

    def received(self) -> list[int]:
        return numbers(self._receiver.said())

    def until_more_comes(self) -> None:
        before = len(self.received())
        wait_until(lambda: len(self.received()) >= before + ENOUGH, f"more than {before} messages come: {self.tell()}")

    def tell(self) -> str:
        return f"\n{self._receiver.said()[-1500:]}\n{self._sender.said()[-1500:]}"

    def settle(self) -> None:
        """Send no more; everything that was accepted has come once and in order."""
        sent = self._sender.stop()
        wait_until(lambda: len(self.received()) >= sent, f"all {sent} messages come")
        assert self.received() == list(range(sent))

    def close(self) -> None:
        self._sender.close()
        self._receiver.close()
