"""The jury on runs made by hand: what it must find, and that it finds nothing in a good one."""

from __future__ import annotations

import pytest

from tests.jury.checker import judge

SENT = ["sending main 1 a", "accepted main 1", "sending main 2 b", "accepted main 2", "sending main 3 c"]
RECEIVED = ["received main e-7 1 1 a", "received main e-8 2 1 b"]
STORE = {"last_seq": 3, "out_count": 0, "outbox": []}
PEER = {"in_count": 0, "inbox": [], "gaps": 0}


def kinds(sent=SENT, received=RECEIVED, store=STORE, peer=PEER) -> set[str]:
    logs = ([line.split() for line in sent], [line.split() for line in received])
    return {finding.kind for finding in judge(logs, ({"main": store}, {"main": peer}))}


def test_nothing_is_wrong_with_a_good_run():
    assert kinds() == set()
    assert kinds(received=[*RECEIVED, "received main e-8 2 2 b", "received main e-9 3 1 c"]) == set()


def test_what_waits_in_a_store_is_not_lost():
    assert kinds(received=[], store={**STORE, "out_count": 2, "outbox": [(1, "a"), (2, "b")]}) == set()
    assert kinds(received=RECEIVED[:1], peer={**PEER, "in_count": 1, "inbox": [(2, "b")]}) == set()


@pytest.mark.parametrize(
    ("kind", "received"),
    [
        ("lost", RECEIVED[1:]),
        ("accepted-but-nowhere", RECEIVED[:1]),
        ("duplicated", [*RECEIVED, "received main f-9 2 1 b"]),
        ("unmarked", [*RECEIVED, "received main e-8 2 1 b"]),
        ("reordered", RECEIVED[::-1]),
        ("altered", [RECEIVED[0], "received main e-8 2 1 x"]),
        ("altered", [RECEIVED[0], "received main e-7 2 1 b"]),
        ("unexpected", [*RECEIVED, "received main e-9 4 1 d"]),
        ("gap", [*RECEIVED, "gap main lost"]),
    ],
)
def test_what_a_program_should_not_have_received(kind, received):
    assert kinds(received=received) == {kind}


def test_what_a_store_should_not_hold():
    assert kinds(store={**STORE, "last_seq": 1}) == {"forgotten"}
    assert kinds(store={**STORE, "out_count": 1}) == {"miscounted"}
    assert kinds(peer={**PEER, "in_count": 1}) == {"miscounted"}
    assert kinds(store={**STORE, "out_count": 1, "outbox": [(9, "z")]}) == {"unexpected"}
    assert kinds(store={**STORE, "out_count": 2, "outbox": [(3, "c"), (3, "c")]}) == {"reordered"}


def test_what_the_daemon_should_not_have_said():
    assert kinds(sent=[*SENT, "removed main 3 3 expired"]) == {"removed"}
    assert kinds(sent=[*SENT, "acknowledged main 2"], received=RECEIVED[:1]) == {"lost"}
    assert kinds(
        sent=[*SENT, "acknowledged main 3"],
        store={**STORE, "out_count": 1, "outbox": [(2, "b")]},
        received=RECEIVED[:1],
    ) == {"lost"}
    assert kinds(sent=[*SENT, "rejected main 3 queue_full"], received=[*RECEIVED, "received main e-9 3 1 c"]) == {
        "unexpected"
    }
