"""Commands that ask once."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import pty
import re
import signal
import socket
import sys

import pytest

from rondevu_client.protocol import encode_response
from rondevud.ctl import queue
from rondevud.errors import RequestError
from rondevud.ipc.server import Server
from tests.unit.ctl.conftest import run, start


async def test_rows_are_columns_with_a_heading_when_nobody_looks(ctl):
    done = await ctl("connections")
    assert done.code == 0
    heading, row = done.out.splitlines()
    assert heading.split() == ["CONNECTION_ID", "NAME", "STATE", "PEER_NAME", "KIND", "CHANNELS"]
    assert row.split() == ["conn-a", "alice-chat", "connected", "-", "link", "-"]
    assert done.err == ""


async def test_the_service_of_a_connection_is_shown_on_either_side(ctl, house):
    rows = [{"service": None, "target": "bobby/a.b@1.0.0"}, {"service": "alice/a.b@1.0.0", "target": None}]
    house.connections = lambda: rows
    assert (await ctl("connections")).out.split() == ["SERVICE", "bobby/a.b@1.0.0", "alice/a.b@1.0.0"]
    assert json.loads((await ctl("connections", "--json")).out) == rows


async def test_columns_stand_under_their_headings(ctl, house):
    house.add_connection("conn-b", "b")
    lines = (await ctl("connections")).out.splitlines()
    assert [line.index("conne") for line in lines[1:]] == [lines[0].index("STATE")] * 2


@pytest.mark.parametrize("args", [("--json", "connections"), ("connections", "--json")])
async def test_json_is_what_the_daemon_said_before_or_behind_the_command(ctl, house, args):
    done = await ctl(*args)
    assert json.loads(done.out) == house.connections()
    assert done.out.count("\n") == 1


async def test_no_rows_are_a_message_and_no_result(ctl):
    assert (await ctl("services"))[:] == (0, "", "no services\n")
    assert json.loads((await ctl("services", "--json")).out) == []


async def test_status_and_clients_answer(ctl, house):
    assert json.loads((await ctl("--json", "status")).out) == {"version": "0.1.0", "connections": 1}
    (client,) = json.loads((await ctl("--json", "clients")).out)
    assert client["client"].startswith("rondevuctl (pid ")
    assert client["pid"] > 0


async def test_claim_and_check_answer(ctl):
    assert json.loads((await ctl("--json", "claim", "alice")).out) == {"username": "alice"}
    assert json.loads((await ctl("--json", "check", "alice")).out) == {"username": "alice", "available": False}


async def test_expose_hands_its_options_on(ctl, house):
    done = await ctl(
        "expose", "alice", "a.b@1.0.0", "--public", "--pool-size", "3", "--ttl", "60", "--metadata", '{"about": 1}', "--json"
    )  # fmt: skip
    assert json.loads(done.out)["created"] is True
    options = {"public": True, "pool_size": 3, "ttl": 60.0, "metadata": {"about": 1}}
    assert house.disk.services == {"alice/a.b@1.0.0": options}


async def test_expose_says_when_it_could_not_be_published_yet(ctl, house):
    house.published = False
    done = await ctl("--json", "expose", "alice", "a.b@1.0.0")
    assert (done.code, json.loads(done.out)["uuid"]) == (0, None)
    assert "not published yet" in done.err


async def test_exposing_with_other_options_is_refused_and_says_why(ctl):
    await ctl("expose", "alice", "a.b@1.0.0")
    done = await ctl("expose", "alice", "a.b@1.0.0", "--public")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("rondevuctl: it is declared with other options (conflict)\n`close` or `withdraw` it")


async def test_withdraw_removes_the_service(ctl, house):
    await ctl("expose", "alice", "a.b@1.0.0")
    assert (await ctl("withdraw", "alice", "a.b@1.0.0")).code == 0
    assert house.disk.services == {}


async def test_connect_answers_with_id_and_name(ctl):
    done = await ctl("--json", "connect", "bob", "a.b@1.0.0", "--name", "bob-chat")
    answer = json.loads(done.out)
    assert answer == {
        "connection_id": "conn-0000000000000002", "name": "bob-chat", "state": "connecting", "created": True
    }  # fmt: skip
    assert (await ctl("connect", "--uuid", "u")).out.splitlines()[1].split() == ["name", "uuid/u"]


@pytest.mark.parametrize("args", [("bob",), (), ("bob", "a.b@1.0.0", "--uuid", "u"), ("--uuid", "u", "bob")])
async def test_connect_with_neither_or_both_is_a_usage_error(ctl, args):
    done = await ctl("connect", *args)
    assert done.code == 2
    assert "either USER and FQN, or --uuid" in done.err


async def test_a_record_shows_keys_and_values(ctl):
    assert (await ctl("connect", "alice", "a.b@1.0.0", "--name", "alice-chat")).out == (
        "connection_id  conn-a\nname           alice-chat\nstate          connecting\ncreated        no\n"
    )


async def test_channels_and_queues_are_shown(ctl, house):
    house.get("conn-a", "main").deliver("one", "two")
    (row,) = json.loads((await ctl("--json", "channels", "alice-chat")).out)
    assert (row["label"], row["waiting"]) == ("main", 2)
    assert json.loads((await ctl("--json", "queue", "alice-chat", "main")).out)["waiting"] == 2


@pytest.mark.parametrize(("more", "direction"), [((), "both"), (("--direction", "out"), "out")])
async def test_a_purge_names_its_direction(ctl, house, more, direction):
    done = await ctl("--json", "queue", "alice-chat", "main", "--purge", *more)
    assert json.loads(done.out) == {"direction": direction}


async def test_a_direction_without_purge_is_a_usage_error(ctl):
    assert (await ctl("queue", "alice-chat", "main", "--direction", "in")).code == 2


async def test_what_is_set_aside_is_listed_put_back_and_removed(ctl):
    command = ("queue", "alice-chat", "main")
    rows = json.loads((await ctl("--json", *command, "--failed")).out)
    assert [(row["id"], row["head"]) for row in rows] == [("ep-1", "cG9pc29u"), ("ep-2", "cG9pc29u")]
    assert re.search(r"^ep-1 +3 +100 .* poison…$", (await ctl(*command, "--failed")).out, re.MULTILINE)
    assert json.loads((await ctl("--json", *command, "--put-back", "all")).out) == {"put_back": 2}
    assert json.loads((await ctl("--json", *command, "--retry", "ep-1")).out) == {"put_back": 1}
    assert json.loads((await ctl("--json", *command, "--failed", "--purge")).out) == {"direction": "failed"}


@pytest.mark.parametrize(
    "options", [("--put-back", "all", "--purge"), ("--failed", "--purge", "--direction", "in"), ("--put-back",)]
)
async def test_options_of_queue_that_do_not_go_together_are_usage_errors(ctl, options):
    assert (await ctl("queue", "alice-chat", "main", *options)).code == 2


def test_what_became_of_messages_is_told_in_words(capsys):
    totals = dict.fromkeys((*queue.OUT, *queue.IN), 0) | {
        "accepted": 12,
        "acknowledged": 9,
        "expired": 1,
        "received": 5,
    }
    totals |= {"taken": 2, "purged_in": 1}
    facts = {"queue_size": 2, "failed": 1, "queue_age": 12.3, "waiting_age": None}
    queue._show({**facts, "totals": totals}, as_json=False)
    said = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert (said["queue_age"], said["waiting_age"]) == ("12 s", "-")
    assert said["accepted"] == "12: 9 acknowledged, 1 expired, 2 queued"
    assert said["received"] == "5: 2 taken, 1 purged, 1 failed, 1 waiting"


async def test_close_ends_the_connection(ctl, house):
    assert json.loads((await ctl("--json", "close", "alice-chat", "--drain", "0")).out) == {"drain": 0.0}
    assert house.disk.connections == {}


async def test_an_unknown_target_is_refused_with_exit_code_1(ctl):
    done = await ctl("close", "nobody")
    assert (done.code, done.out) == (1, "")
    assert "'nobody' (unknown_target)" in done.err


async def test_a_wait_that_takes_too_long_ends_with_exit_code_4(ctl):
    done = await ctl("wait", "alice-chat", "connected", "--timeout", "0")
    assert (done.code, done.out) == (4, "")
    assert "(timeout)" in done.err


async def test_an_interrupted_wait_ends_with_exit_code_130(begin, house):
    waiting = asyncio.Event()

    async def wait(_target, _what, _timeout):
        waiting.set()
        await house.forever.wait()

    house.wait = wait
    process = await begin("wait", "alice-chat", "connected")
    await waiting.wait()
    process.send_signal(signal.SIGINT)
    assert await process.communicate() == (b"", b"")
    assert process.returncode == 130


@pytest.mark.parametrize(
    "args", [("nonsense",), ("expose", "alice"), ("wait", "alice", "gone"), ("expose", "a", "b", "--metadata", "{")]
)
async def test_a_wrong_word_is_a_usage_error(ctl, args):
    done = await ctl(*args)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Usage: ")


async def test_without_a_daemon_it_says_what_was_tried_and_how_to_start_one(tmp_path):
    env = {**os.environ, "RONDEVU_SOCKET": str(tmp_path / "a"), "XDG_RUNTIME_DIR": str(tmp_path / "b")}
    done = await run(None, "status", env=env)
    assert (done.code, done.out) == (3, "")
    assert f"{tmp_path}/a: does not exist" in done.err
    assert f"{tmp_path}/b/rondevud.sock: does not exist" in done.err
    assert "rondevud run" in done.err


async def test_help_lists_all_commands_and_exit_codes_without_a_daemon():
    done = await run(None, "--help")
    assert done.code == 0
    for word in ("status", "services", "connections", "channels", "clients", "claim", "expose", "connect", "tail"):
        assert f"\n  {word} " in done.out
    assert "3    no daemon answers" in done.out


@pytest.mark.parametrize("command", ["status", "tail", "send", "events", "connect", "queue"])
async def test_help_of_a_command_describes_its_json(command):
    done = await run(None, command, "--help")
    assert done.code == 0
    assert "JSON" in done.out


@pytest.fixture
def held(path):
    """The socket as systemd holds it: who connects waits for a daemon."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as held:
        held.bind(str(path))
        held.listen()
        yield held


