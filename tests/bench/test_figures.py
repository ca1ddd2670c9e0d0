"""What the benchmark makes of what it measured: figures, the file, the table, the floor."""

from __future__ import annotations

import json
import math
import re

import pytest

from tests.bench import goals, plots, table
from tests.bench.__main__ import main, options
from tests.bench.figures import Report
from tests.bench.plan import Plan
from tests.bench.scene import _place
from tests.bench.talk import Arrivals, Window, percentiles

SHAPE = {"size": 64, "labels": 1, "directions": 1}
DAEMON = {"engine": "aiortc", "via": "daemon", "durability": "disk"}


def made(**rates: float) -> Report:
    """A report with throughput of the raw engine by its ways to send, and of daemons."""
    report = Report({"python": "3.13.0"})
    for mode in ("message per send", "16 KiB frames"):
        if (rate := rates.get(mode.split()[-1])) is not None:
            report.add("throughput", "messages/s", rate, engine="aiortc", via="raw", mode=mode, **SHAPE)
    if "daemon" in rates:
        report.add("throughput", "messages/s", rates["daemon"], **DAEMON, **SHAPE)
    return report


def line_of(report: Report, *words: str) -> str:
    (found,) = [line for line in table.lines(report) if all(word in line for word in words)]
    return found


def test_the_value_of_a_figure_is_the_median_of_its_runs():
    report = Report({})
    for value in (9.0, 1.0, 2.0):
        report.add("delay", "ms", value, engine="aiortc")
    assert report.value("delay", engine="aiortc") == 2.0
    assert report.value("delay", engine="libdatachannel") is None


def test_the_table_shows_the_ratio_to_both_ways_to_send():
    line = line_of(made(send=5_000.0, frames=20_000.0, daemon=40_000.0), "daemon, disk")
    assert "8.00 x" in line
    assert "2.00 x" in line


@pytest.mark.parametrize(("send", "frames"), [(5_000.0, 20_000.0), (20_000.0, 5_000.0)])
def test_the_baseline_is_the_better_way_to_send(send, frames):
    report = made(send=send, frames=frames)
    assert report.raw("aiortc", **SHAPE) == 20_000.0
    assert report.raw("aiortc", "message per send", **SHAPE) == send


def test_without_a_raw_figure_there_is_no_ratio():
    assert " x " not in line_of(made(daemon=40_000.0), "daemon, disk")
    assert not [line for line in goals.lines(made(daemon=40_000.0)) if "x raw" in line]


@pytest.mark.parametrize(("daemon", "word"), [(50_000.0, "met"), (49_000.0, "MISSED")])
def test_a_goal_is_met_or_missed(daemon, word):
    (line,) = [line for line in goals.lines(made(send=5_000.0, frames=90_000.0, daemon=daemon)) if "x raw" in line]
    assert line.startswith(word)


def test_a_slow_raw_engine_is_found_and_a_fast_one_is_not():
    assert table.too_slow(made(send=2_900.0)) == []
    (line,) = table.too_slow(made(send=2_800.0, frames=90_000.0))
    assert "aiortc, 64 B: 2,800" in line
    assert table.too_slow(Report({})) == []


def test_a_comparison_tells_factors_and_what_only_one_has():
    before, after = made(send=2_000.0, frames=1.0), made(send=1_000.0, daemon=3.0)
    lines = list(table.comparison(before, after))
    assert [line for line in lines if " 0.50 x " in line and "message per send" in line]
    assert [line for line in lines if line.startswith("only before: ") and "16 KiB frames" in line]
    assert [line for line in lines if line.startswith("only after: ") and "daemon" in line]


def test_the_file_does_not_depend_on_the_order_of_measuring(tmp_path):
    for name, counts in (("one", (10, 500, 100)), ("other", (500, 100, 10))):
        report = Report({"python": "3.13.0"})
        for count in counts:
            report.add("memory", "KiB", float(count), links=count, engine="aiortc")
        report.save(tmp_path / name)
    assert (tmp_path / "one").read_text() == (tmp_path / "other").read_text()
    stored = json.loads((tmp_path / "one").read_text())["figures"]
    assert [each["parameters"]["links"] for each in stored] == [10, 100, 500]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "Expecting property name"),
        ("[]", "list indices"),
        ("{}", "'format' is missing"),
        ('{"format": 99}', "format 99, this program knows 1"),
        ('{"format": 1, "about": {}, "figures": [{"name": "a", "unit": "s", "parameters": {}}]}', "'runs' is missing"),
        (
            '{"format": 1, "about": {}, "figures": [{"name": "a", "unit": "s", "parameters": {}, "runs": []}]}',
            "the runs of 'a' are []",
        ),
    ],
)
def test_what_is_no_report_is_refused_by_name(tmp_path, capsys, text, said):
    path = tmp_path / "bench.json"
    path.write_text(text)
    assert main(["--show", str(path)]) == 2
    error = capsys.readouterr().err
    assert str(path) in error
    assert said in error


def test_a_file_that_is_not_there_is_named(tmp_path, capsys):
    assert main(["--show", str(tmp_path / "none.json")]) == 2
    assert f"{tmp_path / 'none.json'} cannot be read: No such file" in capsys.readouterr().err


def test_a_part_that_ran_out_of_time_says_where_it_was():
    error = TimeoutError()
    try:
        int("no number")
    except ValueError as cause:
        error.__context__ = cause
    assert re.fullmatch(r', at test_figures\.py:\d+, int\("no number"\)', _place(error))
    assert not _place(TimeoutError())


def test_arrivals_count_within_the_window_only(monkeypatch):
    arrivals, times = Arrivals(), [9.0, 10.0, 10.5, 11.0, 12.0]
    monkeypatch.setattr("tests.bench.talk.time.monotonic", iter(times).__next__)
    arrivals.window = Window(0.0, 10.0, 12.0)
    for _ in times:
        arrivals.note(100)
    assert arrivals.result()["bytes_per_second"] == 200.0  # two of them in the second after the first
    assert (arrivals.messages, arrivals.total, arrivals.begun) == (5, 500, 9.0)


def test_of_what_comes_too_late_for_the_window_everything_counts(monkeypatch):
    arrivals, times = Arrivals(), [11.5, 12.0, 13.0, 13.5]
    monkeypatch.setattr("tests.bench.talk.time.monotonic", iter(times).__next__)
    arrivals.window = Window(0.0, 10.0, 12.0)
    for _ in times:
        arrivals.note(100)
    assert arrivals.result()["bytes_per_second"] == 150.0
    assert Arrivals().result()["bytes_per_second"] == 0.0


def test_percentiles_are_in_milliseconds():
    assert percentiles([]) == {}
    found = percentiles([number / 1000 for number in range(200, 0, -1)])
    assert math.isclose(found["p50"], 101.0)
    assert math.isclose(found["p99"], 199.0)


def test_a_million_is_queued_only_when_a_long_run_is_asked_for():
    assert max(Plan.of(options([])).depths) == 100_000
    assert max(Plan.of(options(["--long"])).depths) == 1_000_000
    assert max(Plan.of(options(["--quick"])).links) == 10


def test_curves_are_drawn_along_one_parameter_and_parted_by_the_others():
    report = Report({})
    for engine in ("aiortc", "libdatachannel"):
        for queued in (1_000, 10):
            report.add("draining a message", "µs", queued / 10, engine=engine, queued=queued)
    found = plots.curves(report.named("draining a message"), {"queued"})
    assert found == {engine: [(10.0, 1.0), (1_000.0, 100.0)] for engine in ("aiortc", "libdatachannel")}
