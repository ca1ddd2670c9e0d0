"""A stop has an end, whatever hangs in it."""

from __future__ import annotations

import asyncio
import signal
import sys

import pytest

HANGING = """
import asyncio, sys
from pathlib import Path
from rondevud import daemon
from rondevud.config import parse
from rondevud.house import House
from rondevud.ipc.server import Server

daemon.PART_TIMEOUT, daemon.STOP_TIMEOUT = 0.2, {stop}
stop = Server.stop

async def hang(self):
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if {obedient}:
                raise

async def tell(self):
    await stop(self)
    print("socket stopped", flush=True)

House.stop, Server.stop = hang, tell
directory = Path(sys.argv[1])
ready = lambda: print("ready", flush=True)
work = daemon.run(parse("", "x"), config_path=None, state_dir=directory / "s", socket=directory / "sock", ready=ready)
sys.exit(asyncio.run(work))
"""


@pytest.mark.parametrize(("obedient", "said"), [(True, b"socket stopped\n"), (False, b"")])
async def test_a_part_that_hangs_ends_with_its_time_or_with_the_process(tmp_path, obedient, said):
    program = HANGING.format(obedient=obedient, stop=60 if obedient else 1)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(tmp_path), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(30):
            assert await process.stdout.readline() == b"ready\n"
            process.send_signal(signal.SIGTERM)
            assert await process.stdout.read() == said
            assert await process.wait() == 1
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
