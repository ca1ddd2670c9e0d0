"""Events by name: who is called, how often, and what becomes of who fails."""

from __future__ import annotations

import pytest

from rondevu_client.emitter import Emitter


@pytest.fixture
def emitter():
    return Emitter(lambda work, name: work.close())


@pytest.mark.parametrize("add", ["on", "once"])
def test_off_undoes_on_and_once_alike(emitter, add):
    heard = []
    getattr(emitter, add)("open", heard.append)
    emitter.off("open", heard.append)
    emitter._emit("open", 1)
    assert heard == []


def test_once_is_called_once_in_its_place(emitter):
    heard = []
    emitter.on("open", lambda: heard.append("first"))
    emitter.once("open", lambda: heard.append("once"))
    emitter.on("open", lambda: heard.append("last"))
    emitter._emit("open")
    emitter._emit("open")
    assert heard == ["first", "once", "last", "first", "last"]


def test_one_that_raises_is_logged_and_disturbs_no_other(emitter, caplog):
    heard = []
    emitter.on("open", lambda data: 1 / 0)
    emitter.on("open", heard.append)
    emitter._emit("open", "x")
    assert heard == ["x"]
    assert "A listener of open failed" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_listeners_are_counted_and_removed_by_event_or_all(emitter):
    for event in ("open", "open", "close", "error"):
        emitter.on(event, print)
    assert [emitter.listener_count(event) for event in ("open", "close", "other")] == [2, 1, 0]
    emitter.remove_all_listeners("open")
    assert [emitter.listener_count(event) for event in ("open", "close", "error")] == [0, 1, 1]
    emitter.remove_all_listeners()
    assert [emitter.listener_count(event) for event in ("close", "error")] == [0, 0]


def test_a_listener_may_remove_itself_and_others_while_it_is_called(emitter):
    heard = []

    def first():
        heard.append("first")
        emitter.remove_all_listeners()

    emitter.on("open", first)
    emitter.on("open", lambda: heard.append("second"))
    emitter._emit("open")
    emitter._emit("open")
    assert heard == ["first", "second"]
