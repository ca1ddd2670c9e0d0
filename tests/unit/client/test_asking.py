"""One request over a socket that blocks, to daemons that answer, are late, say no, break off, or are none."""

from __future__ import annotations

import contextlib
import math
import socket
import subprocess
import sys
import threading

import msgpack
import pytest

from rondevu_client import asking, protocol, sockets
from rondevu_client.asking import Notice, ask
from rondevu_client.errors import BadMessage, ConnectionLost, DaemonUnavailable, RequestRefused

HELLO = protocol.encode_response(1, {"version": "0.1.0", "instance": "i"})
PATIENCE = 30.0


class Scripted:
    """What a daemon says: to each request that comes the next answer, and then it hangs up. If `deaf`, it reads one."""

    def __init__(self, listening, *answers, deaf=False):
        self.requests = []
        self._listening = listening
        self._answers = answers
        self._deaf = deaf
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self):
        connection, _ = self._listening.accept()
        with connection, contextlib.suppress(ConnectionError):  # who asks may not wait for it
            connection.settimeout(PATIENCE)
            unpacker = msgpack.Unpacker()
            for answer in self._answers:
                if not (self._deaf and self.requests):
                    self.requests.append(self._next(connection, unpacker))
                if isinstance(answer, bytes):
                    connection.sendall(answer)
                else:
                    answer(connection)

    def _next(self, connection, unpacker):
        while True:
            for frame in unpacker:
                return frame
            data = connection.recv(65536)
            if not data:
                raise ConnectionResetError
            unpacker.feed(data)

    def end(self):
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "rondevud.sock"


def listen(path, backlog=5):
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.settimeout(PATIENCE)
    listening.bind(str(path))
    listening.listen(backlog)
    return listening


@pytest.fixture
def held(path):
    """The socket as systemd holds it: who connects waits for a daemon."""
    with listen(path) as listening:
        yield listening


@pytest.fixture
def scripted(held):
    """Begin a daemon at `path`."""
    begun = []

    def begin(*answers, **more):
        begun.append(Scripted(held, *answers, **more))
        return begun[-1]

    yield begin
    for each in begun:
        each.end()


def ask_status(path, **more):
    return ask("status", given=path, client="test", **more)


def result(value, msgid=2):
    return protocol.encode_response(msgid, value)


# --- answers ---------------------------------------------------------------------------------------------------------


def test_a_request_comes_behind_a_hello_and_without_parameters_that_are_none(path, scripted):
    daemon = scripted(HELLO, result({"up": 1}))
    assert ask("why", {"target": "a", "since": None}, given=path, client="me") == {"up": 1}
    daemon.end()
    assert daemon.requests == [
        [0, 1, "hello", [{"protocol": [1], "client": "me"}]],
        [0, 2, "why", [{"target": "a"}]],
    ]


def test_a_refusal_keeps_code_message_and_data(path, scripted):
    scripted(HELLO, protocol.encode_error(2, "conflict", "declared otherwise", {"was": 1}))
    with pytest.raises(RequestRefused) as refused:
        ask_status(path)
    assert (refused.value.code, refused.value.message, refused.value.data) == (
        "conflict", "declared otherwise", {"was": 1}
    )  # fmt: skip


def test_who_is_refused_at_the_hello_is_told_and_no_other_socket_is_tried(path, scripted, monkeypatch, tmp_path):
    monkeypatch.setenv("RONDEVU_SOCKET", str(path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "nowhere"))
    scripted(protocol.encode_error(1, "access_denied", "uid 5 may not"))
    with pytest.raises(RequestRefused, match="access_denied"):
        ask_status(None)


def test_an_answer_may_come_in_pieces(path, scripted):
    def bytewise(connection):
        for byte in result({"text": "grüße" * 10}):
            connection.sendall(bytes([byte]))

    scripted(HELLO, bytewise)
    assert ask_status(path) == {"text": "grüße" * 10}


def test_a_large_answer_is_taken(path, scripted):
    scripted(HELLO, result(b"x" * (protocol.MAX_MESSAGE + 1)))
    assert len(ask_status(path)) == protocol.MAX_MESSAGE + 1


