"""When a connection dials again, where neither a link nor a signalling server is needed."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from rondevud import clock
from rondevud.durable.connection import DurableConnection
from rondevud.durable.dialling import DialError
from rondevud.durable.session import Environment
from rondevud.durable.settings import ConnectionSettings, Reconnect
from rondevud.records import Role, SessionRecord
from rondevud.store.memory import MemoryStore


class Away:
    """A signalling server that never answers."""

    async def discover(self, _username: str, _fqn: str) -> None:
        await asyncio.Event().wait()


@pytest.mark.parametrize(("contacted", "longest"), [(True, 2.0), (False, 30.0)])
async def test_after_a_start_of_the_daemon_a_link_there_was_is_dialled_as_one_just_lost(contacted, longest):
    """Both machines of a room come back after a power cut: who is first does not wait long for the other."""
    memory = MemoryStore(asyncio.get_running_loop())
    connection = DurableConnection(
        ConnectionSettings("chat", "alice", "com.example.chat@1.0.0", reconnect=Reconnect(None, jitter=0.0)),
        SessionRecord("conn-1", Role.CONNECTING, "chat", b"", b"", contacted=contacted),
        [],
        environment=Environment(memory, memory, clock, lambda *_, **__: 0, 0, "test"),
        signalling=cast("Any", Away()),
        engine=cast("Any", None),
        configure=cast("Any", None),
    )
    await connection.start()
    delays = [connection._failed_dial(DialError("404", "not_found", counts=True)) for _ in range(8)]
    assert max(delay or 0 for delay in delays) <= longest
    assert contacted or delays[5:] == [30.0, 30.0, 30.0]
    await connection.stop()
    await memory.close()
