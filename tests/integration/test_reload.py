"""A changed configuration file is taken over while the daemon runs, and whatever it does not change stays undisturbed."""

from __future__ import annotations

import asyncio

import pytest

from rondevu_client import MessageRejected, RequestRefused
from rondevud import config as configuration
from rondevud.durable.session import DurableSession
from rondevud.errors import RequestError
from tests.engines import TRANSPORT
from tests.integration.daemons import (
    CONFIG,
    FQN,
    PATIENCE,
    SCALE,
    SERVICE,
    Ear,
    Pair,
    Place,
    World,
    exchange_few,
    take,
    watch,
)

pytestmark = [pytest.mark.webrtc, pytest.mark.timeout(120 * SCALE)]

NOTHING = {"added": [], "changed": [], "removed": [], "restart_needed": [], "detached": 0}


def connection(name: str, more: str = "", username: str = "alice") -> str:
    return f'[[connection]]\nname = "{name}"\nusername = "{username}"\nfqn = "{FQN}"\n{more}\n'


def service(username: str = "alice", more: str = "") -> str:
    return f'[[service]]\nusername = "{username}"\nfqn = "{FQN}"\npolling_interval = 0.1\n{more}\n'


class Filed:
    """A daemon with a configuration file, and a program that asks it to reload."""

    def __init__(self, world: World, place: Place) -> None:
        self.world = world
        self.place = place
        self.path = place.state_dir.with_suffix(".toml")
        place.config_path = self.path

    def write(self, text: str) -> None:
        config = CONFIG.format(url=self.world.url)
        self.path.write_text((config.replace(TRANSPORT, "") if "[transport]" in text else config) + text)

    async def start(self) -> None:
        self.place.config = configuration.load(self.path)
        await self.place.start()
        self.program = await self.place.client()

    async def restart(self) -> None:
        await self.place.stop()
        self.place.config = configuration.load(self.path)
        await self.place.start()

    async def reload(self, text: str) -> dict[str, list[str]]:
        self.write(text)
        return await self.program.call("reload")

    async def row(self, name: str) -> dict:
        return next(row for row in await self.program.connections() if row["name"] == name)


async def open_filed(world: World, text: str, name: str = "filed") -> Filed:
    filed = Filed(world, world.place(name))
    filed.write(text)
    await filed.start()
    return filed


async def open_linked(world: World, text: str) -> tuple[Filed, Pair]:
    """A daemon whose file declares the connection ``chat`` to a service elsewhere; connected."""
    filed = await open_filed(world, connection("chat") + text)
    pair = Pair(world, await world.daemon("home"), filed.place)
    await pair.expose()
    pair.visitor = filed.program
    pair.near = await filed.program.attach("chat", "main")
    await filed.program.wait("chat", "connected", PATIENCE)
    pair.far = await pair.next_offered()
    return filed, pair


# --- what is taken over ------------------------------------------------------------------------------------------------


async def test_connections_come_and_go_while_others_go_on(world):
    filed, pair = await open_linked(world, connection("leaves"))
    links = filed.place.peer_connections("chat")
    ear = Ear(pair.near, "disconnected", "failed", "closed")
    changes = await filed.reload(connection("chat") + connection("comes", 'channels = ["one"]'))
    assert changes == {**NOTHING, "added": ["comes"], "removed": ["leaves"]}
    await filed.program.wait("comes", "connected", PATIENCE)
    assert [row["label"] for row in await filed.program.channels("comes")] == ["one"]
    assert sorted(row["name"] for row in await filed.program.connections()) == ["chat", "comes"]
    assert filed.place.peer_connections("chat") == links
    await exchange_few(pair.near, pair.far)
    assert not ear.counts


async def test_a_file_that_has_not_changed_changes_nothing(world):
    filed = await open_filed(world, connection("chat") + service())
    assert await filed.reload(connection("chat") + service()) == NOTHING


async def test_services_come_and_go(world):
    filed = await open_filed(world, service("alice"))
    events = await watch(filed.program)
    (row,) = await filed.program.services()
    changes = await filed.reload(service("bobby"))
    assert changes == {**NOTHING, "added": [f"service:bobby/{FQN}"], "removed": [f"service:alice/{FQN}"]}
    await events.next("published", service=f"bobby/{FQN}")
    assert [row["username"] for row in await filed.program.services()] == ["bobby"]
    if row["uuid"] is not None:
        assert await world.discover(row["uuid"]) == 404


