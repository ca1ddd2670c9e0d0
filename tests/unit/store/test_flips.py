"""Flipped bits and truncations of a full store: nothing wrong is delivered, nothing lacks untold, nothing dies.

2,000 times one bit is another, 200 times the end lacks; the long run takes every byte. `RONDEVUD_STORE_FLIPS` bounds how
many flips are tried (drawn evenly from all of them); `RONDEVUD_STORE_FLIPS_LOG` names a file in which a long run says how
far it has come.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest

from tests.unit.store.full_store import ENDS, Content, inspect, make, remove

pytestmark = pytest.mark.once

FLIPS = int(os.environ.get("RONDEVUD_STORE_FLIPS", "2000"))
TRUNCATIONS = 200
DELIVERED = 10
"""Every so-manyeth damaged store is also emptied and used again, as by a daemon with a peer and a program."""

SEED = 20240229
PAGE = 4096
LOG_HEADER, FRAME_HEADER = 32, 24
CHUNK = 50
"""Flips that a process of the long run takes at a time."""

MEMORY = Path("/dev/shm")
"""Where copies are made, if it is there: the disk is no part of these tests."""


class Damage(NamedTuple):
    """One fault of one file of a store: a flipped bit, or with `bit` -1 the length to which the file is cut."""

    end: str
    place: int
    bit: int

    def apply(self, content: bytes) -> bytes:
        if self.bit < 0:
            return content[: self.place]
        changed = bytearray(content)
        changed[self.place] ^= 1 << self.bit
        return bytes(changed)


Image = dict[str, bytes]
"""The files of a store by how their names end."""


def scratch(fallback: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=MEMORY if os.access(MEMORY, os.W_OK) else fallback, prefix="rondevud-flips-"))


async def image(directory: Path, *, log: bool) -> tuple[Image, Content]:
    """A full store, closed or with the log that a killed daemon leaves."""
    path = directory / "made"
    content = await make(path, log=log)
    files = {end: Path(f"{path}{end}").read_bytes() for end in ENDS if Path(f"{path}{end}").exists()}
    remove(path)
    return files, content


async def try_one(files: Image, content: Content, damage: Damage, directory: Path, *, deliver: bool) -> str:
    """What became of the store with that damage. Raises whatever the daemon or the comparison raises."""
    path = directory / "store"
    for end, data in files.items():
        Path(f"{path}{end}").write_bytes(damage.apply(data) if end == damage.end else data)
    try:
        return (await inspect(path, content, deliver=deliver)).kind
    finally:
        remove(path)


async def try_all(
    files: Image, content: Content, damages: Sequence[Damage], directory: Path
) -> tuple[Counter[str], list[str]]:
    """How often the outcomes were which, and what should not have been, a line each."""
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    for number, damage in enumerate(damages):
        try:
            outcomes[await try_one(files, content, damage, directory, deliver=number % DELIVERED == 0)] += 1
        except Exception as error:  # noqa: BLE001 - whatever it is, the daemon would have died of it
            where = traceback.extract_tb(error.__traceback__)[-1]
            wrong.append(f"{damage}: {type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})")
    return outcomes, wrong


def all_flips(files: Image, random: Random) -> Iterator[Damage]:
    """One bit of each byte of the database and its log, in a random order."""
    places = [(end, place) for end in ("", "-wal") for place in range(len(files.get(end, b"")))]
    random.shuffle(places)
    for end, place in places:
        yield Damage(end, place, random.randrange(8))


def some_flips(files: Image, count: int) -> list[Damage]:
    """As many in the log as in the database, if there is one: a byte of either is as likely to go wrong."""
    random = Random(SEED)
    ends = [end for end in ("", "-wal") if files.get(end)]
    chosen = [ends[number % len(ends)] for number in range(count)]
    return [Damage(end, random.randrange(len(files[end])), random.randrange(8)) for end in chosen]


def truncations(files: Image, count: int) -> list[Damage]:
    """Lengths of all classes: nothing, within a header, at the border of a page or frame, anywhere."""
    random = Random(SEED)
    found: list[Damage] = []
    if log := files.get("-wal"):
        frame = FRAME_HEADER + PAGE
        frames = (len(log) - LOG_HEADER) // frame
        lengths = [0, 1, LOG_HEADER - 1, LOG_HEADER, LOG_HEADER + 1, len(log) - 1, len(log) - frame]
        for _ in range(count // 4):
            start = LOG_HEADER + frame * random.randrange(frames)
            lengths += [start, start + random.randrange(1, FRAME_HEADER), start + random.randrange(FRAME_HEADER, frame)]
        found += [Damage("-wal", length, -1) for length in lengths[: count // 2]]
    pages = len(files[""]) // PAGE
    lengths = [0, 1, 16, 99, 100, 512, PAGE - 1, PAGE, len(files[""]) - 1]
    for _ in range(count):
        lengths += [PAGE * random.randrange(1, pages), random.randrange(len(files[""]))]
    found += [Damage("", length, -1) for length in lengths[: count - len(found)]]
    return found


def judge(outcomes: Counter[str], wrong: list[str], least_whole: float) -> None:
    total = outcomes.total() + len(wrong)
    print(f"{total} damaged stores: {dict(outcomes)}, {len(wrong)} wrong")
    assert not wrong, "\n".join([f"{len(wrong)} of {total}", *wrong[:20]])
    assert outcomes["whole"] + outcomes["told"] >= least_whole * total, outcomes


@pytest.mark.timeout(600)
@pytest.mark.parametrize("log", [False, True], ids=["closed", "with-its-log"])
async def test_a_flipped_bit_never_delivers_anything_wrong_and_is_told(tmp_path, log):
    directory = scratch(tmp_path)
    try:
        files, content = await image(directory, log=log)
        damages = some_flips(files, FLIPS // 2)
        judge(*await try_all(files, content, damages, directory), least_whole=0.99)
    finally:
        directory.rmdir()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("log", [False, True], ids=["closed", "with-its-log"])
async def test_a_truncated_store_never_delivers_anything_wrong_and_is_told(tmp_path, log):
    directory = scratch(tmp_path)
    try:
        files, content = await image(directory, log=log)
        damages = truncations(files, TRUNCATIONS // 2)
        assert len(damages) == TRUNCATIONS // 2
        judge(*await try_all(files, content, damages, directory), least_whole=0.0)
    finally:
        directory.rmdir()


@pytest.mark.parametrize("lacks", ["-wal", "", "-marks"])
async def test_a_file_that_lacks_is_told(tmp_path, lacks):
    files, content = await image(tmp_path, log=True)
    del files[lacks]
    if lacks == "-marks":  # those of an older version: nothing is lost
        assert await try_one(files, content, Damage("", 0, 0)._replace(end="none"), tmp_path, deliver=True) == "whole"
    else:
        assert await try_one(files, content, Damage("none", 0, 0), tmp_path, deliver=True) in {"told", "moved aside"}


# --- every byte ------------------------------------------------------------------------------------------------------


def try_chunk(files: Image, content: Content, damages: list[Damage]) -> tuple[Counter[str], list[str]]:
    """In a process of its own."""
    directory = scratch(Path(tempfile.gettempdir()))
    try:
        return asyncio.run(try_all(files, content, damages, directory))
    finally:
        directory.rmdir()


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.parametrize("log", [False, True], ids=["closed", "with-its-log"])
async def test_a_flipped_bit_in_every_byte(tmp_path, log):
    """Some 35 ms a byte: nine hours of a processor for the closed store, thirty with its log, shared by all there are."""
    files, content = await image(tmp_path, log=log)
    damages = list(all_flips(files, Random(SEED)))
    if "RONDEVUD_STORE_FLIPS" in os.environ:
        del damages[FLIPS // 2 :]
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    progress = Path(os.environ.get("RONDEVUD_STORE_FLIPS_LOG", tmp_path / "progress"))
    with ProcessPoolExecutor() as pool, progress.open("a") as report:
        chunks = [damages[start : start + CHUNK] for start in range(0, len(damages), CHUNK)]
        for done in as_completed([pool.submit(try_chunk, files, content, chunk) for chunk in chunks]):
            more, faults = done.result()
            outcomes += more
            wrong += faults
            text = "".join(f"\n  {fault}" for fault in faults)
            report.write(
                f"{'log' if log else 'closed'}: {outcomes.total() + len(wrong)} of {len(damages)}: {dict(outcomes)}{text}\n"
            )
            report.flush()
    judge(outcomes, wrong, least_whole=0.99)
