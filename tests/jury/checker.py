"""The jury: judges a run by what the programs wrote down and by what both stores hold, and by nothing else.

A program's log has one event a line (see ``tests/acceptance/programs/streams.py``):

    sending LABEL NUMBER DIGEST             about to be given to the daemon
    accepted LABEL NUMBER                   the daemon says that it is stored
    rejected LABEL NUMBER CODE              the daemon says that it is not
    removed LABEL FIRST LAST REASON         the daemon says that it was, and will not reach the peer
    acknowledged LABEL UPTO                 the daemon says that the peer's store has everything up to there
    received LABEL ID NUMBER ATTEMPT DIGEST every delivery, those that come again included
    gap LABEL REASON                        the daemon says that messages of the peer will not come

Numbers are the sender's own, 1, 2, … on each label, and the numbers of its producer. Nothing here knows the daemon's source.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

Dump = Mapping[str, Mapping[str, Any]]
"""What ``dump.py`` says of one store."""


class Finding(NamedTuple):
    """Something that must not be. Kinds: ``lost``, ``accepted-but-nowhere``, ``duplicated``, ``unmarked``, ``reordered``,
    ``unexpected``, ``altered``, ``removed``, ``gap``, ``forgotten``, ``miscounted``."""

    kind: str
    label: str
    detail: str


class Delivery(NamedTuple):
    id: str
    number: int
    attempt: int
    digest: str


@dataclass
class Side:
    """What one program wrote down about one label."""

    sent: dict[int, str] = field(default_factory=dict)
    accepted: set[int] = field(default_factory=set)
    rejected: set[int] = field(default_factory=set)
    removed: list[str] = field(default_factory=list)
    acknowledged: int = 0
    deliveries: list[Delivery] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)

    def take(self, event: str, words: list[str]) -> None:
        match event:
            case "sending":
                self.sent[int(words[0])] = words[1]
            case "accepted":
                self.accepted.add(int(words[0]))
            case "rejected":
                self.rejected.add(int(words[0]))
            case "removed":
                self.removed.append(" ".join(words))
            case "acknowledged":
                self.acknowledged = max(self.acknowledged, int(words[0]))
            case "received":
                self.deliveries.append(Delivery(words[0], int(words[1]), int(words[2]), words[3]))
            case "gap":
                self.gaps.append(" ".join(words))


EVENTS = frozenset({"sending", "accepted", "rejected", "removed", "acknowledged", "received", "gap"})


def read(log: Iterable[list[str]]) -> dict[str, Side]:
    """A log, split into words, by label."""
    sides: dict[str, Side] = {}
    for words in log:
        if words and words[0] in EVENTS:
            sides.setdefault(words[1], Side()).take(words[0], words[2:])
    return sides


def judge(logs: tuple[Iterable[list[str]], Iterable[list[str]]], dumps: tuple[Dump, Dump]) -> list[Finding]:
    """Everything that is wrong with a run of two programs, each with its daemon's store, in the same order."""
    return judge_sides((read(logs[0]), read(logs[1])), dumps)


def judge_sides(logs: tuple[Mapping[str, Side], Mapping[str, Side]], dumps: tuple[Dump, Dump]) -> list[Finding]:
    """The same of logs that have been read."""
    left, right = logs
    findings: list[Finding] = []
    for label in sorted(left.keys() | right.keys()):
        sides = left.get(label, Side()), right.get(label, Side())
        stores = dumps[0].get(label, {}), dumps[1].get(label, {})
        for here, there in ((0, 1), (1, 0)):
            complaints = _judge_direction(sides[here], sides[there], stores[here], stores[there])
            findings += [Finding(kind, label, detail) for kind, detail in complaints]
    return findings


Complaint = tuple[str, str]


def _judge_direction(
    sender: Side, receiver: Side, store: Mapping[str, Any], peer: Mapping[str, Any]
) -> Iterator[Complaint]:
    outbox, inbox = dict(store.get("outbox", ())), dict(peer.get("inbox", ()))
    yield from _judge_deliveries(sender, receiver)
    yield from _judge_whereabouts(sender, receiver, outbox, inbox)
    yield from _judge_store(sender, store, peer)
    yield from (("removed", what) for what in sender.removed)
    yield from (("gap", what) for what in receiver.gaps)


def _judge_deliveries(sender: Side, receiver: Side) -> Iterator[Complaint]:
    """Whole, once by number and by id, in order; what comes again says so."""
    ids: dict[int, str] = {}
    order: list[int] = []
    for delivery in receiver.deliveries:
        number = delivery.number
        if number not in sender.sent:
            yield "unexpected", f"{delivery} was never sent"
        elif delivery.digest != sender.sent[number]:
            yield "altered", f"{delivery} was sent as {sender.sent[number]}"
        if number not in ids:
            order.append(number)
        elif ids[number] != delivery.id:
            yield "duplicated", f"{number} came as {ids[number]} and as {delivery.id}"
        elif delivery.attempt < 2:
            yield "unmarked", f"{number} came again as if for the first time"
        ids.setdefault(number, delivery.id)
    if len(set(ids.values())) < len(ids):
        yield "altered", "one id stands for several messages"
    yield from (("reordered", f"{late} after {early}") for early, late in pairwise(order) if late < early)


def _judge_whereabouts(
    sender: Side, receiver: Side, outbox: Mapping[int, str], inbox: Mapping[int, str]
) -> Iterator[Complaint]:
    """Whatever was accepted is in one of three places: with the program, in the peer's inbox, in the outbox."""
    delivered = {delivery.number for delivery in receiver.deliveries}
    last = max(delivered, default=0)
    for number in sorted(sender.accepted):
        if number in delivered:
            continue
        if number not in outbox and number not in inbox:
            passed = number <= max(last, sender.acknowledged)
            yield ("lost" if passed else "accepted-but-nowhere"), f"{number}"
        elif number < last:
            yield "reordered", f"{number} waits in a store, {last} was delivered"
        elif number <= sender.acknowledged and number not in inbox:
            yield "lost", f"{number} was acknowledged and is not in the peer's store"
    for number, digest in (outbox | inbox).items():
        if sender.sent.get(number) != digest:
            yield "unexpected", f"message {number}, which nobody sent so, is in a store"
    for number in sorted((sender.rejected - sender.accepted) & (delivered | outbox.keys() | inbox.keys())):
        yield "unexpected", f"{number} was rejected and is there"


def _judge_store(sender: Side, store: Mapping[str, Any], peer: Mapping[str, Any]) -> Iterator[Complaint]:
    """What a store says about itself."""
    last = store.get("last_seq", 0)
    accepted = max(sender.accepted, default=0)
    if last < accepted:
        yield "forgotten", f"{accepted} was accepted, the store's producer stands at {last}"
    outbox, inbox = store.get("outbox", ()), peer.get("inbox", ())
    if store.get("out_count", 0) != len(outbox):
        yield "miscounted", f"{store.get('out_count')} counted in the outbox, {len(outbox)} are there"
    if peer.get("in_count", 0) != len(inbox) + peer.get("gaps", 0):
        yield "miscounted", f"{peer.get('in_count')} counted in the inbox, {len(inbox)} are there"
    for what, queue in (("outbox", outbox), ("inbox", inbox)):
        numbers = [number for number, _ in queue]
        if numbers != sorted(set(numbers)):
            yield "reordered", f"the {what} holds {numbers[:20]}"
