"""The rates of channels."""

from __future__ import annotations

import json

from rondevud.ctl.top import Rates


def channel(label, accepted, received):
    return {
        "connection_id": "conn-a", "connection": "chat", "label": label, "state": "open", "queue_size": 0, "waiting": 0,
        "round_trip": None, "counters": {"accepted": accepted, "received": received},
    }  # fmt: skip


def test_rates_are_differences_by_time_and_the_busiest_comes_first():
    rates = Rates()
    rates.look([channel("quiet", 1_000, 0), channel("busy", 5, 5)], 10.0)
    assert [row["out_rate"] for row in rates.rows] == [0.0, 0.0]
    rates.look([channel("quiet", 1_001, 0), channel("busy", 25, 15), channel("new", 99, 99)], 12.0)
    shown = [(row["label"], row["out_rate"], row["in_rate"]) for row in rates.rows]
    assert shown == [("busy", 10.0, 5.0), ("quiet", 0.5, 0.0), ("new", 0.0, 0.0)]


def test_counters_that_begin_again_are_no_negative_rate():
    rates = Rates()
    rates.look([channel("main", 100, 0)], 1.0)
    rates.look([channel("main", 3, 0)], 2.0)
    assert rates.rows[0]["out_rate"] == 0.0


async def test_it_ends_after_so_many_looks(ctl, house):
    house.channels = lambda _target: [channel("main", 1, 2)]
    house.connections = lambda: [{"connection_id": "conn-a", "name": "chat", "round_trip": 0.25}]
    done = await ctl("--json", "top", "--count", "2", "--interval", "0.01")
    assert done.code == 0
    looks = [json.loads(line) for line in done.out.splitlines()]
    assert len(looks) == 2
    assert (looks[0][0]["label"], looks[0][0]["round_trip"]) == ("main", 0.25)
    table = await ctl("top", "--count", "1")
    assert table.out.split()[:2] == ["CONNECTION", "LABEL"]
