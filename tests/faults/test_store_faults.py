"""Disks that fail, fill, freeze and refuse, under a running daemon: told, survived, and nothing accepted lost."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from rondevu_client import Channel, MessageRejected, RequestRefused
from rondevu_client import Daemon as Client
from tests.acceptance.processes import CONFIG, CONNECTION, LIMIT, PATIENCE, Daemon
from tests.acceptance.processes import SERVICE as TARGET
from tests.faults.control import Control
from tests.faults.recorded import RecordedStage, prepare
from tests.jury.dump import dump
from tests.jury.trial import CONNECTING, DATABASE, SERVICE

pytestmark = [pytest.mark.acceptance, pytest.mark.once, LIMIT]

NOWHERE = "http://127.0.0.1:1"
PRODUCER = b"an application's"
BLOCK = "x" * 20_000

STATE_DIRECTORY_REFUSED = 3
"""Exit code of a daemon that cannot use its state directory."""


@contextlib.asynccontextmanager
async def lonely(path: Path) -> AsyncIterator[tuple[RecordedStage, Daemon, Control]]:
    """A daemon whose peer never comes, and what of its store is to fail; errors in its log are expected."""
    async with RecordedStage(path, recorded=False, checkpoints=False, errors_expected=True) as stage:
        username, fqn = TARGET
        declared = f'[[connection]]\nname = "{CONNECTION}"\nusername = "{username}"\nfqn = "{fqn}"\n'
        daemon = Daemon(stage, CONNECTING, CONFIG.format(url=NOWHERE) + declared)
        (path / CONNECTING).mkdir(exist_ok=True)
        daemon.state = path / CONNECTING / "state"
        control = stage.control(CONNECTING)
        await daemon.start()
        yield stage, daemon, control


async def attach(client: Client, **options) -> Channel:
    return await client.attach(CONNECTION, "main", mode="send", producer=PRODUCER, **options)


async def until_failing(client: Client) -> str:
    """Wait until the daemon says that its store fails; what it says."""
    async with asyncio.timeout(PATIENCE):
        while (store := (await client.status())["store"]) == "ok":
            await asyncio.sleep(0.02)
    return str(store)


async def until_well(client: Client) -> None:
    async with asyncio.timeout(PATIENCE):
        while (await client.status())["store"] != "ok":
            await asyncio.sleep(0.02)


async def refused(channel: Channel, data: str = "no room") -> str:
    """Send until something is rejected; the code."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                await channel.send(data)
            except MessageRejected as error:
                return error.code


async def refused_there(client: Client) -> str:
    """The code with which another program is refused: there may be no room for its producer's row even."""
    try:
        return await refused(await client.attach(CONNECTION, "main", mode="send"), BLOCK)
    except RequestRefused as error:
        return error.code


def held(daemon: Daemon) -> list[int]:
    """The numbers in the outbox of ``main``, which their messages begin with, and the producer's last one behind them."""
    channel = dump(daemon.state / DATABASE)["main"]
    return [number for number, _ in channel["outbox"]] + [-channel["last_seq"]]


def errors(stage: RecordedStage, name: str) -> list[str]:
    """The lines of a daemon's logs that tell of errors, over all its lives."""
    texts = [path.read_text() for path in sorted(stage.path.glob(f"{name}-*.err"))]
    return [line for text in texts for line in text.splitlines() if " ERROR " in line or line.startswith("Traceback")]


# --- syncs -------------------------------------------------------------------------------------------------------------


async def test_a_commit_whose_sync_fails_is_undecided_until_one_succeeds(tmp_path):
    async with lonely(tmp_path) as (stage, daemon, control), daemon.client() as client:
        channel, other = await attach(client), await client.attach(CONNECTION, "main", mode="send")
        assert [await channel.send(f"n {number} ") for number in (1, 2)] == [1, 2]
        control.set(sync_fails=-1, sync_errno=errno.EIO)
        undecided = asyncio.create_task(channel.send("n 3 "))
        assert "disk I/O error" in await until_failing(client)
        with pytest.raises(MessageRejected) as rejected:
            await other.send("n 9 ")
        assert rejected.value.code == "store_failed"
        with pytest.raises(RequestRefused) as refusal:
            await client.attach(CONNECTION, "main", mode="send")
        assert refusal.value.code == "store_failed"
        async with asyncio.timeout(PATIENCE):
            while control["failed_syncs"] < 3:
                await asyncio.sleep(0.02)
        assert not undecided.done()
        control.set(sync_errno=0)
        with pytest.raises(MessageRejected) as rejected:
            await undecided
        assert rejected.value.code == "store_failed"
        await until_well(client)
        assert await channel.send("n 4 ") == 4
        await daemon.restart()
        assert held(daemon) == [1, 2, 4, -4]
        assert len(errors(stage, CONNECTING)) == 1


