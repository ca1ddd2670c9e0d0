"""The books of runs made by hand: what must be noticed, and that good ones add up."""

from __future__ import annotations

import pytest

from tests.jury.accounts import reconcile
from tests.jury.dump import TOTALS

SENT = [
    f"{word} main {number}{' d' if word == 'sending' else ''}"
    for number in (1, 2, 3)
    for word in ("sending", "accepted")
]
RECEIVED = ["received main e-7 1 1 d", "received main e-8 2 1 d", "received main e-8 2 2 d"]


def books(held=(), waiting=(), failed=(), **totals):
    rest = dict.fromkeys(TOTALS, 0) | totals
    return {"totals": rest, "outbox": list(held), "inbox": list(waiting), "failed": list(failed)}


STORE = books(accepted=3, acknowledged=3)
PEER = books(received=3, taken=2, waiting=[(3, "d")])


def complaints(store=STORE, peer=PEER, sent=SENT, received=RECEIVED) -> list[str]:
    logs = ([line.split() for line in sent], [line.split() for line in received])
    return [finding.detail for finding in reconcile(logs, ({"main": store}, {"main": peer}))]


def test_good_books_add_up():
    assert complaints() == []
    assert complaints(peer=books(received=3, taken=2, failed=[(3, "d")])) == []
    assert complaints(store=books(accepted=3, acknowledged=2, held=[(3, "d")])) == []
    assert complaints(books(accepted=3, acknowledged=2, expired=1), books(received=2, taken=2)) == []


def test_what_a_killed_program_was_not_told_may_be_accepted():
    assert complaints(sent=[line for line in SENT if line != "accepted main 3"]) == []


def test_what_was_read_and_not_acknowledged_yet_waits():
    assert complaints(peer=books(received=3, taken=1, waiting=[(2, "d"), (3, "d")])) == []


@pytest.mark.parametrize(
    ("store", "peer"),
    [
        (books(accepted=2, acknowledged=3), PEER),
        (books(accepted=3, acknowledged=2), PEER),
        (books(accepted=4, acknowledged=4), PEER),
        (books(accepted=3, acknowledged=3, purged=1), PEER),
        (STORE, books(received=3, taken=3, waiting=[(3, "d")])),
        (STORE, books(received=4, taken=2, waiting=[(3, "d"), (4, "d")])),
        (STORE, books(received=2, taken=2)),
        (STORE, books(received=3, taken=3)),
        (books(accepted=3, acknowledged=2, expired=1), PEER),
    ],
)
def test_books_that_do_not_add_up(store, peer):
    assert complaints(store, peer)


def test_books_that_differ_from_the_logs():
    assert complaints(sent=[*SENT, "sending main 4 d", "accepted main 4"])
    assert complaints(sent=SENT[:4])
    assert complaints(sent=[*SENT, "rejected main 3 queue_full"])
    assert complaints(received=RECEIVED[:1])
    assert complaints(books(accepted=3, acknowledged=2, held=[(3, "d")]), sent=[*SENT, "acknowledged main 3"])
