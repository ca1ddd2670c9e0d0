"""What people see."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time

import pytest

from rondevud.ctl.output import one_line, printable, span

SHOW = """
from rondevud.ctl.output import show_rows
show_rows([{"name": "[bold]x", "state": "a\\x1b[1mb"}], ["name", "state", "other"], as_json=False, none="none")
"""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.25, "250 ms"), (3.21, "3.21 s"), (119, "119 s"), (600, "10 min"), (9_000, "2.5 h"), (90 * 86_400, "90.0 d"),
     (5_000 * 86_400, "5,000.0 d")],
)  # fmt: skip
def test_a_length_of_time_is_told_as_people_do(seconds, text):
    assert span(seconds) == text


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("x", None, "-"),
        ("x", "", "-"),
        ("x", [], "-"),
        ("x", True, "yes"),
        ("x", False, "no"),
        ("x", 0, "0"),
        ("x", 1.5, "1.5"),
        ("x", 1_700_000_000.0, "1.7e+09"),
        ("expires_at", 0, time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(0))),
        ("x", "a\nb\x1b", "a\\nb\\x1b"),
        ("x", ["a", "b"], "a, b"),
        ("channels", [{"label": "main", "waiting": 1}], "main"),
        ("x", {"a": 1, "b": None}, "a 1, b -"),
        ("x", {"a": [1]}, '{"a": [1]}'),
    ],
)
def test_any_value_fits_in_one_line(key, value, text):
    assert one_line(key, value) == text


def test_control_characters_are_escaped_but_lines_and_tabs():
    assert printable("a\tb\nc\x1b[0m\u202e\x85") == "a\tb\nc\\x1b[0m\\u202e\\x85"


WIDE = """
from rondevud.ctl.output import show_rows
rows = [{"name": f"name-{n}", "state": "connected", "error": "x" * 50, "kind": None} for n in (1, 2)]
show_rows(rows, ["name", "state", "kind", "error"], as_json=False, none="none")
"""


def shown_on_terminal(program, columns):
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": str(columns)}
    subprocess.run([sys.executable, "-c", program], stdout=theirs, check=True, env=env)
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    return shown.replace("\r\n", "\n")


def test_rows_that_fit_are_a_table_without_empty_columns():
    lines = shown_on_terminal(WIDE, 80).splitlines()
    assert len(lines) == 3
    assert "NAME    STATE      ERROR" in lines[0]


def test_rows_that_do_not_fit_are_records():
    text = "name   name-1\nstate  connected\nerror  " + "x" * 50 + "\n"
    assert shown_on_terminal(WIDE, 68) == text + "\n" + text.replace("name-1", "name-2")


def test_on_a_terminal_rows_are_a_table_and_nothing_in_them_is_obeyed():
    shown = shown_on_terminal(SHOW, 80)
    assert "[bold]x" in shown
    assert "a\\x1b[1mb" in shown
    assert "other" not in shown