@pytest.mark.parametrize("arrived", [True, pytest.param(False, marks=pytest.mark.soak)])
async def test_a_daemon_killed_with_an_undecided_commit_is_not_sent_it_twice(tmp_path, arrived):
    """Whether the log's last frames reached the disk without the sync, nobody knows; the producer's last number tells."""
    async with lonely(tmp_path) as (_, daemon, control), Client(daemon.socket, client="test") as client:
        channel = await attach(client)
        assert await channel.send("n 1 ") == 1
        log = daemon.state / f"{DATABASE}-wal"
        before = log.read_bytes()
        control.set(sync_fails=-1, sync_errno=errno.EIO)
        undecided = asyncio.create_task(channel.send("n 2 "))
        await until_failing(client)
        assert not undecided.done()
        await daemon.kill()
        assert len(log.read_bytes()) > len(before)
        if not arrived:
            log.write_bytes(before)
        control.set(sync_errno=0)
        await daemon.start()
        assert await asyncio.wait_for(undecided, PATIENCE) == 2
        assert channel.last_seq == (2 if arrived else 1)
        assert await channel.send("n 3 ") == 3
        assert held(daemon) == [1, 2, 3, -3]


async def test_a_slow_disk_is_no_reason_to_suspect_anybody(tmp_path):
    """Syncs of half a second at both ends, heartbeats of a second: nobody misses one."""
    async with RecordedStage(tmp_path, recorded=False, checkpoints=False) as stage:
        controls = [stage.control(name) for name in (SERVICE, CONNECTING)]
        trial = await prepare(stage)
        for name, daemon in trial.daemons.items():
            slower = (stage.path / f"{name}.toml").read_text().replace("heartbeat = 0.25", "heartbeat = 1.0")
            (stage.path / f"{name}.toml").write_text(slower)
            await daemon.start()
        await trial.connected()
        for control in controls:
            control.set(sync_delay=500)
        async with trial.daemons[CONNECTING].client() as client:
            events = await client.subscribe()
            heard: set[str] = set()
            listening = asyncio.create_task(listen(events, heard))
            channel = await client.attach(CONNECTION, "main", mode="send")
            while any(control["delayed_syncs"] < 8 for control in controls):
                await channel.send(BLOCK)
            await channel.flush()
            listening.cancel()
        assert not {"suspect", "disconnected", "reconnecting", "failed"} & heard


async def listen(events, heard: set[str]) -> None:
    async for event in events:
        heard.add(event.name)


# --- room --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [(errno.ENOSPC, "disk_full"), pytest.param(errno.EROFS, "store_failed", marks=pytest.mark.soak)],
)
async def test_what_is_held_is_delivered_while_nothing_can_be_written(tmp_path, error, code):
    """The sender's disk refuses; its peer takes everything all the same, and once."""
    count = 900
    async with RecordedStage(tmp_path, recorded=False, checkpoints=False, errors_expected=True) as stage:
        control = stage.control(CONNECTING)
        trial = await prepare(stage, extra="[queue]\ninbox_size = 100\n")
        await asyncio.gather(*(daemon.start() for daemon in trial.daemons.values()))
        await trial.connected()
        async with trial.daemons[CONNECTING].client() as near, trial.daemons[SERVICE].client() as far:
            channel = await near.attach(CONNECTION, "main", mode="send", producer=PRODUCER)
            for first in range(1, count + 1, 100):
                await asyncio.gather(*(channel.send(f"n {number} ") for number in range(first, first + 100)))
            control.set(write_errno=error)
            first = asyncio.create_task(refused(channel))  # undecided where only a sync could tell
            assert await until_failing(near)
            assert await refused(channel) == code
            if code == "disk_full":
                assert await asyncio.wait_for(first, PATIENCE) == code
            assert first.done() is (code == "disk_full")
            other = await far.attach(await trial.daemons[SERVICE].connection_id(), "main")
            numbers = []
            async with asyncio.timeout(PATIENCE):
                while len(numbers) < count:
                    numbers.append(int((await anext(other)).data.split()[1]))
            assert numbers == list(range(1, count + 1))
            assert (await near.status())["store"] != "ok"
            control.set(write_errno=0)
            await until_well(near)
            async with asyncio.timeout(PATIENCE):
                assert await channel.send("n 0 ")
                rest = [(await anext(other)).data]
                while rest[-1] != "n 0 ":
                    rest.append((await anext(other)).data)
                await channel.flush()
            assert await first == code
            assert set(rest[:-1]) <= {"no room"}, "what went into the room that the log had already"
        assert len(errors(stage, CONNECTING)) == 1, errors(stage, CONNECTING)
        assert not errors(stage, SERVICE)


