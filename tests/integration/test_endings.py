"""What declared things go through when several hands, a failing store or a restart come between."""

from __future__ import annotations

import asyncio

import pytest

from rondevu_client import RequestRefused
from rondevud import clock
from rondevud.config import parse
from rondevud.durable import channels as channels_module
from rondevud.durable import frames
from rondevud.durable.effects import LinkUp, SessionFailed
from rondevud.errors import ConfigError, SignallingUnreachable, StoreFailed, TransportError
from rondevud.records import CreateChannel, ForgetProducers, LoadSessions, SaveDeclaration, SaveSession
from tests.integration.daemons import FQN, PATIENCE, SCALE, SERVICE, Ear, Pair, exchange_few, take, watch

pytestmark = [pytest.mark.webrtc, pytest.mark.timeout(120 * SCALE), pytest.mark.once]


# --- declarations ----------------------------------------------------------------------------------------------------


async def test_a_connection_with_too_many_channels_is_refused_and_not_kept(world):
    place = await world.daemon("one")
    program = await place.client()
    with pytest.raises(RequestRefused) as refused:
        await program.connect("alice", FQN, name="chat", channels=[f"c{number}" for number in range(65)])
    assert refused.value.code == "bad_params"
    await place.restart()
    assert await program.connections() == []


async def test_a_daemon_that_has_lost_its_signalling_server_says_what_needs_one(world):
    place = await world.daemon("one")
    program = await place.client()
    await program.connect("alice", FQN, name="chat")
    await program.close()
    await place.stop()
    place.config = parse("", "x")
    with pytest.raises(ConfigError, match=r"signalling\.url: missing: the state directory declares chat"):
        await place.start()


async def test_a_channel_that_cannot_be_made_stops_neither_its_connection_nor_the_daemon(world):
    channels = ", ".join(f'"c{number}"' for number in range(65))
    declared = f'[[connection]]\nname = "chat"\nusername = "alice"\nfqn = "{FQN}"\nchannels = [{channels}]\n'
    pair = Pair(world, await world.daemon("home"), await world.daemon("away", declared))
    await pair.expose()
    program = await pair.away.client()
    await program.wait("chat", "connected", PATIENCE)
    assert len(await program.channels("chat")) == 64


# --- closing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heard", [False, True], ids=["no welcome", "the welcome comes while the end is stored"])
async def test_a_connection_closed_between_its_hello_and_the_welcome_is_over_for_the_service_too(
    world, monkeypatch, heard
):
    home, away = await world.daemon("home"), await world.daemon("away")
    service = await (await home.client()).expose_service("alice", FQN, **SERVICE)
    ear = Ear(service, "connection", "disconnection")
    connection = await (await away.client()).connect("alice", FQN, name="chat")
    session = away.session("chat")
    receive, mark_closed = session.machine.receive, session.mark_closed
    held = asyncio.get_running_loop().create_future()

    def hold_the_welcome(key, data, now):
        if isinstance(frames.decode(data), frames.Welcome):
            held.set_result((key, data, now))
        else:
            receive(key, data, now)

    async def mark_it_closed():
        if heard:
            receive(*held.result())
            session.schedule_flush()
        await mark_closed()

    monkeypatch.setattr(session.machine, "receive", hold_the_welcome)
    monkeypatch.setattr(session, "mark_closed", mark_it_closed)
    connection_id = await ear.next("connection")
    async with asyncio.timeout(PATIENCE):
        await asyncio.shield(held)
    await connection.close()
    ended = await ear.next("disconnection")
    assert (ended["connection_id"], ended["reason"]) == (connection_id, "peer")


async def test_a_connection_closed_by_two_programs_at_once_is_closed_for_both(pair):
    await pair.home.stop()
    await pair.near.send("never delivered")
    other = await pair.away.client()
    await asyncio.gather(pair.visitor.close_connection("chat", 0.2), other.close_connection("chat", 0.1))
    assert await pair.visitor.connections() == []


async def test_both_sides_may_close_at_once(pair):
    near, far = await pair.ids()
    await asyncio.gather(pair.visitor.close_connection(near, 1), pair.program.close_connection(far, 1))
    assert await pair.visitor.connections() == []
    assert await pair.program.connections() == []


