"""What a daemon costs before anything happens: its start, its memory, a first link, and a question to it."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

from tests.acceptance.processes import Daemon, Stage
from tests.bench.figures import Report
from tests.bench.pairs import PATIENCE, Daemons
from tests.bench.usage import memory_kib

COMMAND = Path(sys.executable).parent / "rondevuctl"
ANSWER = 30.0
"""Seconds within which a command must answer."""


async def measure(stage: Stage, report: Report, engine: str, times: int) -> None:
    """The service polls as it does unless told otherwise; that is most of the time to connect."""
    pair = Daemons(stage, engine, "disk")
    pair.declare(service="")
    alone = pair.daemon("a")
    for _ in range(times):
        begun = time.monotonic()
        await alone.start()
        report.add("start-up until ready", "s", time.monotonic() - begun, engine=engine)
        await alone.stop()
    process = await alone.start()
    report.add("memory before the first link", "KiB", memory_kib(process.pid), engine=engine)
    await status(report, alone, times)
    await pair.home.start()
    async with alone.client() as client:
        for number in range(times):
            begun = time.monotonic()
            connection = await client.connect(*pair.service, name=f"new-{number}")
            await connection.wait("connected", PATIENCE)
            report.add("connecting", "s", time.monotonic() - begun, engine=engine)
    await pair.home.stop()
    await alone.stop()


async def status(report: Report, daemon: Daemon, times: int) -> None:
    """`rondevuctl status` as installed, its files read before."""
    for number in range(1 + max(3, times)):
        begun = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            COMMAND, "--socket", daemon.socket, "status", stdout=asyncio.subprocess.PIPE
        )
        try:
            async with asyncio.timeout(ANSWER):
                output, _ = await process.communicate()
        except TimeoutError:
            process.kill()
            raise AssertionError(f"not in {ANSWER:.0f} s: an answer of rondevuctl status") from None
        if process.returncode or not output:
            raise RuntimeError(f"rondevuctl status ended with {process.returncode} and said {output!r}")
        if number:
            report.add("rondevuctl status", "ms", 1e3 * (time.monotonic() - begun))