async def test_peers_of_a_service_taken_out_of_the_file_go_on_when_it_stands_there_again(world):
    home, away = await open_filed(world, service()), await world.daemon("away")
    visitor = await away.client()
    made = await visitor.connect("alice", FQN, name="chat")
    channel = await made.create_channel("main")
    await made.wait("connected", PATIENCE)
    await asyncio.wait_for(channel.send("one"), PATIENCE)
    await asyncio.wait_for(channel.flush(), PATIENCE)
    (before,) = await home.program.connections()
    ear = Ear(channel, "disconnected")
    await home.reload("")
    assert (await ear.next("disconnected"))["reason"] == "restarting"
    await channel.send("two")
    assert (await home.reload(service()))["added"] == [f"service:alice/{FQN}"]
    await asyncio.wait_for(channel.flush(), PATIENCE)
    (after,) = await home.program.connections()
    assert after["connection_id"] == before["connection_id"]
    far = await home.program.attach(after["connection_id"], "main")
    assert [message.data for message in await take(far, 2)] == ["one", "two"]


async def test_a_larger_pool_is_filled_and_who_is_connected_stays(world):
    home, away = await open_filed(world, service()), await world.daemon("away")
    visitor = await away.client()
    made = await visitor.connect("alice", FQN, name="chat")
    await made.wait("connected", PATIENCE)
    (row,) = await home.program.connections()
    links = home.place.peer_connections(row["connection_id"])
    events = await watch(home.program)
    changes = await home.reload(service(more="pool_size = 3\npublic = true"))
    assert changes == {**NOTHING, "changed": [f"service:alice/{FQN}"]}
    await events.next("ttl_refreshed")  # the server is told that it is public
    async with asyncio.timeout(PATIENCE):
        while (await home.program.services())[0]["offers"] < 3:
            pass
    assert home.place.peer_connections(row["connection_id"]) == links


@pytest.mark.parametrize("where", ["own", "global"])
async def test_other_limits_hold_for_what_comes_from_then_on(world, where):
    filed = await open_filed(world, connection("chat"))
    channel = await filed.program.attach("chat", "main")
    await asyncio.gather(*(channel.send("kept") for _ in range(3)))
    limits = 'max_queue_size = 2\noverflow = "reject"\n'
    text = (
        connection("chat", f"[connection.queue]\n{limits}")
        if where == "own"
        else f"[queue]\n{limits}" + connection("chat")
    )
    assert (await filed.reload(text))["changed"] == ["chat"] + (["queue"] if where == "global" else [])
    with pytest.raises(MessageRejected) as rejected:
        await channel.send("too much")
    assert rejected.value.code == "queue_full"
    assert (await filed.row("chat"))["queue_size"] == 3
    await filed.reload(connection("chat"))
    await channel.send("fits again")


async def test_new_limits_for_all_hold_for_what_programs_declared(world):
    filed = await open_filed(world, "")
    await filed.program.connect("alice", FQN, name="own")
    channel = await filed.program.attach("own", "main")
    assert (await filed.reload("[queue]\nmax_queue_size = 1\n"))["changed"] == ["own", "queue"]
    await channel.send("one")
    with pytest.raises(MessageRejected):
        await channel.send("two")


@pytest.mark.parametrize("again", ["reload", "connect", "link"])
async def test_a_channel_that_could_not_be_made_says_why_and_is_tried_again(world, monkeypatch, again):
    make, reasons = DurableSession.channel, ["the disk is full"]

    async def fail(self, label, options, *, create=True):
        if reasons:
            raise RequestError("disk_full", reasons[0])
        return await make(self, label, options, create=create)

    monkeypatch.setattr(DurableSession, "channel", fail)
    text = connection("chat", 'channels = ["main"]')
    filed = await open_filed(world, text)
    assert (await filed.row("chat"))["error"].endswith("channel 'main': the disk is full")
    reasons.clear()
    if again == "reload":
        assert await filed.reload(text) == NOTHING
    elif again == "connect":
        assert not (await filed.program.connect("alice", FQN, name="chat", channels=["main"])).created
    else:
        pair = Pair(world, await world.daemon("home"), filed.place)
        await pair.expose()
        await pair.next_offered()
    assert [row["label"] for row in await filed.program.channels("chat")] == ["main"]
    assert "channel" not in ((await filed.row("chat"))["error"] or "")


async def test_tables_that_hold_for_all_are_named_when_they_differ(world):
    filed = await open_filed(world, "")
    changes = await filed.reload("[queue]\nmax_queue_size = 7\n")
    assert changes == {**NOTHING, "changed": ["queue"]}
    assert await filed.reload("[queue]\nmax_queue_size = 7\n") == NOTHING


async def test_channels_that_are_declared_later_are_made(world):
    filed = await open_filed(world, connection("chat"))
    await filed.reload(connection("chat", 'channels = ["one", "two"]'))
    assert sorted(row["label"] for row in await filed.program.channels("chat")) == ["one", "two"]


