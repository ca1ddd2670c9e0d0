from __future__ import annotations

import asyncio
import gc
from typing import Any

import aioice
import pytest
from aioice import stun

from rondevud.errors import TransportError
from rondevud.transport.base import IceServer
from rondevud.transport.ice import LOOPBACK, ServerRotation, bound_gathering, is_from_engine, tasks_of


class TestServers:
    def test_none_are_named_when_none_are_configured(self):
        assert ServerRotation([]).take() == []

    def test_each_connection_gets_the_next_of_each_kind(self):
        rotation = ServerRotation(
            [
                IceServer(("stun:a.example", "stun:b.example:3479")),
                IceServer(("turn:c.example?transport=tcp",), "user", "secret"),
            ]
        )
        taken = [[server.url for server in rotation.take()] for _ in range(3)]
        assert taken == [
            ["stun:a.example", "turn:c.example?transport=tcp"],
            ["stun:b.example:3479", "turn:c.example?transport=tcp"],
            ["stun:a.example", "turn:c.example?transport=tcp"],
        ]
        assert rotation.take()[1][1:] == ("user", "secret")

    @pytest.mark.parametrize("url", ["", "a.example", "http://a.example", "stun:", "stun:a?transport=udp", "turn:a:x"])
    def test_a_url_that_cannot_be_used_is_refused_by_name(self, url):
        with pytest.raises(TransportError, match="ice_servers"):
            ServerRotation([IceServer((url,))])


class TestGathering:
    async def test_without_any_address_loopback_is_used(self):
        connection = aioice.Connection(ice_controlling=True)
        bound_gathering(connection, 0.1)
        try:
            found = await connection.get_component_candidates(component=1, addresses=[])
            assert LOOPBACK[0] in {candidate.host for candidate in found}
        finally:
            await close(connection)

    async def test_with_an_address_loopback_is_left_out(self):
        connection = aioice.Connection(ice_controlling=True)
        bound_gathering(connection, 0.1)
        try:
            found = await connection.get_component_candidates(component=1, addresses=["127.0.0.2"])
            assert [candidate.host for candidate in found] == ["127.0.0.2"]
        finally:
            await close(connection)

    async def test_servers_get_no_more_than_the_time_given(self):
        connection = aioice.Connection(ice_controlling=True, stun_server=("127.0.0.1", 9))
        bound_gathering(connection, 0.05)
        try:
            async with asyncio.timeout(4):  # the library on its own waits 5 s
                await connection.get_component_candidates(component=1, addresses=["127.0.0.1"])
        finally:
            await close(connection)


async def close(connection: aioice.Connection) -> None:
    await connection.close()


class TestTasks:
    async def test_methods_of_an_object_are_found_among_all_tasks(self):
        class Thing:
            async def wait(self) -> None:
                await asyncio.Event().wait()

        mine, other = Thing(), Thing()
        tasks = {asyncio.create_task(mine.wait()), asyncio.create_task(mine.wait())}
        others = asyncio.create_task(other.wait())
        await asyncio.sleep(0)
        assert tasks_of([mine]) == tasks
        for task in (*tasks, others):
            task.cancel()
        await asyncio.wait({*tasks, others})
        assert tasks_of([mine, other]) == set()


class Closed:
    """What sends a request over a socket that has gone."""

    def send_stun(self, message: stun.Message, addr: tuple[str, int]) -> None:
        raise ConnectionError("gone")


async def fail() -> None:
    raise RuntimeError("ours")


class TestOrigin:
    async def reported(self, start: Any) -> list[dict[str, Any]]:
        """What the loop's exception handler is told of a task whose exception nobody fetches."""
        loop = asyncio.get_running_loop()
        contexts: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _, context: contexts.append(context))
        task = loop.create_task(start)
        await asyncio.wait({task})
        del task
        gc.collect()
        loop.set_exception_handler(None)
        return contexts

    async def test_a_task_of_the_library_is_its_own(self):
        request = stun.Message(stun.Method.BINDING, stun.Class.REQUEST)
        contexts = await self.reported(stun.Transaction(request, ("127.0.0.1", 9), Closed()).run())
        assert [is_from_engine(context) for context in contexts] == [True]

    async def test_a_task_of_ours_is_not(self):
        contexts = await self.reported(fail())
        assert [is_from_engine(context) for context in contexts] == [False]

    async def test_a_task_of_ours_that_called_the_library_is_not(self):
        async def call() -> None:
            request = stun.Message(stun.Method.BINDING, stun.Class.REQUEST)
            await stun.Transaction(request, ("127.0.0.1", 9), Closed()).run()

        contexts = await self.reported(call())
        assert [is_from_engine(context) for context in contexts] == [False]

    async def test_a_pending_task_of_the_library_that_is_named_without_an_exception_is_its_own(self):
        connection = aioice.Connection(ice_controlling=True)
        task = asyncio.create_task(connection.get_event())
        await asyncio.sleep(0)
        assert is_from_engine({"message": "Task was destroyed but it is pending!", "task": task})
        task.cancel()
        await asyncio.wait({task})
        await close(connection)

    def test_a_message_without_anything_is_nobodys(self):
        assert not is_from_engine({"message": "something happened"})
