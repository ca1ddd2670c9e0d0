"""Commands that use a channel, towards another daemon and towards a plain peer."""

from __future__ import annotations

import asyncio
import json
import sys

import pytest

from tests.integration.daemons import PATIENCE, SCALE, open_pair
from tests.integration.foreign import Foreigners
from tests.integration.mixed import Host, visit

pytestmark = [pytest.mark.webrtc, pytest.mark.timeout(120 * SCALE)]


async def begin(place, *args: str):
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "rondevud.ctl.main", "--socket", str(place.socket), *args,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def ctl(place, *args: str, stdin: bytes = b"") -> bytes:
    process = await begin(place, *args)
    async with asyncio.timeout(PATIENCE):
        out, err = await process.communicate(stdin)
    assert process.returncode == 0, (args, err)
    return out


async def test_two_pipes_are_one_pipe_between_two_machines(world):
    pair = await open_pair(world)
    _, far_id = await pair.ids()
    await pair.near.detach()
    await pair.leave()
    near, far = await begin(pair.away, "pipe", "chat", "main"), await begin(pair.home, "pipe", far_id, "main")
    near.stdin.write("grüße\n".encode())
    far.stdin.write(b"hello\n")
    async with asyncio.timeout(PATIENCE):
        assert await far.stdout.readline() == "grüße\n".encode()
        assert await near.stdout.readline() == b"hello\n"
        near.stdin.write(b"last")
        near.stdin.close()  # before 3.12, communicate() does so only when it has something to write
        assert await near.communicate() == (b"", b"")
        assert await far.stdout.readline() == b"last\n"
        far.stdin.close()
        assert await far.communicate() == (b"", b"")
    assert (near.returncode, far.returncode) == (0, 0)
    queue = json.loads(await ctl(pair.home, "--json", "queue", far_id, "main"))
    assert (queue["queue_size"], queue["waiting"]) == (0, 0)


async def test_commands_serve_plain_peers_as_far_as_those_acknowledge(world):
    host = Host(await world.daemon("home"))
    await host.expose()
    async with Foreigners(world.url) as foreigners:
        _, near, far = await visit(foreigners, host)
        target = far.connection_id
        await far.detach()
        sent = json.loads(await ctl(host.place, "--json", "send", target, near.label, "hello", "--wait", "sent"))
        assert sent["state"] == "sent"
        assert await near.receive() == "hello"
        await ctl(host.place, "pipe", target, near.label, stdin=b"from a pipe\n")
        assert await near.receive() == "from a pipe"
        refused = await begin(host.place, "send", target, near.label, "hello", "--wait", "acknowledged")
        _, err = await refused.communicate()
        assert refused.returncode == 1
        assert b"acknowledges nothing; everything was sent" in err
        answer = json.loads(await ctl(host.place, "--json", "why", target))
        assert (answer["kind"], answer["link"]["kind"], answer["link"]["path"]) == ("plain", "plain", "direct")
        assert b"plain, without acknowledgements" in await ctl(host.place, "why", target)