@pytest.mark.parametrize("command", ["status", "tail conn-a main", "top"])
async def test_where_a_socket_is_held_and_no_daemon_answers_the_wait_ends_and_says_so(path, held, command):
    done = await run(path, "--daemon-timeout", "0.2", *command.split())
    assert (done.code, done.out) == (3, "")
    assert f"{path}: is held open, but no daemon answers there\n" in done.err
    assert "`systemctl status rondevud`" in done.err
    assert "`journalctl -u rondevud`" in done.err
    assert "waiting" not in done.err  # nobody looks on


async def test_who_waits_for_a_daemon_that_is_being_started_is_told_and_answered(path, held, house):
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "rondevud.ctl.main", "--socket", str(path), "--daemon-timeout", "inf", "connections",
        stdout=asyncio.subprocess.PIPE, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    said = b""
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        while "waiting for the daemon …\r\n".encode() not in said:
            said += await asyncio.to_thread(terminal.read, 1000)
        server = Server(house, descriptor=held.detach())
        await server.start()
        out, _ = await process.communicate()
        await server.stop()
    assert process.returncode == 0
    assert b"alice-chat" in out


@pytest.fixture
def hears(path):
    """A daemon that says something when it has heard the hello, and then hangs up unless that is nothing."""
    servers = []

    async def begin(answer):
        heard = asyncio.Event()

        async def hear(reader, writer):
            await reader.read(1000)
            heard.set()
            if answer:
                writer.write(answer)
                await writer.drain()
            else:
                await reader.read()
            writer.close()

        servers.append(await asyncio.start_unix_server(hear, path))
        return heard

    yield begin
    for server in servers:
        server.close()


