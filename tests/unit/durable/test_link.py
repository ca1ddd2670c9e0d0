"""Two machines joined back to back, one scenario each. Chance is in `test_link_machine`."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rondevud.durable import frames, incoming, outgoing
from rondevud.durable.effects import (
    ChannelClosed,
    ChannelOpened,
    ChannelResumed,
    CloseLink,
    LabelRefused,
    LinkDown,
    LinkUp,
    OpenDataChannel,
    OptionsTaken,
    Recovered,
    SessionFailed,
    Suspect,
)
from rondevud.durable.frames import (
    Ack,
    Channel,
    Data,
    Goodbye,
    GoodbyeCode,
    Hello,
    Piece,
    Ping,
    Pong,
    Refuse,
    RefuseCode,
    Skip,
)
from rondevud.durable.incoming import InboxLimits
from rondevud.durable.link import (
    BUFFER_LEAST,
    BUFFER_MOST,
    CONFLICT_WINDOW,
    NOTHING_HEARD,
    PINGS_UNANSWERED,
    LinkSettings,
    Session,
)
from rondevud.durable.outgoing import LOADED_BYTES, LOADED_MESSAGES, Direction, VerdictKind
from rondevud.errors import StoreConflict
from rondevud.records import (
    PAGE_BYTES,
    PAGE_MESSAGES,
    Acknowledge,
    Durability,
    InGap,
    LoadSessions,
    ReadIn,
    Reason,
    Trim,
)
from rondevud.store.memory import MemoryTables
from rondevud.transport.base import RELIABLE, ChannelOptions
from tests.unit.durable.world import Disk, World, other

MIB = 1024 * 1024


def joined(**arguments) -> World:
    """Two daemons with a link, and on it the channel "alpha" where both have announced it."""
    world = World(**{"limits": InboxLimits(), "max_message": 4 * MIB, **arguments})
    for node in world.nodes.values():
        node.disk = Disk(MemoryTables())
    redial(world)
    world.nodes["c"].create(world.nodes["c"].session(), "alpha")
    world.run()
    for side in "cs":  # the jump to this start's numbers is behind us
        send(world, side, "first")
        world.run()
        world.nodes[other(side)].read("alpha")
    world.run()
    forget_events(world)
    return world


def redial(world: World) -> int:
    """Another link, everything delivered; answers its key."""
    world.connect()
    world.run()
    return max(world.wires)


def forget_events(world: World) -> None:
    for node in world.nodes.values():
        node.events.clear()


def events(world: World, side: str, kind: type) -> list:
    return [event for event in world.nodes[side].events if isinstance(event, kind)]


def tell(world: World, side: str, frame, key: int | None = None) -> None:
    """A frame that the other side never sent arrives on the current link."""
    session = world.nodes[side].session()
    session.receive(session.current if key is None else key, frames.encode(frame), world.now)
    world.nodes[side].carry_out(session)


def under_way(world: World, side: str, key: int | None = None) -> list:
    """The frames on their way to `side`."""
    return [frames.decode(data) for data in world.wires[key or max(world.wires)].queues[side]]


def pass_time(world: World, seconds: float, *sides: str, deliver: bool = False, step: float = 0.5) -> None:
    """One step after the other, so that no timer is late."""
    for _ in range(round(seconds / step)):
        world.now += step
        for side in sides:
            world.nodes[side].tick()
        if deliver:
            world.run()


def inbox(world: World, side: str, label: str = "alpha") -> list:
    """What the program at `side` would read: payloads, and the reasons of gaps."""
    session = world.nodes[side].session()
    page = world.nodes[side].disk.tables.execute(ReadIn(session.lanes[label].out.channel, 0))
    return [item.removal.reason if isinstance(item, InGap) else item.payload for item in page.items]


def send(world: World, side: str, *payloads, label: str = "alpha") -> None:
    node = world.nodes[side]
    session = node.session()
    node.execute(session, session.lanes.put(label, payloads, world.stamp()))


def outbox_count(world: World, side: str, label: str = "alpha") -> int:
    records = world.nodes[side].disk.tables.execute(LoadSessions()).channels
    return next(r.out_count for r in records if r.label == label)


def verdicts(world: World, side: str) -> list:
    return [event.verdict for event in events(world, side, ChannelResumed)]


class TestGreeting:
    def test_hello_brings_a_token_and_welcome_opens_the_link_on_both_sides(self):
        world = World()
        world.connect()
        world.nodes["c"].commit(100)
        (hello,) = under_way(world, "s")
        assert isinstance(hello, Hello)
        assert hello.token == world.nodes["c"].session().record.token
        assert hello.proof is None
        world.run()
        for node in world.nodes.values():
            assert LinkUp(1, resumed=False, replaced=False) in node.events
            assert node.session().current == 1
            assert node.session().record.contacted

    def test_hello_waits_for_its_link_number_to_be_stored(self):
        world = World()
        world.connect()
        world.nodes["c"].fail_commit()
        assert under_way(world, "s") == []
        world.nodes["c"].commit(100)
        assert len(under_way(world, "s")) == 1

    def test_known_session_is_resumed_with_proof_instead_of_token(self):
        world = joined()
        world.cut(1, 0)
        world.connect()
        world.nodes["c"].commit(100)
        (hello,) = under_way(world, "s")
        assert hello.token is None
        assert hello.proof is not None
        world.run()
        assert LinkUp(2, resumed=True, replaced=False) in world.nodes["c"].events

    @pytest.mark.parametrize("proof", [None, b"x" * 32])
    def test_welcome_without_the_right_proof_ends_the_link(self, proof):
        world = joined()
        world.cut(1, 0)
        world.connect()
        world.nodes["c"].commit(100)
        number = world.nodes["c"].session().record.link
        tell(world, "c", frames.Welcome(True, number, proof, "x", 1000, 1.0, None), key=2)
        (down,) = [event for event in events(world, "c", LinkDown) if event.link == 2]
        assert "without proof" in down.reason
        assert world.nodes["c"].session().counters == {"impostors": 1, "protocol_errors": 1}
        assert not any(isinstance(frame, Channel) for frame in under_way(world, "s"))

    def test_forgotten_session_is_made_anew_in_the_same_channel_and_the_verdict_counts_what_is_lost(self):
        world = joined()
        send(world, "c", "one", "two", "three")
        world.run()
        before = world.nodes["c"].session().record
        world.nodes["s"].forget()
        world.run()
        world.cut(1, 0)
        forget_events(world)
        key = redial(world)
        after = world.nodes["c"].session().record
        assert after.session != before.session
        assert after.token != before.token
        assert world.nodes["c"].session().current == world.nodes["s"].session().current == key
        out = next(v for v in verdicts(world, "c") if v.direction is Direction.OUT)
        assert (out.kind, out.messages) == (VerdictKind.GAP, 4)
        assert inbox(world, "s") == [Reason.LOST]

    def test_two_links_that_are_both_told_unknown_session_agree_on_one_new_session(self):
        world = joined()
        world.nodes["s"].forget()
        world.run()
        world.cut(1, 0)
        for _ in range(2):
            world.connect()
            world.nodes["c"].commit(100)
        world.run()
        assert world.nodes["c"].session().counters["sessions_forgotten"] == 1
        assert len(world.nodes["s"].sessions) == 1
        assert world.nodes["s"].session().record.session == world.nodes["c"].session().record.session
        assert world.nodes["c"].session().current is not None

    def test_older_link_goes_on_above_the_number_it_is_told(self):
        world = joined()
        world.cut(1, 0)
        service = world.nodes["s"].session()
        service.record = replace(service.record, link=service.record.link + 10**9)
        redial(world)
        assert world.nodes["c"].session().current == 2
        assert world.nodes["c"].session().record.link == service.record.link
        assert not events(world, "c", SessionFailed)

    def test_peer_that_is_back_is_stored_as_not_absent(self):
        world = joined()
        world.cut(1, 0)
        service = world.nodes["s"].session()
        service.record = replace(service.record, absent=600_000.0)
        redial(world)
        (stored,) = world.nodes["s"].disk.tables.execute(LoadSessions()).sessions
        assert stored.link == world.nodes["c"].session().record.link
        assert stored.absent == 0.0

    def test_link_number_that_leaves_no_room_ends_the_link(self):
        world = World()
        world.connect()
        world.nodes["c"].commit(100)
        before = world.nodes["c"].session().record.link
        tell(world, "c", Refuse(RefuseCode.OLDER_LINK, "later", frames.MAX_NUMBER), key=1)
        assert [event.code for event in events(world, "c", LinkDown)] == ["protocol"]
        assert world.nodes["c"].session().record.link == before

    def test_session_that_cannot_be_stored_fails_and_is_not_tried_for_ever(self):
        world = World()
        world.connect()
        node = world.nodes["c"]
        _, done = node.pending.popleft()
        done(StoreConflict("no such thing"))
        assert [event.code for event in events(world, "c", SessionFailed)] == ["store_conflict"]
        assert not node.pending

    def test_hellos_on_one_link_come_to_an_end(self):
        world = World()
        world.connect()
        for _ in range(5):
            world.nodes["c"].commit(100)
            world.wires[1].queues["s"].clear()
            tell(world, "c", Refuse(RefuseCode.UNKNOWN_SESSION, "no", 0), key=1)
        assert [event.code for event in events(world, "c", LinkDown)] == ["unknown_session"]
        assert events(world, "c", CloseLink) == [CloseLink(1)]

    def test_denied_fails_the_session(self):
        world = World()
        world.connect()
        world.nodes["c"].commit(100)
        tell(world, "c", Refuse(RefuseCode.DENIED, "not you", 0), key=1)
        assert events(world, "c", SessionFailed) == [SessionFailed("denied", "not you")]
        assert events(world, "c", CloseLink) == [CloseLink(1)]

    @pytest.mark.parametrize("code", [RefuseCode.TOO_MANY, RefuseCode.TRY_LATER])
    def test_too_many_and_try_later_end_the_link_only(self, code):
        world = World()
        world.connect()
        world.nodes["c"].commit(100)
        tell(world, "c", Refuse(code, "full", 0), key=1)
        assert [event.code for event in events(world, "c", LinkDown)] == [code]
        assert not events(world, "c", SessionFailed)


class TestSeveralLinks:
    def test_newer_link_takes_over_and_the_older_one_is_closed_after_goodbyes(self):
        world = joined()
        redial(world)
        assert LinkUp(2, resumed=True, replaced=True) in world.nodes["s"].events
        pass_time(world, 1.0, "c", "s", deliver=True)
        for side in "cs":
            assert world.nodes[side].session().current == 2
            assert events(world, side, CloseLink) == [CloseLink(1)]
            assert [event.code for event in events(world, side, LinkDown)] == ["superseded"]

    def test_frames_of_the_older_link_are_ignored_from_the_welcome_on(self):
        world = joined()
        send(world, "c", "old")
        world.nodes["c"].commit(100)
        world.connect()
        world.nodes["c"].commit(100)
        world.deliver(2, "s")
        late = world.wires[1].queues["s"][0]
        assert frames.decode(late).payloads == ["old"]
        world.deliver(1, "s")
        world.nodes["s"].commit(100)
        assert inbox(world, "s") == []
        world.run()
        assert inbox(world, "s") == ["old"]

    def test_superseded_three_times_in_ten_minutes_by_strangers_is_a_conflict(self):
        world = joined()
        for number in range(3):
            assert len(events(world, "c", SessionFailed)) == 0, number
            tell(world, "c", Goodbye(GoodbyeCode.SUPERSEDED, "a newer link"))
            redial(world)
        assert [event.code for event in events(world, "c", SessionFailed)] == ["session_conflict"]

    def test_superseded_seldom_is_no_conflict(self):
        world = joined()
        for _ in range(5):
            tell(world, "c", Goodbye(GoodbyeCode.SUPERSEDED, "a newer link"))
            world.now += CONFLICT_WINDOW / 2 + 1
            redial(world)
        assert not events(world, "c", SessionFailed)

    def test_superseded_by_ones_own_later_hello_is_no_conflict(self):
        world = joined()
        for number in range(2, 7):
            world.connect()
            world.nodes["c"].commit(100)
            world.deliver(number, "s")
            while world.deliver(number - 1, "c"):  # the goodbye overtakes the welcome
                pass
            assert world.nodes["c"].session().current is None
            world.run()
        assert not events(world, "c", SessionFailed)


def parting() -> tuple[World, Session]:
    """The connecting side has said goodbye, and has no answer yet."""
    world = joined()
    session = world.nodes["c"].session()
    session.say_goodbye(GoodbyeCode.RESTARTING, "", world.now)
    world.nodes["c"].carry_out(session)
    return world, session


class TestGoodbye:
    def test_goodbye_is_answered_and_then_both_close(self):
        world = joined()
        session = world.nodes["c"].session()
        session.say_goodbye(GoodbyeCode.CLOSING, "done", world.now)
        world.nodes["c"].carry_out(session)
        assert not events(world, "c", CloseLink)
        world.deliver(1, "s")
        assert [(e.code, e.reason, e.current) for e in events(world, "s", LinkDown)] == [("closing", "done", True)]
        world.deliver(1, "c")
        assert events(world, "c", CloseLink) == [CloseLink(1)]

    def test_goodbye_without_answer_closes_after_a_second(self):
        world, _ = parting()
        pass_time(world, 0.5, "c")
        assert not events(world, "c", CloseLink)
        pass_time(world, 0.5, "c")
        assert events(world, "c", CloseLink) == [CloseLink(1)]

    def test_the_answer_to_a_goodbye_is_waited_for_while_the_peer_is_heard_but_not_for_ever(self):
        world, session = parting()
        for _ in range(6):
            pass_time(world, 0.75, "c", step=0.25)
            assert not events(world, "c", CloseLink)
            session.receive(1, frames.encode(Pong(1)), world.now)
        pass_time(world, 0.5, "c")
        assert events(world, "c", CloseLink) == [CloseLink(1)]

    def test_of_a_peer_that_falls_silent_after_a_goodbye_a_second_is_waited_for_more(self):
        world, session = parting()
        pass_time(world, 0.75, "c", step=0.25)
        session.receive(1, frames.encode(Pong(1)), world.now)
        pass_time(world, 0.75, "c", step=0.25)
        assert not events(world, "c", CloseLink)
        pass_time(world, 0.25, "c", step=0.25)
        assert events(world, "c", CloseLink) == [CloseLink(1)]

    def test_broken_frame_ends_the_link_and_not_the_session(self):
        world = joined()
        session = world.nodes["s"].session()
        session.receive(1, b"\xc1", world.now)
        world.nodes["s"].carry_out(session)
        assert session.counters == {"protocol_errors": 1}
        assert under_way(world, "c")[-1].code is GoodbyeCode.PROTOCOL
        world.run()
        redial(world)
        assert session.current == 2


class TestLiveness:
    def test_no_welcome_within_ten_seconds_says_goodbye(self):
        world = World()
        world.connect()
        world.nodes["c"].commit(100)
        pass_time(world, 9.5, "c")
        assert not events(world, "c", LinkDown)
        pass_time(world, 0.5, "c")
        assert [event.code for event in events(world, "c", LinkDown)] == ["timeout"]
        assert under_way(world, "s")[-1].code is GoodbyeCode.TIMEOUT

    def test_four_silent_seconds_are_suspect_and_anything_heard_recovers(self):
        world = joined()
        pass_time(world, 3.5, "c")
        assert not events(world, "c", Suspect)
        pass_time(world, 1.0, "c")
        assert events(world, "c", Suspect) == [Suspect(1, 4.0, unheard=False)]
        tell(world, "c", Ping(7))
        assert events(world, "c", Recovered) == [Recovered(1)]
        assert world.nodes["c"].session().silence(world.now) == 0.0

    def test_who_hears_nothing_says_so_until_it_hears_something(self):
        world = joined()
        pass_time(world, 5.5, "c")
        numbers = [frame.n for frame in under_way(world, "s") if isinstance(frame, Ping)]
        silent = numbers.index(NOTHING_HEARD)
        assert all(numbers[:silent])
        assert not any(numbers[silent:])
        tell(world, "c", Ping(7))
        assert under_way(world, "s")[-2].n != NOTHING_HEARD
        assert under_way(world, "s")[-1] == Pong(7)

    def test_who_is_not_heard_any_more_suspects_the_link_until_it_is(self):
        world = joined()
        tell(world, "c", Ping(NOTHING_HEARD))
        assert events(world, "c", Suspect) == [Suspect(1, 0.0, unheard=True)]
        assert world.nodes["c"].session().suspect
        assert under_way(world, "s") == [Pong(NOTHING_HEARD)]
        tell(world, "c", Pong(1))  # may have been on its way for long
        assert not events(world, "c", Recovered)
        tell(world, "c", Ping(7))
        assert events(world, "c", Recovered) == [Recovered(1)]
        assert not world.nodes["c"].session().suspect

    def test_a_link_that_neither_side_hears_is_suspect_once_and_recovers_with_both(self):
        world = joined()
        tell(world, "c", Ping(NOTHING_HEARD))
        pass_time(world, 5.0, "c")
        assert len(events(world, "c", Suspect)) == 1
        tell(world, "c", Ping(NOTHING_HEARD))
        assert not events(world, "c", Recovered)
        tell(world, "c", Ping(7))
        assert events(world, "c", Recovered) == [Recovered(1)]

    def test_who_did_not_run_knows_why_it_was_not_heard(self):
        world = joined()
        world.nodes["c"].session().next_wakeup()
        world.now += 3_600
        tell(world, "c", Ping(NOTHING_HEARD))
        assert not events(world, "c", Suspect)
        pass_time(world, 3.5, "c")
        tell(world, "c", Ping(NOTHING_HEARD))
        assert not events(world, "c", Suspect)
        pass_time(world, 1.0, "c")
        tell(world, "c", Ping(NOTHING_HEARD))
        assert [event.unheard for event in events(world, "c", Suspect)] == [True]

    def test_a_ping_without_an_answer_is_followed_by_more(self):
        world = joined()
        pass_time(world, 2.0, "c")
        before = len(under_way(world, "s"))
        pass_time(world, 1.0, "c", step=0.125)
        assert len(under_way(world, "s")) == before + PINGS_UNANSWERED
        tell(world, "c", Pong(under_way(world, "s")[-1].n))
        before = len(under_way(world, "s"))
        pass_time(world, 1.0, "c", step=0.125)
        assert len(under_way(world, "s")) == before + 1

    def test_fifteen_silent_seconds_end_the_link(self):
        world = joined()
        pass_time(world, 14.5, "c")
        assert world.nodes["c"].session().current == 1
        pass_time(world, 0.5, "c")
        assert [event.code for event in events(world, "c", LinkDown)] == ["timeout"]

    @pytest.mark.parametrize(("heartbeat", "suspect", "dead"), [(10.0, 40.0, 150.0), (1e6, 240.0, 900.0)])
    def test_slow_heartbeats_that_the_peer_announced_are_no_silence_within_bounds(self, heartbeat, suspect, dead):
        world = joined()
        world.nodes["s"].session().settings = replace(world.settings["s"], heartbeat=heartbeat)
        redial(world)
        forget_events(world)
        pass_time(world, suspect - 0.5, "c")
        assert not events(world, "c", Suspect)
        pass_time(world, 0.5, "c")
        assert [event.silence for event in events(world, "c", Suspect)] == [suspect]
        pass_time(world, dead - suspect - 0.5, "c")
        assert not events(world, "c", LinkDown)
        pass_time(world, 0.5, "c")
        assert [event.code for event in events(world, "c", LinkDown)] == ["timeout"]

    def test_service_waits_for_the_slow_heartbeats_of_a_peer_that_dialled(self):
        world = joined()
        world.nodes["c"].session().settings = replace(world.settings["c"], heartbeat=10.0)
        redial(world)
        forget_events(world)
        pass_time(world, 39.5, "s")
        assert not events(world, "s", Suspect)
        pass_time(world, 0.5, "s")
        assert len(events(world, "s", Suspect)) == 1

    def test_time_in_which_this_process_did_not_run_is_not_silence(self):
        world = joined()
        session = world.nodes["c"].session()
        session.next_wakeup()
        world.now += 3_600
        world.nodes["c"].tick()
        assert session.current == 1
        assert not events(world, "c", Suspect)

    def test_heartbeats_go_out_when_nothing_else_was_sent(self):
        world = joined()
        for number in (1, 2, 3):
            pass_time(world, 1.0, "c")
            assert under_way(world, "s") == [Ping(n) for n in range(1, number + 1)]
            tell(world, "c", Pong(number))

    def test_no_heartbeat_beside_messages(self):
        world = joined()
        for _ in range(6):
            send(world, "c", "x")
            world.nodes["c"].commit(100)
            pass_time(world, 0.5, "c")
        assert {type(frame) for frame in under_way(world, "s")} == {Data}

    def test_pong_tells_the_round_trip(self):
        world = joined()
        assert world.nodes["c"].session().round_trip is None
        pass_time(world, 1.0, "c")
        world.now += 0.25
        world.deliver(1, "s")
        world.deliver(1, "c")
        assert world.nodes["c"].session().round_trip == pytest.approx(0.25)


class TestFlow:
    def test_engine_buffer_holds_at_least_32_and_at_most_256_kib(self):
        world = joined()
        for _ in range(2):
            send(world, "c", *[b"x" * 16_000] * 64)
        world.nodes["c"].commit(100)
        queue = world.wires[1].queues["s"]
        frame = 20_000
        assert BUFFER_LEAST <= sum(map(len, queue)) <= BUFFER_LEAST + frame
        most = 0
        for _ in range(400):
            world.deliver(1, "s")
            world.deliver(1, "c")
            for node in world.nodes.values():
                node.commit(100)
            most = max(most, sum(map(len, queue)))
        assert BUFFER_MOST <= most <= BUFFER_MOST + frame

    def test_confirmations_older_than_a_second_do_not_count(self):
        world = joined()
        send(world, "c", *[b"x" * 16_000] * 60)
        world.run()
        world.now += 1.5
        send(world, "c", *[b"x" * 16_000] * 60)
        world.nodes["c"].commit(100)
        assert sum(map(len, world.wires[1].queues["s"])) <= BUFFER_LEAST + 20_000

    def test_labels_take_turns_beside_a_large_message(self):
        world = joined()
        world.nodes["c"].create(world.nodes["c"].session(), "beta")
        world.run()
        send(world, "c", b"x" * MIB)
        world.nodes["c"].commit(100)
        send(world, "c", "small", label="beta")
        seen = []
        for _ in range(200):
            seen += under_way(world, "s")[:1]
            world.deliver(1, "s")
            for node in world.nodes.values():
                node.commit(100)
        kinds = [type(frame) for frame in seen]
        small = next(i for i, frame in enumerate(seen) if isinstance(frame, Data) and frame.payloads == ["small"])
        assert small < 10
        assert kinds.count(Piece) == 64

    def test_full_inbox_holds_the_sender_back_and_room_that_returns_lets_it_go_on(self):
        world = joined(limits=InboxLimits(max_bytes=100))
        for text in ("a" * 80, "b" * 80, "c" * 80):
            send(world, "c", text)
        world.run()
        # 20 bytes of room: still one message may be under way, whatever its size
        assert inbox(world, "s") == ["a" * 80, "b" * 80]
        assert outbox_count(world, "c") == 1
        world.nodes["s"].read("alpha")
        world.run()
        assert inbox(world, "s") == ["c" * 80]
        assert outbox_count(world, "c") == 0

    def test_message_larger_than_the_room_goes_alone(self):
        world = joined(limits=InboxLimits(max_bytes=100))
        send(world, "c", "x" * 5_000)
        world.run()
        assert inbox(world, "s") == ["x" * 5_000]

    def test_peer_that_lost_what_is_just_being_acknowledged_is_told_how_much(self):
        world = joined()
        home, away = world.nodes["c"], world.nodes["s"]
        away.take_copy()
        send(world, "c", "one", "two")
        home.commit(100)
        while world.deliver(1, "s"):
            pass
        away.commit(100)  # the acknowledgement is on its way …
        away.go_back(0)  # … and forgotten
        world.connect()
        home.commit(100)
        while world.deliver(1, "c"):
            pass
        assert any(isinstance(operation, Acknowledge) for operation, _ in home.pending)
        while world.deliver(2, "s") or world.deliver(2, "c"):
            away.commit(100)
        world.run()
        page = away.disk.tables.execute(ReadIn(away.session().lanes["alpha"].out.channel, 0))
        assert [(gap.removal.reason, gap.removal.messages) for gap in page.items] == [(Reason.LOST, 2)]
        assert outbox_count(world, "c") == 0

    def test_channel_is_announced_when_all_that_was_received_has_been_stored(self):
        world = joined()
        before = world.nodes["s"].session().lanes["alpha"].incoming.recv_count
        send(world, "c", "one", "two")
        world.nodes["c"].commit(100)
        while world.deliver(1, "s"):
            pass
        world.connect()
        world.nodes["c"].commit(100)
        while world.deliver(2, "s"):
            pass
        assert not any(isinstance(frame, Channel) for frame in under_way(world, "c", 2))
        world.nodes["s"].commit(100)
        (said,) = [frame for frame in under_way(world, "c", 2) if isinstance(frame, Channel)]
        assert said.recv_count == before + 2

    def test_peer_that_ignores_the_room_is_stopped_before_it_fills_the_memory(self, monkeypatch):
        monkeypatch.setattr(incoming, "UNSTORED_ITEMS", 50)
        world = joined()
        send(world, "c", "first")
        world.run()
        session = world.nodes["s"].session()
        first = session.lanes["alpha"].incoming.recv_next
        for seq in range(first, first + 200):
            tell(world, "s", Data("alpha", seq, [""]))
        assert session.counters["protocol_errors"] == 1
        world.run()
        assert len(inbox(world, "s")) == 52  # what had been received is stored, not lost

    def test_messages_in_flight_are_bounded_whatever_the_room(self, monkeypatch):
        monkeypatch.setattr(outgoing, "IN_FLIGHT_MESSAGES", 10)
        world = joined()
        for _ in range(30):
            send(world, "c", "")
        world.nodes["c"].commit(100)
        assert sum(len(frame.payloads) for frame in under_way(world, "s") if isinstance(frame, Data)) == 10
        world.run()
        assert inbox(world, "s") == [""] * 30

    def test_message_over_the_peers_maximum_is_skipped(self):
        world = joined(max_message=1_000)
        send(world, "c", "before", "x" * 1_001, "behind")
        world.run()
        assert inbox(world, "s") == ["before", Reason.TOO_LARGE, "behind"]
        assert outbox_count(world, "c") == 0

    def test_removed_messages_that_had_been_sent_are_in_doubt(self):
        world = joined(limits=InboxLimits(max_bytes=100))
        send(world, "c", *["x" * 60] * 5)
        world.nodes["c"].commit(100)
        sent = sum(len(frame.payloads) for frame in under_way(world, "s"))
        assert sent == 1
        session = world.nodes["c"].session()
        trim = Trim(session.lanes["alpha"].out.channel, 0, None)
        assert session.completed(trim, world.nodes["c"].disk.tables.execute(trim)) == sent

    def test_what_is_loaded_for_sending_is_bounded_in_messages(self):
        world = joined(limits=InboxLimits(max_bytes=100))
        out = world.nodes["c"].session().lanes["alpha"].out
        for _ in range(40):
            send(world, "c", *["x" * 20] * 100)
            world.nodes["c"].commit(100)
            assert len(out._loaded) <= LOADED_MESSAGES + PAGE_MESSAGES
        world.cut(1, 0)
        redial(world)
        assert 0 < len(out._loaded) <= LOADED_MESSAGES + PAGE_MESSAGES

    def test_what_is_loaded_for_sending_is_bounded_in_bytes(self):
        world = joined(limits=InboxLimits(max_bytes=100))
        send(world, "c", *[b"x" * 600_000] * 20)
        world.run()
        world.cut(1, 0)
        redial(world)
        out = world.nodes["c"].session().lanes["alpha"].out
        loaded = sum(len(item.payload) for item in out._loaded)
        assert loaded == out._loaded_bytes
        assert 0 < loaded <= LOADED_BYTES + PAGE_BYTES


class TestLabels:
    def test_one_label_too_many_is_refused(self):
        world = World()
        world.settings["s"] = LinkSettings(max_channels=1)
        redial(world)
        for label in ("alpha", "beta"):
            world.nodes["c"].create(world.nodes["c"].session(), label)
            world.run()
        assert [event.label for event in events(world, "s", LabelRefused)] == ["beta"]
        assert list(world.nodes["s"].session().lanes) == ["alpha"]

    def test_reserved_label_from_the_peer_ends_the_link(self):
        world = joined()
        tell(world, "s", Channel("rondevu.x", b"e" * 8, b"", 0, 0, 0, Durability.DISK))
        (down,) = events(world, "s", LinkDown)
        assert down.code is GoodbyeCode.PROTOCOL
        assert "reserved" in down.reason

    def test_data_for_a_label_nobody_opened_ends_the_link(self):
        world = joined()
        tell(world, "s", Data("gamma", 1, ["x"]))
        assert [event.code for event in events(world, "s", LinkDown)] == ["protocol"]

    def test_label_opened_on_both_sides_at_once_is_one_channel(self):
        world = World()
        redial(world)
        for node in world.nodes.values():
            node.create(node.session(), "alpha")
        world.run()
        for side in "cs":
            assert len(events(world, side, ChannelOpened)) == 1
            assert {v.kind for v in verdicts(world, side)} == {VerdictKind.NEW}


class TestUnreliableLabels:
    FAST = ChannelOptions(ordered=False, max_retransmits=0)
    FRESH = ChannelOptions(max_packet_life_time=100)

    def both(self, connecting: ChannelOptions, service: ChannelOptions) -> World:
        """Both sides make the label while there is no link, then there is one."""
        world = joined()
        world.cut(max(world.wires), 0)
        world.run()
        for side, options in (("c", connecting), ("s", service)):
            world.nodes[side].create(world.nodes[side].session(), "fast", options)
            world.run()
            send(world, side, f"from {side}", label="fast")
        world.run()
        redial(world)
        return world

    def options(self, world: World) -> list[ChannelOptions]:
        return [world.nodes[side].session().lanes["fast"].options for side in "cs"]

    def test_one_side_makes_it_and_the_other_makes_it_with_its_options(self):
        world = joined()
        world.nodes["s"].create(world.nodes["s"].session(), "fast", self.FAST)
        world.run()
        assert self.options(world) == [self.FAST, self.FAST]
        assert [len(events(world, side, OpenDataChannel)) for side in "cs"] == [1, 0]

    def test_its_messages_are_in_no_frame(self):
        world = self.both(self.FAST, self.FAST)
        assert [inbox(world, side, "fast") for side in "cs"] == [[], []]
        assert not any(world.nodes[side].session().lanes["fast"].out.flowing for side in "cs")
        send(world, "c", "reliable ones do")
        world.run()
        assert inbox(world, "s") == ["reliable ones do"]

    def test_of_two_options_the_connecting_sides_win(self):
        world = self.both(self.FAST, self.FRESH)
        assert self.options(world) == [self.FAST, self.FAST]
        assert events(world, "s", OptionsTaken) == [OptionsTaken("fast", self.FAST)]
        assert events(world, "c", OptionsTaken) == []
        assert [len(events(world, side, OpenDataChannel)) for side in "cs"] == [1, 0]

    @pytest.mark.parametrize("unreliable", ["c", "s"])
    def test_reliable_wins_and_the_queue_moves(self, unreliable):
        options = {side: self.FAST if side == unreliable else RELIABLE for side in "cs"}
        world = self.both(options["c"], options["s"])
        assert self.options(world) == [RELIABLE, RELIABLE]
        assert events(world, unreliable, OptionsTaken) == [OptionsTaken("fast", RELIABLE)]
        assert [inbox(world, side, "fast") for side in "cs"] == [["from s"], ["from c"]]

    def test_a_label_that_becomes_reliable_calls_nothing_lost_that_went_without_numbers(self):
        world = joined()
        session = world.nodes["c"].session()
        world.nodes["c"].create(session, "fast", self.FAST)
        world.run()
        out = session.lanes["fast"].out
        out.flow_plain(1_000)
        send(world, "c", "gone", label="fast")
        world.run()
        assert out.message().payload == "gone"
        out.passed(0)
        world.nodes["c"].carry_out(session)
        world.run()
        assert outbox_count(world, "c", "fast") == 0
        world.nodes["s"].session().lanes["fast"].options = RELIABLE
        redial(world)
        send(world, "c", "numbered", label="fast")
        world.run()
        assert inbox(world, "s", "fast") == ["numbered"]
        assert VerdictKind.GAP not in {verdict.kind for side in "cs" for verdict in verdicts(world, side)}

    def test_data_on_it_ends_the_link(self):
        world = self.both(self.FAST, self.FAST)
        forget_events(world)
        tell(world, "s", Data("fast", 1, ["x"]))
        assert [event.code for event in events(world, "s", LinkDown)] == ["protocol"]


class TestLastWords:
    def test_what_was_confirmed_right_before_a_goodbye_counts(self):
        """Both frames can come before the machine is flushed once."""
        world = joined()
        send(world, "s", "to be confirmed")
        node = world.nodes["s"]
        session = node.session()
        key = session.current
        node.commit(100)
        confirmed = session.lanes["alpha"].out.sent_high
        session.receive(key, frames.encode(Ack("alpha", confirmed, MIB)), world.now)
        session.receive(key, frames.encode(Goodbye(GoodbyeCode.CLOSING, "closed")), world.now)
        node.carry_out(session)
        node.commit(100)
        assert outbox_count(world, "s") == 0


class TestClosing:
    def closed(self) -> World:
        world = joined()
        send(world, "c", "last")
        world.nodes["c"].close_label("alpha")
        world.run()
        return world

    def test_close_is_answered_after_everything_before_it(self):
        world = self.closed()
        for side in "cs":
            assert events(world, side, ChannelClosed) == [ChannelClosed("alpha")]
            assert world.nodes[side].session().lanes["alpha"].closed
        assert inbox(world, "s") == ["last"]

    def test_two_closes_that_cross_close_once(self):
        world = joined()
        for side in "cs":
            send(world, side, f"from {side}")
            world.nodes[side].close_label("alpha")
        world.run()
        for side in "cs":
            assert events(world, side, ChannelClosed) == [ChannelClosed("alpha")]
        assert (inbox(world, "c"), inbox(world, "s")) == (["from s"], ["from c"])

    def test_closed_label_stays_closed_over_another_link_and_a_restart(self):
        world = self.closed()
        world.nodes["s"].restart()
        world.cut(1, 0)
        forget_events(world)
        redial(world)
        for side in "cs":
            assert world.nodes[side].session().lanes["alpha"].closed
            assert not events(world, side, ChannelResumed)

    @pytest.mark.parametrize("sides", ["c", "s", "cs"])
    def test_closed_label_is_opened_anew_by_either_side_or_both(self, sides):
        world = self.closed()
        for side in sides:
            world.nodes[side].reopen_label("alpha")
        world.run()
        for side in "cs":
            send(world, side, f"again from {side}")
        world.run()
        assert inbox(world, "s") == ["last", "again from c"]
        assert inbox(world, "c") == ["again from s"]
        assert not any(v.kind is VerdictKind.GAP for side in "cs" for v in verdicts(world, side))

    @pytest.mark.parametrize("restarted", ["", "c", "s", "cs"])
    @pytest.mark.parametrize("linked", [True, False])
    def test_label_opened_anew_stays_open_over_a_restart(self, linked, restarted):
        world = self.closed()
        forget_events(world)
        if not linked:
            world.cut(1, 0)
            world.run()
        world.nodes["c"].reopen_label("alpha")
        world.run()
        for side in restarted:
            world.nodes[side].restart()
        if restarted and linked:
            world.cut(1, 0)
        if restarted or not linked:
            redial(world)
        world.run()
        for side in "cs":
            send(world, side, f"again from {side}")
        world.run()
        assert inbox(world, "s") == ["last", "again from c"]
        assert inbox(world, "c") == ["again from s"]
        for side in "cs":
            lane = world.nodes[side].session().lanes["alpha"]
            assert (lane.closed, lane.closing, lane.out.closed, bool(lane.incoming.closed)) == (False, False, 0, False)
            assert not events(world, side, ChannelClosed)
            assert not any(v.kind is VerdictKind.GAP for v in verdicts(world, side))


class TestLosses:
    def test_peer_that_lost_messages_is_told_how_many(self):
        world = joined()
        send(world, "c", "one", "two")
        world.run()
        world.nodes["s"].take_copy()
        send(world, "c", "three", "four", "five")
        world.run()
        send(world, "c", "six")
        world.cut(1, 0)
        world.nodes["s"].go_back(0)
        forget_events(world)
        redial(world)
        assert inbox(world, "s") == ["one", "two", Reason.LOST, "six"]
        out = next(v for v in verdicts(world, "c") if v.direction is Direction.OUT)
        assert (out.kind, out.messages) == (VerdictKind.GAP, 3)

    def test_store_gone_back_with_a_clock_that_goes_on_speaks_a_gap(self):
        world = joined()
        world.nodes["c"].take_copy()
        send(world, "c", "one", "two")
        world.run()
        world.cut(1, 0)
        world.nodes["c"].go_back(0)
        forget_events(world)
        redial(world)
        send(world, "c", "three")
        world.run()
        assert inbox(world, "s") == ["one", "two", Reason.LOST, "three"]
        assert any(v.kind is VerdictKind.GAP for v in verdicts(world, "c"))

    @pytest.mark.parametrize("early", [False, True], ids=["sent behind the link", "stored before the link"])
    def test_store_and_clock_gone_back_draw_a_new_epoch_and_send_everything_held_again(self, early):
        """With `early` the new messages take the numbers of those that the peer has: they must not pass for them."""
        world = joined()
        send(world, "c", "held")
        world.nodes["c"].commit(100)
        world.nodes["c"].take_copy()
        send(world, "c", "one", "two")
        world.run()
        world.cut(1, 0)
        before = world.nodes["c"].session().lanes["alpha"].out.epoch
        world.nodes["c"].restore_snapshot(0)
        forget_events(world)
        if early:
            send(world, "c", "new", "newer")
            world.nodes["c"].commit(100)
        redial(world)
        if not early:
            send(world, "c", "new", "newer")
            world.run()
        assert world.nodes["c"].session().lanes["alpha"].out.epoch != before
        assert inbox(world, "s") == ["held", "one", "two", Reason.LOST, "held", "new", "newer"]
        assert any(v.kind is VerdictKind.GAP and v.direction is Direction.OUT for v in verdicts(world, "c"))
        assert any(v.kind is VerdictKind.GAP and v.direction is Direction.IN for v in verdicts(world, "s"))
        assert outbox_count(world, "c") == 0

    def test_jump_of_a_restart_is_announced_and_is_no_gap(self):
        world = joined()
        send(world, "c", "one")
        world.run()
        world.nodes["c"].restart()
        world.cut(1, 0)
        redial(world)
        send(world, "c", "two")
        while world.nodes["c"].pending:
            world.nodes["c"].commit(100)
        assert [frame.reason for frame in under_way(world, "s") if isinstance(frame, Skip)] == [Reason.RESTART]
        world.run()
        assert inbox(world, "s") == ["one", "two"]
