"""The shell around the link machine, where no data channel is needed."""

from __future__ import annotations

import asyncio
from typing import Any

from rondevud import clock
from rondevud.durable.effects import SessionFailed
from rondevud.durable.link import LinkSettings
from rondevud.durable.session import DurableSession, Environment
from rondevud.records import Role, SessionRecord
from rondevud.store.memory import MemoryStore


class Owner:
    """Fails at the first thing it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def session_failed(self, session: Any, effect: SessionFailed) -> None:
        self.told.append(effect.code)
        if len(self.told) == 1:
            raise RuntimeError("a bug")


async def test_one_effect_that_fails_does_not_keep_the_others_from_being_carried_out(caplog):
    memory = MemoryStore(asyncio.get_running_loop())
    environment = Environment(memory, memory, clock, lambda *_, **__: 0, 0, "test")
    record, owner = SessionRecord("conn-1", Role.CONNECTING, "chat", b"", b""), Owner()
    session = DurableSession(
        record,
        [],
        environment=environment,
        settings=LinkSettings(daemon="test"),
        configure=lambda *_: None,
        owner=owner,
        service=None,
    )
    for code in ("first", "second"):
        session.machine._effects.append(SessionFailed(code, "for a test"))
    session._flush()
    assert owner.told == ["first", "second"]
    assert "RuntimeError: a bug" in caplog.text
    session.stop()
    await memory.close()