async def test_a_peer_that_closes_ends_a_drain_that_waits_for_it(pair):
    _, far = await pair.ids()
    draining = await watch(pair.visitor)
    house = pair.away.house
    assert house is not None
    connection = house.holdings.connection("chat")
    connection.session.machine.lanes["main"].out.link_lost()  # nothing flows on this channel: the drain has to wait
    await pair.near.send("never delivered")
    closing = asyncio.ensure_future(pair.visitor.close_connection("chat", 10 * PATIENCE))
    await asyncio.wait_for(_until(house, "closing"), PATIENCE)
    await pair.program.close_connection(far, 0)
    await draining.next("closed")
    await asyncio.wait_for(closing, PATIENCE)


async def _until(house, state):
    """The connection's channel is in that state."""
    while house.channels("chat")[0]["state"] != state:
        await asyncio.sleep(0)


async def test_a_close_goes_on_when_the_program_that_asked_for_it_leaves(pair):
    await pair.home.stop()
    await pair.near.send("never delivered")
    house, events = pair.away.house, await watch(pair.visitor)
    asking = await pair.away.client()
    closing = asyncio.ensure_future(asking.close_connection("chat", 0.5))
    await asyncio.wait_for(_until(house, "closing"), PATIENCE)
    await asking.close()
    await asyncio.gather(closing, return_exceptions=True)
    await events.next("closed")
    again = await pair.visitor.connect("alice", FQN, name="chat")
    assert again.created


async def test_connecting_under_a_name_that_is_being_closed_waits_for_its_end(pair):
    await pair.home.stop()
    await pair.near.send("never delivered")
    closing = asyncio.ensure_future(pair.visitor.close_connection("chat", 0.5))
    await asyncio.wait_for(_until(pair.away.house, "closing"), PATIENCE)
    again = await pair.visitor.connect("alice", FQN, name="chat")
    assert again.created
    assert again.id != pair.near.connection_id
    await closing
    await pair.away.restart()
    assert [row["name"] for row in await pair.visitor.connections()] == ["chat"]


async def test_a_withdrawal_goes_on_without_its_program_and_holds_nobody_else_up(pair):
    await pair.away.stop()
    await pair.far.send("never delivered")
    asking = await pair.home.client()
    withdrawing = asyncio.ensure_future(asking.withdraw("alice", FQN, drain=1))
    await asyncio.wait_for(_until_withdrawing(pair.home.house), PATIENCE)
    other = await pair.program.connect("bobby", FQN, name="other")
    assert other.created
    assert pair.home.house.endings.under_way  # the withdrawal still drains
    await asking.close()
    await asyncio.gather(withdrawing, return_exceptions=True)
    await asyncio.wait_for(_until_ended(pair.home.house), PATIENCE)
    assert await pair.program.call("services", {}) == []


async def _until_withdrawing(house):
    while not house.endings.under_way:
        await asyncio.sleep(0)


async def _until_ended(house):
    while house.endings.under_way:
        await asyncio.wait(house.endings.under_way.values())


async def test_a_second_close_with_a_shorter_drain_hurries_the_first(pair):
    await pair.home.stop()
    await pair.near.send("never delivered")
    patient = asyncio.ensure_future(pair.visitor.close_connection("chat", 100 * PATIENCE))
    await asyncio.wait_for(_until(pair.away.house, "closing"), PATIENCE)
    hasty = await pair.away.client()
    await asyncio.wait_for(hasty.close_connection("chat", 0), PATIENCE)
    await asyncio.wait_for(patient, PATIENCE)


async def test_a_second_withdrawal_with_a_shorter_drain_hurries_the_first(pair):
    await pair.away.stop()
    await pair.far.send("never delivered")
    patient = asyncio.ensure_future(pair.program.withdraw("alice", FQN, drain=100 * PATIENCE))
    await asyncio.wait_for(_until_withdrawing(pair.home.house), PATIENCE)
    hasty = await pair.home.client()
    await asyncio.wait_for(hasty.withdraw("alice", FQN, drain=0), PATIENCE)
    await asyncio.wait_for(patient, PATIENCE)


