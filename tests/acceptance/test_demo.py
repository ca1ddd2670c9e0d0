"""`rondevud demo`, as one starts it; and its verdict, on logs that are not right."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from rondevud.demo import Direction, read_direction
from rondevud.demo_programs import Log, Receiver, read_log

# --- the verdict -----------------------------------------------------------------------------------------------------


def direction(accepted, received, *, acknowledged=True, gaps=0):
    return Direction("x", tuple(accepted), acknowledged, tuple(received), 0, gaps)


def test_everything_once_and_in_order_is_right():
    assert direction([1, 2, 3], [1, 2, 3]).is_right(3)


@pytest.mark.parametrize(
    ("broken", "missing", "twice", "disordered"),
    [
        (direction([1, 2, 3], [1, 3]), 1, 0, 0),
        (direction([1, 2, 3], [1, 2, 2, 3]), 0, 1, 0),
        (direction([1, 2, 3], [1, 3, 2]), 0, 0, 1),
        (direction([1, 2], [1, 2]), 0, 0, 0),
        (direction([1, 2, 3], [1, 2, 3], acknowledged=False), 0, 0, 0),
        (direction([1, 2, 3], [1, 2, 3], gaps=1), 0, 0, 0),
        (direction([], []), 0, 0, 0),
    ],
)
def test_anything_else_is_wrong_and_counted(broken, missing, twice, disordered):
    assert not broken.is_right(3)
    assert (broken.missing, broken.twice, broken.disordered) == (missing, twice, disordered)


def test_a_direction_is_read_from_the_logs_of_both_programs(tmp_path):
    with Log(tmp_path / "a") as sender, Log(tmp_path / "b") as receiver:
        sender.write("accepted", 1)
        sender.write("acknowledged", 1)
        sender.write("received", 7, id="other direction")
        receiver.write("received", 1, id="x-1")
        receiver.write("redelivered", 1, id="x-1")
        receiver.write("accepted", 7)
    assert read_direction("x", tmp_path / "a", tmp_path / "b") == Direction("x", (1,), True, (1,), 1, 0)


def test_a_line_that_is_being_written_is_not_read_yet(tmp_path):
    (tmp_path / "log").write_bytes(b'{"event": "received", "number": 1}\n{"event": "rec')
    assert read_log(tmp_path / "log") == [{"event": "received", "number": 1}]
    assert read_log(tmp_path / "nothing") == []


class Delivered:
    def __init__(self, message_id, data):
        self.id = message_id
        self.data = data
        self.attempt = 1


def test_a_program_that_starts_again_knows_the_messages_it_had(tmp_path):
    with Log(tmp_path / "log") as log:
        receiver = Receiver(log)
        assert [receiver.take(Delivered("e-1", "1")), receiver.take(Delivered("e-2", "echo 2"))] == [1, 2]
    with Log(tmp_path / "log") as log:
        receiver = Receiver(log)
        assert [receiver.take(Delivered("e-2", "2")), receiver.take(Delivered("e-3", "3"))] == [2, 3]
    events = [(entry["event"], entry["number"]) for entry in read_log(tmp_path / "log")]
    assert events == [("received", 1), ("received", 2), ("redelivered", 2), ("received", 3)]


def test_a_number_that_comes_under_another_id_counts_as_twice(tmp_path):
    with Log(tmp_path / "a") as sender, Log(tmp_path / "b") as log:
        sender.write("accepted", 1)
        receiver = Receiver(log)
        receiver.take(Delivered("e-1", "1"))
        receiver.take(Delivered("e-2", "1"))
    assert read_direction("x", tmp_path / "a", tmp_path / "b").twice == 1


# --- the whole -------------------------------------------------------------------------------------------------------


async def begin(tmp_path, *args):
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "rondevud", "demo", *args,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip


def processes_of(directory):
    """Processes on whose command line `directory` stands."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if os.fsencode(directory) in path.read_bytes():
                found.append(path)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


@pytest.mark.acceptance
@pytest.mark.timeout(200)
async def test_the_demo_ends_with_everything_right_and_leaves_nothing_behind(tmp_path):
    process = await begin(tmp_path, "--messages", "200")
    out, err = await process.communicate()
    text = out.decode()
    assert (process.returncode, err) == (0, b""), text
    assert text.count("SIGKILL") == 3
    assert "the link is cut" in text
    assert text.count("right\n") == 2
    assert text.splitlines()[-1].endswith("every message arrived exactly once and in order")
    assert list(tmp_path.iterdir()) == []
    assert processes_of(tmp_path) == []


@pytest.mark.acceptance
@pytest.mark.once
@pytest.mark.timeout(100)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_the_demo_leaves_nothing_behind_when_it_is_interrupted(tmp_path, number, code):
    process = await begin(tmp_path)
    while b"three programs" not in await process.stdout.readline():
        assert not process.stdout.at_eof()
    while len(processes_of(tmp_path)) < 6:  # a process that has just been started has no command line for a moment
        await asyncio.sleep(0.01)  # another process's work: nothing to wait for but its effect
    process.send_signal(number)
    while len(processes_of(tmp_path)) == 6:
        await asyncio.sleep(0.01)
    process.send_signal(number)  # somebody impatient
    _, err = await process.communicate()
    assert (process.returncode, err) == (code, b"")
    assert list(tmp_path.iterdir()) == []
    assert processes_of(tmp_path) == []


@pytest.mark.acceptance
@pytest.mark.once
@pytest.mark.timeout(100)
async def test_the_demo_fails_when_a_process_dies_that_it_did_not_kill(tmp_path):
    process = await begin(tmp_path)
    while b"three programs" not in await process.stdout.readline():
        assert not process.stdout.at_eof()
    while not (found := [path for path in processes_of(tmp_path) if b"alice.toml" in path.read_bytes()]):
        await asyncio.sleep(0.01)
    (alice,) = found
    os.kill(int(alice.parent.name), signal.SIGKILL)
    out, _ = await process.communicate()
    assert process.returncode == 1
    assert "FAILED: alice has ended with exit code -9" in out.decode()
    assert processes_of(tmp_path) == []