async def test_who_waits_for_a_daemon_may_interrupt_it(path, hears):
    heard = await hears(b"")
    process = await start(path, "status")
    await heard.wait()
    process.send_signal(signal.SIGINT)
    assert await process.communicate() == (b"", b"")
    assert process.returncode == 130


async def test_something_else_at_the_socket_is_named_and_no_daemon(path, hears):
    await hears(b"SSH-2.0-OpenSSH_9.2\r\n")
    done = await run(path, "status")
    assert (done.code, done.out) == (3, "")
    assert f"{path}: the daemon's socket is closed: the daemon broke the protocol: a frame is an array" in done.err
    assert "Traceback" not in done.err


async def test_a_daemon_that_breaks_off_is_exit_code_3(path, hears):
    await hears(encode_response(1, {"version": "0.1.0", "instance": "i"}))
    done = await run(path, "status")
    assert (done.code, done.out) == (3, "")
    assert done.err.startswith("rondevuctl: the daemon's socket is closed")


async def test_an_answer_for_which_no_reader_is_left_is_no_error(begin):
    reading, writing = os.pipe()
    os.close(reading)
    process = await begin("connections", stdout=writing)
    os.close(writing)
    assert await process.wait() == 0
    assert await process.stderr.read() == b""


async def test_a_reload_says_what_it_changed(ctl):
    done = await ctl("reload")
    assert done.out.splitlines()[0].split() == ["added", "alice/a.b@1.0.0"]
    assert [line.split()[0] for line in done.out.splitlines()] == ["added", "restart_needed"]  # and not what is empty
    assert "`systemctl restart rondevud`" in done.err
    assert json.loads((await ctl("reload", "--json")).out)["restart_needed"] == ["daemon.socket"]


