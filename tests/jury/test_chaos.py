"""Everything that can be killed is killed while messages go both ways on three labels, packed and in pieces."""

from __future__ import annotations

import os

import pytest

from tests.jury.chaos import limit, repeat, run

pytestmark = [pytest.mark.acceptance, pytest.mark.once]

SEED = int(os.environ.get("RONDEVUD_SEED", "20"))
KILLS, MANY = 30, 300


async def assert_nothing_is_wrong(path, seed: int, kills: int, *, rough: bool) -> None:
    print(repeat(seed, kills, rough=rough))
    assert await run(path, seed, kills, rough=rough, tell=print) == []


@pytest.mark.timeout(limit(KILLS) + 20)
async def test_thirty_kills_lose_repeat_and_reorder_nothing(tmp_path):
    await assert_nothing_is_wrong(tmp_path, SEED, KILLS, rough=False)


@pytest.mark.soak
@pytest.mark.timeout(limit(MANY // 6) + 20)
@pytest.mark.parametrize("number", range(6))
async def test_three_hundred_kills_stops_and_freezes_lose_repeat_and_reorder_nothing(tmp_path, number):
    await assert_nothing_is_wrong(tmp_path, SEED + number, MANY // 6, rough=True)