def test_what_else_comes_is_passed_over_wherever_it_stands(path, scripted):
    others = b"".join([
        protocol.encode_notification("event", [1, 1, "stopping", {}]),
        protocol.encode_notification("of a later version", []),
        protocol.encode_response(7, "of nobody"),
        protocol.encode_error(8, "internal", "of nobody"),
    ])  # fmt: skip
    scripted(HELLO + others + result("behind")[:3], others[:0] + result("behind")[3:] + others)
    assert ask_status(path) == "behind"


def test_what_cannot_be_sent_is_said(path, scripted):
    scripted(HELLO)
    with pytest.raises(BadMessage, match="cannot be sent"):
        ask("check", {"username": "\udcff"}, given=path, client="test")


# --- none ------------------------------------------------------------------------------------------------------------


GARBAGE = {
    "no msgpack": (b"\xc1", "not msgpack"),
    "HTTP": (b"HTTP/1.1 400 Bad Request\r\n", "a frame is an array"),
    "a claim": (b"\xdd\xff\xff\xff\xff", "holds too much"),
    "no map": (msgpack.packb([1, 2, "an error", None]), "an error of the daemon is not a map"),
    "a request": (protocol.encode_request(1, "status", {}), "the daemon sent a request"),
    "a notification": (protocol.encode_notification("accepted", ["x", 1]), "handle must be an integer"),
}


@pytest.mark.parametrize(("garbage", "words"), GARBAGE.values(), ids=GARBAGE)
def test_garbage_instead_of_an_answer_is_the_end_of_the_socket(path, scripted, garbage, words):
    scripted(HELLO, garbage)
    with pytest.raises(ConnectionLost, match=f"the daemon broke the protocol: .*{words}"):
        ask_status(path)


@pytest.mark.parametrize(("garbage", "words"), GARBAGE.values(), ids=GARBAGE)
def test_garbage_instead_of_a_hello_is_no_daemon(path, scripted, garbage, words):
    scripted(garbage)
    with pytest.raises(DaemonUnavailable, match=f"{path}: .*the daemon broke the protocol: .*{words}"):
        ask_status(path)


def test_a_daemon_that_breaks_off_instead_of_answering_is_lost(path, scripted):
    scripted(HELLO, result("never the end")[:5])
    with pytest.raises(ConnectionLost, match=r"^the daemon's socket is closed$"):
        ask_status(path)


def test_a_daemon_that_breaks_off_before_its_hello_says_why(path, scripted):
    scripted(protocol.encode_error(None, "too_many_clients", "1024 clients are connected"))
    with pytest.raises(DaemonUnavailable, match="1024 clients are connected"):
        ask_status(path)


def test_a_daemon_that_breaks_off_while_it_is_written_to_says_why_and_is_no_broken_pipe(path, scripted):
    """A pipe that breaks is whoever reads our output."""
    scripted(HELLO, protocol.encode_error(None, "frame_too_large", "a frame is too long"), deaf=True)
    with pytest.raises(ConnectionLost, match="a frame is too long"):
        ask("expose", {"metadata": "x" * 8_000_000}, given=path, client="test")


def test_a_daemon_that_goes_away_from_what_it_was_asked_is_lost(path, scripted):
    scripted(HELLO, lambda connection: connection.recv(1, socket.MSG_PEEK), deaf=True)
    with pytest.raises(ConnectionLost, match="reset by peer"):
        ask_status(path)


# --- finding ---------------------------------------------------------------------------------------------------------


