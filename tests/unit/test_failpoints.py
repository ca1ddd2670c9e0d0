"""Failpoints: what the variable can say, that the points in the source are the known ones, and that they cost nothing."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import rondevud
from rondevud import failpoints, records
from rondevud.durable import frames
from rondevud.errors import ConfigError

POINTS = (
    "commit.before",
    "commit.after",
    "checkpoint.before",
    "checkpoint.after",
    "deliver.before",
    "deliver.after",
    "accepted.before",
    "accepted.after",
    "acknowledged.before",
    "acknowledged.after",
    "message.before",
    "message.after",
    "attach.before",
    "attach.after",
    "upgrade.before",
    "upgrade.within",
    "upgrade.after",
    "plain.before",
    "plain.after",
)
FRAME_PLACES = ("send.before", "send.after", "receive.before", "receive.after")
OPERATION_PLACES = ("write", "stored")


def names_in_the_source() -> dict[str, set[str]]:
    """The first argument of every call of a function of `failpoints`, by function; "?" for one that is not a literal."""
    found: dict[str, set[str]] = {"hit": set(), "hit_frame": set(), "hit_operation": set()}
    for path in Path(rondevud.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(ast.Attribute(ast.Name("failpoints"), function), [first, *_]):
                    found[function].add(first.value if isinstance(first, ast.Constant) else "?")
    return found


def test_the_points_in_the_source_are_those_that_are_known():
    found = names_in_the_source()
    assert found == {"hit": set(POINTS), "hit_frame": set(FRAME_PLACES), "hit_operation": set(OPERATION_PLACES)}


def test_every_kind_of_frame_has_a_name():
    assert failpoints.FRAME_KINDS.keys() == frames._DECODERS.keys()
    classes = {kind.__name__.lower() for kind in frames._ENCODERS}
    assert set(failpoints.FRAME_KINDS.values()) == classes


def test_what_the_variable_says():
    assert failpoints.parse("commit.before:3") == [failpoints.Failpoint("commit.before", 3, "kill")]
    assert failpoints.parse("write.Put:1:raise, deliver.after:2:delay:0.5") == [
        failpoints.Failpoint("write.Put", 1, "raise"),
        failpoints.Failpoint("deliver.after", 2, "delay", 0.5),
    ]


@pytest.mark.parametrize(
    "wrong",
    ["commit.before", "a:0", "a:x", ":1", "a:1:sing", "a:1:delay", "a:1:delay:-1", "a:1:delay:inf", "a:1:kill:3"],
)
def test_a_wrong_value_is_refused_by_name(wrong):
    with pytest.raises(ConfigError, match="RONDEVU_FAILPOINT: ") as refused:
        failpoints.parse(f"commit.after:1,{wrong}")
    assert wrong in str(refused.value)


def test_a_point_acts_at_its_hit_and_at_no_other():
    armed = failpoints.Armed(failpoints.parse("here:2:raise,there:1:raise"))
    armed.hit("here")
    with pytest.raises(failpoints.FailpointReached, match="here"):
        armed.hit("here")
    armed.hit("here")
    with pytest.raises(failpoints.FailpointReached, match="there"):
        armed.hit("there")


def test_frames_and_operations_are_named():
    ping = frames.encode(frames.Ping(1))
    armed = failpoints.Armed(failpoints.parse("send.before.ping:1:raise,write.SaveSession:1:raise"))
    armed.hit_frame("send.after", ping)
    armed.hit_frame("send.before", frames.encode(frames.Pong(1)))
    armed.hit_frame("send.before", "no frame at all")
    armed.hit_frame("send.before", b"")
    with pytest.raises(failpoints.FailpointReached):
        armed.hit_frame("send.before", ping)
    with pytest.raises(failpoints.FailpointReached):
        armed.hit_operation(
            "write", records.SaveSession(records.SessionRecord("c", records.Role.SERVICE, "", b"", b""))
        )


def run(program: str, points: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, failpoints.VARIABLE: points},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_a_process_dies_at_its_point():
    done = run("from rondevud import failpoints\nfor n in range(5): failpoints.hit('a'); print(n, flush=True)", "a:3")
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "0\n1\n")


def test_without_the_variable_nothing_happens():
    done = run("from rondevud import failpoints\nfailpoints.hit('a'); print(failpoints.hit.__name__)", "")
    assert (done.returncode, done.stdout) == (0, "_hit_nothing\n")


def test_the_daemon_refuses_a_wrong_value_in_one_line(tmp_path):
    command = f"import sys; sys.argv = ['rondevud', 'run', '--state-dir', {str(tmp_path)!r}]; import rondevud.__main__"
    done = run(command, "nonsense")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("rondevud: RONDEVU_FAILPOINT: 'nonsense' is not NAME:COUNT")
