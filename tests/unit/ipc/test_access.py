"""What a client sees and may under rules, who hears of refusals, and what one user may have."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
from collections import Counter

import pytest

from rondevud.access import Caps, Patterns, Policy, Rule, Verb
from rondevud.ipc import access
from rondevud.ipc.access import NEEDS, Audit, Peer, To, identify_peer
from rondevud.ipc.methods import TABLE
from rondevud.ipc.server import Server
from tests.unit.ipc.raw import raw_client
from tests.unit.vectors import sections


def allowing(verb=Verb.USE, caps=Caps(), **restrictions):  # noqa: B008 - cannot be changed
    """A policy under which whoever runs the tests is nobody special."""
    patterns = {name: Patterns([pattern]) for name, pattern in restrictions.items()}
    return Policy(frozenset(), (Rule(verb, uid=os.getuid(), **patterns),), caps)


@pytest.fixture
async def serve(house, path):
    async with contextlib.AsyncExitStack() as stack:

        async def start(policy):
            counters = Counter()
            server = Server(house, path=path, policy=policy, counters=counters)
            await server.start()
            stack.push_async_callback(server.stop)
            return server, counters

        yield start


def test_every_method_says_what_it_needs():
    assert NEEDS.keys() == TABLE.methods.keys()


def test_the_document_says_what_each_method_needs():
    documented = {}
    for verb, to, words in re.findall(
        r"^\| ?(\S*) ?\| ([^|]+) \| ([^|]+) \|$", sections("socket.md")["Access"], re.MULTILINE
    ):
        for name in re.findall(r"`([a-z_]+)`(?! with mode)", words.split("; `attach` with")[0]):
            documented[name] = (verb.strip("`"), to.split(":")[0])
    words = {
        To.NOTHING: "whoever has a rule", To.LIST: "whoever has a rule", To.DAEMON: "the daemon", To.CHANNEL: "the channel"
    }  # fmt: skip
    assert documented.keys() == NEEDS.keys()
    for name, (verb, to) in documented.items():
        need = NEEDS[name]
        assert to == words.get(need.to, to), name
        assert (need.to in words) == (to in words.values()), name
        assert verb in {"", str(need.verb)}, name
        assert (verb == "") == (need.to in {To.NOTHING, To.LIST}), name


def test_the_parameters_that_say_what_a_method_is_done_to_are_there():
    parameters = {
        access.To.TARGET: {"target"},
        access.To.CHANNEL: {"target", "label"},
        access.To.NAME: {"name", "username", "fqn", "uuid"},
        access.To.SERVICE: {"username", "fqn"},
    }
    for name, need in NEEDS.items():
        assert parameters.get(need.to, set()) <= TABLE.methods[name].parameters.keys(), name
        if need.to in {access.To.NOTHING, access.To.LIST, access.To.DAEMON}:
            assert "target" not in TABLE.methods[name].parameters


async def test_events_of_what_may_not_be_observed_do_not_come(serve, house, path):
    await serve(allowing(Verb.OBSERVE, connections="alice-*", labels="main"))
    house.add_connection("conn-b", "secret")
    async with raw_client(path) as client:
        since = house.events.publish("state", {}, connection_id="conn-b")
        await client.result("subscribe", since=since)
        house.events.publish("reloaded", {"added": ["secret"]})
        house.events.publish("connected", {}, connection_id="conn-b")
        house.events.publish("connected", {}, connection_id="conn-unknown")
        house.events.publish("channel", {}, connection_id="conn-a", label="other")
        house.events.publish("channel", {}, service="alice/x", connection_id="conn-a", label="main")
        house.events.publish("channel", {}, connection_id="conn-a", label="main")
        house.events.publish("connected", {}, connection_id="conn-a")
        house.events.publish("stopping", {})
        names = [(await client.notification("event"))[2:4] for _ in range(3)]
    assert names == [
        ["channel", {"connection_id": "conn-a", "label": "main"}],
        ["connected", {"connection_id": "conn-a"}],
        ["stopping", {}],
    ]


async def test_a_snapshot_has_only_what_may_be_observed(serve, house, path):
    await serve(allowing(Verb.OBSERVE, connections="alice-*", labels="main"))
    house.add_connection("conn-b", "secret")
    for connection_id in ("conn-a", "conn-b"):
        for label in ("main", "other"):
            house.get(connection_id, label)
    async with raw_client(path) as client:
        rows = (await client.result("subscribe"))["connections"]
    assert [(row["name"], [channel["label"] for channel in row["channels"]]) for row in rows] == [
        ("alice-chat", ["main"])
    ]


async def test_an_observer_of_a_service_hears_nothing_of_other_labels(serve, house, path):
    await serve(allowing(Verb.OBSERVE, services="alice/*", labels="main"))
    house.disk.services["alice/x"] = {}
    house.add_connection("conn-b", "guest", service="alice/x")
    house.get("conn-b", "main")
    async with raw_client(path) as client:
        await client.result("attach", target="conn-b", label="main", mode="observe")
        await client.result("subscribe", target="service:alice/x")
        house.events.publish("channel", {}, service="alice/x", connection_id="conn-b", label="other")
        house.events.publish("close", {}, service="alice/x", connection_id="conn-b", label="main")
        assert {(await client.notification("event"))[2] for _ in range(2)} == {"close"}


async def test_a_target_that_is_not_there_tells_nothing_to_who_may_not_have_it(serve, path):
    await serve(allowing(connections="alice-*"))
    async with raw_client(path) as client:
        assert (await client.refused("attach", target="alice-absent", label="main"))["code"] == "unknown_target"
        assert (await client.refused("attach", target="bob-absent", label="main"))["code"] == "access_denied"
        assert (await client.refused("attach", target="service:bob/x", label="main"))["code"] == "access_denied"


async def test_a_connection_may_be_named_by_its_id(serve, house, path):
    await serve(allowing(connections="alice-*"))
    house.add_connection("conn-b", "secret")
    async with raw_client(path) as client:
        assert (await client.result("queue", target="conn-a", label="main"))["queue_size"] == 0
        error = await client.refused("queue", target="conn-b", label="main")
    assert error["data"] == {"verb": "observe", "target": "connection secret, label main"}


async def test_an_unnamed_connection_has_the_name_that_it_would_get(serve, path):
    await serve(allowing(connections="alice/*"))
    async with raw_client(path) as client:
        assert (await client.result("connect", username="alice", fqn="x@1"))["name"] == "alice/x@1"
        for other in ({"username": "bob", "fqn": "x@1"}, {"uuid": "u"}, {"username": "alice", "fqn": "x", "name": "b"}):
            assert (await client.refused("connect", **other))["code"] == "access_denied"


# --- rules that change -------------------------------------------------------------------------------------------------


async def test_handles_whose_right_is_withdrawn_are_detached_and_others_stay(serve, house, path):
    server, _ = await serve(allowing())
    async with raw_client(path) as client:
        sending = await client.result("attach", target="alice-chat", label="main", mode="send")
        looking = await client.result("attach", target="alice-chat", label="main", mode="observe")
        assert server.set_policy(allowing(Verb.OBSERVE)) == 1
        assert await client.notification("detached") == [sending["handle"], "access_withdrawn"]
        client.notify("send", sending["handle"], 1, ["too late"])
        client.notify("credit", looking["handle"], 1)
        await client.result("ping")
        house.get("conn-a", "main").deliver("seen")
        assert (await client.notification("message"))[0] == looking["handle"]
        assert house.get("conn-a", "main").stored.outbox == []
        assert house.get("conn-a", "main").producers == {}


async def test_an_attach_under_way_ends_when_its_right_is_withdrawn(serve, house, path, monkeypatch):
    server, _ = await serve(allowing())
    channel = house.get("conn-a", "main")
    opening = channel.open_producer

    async def withdraw_first(*arguments):
        assert server.set_policy(allowing(Verb.OBSERVE)) == 1
        return await opening(*arguments)

    monkeypatch.setattr(channel, "open_producer", withdraw_first)
    async with raw_client(path) as client:
        assert (await client.refused("attach", target="alice-chat", label="main"))["code"] == "detached"
    assert channel.producers == {}
    assert channel.receiver is None


async def test_who_has_no_right_left_is_told_and_closed(serve, path):
    server, _ = await serve(allowing())
    async with raw_client(path) as client:
        handle = (await client.result("attach", target="alice-chat", label="main"))["handle"]
        assert server.set_policy(Policy(frozenset())) == 1
        assert await client.notification("detached") == [handle, "access_withdrawn"]
        assert (await client.next()).error["code"] == "access_denied"
        assert await client.next() is None


async def test_rights_that_are_given_hold_on_open_sockets(serve, path):
    server, _ = await serve(allowing(Verb.OBSERVE))
    async with raw_client(path) as client:
        assert (await client.refused("attach", target="alice-chat", label="main"))["code"] == "access_denied"
        server.set_policy(allowing())
        assert await client.result("attach", target="alice-chat", label="main")


# --- refusals ----------------------------------------------------------------------------------------------------------


async def test_a_refusal_says_verb_and_target_and_is_counted_and_logged(serve, path, caplog):
    _, counters = await serve(allowing(Verb.OBSERVE))
    async with raw_client(path) as client:
        error = await client.refused("close", target="alice-chat")
    assert error["message"] == f"close: uid {os.getuid()} may not administer connection alice-chat"
    assert error["data"] == {"verb": "administer", "target": "connection alice-chat"}
    assert counters == {"access_denied": 1}
    line = f"access_denied: uid {os.getuid()}, pid {os.getpid()}, close: may not administer connection alice-chat"
    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == [line]


def test_refusals_of_one_user_do_not_flood_the_log(caplog):
    now = [0.0]
    counters = Counter()
    audit = Audit(counters, lambda: now[0])
    for _ in range(100):
        audit.deny(Peer(1, 1000, 1000), "close", "may not")
    audit.deny(Peer(2, 1001, 1001), "close", "may not")
    assert len(caplog.records) == access.AUDIT_LINES + 1
    assert "more of this user within 60 s are only counted" in caplog.records[access.AUDIT_LINES - 1].message
    now[0] = access.AUDIT_WINDOW
    caplog.clear()
    audit.deny(Peer(1, 1000, 1000), "close", "may not")
    assert [record.message for record in caplog.records] == [
        "80 refusals of uid 1000 were only counted",
        "access_denied: uid 1000, pid 1, close: may not",
    ]
    assert counters["access_denied"] == 102


def test_many_users_who_are_refused_take_no_memory(monkeypatch):
    monkeypatch.setattr(access, "AUDITED_USERS", 5)
    now = [0.0]
    audit = Audit(Counter(), lambda: now[0])
    for uid in range(100):
        audit.deny(Peer(1, uid, uid), "close", "may not")
    assert len(audit._windows) == 6
    now[0] = 2 * access.AUDIT_WINDOW
    audit.deny(Peer(1, 500, 500), "close", "may not")
    assert set(audit._windows) == {500}


# --- what one user may have --------------------------------------------------------------------------------------------


async def test_a_user_has_so_many_clients_together(serve, path):
    server, counters = await serve(allowing(caps=Caps(max_clients=2)))
    async with raw_client(path):
        async with raw_client(path), raw_client(path, hello=False) as third:
            error = (await third.next()).error
            assert (error["code"], "max_clients" in error["message"]) == ("user_limit", True)
            assert await third.next() is None
        assert counters["user_limit"] == 1
        server.set_policy(allowing(caps=Caps(max_clients=3)))
        async with raw_client(path), raw_client(path):
            pass


async def test_a_user_has_so_much_parked_together(serve, house, path):
    _, counters = await serve(allowing(caps=Caps(max_parked_bytes=10)))
    for label in ("one", "two"):
        house.get("conn-a", label).hold = True
    async with raw_client(path) as first, raw_client(path) as second:
        one = (await first.result("attach", target="conn-a", label="one", mode="send"))["handle"]
        two = (await second.result("attach", target="conn-a", label="two", mode="send"))["handle"]
        first.notify("send", one, 1, ["123456789012"])  # one message always
        await first.result("ping")
        second.notify("send", two, 1, ["1"])
        rejected = await second.notification("rejected")
        assert rejected[:3] == [two, 1, "user_limit"]
        assert "[access] max_parked_bytes" in rejected[3]
        house.get("conn-a", "one").release()
        assert await first.notification("accepted") == [one, 1]
        house.get("conn-a", "two").release()
        second.notify("send", two, 2, ["12345", "12345"])
        assert await second.notification("accepted") == [two, 1]
        assert await second.notification("accepted") == [two, 3]
    assert counters["user_limit"] == 1


async def test_what_a_client_had_parked_is_free_when_it_leaves(serve, house, path):
    server, _ = await serve(allowing(caps=Caps(max_parked_bytes=10)))
    house.get("conn-a", "main").hold = True
    async with raw_client(path):
        async with raw_client(path) as client:
            handle = (await client.result("attach", target="conn-a", label="main", mode="send"))["handle"]
            client.notify("send", handle, 1, ["1234567890"])
            await client.result("ping")
            assert server._usages[os.getuid()].parked == 10
        await house.until(lambda: house.gone)
        assert server._usages[os.getuid()].parked == 0


async def test_a_user_has_so_much_queued_together_whoever_of_its_programs_sent_it(serve, house, path):
    await serve(allowing(caps=Caps(max_queue_bytes=20)))
    async with raw_client(path) as client:
        handle = (await client.result("attach", target="conn-a", label="one", mode="send"))["handle"]
        client.notify("send", handle, 1, ["x" * 15])
        assert await client.notification("accepted") == [handle, 1]
    async with raw_client(path) as client:
        handle = (await client.result("attach", target="conn-a", label="two", mode="send"))["handle"]
        client.notify("send", handle, 1, ["y" * 6, "y" * 5])
        rejected = await client.notification("rejected")
        assert rejected[:3] == [handle, 1, "user_limit"]
        assert "[access] max_queue_bytes" in rejected[3]
        assert await client.notification("accepted") == [handle, 2]
        house.get("conn-a", "one").stored.outbox.clear()
        client.notify("send", handle, 3, ["y" * 15])
        assert await client.notification("accepted") == [handle, 3]
        assert house.get("conn-a", "two").queue_bytes == 20
        house.get("conn-a", "two").stored.outbox.clear()
    await house.until(lambda: len(house.gone) == 2)


async def test_caps_do_not_hold_for_administrators(house, path):
    policy = Policy(frozenset({os.getuid()}), (), Caps(1, 1, 1))
    server = Server(house, path=path, policy=policy)
    await server.start()
    try:
        async with raw_client(path), raw_client(path) as client:
            handle = (await client.result("attach", target="conn-a", label="main", mode="send"))["handle"]
            client.notify("send", handle, 1, ["long", "enough"])
            assert await client.notification("accepted") == [handle, 2]
    finally:
        await server.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be in other groups")
@pytest.mark.parametrize("count", [0, 3, 256, 257, 5_000])
def test_all_groups_of_a_peer_are_known(count):
    groups = list(range(100_000, 100_000 + count))
    parent, child = socket.socketpair()
    listener = socket.socket(socket.AF_UNIX)
    with parent, child, listener:
        listener.bind(f"\0rondevud-groups-{os.getpid()}")
        listener.listen(1)
        pid = os.fork()
        if not pid:
            with contextlib.suppress(BaseException), socket.socket(socket.AF_UNIX) as sock:
                parent.close()
                os.setgroups(groups)
                sock.connect(listener.getsockname())
                child.recv(1)
            os._exit(0)
        sock, _ = listener.accept()
        try:
            with sock:
                peer = identify_peer(sock)
        finally:
            parent.close()
            os.waitpid(pid, 0)
    assert (peer.pid, peer.groups) == (pid, frozenset(groups))
