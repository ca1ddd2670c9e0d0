"""Does the random driver see it when a rule of ``rondevu.link.1`` is gone? Each patch takes one out of a copy."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import rondevud

pytestmark = pytest.mark.once

PATCHES = sorted(Path(__file__).with_name("patches").glob("*.patch"))
SEEDS = 20_000
"""Worlds in which a removed rule must show; most show within a few."""

FIRST = {
    "rule-1-numbers-without-the-clock": 7_026,
    "rule-4-acknowledged-before-the-commit": 305,
    "rule-5-numbers-given-twice-are-not-noticed": 1_179,
}
"""Where to begin looking for what shows rarely: at a world that showed it. Looking goes on when the worlds have changed."""

DRIVER = """
import sys, traceback
import rondevud
import world
assert rondevud.__file__.startswith(sys.argv[1]), rondevud.__file__
world.shrink()
for seed in range(int(sys.argv[2]), int(sys.argv[3])):
    try:
        world.drive(seed, 200)
    except AssertionError as error:
        places = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
        said = "found" if {"settle", "verify", "run"} & set(places) else "another assertion"
        print(said, "seed", seed, str(error)[:300])
        break
else:
    print("nothing found")
"""


@pytest.fixture
def copy(tmp_path):
    """A copy of the package and of the driver, to be spoiled."""
    package = Path(rondevud.__file__).parent
    shutil.copytree(package, tmp_path / "rondevud", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(Path(__file__).with_name("world.py"), tmp_path)
    return tmp_path


def drive(copy: Path, seeds: range) -> str:
    """What the driver says of the copy, in an interpreter of its own."""
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(copy), str(seeds.start), str(seeds.stop)],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_driver_finds_nothing_in_an_unspoiled_copy(copy):
    assert drive(copy, range(200)) == "nothing found\n"


@pytest.mark.timeout(180)
@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_driver_finds_that_a_rule_was_removed(copy, patch):
    subprocess.run(["patch", "-p1", "--fuzz=3", "-i", patch], cwd=copy, check=True, capture_output=True)
    first = FIRST.get(patch.stem, 0)
    assert drive(copy, range(first, first + SEEDS)).startswith("found seed")


def test_there_is_a_patch_for_each_rule():
    rules = {name.split("-")[1] for name in (patch.stem for patch in PATCHES) if name.startswith("rule-")}
    assert rules >= set("12345689")
