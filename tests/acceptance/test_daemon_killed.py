"""Daemons are killed, frozen and stopped while programs exchange messages: nothing lost, nothing twice, all in order."""

from __future__ import annotations

import asyncio
import signal

import pytest

from tests.acceptance.processes import (
    CONNECTION,
    LIMIT,
    PATIENCE,
    SERVICE,
    Daemon,
    Process,
    Stage,
    assert_exactly_once_in_order,
)

pytestmark = [pytest.mark.acceptance, pytest.mark.once, LIMIT]

AHEAD = 600
"""Messages that a program sends beyond what it has received: what is under way at a kill."""


async def start_both_ways(
    stage: Stage, service: Daemon, connection: Daemon, count: int
) -> tuple[dict[Daemon, str], list[Process]]:
    """A program at each daemon that sends to the other and receives from it; and the connection ids."""
    ids = {service: await service.connection_id(), connection: await connection.connection_id()}
    programs = [
        await stage.program(
            "both_ways", daemon.name, daemon.socket, ids[daemon], "main", "LOG", daemon.name, count, AHEAD
        )
        for daemon in (service, connection)
    ]
    return ids, programs


async def finish(stage: Stage, programs: list[Process], count: int, within: float = PATIENCE) -> None:
    """Wait for the programs and judge their logs."""
    try:
        for program in programs:
            assert await program.exited(within) == 0
    finally:  # what is missing says more than that a program waits for it
        assert_exactly_once_in_order(stage.read_log("alice"), "bob", count)
        assert_exactly_once_in_order(stage.read_log("bob"), "alice", count)
    for name in ("alice", "bob"):
        accepted = [words[1] for words in stage.read_log(name) if words[0] == "accepted"]
        assert accepted == [str(number) for number in range(1, count + 1)]


async def assert_drained(ids: dict[Daemon, str]) -> None:
    """Nothing is left in any queue, and the connections are those of the beginning."""
    for daemon, connection_id in ids.items():
        assert await daemon.connection_id() == connection_id
        assert (await daemon.queue(connection_id, "main"))["queue_size"] == 0
        await daemon.until_nothing_waits(connection_id, "main")


@pytest.mark.parametrize("which", ["service", "connection"])
async def test_a_daemon_frozen_for_eight_seconds_loses_and_repeats_nothing(tmp_path, which):
    async with Stage(tmp_path) as stage:
        service, connection = await stage.pair()
        ids, programs = await start_both_ways(stage, service, connection, 4_000)
        await programs[0].until_count("received", 1_000)
        frozen = service if which == "service" else connection
        frozen.process.send(signal.SIGSTOP)
        await asyncio.sleep(8)  # the pause is the subject of the test
        frozen.process.send(signal.SIGCONT)
        await finish(stage, programs, 4_000)
        await assert_drained(ids)


async def test_what_waits_in_an_outbox_for_an_absent_peer_outlives_a_kill(tmp_path):
    async with Stage(tmp_path) as stage:
        service, connection = await stage.pair()
        target = await service.connection_id()
        await service.kill()
        sender = await stage.program("sender", "sender", connection.socket, CONNECTION, "main", "LOG", "bob", 2_000)
        assert await sender.exited() == 0
        await connection.restart()
        queue = await connection.queue(CONNECTION, "main")
        assert queue["queue_size"] == 2_000
        await service.start()
        receiver = await stage.program("receiver", "receiver", service.socket, target, "main", "LOG", 2_000, 100)
        assert await receiver.exited() == 0
        assert_exactly_once_in_order(stage.read_log("receiver"), "bob", 2_000)


async def test_what_waits_in_an_inbox_for_an_absent_program_outlives_a_kill(tmp_path):
    async with Stage(tmp_path) as stage:
        service, connection = await stage.pair()
        target = await service.connection_id()
        sender = await stage.program("sender", "sender", connection.socket, CONNECTION, "main", "LOG", "bob", 2_000)
        assert await sender.exited() == 0
        async with connection.client() as client:
            await client.wait(CONNECTION, "drained", PATIENCE)
        await service.restart()
        queue = await service.queue(target, "main")
        assert queue["waiting"] == 2_000
        receiver = await stage.program("receiver", "receiver", service.socket, target, "main", "LOG", 2_000, 100)
        assert await receiver.exited() == 0
        assert_exactly_once_in_order(stage.read_log("receiver"), "bob", 2_000)


@pytest.mark.parametrize("which", ["service", "connection"])
async def test_an_orderly_stop_under_load_ends_in_time_and_loses_nothing(tmp_path, which):
    async with Stage(tmp_path) as stage:
        service, connection = await stage.pair()
        ids, programs = await start_both_ways(stage, service, connection, 4_000)
        await programs[0].until_count("received", 1_000)
        stopped = service if which == "service" else connection
        assert await stopped.stop() == 0
        await stopped.start()
        await finish(stage, programs, 4_000)
        await assert_drained(ids)


async def test_a_second_sigterm_ends_a_daemon_that_is_still_stopping(tmp_path):
    async with Stage(tmp_path) as stage:
        service, connection = await stage.pair()
        service.process.send(signal.SIGSTOP)  # so that goodbye is not answered, and stopping takes a while
        connection.process.send(signal.SIGTERM)
        await connection.until_stopping()
        connection.process.send(signal.SIGTERM)
        assert await connection.process.exited() == 128 + signal.SIGTERM
        service.process.send(signal.SIGCONT)


async def test_a_service_and_its_program_come_back_when_daemon_and_signalling_server_were_killed(tmp_path):
    """The signalling server forgets everything: the service registers, claims and publishes again by itself."""
    async with Stage(tmp_path) as stage:
        await stage.rendezvous.start("memory")
        service, connection = stage.daemon("alice"), stage.daemon("bob")
        await service.start()
        echo = await stage.program("echo", "echo", service.socket, *SERVICE, "LOG")
        await echo.until_count("exposed", 1)
        await connection.start()
        async with connection.client() as client:
            declared = await client.connect(*SERVICE, name=CONNECTION)
            await declared.wait("connected", PATIENCE)
        connection_id = await connection.connection_id()
        receiver = await stage.program("receiver", "receiver", connection.socket, CONNECTION, "main", "LOG", 300, 10)

        async def send_and_receive(upto: int) -> None:
            sender = await stage.program("sender", "sender", connection.socket, CONNECTION, "main", "LOG", "bob", upto)
            assert await sender.exited() == 0
            await receiver.until_count("received", upto)
            await service.until_nothing_waits(target, "main")  # else the program, rightly, would echo it again

        target = await service.connection_id()
        await send_and_receive(100)
        for killed, upto in ((service, 200), (connection, 300)):
            await killed.kill()
            await stage.rendezvous.restart("memory")
            await killed.start()
            await send_and_receive(upto)
        assert await receiver.exited() == 0
        assert_exactly_once_in_order(stage.read_log("receiver"), "bob", 300)
        assert (await connection.connection_id(), await service.connection_id()) == (connection_id, target)
        assert echo.exit_code is None
