"""The commands as one types them: the README's quick start, and `rondevud` itself."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from rondevud.ctl.main import main as ctl
from rondevud.main import main as rondevud

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")

pytestmark = [pytest.mark.acceptance, pytest.mark.once, pytest.mark.timeout(120)]


class Done(NamedTuple):
    code: int
    out: str
    err: str


def surroundings(tmp_path, **more):
    """No daemon, state or configuration of this machine's user, and the commands of this interpreter."""
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "RONDEV", "STATE_", "NOTIFY"))
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**kept, "PATH": path, "XDG_CONFIG_HOME": str(tmp_path / "config"), **more}


async def begin(tmp_path, *args, **env):
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "rondevud", *map(str, args), cwd=tmp_path, env=surroundings(tmp_path, **env),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


async def run(tmp_path, *args, **env):
    process = await begin(tmp_path, *args, **env)
    out, err = await process.communicate()
    return Done(process.returncode, out.decode(), err.decode())


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# --- the README --------------------------------------------------------------------------------------------------------


def blocks():
    """Language and text of each fenced block with a language, in the README's quick start."""
    part = README[README.index("## Quick start") : README.index("## The Python library")]
    return re.findall(r"^```(\w+)\n(.*?)^```", part, flags=re.MULTILINE | re.DOTALL)


WAIT = """
for name in alice bob; do until rondevuctl --socket $name.sock status >/dev/null 2>&1; do sleep 0.1; done; done
"""


def script(tmp_path, port):
    """The quick start as one script; where it tells people to wait a little, wait until the daemons answer."""
    lines = ["set -e", "trap 'kill $(jobs -p) 2>/dev/null' EXIT"]
    for language, text in blocks():
        if language == "python":
            name = re.match(r"# (\w+\.py)\n", text)[1]
            (tmp_path / name).write_text(text, encoding="utf-8")
        else:
            lines += [text.replace("127.0.0.1:3000", f"127.0.0.1:{port}")]
            lines += [WAIT] if "rendezvous" in text else []
    return "\n".join(lines)


