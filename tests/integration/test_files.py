"""`send-file` and `receive-files` as processes, through two daemons in the loop of the test."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rondevud.ctl.files.folder import HIDDEN
from rondevud.ctl.files.protocol import Chunk, End, Offer, Refused, Resume, Unknown, pack, parse, transfer_id
from tests.integration.daemons import FQN, PATIENCE, SCALE, Pair, Place, open_pair

pytestmark = [pytest.mark.webrtc, pytest.mark.once, pytest.mark.timeout(240 * SCALE)]

SERVICE = f"service:alice/{FQN}"
MIB = 1024 * 1024
LOOK = 0.05
"""Seconds between looks at a directory: there is nothing else to wait for, and the daemons share this loop."""


class Done(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def last(self) -> dict[str, Any]:
        return json.loads(self.out.splitlines()[-1])


class Command:
    """One of the two as a process; what still runs at the end of the test is killed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def ended(self) -> Done:
        async with asyncio.timeout(4 * PATIENCE):
            out, err = await self.process.communicate()
        return Done(self.process.returncode, out.decode(), err.decode())

    async def line(self, word: str) -> str:
        """The next line of standard error with that in it."""
        async with asyncio.timeout(2 * PATIENCE):
            while word not in (line := (await self.process.stderr.readline()).decode()):
                assert line, f"ended before it said {word!r}"
        return line

    async def kill(self) -> None:
        self.process.kill()
        await self.process.communicate()


@pytest.fixture
async def begin():
    commands: list[Command] = []

    async def begin(place: Place, *args: object, before: str = "") -> Command:
        words = [sys.executable, "-m", "rondevud.ctl.main", "--socket", place.socket, *args]
        if before:
            words = ["sh", "-c", f'{before}; exec "$@"', "sh", *words]
        command = Command(
            await asyncio.create_subprocess_exec(
                *map(str, words),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        )
        commands.append(command)
        return command

    yield begin
    for command in commands:
        if command.process.returncode is None:
            await command.kill()


@pytest.fixture
async def pair(world) -> Pair:
    pair = await open_pair(world)
    await pair.leave()  # its program would serve every channel, that of the files, too
    return pair


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    return folder


def make_file(path: Path, size: int, seed: int = 0) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(random.Random(seed).randbytes(size))
    return path


def found(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != HIDDEN}


async def test_files_of_all_sizes_arrive_under_their_names(pair, begin, folder, tmp_path):
    sizes = {"empty": 0, "one.bin": 1, "chunk.bin": 128 * 1024, "more.tar.gz": 300_001, "Übergröße": 70}
    files = [make_file(tmp_path / "out" / name, size, seed) for seed, (name, size) in enumerate(sizes.items())]
    receiving = await begin(pair.home, "receive-files", SERVICE, folder, "--count", len(files))
    sending = await begin(pair.away, "send-file", "chat", *files)
    done = await sending.ended()
    assert done.code == 0, done
    assert len(done.out.splitlines()) == len(files)
    assert (await receiving.ended()).code == 0
    assert found(folder) == {path.name: path.read_bytes() for path in files}
    assert not list((folder / HIDDEN).glob("*.part"))
    mask = os.umask(0o077)
    os.umask(mask)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir() if path.name != HIDDEN} == {0o666 & ~mask}


async def test_a_name_that_is_taken_gets_a_number_and_nothing_is_overwritten(pair, begin, folder, tmp_path):
    (folder / "a.txt").write_text("mine")
    first = make_file(tmp_path / "1" / "a.txt", 10, 1)
    second = make_file(tmp_path / "2" / "a.txt", 10, 2)
    receiving = await begin(pair.home, "receive-files", SERVICE, folder, "--count", 2)
    sending = await begin(pair.away, "--json", "send-file", "chat", first, second)
    done = await sending.ended()
    assert done.code == 0, done
    assert (await receiving.ended()).code == 0
    names = {json.loads(line)["received_as"] for line in done.out.splitlines() if '"done"' in line}
    assert names == {"a (2).txt", "a (3).txt"}
    assert sorted(found(folder).values()) == sorted([b"mine", first.read_bytes(), second.read_bytes()])


async def test_what_was_received_and_lies_there_is_not_sent_again(pair, begin, folder, tmp_path):
    file = make_file(tmp_path / "a.bin", 200_000)
    await begin(pair.home, "receive-files", SERVICE, folder)
    first = await (await begin(pair.away, "--json", "send-file", "chat", file)).ended()
    again = await (await begin(pair.away, "--json", "send-file", "chat", file)).ended()
    assert (first.last["resumed_at"], again.last["resumed_at"]) == (0, 200_000)
    assert again.last["received_as"] == "a.bin"
    assert list(found(folder)) == ["a.bin"]
    (folder / "a.bin").unlink()
    assert (await (await begin(pair.away, "--json", "send-file", "chat", file)).ended()).last["resumed_at"] == 0
    assert found(folder) == {"a.bin": file.read_bytes()}


