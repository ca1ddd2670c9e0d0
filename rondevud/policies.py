"""The access policy that a configuration means on this machine, whose user and group database is asked."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Iterable

from rondevud.access import Caps, Patterns, Policy, Rule, Verb
from rondevud.config import AccessConfig, AccessRule, limit
from rondevud.errors import ConfigError

NO_GROUP = 2**32 - 1
"""Not a gid: chown(2) takes it for "leave it as it is"."""


def policy_of(config: AccessConfig) -> Policy:
    """Raises `ConfigError` when there is no user or group of a name.

    Names are looked up once; the groups that a program is in are asked of the kernel when it connects.
    """
    caps = Caps(limit(config.max_clients), limit(config.max_parked_bytes), limit(config.max_queue_bytes))
    rules = tuple(_rule(index, rule) for index, rule in enumerate(config.rule))
    return Policy(frozenset({0, os.getuid()}), rules, caps)


def find_group(group: str | None) -> int | None:
    """The gid for `group`, its name or its number (which need not be in the group database). Raises `ConfigError`."""
    if group is None:
        return None
    try:
        return grp.getgrnam(group).gr_gid
    except (KeyError, ValueError):  # ValueError: a name with a null byte
        if group.isascii() and group.isdecimal() and int(group) < NO_GROUP:
            return int(group)
        raise ConfigError(f"[daemon] socket_group: there is no group {group!r}") from None


def _rule(index: int, rule: AccessRule) -> Rule:
    uid, gid = rule.uid, rule.gid
    if rule.user is not None:
        try:
            uid = pwd.getpwnam(rule.user).pw_uid
        except (KeyError, ValueError):  # ValueError: a name with a null byte
            raise ConfigError(f"access.rule[{index}].user: there is no user {rule.user!r}") from None
    if rule.group is not None:
        try:
            gid = grp.getgrnam(rule.group).gr_gid
        except (KeyError, ValueError):
            raise ConfigError(f"access.rule[{index}].group: there is no group {rule.group!r}") from None
    return Rule(
        max(Verb[word.upper()] for word in rule.allow),
        uid,
        gid,
        _patterns(rule.connections),
        _patterns(rule.services),
        _patterns(rule.labels),
    )


def _patterns(given: Iterable[str] | None) -> Patterns | None:
    return None if given is None else Patterns(given)
