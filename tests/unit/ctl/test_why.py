"""The page of `why`."""

from __future__ import annotations

import json

import pytest

from rondevud.ctl.why import explain

AROUND = {
    "signalling": {"url": "http://h:1", "reachable": True, "answered_ago": 0.5, "failed_ago": None, "error": None},
    "ice_servers": [],
    "recent": [
        {"number": 7, "at": 0.0, "name": "disconnected", "data": {"reason": "timeout", "label": None, "service": "s"}}
    ],
}
LINK = {
    "kind": "link", "path": "relayed", "local": "10.0.0.1:5 relay", "remote": "10.0.0.2:6 host",
    "local_candidates": ["10.0.0.1:5 relay"], "remote_candidates": [], "round_trip": 0.0123, "silence": 0.2,
    "suspect": False,
}  # fmt: skip
CHANNEL = {
    "label": "main\x1b[1m", "state": "open", "queue_size": 3, "waiting": 0, "acknowledged_ago": 200.0,
    "verdicts": {"in": {"kind": "resumed", "messages": 0}, "out": {"kind": "gap", "messages": None}},
}  # fmt: skip
CONNECTION = {
    "connection_id": "conn-a", "name": "chat", "service": None, "target": "alice/a.b@1.0.0", "state": "connected",
    "kind": "link", "peer_name": "", "suspect": True, "attempt": 0, "max_attempts": None, "error": None, "next": "keep",
    "next_in": None, "offer": {"offer_id": "0123456789abcdef", "uuid": "u"}, "dialled_ago": 7300.0, "link": LINK,
    "channels": [CHANNEL], "counters": {}, **AROUND,
}  # fmt: skip


def page(**changes):
    return dict(explain({**CONNECTION, **changes}))


def test_a_connection_is_explained_line_by_line():
    lines = page()
    assert lines["state"] == "connected, suspect: one end at least hears nothing of the other"
    assert lines["path"] == "relayed: 10.0.0.1:5 relay to 10.0.0.2:6 host"
    assert lines["theirs"] == "none: found by its checks"
    assert lines["round trip"] == "12.3 ms"
    assert lines["offer used"] == "0123456789ab… of service u, dialled 2.03 h ago"
    assert lines["channel main\x1b[1m"] == (
        "open, 3 queued, 0 waiting, in: resumed, out: gap of ? messages, acknowledged 3.33 min ago"
    )
    assert "disconnected reason=timeout" in lines.values()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"next": "dial", "next_in": 3.25, "attempt": 2, "max_attempts": 10},
         "dials again in 3.25 s (2 of 10 attempts have failed)"),
        ({"next": "dialling", "attempt": 2}, "dialling now (2 of endless attempts have failed)"),
        ({"next": "wait_for_peer", "next_in": 90.0}, "waits for the peer to dial, held for 90 s"),
        ({"next": "wait_for_peer"}, "waits for the peer to dial"),
        ({"next": "nothing", "state": "failed"}, "nothing by itself; `rondevuctl reconnect` tries again"),
    ],
)  # fmt: skip
def test_what_comes_next_is_said(changes, text):
    assert page(**changes)["next"] == text


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({"url": None}, "none is configured ([signalling] url)"),
        ({"reachable": None, "answered_ago": None}, "http://h:1 was not asked yet"),
        ({"reachable": False, "answered_ago": None}, "http://h:1 is not reachable"),
    ],
)
def test_the_signalling_server_is_told(state, text):
    assert page(signalling={**AROUND["signalling"], **state})["signalling"] == text


async def test_the_page_fits_80_columns_and_obeys_nothing_of_peers(ctl, house):
    error = "a long story of what went wrong, " * 5

    async def why(target):
        assert target == "alice-chat"
        return {**CONNECTION, "error": error}

    house.why = why
    done = await ctl("why", "alice-chat")
    assert done.code == 0
    assert max(map(len, done.out.splitlines())) <= 80
    assert "\x1b" not in done.out
    assert json.loads((await ctl("why", "alice-chat", "--json")).out)["error"] == error
