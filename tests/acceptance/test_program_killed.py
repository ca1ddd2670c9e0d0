"""Programs are killed: what the daemon had promised them holds for whoever comes next."""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.acceptance.processes import (
    CONNECTION,
    LIMIT,
    PATIENCE,
    Process,
    Stage,
    assert_exactly_once_in_order,
    assert_truthful,
    taken,
)

pytestmark = [pytest.mark.acceptance, pytest.mark.once, LIMIT]

MESSAGES = 1_000
ACK_EVERY = 50
ENDLESS = 10**6
"""More messages than any sender gets done before it is killed."""


def runs(log: list[list[str]]) -> list[list[list[str]]]:
    """The lines of each run of a program."""
    found: list[list[list[str]]] = []
    for words in log:
        if words[0] == "attached":
            found.append([])
        found[-1].append(words)
    return found


def assert_begins_behind_acknowledged(before: list[list[str]], after: list[list[str]]) -> None:
    """The first message of a run follows what the run before it had acknowledged, all others of that one come again.

    A kill between ``acknowledging`` and ``acknowledged`` leaves open whether the daemon had read it.
    """
    numbers = {words[1]: int(words[2]) for words in before if words[0] in {"received", "again"}}
    done = [numbers[words[1]] for words in before if words[0] == "acknowledged"]
    tried = [numbers[words[1]] for words in before if words[0] == "acknowledging"]
    messages = [words for words in after if words[0] in {"received", "again"}]
    assert int(messages[0][2]) - 1 in {done[-1], tried[-1]}
    again = {words[1] for words in messages if words[0] == "again"}
    assert again == {i for i, number in numbers.items() if number >= int(messages[0][2])}
    assert all(int(words[3]) > 1 for words in messages if words[0] == "again")


async def test_a_killed_receiver_finds_what_it_had_not_acknowledged_and_only_that(tmp_path):
    moments = random.Random(4711)
    async with Stage(tmp_path) as stage:
        service, connection = await stage.pair()
        target = await service.connection_id()
        sender = await stage.program("sender", "sender", connection.socket, CONNECTION, "main", "LOG", "bob", MESSAGES)
        for _ in range(4):
            receiver = await stage.program(
                "receiver", "receiver", service.socket, target, "main", "LOG", MESSAGES, ACK_EVERY
            )
            await receiver.until_count("received", moments.randrange(ACK_EVERY + 1, 200))
            await receiver.kill()
        receiver = await stage.program(
            "receiver", "receiver", service.socket, target, "main", "LOG", MESSAGES, ACK_EVERY
        )
        assert await receiver.exited() == 0
        assert await sender.exited() == 0

        log = stage.read_log("receiver")
        assert_exactly_once_in_order(log, "bob", MESSAGES)
        for before, after in zip(runs(log), runs(log)[1:], strict=False):
            assert_begins_behind_acknowledged(before, after)
        await service.until_nothing_waits(target, "main")


async def test_attempts_begin_at_one_for_what_nobody_had_seen_and_at_two_for_what_somebody_had(tmp_path):
    async with Stage(tmp_path) as stage:
        service, connection = await stage.pair()
        target = await service.connection_id()
        for label in ("unseen", "seen"):
            sender = await stage.program("sender", label, connection.socket, CONNECTION, label, "LOG", label, 100)
            assert await sender.exited() == 0
        async with connection.client() as client:
            await client.wait(CONNECTION, "drained", PATIENCE)
        seen = ("receiver", "seen-in", service.socket, target, "seen", "LOG", 100)
        unseen = ("receiver", "unseen-in", service.socket, target, "unseen", "LOG", 100)
        receiver = await stage.program(*seen, 0)
        await receiver.until_count("received", 100)
        await receiver.kill()
        await service.restart()
        for program in (seen, unseen):
            receiver = await stage.program(*program, 10)
            assert await receiver.exited() == 0

        first, second = runs(stage.read_log("seen-in"))
        assert [words[3] for words in first if words[0] == "received"] == ["1"] * 100
        assert [words[3] for words in second if words[0] == "again"] == ["2"] * 100
        assert [words[1] for words in first if words[0] == "received"] == [w[1] for w in second if w[0] == "again"]
        assert [attempt for _, _, attempt in taken(stage.read_log("unseen-in"))] == [1] * 100


async def test_what_a_killed_sender_knew_to_be_accepted_arrives_once_and_nothing_arrives_twice(tmp_path):
    moments = random.Random(815)
    async with Stage(tmp_path) as stage:
        service, connection = await stage.pair()
        target = await service.connection_id()
        receiver = await stage.program(
            "receiver", "receiver", service.socket, target, "main", "LOG", ENDLESS, ACK_EVERY
        )
        send = ("sender", "sender", connection.socket, CONNECTION, "main", "LOG", "bob")
        for _ in range(5):
            sender = await stage.program(*send, ENDLESS)
            await sender.until_count("accepted", moments.randrange(1, 1_000))
            await sender.kill()
        last = begun(stage) + 100
        sender = await stage.program(*send, last)
        assert await sender.exited() == 0
        await receiver.until(lambda: has_received(receiver, last), f"message {last}")
        await receiver.kill()
        assert_accepted_arrived(stage)


async def test_programs_killed_together_with_their_daemons_find_what_was_promised(tmp_path):
    async with Stage(tmp_path) as stage:
        service, connection = await stage.pair()
        target = await service.connection_id()
        receive = ("receiver", "receiver", service.socket, target, "main", "LOG", ENDLESS, ACK_EVERY)
        send = ("sender", "sender", connection.socket, CONNECTION, "main", "LOG", "bob")
        receiver = await stage.program(*receive)
        for round_ in range(4):
            sender = await stage.program(*send, ENDLESS)
            await receiver.until_count("received", receiver.count("received") + 300)
            killed, program = ((connection, sender), (service, receiver))[round_ % 2]
            await asyncio.gather(killed.kill(), program.kill())
            await sender.kill()
            await killed.start()
            if killed is service:
                receiver = await stage.program(*receive)
        last = begun(stage) + 100
        sender = await stage.program(*send, last)
        assert await sender.exited() == 0
        await receiver.until(lambda: has_received(receiver, last), f"message {last}")
        await receiver.kill()
        assert_accepted_arrived(stage)


def begun(stage: Stage) -> int:
    """The last number that the sender has begun to send."""
    return max(int(words[1]) for words in stage.read_log("sender") if words[0] == "sending")


def has_received(receiver: Process, number: int) -> bool:
    return any(words[0] == "received" and words[2] == str(number) for words in receiver.lines[-500:])


def assert_accepted_arrived(stage: Stage) -> None:
    """What the sender knew to be accepted arrived once, what it only began to send at most once, all in order."""
    log, sent = stage.read_log("receiver"), stage.read_log("sender")
    numbers = [number for _, number, _ in taken(log)]
    accepted = {int(words[1]) for words in sent if words[0] == "accepted"}
    begun = {int(words[1]) for words in sent if words[0] == "sending"}
    assert len(accepted) < len(begun)  # otherwise no kill came between
    assert accepted <= set(numbers) <= begun
    assert numbers == sorted(set(numbers))
    assert_truthful(log, "bob")