async def test_a_service_withdrawn_but_for_its_connections_is_declared_no_more(pair):
    _, far = await pair.ids()
    await pair.program.withdraw("alice", FQN, keep_connections=True)
    assert await pair.program.services() == []
    await exchange_few(pair.near, pair.far)
    exposed = await pair.program.call("expose", {"username": "alice", "fqn": FQN, "options": {"pool_size": 2}})
    assert exposed["created"]
    assert [row["connection_id"] for row in await pair.program.connections()] == [far]
    await exchange_few(pair.near, pair.far)


async def test_kept_connections_leave_nothing_of_their_service_when_they_have_ended(pair):
    _, far = await pair.ids()
    await pair.program.withdraw("alice", FQN, keep_connections=True)
    await pair.program.close_connection(far, 0)
    assert await pair.program.connections() == []
    assert pair.home.house.holdings.all_services() == []
    await pair.program.key_delete("alice")
    await pair.home.restart()
    assert await pair.program.services() == []


async def test_an_observer_of_a_service_goes_on_when_it_is_exposed_again(pair):
    onlooker = await pair.home.client()
    observer = await onlooker.attach(f"service:alice/{FQN}", "main", mode="observe")
    await pair.program.withdraw("alice", FQN, drain=0)
    await pair.expose()
    connection = await pair.visitor.connect("alice", FQN, name="again")
    channel = await connection.create_channel("main")
    await pair.next_offered()
    await channel.send("seen")
    assert (await observer.receive(PATIENCE)).data == "seen"


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("connect", {"username": "alice", "fqn": FQN, "name": "late"}),
        ("expose", {"username": "alicia", "fqn": FQN}),
        ("withdraw", {"username": "alice", "fqn": FQN}),
        ("close", {"target": "chat"}),
        ("reconnect", {"target": "chat"}),
        ("reload", {}),
        ("attach", {"target": "chat", "label": "late"}),
    ],
)
async def test_a_daemon_that_stops_begins_nothing_any_more(pair, monkeypatch, method, params):
    program, endings, refused = await pair.away.client(), pair.away.house.endings, []
    give_up = endings.give_up

    async def ask_late():
        with pytest.raises(RequestRefused) as refusal:
            await program.call(method, params, timeout=PATIENCE)
        refused.append(refusal.value.code)
        await give_up()

    monkeypatch.setattr(endings, "give_up", ask_late)
    await pair.away.stop()
    assert refused == ["stopping"]


async def test_an_expose_that_is_under_way_when_the_daemon_stops_publishes_nothing(world, monkeypatch):
    place = await world.daemon("one")
    program, house = await place.client(), place.house
    claim, asked, go_on = house.holdings.signalling.claim, asyncio.Event(), asyncio.Event()

    async def slow(username):
        asked.set()
        await go_on.wait()
        return await claim(username)

    monkeypatch.setattr(house.holdings.signalling, "claim", slow)
    exposing = asyncio.ensure_future(program.call("expose", {"username": "alice", "fqn": FQN}, timeout=PATIENCE))
    await asyncio.wait_for(asked.wait(), PATIENCE)
    give_up = house.endings.give_up

    async def let_it_go_on():
        go_on.set()
        with pytest.raises(RequestRefused) as refused:
            await exposing
        assert refused.value.code == "stopping"
        await give_up()

    monkeypatch.setattr(house.endings, "give_up", let_it_go_on)
    await place.stop()
    assert not house.holdings.services


async def test_a_look_at_the_list_does_not_swallow_the_goodbye(pair):
    events = await watch(pair.program)
    closing = asyncio.ensure_future(pair.visitor.close_connection("chat", 5))
    while not closing.done():
        pair.away.house.connections()
        await asyncio.sleep(0)
    await closing
    assert (await events.next("closed"))["by"] == "peer"


@pytest.mark.parametrize("what", ["remove_all", "mark_closed"])
async def test_a_close_that_the_store_cannot_keep_still_says_goodbye_and_ends(pair, monkeypatch, what):
    events = await watch(pair.program)
    session = pair.away.session("chat")

    async def failing(*_args, **_facts):
        raise StoreFailed("disk full", "disk_full")

    monkeypatch.setattr(session.channels["main"] if what == "remove_all" else session, what, failing)
    await pair.connection.close()
    assert (await events.next("closed"))["by"] == "peer"
    assert await asyncio.wait_for(pair.near.wait_detached(), PATIENCE) == "closed"
    if what == "remove_all":
        assert await pair.visitor.connections() == []


