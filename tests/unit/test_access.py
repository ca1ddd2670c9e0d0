"""Rules of access: what they cover, for whom, and what a configuration makes of them."""

from __future__ import annotations

import os
import pwd

import pytest

from rondevud import config
from rondevud.access import DAEMON, Caps, Patterns, Policy, Rule, Subject, Verb
from rondevud.errors import ConfigError
from rondevud.policies import policy_of

CONNECTION = Subject(connection="to-alice")
SERVICE = Subject(service="alice/com.example.chat@1.0.0")


def rule(verb: Verb = Verb.USE, **restrictions: str) -> Rule:
    return Rule(verb, uid=1000, **{name: Patterns([pattern]) for name, pattern in restrictions.items()})


def test_a_verb_contains_those_before_it():
    allowed = {(has, verb) for has in Verb for verb in Verb if rule(has).allows(verb, CONNECTION)}
    assert allowed == {(has, verb) for has in Verb for verb in Verb if verb <= has}


@pytest.mark.parametrize(
    ("restrictions", "covered"),
    [
        ({}, [CONNECTION, SERVICE, DAEMON]),
        ({"connections": "to-*"}, [CONNECTION]),
        ({"services": "alice/*"}, [SERVICE]),
        ({"connections": "to-*", "services": "alice/*"}, [CONNECTION, SERVICE]),
        ({"connections": "to-bob"}, []),
        ({"connections": "alice*"}, []),
        ({"connections": "TO-*"}, []),
        ({"connections": "to-?????"}, [CONNECTION]),
        ({"services": "*@2*"}, []),
    ],
)
def test_a_rule_covers_what_it_does_not_restrict(restrictions, covered):
    subjects = [CONNECTION, SERVICE, DAEMON]
    assert [each for each in subjects if rule(**restrictions).allows(Verb.USE, each)] == covered
    assert rule(**restrictions).unrestricted == (not restrictions)


def test_a_rule_with_labels_lets_the_whole_be_observed_only():
    limited = rule(Verb.ADMINISTER, labels="tele*")
    assert limited.allows(Verb.ADMINISTER, CONNECTION._replace(label="telemetry"))
    assert not limited.allows(Verb.OBSERVE, CONNECTION._replace(label="main"))
    assert limited.allows(Verb.OBSERVE, CONNECTION)
    assert not limited.allows(Verb.USE, CONNECTION)
    assert not limited.allows(Verb.OBSERVE, DAEMON)


def test_a_rule_is_for_its_user_or_group():
    policy = Policy(frozenset({0}), (Rule(Verb.USE, uid=1000), Rule(Verb.OBSERVE, gid=50), Rule(Verb.OBSERVE, uid=0)))
    assert [each.verb for each in policy.grants(1000, [7]).rules] == [Verb.USE]
    assert [each.verb for each in policy.grants(7, [1000, 50]).rules] == [Verb.OBSERVE]
    assert [each.verb for each in policy.grants(1000, [50]).rules] == [Verb.USE, Verb.OBSERVE]
    assert policy.grants(50, [1000]).nothing


def test_administrators_may_everything_whatever_the_rules_say_and_have_no_caps():
    policy = Policy(frozenset({7}), (Rule(Verb.OBSERVE, uid=7),), Caps(1, 1, 1))
    grants = policy.grants(7, [])
    assert grants.allows(Verb.ADMINISTER, DAEMON)
    assert (grants.caps, policy.grants(8, []).caps) == (Caps(), Caps(1, 1, 1))


def parse(text: str) -> config.AccessConfig:
    return config.parse(text, "c.toml").access


def test_a_configuration_becomes_a_policy():
    me = pwd.getpwuid(os.getuid()).pw_name
    policy = policy_of(
        parse(
            "[access]\nmax_clients = 5\nmax_queue_bytes = 0\n"
            f'[[access.rule]]\nuser = "{me}"\nallow = ["use", "observe"]\nconnections = "to-*"\n'
            '[[access.rule]]\ngid = 12\nallow = "observe"\nlabels = ["a", "b*"]\n'
        )
    )
    assert policy == Policy(
        frozenset({0, os.getuid()}),
        (
            Rule(Verb.USE, uid=os.getuid(), connections=Patterns(["to-*"])),
            Rule(Verb.OBSERVE, gid=12, labels=Patterns(["a", "b*"])),
        ),
        Caps(max_clients=5, max_parked_bytes=64 * 1024 * 1024, max_queue_bytes=None),
    )


@pytest.mark.parametrize("key", ["user", "group"])
@pytest.mark.parametrize("name", ["nobody at all", "null\\u0000byte"])
def test_a_user_or_group_that_is_not_there_is_named(key, name):
    with pytest.raises(ConfigError, match=rf"access\.rule\[0\]\.{key}: there is no {key} '"):
        policy_of(parse(f'[[access.rule]]\n{key} = "{name}"\nallow = ["use"]\n'))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('allow = ["use"]', 'access.rule[0]: expected one of "user", "uid", "group" and "gid"'),
        ('uid = 1\ngid = 1\nallow = ["use"]', 'access.rule[0]: expected one of "user", "uid", "group" and "gid"'),
        ("uid = 1", "access.rule[0].allow: missing"),
        ("uid = 1\nallow = []", "access.rule[0].allow: expected at least 1"),
        ('uid = 1\nallow = ["own"]', 'access.rule[0].allow[0]: expected "observe", "use" or "administer", found "own"'),
        ('uid = 4294967295\nallow = ["use"]', "access.rule[0].uid: expected a number below 4294967295"),
        ('uid = "me"\nallow = ["use"]', 'access.rule[0].uid: expected a whole number, found "me"'),
        ('uid = 1\nallow = ["use"]\nlabels = []', "access.rule[0].labels: expected at least 1"),
        ('uid = 1\nallow = ["use"]\nlabel = ["x"]', 'access.rule[0].label: unknown key; did you mean "labels"?'),
    ],
)
def test_a_rule_that_cannot_be_meant_is_refused(text, said):
    with pytest.raises(ConfigError) as refused:
        parse(f"[[access.rule]]\n{text}\n")
    assert said in str(refused.value)
