"""The path between two daemons is bad, gone for a while, or another one: nothing is lost, and they find each other soon."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import statistics
import time
from collections.abc import AsyncIterator

import pytest

from rondevu_client import Channel
from rondevu_client import Daemon as Client
from tests.acceptance.processes import PATIENCE, SCALE, Daemon, Stage, assert_exactly_once_in_order
from tests.faults.pair import Lag, Pair, open_pair, read_lines
from tests.faults.relay import Weather
from tests.jury.trial import Trial

pytestmark = [pytest.mark.acceptance, pytest.mark.once]

# --- every fault once ------------------------------------------------------------------------------------------------

WEATHER = {
    "lost": Weather(loss=0.1, delay=0.01),
    "delayed": Weather(delay=0.05, jitter=0.03),
    "reordered": Weather(reorder=0.2, delay=0.01),
    "duplicated": Weather(duplicate=0.2, reorder=0.1),
}

COUNT = 360
"""Messages on each label in each direction."""

GONE = 5.0
"""Seconds that a way is blocked: long enough that the side which hears nothing dials."""


@pytest.mark.timeout(240 * SCALE)
async def test_a_path_that_does_everything_to_datagrams_loses_repeats_and_reorders_no_message(tmp_path):
    """Three labels, both ways, packed and fragmented; the jury decides."""
    async with Stage(tmp_path, 220 * SCALE) as stage:
        await stage.rendezvous.start()
        async with open_pair(stage) as pair:
            await pair.start()
            await assert_peers_know_the_relay_only(pair)
            trial = Trial(stage, pair.service, pair.connection, 2 * PATIENCE, COUNT)
            await trial.start_programs()
            marks = itertools.count(1)
            for what, weather in WEATHER.items():
                pair.relay.set(weather)
                await until_part(trial, next(marks))
                assert pair.relay.count(what) > 0
            pair.relay.set(Weather())
            for ways in ([pair.relay.to_service], [pair.relay.to_connecting], []):
                before = pair.relay.count("swallowed")
                pair.relay.block(*ways)
                await asyncio.sleep(GONE)  # how long that lasts is the subject
                pair.relay.open()
                assert pair.relay.count("swallowed") > before
                await until_part(trial, next(marks))
            for service_sees in (True, False):
                pair.relay.change_ports(service_sees=service_sees)
                await until_part(trial, next(marks))
            assert not await trial.verdict()


async def until_part(trial: Trial, part: int) -> None:
    """Wait until both programs have received that many tenths of what they will."""
    for program in trial.programs.values():
        await program.until_count("received", part * 3 * COUNT // 10, 2 * PATIENCE)


async def assert_peers_know_the_relay_only(pair: Pair) -> None:
    ports = pair.relay.ports()
    for daemon in (pair.service, pair.connection):
        async with daemon.client() as client:
            (row,) = await client.connections()
            link = (await client.why(row["connection_id"]))["link"]
        known = [link["remote"], *link["remote_candidates"]]
        assert {int(address.split()[0].rpartition(":")[2]) for address in known} <= ports, known


# --- 33 seconds ------------------------------------------------------------------------------------------------------

HOLE = 33.0
INTO_HOLE = 25_000
BEFORE = 500
"""Messages that a side sends in all directions: while nothing comes through, and before."""

DRAINED = 120.0 * SCALE
"""Seconds in which all of it must have arrived; the rate of the link is judged elsewhere."""


@pytest.mark.timeout(400 * SCALE)
@pytest.mark.parametrize("run", [0, *(pytest.param(run, marks=pytest.mark.soak) for run in range(1, 20))])
async def test_twenty_five_thousand_messages_sent_both_ways_into_a_silent_hole_of_33_seconds_arrive_once(tmp_path, run):
    """A plain data channel loses all of them: it takes them, and notices after half a minute that nobody is there."""
    count = BEFORE + INTO_HOLE
    async with Stage(tmp_path, 380 * SCALE) as stage:
        await stage.rendezvous.start()
        async with open_pair(stage, seed=run) as pair:
            await pair.start()
            programs = []
            for daemon in (pair.service, pair.connection):
                words = (daemon.socket, await daemon.connection_id(), "main", "LOG", daemon.name, count, count, BEFORE)
                programs.append(await stage.program("both_ways", daemon.name, *words))
            for program in programs:
                await program.until_count("received", BEFORE)
            pair.relay.block()
            began = time.monotonic()
            for program in programs:
                program.type("go on")
            for program in programs:
                await program.until_count("accepted", count, DRAINED)
            await asyncio.sleep(began + HOLE - time.monotonic())
            assert [program.count("received") for program in programs] == [BEFORE, BEFORE]
            pair.relay.open()
            for program in programs:
                assert await program.exited(DRAINED) == 0
            for name, sender in (("alice", "bob"), ("bob", "alice")):
                assert_exactly_once_in_order(stage.read_log(name), sender, count)
            for daemon in (pair.service, pair.connection):
                assert (await daemon.queue(await daemon.connection_id(), "main"))["queue_size"] == 0


# --- how soon it goes on ---------------------------------------------------------------------------------------------

SAMPLES = 30
SHORTEST, LONGEST = 1.0, 60.0
PAIRS = 3
P50, P95 = 3.0, 10.0
"""Seconds from the moment when the path is back until messages that had waited have arrived on both sides."""


def holes(seed: int = 5) -> list[float]:
    """Seconds, from each thirtieth of the range one at random."""
    chance = random.Random(seed)
    width = (LONGEST - SHORTEST) / SAMPLES
    return [SHORTEST + width * (part + chance.random()) for part in range(SAMPLES)]


@pytest.mark.timeout(900 * SCALE)
@pytest.mark.parametrize(
    "samples", [pytest.param([1, 5, 8], id="3"), pytest.param(range(SAMPLES), id="30", marks=pytest.mark.soak)]
)
async def test_a_link_is_resumed_soon_after_the_path_is_back(tmp_path, samples):
    chosen = [holes()[sample] for sample in samples]
    async with Stage(tmp_path, 880 * SCALE) as stage, Lag.measured() as lag:
        await stage.rendezvous.start()
        async with asyncio.TaskGroup() as group:
            turn = asyncio.Lock()
            shares = [chosen[number::PAIRS] for number in range(PAIRS)]
            runs = [group.create_task(resume_all(stage, turn, number, share)) for number, share in enumerate(shares)]
    taken = dict(sorted((hole, seconds) for run in runs for hole, seconds in run.result()))
    times = sorted(taken.values())
    p50, p95 = statistics.median(times), times[max(0, -(-95 * len(times) // 100) - 1)]
    told = ", ".join(f"{hole:.1f}: {seconds:.2f}" for hole, seconds in taken.items())
    print(f"p50 {p50:.2f} s, p95 {p95:.2f} s, lag at most {lag.since(0.0):.2f} s; after holes of {told}")
    allowed = 2 * lag.since(0.0)
    assert p50 <= P50 + allowed, told
    assert p95 <= P95 + allowed, told


async def resume_all(stage: Stage, turn: asyncio.Lock, number: int, lengths: list[float]) -> list[tuple[float, float]]:
    """For each hole its length and the time that it took to go on behind it; pairs start one after the other."""
    async with open_pair(stage, str(number), 5) as pair:
        async with turn:
            await pair.start()
        async with attached(pair.service) as near, attached(pair.connection) as far:
            return [(length, await resume(pair, near, far, length)) for length in lengths]


async def resume(pair: Pair, near: Channel, far: Channel, length: float) -> float:
    await pair.settled()
    pair.relay.block()
    await asyncio.gather(near.send(f"a {length}"), far.send(f"b {length}"))
    await asyncio.sleep(length)
    pair.relay.open()
    began = time.monotonic()
    async with asyncio.timeout(PATIENCE):
        messages = await asyncio.gather(anext(near), anext(far))
    taken = time.monotonic() - began
    assert [message.data for message in messages] == [f"b {length}", f"a {length}"]
    return taken


@contextlib.asynccontextmanager
async def attached(daemon: Daemon) -> AsyncIterator[Channel]:
    """A program of the daemon's one connection, on the label "main"."""
    async with Client(daemon.socket) as client:
        yield await client.attach(await daemon.connection_id(), "main")


