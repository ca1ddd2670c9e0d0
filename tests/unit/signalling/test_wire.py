"""Candidates as peers post them, and members of answers."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from rondevud.errors import SignallingGarbled
from rondevud.signalling.base import Candidate
from rondevud.signalling.peer import MAX_CANDIDATE_OFFERS, MAX_CANDIDATES, SeenCandidates
from rondevud.signalling.wire import Members, candidate_from_json, candidate_to_json


def test_a_candidate_survives_the_way_there_and_back() -> None:
    for candidate in (Candidate("candidate:1", "0", 0), Candidate("candidate:2")):
        assert candidate_from_json(candidate_to_json(candidate)) == candidate


def test_a_browsers_candidate_is_understood() -> None:
    posted = {"candidate": "candidate:1", "sdpMid": "0", "sdpMLineIndex": 0, "usernameFragment": "abcd"}
    assert candidate_from_json(posted) == Candidate("candidate:1", "0", 0)


@pytest.mark.parametrize(
    "value",
    [
        None,
        7,
        "candidate:1",
        [],
        {},
        {"candidate": ""},
        {"candidate": 5},
        {"candidate": "c" * 1_025},
        {"candidate": "c\na=candidate:2"},
        {"candidate": "\ud800"},
        {"candidate": "c", "sdpMid": 0},
        {"candidate": "c", "sdpMid": "\n"},
        {"candidate": "c", "sdpMLineIndex": "0"},
        {"candidate": "c", "sdpMLineIndex": True},
    ],
)
def test_what_is_no_candidate_is_left_out(value: Any) -> None:
    assert candidate_from_json(value) is None


def test_a_list_entry_that_is_wrong_is_named_with_its_place() -> None:
    entries = Members({"offers": [{"id": "a"}, {"id": 5}]}, "GET x").items("offers")
    assert entries[0].text("id") == "a"
    with pytest.raises(SignallingGarbled, match=r"GET x: offers\[1\]: member id is a number instead of a text"):
        entries[1].text("id")
    with pytest.raises(SignallingGarbled, match=r"offers\[0\]: expected a JSON map, got a list"):
        Members({"offers": [[]]}, "GET x").items("offers")


def test_candidates_are_passed_on_once_and_beyond_the_bound_they_are_counted() -> None:
    counters: Counter[str] = Counter()
    seen = SeenCandidates(counters)
    many = [Candidate(f"candidate:{number}") for number in range(MAX_CANDIDATES + 5)]
    assert seen.take_new("o", [many[0], many[0]]) == [many[0]]
    assert seen.take_new("o", many) == many[1:MAX_CANDIDATES]
    assert counters == {"candidates_dropped": 5}


def test_the_offer_not_asked_for_longest_is_forgotten_first() -> None:
    seen = SeenCandidates(Counter())
    one = Candidate("candidate:1")
    for number in range(MAX_CANDIDATE_OFFERS):
        seen.take_new(str(number), [one])
    seen.take_new("0", [])
    seen.take_new("new", [one])
    assert seen.take_new("0", [one]) == []
    assert seen.take_new("1", [one]) == [one]