# --- dialling --------------------------------------------------------------------------------------------------------


async def test_a_dial_under_way_when_the_connection_fails_comes_to_nothing(pair):
    connection = pair.away.house.holdings.connection("chat")
    events = await watch(pair.visitor)
    connection.session.machine._current.silent = True
    connection._wanted.set()
    async with asyncio.timeout(PATIENCE):
        while connection._dialling is None:
            await asyncio.sleep(0)
    dial = connection._dialling
    connection.session_failed(connection.session, SessionFailed("session_conflict", "for a test"))
    await asyncio.wait({dial}, timeout=PATIENCE)
    assert dial.cancelled()
    await events.next("failed")
    assert connection.state == "failed"
    await pair.connection.reconnect()
    await events.next("connected")


async def test_a_link_that_comes_up_after_the_connection_has_failed_is_ended(pair):
    connection = pair.away.house.holdings.connection("chat")
    connection.session_failed(connection.session, SessionFailed("session_conflict", "for a test"))
    connection.link_up(connection.session, LinkUp(1, resumed=True, replaced=False))
    assert connection.state == "failed"
    await asyncio.wait_for(connection.session.goodbyes_said(), PATIENCE)
    assert not pair.away.peer_connections("chat")


async def test_links_that_die_young_are_redialled_with_growing_pauses(pair):
    connection, events = pair.away.house.holdings.connection("chat"), await watch(pair.visitor)
    _, far = await pair.ids()
    drawn = count_delays(connection)
    for _ in range(3):
        pair.home.session(far).cut()
        retry = await events.next("reconnecting")
        assert retry["next_retry_in"] > 0
        await events.next("connected")
    assert drawn.total >= 3


async def test_a_link_that_has_stood_is_redialled_at_once(pair):
    connection, events = pair.away.house.holdings.connection("chat"), await watch(pair.visitor)
    _, far = await pair.ids()
    assert connection._stood is not None
    connection._stood.cancel()
    connection._link_stood()
    pair.home.session(far).cut()
    assert (await events.next("reconnecting"))["next_retry_in"] == 0
    await events.next("connected")


class count_delays:
    """Counts what a connection takes from its delays from now on."""

    def __init__(self, connection):
        self.total = 0
        self._delays = connection._delays
        connection._delays = self

    def __iter__(self):
        return self

    def __next__(self):
        self.total += 1
        return next(self._delays)


async def test_a_dial_waits_as_long_as_the_signalling_server_asks_for(pair):
    connection = pair.away.house.holdings.connection("chat")
    connection.session.cut()
    await asyncio.wait_for(_until_lost(connection), PATIENCE)
    error = SignallingUnreachable("429", retry_after=77.0)
    dial = asyncio.ensure_future(_raise(error))
    assert await connection._outcome(dial) == 77.0


async def _raise(error):
    raise error


async def _until_lost(connection):
    while connection.session.connected:
        await asyncio.sleep(0)


async def test_a_connection_that_has_failed_does_not_say_that_it_reconnects(pair):
    connection, events = pair.away.house.holdings.connection("chat"), await watch(pair.visitor)
    connection.session_failed(connection.session, SessionFailed("denied", "for a test"))
    connection.session.cut()
    await asyncio.wait_for(_until_lost(connection), PATIENCE)
    assert await connection._outcome(asyncio.ensure_future(_raise(TransportError("refused: denied")))) is None
    pair.away.house.events.publish("end_of_test")
    await events.next("end_of_test")
    assert not events.counts["reconnecting"]
    assert connection.last_error == "for a test"


# --- a store that fails ----------------------------------------------------------------------------------------------


class FailingStore:
    """A store that does not carry out the operations in `fails`."""

    def __init__(self, store, *fails):
        self._store = store
        self.fails = fails

    def __getattr__(self, name):
        return getattr(self._store, name)

    async def execute(self, operation):
        if isinstance(operation, self.fails):
            raise StoreFailed("no space left", "disk_full")
        return await self._store.execute(operation)


