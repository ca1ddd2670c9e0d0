"""The benchmark itself: a small run of it with real processes. What it measures means nothing here."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.processes import LIMIT
from tests.bench.__main__ import main
from tests.bench.figures import Report
from tests.bench.machine import describe
from tests.bench.pairs import Timing
from tests.bench.plan import Plan, carry_out, usable
from tests.bench.scene import Failed, scene
from tests.bench.throughput import Shape

pytestmark = [pytest.mark.once, pytest.mark.acceptance, LIMIT]

ENGINE = usable()[-1]
SIZE = 16 * 1024
SMALL = Plan(
    parts=("throughput",),
    engines=[ENGINE],
    durabilities=["disk", "memory"],
    repeat=1,
    shapes=[Shape(SIZE)],
    others=[],
    timing=Timing(0.05, 0.25),
    delays=Timing(0.1, 0.4),
    times=1,
    depths=[],
    links=[],
    quiet=0.0,
    fresh=False,
)
WORKERS = {"sender", "receiver"}
DAEMONS = {"sending daemon", "receiving daemon"}


async def test_a_small_run_writes_a_report_that_can_be_shown_and_compared(tmp_path, capsys):
    report = Report(describe(tmp_path))
    await carry_out(SMALL, report, tmp_path)
    check_figures(report)

    path, again = tmp_path / "bench.json", tmp_path / "again.json"
    report.save(path)
    Report.load(path).save(again)
    assert again.read_text() == path.read_text()
    capsys.readouterr()

    assert main(["--show", str(path)]) == 0
    shown = capsys.readouterr().out
    assert f"{ENGINE}, daemon, disk" in shown
    assert f"{ENGINE}, raw, message per send" in shown
    assert f"{report.about['python']}" in shown

    assert main(["--compare", str(path), str(again)]) == 0
    compared = capsys.readouterr().out
    assert compared.count(" 1.00 x ") == sum(each.value > 0 for each in report)
    assert "only" not in compared

    check_damaged(path, again, capsys)


@pytest.mark.parametrize(("error", "said"), [(TimeoutError(), "not done within 90 s"), (AssertionError("why"), "why")])
async def test_a_part_that_fails_says_so_and_shows_the_logs(tmp_path, capsys, error, said):
    with pytest.raises(Failed, match=f"^this part: {said}$"):
        async with scene(tmp_path, "this part", 90.0, fresh=False):
            raise error
    assert "signalling server listens on" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def check_figures(report: Report) -> None:
    ways = [{"via": "daemon", "durability": "disk"}, {"via": "daemon", "durability": "memory"}]
    ways += [{"via": "raw", "mode": "message per send"}]
    for way in ways:
        same = {"engine": ENGINE, "size": SIZE, "labels": 1, "directions": 1, **way}
        rate = report.value("throughput", **same)
        assert rate is not None, way
        assert rate > 0
        worked = {
            each.parameters["process"]: each.value for each in report.named("processor time of a message", **same)
        }
        assert worked.keys() == (WORKERS | DAEMONS if way["via"] == "daemon" else WORKERS)
        assert sum(worked.values()) > 0
    assert len(report.named("throughput")) == len(ways)


def check_damaged(path: Path, damaged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged.write_text(path.read_text()[:-20])
    assert main(["--compare", str(path), str(damaged)]) == 2
    out, err = capsys.readouterr()
    assert f"{damaged} is no report of the benchmark" in err
    assert not out
