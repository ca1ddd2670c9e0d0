"""``rondevuctl doctor`` and ``backup`` against a running daemon."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import sys

import pytest

from rondevu_client.client import Daemon
from rondevud import daemon
from rondevud.config import parse
from rondevud.records import LoadSessions, ReadOut
from rondevud.statedir import DATABASE
from rondevud.store import backup
from rondevud.store.sqlite import SqliteStore

CONFIG = """
[signalling]
url = "http://127.0.0.1:1"
[[connection]]
name = "far"
username = "alice"
fqn = "com.example.chat@1.0.0"
"""
"""Nobody answers at that port: what is sent stays."""


@pytest.fixture
async def place(tmp_path):
    async with contextlib.AsyncExitStack() as stack:
        await daemon.start(stack, parse(CONFIG, "x"), tmp_path / "state", tmp_path / "socket")
        async with Daemon(str(tmp_path / "socket")) as program:
            channel = await program.attach("far", "main")
            for number in range(1, 11):
                await channel.send(f"message {number}")
        yield tmp_path


async def ctl(place, *args):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "rondevud.ctl.main", "--socket", str(place / "socket"), *args,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_a_store_in_order_is_said_to_be(place):
    assert await ctl(place, "doctor") == (0, "", "rondevuctl: nothing is wrong\n")
    assert await ctl(place, "doctor", "--json") == (0, "[]\n", "")


async def test_a_damaged_message_is_found_while_the_daemon_runs(place):
    with contextlib.closing(sqlite3.connect(place / "state" / DATABASE)) as connection, connection:
        connection.execute("UPDATE outbox SET payload = x'00' WHERE payload = CAST('message 4' AS BLOB)")
    code, out, err = await ctl(place, "doctor")
    assert (code, err) == (1, "")
    assert out.startswith("outbox of channel 1, number ")
    code, out, _ = await ctl(place, "doctor", "--json")
    assert (code, [row["kind"] for row in json.loads(out)]) == (1, ["damaged_row", "wrong_count"])


async def test_a_backup_holds_what_was_accepted_and_is_not_written_over(place):
    copy = place / "copy.sqlite3"
    code, out, _ = await ctl(place, "backup", str(copy), "--json")
    assert (code, json.loads(out)) == (0, {"path": str(copy), "bytes": copy.stat().st_size})
    code, _, err = await ctl(place, "backup", str(copy))
    assert (code, err) == (1, f"rondevuctl: {copy} is there already (file_exists)\n`--force` writes over it.\n")
    assert (await ctl(place, "backup", str(copy), "--force"))[0] == 0
    assert copy.stat().st_mode & 0o777 == 0o600
    store = await SqliteStore.open(copy)
    (channel,) = (await store.execute(LoadSessions())).channels
    items = (await store.execute(ReadOut(channel.id, 0))).items
    await store.close()
    assert [item[1] for item in items if isinstance(item[1], str)] == [f"message {number}" for number in range(1, 11)]


async def test_a_backup_that_cannot_be_written_says_why(place):
    code, _, err = await ctl(place, "backup", str(place / "nowhere" / "copy"))
    assert code == 1
    assert "nowhere/copy: cannot be written: No such file or directory" in err
    assert "The daemon writes the file itself" in err


async def test_a_backup_ends_with_the_program_that_asked_and_leaves_nothing(place, monkeypatch):
    monkeypatch.setattr(backup, "STEP_PAGES", 1)
    monkeypatch.setattr(backup, "PAUSE", 0.05)
    async with Daemon(str(place / "socket"), reconnect=False) as program:
        asked = asyncio.create_task(program.back_up(str(place / "copy")))
        while not list(place.glob(".copy.*")):
            await asyncio.sleep(0)
        asked.cancel()
    while list(place.glob(".copy.*")):
        await asyncio.sleep(0)
    assert not (place / "copy").exists()