async def test_a_receiver_with_a_full_disk_acknowledges_nothing_and_gets_everything_later(tmp_path):
    async with RecordedStage(tmp_path, recorded=False, checkpoints=False, errors_expected=True) as stage:
        control = stage.control(SERVICE)
        trial = await prepare(stage)
        await asyncio.gather(*(daemon.start() for daemon in trial.daemons.values()))
        await trial.connected()
        async with trial.daemons[CONNECTING].client() as near, trial.daemons[SERVICE].client() as far:
            channel = await near.attach(CONNECTION, "main", mode="send")
            await channel.send("n 1 ")
            await channel.flush()
            control.set(write_errno=errno.ENOSPC)
            for number in range(2, 62):
                await channel.send(f"n {number} {BLOCK}")
            await until_failing(far)
            queue = await near.queue(CONNECTION, "main")
            assert queue["queue_size"] > 0
            control.set(write_errno=0)
            await asyncio.wait_for(channel.flush(), PATIENCE)
            other = await far.attach(await trial.daemons[SERVICE].connection_id(), "main")
            numbers = [int((await other.receive(PATIENCE)).data.split()[1]) for _ in range(61)]
            assert numbers == list(range(1, 62))
        assert len(errors(stage, SERVICE)) == 1, errors(stage, SERVICE)
        assert not errors(stage, CONNECTING)


# --- a real small disk ---------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk of 1 MiB, with room for sixteen files, at the place of the lonely daemon's."""
    place = tmp_path / CONNECTING
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=16,mode=700", "tmpfs", place]
    try:
        made = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        pytest.skip(f"a disk cannot be mounted here: {error}")
    if made.returncode:
        pytest.skip(f"a disk cannot be mounted here: {made.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def remount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", place], check=True)


async def fill(channel: Channel) -> int:
    """Send large messages until one is rejected, as many as are accepted; how many those are."""
    number = channel.last_seq
    while True:
        try:
            await channel.send(f"n {number + 1} {BLOCK}")
        except MessageRejected as error:
            if error.code != "disk_full":
                raise
            return number
        number += 1


async def test_a_full_disk_keeps_what_it_has_also_over_a_restart_and_takes_more_when_there_is_room(
    small_disk, tmp_path
):
    async with lonely(tmp_path) as (stage, daemon, _):
        async with daemon.client() as client:
            count = await fill(await attach(client))
            assert count > 10
            assert len(errors(stage, CONNECTING)) == 1, errors(stage, CONNECTING)
        await daemon.restart()
        async with daemon.client() as client:
            assert (await client.queue(CONNECTION, "main"))["queue_size"] == count
            assert await refused_there(client) == "disk_full"
        assert held(daemon) == [*range(1, count + 1), -count]
        remount(small_disk, "size=8m")
        async with daemon.client() as client:
            await until_well(client)
            channel = await attach(client)
            assert channel.last_seq == count
            number = count
            async with asyncio.timeout(PATIENCE):
                while number < count + 40:
                    number = await channel.send(f"n {number + 1} {BLOCK}")
        assert held(daemon) == [*range(1, count + 41), -(count + 40)]


async def test_a_disk_without_room_for_another_file_keeps_the_daemon_from_starting_and_from_nothing_else(
    small_disk, tmp_path
):
    async with lonely(tmp_path) as (_, daemon, _):
        async with daemon.client() as client:
            channel = await attach(client)
            assert await channel.send("n 1 ") == 1
            fillers = no_more_files(small_disk)
            assert await channel.send("n 2 ") == 2
        assert await daemon.stop() == 0
        fillers += no_more_files(small_disk)
        process = await daemon.begin()
        assert await process.exited() == 1
        told = process.log.read_text()
        assert "rondevud.sqlite3" in told
        assert "Traceback" not in told
        for filler in fillers:
            filler.unlink()
        await daemon.start()
        assert held(daemon) == [1, 2, -2]


def no_more_files(place: Path) -> list[Path]:
    """Take what there is of room for files."""
    made: list[Path] = []
    with contextlib.suppress(OSError):
        while True:
            path = place / f"filler {len(list(place.iterdir()))}"
            path.touch(exist_ok=False)
            made.append(path)
    return made


@pytest.mark.soak
async def test_a_disk_that_is_read_only_is_named_at_the_start(small_disk, tmp_path):
    async with lonely(tmp_path) as (_, daemon, _):
        async with daemon.client() as client:
            assert await (await attach(client)).send("n 1 ") == 1
        assert await daemon.stop() == 0
        remount(small_disk, "ro")
        process = await daemon.begin()
        assert await process.exited() == STATE_DIRECTORY_REFUSED
        assert "Read-only file system" in process.log.read_text()
        remount(small_disk, "rw")
        await daemon.start()
        assert held(daemon) == [1, -1]
