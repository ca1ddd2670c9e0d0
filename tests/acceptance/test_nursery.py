"""Births that are interrupted: what starts next is told of its own process, and nobody is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import pytest

from tests.acceptance.nursery import Nursery

pytestmark = [pytest.mark.acceptance, pytest.mark.once]

PATIENCE = 60.0

PROGRAM = """
import sys
print(sys.argv[1], flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def nursery():
    made = Nursery()
    yield made
    made.close()


@pytest.fixture
async def troubles():
    """What the loop was told of that nobody caught."""
    found: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: found.append(context))
    return found


@pytest.fixture
def bear(nursery, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)

    async def start(word: str):
        with (tmp_path / "log").open("ab") as log:
            return await nursery.bear([sys.executable, str(program), word], os.environ, log)

    return start


async def until_empty(nursery: Nursery) -> None:
    async with asyncio.timeout(PATIENCE):
        while nursery.children:
            await asyncio.sleep(0.01)


async def end(child) -> int:
    child.stdin.close()
    return await asyncio.wait_for(child.wait(), PATIENCE)


@pytest.mark.parametrize("turns", [1, 2, 3])
async def test_a_birth_that_is_cancelled_leaves_no_process_and_no_trouble_behind(nursery, bear, troubles, turns):
    """In its first turn all is done but connecting the pipes, each of which takes a turn."""
    with nursery.attended():
        birth = asyncio.create_task(bear("cancelled"))
        for _ in range(turns):
            await asyncio.sleep(0)
        assert birth.cancel()
        with pytest.raises(asyncio.CancelledError):
            await birth
        await until_empty(nursery)
        child = await bear("next")
        assert await asyncio.wait_for(child.stdout.readline(), PATIENCE) == b"next\n"
        assert await end(child) == 0
    assert troubles == []


async def test_a_process_whose_birth_nobody_waits_for_any_more_is_not_taken_for_the_next_one(nursery, bear, troubles):
    with nursery.attended():
        os.kill(nursery.pid, signal.SIGSTOP)
        nursery.patience = 0.05
        try:
            with pytest.raises(TimeoutError):
                await bear("late")
        finally:
            nursery.patience = PATIENCE
            os.kill(nursery.pid, signal.SIGCONT)
        child = await bear("next")
        assert await asyncio.wait_for(child.stdout.readline(), PATIENCE) == b"next\n"
        assert await end(child) == 0
        await until_empty(nursery)
    assert troubles == []
