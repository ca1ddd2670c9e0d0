"""How progress is shown."""

from __future__ import annotations

import json

import pytest

from rondevud.ctl.files.progress import JsonLines, Lines, format_size

KEY = b"key"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def facts(received: int, state: str = "sending") -> dict:
    return {"name": "a\x1b[0m", "state": state, "received": received, "size": 2048}


def test_lines_come_now_and_then(capsys):
    clock = Clock()
    lines = Lines(clock)
    for received in (0, 512, 1024):
        lines.show(KEY, facts(received))
        clock.now += 3
    lines.end(KEY, facts(2048), "a: done")
    out, err = capsys.readouterr()
    assert out == "a: done\n"
    assert err == "rondevuctl: a\\x1b[0m: sending, 1.0 KiB of 2.0 KiB (50 %)\n"


def test_lines_of_json_come_every_second_and_at_the_end(capsys):
    clock = Clock()
    lines = JsonLines(clock)
    for received in range(0, 2000, 100):
        lines.show(KEY, facts(received))
        clock.now += 0.25
    lines.end(KEY, facts(2048, "done"), "")
    out = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["received"] for line in out] == [400, 800, 1200, 1600, 2048]


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (2**30, "1.0 GiB"), (2**60, "1048576.0 TiB")]
)
def test_sizes_are_short(size, text):
    assert format_size(size) == text