async def test_a_reload_of_the_same_file_says_that_nothing_has_changed(ctl, house):
    async def reload():
        return {"added": [], "changed": [], "removed": [], "restart_needed": [], "detached": 0}

    house.reload = reload
    assert (await ctl("reload"))[:] == (0, "", "rondevuctl: nothing has changed\n")


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        ("bad_config", "check-config"),
        ("restart_needed", "systemctl restart rondevud"),
        ("access_denied", "[[access.rule]]"),
        ("backup_failed", "/var/lib/rondevud"),
    ],
)
async def test_what_can_be_done_about_a_refusal_is_said(ctl, house, code, hint):
    async def refuse():
        raise RequestError(code, "no")

    house.reload = refuse
    done = await ctl("reload")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"rondevuctl: no ({code})\n")
    assert hint in done.err


async def test_the_time_since_the_start_is_told_as_people_do(ctl, house):
    house.status = functools.partial(asyncio.sleep, 0, {"uptime": 7_200.0})
    assert (await ctl("status")).out.split() == ["uptime", "2", "h"]
    assert json.loads((await ctl("status", "--json")).out) == {"uptime": 7_200.0}


async def test_no_line_of_help_is_cut(ctl):
    for done in [await run(None, "--help"), await run(None, "key", "--help")]:
        commands = done.out.split("\nCommands:\n")[1].split("\n\n")[0]
        assert not [line for line in commands.splitlines() if line.endswith("...")]


async def test_the_directory_for_files_is_made_if_its_parent_is_there(ctl, tmp_path):
    refused = await ctl("receive-files", "nobody", tmp_path / "in")
    assert (refused.code, (tmp_path / "in").is_dir()) == (1, True)
    assert "nobody" in refused.err
    refused = await ctl("receive-files", "nobody", tmp_path / "a/in")
    assert (refused.code, refused.err) == (1, f"rondevuctl: {tmp_path}/a/in: No such file or directory\n")
