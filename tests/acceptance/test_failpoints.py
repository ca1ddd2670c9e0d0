"""A daemon dies at one failpoint in the middle of a short two-way stream: nothing is lost, doubled or reordered.

A run for each point; with every test they are tried one after another in few runs, see ``test_every_failpoint.py``.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator

import pytest

from rondevu_client import Channel, Daemon, Message
from tests.acceptance.processes import CONNECTION, LIMIT, PATIENCE, Stage
from tests.acceptance.processes import SERVICE as TARGET
from tests.acceptance.programs.patient import patient_client
from tests.jury.trial import CONNECTING, DATABASE, SERVICE, Trial

pytestmark = [pytest.mark.acceptance, pytest.mark.once, pytest.mark.soak, LIMIT]

SEED = int(os.environ.get("RONDEVUD_SEED", "20"))
"""Decides at which hit of each point the daemon dies."""

OPERATIONS = ("Put", "Receive", "Acknowledge", "AckIn", "OpenProducer", "MarkAttached")

STREAM = (
    "commit.before",
    "commit.after",
    "deliver.before",
    "deliver.after",
    "accepted.before",
    "accepted.after",
    "acknowledged.before",
    "acknowledged.after",
    "message.before",
    "message.after",
    "attach.before",
    "attach.after",
    *(f"{place}.{operation}" for place in ("write", "stored") for operation in OPERATIONS),
    *(
        f"{way}.{when}.{kind}"
        for way in ("send", "receive")
        for when in ("before", "after")
        for kind in ("channel", "skip", "data", "piece", "ack")
    ),
)
"""Reached again and again while messages flow: the connecting daemon dies at one of the first hits."""

HITS = {
    "attach": (1, 3),
    "OpenProducer": (1, 3),
    "MarkAttached": (1, 3),
    "channel": (1, 3),
    "skip": (1, 3),
    "commit": (15, 30),
}
"""At which hits to die, for points with such a word in their name: some are few, of some the first come at a start."""

MEETING = (
    "write.CreateChannel",
    "write.SaveSession",
    "stored.SaveSession",
    *(f"{when}.hello" for when in ("send.before", "send.after")),
    *(f"{when}.welcome" for when in ("receive.before", "receive.after")),
    *(
        f"{way}.{when}.{kind}"
        for way in ("send", "receive")
        for when in ("before", "after")
        for kind in ("ping", "pong")
    ),
)
"""Reached by the connecting daemon before or soon after there is a link."""

MEETING_SERVICE = (
    *(f"receive.{when}.hello" for when in ("before", "after")),
    *(f"send.{when}.welcome" for when in ("before", "after")),
)
"""The same for the daemon with the service."""

REFUSED = tuple(f"{way}.{when}.refuse" for way in ("send", "receive") for when in ("before", "after"))
STOPPING = ("checkpoint.before", "checkpoint.after", "send.before.goodbye", "send.after.goodbye")
PEER_STOPPING = ("receive.before.goodbye", "receive.after.goodbye")
REOPENING = ("write.SetEpoch", "stored.SetEpoch")
PLAIN = ("plain.before", "plain.after")
UPGRADING = ("upgrade.before", "upgrade.within", "upgrade.after")
"""Reached at a start: see `test_upgrade`."""
EVERY = (*STREAM, *MEETING, *MEETING_SERVICE, *REFUSED, *STOPPING, *PEER_STOPPING, *REOPENING, *PLAIN)


def at(point: str) -> str:
    """At which hit of `point` to die, drawn with the seed."""
    hits = next((hits for word, hits in HITS.items() if word in point), (1, 12))
    return f"{point}:{random.Random(f'{SEED} {point}').randint(*hits)}"


async def assert_nothing_is_wrong(trial: Trial) -> None:
    assert await trial.verdict() == []


@pytest.mark.parametrize("point", STREAM)
async def test_a_daemon_dies_in_the_stream(tmp_path, point):
    async with Stage(tmp_path) as stage:
        trial = await Trial.prepare(stage)
        service, connection = trial.daemons[SERVICE], trial.daemons[CONNECTING]
        await asyncio.gather(service.start(), connection.start(at(point)))
        dying = asyncio.create_task(trial.survive(CONNECTING), name="survive")
        await trial.start_program(CONNECTING)
        await trial.connected()
        await trial.start_program(SERVICE)
        await dying
        await assert_nothing_is_wrong(trial)


@pytest.mark.parametrize(
    ("victim", "point"),
    [*((CONNECTING, point) for point in MEETING), *((SERVICE, point) for point in MEETING_SERVICE)],
)
async def test_a_daemon_dies_when_they_meet(tmp_path, victim, point):
    async with Stage(tmp_path) as stage:
        trial = await Trial.prepare(stage)
        for name, daemon in trial.daemons.items():
            await daemon.start(f"{point}:1" if name == victim else "")
        await trial.start_program(CONNECTING)
        await trial.survive(victim)
        await trial.connected()
        await trial.start_program(SERVICE)
        await assert_nothing_is_wrong(trial)


@pytest.mark.parametrize("point", REFUSED)
async def test_a_daemon_dies_when_a_forgotten_session_is_refused(tmp_path, point):
    victim = SERVICE if point.startswith("send") else CONNECTING
    async with Stage(tmp_path) as stage:
        trial = await Trial.prepare(stage)
        for daemon in trial.daemons.values():
            await daemon.start()
        await trial.connected()
        await forget_everything(trial)
        for name, daemon in trial.daemons.items():
            await daemon.start(f"{point}:1" if name == victim else "")
        await trial.survive(victim)
        await trial.connected()
        await trial.start_programs()
        await assert_nothing_is_wrong(trial)


async def forget_everything(trial: Trial) -> None:
    """Stop both daemons, and take the store of the service's away."""
    assert await asyncio.gather(*(daemon.stop() for daemon in trial.daemons.values())) == [0, 0]
    for path in trial.daemons[SERVICE].state.glob(f"{DATABASE}*"):
        path.unlink()