async def test_both_programs_killed_go_on_where_they_stopped(pair, begin, folder, tmp_path):
    file = make_file(tmp_path / "large.bin", 5 * MIB)
    receiving = await begin(pair.home, "receive-files", SERVICE, folder)
    sending = await begin(pair.away, "send-file", "chat", file)
    part = await part_of(folder, MIB)
    await sending.kill()
    await receiving.kill()
    size = part.stat().st_size
    await begin(pair.home, "receive-files", SERVICE, folder)
    done = await (await begin(pair.away, "--json", "send-file", "chat", file)).ended()
    assert done.code == 0, done
    assert done.last["resumed_at"] >= size
    assert found(folder) == {"large.bin": file.read_bytes()}


async def part_of(folder: Path, size: int) -> Path:
    """The unfinished file in the folder, once it has that size."""
    async with asyncio.timeout(4 * PATIENCE):
        while True:
            for part in (folder / HIDDEN).glob("*.part"):
                if part.stat().st_size >= size:
                    return part
            await asyncio.sleep(LOOK)


async def test_a_sender_waits_for_the_receiver_and_for_another_sender(pair, begin, folder, tmp_path):
    files = [make_file(tmp_path / f"{number}.bin", 100_000, number) for number in range(2)]
    first = await begin(pair.away, "send-file", "chat", files[0])
    assert "nobody answers so far" in await first.line("nobody")
    second = await begin(pair.away, "send-file", "chat", files[1])
    assert "another program has the channel 'files'" in await second.line("another program")
    receiving = await begin(pair.home, "receive-files", SERVICE, folder, "--count", 2)
    assert [(await command.ended()).code for command in (first, second, receiving)] == [0, 0, 0]
    assert found(folder) == {path.name: path.read_bytes() for path in files}


async def test_no_progress_in_time_has_an_exit_code_of_its_own(pair, begin, tmp_path):
    file = make_file(tmp_path / "a.bin", 10)
    done = await (await begin(pair.away, "send-file", "chat", file, "--timeout", "0.5")).ended()
    assert (done.code, done.out) == (4, "")
    assert "no progress in 0.5 s" in done.err


async def test_a_service_takes_from_all_its_connections(pair, begin, folder, tmp_path):
    await pair.visitor.connect("alice", FQN, name="second")
    await pair.visitor.wait("second", "connected", PATIENCE)
    files = {name: make_file(tmp_path / name / "a.bin", 50_000, seed) for seed, name in enumerate(["chat", "second"])}
    receiving = await begin(pair.home, "--json", "receive-files", SERVICE, folder, "--count", 2)
    sending = [await begin(pair.away, "send-file", name, file) for name, file in files.items()]
    assert [(await command.ended()).code for command in sending] == [0, 0]
    done = await receiving.ended()
    ended = [row for row in map(json.loads, done.out.splitlines()) if row["state"] == "done"]
    assert len({row["connection_id"] for row in ended}) == 2
    assert sorted(found(folder)) == ["a (2).bin", "a.bin"]
    assert sorted(found(folder).values()) == sorted(file.read_bytes() for file in files.values())


async def test_a_connection_receives_from_its_service(pair, begin, folder, tmp_path):
    _, far_id = await pair.ids()
    file = make_file(tmp_path / "a.bin", 1_000)
    receiving = await begin(pair.away, "receive-files", "chat", folder, "--count", 1)
    assert (await (await begin(pair.home, "send-file", far_id, file)).ended()).code == 0
    assert (await receiving.ended()).code == 0
    assert found(folder) == {"a.bin": file.read_bytes()}


async def test_a_file_that_changes_while_it_is_sent_is_told_and_forgotten(pair, begin, folder, tmp_path):
    file = make_file(tmp_path / "log", 5 * MIB)
    await begin(pair.home, "receive-files", SERVICE, folder)
    sending = await begin(pair.away, "--json", "send-file", "chat", file)
    await part_of(folder, 1)
    with file.open("ab") as more:
        more.write(b"one more line\n")
    done = await sending.ended()
    assert (done.code, done.last["state"]) == (1, "changed")
    assert "has changed while it was being sent" in done.err
    async with asyncio.timeout(4 * PATIENCE):
        while list((folder / HIDDEN).glob("*.part")):
            await asyncio.sleep(LOOK)
    assert not found(folder)


