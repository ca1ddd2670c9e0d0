"""When a service publishes again, where no signalling server is needed."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rondevud import clock
from rondevud.durable.service import DurableService
from rondevud.durable.session import Environment
from rondevud.durable.settings import ServiceSettings
from rondevud.errors import SignallingUnreachable
from rondevud.records import PeerKind, Role, SessionRecord
from rondevud.store.memory import MemoryStore


@pytest.mark.parametrize(("missed", "longest"), [(True, 2.0), (False, 36.0)])
async def test_a_service_that_misses_peers_tries_soon_to_publish_at_first(missed, longest, monkeypatch):
    memory = MemoryStore(asyncio.get_running_loop())
    now = 100.0
    monkeypatch.setattr(clock, "monotonic", lambda: now)
    service = DurableService(
        ServiceSettings("alice", "com.example.chat@1.0.0"),
        environment=Environment(memory, memory, clock, lambda *_, **__: 0, 0, "test"),
        signalling=cast("Any", SimpleNamespace(publisher=lambda *_: None)),
        engine=cast("Any", None),
        configure=cast("Any", lambda *_: None),
    )
    if missed:
        service.restore(SessionRecord("conn-1", Role.SERVICE, service.name, b"s", b"t", kind=PeerKind.LINK), [])
    error = SignallingUnreachable("away")
    delays = [service._publish_delay(error) for _ in range(8)]
    assert max(delays) <= longest
    assert missed or min(delays[5:]) >= 24.0
    assert service._publish_delay(SignallingUnreachable("busy", retry_after=40.0)) == 40.0
    now += 61.0
    assert service._publish_delay(error) >= 24.0
    await memory.close()