async def test_a_label_of_the_peer_that_could_not_be_made_is_made_on_the_same_link_later(pair, monkeypatch):
    monkeypatch.setattr(channels_module, "CREATE_RETRY", 0.05)
    _, far = await pair.ids()
    environment = pair.home.house._environment
    store = environment.disk = FailingStore(environment.disk, CreateChannel)
    channel = await pair.connection.create_channel("second")
    await channel.send("hello")
    async with asyncio.timeout(PATIENCE):
        while not pair.home.session(far).channels._retries:
            await asyncio.sleep(0)
    store.fails = ()
    await asyncio.wait_for(channel.flush(), PATIENCE)


async def test_a_connect_that_the_store_cannot_keep_says_so_and_can_be_repeated(world):
    place = await world.daemon("one")
    program = await place.client()
    for fails in (SaveDeclaration, SaveSession):
        environment = place.house._environment
        environment.disk = FailingStore(environment.disk, fails)
        with pytest.raises(RequestRefused) as refused:
            await program.connect("alice", FQN, name="chat")
        assert refused.value.code == "disk_full"
        environment.disk = environment.disk._store
    await place.restart()
    assert await program.connections() == []
    assert (await program.connect("alice", FQN, name="chat")).created


# --- names and what is kept ------------------------------------------------------------------------------------------


async def test_an_unnamed_connection_to_its_own_service_shares_no_name_with_it(world):
    place = await world.daemon("both")
    program = await place.client()
    await program.call("expose", {"username": "alice", "fqn": FQN, "options": SERVICE})
    connection = await program.connect("alice", FQN)
    await connection.wait("connected", PATIENCE)
    assert not (await program.call("expose", {"username": "alice", "fqn": FQN, "options": SERVICE}))["created"]
    await place.restart()
    assert [row["name"] for row in await program.connections() if row["name"]] == [f"alice/{FQN}"]
    assert [row["service"] for row in await program.call("services", {})] == [f"alice/{FQN}"]


async def test_an_unnamed_connection_survives_a_restart_beside_its_service_in_the_file(world):
    place = await world.daemon("both", f'[[service]]\nusername = "alice"\nfqn = "{FQN}"\n')
    program = await place.client()
    await program.connect("alice", FQN)
    await place.restart()
    assert [row["name"] for row in await program.connections() if row["name"]] == [f"alice/{FQN}"]


async def test_sessions_of_a_service_that_was_withdrawn_are_kept_over_a_restart(pair):
    _, far = await pair.ids()
    await pair.leave()
    await pair.near.send("to read")
    await pair.near.flush()
    await pair.program.withdraw("alice", FQN, keep_connections=True)
    await pair.home.restart()
    (row,) = await pair.program.connections()
    assert (row["connection_id"], row["waiting"]) == (far, 1)
    channel = await pair.program.attach(far, "main")
    assert [message.data for message in await take(channel, 1)] == ["to read"]
    assert [row["connection_id"] for row in await pair.program.connections()] == [far]


async def test_a_service_exposed_again_takes_over_the_sessions_that_were_held_for_it(world):
    declared = f'[[service]]\nusername = "alice"\nfqn = "{FQN}"\npolling_interval = 0.1\n'
    pair = Pair(world, await world.daemon("home", declared), await world.daemon("away"))
    pair.program = await pair.home.client()
    pair.visitor = await pair.away.client()
    pair.connection = await pair.visitor.connect("alice", FQN, name="chat")
    pair.near = await pair.connection.create_channel("main")
    await pair.near.send("one")
    await asyncio.wait_for(pair.near.flush(), PATIENCE)
    _, far = await pair.ids()
    pair.home.config = pair.away.config
    await pair.home.restart()
    await pair.near.send("two")
    assert not (await pair.program.connections())[0]["queue_size"]
    await pair.expose(pool_size=2)
    await asyncio.wait_for(pair.near.flush(), PATIENCE)
    assert [row["connection_id"] for row in await pair.program.connections()] == [far]
    assert [message.data for message in await take(await pair.next_offered(), 2)] == ["one", "two"]
    (row,) = await pair.program.call("services", {})
    assert row["pool_size"] == 2


