"""Every counter of the daemon has a metric, every metric stands in the documentation, names are as Prometheus wants them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from rondevud.accounts import Totals
from rondevud.metric_names import METRICS, TABLES, told
from tests.unit.vectors import rows, sections

ROOT = Path(__file__).parents[2]

PLACES = {
    "channel": ("durable/channel.py", "durable/inbox.py", "durable/outbox.py", "durable/failures.py"),
    "session": ("durable/link.py",),
    "service": ("durable/service.py", "durable/visits.py", "durable/reception.py"),
    "daemon": ("durable/greeting.py",),
    "engine": (
        "transport/aiortc.py",
        "transport/aiortc_channel.py",
        "transport/libdatachannel.py",
        "transport/libdatachannel_connection.py",
        "transport/libdatachannel_channel.py",
    ),
    "signalling": ("signalling/http.py", "signalling/peer.py"),
}
"""Where things are counted, and whose counters those are; `durable/unframed.py` counts for channels and the daemon."""


def counted_in(path):
    """Names that are counted there: of ``…count("name")`` and ``…counters["name"] +=``; a changing part is ``{}``."""
    for node in ast.walk(ast.parse((ROOT / "rondevud" / path).read_text(encoding="utf-8"))):
        name = None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            if called in {"count", "_count", "count_more"}:
                name = node.args[0]
        elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Subscript):
            name = node.target.slice if "counters" in ast.unparse(node.target.value) else None
        if isinstance(name, ast.Constant) and isinstance(name.value, str):
            yield name.value
        elif isinstance(name, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in name.values)


def all_counters():
    return sorted({(scope, name) for scope, paths in PLACES.items() for path in paths for name in counted_in(path)})


def test_the_source_is_searched_where_something_is_counted():
    paths = [
        path.relative_to(ROOT / "rondevud")
        for part in ("durable", "transport", "signalling", "ipc", "rendezvous")
        for path in (ROOT / "rondevud" / part).rglob("*.py")
    ]
    counting = {str(path) for path in paths if any(re.fullmatch(r"[a-z_{}]+", name) for name in counted_in(path))}
    assert counting <= {path for paths in PLACES.values() for path in paths} | {"durable/unframed.py"}
    assert set(counted_in("durable/unframed.py")) == {"stray_channels", "dropped_in", "plain_dropped"}
    assert ("channel", "accepted") in all_counters()
    assert ("channel", "removed_{}") in all_counters()


@pytest.mark.parametrize(("scope", "counter"), all_counters())
def test_every_counter_has_a_metric_of_its_own(scope, counter):
    for filled in [counter] if "{}" not in counter else [counter.format(reason) for reason in ("expired", "lost")]:
        where = told(scope, filled)
        assert where.metric != "other_total", (
            f"rondevud.metric_names says nothing of the counter {counter} of a {scope}"
        )


def test_every_counter_is_told_under_a_metric_that_is_described_and_with_its_labels():
    extra = {"channel": {"connection", "label"}, "service": {"service"}}
    named = [(scope, counter) for scope, table in TABLES.items() for counter in table]
    named += [("service", "refused_too_many"), ("service", "publish_errors"), ("daemon", "brand_new")]
    seen = set()
    for scope, counter in named:
        where = told(scope, counter)
        assert set(METRICS[where.metric].labels) == extra.get(scope, set()) | set(where.labels), counter
        assert METRICS[where.metric].kind == "counter"
        seen.add((where.metric, *where.labels.values()))
    assert len(seen) == len(named), "two counters under one metric with one set of labels"


@pytest.mark.parametrize("name", METRICS)
def test_names_are_as_prometheus_wants_them(name):
    described = METRICS[name]
    assert re.fullmatch(r"[a-z][a-z_]*[a-z]", name)
    assert name.endswith("_total") == (described.kind == "counter")
    assert not re.search(r"(milli|micro|kilo|mega|minutes|hours|ms$)", name)
    assert described.kind != "histogram" or name.endswith("_seconds")
    assert described.help.endswith(".")


def test_the_fates_of_a_channel_are_those_of_its_books():
    assert "fate" in METRICS["channel_messages_total"].labels
    fates = sections("metrics.md")["What became of all messages"]
    assert set(re.findall(r"`(\w+)`", fates)) >= set(Totals.__dataclass_fields__)


def test_the_documentation_lists_them_all_and_no_more():
    documented = [tuple(row[:3]) for row in rows(sections("metrics.md")["All metrics"], "metric")]
    assert documented == [(f"rondevud_{name}", told_.kind, ", ".join(told_.labels)) for name, told_ in METRICS.items()]