async def test_the_quick_start_of_the_readme_does_what_it_says(tmp_path):
    process = await asyncio.create_subprocess_exec(
        "bash", "-c", script(tmp_path, free_port()), cwd=tmp_path, env=surroundings(tmp_path), start_new_session=True,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        out, err = await process.communicate()
    except asyncio.CancelledError:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    text = out.decode()
    assert process.returncode == 0, err.decode()
    assert "rondevud.toml: correct" in text
    assert re.search(r"^state +acknowledged$", text, re.MULTILINE)
    assert re.search(r"^conn-\w+ .* connected +alice-chat +link +1 +0 +1 ", text, re.MULTILINE)
    assert re.search(r"^state +accepted$", text, re.MULTILINE)
    assert re.search(r"^queue_size +1$", text, re.MULTILINE)
    echoes = re.findall(r"^Echo: (.*) \w+-\d+ (?:True|False)$", text, re.MULTILINE)
    assert echoes == ["hello", "are you there?", "and now?"]


def commands_in_table(program):
    part = README[README.index("## Commands") : README.index("## Configuration")]
    rows = [row.split("|")[1] for row in part.splitlines() if row.startswith(f"| `{program} ")]
    return {name for row in rows for name in re.findall(rf"`(?:{program} )?([a-z-]+)", row)} - {"drained"}


@pytest.mark.parametrize(("program", "group"), [("rondevud", rondevud), ("rondevuctl", ctl)])
def test_the_readme_lists_the_commands_there_are(program, group):
    assert commands_in_table(program) == set(group.commands)


# --- rondevud ----------------------------------------------------------------------------------------------------------


async def test_help_and_version_answer(tmp_path):
    help_ = await run(tmp_path, "--help")
    assert help_.code == 0
    assert "3    the state directory is in use" in help_.out
    assert re.fullmatch(r"rondevud, version \d+\.\d+\.\d+\n", (await run(tmp_path, "--version")).out)


@pytest.mark.parametrize("command", ["check-config", "run"])
async def test_a_wrong_configuration_is_told_line_by_line(tmp_path, command):
    (tmp_path / "bad.toml").write_text('[queue]\ndurabilty = "disk"\n[daemon]\nlog_level = "loud"\n', encoding="utf-8")
    args = ("check-config", "bad.toml") if command == "check-config" else ("run", "--config", "bad.toml")
    done = await run(tmp_path, *args)
    assert (done.code, done.out) == (1, "")
    assert len(done.err.splitlines()) == 2
    assert all(line.startswith("rondevud: bad.toml:") for line in done.err.splitlines())
    assert "durabilty" in done.err
    assert "log_level" in done.err


async def test_a_right_configuration_is_summed_up(tmp_path):
    text = '[rendezvous]\nenabled = true\n[[service]]\nusername = "alice"\nfqn = "com.example.chat@1.0.0"\n'
    (tmp_path / "good.toml").write_text(text, encoding="utf-8")
    done = await run(tmp_path, "check-config", "good.toml")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("good.toml: correct\n")
    assert re.search(r"signalling +this daemon's own, http://127.0.0.1:3000\n", done.out)
    assert re.search(r"services +alice/com.example.chat@1.0.0\n", done.out)


async def test_a_file_that_is_not_there_is_an_error_when_it_was_named(tmp_path):
    done = await run(tmp_path, "check-config", "nothing.toml")
    assert (done.code, done.err) == (1, "rondevud: nothing.toml: cannot be read: No such file or directory\n")


@pytest.mark.parametrize("args", [("nonsense",), ("run", "extra"), ("rendezvous", "--listen", "3000")])
async def test_a_wrong_word_is_a_usage_error(tmp_path, args):
    done = await run(tmp_path, *args)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Usage: ")


async def test_an_unknown_loop_is_a_usage_error(tmp_path):
    done = await run(tmp_path, "rendezvous", "--store", "memory", RONDEVUD_LOOP="twisted")
    assert done.code == 2
    assert "expected asyncio or uvloop" in done.err


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_signalling_server_prints_its_url_and_stops_at_a_signal(tmp_path, loop, number):
    process = await begin(
        tmp_path, "rendezvous", "--listen", "127.0.0.1:0", "--store", "sqlite:x.db", RONDEVUD_LOOP=loop
    )
    url = (await process.stdout.readline()).decode().strip()
    host, port = re.fullmatch(r"http://(127.0.0.1):(\d+)", url).groups()
    _, writer = await asyncio.open_connection(host, int(port))
    writer.close()
    await writer.wait_closed()
    process.send_signal(number)
    out, err = await process.communicate()
    assert (process.returncode, out) == (0, b""), err


async def test_two_signalling_servers_do_not_share_a_state_directory(tmp_path):
    args = ("rendezvous", "--listen", "127.0.0.1:0", "--state-dir", "state")
    first = await begin(tmp_path, *args)
    await first.stdout.readline()
    second = await run(tmp_path, *args)
    assert (second.code, second.out) == (3, "")
    assert f"in use by process {first.pid}" in second.err
    first.terminate()
    await first.communicate()
    assert first.returncode == 0
    assert (tmp_path / "state" / "rendezvous.db").exists()


async def test_a_port_that_is_taken_is_one_line_and_exit_code_1(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        done = await run(tmp_path, "rendezvous", "--listen", listen, "--store", "memory")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"rondevud: signalling server: cannot listen on {listen}: Address already in use")
    assert done.err.count("\n") == 1


IN_A_NAMESPACE = """
import json, socket, subprocess, sys, urllib.request

listen, address = sys.argv[1:]
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
command = [sys.executable, "-m", "rondevud", "rendezvous", "--store", "memory", "--listen", listen]
with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
    url = server.stdout.readline().strip()
    try:
        urllib.request.urlopen(url + "/", timeout=20)
    except OSError:
        print("not yet")
    subprocess.run(["ip", "address", "add", address, "dev", "lo", *(["nodad"] if ":" in address else [])], check=True)
    with urllib.request.urlopen(url + "/", timeout=20) as answer:
        print(answer.status)
    server.terminate()
    print(server.stderr.read())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a network namespace")
@pytest.mark.parametrize(
    ("listen", "address"), [("192.0.2.1:0", "192.0.2.1/32"), ("[2001:db8::1]:0", "2001:db8::1/128")]
)
async def test_an_address_that_is_not_there_yet_is_listened_at_all_the_same(tmp_path, listen, address):
    process = await asyncio.create_subprocess_exec(
        "unshare", "--net", sys.executable, "-c", IN_A_NAMESPACE, listen, address, cwd=tmp_path,
        env=surroundings(tmp_path), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    assert out.decode().split("\n")[:2] == ["not yet", "200"]
    assert f"{address.split('/')[0]} is no address of this machine" in out.decode()


async def test_a_second_daemon_on_one_state_directory_ends_with_exit_code_3(tmp_path):
    first = await begin(tmp_path, "run", "--socket", "a.sock", "--state-dir", "state")
    while b"is ready" not in await first.stderr.readline():
        assert not first.stderr.at_eof()
    second = await run(tmp_path, "run", "--socket", "b.sock", "--state-dir", "state")
    assert second.code == 3
    assert f"in use by process {first.pid}" in second.err
    first.terminate()
    await first.communicate()
    assert first.returncode == 0
    assert not (tmp_path / "a.sock").exists()
