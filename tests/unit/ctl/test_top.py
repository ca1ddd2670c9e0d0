"""`top`: rates, sparklines, and what is printed where there is no terminal. The terminal: tests/acceptance/test_top.py."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from rondevud.ctl.screen import draw, sparkline
from rondevud.ctl.top import Looks

STATUS = {
    "instance": "a", "version": "1.2.3", "uptime": 90_000.0, "connected": 1, "connections": 2, "clients": 3, "store": "ok",
}  # fmt: skip


def connection(id_="conn-a", name="chat", **more):
    return {
        "connection_id": id_, "name": name, "state": "connected", "kind": "link", "peer_name": "peer", "suspect": False,
        "attempt": 0, "queue_size": 0, "waiting": 0, "round_trip": 0.0123, **more,
    }  # fmt: skip


def channel(label, accepted, received, connection_id="conn-a", **more):
    return {
        "connection_id": connection_id, "label": label, "state": "open", "queue_size": 0, "waiting": 0,
        "counters": {"accepted": accepted, "received": received}, **more,
    }  # fmt: skip


def rates(looks):
    return [(row["label"], row["out_rate"], row["in_rate"]) for row in looks.channels]


def drawn(looks, width=120, height=30, silence=0.0):
    console = Console(width=width, height=height)
    with console.capture() as shown:
        console.print(draw(looks, (width, height), silence))
    return shown.get()


def test_rates_are_differences_by_time_and_the_busiest_comes_first():
    looks = Looks()
    looks.see(STATUS, [connection()], [channel("quiet", 1_000, 0), channel("busy", 5, 5)], 10.0)
    assert rates(looks) == [("busy", 0.0, 0.0), ("quiet", 0.0, 0.0)]
    after = [channel("quiet", 1_001, 0), channel("busy", 25, 15), channel("new", 99, 99)]
    looks.see(STATUS, [connection()], after, 12.0)
    assert rates(looks) == [("busy", 10.0, 5.0), ("quiet", 0.5, 0.0), ("new", 0.0, 0.0)]
    assert (looks.connections[0]["out_rate"], looks.connections[0]["in_rate"]) == (10.5, 5.0)


def test_counters_that_begin_again_are_no_rate():
    looks = Looks()
    looks.see(STATUS, [connection()], [channel("main", 100, 0)], 1.0)
    looks.see(STATUS, [connection()], [channel("main", 3, 0)], 2.0)
    assert rates(looks) == [("main", 0.0, 0.0)]
    looks.see({**STATUS, "instance": "b"}, [connection()], [channel("main", 900, 0)], 3.0)
    assert rates(looks) == [("main", 0.0, 0.0)]


def test_a_channel_that_is_gone_is_forgotten():
    looks = Looks()
    looks.see(STATUS, [connection()], [channel("main", 1, 0, queue_size=3, waiting=4)], 1.0)
    assert list(looks.depths["conn-a", "main"]) == [7]
    looks.see(STATUS, [connection()], [], 2.0)
    assert looks.depths == {}


@pytest.mark.parametrize(
    ("values", "width", "bars"),
    [([], 5, ""), ([0, 0], 5, "▁▁"), ([0, 1, 700], 5, "▁▂█"), ([9, 9, 9, 1, 2], 2, "▅█")],
)
def test_a_sparkline_shows_the_last_values_and_anything_as_more_than_nothing(values, width, bars):
    assert sparkline(values, width) == bars


def test_the_screen_shows_all_there_is_in_the_room_there_is():
    looks = Looks()
    many = [channel(f"label-{number}", 0, 0) for number in range(50)]
    looks.see(STATUS, [connection(), connection("conn-b", None, state="failed", round_trip=None)], many, 1.0)
    text = drawn(looks, height=24)
    assert "1 of 2 connected" in text
    assert "up 1 d 1 h" in text
    assert "12.3 ms" in text
    assert "conn-b" in text
    assert "more channels" in text
    assert len(text.splitlines()) <= 24
    assert "no answer" not in text
    assert "no answer for 1 min 5 s" in drawn(looks, width=60, silence=65.0)


def test_what_peers_say_does_no_harm_to_a_terminal():
    looks = Looks()
    looks.see(STATUS, [connection(peer_name="\x1b[2J[red]x")], [channel("\x07bell", 0, 0)], 1.0)
    text = drawn(looks)
    assert "\x1b[2J" not in text
    assert "\x07" not in text
    assert "[red]x" in text


@pytest.fixture
def filled(house):
    house.channels = lambda _target: [channel("main", 1, 2)]
    house.connections = lambda: [connection()]
    status = house.status

    async def more():
        return {**STATUS, **await status()}

    house.status = more


@pytest.mark.usefixtures("filled")
async def test_it_ends_after_so_many_looks(ctl):
    done = await ctl("--json", "top", "--count", "2", "--interval", "0.01")
    assert done.code == 0
    looks = [json.loads(line) for line in done.out.splitlines()]
    assert len(looks) == 2
    (row,) = looks[0]["channels"]
    assert (row["label"], row["round_trip"]) == ("main", 0.0123)
    assert looks[0]["connections"][0]["connection"] == "chat"
    assert looks[1]["at"] >= looks[0]["at"]


@pytest.mark.usefixtures("filled")
async def test_without_a_terminal_it_shows_what_there_is_and_ends(ctl):
    done = await ctl("top", "--interval", "0.01")
    assert (done.code, done.err) == (0, "")
    head, *lines = done.out.splitlines()
    assert head.split()[:2] == ["CONNECTION", "STATE"]
    assert [line.split()[0] for line in lines if line] == ["chat", "CONNECTION", "chat"]
