"""Who may do what: rules over verbs, connections, services and labels, and what they come to for one program.

A verb contains those before it: who may `USE` something may `OBSERVE` it. What a rule does not restrict it covers:
one that names neither connections nor services covers all of both, and one without labels all labels. The daemon itself
(its keys, its store, its configuration) is covered by rules only that restrict nothing. A rule with labels covers channels;
of a connection or service as a whole it lets no more be done than `OBSERVE`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from fnmatch import translate
from typing import NamedTuple


class Verb(IntEnum):
    OBSERVE = 1
    """See that it is there, how it is and what passes through it."""
    USE = 2
    """Declare it, attach to it, send, receive and acknowledge."""
    ADMINISTER = 3
    """End it, empty it, send its peer away."""

    def __str__(self) -> str:
        return self.name.lower()


class Subject(NamedTuple):
    """What something is done to: a connection made here, a service with the connections it took, or the daemon itself."""

    connection: str | None = None
    """Its name."""
    service: str | None = None
    """``USER/FQN``"""
    label: str | None = None
    """Of a channel; None: the connection or service as a whole."""

    def __str__(self) -> str:
        if self.connection is None and self.service is None:
            return "the daemon"
        of = f"service {self.service}" if self.connection is None else f"connection {self.connection}"
        return of if self.label is None else f"{of}, label {self.label}"


DAEMON = Subject()


class Patterns:
    """Shell patterns (``*``, ``?``, ``[a-z]``), of which one must fit the whole text; small and capital letters differ."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self.patterns = tuple(patterns)
        self._compiled = re.compile("|".join(map(translate, self.patterns))) if self.patterns else None

    def fit(self, text: str) -> bool:
        """Nothing fits no patterns."""
        return self._compiled is not None and self._compiled.match(text) is not None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Patterns) and self.patterns == other.patterns

    def __hash__(self) -> int:
        return hash(self.patterns)


@dataclass(frozen=True, slots=True)
class Rule:
    """What one user or group may. `uid` or `gid` is given; patterns that are None do not restrict."""

    verb: Verb
    uid: int | None = None
    gid: int | None = None
    connections: Patterns | None = None
    services: Patterns | None = None
    labels: Patterns | None = None

    @property
    def unrestricted(self) -> bool:
        return self.connections is None and self.services is None and self.labels is None

    def concerns(self, uid: int, gids: frozenset[int]) -> bool:
        return uid == self.uid if self.gid is None else self.gid in gids

    def allows(self, verb: Verb, subject: Subject) -> bool:
        if verb > self.verb or not self._covers(subject):
            return False
        if self.labels is None:
            return True
        return verb is Verb.OBSERVE if subject.label is None else self.labels.fit(subject.label)

    def _covers(self, subject: Subject) -> bool:
        if self.unrestricted:
            return True
        if self.connections is None and self.services is None:
            return subject != DAEMON
        if subject.connection is not None:
            return self.connections is not None and self.connections.fit(subject.connection)
        return subject.service is not None and self.services is not None and self.services.fit(subject.service)


@dataclass(frozen=True, slots=True)
class Caps:
    """What the programs of one user may have together; None: as much as they like."""

    max_clients: int | None = None
    max_parked_bytes: int | None = None
    max_queue_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Grants:
    """What one program may."""

    rules: tuple[Rule, ...] = ()
    caps: Caps = Caps()

    @property
    def nothing(self) -> bool:
        return not self.rules

    @property
    def all_visible(self) -> bool:
        """Whether everything may be observed, so that nothing needs to be filtered."""
        return any(rule.unrestricted for rule in self.rules)

    def allows(self, verb: Verb, subject: Subject) -> bool:
        return any(rule.allows(verb, subject) for rule in self.rules)


@dataclass(frozen=True, slots=True)
class Policy:
    """All rules. `administrators` are uids that may do everything and have no caps."""

    administrators: frozenset[int]
    rules: tuple[Rule, ...] = ()
    caps: Caps = Caps()

    def grants(self, uid: int, gids: Iterable[int]) -> Grants:
        """For a program of that user, who is in these groups."""
        if uid in self.administrators:
            return Grants((Rule(Verb.ADMINISTER, uid=uid),))
        groups = frozenset(gids)
        return Grants(tuple(rule for rule in self.rules if rule.concerns(uid, groups)), self.caps)
