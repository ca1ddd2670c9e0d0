"""Broken frames on the socket of a real daemon: each is refused by name, and nobody else is disturbed."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from rondevu_client.errors import BadFrame
from rondevu_client.protocol import Decoder, Request, Response, encode_request
from tests.fuzz.mutator import AMOUNTS, Case, cases, pack, replayable
from tests.fuzz.socket_input import PREY, frame, hello
from tests.fuzz.watching import Watch, watching
from tests.integration.daemons import PATIENCE, Pair, exchange_few, open_pair, open_world

pytestmark = [pytest.mark.once, pytest.mark.webrtc]

FRAMES = 20
"""Frames on one socket about."""

WARM_UP = 200
"""Sockets after which memory is not to grow."""

GROWTH = 32 * 2**20
CHECKED_EVERY = 250
LAST = 2**32 - 1
"""The msgid of the last request on a socket."""

PREY_CONFIG = f"""
[queue]
max_queue_size = 50
overflow = "drop_oldest"
[[connection]]
name = "{PREY}"
username = "nobody"
fqn = "com.example.nobody@1.0.0"
"""


@pytest.mark.parametrize("amount", AMOUNTS)
async def test_a_daemon_outlives_broken_frames_on_its_socket(amount: int, tmp_path: Path) -> None:
    codes: Counter[str] = Counter()
    async with open_world(tmp_path) as world:
        pair = await open_pair(world, away=PREY_CONFIG)
        with watching() as watch:
            for case in cases(amount // FRAMES):
                with replayable(case):
                    await attack(case, pair.away.socket, codes)
                    await check(case, pair, watch)
            await exchange_few(pair.near, pair.far)
    print(sum(codes.values()), "answers:", codes)


async def check(case: Case, pair: Pair, watch: Watch) -> None:
    watch.check()
    if case.turn == WARM_UP:
        watch.begin_memory()
    if case.turn % CHECKED_EVERY == CHECKED_EVERY - 1:
        await exchange_few(pair.near, pair.far)
        if case.turn > WARM_UP:
            watch.check_memory(GROWTH)


async def attack(case: Case, path: Path, codes: Counter[str]) -> None:
    """One socket: frames, then a right request that is answered unless the daemon has closed the socket, saying why."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        async with asyncio.timeout(PATIENCE):
            said = [encode_request(0, "hello", hello())] if case.chance(0.97) else []
            said += [case.feed(frame(case)) for _ in range(case.random.randrange(2 * FRAMES))]
            said.append(pack([0, LAST, "ping", [{}]]))
            for data in said:
                if writer.is_closing():
                    break
                writer.write(data)
                if case.chance(0.05):
                    await asyncio.sleep(0)
            whole = is_whole(b"".join(said))
            if not whole and not writer.is_closing():
                writer.write_eof()  # the daemon waits for the rest of a frame
            await hear_out(reader, codes, whole=whole)
    except ConnectionError:  # it closed before it had read everything; what it said is lost with that
        codes["hung up"] += 1
    finally:
        writer.close()


def is_whole(said: bytes) -> bool:
    """Whether the last request is seen as one, or something before it ends the reading."""
    try:
        return any(isinstance(each, Request) and each.msgid == LAST for each in Decoder(2**27).frames(said))
    except BadFrame:
        return True


async def hear_out(reader: asyncio.StreamReader, codes: Counter[str], *, whole: bool) -> None:
    """Until the last request is answered, or the daemon closes the socket, for a reason that it names."""
    decoder, last = Decoder(2**27), None
    while data := await reader.read(65_536):
        for heard in decoder.frames(data):
            if not isinstance(heard, Response):
                continue
            last, code = heard, heard.error["code"] if heard.error else "answered"
            codes[code] += 1
            assert code != "internal", heard.error
            if heard.msgid == LAST:
                return
    assert not whole or (last is not None and last.error), f"closed behind {last}"