@pytest.mark.parametrize("point", [*STOPPING, *PEER_STOPPING])
async def test_a_daemon_dies_when_one_stops(tmp_path, point):
    stops = SERVICE if point in PEER_STOPPING else CONNECTING
    async with Stage(tmp_path) as stage:
        trial = await Trial.prepare(stage)
        await trial.daemons[SERVICE].start()
        await trial.daemons[CONNECTING].start(f"{point}:1")
        await trial.connected()
        await trial.start_programs()
        await trial.programs[CONNECTING].until_count("received", 20)
        process = trial.daemons[stops].process
        process.send(signal.SIGTERM)
        await trial.survive(CONNECTING)
        if stops == SERVICE:
            assert await process.exited() == 0
            await trial.daemons[SERVICE].start()
        await assert_nothing_is_wrong(trial)


@pytest.mark.parametrize("point", REOPENING)
async def test_a_daemon_dies_when_a_closed_label_is_opened_anew(tmp_path, point):
    async with Stage(tmp_path) as stage:
        trial = await Trial.prepare(stage)
        await trial.daemons[SERVICE].start()
        await trial.daemons[CONNECTING].start(f"{point}:1")
        await trial.connected()
        await open_anew(trial, point)


async def open_anew(trial: Trial, label: str) -> None:
    """Close a label on both sides and open it again, at which the connecting daemon dies."""
    service, connection = trial.daemons[SERVICE], trial.daemons[CONNECTING]
    target = await service.connection_id()
    async with patient_client(connection.socket, "near") as near, patient_client(service.socket, "far") as far:
        channel, other = await near.attach(CONNECTION, label), await far.attach(target, label)
        await channel.send("before")
        assert [message.data async for message in received_until_closed(channel, other)] == ["before"]
        await asyncio.gather(until_closed(near, CONNECTION, label), until_closed(far, target, label))
        dying = asyncio.create_task(trial.survive(CONNECTING), name="survive")
        channel = await near.attach(CONNECTION, label)
        await channel.send("after")
        await dying
        other = await far.attach(target, label)
        assert (await other.receive(PATIENCE)).data == "after"
        await asyncio.wait_for(channel.flush(), PATIENCE)


async def received_until_closed(channel: Channel, other: Channel) -> AsyncIterator[Message]:
    """What `other` receives; with the first message `channel` is closed."""
    async for message in other:
        yield message
        await channel.close()


async def until_closed(client: Daemon, target: str, label: str) -> None:
    """Wait until both sides have closed a label."""
    async with asyncio.timeout(PATIENCE):
        while {row["label"]: row["state"] for row in await client.channels(target)}[label] != "closed":
            pass


@pytest.mark.parametrize("point", PLAIN)
async def test_a_daemon_dies_when_it_hands_over_to_a_plain_peer(tmp_path, point):
    async with Stage(tmp_path) as stage:
        await hand_over_to_a_plain_peer(stage, point)


async def hand_over_to_a_plain_peer(stage: Stage, point: str) -> None:
    """What was in flight can be lost or come again; what was not goes out, in order."""
    count, hit = 60, 20
    username, fqn = TARGET
    await stage.rendezvous.start()
    service = stage.daemon("alice")
    connection = stage.daemon(
        "bob", f'[[connection]]\nname = "{CONNECTION}"\nusername = "{username}"\nfqn = "{fqn}"\npeer = "plain"\n'
    )
    trial = Trial(stage, service, connection)
    await service.start()
    numbers: asyncio.Queue[int] = asyncio.Queue()

    async def take(channel: Channel, _connection_id: str) -> None:
        async for message in channel:
            numbers.put_nowait(int(message.data))

    async with patient_client(service.socket, "far") as far:
        await far.expose_service(username, fqn, handler=take, polling_interval=0.2)
        await connection.start(f"{point}:{hit}")
        async with patient_client(connection.socket, "near") as near:
            dying = asyncio.create_task(trial.survive(CONNECTING), name="survive")
            channel = await near.attach(CONNECTION, "main")
            for number in range(1, count + 1):
                await channel.send(str(number))
            await dying
            taken = [0]
            while taken[-1] < count:
                taken.append(await asyncio.wait_for(numbers.get(), PATIENCE))
    left = list(range(hit + 1, count + 1))
    assert taken[-len(left) :] == left
    assert set(taken[: -len(left)]) <= set(range(hit + 1))
