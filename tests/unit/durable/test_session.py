"""The shell around the link machine, where no data channel is needed."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from rondevud import clock
from rondevud.durable.effects import SessionFailed, Transmit
from rondevud.durable.link import LinkSettings
from rondevud.durable.session import DurableSession, Environment
from rondevud.durable.settings import ChannelSettings, InboxLimits, OutboxLimits
from rondevud.records import Durability, Role, SessionRecord
from rondevud.store.memory import MemoryStore
from rondevud.transport.base import RELIABLE


class Owner:
    """Fails at the first thing it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.discarded: list[Any] = []

    def discard(self, connection: Any) -> None:
        self.discarded.append(connection)

    def session_failed(self, session: Any, effect: SessionFailed) -> None:
        self.told.append(effect.code)
        if len(self.told) == 1:
            raise RuntimeError("a bug")


def configure(_label: str, _options: Any, _plain: bool) -> ChannelSettings:
    return ChannelSettings(Durability.MEMORY, OutboxLimits(), InboxLimits(), b"", RELIABLE)


def make_session(owner: Owner, **settings: Any) -> DurableSession:
    memory = MemoryStore(asyncio.get_running_loop())
    return DurableSession(
        SessionRecord("conn-1", Role.CONNECTING, "chat", b"", b""),
        [],
        environment=Environment(memory, memory, clock, lambda *_, **__: 0, 0, "test"),
        settings=LinkSettings(daemon="test", **settings),
        configure=configure,
        owner=owner,
        service=None,
    )


async def test_one_effect_that_fails_does_not_keep_the_others_from_being_carried_out(caplog):
    owner = Owner()
    session = make_session(owner)
    for code in ("first", "second"):
        session.machine._effects.append(SessionFailed(code, "for a test"))
    session._flush()
    assert owner.told == ["first", "second"]
    assert "RuntimeError: a bug" in caplog.text
    session.stop()


def _fail(*_: Any) -> None:
    raise RuntimeError("a bug")


async def test_a_link_that_cannot_send_a_frame_is_given_up(caplog):
    """The frame is lost, and what follows it would only be a number too high, or nothing at all."""
    owner = Owner()
    session = make_session(owner)
    connection, channel = SimpleNamespace(), SimpleNamespace(buffered_amount=0, send=_fail)
    key = session._attach(connection, channel)
    session.machine._effects.append(Transmit(key, b"frame"))
    session._flush()
    await asyncio.sleep(0)
    assert owner.discarded == [connection]
    assert "RuntimeError: a bug" in caplog.text
    session.stop()


async def test_a_link_on_which_a_frame_cannot_be_taken_is_given_up(caplog, monkeypatch):
    owner = Owner()
    session = make_session(owner)
    connection, channel = SimpleNamespace(), SimpleNamespace(buffered_amount=0)
    session._attach(connection, channel)
    monkeypatch.setattr(session.machine, "receive", _fail)
    channel.on_message(b"frame")
    await asyncio.sleep(0)
    assert owner.discarded == [connection]
    assert "RuntimeError: a bug" in caplog.text
    session.stop()


async def test_a_label_that_has_just_been_made_counts_once(monkeypatch):
    """The next one may be announced in the very turn of the loop in which it was made."""
    session = make_session(Owner(), max_channels=2)
    announced: list[bool] = []

    def flush() -> None:
        if not announced:
            announced.append(session.channels.peer_opened("second"))

    monkeypatch.setattr(session, "schedule_flush", flush)
    await session.channels.open("first", None, create=True)
    assert announced == [True]
    await session.channels.open("second", None, create=True)
    assert not session.channels.peer_opened("third")
    assert list(session.channels) == ["first", "second"]
    session.stop()
