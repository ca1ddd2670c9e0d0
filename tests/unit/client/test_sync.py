"""The blocking facade, against the daemon's socket in a thread of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import os
import queue
import signal
import subprocess
import sys
import threading

import pytest

import rondevu_client
from rondevu_client import ConnectionLost, DaemonUnavailable, Detached, RequestRefused, stream, sync
from rondevu_client.sync import Daemon
from rondevu_client.sync import background as background_module
from rondevud.ipc.server import Server
from tests.unit.ipc.house import MemoryHouse

FQN = "com.example.chat@1.0.0"
PATIENCE = 20.0


class Place:
    """A daemon in a thread of its own; `do` looks at it and changes it there."""

    def __init__(self, path):
        self.path = path
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.house = self.do(MemoryHouse)
        self.house.add_connection("conn-a", "alice-chat")
        self.server = Server(self.house, path=path)
        self.wait(self.server.start())

    def wait(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

    def do(self, function, *args):
        async def work():
            return function(*args)

        return self.wait(work())

    def until(self, condition):
        self.wait(self.house.until(condition))

    def channel(self, label="main"):
        return self.house.get("conn-a", label)

    def inbox(self, label="main"):
        return self.do(lambda: [row.payload for row in self.channel(label).stored.inbox])

    def deliver(self, *payloads, label="main"):
        self.do(lambda: self.channel(label).deliver(*payloads))

    def restart(self):
        self.wait(self.server.stop())
        self.house = self.do(MemoryHouse, self.house.disk, "second")
        self.server = Server(self.house, path=self.path)
        self.wait(self.server.start())

    def end(self):
        self.wait(self.server.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def place(tmp_path):
    place = Place(tmp_path / "rondevud.sock")
    yield place
    place.end()


@pytest.fixture
def daemon(place):
    with Daemon(place.path) as daemon:
        yield daemon


@pytest.fixture
def channel(daemon):
    return daemon.attach("alice-chat", "main")


# --- the same names and arguments ------------------------------------------------------------------------------------

PAIRS = [
    (rondevu_client.Daemon, Daemon),
    (rondevu_client.Connection, sync.Connection),
    (rondevu_client.Channel, sync.Channel),
    (rondevu_client.Service, sync.Service),
    (rondevu_client.Message, sync.Message),
    (stream.EventStream, sync.EventStream),
]
NOT_HERE = {"generation", "request_timeout"}
"""What nobody outside the library uses."""


def members(kind):
    return {name: getattr(kind, name) for name in dir(kind) if not name.startswith("_")}


@pytest.mark.parametrize(("kind", "blocking"), PAIRS)
def test_the_blocking_objects_have_the_same_names_and_arguments(kind, blocking):
    ours = members(blocking)
    for name, member in members(kind).items():
        assert name in ours, name
        if inspect.isfunction(member):
            given = [parameter for parameter in inspect.signature(member).parameters if parameter != "timeout"]
            taken = [parameter for parameter in inspect.signature(ours[name]).parameters if parameter != "timeout"]
            assert taken == given, name
        if inspect.iscoroutinefunction(member) and name not in {"ack", "close"}:
            assert "timeout" in inspect.signature(ours[name]).parameters, name


def test_the_blocking_objects_have_the_same_attributes(place):
    """Those set by `__init__` are seen in an instance only."""

    async def open_all():
        async with rondevu_client.Daemon(place.path) as daemon:
            connection = await daemon.connect("bob", FQN)
            channel = await connection.create_channel("main")
            service = await daemon.expose_service("alice", FQN)
            return [daemon, connection, channel, service]

    for inner, (_, blocking) in zip(place.wait(open_all()), PAIRS, strict=False):
        public = {name for name in vars(inner) if not name.startswith("_")}
        assert public - set(members(blocking)) <= NOT_HERE


def in_thread(function, *args):
    """The future of `function`, called in another thread."""
    future = concurrent.futures.Future()

    def work():
        try:
            future.set_result(function(*args))
        except Exception as error:  # noqa: BLE001
            future.set_exception(error)

    threading.Thread(target=work).start()
    return future


# --- sending and receiving -------------------------------------------------------------------------------------------


def test_messages_go_and_come_without_a_line_of_asyncio(place, daemon):
    connection = daemon.connect("bob", FQN, name="bob-chat")
    channel = connection.create_channel("main", confirm_sent=True)
    assert (connection.get_channel("main"), connection.get_channel("other")) == (channel, None)
    assert connection.is_connected
    assert (channel.label, channel.connection_id, channel.ready_state) == ("main", connection.id, "open")
    assert [channel.send("one"), channel.send(b"two")] == [1, 2]
    place.do(lambda: place.house.get(connection.id, "main").producer.hand_over(2))
    channel.wait_sent(PATIENCE)
    with pytest.raises(TimeoutError):
        channel.flush(0.01)
    place.do(lambda: place.house.get(connection.id, "main").producer.acknowledge(2))
    channel.flush(PATIENCE)
    assert (channel.queue_size, channel.buffered_amount) == (0, 0)
    place.do(lambda: place.house.get(connection.id, "main").deliver("a", "b", "c"))
    received = []
    for message in channel:
        received.append((message.data, message.attempt, message.redelivered))
        if message.data == "c":
            message.ack()
            break
    assert received == [("a", 1, False), ("b", 1, False), ("c", 1, False)]
    channel.detach()
    assert (channel.end_reason, channel.attached, channel.ready_state) == ("detached", False, "closed")
    with pytest.raises(Detached):
        channel.receive()


def test_declarations_take_the_same_arguments(place, daemon, monkeypatch):
    asked, connect, expose = [], place.house.connect, place.house.expose

    async def hear_connect(**facts):
        asked.append((facts["uuid"] or facts["fqn"], facts["name"], facts["ephemeral"], facts["options"]))
        return await connect(**facts)

    async def hear_expose(*facts):
        asked.append((*facts[:2], facts[3], facts[2]))
        return await expose(*facts)

    monkeypatch.setattr(place.house, "connect", hear_connect)
    monkeypatch.setattr(place.house, "expose", hear_expose)
    daemon.connect("bob", FQN, name="b", ephemeral=True, options={"peer": "link"}, max_attempts=3)
    daemon.connect_by_uuid("uuid-1", name="u", timeout=PATIENCE)
    daemon.expose_service("alice", FQN, ephemeral=True, public=True)
    assert asked == [
        (FQN, "b", True, {"peer": "link", "max_attempts": 3}),
        ("uuid-1", "u", False, {}),
        ("alice", FQN, True, {"public": True}),
    ]


def test_a_wait_that_times_out_loses_nothing(place, channel):
    with pytest.raises(TimeoutError):
        channel.receive(timeout=0.01)
    place.deliver("late")
    assert channel.receive(PATIENCE).data == "late"
    place.do(lambda: setattr(place.channel(), "hold", True))
    with pytest.raises(TimeoutError):
        channel.send("held", timeout=0.01)
    place.do(place.channel().release)
    assert channel.send("next") == 2


def test_a_message_that_came_as_the_wait_was_interrupted_is_the_next_one(place, channel, monkeypatch):
    place.deliver("one", "two")
    run = channel._background.run

    def run_and_interrupt(*args):
        run(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(channel._background, "run", run_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        channel.receive()
    monkeypatch.undo()
    assert place.inbox() == ["one", "two"]
    assert [channel.receive(PATIENCE).data, channel.receive(PATIENCE).data] == ["one", "two"]


def test_many_messages_go_and_come_in_one_call(place, channel, monkeypatch):
    assert channel.send_many(["a", b"b"]) == 2
    place.deliver("one", "two", "three", "four")

    async def come(count):
        while len(channel._inner._inbox) < count:
            await channel._inner._change()

    channel._background.run(PATIENCE, come, 4)
    assert [message.data for message in channel.receive_many(2, PATIENCE)] == ["one", "two"]
    run = channel._background.run

    def run_and_interrupt(*args):
        run(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(channel._background, "run", run_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        channel.receive_many()
    monkeypatch.undo()
    assert place.inbox() == ["three", "four"]
    assert [channel.receive(PATIENCE).data, channel.receive(PATIENCE).data] == ["three", "four"]
    with pytest.raises(ValueError, match="at least"):
        channel.receive_many(0)


def test_ctrl_c_interrupts_a_wait_without_end(place, channel):
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals come to the main thread")
    interrupt = threading.Timer(0.05, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))

    def wait():
        interrupt.start()
        channel.receive()

    with pytest.raises(KeyboardInterrupt):
        wait()
    place.deliver("after")
    assert channel.receive(PATIENCE).data == "after"


def test_what_one_thread_still_has_is_not_acknowledged_by_another(place, channel):
    place.deliver("one", "two", "three")
    assert channel.receive(PATIENCE).data == "one"
    second = in_thread(lambda: [channel.receive().data, channel.receive().data])
    assert second.result(PATIENCE) == ["two", "three"]
    assert place.inbox() == ["one", "two", "three"]
    waiting = in_thread(channel.receive, None)
    with pytest.raises(TimeoutError):
        channel.receive(timeout=0.01)
    place.until(lambda: [row.payload for row in place.channel().stored.inbox] == ["three"])
    place.deliver("four")
    assert waiting.result(PATIENCE).data == "four"


def test_it_waits_for_a_daemon_that_restarts(place, channel):
    channel.send("one")
    place.restart()
    assert channel.send("two", timeout=PATIENCE) == 2
    assert place.do(lambda: [payload for _, payload, _ in place.channel().stored.outbox]) == ["one", "two"]


def test_refusals_are_the_same_exceptions(daemon, channel):
    with pytest.raises(RequestRefused) as caught:
        daemon.attach("nobody", "main")
    assert caught.value.code == "unknown_target"
    with pytest.raises(TypeError):
        channel.send(1)


# --- listeners and handlers ------------------------------------------------------------------------------------------


def test_listeners_run_in_their_thread_and_may_use_the_channel(place, channel, caplog):
    heard = queue.SimpleQueue()

    def answer(message):
        channel.send(f"Echo: {message.data}")
        heard.put(threading.current_thread().name)

    channel.on("message", answer)
    place.deliver("hello")
    assert heard.get(timeout=PATIENCE) == "rondevu listeners"
    place.until(lambda: not place.channel().stored.inbox)
    assert place.do(lambda: [payload for _, payload, _ in place.channel().stored.outbox]) == ["Echo: hello"]


def test_a_listener_that_raises_is_logged_and_disturbs_nobody(place, channel, caplog):
    heard = queue.SimpleQueue()
    channel.on("open", lambda _data: 1 / 0)
    channel.on("open", heard.put)
    place.do(lambda: place.house.publish("open", {"acknowledges": False}, place.channel()))
    assert heard.get(timeout=PATIENCE)["acknowledges"] is False
    assert "A listener failed" in caplog.text
    assert channel.acknowledges is False


def test_listeners_can_be_taken_back_however_they_were_added(place, channel):
    heard = queue.SimpleQueue()
    listener = lambda data: heard.put(data["count"])
    publish = lambda count: place.do(lambda: place.house.publish("message_expired", {"count": count}, place.channel()))
    channel.once("message_expired", listener)
    channel.off("message_expired", listener)
    channel.on("message_expired", listener)
    channel.on("purged", listener)
    assert channel.listener_count("message_expired") == 1
    publish(1)
    assert heard.get(timeout=PATIENCE) == 1
    channel.off("message_expired", listener)
    channel.once("message_expired", heard.put)
    publish(2)
    assert heard.get(timeout=PATIENCE)["count"] == 2
    channel.remove_all_listeners()
    assert (channel.listener_count("message_expired"), channel.listener_count("purged")) == (0, 0)


def test_a_sender_hears_when_little_is_under_way(place, daemon, channel):
    heard = queue.SimpleQueue()
    channel.on("buffered_amount_low", heard.put)
    channel.buffered_amount_low_threshold = 5
    assert channel.buffered_amount_low_threshold == 5
    daemon.status()
    place.do(lambda: [place.channel().watches[0].see(amount) for amount in (6, 5)])
    assert heard.get(timeout=PATIENCE)["buffered_amount"] == 5
    with pytest.raises(ValueError, match="0 bytes or more"):
        channel.buffered_amount_low_threshold = -1


def test_the_daemon_tells_its_own_events(place, daemon):
    heard = queue.SimpleQueue()
    daemon.on("signalling", heard.put)
    daemon.status()
    place.do(lambda: place.house.events.publish("signalling", {"state": "down"}))
    assert heard.get(timeout=PATIENCE) == {"state": "down"}


def test_listeners_may_be_added_before_it_is_open(place, tmp_path):
    heard = queue.Queue()
    daemon = Daemon(tmp_path / "nobody.sock")
    daemon.on("reloaded", heard.put)
    daemon.once("stopping", heard.put)
    daemon.off("stopping", heard.put)
    assert (daemon.listener_count("reloaded"), daemon.listener_count("stopping")) == (1, 0)
    with pytest.raises(DaemonUnavailable):
        daemon.open()
    daemon._inner._given = place.path
    with daemon:
        daemon.clients()
        place.do(place.house.events.publish, "reloaded", {"n": 1})
        assert heard.get(timeout=PATIENCE) == {"n": 1}
    assert daemon.version
    assert daemon.listener_count("reloaded") == 0


def test_events_beyond_the_backlog_are_dropped_and_counted(place, daemon, channel, monkeypatch, caplog):
    monkeypatch.setattr(background_module, "BACKLOG", 2)
    blocked, go_on = threading.Event(), threading.Event()

    def block(_data):
        blocked.set()
        go_on.wait(PATIENCE)

    channel.once("open", block)
    channel.on("purged", block)
    place.do(lambda: place.house.publish("open", {}, place.channel()))
    assert blocked.wait(PATIENCE)
    place.do(lambda: [place.house.publish("purged", {}, place.channel()) for _ in range(5)])
    daemon.status()
    assert daemon.dropped_events == 3
    assert caplog.text.count("events are dropped") == 1
    go_on.set()


@pytest.mark.parametrize("add", ["on", "once"])
def test_coroutine_functions_are_refused(daemon, channel, add):
    async def listener(_data):
        pass

    with pytest.raises(TypeError, match="coroutine function"):
        getattr(channel, add)("open", listener)
    with pytest.raises(TypeError, match="coroutine function"):
        daemon.expose_service("alice", FQN, handler=listener)


def test_each_handler_has_a_thread_and_only_so_many_run(place, caplog):
    started = queue.SimpleQueue()

    def handler(channel, connection_id):
        started.put((channel.label, connection_id))
        for message in channel:
            if message.data == "end":
                message.ack()
                return
            channel.send(message.data)

    place.do(lambda: place.house.add_connection("conn-b", None, service=f"alice/{FQN}"))
    place.deliver_to = lambda label, data: place.do(lambda: place.house.get("conn-b", label).deliver(data))
    with Daemon(place.path, handler_threads=1) as daemon:
        service = daemon.expose_service("alice", FQN, handler=handler)
        assert (service.username, service.fqn, service.uuid, service.created) == ("alice", FQN, "uuid-1", True)
        assert (service.active_connections, service.service_info.expires_at) == (["conn-b"], 1.5)
        assert service.pool_status()["service"] == f"alice/{FQN}"
        place.deliver_to("one", "x")
        assert started.get(timeout=PATIENCE) == ("one", "conn-b")
        place.deliver_to("two", "y")
        place.until(lambda: place.house.get("conn-b", "two").receiver is not None)
        daemon.status()
        assert started.empty()
        assert "handlers run in threads" in caplog.text
        place.deliver_to("one", "end")
        assert started.get(timeout=PATIENCE) == ("two", "conn-b")
        service.stop()
        assert service.wait_closed(PATIENCE) == "closed"


def test_a_handler_that_raises_is_told_and_run_again(place, monkeypatch):
    monkeypatch.setattr("rondevu_client.channel.RETRY_FIRST", 0.001)
    calls, errors = queue.SimpleQueue(), queue.SimpleQueue()

    def handler(channel, connection_id):
        message = channel.receive()
        calls.put(message.attempt)
        if message.attempt == 1:
            raise StopIteration("odd")
        message.ack()

    place.do(lambda: place.house.add_connection("conn-b", None, service=f"alice/{FQN}"))
    with Daemon(place.path) as daemon:
        service = daemon.expose_service("alice", FQN, handler=handler)
        service.on("error", errors.put)
        place.do(lambda: place.house.get("conn-b", "main").deliver("x"))
        assert errors.get(timeout=PATIENCE)["context"] == "handler"
        assert [calls.get(timeout=PATIENCE), calls.get(timeout=PATIENCE)] == [1, 2]


def test_events_can_be_iterated(place, daemon):
    stream = daemon.subscribe("alice-chat")
    place.do(lambda: place.house.publish("open", {}, place.channel()))
    event = stream.receive(PATIENCE)
    assert (event.name, event.number, event.data["label"]) == ("open", stream.next, "main")
    with pytest.raises(TimeoutError):
        stream.receive(0.01)
    stream.close()
    assert list(stream) == []


# --- where it must not be used, and how it ends ----------------------------------------------------------------------


async def test_in_a_coroutine_it_says_what_to_use(tmp_path):
    with pytest.raises(RuntimeError, match=r"rondevu_client\.Daemon in coroutines"):
        Daemon(tmp_path / "any.sock").open()


def test_after_the_end_calls_say_so_and_what_waits_ends(place):
    with Daemon(place.path) as daemon:
        channel = daemon.attach("alice-chat", "main")
        receiving = in_thread(list, channel)
        place.do(lambda: setattr(place.channel(), "hold", True))
        sending = in_thread(channel.send, "x")
        waiting = in_thread(daemon.wait, "alice-chat")
        place.until(lambda: place.channel().producers and place.channel().producer.parked)
    assert receiving.result(PATIENCE) == []
    for future in (sending, waiting):
        assert isinstance(future.exception(PATIENCE), ConnectionLost)
    for call in (daemon.status, lambda: channel.send("y"), lambda: daemon.attach("alice-chat", "main")):
        with pytest.raises(ConnectionLost):
            call()
    assert (channel.ready_state, channel.queue_size) == ("closed", 0)
    daemon.close()
    with daemon:
        assert daemon.status()["connections"] == 1
        with pytest.raises(RuntimeError, match="is open"):
            daemon.open()


def test_a_listener_may_close_the_daemon_object(place):
    daemon = Daemon(place.path)
    daemon.open()
    channel = daemon.attach("alice-chat", "main")
    closed = queue.SimpleQueue()
    channel.on("message", lambda _message: closed.put(daemon.close()))
    place.deliver("end")
    assert closed.get(timeout=PATIENCE) is None
    with pytest.raises(ConnectionLost):
        daemon.status()


def test_no_thread_is_left(place):
    with Daemon(place.path) as daemon:
        daemon.attach("alice-chat", "main").on("message", print)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("rondevu")]


def test_nobody_there_leaves_no_thread(tmp_path):
    with pytest.raises(Exception, match="no rondevud answers"):
        Daemon(tmp_path / "none.sock").open()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("rondevu")]


OPEN_AT_EXIT = """
import sys, threading
from rondevu_client.sync import Daemon

