"""A message of which programs die, and the daemon with them: it is set aside, and what comes behind it is delivered."""

from __future__ import annotations

import pytest

from tests.acceptance.processes import CONNECTION, LIMIT, Daemon, Stage

pytestmark = [pytest.mark.acceptance, pytest.mark.once, LIMIT]

MOST = 2


async def die_until_done(stage: Stage, daemon: Daemon, target: str, *, with_daemon: bool) -> int:
    """Let programs take messages until one of them has the last; the first takes the daemon along. How many died."""
    deaths = 0
    while True:
        assert daemon.process is not None
        victim = daemon.process.pid if with_daemon and not deaths else 0
        arguments = (daemon.socket, target, "main", "LOG", "poison", "last", victim)
        program = await stage.program("mortal", "mortal", *arguments)
        if await program.exited() == 0:
            return deaths
        deaths += 1
        if victim:
            await daemon.process.exited()
            await daemon.start()


@pytest.mark.parametrize("with_daemon", [True, pytest.param(False, marks=pytest.mark.soak)])
async def test_programs_and_their_daemon_die_of_a_message(tmp_path, with_daemon):
    async with Stage(tmp_path) as stage:
        service, connection = await stage.declared_pair(f"[queue]\nmax_deliveries = {MOST}\n")
        await service.start()
        await connection.start()
        async with connection.client() as client:
            channel = await client.attach(CONNECTION, "main")
            for text in ("first", "poison", "last"):
                await channel.send(text)
            await channel.flush()
        target = await service.connection_id()
        deaths = await die_until_done(stage, service, target, with_daemon=with_daemon)
        assert deaths == MOST + with_daemon  # what ends the daemon at its first delivery comes once more
        given = [words for words in stage.read_log("mortal") if words[:1] == ["received"]]
        poison = {words[1] for words in given if words[2] == "poison"}
        assert sum(words[2] == "poison" for words in given) == deaths
        await service.until_nothing_waits(target, "main")
        async with service.client() as client:
            (failed,) = await client.failed(target, "main")
            assert ({failed["id"]}, failed["attempts"], failed["head"]) == (poison, MOST, b"poison")
            assert await client.put_back(target, "main", failed["id"]) == {"put_back": 1}
            channel = await client.attach(target, "main")
            message = await channel.receive()
            assert (message.id, message.data, message.redelivered) == (failed["id"], "poison", True)
            await message.ack()
            await channel.detach()
        await service.until_nothing_waits(target, "main")
        facts = await service.queue(target, "main")
        assert (facts["failed"], facts["totals"]["received"], facts["totals"]["taken"]) == (0, 3, 3)