async def test_the_log_says_what_has_changed_and_nothing_else(world, caplog):
    caplog.set_level("INFO", "rondevud.reloading")
    filed = await open_filed(world, "")
    await filed.reload(connection("chat") + '[daemon]\nlog_level = "debug"\n')
    await filed.reload(connection("chat") + '[daemon]\nlog_level = "debug"\n')
    await filed.reload(connection("chat"))
    assert [record.getMessage() for record in caplog.records if record.name == "rondevud.reloading"] == [
        f"reloaded {filed.path}: added chat; needs a restart: daemon.log_level",
        f"reloaded {filed.path}: needs a restart: daemon.log_level",
        f"reloaded {filed.path}: nothing has changed",
    ]


async def test_what_needs_a_restart_is_named_by_its_keys(world):
    filed = await open_filed(world, "")
    changes = await filed.reload(f'[daemon]\nlog_level = "debug"\n{TRANSPORT}ice_servers = ["stun:127.0.0.1:1"]\n')
    assert changes == {**NOTHING, "restart_needed": ["daemon.log_level", "transport.ice_servers"]}


# --- what was accepted -------------------------------------------------------------------------------------------------


async def test_what_waits_in_a_connection_that_leaves_the_file_is_kept_and_can_be_purged(world):
    filed = await open_filed(world, connection("chat"))
    channel = await filed.program.attach("chat", "main")
    await channel.send("kept")
    events = await watch(filed.program)
    assert (await filed.reload(""))["removed"] == ["chat"]
    assert (await events.next("failed"))["code"] == "undeclared"
    row = await filed.row("chat")
    assert (row["connection_id"], row["state"], row["queue_size"]) == (channel.connection_id, "failed", 1)
    with pytest.raises(MessageRejected, match="not declared"):
        await channel.send("more")
    assert (await filed.program.purge(channel.connection_id, "main", "out"))["purged"]["out"] == 1
    await filed.restart()
    assert await filed.program.connections() == []


async def test_a_connection_back_in_the_file_goes_on_with_what_waits(world):
    filed, pair = await open_linked(world, "")
    await pair.home.stop()
    await pair.near.send("waits")
    await filed.reload("")
    assert (await filed.reload(connection("chat")))["added"] == ["chat"]
    await pair.home.start()
    assert [message.data for message in await take(pair.far, 1)] == ["waits"]
    await exchange_few(pair.near, pair.far)


async def test_a_connection_that_leaves_the_file_with_nothing_waiting_is_closed_for_both_sides(world):
    filed, pair = await open_linked(world, "")
    await pair.near.send("delivered")
    await asyncio.wait_for(pair.near.flush(), PATIENCE)
    events = await watch(pair.program)
    await filed.reload("")
    assert (await events.next("closed"))["by"] == "peer"
    assert await filed.program.connections() == []


async def test_what_waits_for_one_target_never_goes_to_another(world):
    """Neither at the reload nor at a start; and it goes on when the old target stands in the file again."""
    filed = await open_filed(world, connection("chat"))
    channel = await filed.program.attach("chat", "main")
    await channel.send("for alice only")
    await channel.detach()
    changes = await filed.reload(connection("chat", username="bobby"))
    assert changes == {**NOTHING, "added": ["chat"], "removed": ["chat"]}
    home = await world.daemon("home")
    program = await home.client()
    received: asyncio.Queue = asyncio.Queue()

    async def serve(channel, _connection_id) -> None:
        async for message in channel:
            received.put_nowait((channel.label, message.data))

    await program.expose_service("bobby", FQN, handler=serve, **SERVICE)
    for _ in range(2):
        to_bobby = await filed.program.attach("chat", "main")
        assert to_bobby.connection_id != channel.connection_id
        await to_bobby.send("for bobby")
        assert await asyncio.wait_for(received.get(), PATIENCE) == ("main", "for bobby")
        await to_bobby.detach()
        await filed.restart()
    await program.expose_service("alice", FQN, handler=serve, **SERVICE)
    assert received.empty()
    await filed.reload(connection("chat"))
    assert await asyncio.wait_for(received.get(), PATIENCE) == ("main", "for alice only")


async def test_rules_of_access_and_limits_are_taken_over_and_disturb_nothing(world):
    filed, pair = await open_linked(world, "")
    events = await watch(filed.program)
    rules = '[access]\nmax_clients = 7\n[[access.rule]]\nuid = 12345\nallow = ["use"]\n'
    assert await filed.reload(connection("chat") + rules) == {**NOTHING, "changed": ["access"]}
    assert (await events.next("reloaded"))["changed"] == ["access"]
    await exchange_few(pair.near, pair.far)
    assert await filed.reload(connection("chat") + rules) == NOTHING
    assert await filed.reload(connection("chat")) == {**NOTHING, "changed": ["access"]}
    assert pair.near.attached


