"""The event bus: numbers, scopes, order, history."""

from __future__ import annotations

import logging

import pytest

from rondevud.events import EventBus, Scope


@pytest.fixture
def bus():
    return EventBus(history=3)


def test_numbers_rise_by_one_whoever_listens(bus):
    heard = []
    bus.publish("a")
    subscription = bus.subscribe(Scope(), heard.append)
    assert (bus.next, subscription.first) == (2, 2)
    assert bus.publish("b", {"x": 1}, service="u/f", connection_id="c", label="l") == 2
    assert [event[:3] for event in heard] == [(2, "b", {"x": 1, "service": "u/f", "connection_id": "c", "label": "l"})]


@pytest.mark.parametrize(
    ("scope", "names"),
    [
        (Scope(), ["service", "own", "peer", "label", "other", "daemon"]),
        (Scope(service="u/f"), ["service", "own", "label", "other", "daemon"]),
        (Scope(connection_id="c"), ["own", "label", "other", "daemon"]),
        (Scope(connection_id="c", label="l"), ["own", "label", "daemon"]),
    ],
)
def test_a_scope_covers_what_it_names_and_the_daemon(bus, scope, names):
    heard = []
    bus.subscribe(scope, lambda event: heard.append(event.name))
    bus.publish("service", service="u/f")
    bus.publish("own", service="u/f", connection_id="c")
    bus.publish("peer", connection_id="d")
    bus.publish("label", service="u/f", connection_id="c", label="l")
    bus.publish("other", service="u/f", connection_id="c", label="m")
    bus.publish("daemon")
    assert heard == names


def test_an_event_published_by_a_listener_comes_after_the_one_it_answers(bus):
    heard = []
    bus.subscribe(Scope(), lambda event: bus.publish("second") if event.name == "first" else None)
    bus.subscribe(Scope(), lambda event: heard.append(event.name))
    bus.publish("first")
    assert heard == ["first", "second"]


def test_a_listener_that_raises_is_logged_and_disturbs_nobody(bus, caplog):
    heard = []
    bus.subscribe(Scope(), lambda _event: 1 / 0)
    bus.subscribe(Scope(), heard.append)
    with caplog.at_level(logging.ERROR):
        bus.publish("a")
    assert len(heard) == 1
    assert "ZeroDivisionError" in caplog.text


def test_nothing_comes_after_close_even_within_the_same_event(bus):
    heard = []
    bus.subscribe(Scope(), lambda _event: late.close())
    late = bus.subscribe(Scope(), heard.append)
    bus.publish("a")
    late.close()
    assert heard == []


def test_a_replay_says_what_is_kept_no_longer(bus):
    for name in "abcde":
        bus.publish(name, connection_id="c" if name != "d" else "x")
    assert [event.name for event in bus.replay(2, Scope(connection_id="c")).events] == ["c", "e"]
    assert bus.replay(2, Scope()).lost == 1
    assert bus.replay(0, Scope()).lost == 2
    assert bus.replay(3, Scope()).lost == 0
    assert bus.replay(6, Scope()) == ([], 0)
