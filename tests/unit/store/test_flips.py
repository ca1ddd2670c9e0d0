"""Flipped bits and truncations of a full store: nothing wrong is delivered, nothing lacks untold, nothing dies.

2,000 times one bit is another, 200 times the end lacks; the long run takes every byte. Flips that can be told apart are
tried together, see `damages`. `RONDEVUD_STORE_FLIPS` bounds how many flips are tried (drawn evenly from all of them),
`RONDEVUD_PROCESSES` among how many processes a long run shares its work (all processors without it);
`RONDEVUD_STORE_FLIPS_LOG` names a file in which a long run says how far it has come.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from random import Random

import pytest

from rondevud.records import InMessage, OutMessage
from tests.unit.store.damages import SEED, Damage, Group, Image, grouped, single
from tests.unit.store.full_store import ENDS, Content, inspect, make, remove
from tests.unit.store.pages import FRAME_HEADER, LOG_HEADER, PAGE, Row, layout

pytestmark = pytest.mark.once

FLIPS = int(os.environ.get("RONDEVUD_STORE_FLIPS", "2000"))
TRUNCATIONS = 200
STRUCTURE = 250
"""Flips beside those in what is neither a message nor unused."""

WITHIN = 60.0
"""Seconds in which a damaged store must have answered everything."""

DELIVERED = 10
"""Every so-manyeth damaged store is also emptied and used again, as by a daemon with a peer and a program."""

CHUNK = 50
"""Stores that a process of the long run takes at a time."""

PROCESSES = int(os.environ.get("RONDEVUD_PROCESSES", os.cpu_count() or 1))
"""Among which the long run is shared."""

MEMORY = Path("/dev/shm")
"""Where copies are made, if it is there: the disk is no part of these tests."""


def scratch(fallback: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=MEMORY if os.access(MEMORY, os.W_OK) else fallback, prefix="rondevud-flips-"))


async def image(directory: Path, *, log: bool) -> tuple[Image, Content]:
    """A full store, closed or with the log that a killed daemon leaves."""
    path = directory / "made"
    content = await make(path, log=log)
    files = {end: Path(f"{path}{end}").read_bytes() for end in ENDS if Path(f"{path}{end}").exists()}
    remove(path)
    return files, content


async def try_one(files: Image, content: Content, group: Group, directory: Path, *, deliver: bool) -> Counter[str]:
    """What became of the store with these damages, by how many. Raises whatever the daemon or the comparison raises."""
    path = directory / "store"
    damaged = {end: bytearray(data) for end, data in files.items()}
    for damage in group.damages:
        damage.apply(damaged[damage.end])
    for end, data in damaged.items():
        Path(f"{path}{end}").write_bytes(data)
    try:
        async with asyncio.timeout(WITHIN):
            outcome = await inspect(path, content, deliver=deliver, damaged=group.damaged)
    finally:
        remove(path)
    if group.damaged is None:
        return Counter({outcome.kind: 1})
    return Counter(told=len(group.damaged), whole=len(group.damages) - len(group.damaged))


async def try_all(
    files: Image, content: Content, groups: Sequence[Group], directory: Path
) -> tuple[Counter[str], list[str]]:
    """How often the outcomes were which, and what should not have been, a line each.

    What was tried together and did not end as it must is tried one by one. It is wrong even if each alone is not.
    """
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    for number, group in enumerate(groups):
        try:
            outcomes += await try_one(files, content, group, directory, deliver=number % DELIVERED == 0)
        except Exception as error:  # noqa: BLE001 - whatever it is, the daemon would have died of it
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
            if len(group.damages) == 1:
                wrong.append(f"{group.damages[0]}: {text}")
                continue
            each, faults = await try_all(files, content, list(group.alone()), directory)
            outcomes += each
            wrong += faults or [f"{group}: {text}, and each alone is told"]
    return outcomes, wrong


def all_flips(files: Image, random: Random) -> Iterator[Damage]:
    """One bit of each byte of the files, in a random order."""
    places = [(end, place) for end, content in files.items() for place in range(len(content))]
    random.shuffle(places)
    for end, place in places:
        yield Damage(end, place, random.randrange(8))


def assert_each_byte_once(files: Image, groups: Iterable[Group]) -> None:
    flipped: dict[str, list[int]] = {end: [] for end in files}
    for group in groups:
        for damage in group.damages:
            flipped[damage.end].append(damage.place)
    assert {end: sorted(places) for end, places in flipped.items()} == {
        end: list(range(len(content))) for end, content in files.items()
    }


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
        groups = grouped(files, some_flips(files, FLIPS // 2))
        assert sum(len(group.damages) for group in groups) == FLIPS // 2
        judge(*await try_all(files, content, groups, directory), least_whole=0.99)
    finally:
        directory.rmdir()


@pytest.mark.timeout(600)
async def test_a_flipped_bit_of_what_holds_the_file_together_is_told_too(tmp_path):
    """Headers, keys of indexes, the small tables: a fortieth of the bytes, by which a reader goes astray."""
    directory = scratch(tmp_path)
    try:
        files, content = await image(directory, log=False)
        groups = [group for group in grouped(files, all_flips(files, Random(SEED))) if group.damaged is None]
        places = [
            Damage("", 18, 2),
            Damage("", 19, 3),
        ]  # the versions in the header, for which there is one chance in 8
        judge(*await try_all(files, content, [*single(places), *groups[:STRUCTURE]], directory), least_whole=0.95)
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
        judge(*await try_all(files, content, single(damages), directory), least_whole=0.0)
    finally:
        directory.rmdir()


async def test_what_is_flipped_together_is_what_it_is_taken_for(tmp_path):
    """Payloads of all messages, byte by byte, on pages of the database."""
    files, content = await image(tmp_path, log=False)
    values = layout(files[""]).values
    for queues in content.channels.values():
        channel = queues.record.id
        out = [(Row("outbox", channel, item.seq), item.payload) for item in queues.out if isinstance(item, OutMessage)]
        inbox = [
            (Row("inbox", channel, item.row), item.payload) for item in queues.inbox if isinstance(item, InMessage)
        ]
        for row, payload in out + inbox:
            data = payload.encode() if isinstance(payload, str) else payload or b""
            assert data in bytes(files[""][place] for place in values[row])
            assert len(values[row]) < len(data) + 60


@pytest.mark.parametrize("lacks", ["-wal", "", "-marks"])
async def test_a_file_that_lacks_is_told(tmp_path, lacks):
    files, content = await image(tmp_path, log=True)
    del files[lacks]
    (outcome,) = await try_one(files, content, Group([], None), tmp_path, deliver=True)
    # Without marks a store is one of an older version: nothing is lost.
    assert outcome in ({"whole"} if lacks == "-marks" else {"told", "moved aside"})


# --- every byte ------------------------------------------------------------------------------------------------------


def try_chunk(files: Image, content: Content, groups: list[Group]) -> tuple[Counter[str], list[str]]:
    """In a process of its own."""
    directory = scratch(Path(tempfile.gettempdir()))
    try:
        return asyncio.run(try_all(files, content, groups, directory))
    finally:
        directory.rmdir()


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.parametrize("log", [False, True], ids=["closed", "with-its-log"])
async def test_a_flipped_bit_in_every_byte(tmp_path, log):
    """Some 20 minutes of a processor for the closed store, a day with its log."""
    files, content = await image(tmp_path, log=log)
    damages = list(all_flips(files, Random(SEED)))
    if "RONDEVUD_STORE_FLIPS" in os.environ:
        del damages[FLIPS // 2 :]
    groups = grouped(files, damages)
    if "RONDEVUD_STORE_FLIPS" not in os.environ:
        assert_each_byte_once(files, groups)
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    progress = Path(os.environ.get("RONDEVUD_STORE_FLIPS_LOG", tmp_path / "progress"))
    with ProcessPoolExecutor(PROCESSES) as pool, progress.open("a") as report:
        chunks = [groups[start : start + CHUNK] for start in range(0, len(groups), CHUNK)]
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
