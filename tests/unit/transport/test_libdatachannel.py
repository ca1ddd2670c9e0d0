"""What is particular to the engine on libdatachannel; what every engine does is in tests/integration/test_transport.py."""

from __future__ import annotations

import asyncio
import json
import logging
import queue
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from rondevud.errors import ConfigError, TransportError
from rondevud.transport import choice, libdatachannel_connection, libdatachannel_threads
from rondevud.transport.base import ConnectionState, IceServer
from rondevud.transport.libdatachannel import LibdatachannelEngine
from rondevud.transport.libdatachannel_threads import CLOSE_ATTEMPTS, Closer, Inbox
from tests.engines import HAS_WHEELS

PATIENCE = 60.0

needs_library = pytest.mark.skipif(not HAS_WHEELS, reason="there is no libdatachannel for this Python or machine")


@pytest.fixture
async def engine():
    made = LibdatachannelEngine()
    yield made
    await asyncio.wait_for(made.close(), PATIENCE)


def run_python(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False, **options
    )


def test_importing_the_engine_does_not_load_the_library():
    program = """
import sys
import rondevud.transport.libdatachannel
rondevud.transport.libdatachannel.LibdatachannelEngine()
print(sorted({"libdatachannel", "aiortc", "aioice"} & set(sys.modules)))
"""
    done = run_python("-c", program)
    assert done.stdout.strip() == "[]", done.stderr


class TestChoice:
    @needs_library
    def test_auto_takes_the_native_engine_and_does_not_load_the_other(self):
        program = """
import sys
from rondevud.transport.choice import make_engine
print(make_engine("auto").name, "aiortc" in sys.modules, "rondevud.transport.aiortc" in sys.modules)
"""
        done = run_python("-c", program)
        assert done.stdout == "libdatachannel False False\n", done.stderr

    def test_each_engine_can_be_asked_for(self):
        assert choice.make_engine("aiortc").name == "aiortc"
        if HAS_WHEELS:
            assert choice.make_engine("libdatachannel").name == "libdatachannel"

    def test_without_the_library_auto_is_aiortc_and_asking_for_it_says_what_is_missing(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "libdatachannel", None)
        assert choice.make_engine("auto").name == "aiortc"
        with pytest.raises(TransportError, match="libdatachannel-py"):
            choice.make_engine("libdatachannel")

    def test_without_the_library_the_configuration_is_refused(self, monkeypatch):
        from rondevud.config import parse

        monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
        with pytest.raises(ConfigError, match=r'transport\.engine: "libdatachannel" is not installed'):
            parse('[transport]\nengine = "libdatachannel"\n', "c.toml")

    @pytest.mark.parametrize("url", ["turns:a.example", "turn:a.example?transport=tcp"])
    def test_a_server_that_it_cannot_reach_is_refused_and_left_to_aiortc_by_auto(self, url):
        servers = [IceServer((url,), "user", "secret")]
        with pytest.raises(TransportError, match="UDP only"):
            LibdatachannelEngine(servers)
        assert choice.choose("auto", servers) == choice.make_engine("auto", servers).name == "aiortc"