async def test_a_receiver_that_cannot_write_says_so_and_goes_on_later(pair, begin, folder, tmp_path):
    """A limit of the process stands for a full disk: the write of a chunk fails in the middle."""
    file = make_file(tmp_path / "large.bin", 3 * MIB)
    limited = await begin(pair.home, "receive-files", SERVICE, folder, before="ulimit -f 3000")
    done = await (await begin(pair.away, "--json", "send-file", "chat", file)).ended()
    assert (done.code, done.last["state"], done.last["why"]) == (1, "refused", "write_failed")
    assert "sending again goes on from there" in done.err
    await limited.kill()
    await begin(pair.home, "receive-files", SERVICE, folder)
    done = await (await begin(pair.away, "--json", "send-file", "chat", file)).ended()
    assert done.code == 0, done
    assert done.last["resumed_at"] >= MIB
    assert found(folder) == {"large.bin": file.read_bytes()}


async def test_a_file_over_the_limit_is_refused_and_the_others_are_sent(pair, begin, folder, tmp_path):
    files = [make_file(tmp_path / name, size) for name, size in (("small", 10), ("large", 1_000))]
    receiving = await begin(pair.home, "--json", "receive-files", SERVICE, folder, "--max-size", 100, "--count", 1)
    done = await (await begin(pair.away, "send-file", "chat", *files)).ended()
    assert done.code == 1
    assert "1000 bytes are more than the 100 that are taken" in done.err
    assert (await receiving.ended()).code == 0
    assert list(found(folder)) == ["small"]


async def test_daemons_that_are_restarted_meanwhile_change_nothing(pair, begin, folder, tmp_path):
    file = make_file(tmp_path / "large.bin", 5 * MIB)
    await begin(pair.home, "receive-files", SERVICE, folder)
    sending = await begin(pair.away, "send-file", "chat", file)
    await part_of(folder, 1)
    await pair.away.restart()
    await part_of(folder, 2 * MIB)
    await pair.home.restart()
    done = await sending.ended()
    assert done.code == 0, done
    assert found(folder) == {"large.bin": file.read_bytes()}


async def test_nonsense_of_a_peer_is_told_and_bounded(pair, begin, folder):
    """A peer that speaks the protocol wrongly: nothing appears, everything is answered once, the receiver goes on."""
    receiving = await begin(pair.home, "receive-files", SERVICE, folder)
    channel = await pair.visitor.attach("chat", "files")
    run, digest = os.urandom(8), hashlib.sha256(b"right").digest()

    async def say(*messages: Any) -> None:
        for message in messages:
            await channel.send(message if isinstance(message, str | bytes) else pack(message))

    async def answer() -> Any:
        return parse((await channel.receive(PATIENCE)).data)

    def offer(name: str, size: int = 5) -> Offer:
        return Offer(transfer_id(name, size, digest), run, name, size, digest)

    await say("text", b"\xc1", *[b"{}"] * 50)
    assert "a message was passed over: text" in await receiving.line("passed over")

    unknown = os.urandom(16)
    await say(*[Chunk(unknown, 0, b"x")] * 20, End(unknown), offer("beyond"))
    assert await answer() == Unknown(unknown)
    assert isinstance(await answer(), Resume)
    await say(Chunk(offer("beyond").id, 3, b"x"), Chunk(offer("beyond").id, 2**62, b"x"))
    assert (await answer()).received == 0  # a hole is asked for
    refused = await answer()
    assert isinstance(refused, Refused)
    assert refused.why == "beyond_end"

    await say(offer("../../.wrong"), Chunk(offer("../../.wrong").id, 0, b"wrong"), End(offer("../../.wrong").id))
    assert isinstance(await answer(), Resume)
    refused = await answer()
    assert refused.why == "hash"

    await say(offer("../../.right"), Chunk(offer("../../.right").id, 0, b"right"), End(offer("../../.right").id))
    assert isinstance(await answer(), Resume)
    assert (await answer()).name == "right"

    for number in range(8):
        await say(offer(f"endless {number}"))
        assert isinstance(await answer(), Resume)
    await say(offer("one too many"))
    assert (await answer()).why == "too_many"
    assert found(folder) == {"right": b"right"}
    receiving.process.send_signal(signal.SIGINT)
    assert (await receiving.ended()).code == 0


async def test_an_unknown_target_and_a_missing_file_are_refused(pair, begin, folder, tmp_path):
    file = make_file(tmp_path / "a", 1)
    assert (await (await begin(pair.away, "send-file", "nobody", file)).ended()).code == 1
    assert (await (await begin(pair.away, "send-file", "chat", tmp_path / "missing")).ended()).code == 2
    assert (await (await begin(pair.home, "receive-files", "service:nobody/a.b@1.0.0", folder)).ended()).code == 1
    assert (await (await begin(pair.home, "receive-files", SERVICE, tmp_path / "missing" / "in")).ended()).code == 1
