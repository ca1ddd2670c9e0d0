"""Do the books add up? What both stores say became of messages, against each other and against the programs' logs.

Reads what the jury reads (see ``checker.py``): logs of two programs and dumps of their daemons' stores, in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tests.jury.checker import Dump, Finding, Side, read

REMOVED = ("expired", "overflow", "purged", "too_large", "damaged", "lost")
OWN_BOOKS = "the rest is"
"""What findings about one store alone say."""

REMOVED_IN = ("purged_in", "overflow_in", "damaged_in")


def reconcile(logs: tuple[Iterable[list[str]], Iterable[list[str]]], dumps: tuple[Dump, Dump]) -> list[Finding]:
    """Every count that does not agree with another one: findings of the kind ``unbalanced``.

    Of programs with one producer for each label, and numbers from 1 on; no channel was closed or has lost its store.
    """
    sides = tuple(map(read, logs))
    findings: list[Finding] = []
    for label in sorted({*sides[0], *sides[1], *dumps[0], *dumps[1]}):
        for here, there in ((0, 1), (1, 0)):
            sender, receiver = sides[here].get(label, Side()), sides[there].get(label, Side())
            store, peer = dumps[here].get(label), dumps[there].get(label)
            complaints = [*_judge_store(store), *_judge_sender(sender, store), *_judge_receiver(sender, receiver, peer)]
            complaints += _judge_both(store, peer)
            findings += [Finding("unbalanced", label, f"side {here}: {text}") for text in complaints]
    return findings


def _judge_store(store: Mapping[str, Any] | None) -> Iterator[str]:
    """Whatever came in is still there or went one of the ways that are counted."""
    if store is None:
        return
    books = store["totals"]
    removed = sum(books[word] for word in REMOVED)
    out = books["acknowledged"] + removed + len(store["outbox"])
    if books["accepted"] != out:
        yield f"{books['accepted']} accepted, {books['acknowledged']} acknowledged + {removed} removed + {OWN_BOOKS} {out}"
    removed = sum(books[word] for word in REMOVED_IN)
    in_ = books["taken"] + removed + len(store["failed"]) + len(store["inbox"])
    if books["received"] != in_:
        yield f"{books['received']} received, {books['taken']} taken + {removed} removed + {OWN_BOOKS} {in_}"


def _judge_sender(sender: Side, store: Mapping[str, Any] | None) -> Iterator[str]:
    """What the daemon says it accepted is what it told the program, and what it had not told yet when that was killed."""
    books: Mapping[str, int] = store["totals"] if store is not None else {}
    counted, acknowledged = books.get("accepted", 0), books.get("acknowledged", 0)
    told, most = len(sender.accepted), len(sender.sent.keys() - sender.rejected)
    if not told <= counted <= most:
        yield f"{counted} accepted; the program was told of {told}, and has sent {most} that were not rejected"
    heard_of = sum(number <= sender.acknowledged for number in sender.sent.keys() - sender.rejected)
    if acknowledged < heard_of - sum(books.get(word, 0) for word in REMOVED):
        yield f"{acknowledged} acknowledged; the program was told of {heard_of}"


def _judge_receiver(sender: Side, receiver: Side, store: Mapping[str, Any] | None) -> Iterator[str]:
    """What the daemon received is what the program was given, and what waits; nothing is taken that was not given."""
    books = store["totals"] if store is not None else {}
    given = len({delivery.number for delivery in receiver.deliveries})
    received, taken = books.get("received", 0), books.get("taken", 0)
    if not given <= received <= len(sender.sent):
        yield f"its peer has received {received}; {given} were given to the program there, {len(sender.sent)} were sent"
    if taken > given:
        yield f"programs have taken {taken} at its peer; {given} were given to them"


def _judge_both(store: Mapping[str, Any] | None, peer: Mapping[str, Any] | None) -> Iterator[str]:
    """What the peer has acknowledged it has received; what it has received was accepted, and not removed before."""
    if store is None or peer is None:
        return
    books, received = store["totals"], peer["totals"]["received"]
    accepted = books["accepted"] - sum(books[word] for word in REMOVED)
    if not books["acknowledged"] <= received <= max(accepted, books["acknowledged"]):
        yield f"{books['acknowledged']} acknowledged, {received} received by the peer, {accepted} accepted and not removed"