# --- false alarms ----------------------------------------------------------------------------------------------------

BAD = Weather(loss=0.05, delay=0.15, jitter=0.05)
"""A round trip of 300 ± 100 ms."""

WATCHED = 600.0
"""Seconds."""

KEPT_QUEUED = 4 * 1024 * 1024
CHUNK = 64 * 1024


@pytest.mark.soak
@pytest.mark.timeout(WATCHED + 300 * SCALE)
async def test_ten_minutes_of_a_bad_path_change_the_link_once_at_most(tmp_path):
    """Of two pairs: one says nothing but heartbeats, in the other the service sends as fast as it can."""
    async with Stage(tmp_path, WATCHED + 280 * SCALE) as stage:
        await stage.rendezvous.start()
        async with open_pair(stage, "idle") as idle, open_pair(stage, "busy") as busy:
            began = time.time()
            for pair in (idle, busy):
                await pair.start()
            for pair in (idle, busy):
                pair.relay.set(BAD)
            async with attached(busy.service) as channel:
                await send_for(channel, busy.service, WATCHED)
            for what, pair in (("idle", idle), ("busy", busy)):
                links = read_lines(pair.connection, r"connected \(", began)
                suspects = [
                    line
                    for daemon in (pair.service, pair.connection)
                    for line in read_lines(daemon, "nothing heard", began)
                ]
                print(f"{what}: {len(links)} links, {len(suspects)} suspects, {pair.relay.count('carried')} datagrams")
                assert len(links) <= 2, links
                assert pair.relay.count("lost") > 0


async def send_for(channel: Channel, daemon: Daemon, seconds: float) -> None:
    """Keep something queued there, for so many seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        queued = (await daemon.queue(channel.connection_id, "main"))["queue_bytes"]
        for _ in range((KEPT_QUEUED - queued) // CHUNK):
            await channel.send(bytes(CHUNK))
        await asyncio.sleep(1.0)
