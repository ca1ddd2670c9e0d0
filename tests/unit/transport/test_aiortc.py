"""What is particular to the engine on aiortc; what every engine does is in tests/integration/test_transport.py."""

from __future__ import annotations

import asyncio
import gc
import pathlib
import subprocess
import sys
from typing import Any

import pytest

from rondevud.errors import TransportError
from rondevud.transport import aiortc, aiortc_channel
from rondevud.transport.aiortc import AiortcEngine
from rondevud.transport.aiortc_channel import Utf8Label
from rondevud.transport.base import ConnectionState

PATIENCE = 30.0


@pytest.fixture
async def engine():
    made = AiortcEngine()
    yield made
    await asyncio.wait_for(made.close(), PATIENCE)


def test_importing_the_engine_does_not_load_the_library():
    program = """
import sys
import rondevud.transport.aiortc
rondevud.transport.aiortc.AiortcEngine()
print(sorted({"aiortc", "aioice", "av", "OpenSSL"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("text", ["", "plain", "chät", "чат", "聊天", "🚀"])
def test_a_label_counts_bytes_and_is_otherwise_the_text(text):
    label = Utf8Label(text)
    assert len(label) == len(text.encode())
    assert label == text
    assert label.encode() == text.encode()
    assert type(str.__str__(label)) is str


async def test_a_server_that_cannot_be_used_is_refused_when_the_engine_is_made():
    from rondevud.transport.base import IceServer

    with pytest.raises(TransportError, match="stuns"):
        AiortcEngine([IceServer(("stuns:a.example",))])


async def test_no_server_is_asked_that_nobody_named(engine):
    connection = engine.create_peer_connection()
    connection.create_data_channel("first")
    ice = connection._pc.sctp.transport.transport._connection
    assert ice.stun_server is None
    assert ice.turn_server is None


class TestEarlyMessages:
    async def test_they_are_bounded_in_number_and_counted(self, engine, monkeypatch, caplog):
        monkeypatch.setattr(aiortc_channel, "EARLY_MESSAGES", 3)
        channel = engine.create_peer_connection().create_data_channel("first")
        for number in range(5):
            channel._channel.emit("message", str(number))
        assert await self.delivered(channel, 3) == ["0", "1", "2"]
        assert engine.counters["early_messages_dropped"] == 2
        assert caplog.text.count("messages are dropped") == 1

    async def test_they_are_bounded_in_bytes(self, engine, monkeypatch):
        monkeypatch.setattr(aiortc_channel, "EARLY_BYTES", 10)
        channel = engine.create_peer_connection().create_data_channel("first")
        for size in (6, 6, 4):
            channel._channel.emit("message", bytes(size))
        assert await self.delivered(channel, 2) == [bytes(6), bytes(4)]
        assert engine.counters["early_messages_dropped"] == 1

    async def test_what_comes_between_setting_and_delivering_stays_behind_them(self, engine):
        channel = engine.create_peer_connection().create_data_channel("first")
        channel._channel.emit("message", "0")
        seen: asyncio.Queue[Any] = asyncio.Queue()
        channel.on_message = seen.put_nowait
        channel._channel.emit("message", "1")
        assert [await asyncio.wait_for(seen.get(), PATIENCE) for _ in range(2)] == ["0", "1"]
        channel._channel.emit("message", "2")
        assert seen.get_nowait() == "2"

    async def test_they_are_delivered_before_the_end_of_the_channel(self, engine):
        channel = engine.create_peer_connection().create_data_channel("first")
        channel._channel.emit("message", "0")
        seen: list[Any] = []
        channel.on_message = seen.append
        channel.on_close = lambda: seen.append("close")
        channel._channel._setReadyState("closed")
        assert seen == ["0", "close"]

    async def test_those_that_nobody_read_are_counted_when_the_channel_ends(self, engine):
        channel = engine.create_peer_connection().create_data_channel("first")
        for number in range(3):
            channel._channel.emit("message", str(number))
        channel.close()
        assert engine.counters["early_messages_dropped"] == 3

    async def delivered(self, channel: Any, count: int) -> list[Any]:
        seen: asyncio.Queue[Any] = asyncio.Queue()
        channel.on_message = seen.put_nowait
        return [await asyncio.wait_for(seen.get(), PATIENCE) for _ in range(count)]


async def test_messages_after_a_local_close_are_counted_and_not_delivered(engine):
    channel = engine.create_peer_connection().create_data_channel("first")
    seen: list[Any] = []
    channel.on_message = seen.append
    emit = channel._received
    channel.close()
    emit("late")
    assert seen == []
    assert engine.counters["messages_after_close"] == 1


async def linked(engine: AiortcEngine) -> tuple[Any, Any]:
    """Two connections with an open channel between them."""
    caller, callee = engine.create_peer_connection(), engine.create_peer_connection()
    opened = asyncio.Event()
    caller.create_data_channel("first").on_open = opened.set
    answer = await callee.create_answer(await caller.create_offer())
    await caller.accept_answer(answer)
    await asyncio.wait_for(opened.wait(), PATIENCE)
    return caller, callee


def descriptors() -> int:
    return sum(1 for _ in pathlib.Path("/proc/self/fd").iterdir())


@pytest.mark.webrtc
class TestClosingByForce:
    async def test_a_library_that_hangs_is_closed_without_it(self, engine, monkeypatch):
        monkeypatch.setattr(aiortc, "CLOSE_TIMEOUT", 0.05)
        engine.create_peer_connection()  # the library is loaded
        tasks, before = asyncio.all_tasks(), descriptors()
        caller, callee = await linked(engine)

        async def hang() -> None:
            await asyncio.Event().wait()

        for each in (caller, callee):
            monkeypatch.setattr(each._pc, "close", hang)
        await asyncio.wait_for(asyncio.gather(caller.close(), callee.close()), PATIENCE)
        assert engine.counters["forced_closes"] == 2
        assert asyncio.all_tasks() <= tasks
        async with asyncio.timeout(PATIENCE):
            while descriptors() > before:
                await asyncio.sleep(0)

    async def test_a_library_that_fails_is_closed_without_it(self, engine, monkeypatch):
        tasks = asyncio.all_tasks()
        caller, callee = await linked(engine)

        async def fail() -> None:
            raise KeyError("a bug in the library")

        monkeypatch.setattr(caller._pc, "close", fail)
        await asyncio.wait_for(asyncio.gather(caller.close(), callee.close()), PATIENCE)
        assert engine.counters["close_errors"] == 1
        assert asyncio.all_tasks() <= tasks


@pytest.mark.webrtc
async def test_hostile_frames_end_the_connection_and_nothing_else(engine):
    loop = asyncio.get_running_loop()
    stray: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: None if engine.absorb(context) else stray.append(context))
    caller, callee = await linked(engine)
    ended = asyncio.Event()
    callee.on_state = lambda state: ended.set() if state is ConnectionState.CLOSED else None
    # An OPEN for a stream that is open, on which the library asserts.
    await caller._pc.sctp._send(next(iter(caller._pc.sctp._data_channels)), 50, b"\x03" + bytes(11))
    await asyncio.wait_for(ended.wait(), PATIENCE)
    await asyncio.wait_for(engine.close(), PATIENCE)
    del caller, callee
    gc.collect()
    loop.set_exception_handler(None)
    assert not stray


@pytest.mark.webrtc
async def test_the_end_of_the_association_alone_ends_the_connection(engine):
    caller, callee = await linked(engine)
    ended = asyncio.Event()
    callee.on_state = lambda state: ended.set() if state is ConnectionState.CLOSED else None
    await caller._pc.sctp._abort()
    await asyncio.wait_for(ended.wait(), PATIENCE)


@pytest.mark.webrtc
async def test_a_connection_never_goes_back_to_an_earlier_state(engine):
    caller, _ = await linked(engine)
    states: list[ConnectionState] = []
    caller.on_state = states.append
    for name in ("connecting", "new"):
        caller._pc._RTCPeerConnection__connectionState = name
        caller._pc.emit("connectionstatechange")
    assert states == []
    assert caller.state is ConnectionState.CONNECTED


NAMESPACE = """
import asyncio
from rondevud.transport.aiortc import AiortcEngine

async def main():
    engine = AiortcEngine()
    caller, callee = engine.create_peer_connection(), engine.create_peer_connection()
    opened = asyncio.Event()
    caller.create_data_channel("first").on_open = opened.set
    await caller.accept_answer(await callee.create_answer(await caller.create_offer()))
    await asyncio.wait_for(opened.wait(), 20)
    print(caller.selected_pair.local.rpartition(":")[0])
    await engine.close()

asyncio.run(main())
"""


@pytest.mark.webrtc
def test_two_connections_meet_on_a_machine_without_a_network(tmp_path):
    inside = ["unshare", "--map-root-user", "--net", "sh", "-c"]
    try:
        able = subprocess.run([*inside, "ip link set lo up"], capture_output=True, timeout=PATIENCE, check=False)
    except FileNotFoundError:
        pytest.skip("unshare is not installed")
    if able.returncode:
        pytest.skip(f"no network namespace can be made here: {able.stderr!r}")
    program = tmp_path / "meet.py"
    program.write_text(NAMESPACE)
    command = [*inside, 'ip link set lo up && exec "$0" "$1"', sys.executable, str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.stdout.strip() in {"127.0.0.1", "[::1]"}, done.stderr
