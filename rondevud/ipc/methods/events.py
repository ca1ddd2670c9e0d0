"""Subscriptions to events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rondevud.events import Scope
from rondevud.ipc.session import Session
from rondevud.ipc.table import Answer, Table, integer, text


def subscribe(session: Session, params: dict[str, Any]) -> Answer:
    return Answer(*begin_subscription(session, params["target"], params["since"]))


def begin_subscription(
    session: Session, target: str | None, since: int | None
) -> tuple[dict[str, Any], Callable[[], None]]:
    """``{subscription, next, connections}``, and what to call when that is written: sends what was kept from `since` on.

    What is not kept any more is said first, as ``overrun {count, from, to}``. A `since` above all numbers that there are was
    counted by an earlier start of the daemon: then all that is kept follows.

    Nothing may be awaited between this and the writing of the answer: snapshot and events are complete together.
    """
    house = session.house
    scope = house.resolve(target) if target is not None else Scope()
    connections = [_visible(session, row) for row in session.visible(house.snapshot(target))]
    number, feed = session.subscribe(scope)
    following = house.events.next

    def replay() -> None:
        if since is None:
            return
        first = max(since, 1)
        if first > following:  # a number of an earlier start of the daemon
            feed.say_overrun(None, first, None, 0)
            first = 1
        kept = house.events.replay(first, scope)
        if kept.lost:
            feed.say_overrun(kept.lost, first, first + kept.lost - 1, first + kept.lost - 1)
        for event in kept.events:
            if event.number < following:
                feed.deliver(event)

    return {"subscription": number, "next": following, "connections": connections}, replay


def _visible(session: Session, row: dict[str, Any]) -> dict[str, Any]:
    """A row of a snapshot, without the channels that the client may not see."""
    channels = [has for has in row["channels"] if session.may_see_of(row["connection_id"], has["label"])]
    return {**row, "channels": channels}


def unsubscribe(session: Session, params: dict[str, Any]) -> dict[str, Any]:
    session.end_subscription(params["subscription"])
    return {}


def register(table: Table) -> None:
    table.method(
        "subscribe",
        "Events of a target, or all; with since also those before.",
        target=text(),
        since=integer(0, 2**63 - 1),
    )(subscribe)
    table.method("unsubscribe", "End a subscription.", subscription=integer(1, 2**63 - 1, required=True))(unsubscribe)