daemon = Daemon(sys.argv[1])
daemon.open()
channel = daemon.attach("alice-chat", "main")
message = channel.receive()
threading.Thread(target=list, args=(channel,), daemon=True).start()
channel.send("left open")
print("end of the program")
message.ack()
"""

FORKED = """
import os, sys
from rondevu_client.sync import Daemon

with Daemon(sys.argv[1]) as daemon:
    channel = daemon.attach("alice-chat", "main")
    pid = os.fork()
    if pid == 0:
        for call in (daemon.status, lambda: channel.queue_size, lambda: channel.on("open", print)):
            try:
                call()
            except RuntimeError as error:
                print(error)
        sys.exit(7)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(code, daemon.status()["connections"])
"""


def run(program, place):
    env = {**os.environ, "PYTHONWARNINGS": "error,ignore::DeprecationWarning"}
    return subprocess.run(
        check=False,
        args=[sys.executable, "-c", program, str(place.path)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=env,
    )


def test_an_interpreter_that_ends_with_an_open_daemon_object_does_not_hang(place):
    place.deliver("x")
    done = run(OPEN_AT_EXIT, place)
    assert (done.returncode, done.stdout, done.stderr) == (0, "end of the program\n", "")
    place.until(lambda: place.house.gone and not place.channel().stored.inbox)


def test_a_forked_process_is_told_to_open_its_own(place):
    done = run(FORKED, place)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("before the fork") == 3
    assert done.stdout.endswith("7 1\n")
