"""A daemon finds the store of an older version, with both queues full: it dies in the upgrade, and nothing is lost."""

from __future__ import annotations

import asyncio
import gzip
import signal

import pytest

from rondevu_client import Channel
from rondevud.statedir import DATABASE
from tests.acceptance.processes import CONNECTION, LIMIT, PATIENCE, Stage
from tests.acceptance.programs.patient import patient_client
from tests.acceptance.test_failpoints import UPGRADING
from tests.unit.store.test_upgrades import IN, OUT, RECORDED

pytestmark = [pytest.mark.acceptance, pytest.mark.once, LIMIT]

CI = "upgrade.within"


@pytest.mark.parametrize("point", [p if p == CI else pytest.param(p, marks=pytest.mark.soak) for p in UPGRADING])
async def test_a_daemon_dies_in_the_upgrade(tmp_path, point):
    async with Stage(tmp_path) as stage:
        service, connection = await stage.declared_pair()
        connection.state.mkdir(mode=0o700, exist_ok=True)
        (connection.state / DATABASE).write_bytes(gzip.decompress(RECORDED.read_bytes()))
        await service.start()
        process = await connection.start(f"{point}:1")
        assert await process.exited() == -signal.SIGKILL
        await connection.start()
        async with patient_client(connection.socket, "near") as near, patient_client(service.socket, "far") as far:
            await near.wait(CONNECTION, "drained", PATIENCE)
            totals = (await near.queue(CONNECTION, "main"))["totals"]
            assert (totals["accepted"], totals["acknowledged"]) == (len(OUT), len(OUT))
            channel = await near.attach(CONNECTION, "main")
            assert await take(channel, len(IN)) == [f"in {number}" for number in IN]
            other = await far.attach(await service.connection_id(), "main")
            assert await take(other, len(OUT)) == [f"out {number}" for number in OUT]


async def take(channel: Channel, count: int) -> list[str]:
    """So many messages."""
    async with asyncio.timeout(PATIENCE):
        got = [await channel.receive() for _ in range(count)]
    return [message.data.decode() if isinstance(message.data, bytes) else message.data for message in got]
