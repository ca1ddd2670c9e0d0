"""Two copies of one state directory run at once: one of them gives up and says why; the peer gets nothing wrong."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from typing import Any

import pytest

from tests.acceptance.processes import CONNECTION, LIMIT, PATIENCE, SERVICE, Daemon, Stage

pytestmark = [pytest.mark.acceptance, pytest.mark.once, LIMIT]

EACH = 40
"""Messages that the program at each copy sends."""

OTHER = "carol"
"""A daemon with a connection of its own to the same service."""


def declare(name: str) -> str:
    username, fqn = SERVICE
    return f'[[connection]]\nname = "{name}"\nusername = "{username}"\nfqn = "{fqn}"\nchannels = ["main"]\n'


async def send(daemon: Daemon, target: str, sender: str, count: int) -> int:
    """Send numbered messages; how many were accepted."""
    async with daemon.client() as client:
        channel = await client.attach(target, "main", mode="send")
        outcomes = await asyncio.gather(
            *(channel.send(f"{sender} {number}") for number in range(1, count + 1)), return_exceptions=True
        )
    return sum(not isinstance(outcome, BaseException) for outcome in outcomes)


async def state(daemon: Daemon) -> dict[str, Any]:
    async with daemon.client() as client:
        (row,) = await client.connections()
    return row


async def first_failed(*daemons: Daemon) -> Daemon:
    """The copy that gives up first."""
    async with asyncio.timeout(PATIENCE):
        while True:
            for daemon in daemons:
                if (await state(daemon))["state"] == "failed":
                    return daemon
            await asyncio.sleep(0.1)


async def take_all(daemon: Daemon, target: str) -> tuple[list[str], list[str]]:
    """What waits in the inbox, acknowledged: ids and texts."""
    ids: list[str] = []
    texts: list[str] = []
    gaps: list[Any] = []
    moved = asyncio.Event()
    waiting = (await daemon.queue(target, "main"))["waiting"]
    async with asyncio.timeout(PATIENCE), daemon.client() as client:
        channel = await client.attach(target, "main", auto_ack=False)
        channel.on("gap", lambda gap: (gaps.append(gap), moved.set()))

        async def read() -> None:
            async for message in channel:
                ids.append(message.id)
                texts.append(message.data)
                await message.ack()
                moved.set()

        reading = asyncio.create_task(read())
        while len(ids) + len(gaps) < waiting:
            await moved.wait()
            moved.clear()
        reading.cancel()
    return ids, texts


async def why(daemon: Daemon, target: str) -> str:
    """As people read it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "rondevud.ctl.main", "--socket", str(daemon.socket), "why", target,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await process.communicate()
    return " ".join(out.decode().split())


async def test_two_copies_of_one_state_directory_end_in_a_conflict_that_is_told(tmp_path):
    async with Stage(tmp_path) as stage:
        service, original = await stage.pair()
        target = await service.connection_id()
        other = stage.daemon(OTHER, declare(OTHER))
        await other.start()
        assert await original.stop() == 0
        copy = stage.daemon("copy", declare(CONNECTION))
        shutil.copytree(original.state, copy.state)
        await asyncio.gather(original.start(), copy.start())

        accepted = await asyncio.gather(*(send(daemon, CONNECTION, daemon.name, EACH) for daemon in (original, copy)))
        assert accepted == [EACH, EACH]
        loser = await first_failed(original, copy)
        winner = copy if loser is original else original

        assert "two copies of one state directory are running" in (await state(loser))["error"]
        async with loser.client() as client:
            events = (await client.why(CONNECTION))["recent"]
        assert [event["data"]["code"] for event in events if event["name"] == "failed"] == ["session_conflict"]
        assert "two copies of one state directory are running" in await why(loser, CONNECTION)
        assert "two copies of one state directory are running" in loser.process.log.read_text()

        async with winner.client() as client:
            await client.wait(CONNECTION, "connected", PATIENCE)
            await client.wait(CONNECTION, "drained", PATIENCE)
        left = (await loser.queue(CONNECTION, "main"))["queue_size"]
        ids, texts = await take_all(service, target)
        assert_what_may_come(ids, texts, {original.name: EACH, copy.name: EACH}, kept={loser.name: left})

        assert await send(other, OTHER, OTHER, EACH) == EACH
        async with other.client() as client:
            await client.wait(OTHER, "drained", PATIENCE)
        async with service.client() as client:
            (row,) = [row for row in await client.connections() if row["connection_id"] != target]
        async with other.client() as client:
            events = [event["name"] for event in (await client.why(OTHER))["recent"]]
        assert events == ["connected"], "the peer's other connection was disturbed"
        _, texts = await take_all(service, row["connection_id"])
        assert texts == [f"{OTHER} {number}" for number in range(1, EACH + 1)]


def assert_what_may_come(ids: list[str], texts: list[str], sent: dict[str, int], kept: dict[str, int]) -> None:
    """At least once, each sender's in order; an id stands for one message. What has not come is kept by its daemon."""
    meaning: dict[str, str] = {}
    assert all(meaning.setdefault(message_id, text) == text for message_id, text in zip(ids, texts, strict=True))
    for sender, count in sent.items():
        first_times = list(dict.fromkeys(text for text in texts if text.startswith(f"{sender} ")))
        assert first_times == [f"{sender} {number}" for number in range(1, len(first_times) + 1)], json.dumps(texts)
        assert count - len(first_times) <= kept.get(sender, 0), f"{sender}: {len(first_times)} of {count} came"