async def test_a_handle_on_a_held_connection_is_good_when_it_is_declared_again(world):
    declared = f'[[connection]]\nname = "chat"\nusername = "alice"\nfqn = "{FQN}"\n'
    pair = Pair(world, await world.daemon("home"), await world.daemon("away", declared))
    program = await pair.away.client()
    channel = await program.attach("chat", "main")
    await channel.send("one")
    pair.away.config = pair.home.config
    await pair.away.restart()
    (row,) = await program.connections()
    connection = await program.connect("alice", FQN, name="chat")
    assert connection.id == row["connection_id"]
    await channel.send("two")
    await pair.expose()
    assert [message.data for message in await take(await pair.next_offered(), 2)] == ["one", "two"]


async def test_what_waits_in_a_connection_taken_out_of_the_file_can_be_read_and_is_deleted_then(world):
    declared = f'[[connection]]\nname = "chat"\nusername = "alice"\nfqn = "{FQN}"\nchannels = ["main"]\n'
    pair = Pair(world, await world.daemon("home"), await world.daemon("away", declared))
    await pair.expose()
    far = await pair.next_offered()
    await far.send("to read")
    await far.flush()
    await pair.away.stop()
    pair.away.config = pair.home.config
    await pair.away.start()
    program = await pair.away.client()
    (row,) = await program.connections()
    assert (row["name"], row["state"], row["waiting"]) == ("chat", "failed", 1)
    channel = await program.attach(row["connection_id"], "main")
    assert [message.data for message in await take(channel, 1)] == ["to read"]
    async with asyncio.timeout(PATIENCE):
        while (await program.connections())[0]["waiting"]:
            await asyncio.sleep(0)
    await pair.away.restart()
    left = await pair.away.house._environment.disk.execute(LoadSessions())
    assert left.sessions == []


async def test_producers_in_use_are_not_forgotten(pair):
    await pair.near.send("one")
    await pair.near.flush()
    house = pair.away.house
    keep = house.live_producers()
    assert keep
    assert await house._environment.disk.execute(ForgetProducers(0.0, clock.stamp(), keep)) == 0
    await asyncio.wait_for(pair.near.send("two"), PATIENCE)


@pytest.mark.parametrize("code", ["failed", "closed"])
async def test_waiting_for_a_link_ends_when_the_connection_is_closed_or_fails(pair, code):
    await pair.home.stop()
    house = pair.away.house
    connection = house.holdings.connection("chat")
    await asyncio.wait_for(_until_lost(connection), PATIENCE)
    before = len(house.events._subscriptions)
    waiting = asyncio.ensure_future(pair.visitor.wait("chat", "connected", 10 * PATIENCE))
    async with asyncio.timeout(PATIENCE):
        while len(house.events._subscriptions) == before:
            await asyncio.sleep(0)
    if code == "failed":
        connection.session_failed(connection.session, SessionFailed("denied", "for a test"))
    else:
        await pair.connection.close(drain=0)
    with pytest.raises(RequestRefused) as refused:
        await asyncio.wait_for(waiting, PATIENCE)
    assert refused.value.code == code


async def test_waiting_for_an_empty_queue_ends_when_the_connection_fails(pair):
    await pair.home.stop()
    connection = pair.away.house.holdings.connection("chat")
    await asyncio.wait_for(_until_lost(connection), PATIENCE)
    await pair.visitor.wait("chat", "drained", PATIENCE)
    await pair.near.send("never delivered")
    before = len(pair.away.house.events._subscriptions)
    waiting = asyncio.ensure_future(pair.visitor.wait("chat", "drained", 10 * PATIENCE))
    async with asyncio.timeout(PATIENCE):
        while len(pair.away.house.events._subscriptions) == before:
            await asyncio.sleep(0)
    connection.session_failed(connection.session, SessionFailed("denied", "for a test"))
    for asked in (waiting, pair.visitor.wait("chat", "drained", 10 * PATIENCE)):
        with pytest.raises(RequestRefused) as refused:
            await asyncio.wait_for(asked, PATIENCE)
        assert refused.value.code == "failed"