# --- who declared it ---------------------------------------------------------------------------------------------------


async def test_what_a_program_declared_belongs_to_the_file_once_it_stands_there(world):
    filed = await open_filed(world, "")
    made = await filed.program.call("connect", {"username": "alice", "fqn": FQN, "name": "chat"})
    assert (await filed.reload(connection("chat")))["changed"] == ["chat"]
    assert (await filed.row("chat"))["connection_id"] == made["connection_id"]
    await (await filed.program.attach("chat", "main")).send("waits")
    await filed.reload("")
    await filed.restart()
    assert (await filed.row("chat"))["state"] == "failed"


async def test_what_a_program_declared_is_no_business_of_the_file(world):
    filed = await open_filed(world, "")
    await filed.program.connect("alice", FQN, name="chat")
    assert await filed.reload("") == NOTHING
    assert (await filed.row("chat"))["state"] == "connecting"


async def test_something_ephemeral_makes_way_for_the_file(world):
    filed = await open_filed(world, "")
    ephemeral = {"username": "alice", "fqn": FQN, "name": "chat", "ephemeral": True}
    first = (await filed.program.call("connect", ephemeral))["connection_id"]
    changes = await filed.reload(connection("chat"))
    assert (changes["removed"], changes["added"]) == (["chat"], ["chat"])
    row = await filed.row("chat")
    assert (row["connection_id"] != first, row["ephemeral"]) == (True, False)


async def test_what_was_closed_or_withdrawn_is_there_again_as_after_a_start(world):
    filed = await open_filed(world, connection("chat") + service())
    await filed.program.close_connection("chat", 0)
    await filed.program.withdraw("alice", FQN, keep_connections=True)
    changes = await filed.reload(connection("chat") + service())
    assert changes == {**NOTHING, "added": ["chat", f"service:alice/{FQN}"]}
    events = await watch(filed.program)
    if not (await filed.program.services())[0]["published"]:
        await events.next("published")


# --- what fails --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (connection("chat", "chanels = []"), ("chanels", "channels")),
        (connection("chat", "[connection.reconnect]\nbackoff_base = -1"), ("backoff_base",)),
        ("[[connection]\n", ("not valid TOML",)),
        (connection("other") + connection("other"), ("twice",)),
        ('[[access.rule]]\nuid = 1\nallow = ["everything"]\n', ("access.rule[0].allow[0]", '"administer"')),
        ('[[access.rule]]\nuser = "no such user"\nallow = ["use"]\n', ("access.rule[0].user: there is no user",)),
    ],
)
async def test_a_bad_file_changes_nothing_and_says_why(world, text, said):
    filed = await open_filed(world, connection("chat"))
    events = await watch(filed.program)
    with pytest.raises(RequestRefused) as refused:
        await filed.reload(text)
    assert refused.value.code == "bad_config"
    assert all(word in refused.value.message for word in (f"{filed.path}:", *said))
    assert (await events.next("reload_failed"))["message"] == refused.value.message
    assert [row["name"] for row in await filed.program.connections()] == ["chat"]
    assert await filed.reload(connection("chat")) == NOTHING


async def test_a_file_that_is_gone_changes_nothing(world):
    filed = await open_filed(world, connection("chat"))
    filed.path.unlink()
    with pytest.raises(RequestRefused, match="cannot be read"):
        await filed.program.call("reload")
    assert [row["name"] for row in await filed.program.connections()] == ["chat"]


async def test_without_a_file_there_is_nothing_to_reload(world):
    place = await world.daemon("one")
    with pytest.raises(RequestRefused, match="without a configuration file") as refused:
        await (await place.client()).call("reload")
    assert refused.value.code == "restart_needed"


async def test_services_need_a_restart_where_there_was_no_signalling_server(world):
    filed = Filed(world, world.place("filed"))
    filed.path.write_text("")
    await filed.start()
    with pytest.raises(RequestRefused, match="was started without one") as refused:
        await filed.reload(service())
    assert refused.value.code == "restart_needed"
    assert await filed.program.services() == []


async def test_a_reload_ends_though_the_program_that_asked_for_it_leaves(world):
    filed = await open_filed(world, connection("chat"))
    reloading, events = filed.place.house._reloading, await watch(filed.program)
    asking = await filed.place.client()
    filed.write("")
    async with reloading._turn:
        call = asyncio.ensure_future(asking.call("reload"))
        async with asyncio.timeout(PATIENCE):
            while not reloading._tasks:
                await asyncio.sleep(0)
        await asking.close()
    await asyncio.gather(call, return_exceptions=True)
    assert (await events.next("reloaded"))["removed"] == ["chat"]
