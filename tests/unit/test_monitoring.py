"""The alert rules and the dashboard: right by Prometheus's own tool, and about metrics that the daemon has."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rondevud.metric_names import METRICS

ROOT = Path(__file__).parents[2]
RULES = ROOT / "monitoring" / "rondevud.rules.yml"
RULES_TEST = ROOT / "monitoring" / "rondevud.rules.test.yml"
DASHBOARD = ROOT / "monitoring" / "grafana-dashboard.json"

OF_THE_PROCESS = {
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "process_open_fds",
    "process_max_fds",
    "process_start_time_seconds",
    "process_virtual_memory_bytes",
}
"""tests/integration/test_metrics.py looks whether they are served."""


def known():
    names = {f"rondevud_{name}" for name, described in METRICS.items() if described.kind != "histogram"}
    histograms = [f"rondevud_{name}" for name, described in METRICS.items() if described.kind == "histogram"]
    return (
        names | {f"{name}{suffix}" for name in histograms for suffix in ("_bucket", "_sum", "_count")} | OF_THE_PROCESS
    )


def used(text):
    return set(re.findall(r"\b(?:rondevud|process)_[a-z_]+", text))


def dashboard():
    return json.loads(DASHBOARD.read_text(encoding="utf-8"))


def expressions():
    return [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", [])]


@pytest.fixture(scope="module")
def promtool():
    """Where setting up put it; only where nobody could get it, and not in CI, these tests are left out."""
    beside = Path(sys.executable).with_name("promtool")
    found = str(beside) if beside.exists() else shutil.which("promtool")
    if found is None:
        assert not os.environ.get("CI"), "promtool is missing: `.ci/setup` gets it from the package prometheus"
        pytest.skip("promtool is missing")

    def run(*args):
        done = subprocess.run([found, *map(str, args)], capture_output=True, text=True, timeout=50, check=False)
        return done.returncode, done.stdout + done.stderr

    return run


@pytest.mark.once
def test_the_rules_are_rules(promtool):
    code, said = promtool("check", "rules", RULES)
    assert code == 0, said


@pytest.mark.once
def test_each_alert_comes_when_it_should_and_not_otherwise(promtool):
    code, said = promtool("test", "rules", RULES_TEST)
    assert code == 0, said


@pytest.mark.once
def test_an_alert_that_is_not_raised_is_noticed(promtool, tmp_path):
    (tmp_path / RULES.name).write_text(RULES.read_text().replace("rondevud_store_ok == 0", "rondevud_store_ok == 2"))
    shutil.copy(RULES_TEST, tmp_path)
    code, said = promtool("test", "rules", tmp_path / RULES_TEST.name)
    assert code != 0
    assert "RondevudStoreFailing" in said


@pytest.mark.once
def test_the_dashboard_asks_in_good_promql(promtool, tmp_path):
    filled = [
        expression.replace("$__rate_interval", "5m").replace("$job", "rondevud").replace("$instance", ".*")
        for expression in expressions()
    ]
    rules = [{"record": f"panel:number{index}", "expr": expression} for index, expression in enumerate(filled)]
    path = tmp_path / "dashboard.yml"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))  # JSON is YAML
    code, said = promtool("check", "rules", path)
    assert code == 0, said
    assert len(rules) > 40


def test_each_alert_has_a_test():
    alerts = set(re.findall(r"- alert: (\w+)", RULES.read_text(encoding="utf-8")))
    assert len(alerts) > 15
    assert alerts == set(re.findall(r"Rondevud\w+", RULES_TEST.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", [RULES, RULES_TEST, DASHBOARD], ids=lambda path: path.name)
def test_every_metric_that_is_asked_for_is_one_of_the_daemon(path):
    asked = used(path.read_text(encoding="utf-8"))
    assert len(asked) > 10
    assert not asked - known()


def test_the_dashboard_is_one_that_grafana_can_import():
    board = dashboard()
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    assert {"title", "uid", "schemaVersion", "templating", "time"} <= board.keys()
    names = {variable["name"] for variable in board["templating"]["list"]}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(board))) <= names | {"__rate_interval"}
    places = [
        (panel["gridPos"]["x"] + column, panel["gridPos"]["y"] + line)
        for panel in board["panels"]
        for column in range(panel["gridPos"]["w"])
        for line in range(panel["gridPos"]["h"])
    ]
    assert len(places) == len(set(places)), "panels lie upon each other"
