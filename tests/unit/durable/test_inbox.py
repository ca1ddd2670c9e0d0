"""The inbox of a channel over a store that takes its time."""

from __future__ import annotations

import asyncio

import pytest

from rondevud.durable.inbox import Inbox, Receiver
from rondevud.records import AckIn, LoadSessions, OutMessage, Receive
from rondevud.store.memory import MemoryStore
from tests.unit.store.kit import NOW, PEER, make_channel


class Host:
    """The channel, as the inbox sees it: the store behind a door that can be held closed for deletions."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.held: list | None = None

    def execute(self, operation, done=None) -> None:
        if isinstance(operation, AckIn) and self.held is not None:
            self.held.append((operation, done))
        else:
            self.store.submit(operation, done)

    async def run(self, operation):
        return await self.store.execute(operation)

    def release(self) -> None:
        held, self.held = self.held, None
        for operation, done in held:
            self.store.submit(operation, done)

    def count(self, counter: str, amount: int = 1) -> None:
        pass


class Program:
    """Which messages it got, with their attempts."""

    def __init__(self) -> None:
        self.got: asyncio.Queue[tuple[str, int]] = asyncio.Queue()

    def messages(self, tag: int, rows: list) -> None:
        for payload, _, _, attempt in rows:
            self.got.put_nowait((payload, attempt))

    async def take(self, count: int) -> list[tuple[str, int]]:
        return [await self.got.get() for _ in range(count)]


@pytest.fixture
async def host():
    store = MemoryStore(asyncio.get_running_loop())
    yield Host(store)
    await store.close()


async def make_inbox(host: Host, count: int) -> tuple[Inbox, asyncio.Event]:
    """An inbox in which ``m1 … m<count>`` wait, and what is set when it is empty."""
    channel = await make_channel(host.store)
    items = tuple(OutMessage(number, f"m{number}") for number in range(1, count + 1))
    await host.store.execute(Receive(channel, b"", 0, PEER, count + 1, items, NOW))
    record = (await host.store.execute(LoadSessions())).channels[0]
    empty = asyncio.Event()
    inbox = Inbox(record, host, lambda _count, _size: inbox.count or empty.set(), lambda: None)
    return inbox, empty


async def attach(inbox: Inbox) -> tuple[Receiver, Program]:
    program = Program()
    receiver = await inbox.open("exclusive", program, takeover=False)
    receiver.credit(100)
    return receiver, program


async def test_what_is_acknowledged_while_a_deletion_runs_is_deleted_though_the_program_leaves(host):
    inbox, empty = await make_inbox(host, 10)
    host.held = []
    first, program = await attach(inbox)
    await program.take(10)
    first.ack(3)
    first.ack(10)
    first.close()
    host.release()
    await empty.wait()
    assert (await host.store.execute(LoadSessions())).channels[0].in_count == 0


async def test_the_next_program_begins_behind_what_was_acknowledged_whether_deleted_yet_or_not(host):
    inbox, _ = await make_inbox(host, 10)
    host.held = []
    first, program = await attach(inbox)
    await program.take(10)
    first.ack(3)
    first.ack(6)
    first.close()
    _, next_program = await attach(inbox)
    assert await next_program.take(4) == [("m7", 2), ("m8", 2), ("m9", 2), ("m10", 2)]
    host.release()
