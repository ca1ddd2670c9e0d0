"""A backup of a running daemon takes the place of its store: what that undoes is reported, and nothing comes twice."""

from __future__ import annotations

import asyncio
import json
import sys

import pytest

from rondevud.statedir import DATABASE
from tests.acceptance.processes import CONNECTION, LIMIT, PATIENCE, Daemon, Stage

pytestmark = [pytest.mark.acceptance, pytest.mark.once, LIMIT]


async def run(module: str, *arguments: object) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *map(str, arguments), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, out
    return out.decode()


async def back_up(stage: Stage, daemon: Daemon) -> None:
    await run("rondevud.ctl.main", "--socket", daemon.socket, "backup", stage.path / "copy")


async def restore(stage: Stage, daemon: Daemon) -> None:
    """Of a daemon that is not running."""
    said = await run("rondevud", "restore", stage.path / "copy", "--state-dir", daemon.state)
    assert f"kept in {daemon.state / DATABASE}.before-restore-" in said
    assert json.loads(await run("rondevud", "doctor", "--state-dir", daemon.state, "--json"))["clean"]


async def send(daemon: Daemon, first: int, last: int) -> None:
    async with daemon.client() as client:
        channel = await client.attach(CONNECTION, "main")
        for number in range(first, last + 1):
            await channel.send(str(number))


async def until_drained(daemon: Daemon) -> None:
    async with daemon.client() as client:
        await client.wait(CONNECTION, "connected", PATIENCE)
        await client.wait(CONNECTION, "drained", PATIENCE)


async def take(daemon: Daemon, upto: int) -> tuple[list[int], list[tuple[str, int]]]:
    """Numbers up to `upto`, acknowledged, and the gaps between them: reason and count."""
    target = await daemon.connection_id()
    numbers: list[int] = []
    gaps: list[tuple[str, int]] = []
    async with asyncio.timeout(PATIENCE), daemon.client() as client:
        channel = await client.attach(target, "main")
        channel.on("gap", lambda gap: gaps.append((gap["reason"], gap["count"])))
        async for message in channel:
            numbers.append(int(message.data))
            if numbers[-1] == upto:
                await message.ack()
                break
    await daemon.until_nothing_waits(target, "main")
    return numbers, gaps


def span(first: int, last: int) -> list[int]:
    return list(range(first, last + 1))


async def test_what_a_restored_receiver_had_received_since_is_reported_as_lost(tmp_path):
    async with Stage(tmp_path) as stage:
        service, connection = await stage.pair()
        await send(connection, 1, 10)
        await until_drained(connection)
        assert await take(service, 10) == (span(1, 10), [])
        await back_up(stage, service)
        await send(connection, 11, 20)
        await until_drained(connection)
        assert await service.stop() == 0
        await restore(stage, service)
        await service.start()
        await send(connection, 21, 30)
        assert await take(service, 30) == (span(21, 30), [("lost", 10)])


async def test_what_a_restored_sender_sends_again_is_not_delivered_twice(tmp_path):
    async with Stage(tmp_path) as stage:
        service, connection = await stage.pair()
        await send(connection, 1, 5)
        await until_drained(connection)
        assert await service.stop() == 0
        await send(connection, 6, 10)
        await back_up(stage, connection)
        await service.start()
        await until_drained(connection)
        await connection.kill()
        await restore(stage, connection)
        await connection.start()
        assert (await connection.queue(CONNECTION, "main"))["queue_size"] in {0, 5}  # as in the copy, or sent by now
        await send(connection, 11, 20)
        await until_drained(connection)
        assert await take(service, 20) == (span(1, 20), [])
