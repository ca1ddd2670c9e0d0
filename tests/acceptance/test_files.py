"""Files are sent while the programs and the daemons of both sides are killed: they arrive whole, each once."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import re
import sys
from pathlib import Path

import pytest

from rondevud.ctl.files.folder import HIDDEN
from tests.acceptance.processes import CONNECTION, PATIENCE, SCALE, SERVICE, Daemon, Process, Stage

MIB = 1024 * 1024
SEED = 20_260_101


class Programs:
    """The two commands, through all their lives."""

    def __init__(self, stage: Stage, service: Daemon, connection: Daemon, file: Path, folder: Path) -> None:
        self._stage = stage
        self.daemons = {"service": service, "connection": connection}
        self._commands = {
            "receiver": (service, ["receive-files", "service:" + "/".join(SERVICE), str(folder)]),
            "sender": (connection, ["send-file", CONNECTION, str(file)]),
        }
        self.running: dict[str, Process] = {}
        self._lives = 0

    async def start(self, name: str) -> None:
        daemon, words = self._commands[name]
        self._lives += 1
        self.running[name] = await self._stage.start(
            f"{name}-{self._lives}",
            [sys.executable, "-m", "rondevud.ctl.main", "--socket", str(daemon.socket), "--json", *words],
        )

    async def kill(self, name: str) -> None:
        """A program or a daemon; and start it again."""
        if name in self.daemons:
            await self.daemons[name].restart()
        else:
            await self.running[name].kill()
            await self.start(name)


def part_size(folder: Path) -> int:
    """Bytes of the unfinished file."""
    for part in (folder / HIDDEN).glob("*.part"):
        try:
            return part.stat().st_size
        except FileNotFoundError:  # finished since it was listed
            pass
    return 0


async def until_received(programs: Programs, folder: Path, size: int, within: float) -> None:
    """Wait until so much has arrived. A file cannot be waited for otherwise than by looking."""
    try:
        async with asyncio.timeout(within):
            while part_size(folder) < size:
                for name, process in programs.running.items():
                    assert process.exit_code is None, f"the {name} ended with {process.exit_code}"
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"{part_size(folder)} of {size} bytes in {within:.0f} s") from None


def make_file(path: Path, size: int) -> str:
    """A file of random bytes; its SHA-256."""
    source, digest = random.Random(SEED), hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(size // MIB):
            piece = source.randbytes(MIB)
            digest.update(piece)
            file.write(piece)
    return digest.hexdigest()


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def assert_arrived(folder: Path, name: str, digest: str) -> None:
    """It alone, whole, and nothing unfinished beside it."""
    assert [path.name for path in folder.iterdir() if path.name != HIDDEN] == [name]
    assert sha256(folder / name) == digest
    assert not list((folder / HIDDEN).glob("*.part"))


@pytest.mark.acceptance
@pytest.mark.once
@pytest.mark.timeout(200 * SCALE)
async def test_a_file_arrives_whole_whatever_is_killed(tmp_path):
    """Each of the four is killed twice, in an order and at moments drawn from a seed."""
    draw = random.Random(SEED)
    file, folder = tmp_path / "large.bin", tmp_path / "in"
    folder.mkdir()
    digest = make_file(file, 24 * MIB)
    victims = ["service", "connection", "receiver", "sender"] * 2
    draw.shuffle(victims)
    async with Stage(tmp_path, within=180 * SCALE) as stage:
        service, connection = await stage.pair()
        programs = Programs(stage, service, connection, file, folder)
        await programs.start("receiver")
        await programs.start("sender")
        moments = sorted(draw.randrange(MIB // 2, 22 * MIB) for _ in victims)
        for victim, moment in zip(victims, moments, strict=True):
            await until_received(programs, folder, moment, PATIENCE)
            await programs.kill(victim)
        assert await programs.running["sender"].exited(2 * PATIENCE) == 0
        assert_arrived(folder, file.name, digest)


def memory(pid: int) -> tuple[int, int]:
    """Rss and Pss in KiB."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    sizes = dict(re.findall(r"^(\w+): +(\d+) kB$", rollup, re.MULTILINE))
    return int(sizes["Rss"]), int(sizes["Pss"])


@pytest.mark.acceptance
@pytest.mark.once
@pytest.mark.soak
@pytest.mark.timeout(3_600 * SCALE)
@pytest.mark.parametrize("size", [1024 * MIB], ids=["1GiB"])
async def test_a_gibibyte_arrives_while_daemons_are_killed_ten_times_and_memory_stays_flat(tmp_path, size):
    """Resident memory of both commands and of every life of a daemon, looked at while each 1/64 arrives."""
    draw = random.Random(SEED)
    file, folder = tmp_path / "huge.bin", tmp_path / "in"
    folder.mkdir()
    digest = make_file(file, size)
    async with Stage(tmp_path, within=3_500 * SCALE, fresh=True) as stage:
        service, connection = await stage.pair()
        programs = Programs(stage, service, connection, file, folder)
        await programs.start("receiver")
        await programs.start("sender")
        kills = sorted(draw.sample(range(1, 64), 10))
        seen: dict[str, list[tuple[int, int]]] = {}
        for step in range(1, 64):
            await until_received(programs, folder, size // 64 * step, 300 * SCALE)
            for name, process in {
                **programs.running,
                **{name: daemon.process for name, daemon in programs.daemons.items()},
            }.items():
                seen.setdefault(f"{name} {process.pid}", []).append(memory(process.pid))
            if step in kills:
                await programs.kill(("service", "connection")[kills.index(step) % 2])
        assert await programs.running["sender"].exited(600 * SCALE) == 0
        assert_arrived(folder, file.name, digest)
        last = json.loads(" ".join(programs.running["sender"].lines[-1]))
        assert (last["state"], last["resumed_at"]) == ("done", 0), "the commands were not killed"
        for name, looks in seen.items():
            rss, pss = [look[0] for look in looks], [look[1] for look in looks]
            print(f"{name}: {len(looks)} looks, Rss {min(rss)} to {max(rss)} KiB, Pss {min(pss)} to {max(pss)} KiB")
        for name, looks in seen.items():
            limit = 64 if name.split()[0] in {"sender", "receiver"} else 192
            assert max(look[0] for look in looks) < limit * 1024, name