class TestInbox:
    async def test_reports_of_many_threads_are_handled_in_their_order_and_wake_the_loop_once_for_a_batch(
        self, monkeypatch
    ):
        loop = asyncio.get_running_loop()
        wakes: list[Any] = []
        wake = loop.call_soon_threadsafe
        monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *each: wakes.append(each) or wake(*each))
        inbox, seen, done = Inbox(loop), [], asyncio.Event()

        def report(name: int) -> None:
            for number in range(500):
                inbox.put(seen.append, (name, number))

        threads = [threading.Thread(target=report, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()  # the loop stands meanwhile
        assert len(wakes) == 1
        inbox.put(done.set)
        await asyncio.wait_for(done.wait(), PATIENCE)
        for name in range(4):
            assert [number for who, number in seen if who == name] == list(range(500))

    async def test_a_report_that_fails_does_not_stop_those_behind_it(self, caplog):
        inbox, done = Inbox(asyncio.get_running_loop()), asyncio.Event()
        inbox.put(lambda: 1 / 0)
        inbox.put(done.set)
        with caplog.at_level(logging.ERROR):
            await asyncio.wait_for(done.wait(), PATIENCE)
        assert "ZeroDivisionError" in caplog.text

    def test_a_report_for_a_loop_that_has_closed_is_nobodys_surprise(self):
        loop = asyncio.new_event_loop()
        inbox = Inbox(loop)
        loop.close()
        inbox.put(lambda: None)


async def linked(engine: LibdatachannelEngine) -> tuple[Any, Any, Any, Any]:
    """Two connections, and an open channel between them as each has it; nobody listens to it."""
    caller, callee = engine.create_peer_connection(), engine.create_peer_connection()
    opened, shown = asyncio.Event(), asyncio.get_running_loop().create_future()
    near = caller.create_data_channel("first")
    near.on_open = opened.set
    callee.on_data_channel = shown.set_result
    await caller.accept_answer(await callee.create_answer(await caller.create_offer()))
    await asyncio.wait_for(opened.wait(), PATIENCE)
    return caller, callee, near, await asyncio.wait_for(shown, PATIENCE)


def numbered(number: int, size: int) -> bytes:
    return number.to_bytes(4, "big") + bytes(size - 4)


async def until_it_stands(channel: Any) -> None:
    """Wait until nothing leaves the buffer any more."""
    still, last = 0, -1
    async with asyncio.timeout(PATIENCE):
        while still < 20:
            now = channel.buffered_amount
            still, last = (still + 1, last) if now == last and now else (0, now)
            await asyncio.sleep(0.02)


@needs_library
@pytest.mark.webrtc
@pytest.mark.timeout(150)
class TestSlowReader:
    @pytest.mark.parametrize(("count", "size"), [(5_000, 100), (1_300, 16 * 1024)], ids=["many", "24 MiB"])
    async def test_a_reader_that_comes_late_gets_everything_in_order(self, engine, count, size):
        _, _, near, far = await linked(engine)
        for number in range(count):
            near.send(numbered(number, size))
        for _ in range(20):  # whole turns of the loop, in which nobody listens
            await asyncio.sleep(0.02)
        assert far._native.available_amount() <= 1_025 * size
        seen: list[int] = []
        done = asyncio.Event()

        def take(message: bytes) -> None:
            seen.append(int.from_bytes(message[:4], "big"))
            if len(seen) == count:
                done.set()

        far.on_message = take
        await asyncio.wait_for(done.wait(), PATIENCE)
        assert seen == list(range(count))

    async def test_a_sender_is_stopped_by_a_reader_that_does_not_read(self, engine):
        _, _, near, far = await linked(engine)
        for number in range(20_000):
            near.send(numbered(number, 1_000))
        await until_it_stands(near)
        assert near.buffered_amount > 10_000_000
        assert far._native.available_amount() <= 1_025_000

    async def test_closing_does_not_wait_for_a_reader_that_does_not_read(self, engine, monkeypatch):
        monkeypatch.setattr(libdatachannel_connection, "CLOSE_TIMEOUT", PATIENCE)
        caller, callee, near, far = await linked(engine)
        for number in range(10_000):
            near.send(numbered(number, 1_000))
        await until_it_stands(near)
        for each in (callee, caller):
            await each.close()
        assert "slow_closes" not in engine.counters
        assert far._native.available_amount() == 0

    async def test_a_channel_that_is_closed_before_anybody_read_stops_nobody(self, engine):
        caller, _, near, far = await linked(engine)
        for number in range(10_000):
            near.send(numbered(number, 1_000))
        await until_it_stands(near)
        far.close()
        opened = asyncio.Event()
        caller.create_data_channel("second").on_open = opened.set
        await asyncio.wait_for(opened.wait(), PATIENCE)
        assert engine.counters["messages_after_close"]


@needs_library
@pytest.mark.webrtc
async def test_a_label_that_is_not_utf_8_closes_its_channel_and_nothing_else():
    from tests.engines import ENGINES

    native, other = LibdatachannelEngine(), ENGINES["aiortc"]()
    caller, callee = other.create_peer_connection(), native.create_peer_connection()
    closed, opened = asyncio.Event(), asyncio.Event()
    shown: list[str] = []
    callee.on_data_channel = lambda channel: shown.append(channel.label)
    caller.create_data_channel("first").on_open = opened.set
    await caller.accept_answer(await callee.create_answer(await caller.create_offer()))
    await asyncio.wait_for(opened.wait(), PATIENCE)

    class Broken(str):
        """A label with a byte that no UTF-8 has."""

        __slots__ = ()

        def encode(self, *_: Any) -> bytes:
            return b"\xff\xfe"

        def __len__(self) -> int:
            return 2

    bad = caller._pc.createDataChannel(Broken("xx"))
    bad.on("close", closed.set)
    await asyncio.wait_for(closed.wait(), PATIENCE)
    assert (native.counters["malformed_channels"], shown) == (1, ["first"])
    assert callee.state is ConnectionState.CONNECTED
    await other.close()
    await native.close()


NAMESPACE = """
import asyncio
from rondevud.transport.libdatachannel import LibdatachannelEngine

async def main():
    engine = LibdatachannelEngine()
    caller, callee = engine.create_peer_connection(), engine.create_peer_connection()
    opened = asyncio.Event()
    caller.create_data_channel("first").on_open = opened.set
    await caller.accept_answer(await callee.create_answer(await caller.create_offer()))
    await asyncio.wait_for(opened.wait(), 20)
    print(caller.selected_pair.local.rpartition(":")[0])
    await engine.close()

asyncio.run(main())
"""


@needs_library
@pytest.mark.webrtc
def test_two_connections_meet_on_a_machine_without_a_network(tmp_path):
    inside = ["unshare", "--map-root-user", "--net", "sh", "-c"]
    able = subprocess.run([*inside, "ip link set lo up"], capture_output=True, timeout=PATIENCE, check=False)
    if able.returncode:
        pytest.skip(f"no network namespace can be made here: {able.stderr!r}")
    program = tmp_path / "meet.py"
    program.write_text(NAMESPACE)
    command = [*inside, 'ip link set lo up && exec "$0" "$1"', sys.executable, str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.stdout.strip() == "127.0.0.1", done.stderr


class Door:
    """What takes as long to close as the test wants."""

    def __init__(self, number: int, began: queue.SimpleQueue[int]) -> None:
        self.number = number
        self.may_end = threading.Event()
        self.outcomes: list[bool | Exception] = []
        """Of the next attempts; then it closes."""
        self.gone = threading.Event()
        self._began = began

    def close(self) -> bool:
        self._began.put(self.number)
        assert self.may_end.wait(PATIENCE)
        outcome = self.outcomes.pop(0) if self.outcomes else True
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def let_go(self) -> None:
        self.gone.set()


class TestCloser:
    @pytest.fixture
    def began(self):
        return queue.SimpleQueue()

    @pytest.fixture
    def doors(self, began):
        made = [Door(number, began) for number in range(5)]
        yield made
        for door in made:
            door.may_end.set()

    def test_what_comes_when_all_threads_are_taken_waits_its_turn(self, began, doors):
        closer, told = Closer(2), queue.SimpleQueue()
        before = threading.active_count()
        for door in doors:
            closer.close(door, "closing", lambda closed, door=door: told.put((door.number, closed)))
        assert {began.get(timeout=PATIENCE), began.get(timeout=PATIENCE)} == {0, 1}
        assert (len(closer), closer.waiting, threading.active_count()) == (5, 3, before + 2)
        assert [closer.is_waiting(door) for door in doors] == [False, False, True, True, True]
        for number, following in ((1, 2), (2, 3), (0, 4)):
            doors[number].may_end.set()
            assert told.get(timeout=PATIENCE) == (number, True)
            assert began.get(timeout=PATIENCE) == following
            assert doors[number].gone.is_set()
            assert threading.active_count() <= before + 2
        threads = [each for each in threading.enumerate() if each.name.startswith("webrtc closing")]
        assert len(threads) == 2
        for number in (3, 4):
            doors[number].may_end.set()
        for thread in threads:
            thread.join(PATIENCE)
        assert (len(closer), threading.active_count()) == (0, before)
        closer.close(doors[0], "closing")
        assert began.get(timeout=PATIENCE) == 0

    def test_what_cannot_be_closed_goes_behind_the_others_and_is_given_up_in_the_end(self, began, doors):
        closer, told = Closer(1), queue.SimpleQueue()
        doors[0].outcomes = [False] * CLOSE_ATTEMPTS
        for door in doors:
            closer.close(door, "closing", lambda closed, door=door: told.put((door.number, closed)))
        for door in doors:
            door.may_end.set()
        assert [told.get(timeout=PATIENCE) for _ in doors] == [(1, True), (2, True), (3, True), (4, True), (0, False)]
        assert [began.get_nowait() for _ in range(began.qsize())] == [0, 1, 2, 3, 4] + [0] * (CLOSE_ATTEMPTS - 1)
        assert doors[0].gone.is_set()

    def test_one_that_fails_takes_no_thread_with_it(self, began, doors, caplog):
        closer, told = Closer(1), queue.SimpleQueue()
        doors[0].outcomes = [ValueError("broken")] * CLOSE_ATTEMPTS

        def fail(closed: bool) -> None:
            told.put(closed)
            raise LookupError("nobody there")

        for door in doors:
            door.may_end.set()
        for door in doors:
            closer.close(door, "closing", fail)
        assert sorted(told.get(timeout=PATIENCE) for _ in doors) == [False, True, True, True, True]
        closer.join(time.monotonic() + PATIENCE)
        assert len(closer) == 0
        assert caplog.text.count("ValueError: broken") == CLOSE_ATTEMPTS
        assert caplog.text.count("LookupError: nobody there") == len(doors)

    def test_without_a_thread_to_be_had_it_waits_for_the_next_that_is(self, began, doors, monkeypatch, caplog):
        def refuse(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        closer = Closer(2)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            closer.close(doors[0], "closing")
        assert (closer.waiting, "can't start new thread" in caplog.text) == (1, True)
        for door in doors[:2]:
            door.may_end.set()
        closer.close(doors[1], "closing")
        assert [began.get(timeout=PATIENCE) for _ in range(2)] == [0, 1]

    def test_at_the_end_everything_that_waits_is_begun_with(self, began, doors):
        closer = Closer(1)
        for door in doors:
            closer.close(door, "closing")
        assert closer.close_at_once() == doors
        assert {began.get(timeout=PATIENCE) for _ in doors} == set(range(len(doors)))
        assert closer.waiting == 0
        for door in doors:
            door.may_end.set()
        closer.join(time.monotonic() + PATIENCE)
        assert len(closer) == 0


# --- the end of the process --------------------------------------------------------------------------------------------

ENDING = """
import asyncio, os, signal, sys
from rondevud.transport.libdatachannel import LibdatachannelEngine

def link(engine):
    caller, callee = engine.create_peer_connection(), engine.create_peer_connection()
    near = caller.create_data_channel("first")
    return caller, callee, near

async def main(how):
    engine = LibdatachannelEngine()
    kept = []
    for _ in range(3):
        caller, callee, near = link(engine)
        opened = asyncio.Event()
        near.on_open = opened.set
        callee.on_data_channel = lambda channel: setattr(channel, "on_message", lambda message: None)
        await caller.accept_answer(await callee.create_answer(await caller.create_offer()))
        await opened.wait()
        kept.append((caller, callee, near))
    half = link(engine)
    answer = await half[1].create_answer(await half[0].create_offer())  # never taken
    offered = link(engine)
    await offered[0].create_offer()

    def flood():
        for _, _, near in kept:
            if near.state == "open":
                for _ in range(50):
                    near.send(bytes(1000))
        loop.call_later(0.001, flood)

    loop = asyncio.get_running_loop()
    flood()
    stopping = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    loop.call_later(0.05, os.kill, os.getpid(), signal.SIGTERM)
    await stopping.wait()
    if how == "closed":
        await engine.close()
    elif how == "raised":
        raise SystemExit(7)

asyncio.run(main(sys.argv[1]))
"""


@needs_library
@pytest.mark.webrtc
@pytest.mark.parametrize(("how", "code"), [("closed", 0), ("forgotten", 0), ("raised", 7)])
def test_a_process_under_load_ends_with_its_own_code_whether_or_not_the_engine_was_closed(how, code):
    done = run_python("-X", "dev", "-c", ENDING, how)
    assert done.returncode == code, done.stderr
    assert "terminate" not in done.stderr


BUSY = """
import asyncio, gc, threading
from rondevud.transport.libdatachannel import LibdatachannelEngine
from rondevud.transport.libdatachannel_threads import _leaving, drop_released

async def main():
    engine = LibdatachannelEngine()
    caller, callee = engine.create_peer_connection(), engine.create_peer_connection()
    opened = asyncio.Event()
    caller.create_data_channel("first").on_open = opened.set
    callee.on_data_channel = lambda channel: channel.send("for you")
    await caller.accept_answer(await callee.create_answer(await caller.create_offer()))
    await opened.wait()
    while not caller._ready:
        await asyncio.sleep(0)
    busy, go_on = threading.Event(), threading.Event()

    def stay():
        busy.set()
        go_on.wait()

    native = caller._native.create_data_channel("second")
    native.on_available(caller._natives.add(native).callback(stay))
    await asyncio.to_thread(busy.wait)
    caller._natives.forget(native)
    del native
    gc.collect()
    print(len(_leaving))
    go_on.set()
    await engine.close()
    drop_released()
    print(len(_leaving))

asyncio.run(main())
"""


@needs_library
def test_a_channel_that_is_dropped_while_the_library_is_in_a_callback_of_it_goes_later():
    """Dropping it takes a lock that the callback's thread has, with the interpreter's: both would stand still."""
    done = run_python("-c", BUSY)
    assert (done.returncode, done.stdout) == (0, "1\n0\n"), done.stderr


@needs_library
async def test_what_the_library_refers_to_is_known_from_the_first_callback_to_the_end(engine):
    connection = engine.create_peer_connection()
    channel = connection.create_data_channel("first")
    held = connection._natives._all()
    assert [each.is_released() for each in held] == [False, False]
    assert channel.state == "connecting"
    await asyncio.wait_for(connection.close(), PATIENCE)
    assert [each.is_released() for each in held] == [True, True]
    assert not libdatachannel_threads._leaving


CYCLES = """
import asyncio, contextlib, gc, json, os, sys, time
from rondevud.errors import TransportError
from rondevud.transport import libdatachannel_threads as threads
from rondevud.transport.libdatachannel import LibdatachannelEngine

async def cycle(engine, number):
    caller, callee = engine.create_peer_connection(), engine.create_peer_connection()
    near = caller.create_data_channel("first")
    opened, busy = asyncio.Event(), asyncio.Event()
    near.on_open = near.on_close = opened.set
    count = 0

    def take(message):
        nonlocal count
        count += 1
        if count == 50:
            busy.set()

    def show(channel):
        channel.on_message = take
        with contextlib.suppress(TransportError):  # the caller may be closing it, or all
            channel.send("hello")

    callee.on_data_channel = show
    await caller.accept_answer(await callee.create_answer(await caller.create_offer()))
    if half_open and number % 5 == 4:
        await asyncio.gather(caller.close(), callee.close())
        return
    await opened.wait()
    if caller.state == "closed":  # a starved machine
        failed.append(number)
        await asyncio.gather(caller.close(), callee.close())
        return
    for _ in range(2_000):
        near.send(bytes(500))
    extra = [caller.create_data_channel(str(each)) for each in range(3)]
    await busy.wait()
    extra[0].close()
    if number % 3 == 0:
        near.close()
    first, second = (caller, callee) if number % 2 else (callee, caller)
    if number % 7 == 0:
        await asyncio.gather(first.close(), second.close())
    else:
        await first.close()
        await second.close()

async def main(cycles):
    engine = LibdatachannelEngine()
    numbers = iter(range(cycles))

    async def worker():
        for number in numbers:
            async with asyncio.timeout(120):
                await cycle(engine, number)

    try:
        await asyncio.gather(*(worker() for _ in range(4)))
    finally:
        await engine.close()
    assert len(failed) <= cycles // 50, failed
    deadline = time.monotonic() + 60
    while len(threads.closer) and time.monotonic() < deadline:  # those to a peer that left before it was an association
        await asyncio.sleep(0.1)
    threads.drop_released()
    gc.collect()
    left = [len(threads._open), len(threads.closer), len(threads._leaving)]
    natives = sum(type(each).__name__ in ("PeerConnection", "DataChannel") for each in gc.get_objects())
    print(json.dumps([dict(engine.counters), left, natives]))

def belongings():
    return [len(os.listdir(f"/proc/self/{each}")) for each in ("fd", "task")]

async def counted(cycles):
    await main(4)  # from then on the library has all threads and descriptors that it ever has
    before = belongings()
    await main(cycles)
    deadline = time.monotonic() + 60
    while any(map(int.__gt__, belongings(), before)) and time.monotonic() < deadline:  # a thread's end takes a moment
        await asyncio.sleep(0.05)
    print(json.dumps([before, belongings()]))

half_open = sys.argv[2] == "half-open"
failed = []
asyncio.run(counted(int(sys.argv[1])))
"""


@needs_library
@pytest.mark.webrtc
@pytest.mark.parametrize(
    ("cycles", "kind", "flags"),
    [
        pytest.param(15, "open", ["-X", "dev"], marks=pytest.mark.timeout(150)),
        pytest.param(1_000, "half-open", [], marks=[pytest.mark.soak, pytest.mark.timeout(1_800)]),
        pytest.param(1_000, "half-open", ["-X", "dev"], marks=[pytest.mark.soak, pytest.mark.timeout(1_800)]),
    ],
    ids=["few", "many", "many, dev"],
)
def test_connections_that_close_under_load_neither_hang_nor_crash(cycles, kind, flags):
    """Half open ones take the library half a minute each, in which it waits for an association that never comes."""
    command = [sys.executable, *flags, "-c", CYCLES, str(cycles), kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=140 + cycles, check=False)
    assert done.returncode == 0, done.stderr[-4_000:]
    assert "nanobind" not in done.stderr
    _, (counters, left, natives), (before, after) = map(json.loads, done.stdout.splitlines())
    assert not {"close_errors", "handler_errors"} & counters.keys()
    assert (left, natives) == ([0, 0, 0], 0)
    assert all(now <= then for now, then in zip(after, before, strict=True)), (before, after)


@needs_library
async def test_a_connection_that_nobody_uses_is_closed_in_time(engine):
    connection = engine.create_peer_connection()
    await asyncio.wait_for(connection.close(), PATIENCE)
    assert not libdatachannel_threads._open


STOPPED_PEER = """
import asyncio, json, os, signal, subprocess, sys
from rondevud.transport.choice import may_end_in_order
from rondevud.transport.libdatachannel import LibdatachannelEngine

ANSWER = '''
import asyncio, json
from rondevud.transport.libdatachannel import LibdatachannelEngine

async def main():
    connection = LibdatachannelEngine().create_peer_connection()
    print(json.dumps(await connection.create_answer(json.loads(input()))), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
'''

async def main():
    engine = LibdatachannelEngine()
    connection = engine.create_peer_connection()
    near = connection.create_data_channel("first")
    opened = asyncio.Event()
    near.on_open = opened.set
    child = subprocess.Popen([sys.executable, "-c", ANSWER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        print(json.dumps(await connection.create_offer()), file=child.stdin, flush=True)
        await connection.accept_answer(json.loads(await asyncio.to_thread(child.stdout.readline)))
        await opened.wait()
        print(may_end_in_order())
        child.send_signal(signal.SIGSTOP)
        for _ in range(1_000):
            near.send(bytes(1_000))
        await engine.close()
        print(engine.counters["slow_closes"], may_end_in_order())
    finally:
        child.kill()
        child.wait()

asyncio.run(main())
"""


@needs_library
@pytest.mark.webrtc
def test_a_process_ends_with_its_own_code_while_a_connection_to_a_silent_peer_is_still_closing():
    done = run_python("-c", STOPPED_PEER)
    assert (done.returncode, done.stdout) == (0, "True\n1 False\n"), done.stderr
    assert "terminate" not in done.stderr


VANISHED = """
import asyncio, contextlib, json, os, signal, subprocess, sys, threading, time
from rondevud.errors import TransportError
from rondevud.transport import libdatachannel as module, libdatachannel_connection, libdatachannel_threads as threads
from rondevud.transport.libdatachannel import LibdatachannelEngine

ANSWER = '''
import asyncio, json, sys
from rondevud.transport.libdatachannel import LibdatachannelEngine

async def main():
    engine, kept = LibdatachannelEngine(), []
    while line := await asyncio.to_thread(sys.stdin.readline):
        connection = engine.create_peer_connection()
        kept.append(connection)
        print(json.dumps(await connection.create_answer(json.loads(line))), flush=True)

asyncio.run(main())
'''

async def link(engine, answer):
    connection = engine.create_peer_connection()
    opened = asyncio.Event()
    connection.create_data_channel("first").on_open = opened.set
    await connection.accept_answer(await answer(await connection.create_offer()))
    await asyncio.wait_for(opened.wait(), 60)
    return connection

def busy():
    return sum(each.name.startswith("webrtc closing") for each in threading.enumerate())

async def main(count, limit, to_the_end):
    threads.closer._limit, module.CLOSING_MAX, libdatachannel_connection.CLOSE_TIMEOUT = limit, count, 0.2
    engine = LibdatachannelEngine()
    child = subprocess.Popen([sys.executable, "-c", ANSWER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    async def elsewhere(offer):
        print(json.dumps(offer), file=child.stdin, flush=True)
        return json.loads(await asyncio.to_thread(child.stdout.readline))

    try:
        absent = [await link(engine, elsewhere) for _ in range(count)]
        near = engine.create_peer_connection()
        near.create_data_channel("here")
        far, shown, ended = engine.create_peer_connection(), asyncio.Event(), asyncio.Event()

        def show(channel):
            channel.on_close = ended.set
            shown.set()

        far.on_data_channel = show
        await near.accept_answer(await far.create_answer(await near.create_offer()))
        await asyncio.wait_for(shown.wait(), 60)
        child.send_signal(signal.SIGSTOP)
        await asyncio.gather(*(each.close() for each in absent))
        report = [engine.closing, threads.closer.waiting, busy(), engine.counters["queued_closes"]]
        try:
            engine.create_peer_connection()
        except TransportError as error:
            report.append(str(error).partition(":")[0])
        await near.close()
        await asyncio.wait_for(ended.wait(), 60)
        report.append(far.state.name)
        most = 0
        while to_the_end and engine.closing:
            most = max(most, busy())
            await asyncio.sleep(0.05)
        print(json.dumps([*report, most, dict(engine.counters)]))
    finally:
        child.kill()
        child.wait()

asyncio.run(main(*map(int, sys.argv[1:])))
"""


@needs_library
@pytest.mark.webrtc
def test_peers_that_vanish_at_once_take_few_threads_and_the_process_ends_while_others_wait():
    """At its end the library is still busy with some, and has not begun with others."""
    done = run_python("-c", VANISHED, "6", "2", "0")
    assert done.returncode == 0, done.stderr
    assert "terminate" not in done.stderr
    *report, counters = json.loads(done.stdout)
    # The peer that is there has heard of the close of its channel, though that of its connection waits.
    assert report == [
        6,
        4,
        2,
        4,
        "6 connections are still being closed, since their peers do not answer",
        "CONNECTED",
        0,
    ]
    assert counters == {"queued_closes": 5, "slow_closes": 7, "connections_refused": 1}


@needs_library
@pytest.mark.soak
@pytest.mark.timeout(300)
def test_two_hundred_peers_that_vanish_at_once_are_closed_in_the_end():
    command = [sys.executable, "-c", VANISHED, "200", str(libdatachannel_threads.CLOSING_THREADS), "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    *_, most, counters = json.loads(done.stdout)
    assert 0 < most <= libdatachannel_threads.CLOSING_THREADS
    assert "close_errors" not in counters
