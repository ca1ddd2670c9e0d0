"""Every method, verb and kind of rule, asked by processes of really different users and groups. Needs root."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rondevu_client import RequestRefused
from rondevud.ipc.methods import TABLE
from tests.acceptance.processes import LIMIT, LONGEST, PATIENCE, PROGRAMS, Daemon, Process, Stage

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.once,
    LIMIT,
    pytest.mark.skipif(os.geteuid() != 0 and not os.environ.get("CI"), reason="only root can be other users"),
]

FQN = "com.example.access@1.0.0"
ABSENT = "com.example.absent@1.0.0"
OPENERS = 61_999
"""The group that may open the socket."""

VERBS = ("observe", "use", "administer")

# Independent of the daemon's own table: what each method needs. Who has a rule at all may do what is in OPEN.
OPEN = {"hello", "ping", "detach", "unsubscribe", "threshold", "clients", "services", "connections"}
DAEMON = {
    "observe": {"status", "check", "key_list", "key_show"},
    "use": set(),
    "administer": {
        "reload", "doctor", "backup", "claim", "key_export", "key_generate", "key_import", "key_delete",
    },
}  # fmt: skip
WHOLE = {
    "observe": {"wait", "why", "sessions", "channels", "subscribe"},
    "use": {"connect", "expose", "reconnect"},
    "administer": {"close", "withdraw", "forget", "kick", "block", "unblock"},
}
CHANNEL = {
    "observe": {"attach observe", "queue", "failed"},
    "use": {"attach", "close_channel"},
    "administer": {"purge", "put_back"},
}

SCOPES: dict[str, dict[str, Any]] = {
    "everything": {},
    "connections": {"connections": ["to-*"]},
    "services": {"services": "alice/*"},
    "labels": {"labels": ["tele*"]},
    "both": {"connections": ["none", "to-*"], "services": ["alice/com.example.*"]},
    "label of a connection": {"connections": ["to-*"], "labels": ["telemetry", "tele[wx]"]},
}


class Place(NamedTuple):
    """What something is done to."""

    name: str
    target: str
    absent: str
    """A target that the same rules cover and that does not exist: for what would change what is there."""
    kind: str
    inside: bool
    """Whether the rules that name connections or services cover it."""


PLACES = (
    Place("connection", "to-alice", "to-nobody", "connections", inside=True),
    Place("other connection", "other", "other-absent", "connections", inside=False),
    Place("service", f"service:alice/{FQN}", f"service:alice/{ABSENT}", "services", inside=True),
    Place("other service", f"service:bobby/{FQN}", f"service:bobby/{ABSENT}", "services", inside=False),
)


class Case(NamedTuple):
    method: str
    params: dict[str, Any]
    verb: str | None
    place: Place | None = None
    """None: the daemon itself."""
    label: str | None = None

    def allowed(self, scope: str, verb: str) -> bool:
        if self.verb is None:
            return True
        if VERBS.index(self.verb) > VERBS.index(verb):
            return False
        rule = SCOPES[scope]
        if not rule:
            return True
        if self.place is None:
            return False
        if ("connections" in rule or "services" in rule) and not (self.place.kind in rule and self.place.inside):
            return False
        if "labels" not in rule:
            return True
        return self.verb == "observe" if self.label is None else self.label == "telemetry"


def cases() -> list[Case]:
    """Each method at each kind of place. What is allowed must change nothing, so that all can ask the same."""
    found = [Case(method, {}, None) for method in ("ping", "clients", "services", "connections")]
    found += [Case(method, {"handle": 7}, None) for method in ("detach",)]
    found += [Case("threshold", {"handle": 7, "bytes": 1}, None), Case("unsubscribe", {"subscription": 7}, None)]
    more = {
        "backup": {"path": "/nonexistent/backup"},
        "key_import": {"username": "matrix-user", "private_key": "no key"},
    }
    for verb, methods in DAEMON.items():
        for method in sorted(methods):
            named = method.startswith("key_") and method != "key_list"
            params = {"username": "matrix-user"} if named or method in {"claim", "check"} else {}
            found.append(Case(method, more.get(method, params), verb))
    found += [case for place in PLACES for case in whole(place)]
    for place, label in itertools.product(PLACES, ("telemetry", "main")):
        target = {"target": place.target, "label": label}
        absent = {"target": place.absent, "label": label}
        found += [
            Case("attach", target | {"mode": "observe"}, "observe", place, label),
            Case("queue", target, "observe", place, label),
            Case("failed", target, "observe", place, label),
            Case("attach", target | {"mode": "send"}, "use", place, label),
            Case("attach", target | {"mode": "exclusive"}, "use", place, label),
            Case("attach", target | {"mode": "shared"}, "use", place, label),
            Case("close_channel", absent, "use", place, label),
            Case("purge", absent | {"direction": "both"}, "administer", place, label),
            Case("put_back", absent, "administer", place, label),
        ]
    return found


def whole(place: Place) -> list[Case]:
    username, _, fqn = place.target.removeprefix("service:").partition("/")
    bad = {"no such option": 1}
    target, absent = {"target": place.target}, {"target": place.absent}
    found = [
        Case("wait", target | {"for": "connected", "timeout": 0}, "observe", place),
        Case("why", target, "observe", place),
        Case("sessions", target, "observe", place),
        Case("channels", target, "observe", place),
        Case("subscribe", target, "observe", place),
        Case("reconnect", absent, "use", place),
    ]
    if place.kind == "connections":
        whom = {"username": "alice", "fqn": FQN, "options": bad}
        found.append(Case("connect", whom | {"name": place.target}, "use", place))
    else:
        found.append(Case("expose", {"username": username, "fqn": fqn, "options": bad}, "use", place))
        found.append(Case("withdraw", {"username": username, "fqn": ABSENT}, "administer", place))
    found += [Case(method, absent, "administer", place) for method in ("close", "forget", "kick", "block", "unblock")]
    return found


CASES = cases()


def test_the_matrix_has_every_method_and_verb():
    assert {case.method for case in CASES} | {"hello"} == set(TABLE.methods)
    expected = {(name.split()[0], verb) for table in (DAEMON, WHOLE, CHANNEL) for verb in table for name in table[verb]}
    assert {(case.method, case.verb) for case in CASES if case.verb} == expected
    assert {case.method for case in CASES if case.verb is None} | {"hello"} == OPEN


class Person(NamedTuple):
    """Somebody whom a rule concerns in one of the ways in which rules can."""

    name: str
    way: str
    scope: str
    verb: str
    uid: int
    gid: int
    groups: list[int]
    rule: str

    def plan(self, steps: list[list[Any]]) -> str:
        facts = {"name": self.name, "uid": self.uid, "gid": self.gid, "groups": self.groups}
        hello = ["hello", {"protocol": [1], "client": self.name}]
        return json.dumps({**facts, "steps": [hello, *steps]}) + "\n"


WAYS = ("uid", "gid", "supplementary", "many")


def people() -> list[Person]:
    found = []
    for number, (scope, verb) in enumerate(itertools.product(SCOPES, VERBS)):
        for way in WAYS[:3] if verb == "use" else (WAYS[number % 4],):
            identity = 61_000 + 2 * len(found)
            found.append(person(way, scope, verb, identity, identity + 1))
    return found


def person(way: str, scope: str, verb: str, uid: int, gid: int) -> Person:
    name = f"{verb}-{scope}-by-{way}".replace(" ", "-")
    extra = {"supplementary": [gid], "many": [*range(62_000, 62_400), gid]}.get(way, [])
    whose = f"uid = {uid}" if way == "uid" else f"gid = {gid}"
    restrictions = "".join(f"{key} = {json.dumps(value)}\n" for key, value in SCOPES[scope].items())
    rule = f'[[access.rule]]\n{whose}\nallow = ["{verb}"]\n{restrictions}'
    return Person(name, way, scope, verb, uid, gid if way == "gid" else 61_998, [OPENERS, *extra], rule)


STRANGER = Person("stranger", "no", "everything", "none", 61_990, 61_990, [OPENERS], "")
OUTSIDER = Person("outsider", "no", "everything", "none", 61_991, 61_991, [], "")

DECLARED = "".join(
    f'[[service]]\nusername = "{user}"\nfqn = "{FQN}"\npolling_interval = 0.2\n' for user in ("alice", "bobby")
) + "".join(
    f'[[connection]]\nname = "{name}"\nusername = "{user}"\nfqn = "{FQN}"\nchannels = ["main", "telemetry"]\n'
    for name, user in (("to-alice", "alice"), ("other", "bobby"))
)


@pytest.fixture
def directory():
    """Where everybody gets to, unlike a test's own directory."""
    path = Path(tempfile.mkdtemp(prefix="rondevud-access-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


async def open_daemon(stage: Stage, rules: str) -> Daemon:
    await stage.rendezvous.start()
    daemon = stage.daemon("shared")
    configure(daemon, rules)
    await daemon.start()
    async with daemon.client() as client:
        for name in ("to-alice", "other"):
            await client.wait(name, "connected", PATIENCE)
    return daemon


def configure(daemon: Daemon, rules: str) -> None:
    text = f"[access]\nmax_clients = 3\n{rules}{DECLARED}"
    daemon.reconfigure(text)
    path = daemon._config
    listed = f'[daemon]\nsocket_mode = "0660"\nsocket_group = "{OPENERS}"\n'
    path.write_text(path.read_text().replace("[daemon]\n", listed, 1))


async def begin(stage: Stage, daemon: Daemon, *plans: str) -> Process:
    program = str(PROGRAMS / "identities.py")
    process = await stage.start("identities", [sys.executable, program, str(daemon.socket)])
    process.type("".join(plans).rstrip("\n"))
    process.end_input()
    return process


async def play(stage: Stage, daemon: Daemon, *plans: str) -> dict[tuple[str, int], Any]:
    process = await begin(stage, daemon, *plans)
    assert await process.exited(LONGEST) == 0
    return answers(process)


def answers(process: Process) -> dict[tuple[str, int], Any]:
    """By name and step: what was answered, or why the socket was closed."""
    return {
        (line[1], int(line[2])): json.loads(" ".join(line[3:])) if line[0] == "answer" else line[3]
        for line in process.lines
        if line[0] in {"answer", "closed"}
    }


async def test_everybody_may_what_the_rules_say_and_no_more(directory):
    everybody = people()
    steps = [[case.method, case.params] for case in CASES]
    async with Stage(directory) as stage:
        daemon = await open_daemon(stage, "".join(each.rule for each in everybody))
        assert oct(daemon.socket.stat().st_mode)[-3:] == "660"
        plans = [each.plan(steps) for each in everybody]
        got = await play(stage, daemon, *plans, STRANGER.plan(steps), OUTSIDER.plan(steps))
        wrong = []
        for each in everybody:
            assert got[each.name, 0]["error"] is None
            for number, case in enumerate(CASES, 1):
                answer = got[each.name, number]
                code = (answer["error"] or {}).get("code")
                allowed = case.allowed(each.scope, each.verb)
                if (code != "access_denied") != allowed:
                    wrong.append((each.name, case, answer))
                if code == "access_denied" and not wrong:
                    assert answer["error"]["data"]["verb"] == case.verb
                    assert f"may not {case.verb} " in answer["error"]["message"]
            check_lists(each, got)
        assert not wrong, (len(wrong), wrong[:5])
        assert got["stranger", 0]["error"]["code"] == "access_denied"
        assert got["stranger", 1] == "ConnectionError"
        assert got["outsider", 0] == "PermissionError"
        async with daemon.client() as client:
            counters = (await client.status())["counters"]
            assert sorted(row["name"] for row in await client.connections() if row["name"]) == ["other", "to-alice"]
        denied = sum(not case.allowed(each.scope, each.verb) for each in everybody for case in CASES)
        assert counters["access_denied"] == denied + 1
        assert daemon.process is not None
        log = daemon.process.log.read_text()
        assert f"access_denied: uid {STRANGER.uid}, pid " in log
        assert "hello: may not use this daemon" in log
        assert log.count("access_denied: uid") < denied


def check_lists(each: Person, got: dict[tuple[str, int], Any]) -> None:
    """Nothing is listed that the rules do not let this one observe, and all that they do."""
    rule = SCOPES[each.scope]
    sees = {
        kind: not ({"connections", "services"} & rule.keys()) or kind in rule for kind in ("connections", "services")
    }
    unrestricted = not ({"connections", "services"} & rule.keys())
    result = {case.method: got[each.name, number]["result"] for number, case in enumerate(CASES, 1) if not case.place}
    names = {row["name"] for row in result["connections"] if row["name"]}
    assert names == ({"to-alice", "other"} if unrestricted else {"to-alice"} if sees["connections"] else set())
    services = {row["service"] for row in result["connections"] if row["service"]}
    users = ("alice", "bobby") if unrestricted else ("alice",) if sees["services"] else ()
    assert services == {f"{user}/{FQN}" for user in users}
    assert {row["service"] for row in result["services"]} == services
    assert {row["client"] for row in result["clients"]} == {each.name}
    labels = {"telemetry"} if "labels" in rule else {"main", "telemetry"}
    for number, case in enumerate(CASES, 1):
        if case.method in {"channels", "subscribe"} and case.allowed(each.scope, each.verb):
            found = got[each.name, number]["result"]
            rows = found if case.method == "channels" else found["connections"][0]["channels"]
            assert {row["label"] for row in rows} == labels, (each, case)


async def test_a_name_stands_for_its_user_and_a_group_for_its_members(directory):
    """With names that every Debian has: uid 1 and gid 1 are both ``daemon``."""
    rules = (
        '[[access.rule]]\nuser = "daemon"\nallow = ["observe"]\n[[access.rule]]\ngroup = "daemon"\nallow = ["use"]\n'
    )
    by_user = Person("user", "user", "everything", "observe", 1, 61_998, [OPENERS], "")
    by_group = Person("group", "group", "everything", "use", 61_990, 1, [OPENERS], "")
    steps = [["status", {}], ["attach", {"target": "other", "label": "main"}]]
    async with Stage(directory) as stage:
        daemon = await open_daemon(stage, rules)
        got = await play(stage, daemon, by_user.plan(steps), by_group.plan(steps))
    assert got["user", 1]["error"] is None
    assert got["user", 2]["error"]["data"] == {"verb": "use", "target": "connection other, label main"}
    assert (got["group", 1]["error"], got["group", 2]["error"]) == (None, None)


async def test_rules_that_change_take_the_right_away_from_who_is_attached(directory):
    someone = person("uid", "everything", "use", 61_000, 61_001)
    attach = {"label": "main", "mode": "send"}
    steps = [
        ["attach", attach | {"target": "other"}],
        ["attach", attach | {"target": "to-alice"}],
        ["hear", "detached"],
        ["attach", attach | {"target": "other"}],
        ["attach", attach | {"target": "to-alice", "label": "more"}],
        ["hear", "detached"],
        ["hear", "detached"],
        ["hear", "response"],
        ["ping", {}],
    ]
    async with Stage(directory) as stage:
        daemon = await open_daemon(stage, someone.rule)
        process = await begin(stage, daemon, someone.plan(steps))
        await process.until_count("answer", 3)
        configure(daemon, person("uid", "connections", "use", 61_000, 61_001).rule)
        async with daemon.client() as client:
            changes = await client.call("reload")
        assert (changes["changed"], changes["detached"], changes["restart_needed"]) == (["access"], 1, [])
        await process.until_count("answer", 6)
        configure(daemon, '[[access.rule]]\nuser = "nobody at all"\nallow = ["use"]\n')
        async with daemon.client() as client:
            with pytest.raises(RequestRefused, match=r"access.rule\[0\].user: there is no user 'nobody at all'"):
                await client.call("reload")
            configure(daemon, "")
            assert {row["uid"] for row in await client.clients()} == {os.geteuid(), someone.uid}
        assert daemon.process is not None
        daemon.process.send(signal.SIGHUP)
        assert await process.exited() == 0
        got = answers(process)
    handles = [got["use-everything-by-uid", number]["result"]["handle"] for number in (1, 2)]
    handles.append(got["use-everything-by-uid", 5]["result"]["handle"])
    assert got["use-everything-by-uid", 3] == [handles[0], "access_withdrawn"]
    assert got["use-everything-by-uid", 4]["error"]["code"] == "access_denied"
    assert [got["use-everything-by-uid", number] for number in (6, 7)] == [
        [handle, "access_withdrawn"] for handle in handles[1:]
    ]
    assert got["use-everything-by-uid", 8][0]["code"] == "access_denied"
    assert got["use-everything-by-uid", 9] == "ConnectionError"


async def test_one_user_has_so_many_clients_and_root_as_many_as_it_likes(directory):
    someone = person("uid", "everything", "use", 61_000, 61_001)
    async with Stage(directory) as stage:
        daemon = await open_daemon(stage, someone.rule)
        staying = [await begin(stage, daemon, someone.plan([["hear", "event"]])) for _ in range(3)]
        for process in staying:
            await process.until_count("answer", 1)
        got = await play(stage, daemon, someone.plan([["ping", {}]]))
        assert got[someone.name, 0]["error"]["code"] == "user_limit"
        assert "[access] max_clients" in got[someone.name, 0]["error"]["message"]
        async with asyncio.timeout(PATIENCE):
            clients = [daemon.client() for _ in range(5)]
            for client in clients:
                await client.__aenter__()
            for client in clients:
                await client.__aexit__(None, None, None)