def test_the_first_socket_that_answers_is_asked(path, scripted, monkeypatch, tmp_path):
    monkeypatch.setenv("RONDEVU_SOCKET", str(tmp_path / "nothing"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    scripted(HELLO, result("here"))
    assert ask_status(None) == "here"


def test_where_nobody_answers_every_socket_is_told_with_what_is_wrong_there(monkeypatch, tmp_path):
    deaf = tmp_path / "deaf.sock"
    listen(deaf).close()
    monkeypatch.setenv("RONDEVU_SOCKET", str(deaf))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(sockets, "SYSTEM_SOCKET", str(tmp_path / ("x" * 200)))
    with pytest.raises(DaemonUnavailable) as unavailable:
        ask_status(None)
    told = str(unavailable.value).splitlines()
    assert told[1:3] == [
        f"  {deaf}: exists, but nobody listens there",
        f"  {tmp_path}/rondevud.sock: does not exist",
    ]
    assert told[3].endswith("path too long")


def test_a_socket_before_which_others_wait_already_is_silent(path):
    with listen(path, 0), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as first:
        first.connect(str(path))
        with pytest.raises(DaemonUnavailable, match="is held open, but no daemon answers there"):
            ask_status(path)


# --- waiting ---------------------------------------------------------------------------------------------------------


def test_a_daemon_that_is_started_later_answers_and_the_wait_is_told_once(path, scripted):
    told = []

    def tell():
        told.append(len(told))
        scripted(HELLO, result("late"))

    assert ask_status(path, hello_timeout=math.inf, timeout=math.inf, notice=Notice(0.0, tell)) == "late"
    assert told == [0]


def test_of_many_silent_sockets_one_word_is_enough(path, held, monkeypatch, tmp_path):
    told = []
    with listen(tmp_path / "other.sock"):
        monkeypatch.setenv("RONDEVU_SOCKET", str(tmp_path / "other.sock"))
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        monkeypatch.setattr(sockets, "SYSTEM_SOCKET", str(tmp_path / "none"))
        with pytest.raises(DaemonUnavailable) as unavailable:
            ask_status(None, hello_timeout=0.01, notice=Notice(0.0, lambda: told.append(1)))
    assert str(unavailable.value).count("is held open") == 2
    assert told == [1]


def test_an_answer_that_takes_long_is_no_reason_for_the_notice(path, scripted):
    notice = Notice(math.inf, lambda: pytest.fail("the daemon had answered"))
    more_than_is_read_at_once = b"x" * 3 * asking.READ_SIZE

    def late(connection):
        notice.at = 0.0
        connection.sendall(result(more_than_is_read_at_once))

    scripted(HELLO, late)
    assert ask_status(path, notice=notice) == more_than_is_read_at_once
    assert notice.at == 0.0


def test_the_wait_for_a_daemon_ends(path, held):
    with pytest.raises(DaemonUnavailable, match="is held open, but no daemon answers there"):
        ask_status(path, hello_timeout=0.01)


def test_the_wait_for_an_answer_ends_without_a_word_of_the_system(path, scripted):
    over = threading.Event()
    scripted(HELLO, lambda _: over.wait(PATIENCE))
    with pytest.raises(TimeoutError) as timed_out:
        ask_status(path, timeout=0.01)
    over.set()
    assert str(timed_out.value) == ""  # who asks has words for it


def test_the_wait_for_a_daemon_that_does_not_read_ends_as_quietly(path, scripted):
    over = threading.Event()
    scripted(HELLO, lambda _: over.wait(PATIENCE), deaf=True)
    with pytest.raises(TimeoutError) as timed_out:
        ask("expose", {"metadata": "x" * 8_000_000}, given=path, client="test", timeout=0.05)
    over.set()
    assert str(timed_out.value) == ""


@pytest.mark.parametrize("answers", [(), (HELLO,)])
def test_a_limit_is_for_everything(path, held, answers):
    over = threading.Event()
    daemon = Scripted(held, *answers, lambda _: over.wait(PATIENCE))
    with pytest.raises((DaemonUnavailable, TimeoutError)):
        ask_status(path, limit=0.05)
    over.set()
    daemon.end()


def test_a_wait_that_the_system_cannot_be_told_of_is_made_of_several(path, scripted, monkeypatch):
    monkeypatch.setattr(asking, "LONGEST_WAIT", 0.001)
    asked, waited = threading.Event(), threading.Event()
    left = asking._left

    def count(until, wake=math.inf):
        if asked.is_set():
            waited.set()
        return left(until, wake)

    monkeypatch.setattr(asking, "_left", count)

    def late(connection):
        asked.set()
        assert waited.wait(PATIENCE)
        connection.sendall(result("late"))

    scripted(HELLO, late)
    assert ask_status(path, timeout=1e9) == "late"


# --- what it costs ---------------------------------------------------------------------------------------------------


@pytest.mark.once
def test_asking_needs_neither_asyncio_nor_a_log():
    program = "import sys, rondevu_client.asking; print(*{'asyncio', 'logging', 'pathlib', 'ssl'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=50)
    assert done.stdout == "\n"
