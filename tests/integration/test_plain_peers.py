"""Daemons and hand-made peers that behave as the JavaScript clients: services and connections without links."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import aioice.ice
import pytest

from rondevu_client import MessageRejected, NotAcknowledged, RequestRefused
from tests.integration.daemons import (
    FQN,
    PATIENCE,
    SCALE,
    SERVICE,
    World,
    exchange_few,
    open_pair,
    open_world,
)
from tests.integration.foreign import SERVICE_LABEL, ForeignChannel, ForeignClient, Foreigners, end, mute
from tests.integration.misbehaving import MisbehavingServer
from tests.integration.mixed import (
    Guest,
    Host,
    call,
    changing,
    exchange,
    numbers,
    place_at,
    received,
    texts_of,
    until,
    visit,
)

pytestmark = [pytest.mark.webrtc, pytest.mark.timeout(120 * SCALE), pytest.mark.once]


@pytest.fixture
async def foreigners(world) -> AsyncIterator[Foreigners]:
    async with Foreigners(world.url) as foreigners:
        yield foreigners


@pytest.fixture
async def host(world) -> Host:
    host = Host(await world.daemon("home"))
    await host.expose()
    return host


@pytest.fixture
async def guest(world) -> Guest:
    return Guest(await world.daemon("away"))


# --- services ----------------------------------------------------------------------------------------------------------

CLIENTS = {
    "0.9.0": {"version": "0.9.0"},
    "0.9.0 as modules": {"version": "0.9.0", "trickles": True},
    "0.9.2": {"version": "0.9.2"},
}


@pytest.mark.parametrize("options", CLIENTS.values(), ids=CLIENTS)
async def test_a_service_and_a_foreign_client_exchange_text_and_binary(host, foreigners, options):
    _, near, far = await visit(foreigners, host, **options)
    await exchange(near, far)
    assert far.acknowledges is False
    (row,) = await host.program.connections()
    assert (row["kind"], row["state"], row["peer_name"]) == ("plain", "connected", "")


async def test_a_client_by_uuid_and_another_by_name_have_a_connection_each(host, foreigners):
    _, first, far_first = await visit(foreigners, host)
    _, second, far_second = await visit(foreigners, host, target=host.service.uuid)
    assert far_first.connection_id != far_second.connection_id
    await exchange(first, far_first)
    await exchange(second, far_second)


async def test_flushing_to_a_plain_peer_waits_until_everything_has_left_and_says_that_nobody_acknowledges(
    host, foreigners
):
    _, near, far = await visit(foreigners, host)
    await far.send("unconfirmed")
    with pytest.raises(NotAcknowledged):
        await asyncio.wait_for(far.flush(), PATIENCE)
    assert await near.receive() == "unconfirmed"


async def test_nothing_is_made_of_the_services_own_data_channel_until_it_is_used(host, foreigners):
    client, _, far = await visit(foreigners, host)
    assert [row["label"] for row in await host.program.channels(far.connection_id)] == ["main"]
    own = await client.next_incoming(SERVICE_LABEL)
    own.send("hello")
    answering = await host.next_channel()
    assert answering.label == SERVICE_LABEL
    assert await texts_of(answering, 1) == ["hello"]
    await answering.send("hello back")
    assert await own.receive() == "hello back"


async def test_a_label_on_several_data_channels_is_one_channel_that_answers_where_it_was_asked(host, foreigners):
    client = await foreigners.client()
    first, second = client.create_channel("main"), ForeignChannel("main")
    await client.connect()
    far = await host.next_channel()
    first.send("on the first")
    assert await texts_of(far, 1) == ["on the first"]
    client.open_data_channel(second)
    second.send("on the second")
    assert await texts_of(far, 1) == ["on the second"]
    await far.send("to the second")
    assert await second.receive() == "to the second"
    first.send("on the first again")
    assert await texts_of(far, 1) == ["on the first again"]
    await far.send("to the first")
    assert await first.receive() == "to the first"
    assert not second.unread
    (row,) = await host.program.channels(far.connection_id)
    assert row["label"] == "main"


async def test_a_label_that_both_sides_open_is_one_channel(host, foreigners):
    client = await foreigners.client()
    await client.connect()
    connection = await host.events.next("connection")
    far = await host.program.attach(connection["connection_id"], "both")
    await far.send("opened by the service")
    ours = await client.next_incoming("both")
    assert await ours.receive() == "opened by the service"
    theirs = client.create_channel("both")
    theirs.send("opened by the client")
    assert await texts_of(far, 1) == ["opened by the client"]
    await far.send("answer")
    assert await theirs.receive() == "answer"
    (row,) = await host.program.channels(far.connection_id)
    assert row["label"] == "both"


async def test_a_label_opened_by_the_service_is_taken_by_a_client_that_has_it(host, foreigners):
    client, _, _ = await visit(foreigners, host)
    (row,) = await host.program.connections()
    far = await host.program.attach(row["connection_id"], "news")
    news = ForeignChannel("news")
    client.channels["news"] = news
    await far.send("for you")
    assert await news.receive() == "for you"


@pytest.mark.parametrize("label", ["größe", "標籤 🎈", "x" * 255])
async def test_any_label_of_up_to_255_bytes_passes_both_ways(host, foreigners, label):
    client, near, far = await visit(foreigners, host, label)
    assert far.label == label
    await exchange(near, far)
    far_other = await host.program.attach(far.connection_id, label[:-1])
    await far_other.send("opened here")
    assert (await client.next_incoming(label[:-1])).label == label[:-1]


async def test_a_label_that_is_too_long_is_closed_and_disturbs_nothing(host, foreigners):
    client, near, far = await visit(foreigners, host)
    long = client.create_channel("x" * 256)
    await long.closed()
    await exchange(near, far)


async def test_a_data_channel_closed_by_the_peer_is_an_event_and_can_be_opened_again_by_either_side(host, foreigners):
    client, near, far = await visit(foreigners, host)
    await exchange(near, far)
    near.close()
    await host.events.next("close", label="main")
    client.open_data_channel(near)
    await host.events.next("open", label="main")
    await exchange(near, far)
    near.close()
    await host.events.next("close", label="main")
    await far.send("opened by the service now")
    assert await near.receive() == "opened by the service now"
    assert not host.events.counts["disconnected"]
    assert (await host.program.connections())[0]["state"] == "connected"


async def test_a_client_that_closes_leaves_a_connection_that_stands_until_its_page_ends(host, foreigners):
    client, _, _ = await visit(foreigners, host)
    client.close()
    await host.events.next("close", label="main")
    (row,) = await host.program.connections()
    assert row["state"] == "connected"
    await client.leave()
    await host.gone()


async def test_closing_a_channel_closes_the_data_channel_behind_what_was_sent(host, foreigners):
    _, near, far = await visit(foreigners, host)
    for number in numbers(1, 50):
        await far.send(number)
    await far.close()
    assert await received(near, 50) == numbers(1, 50)
    await near.closed()


async def test_closing_a_connection_tells_the_client_behind_what_was_sent(host, foreigners):
    _, near, far = await visit(foreigners, host, max_attempts=0)
    for number in numbers(1, 50):
        await far.send(number)
    await host.program.close_connection(far.connection_id)
    assert await received(near, 50) == numbers(1, 50)
    await near.closed()
    assert await host.program.connections() == []


# --- what waits for a client ------------------------------------------------------------------------------------------


async def test_what_waits_is_flushed_in_order_to_the_same_peer_and_nothing_new_overtakes_it(host, foreigners):
    client, near, far = await visit(foreigners, host)
    connection_id = far.connection_id
    await client.leave()
    await host.gone()
    for number in numbers(1, 500):
        await far.send(number)
    back = asyncio.ensure_future(client.reconnect())
    for number in numbers(501, 1_000):
        await far.send(number)
    await back
    assert await received(near, 1_000) == numbers(1, 1_000)
    near.send("back again")
    assert await texts_of(far, 1) == ["back again"]
    (row,) = await host.program.connections()
    assert row["connection_id"] == connection_id
    assert host.events.counts["disconnection"] == 0


async def test_a_client_that_comes_back_as_another_peer_has_another_connection_and_the_old_queue_waits(
    host, foreigners
):
    client, near, far = await visit(foreigners, host)
    await client.leave()
    await host.gone()
    await far.send("for the one that left")
    await client.reconnect(as_another=True)
    other = await host.next_channel()
    assert other.connection_id != far.connection_id
    await other.send("for the new one")
    assert await near.receive() == "for the new one"
    assert not near.unread
    assert (await host.program.queue(far.connection_id, "main"))["queue_size"] == 1


async def test_the_same_peer_on_two_live_connections_is_two_connections(host, foreigners):
    client, near, far = await visit(foreigners, host)
    twin = ForeignClient(client.api, f"alice/{FQN}")
    other = twin.create_channel("main")
    await twin.connect()
    try:
        far_other = await host.next_channel()
        assert far_other.connection_id != far.connection_id
        await exchange(other, far_other)
        await exchange(near, far)
    finally:
        await twin.leave()


async def test_a_client_that_vanishes_without_a_word_is_noticed_and_finds_its_queue_when_it_is_back(
    host, foreigners, monkeypatch
):
    monkeypatch.setattr(aioice.ice, "CONSENT_INTERVAL", 0.2)
    client, near, far = await visit(foreigners, host)
    await client.vanish()
    await host.gone()
    await far.send("kept")
    await client.reconnect()
    assert await near.receive() == "kept"


async def test_what_was_in_flight_when_the_connection_died_is_counted(world, foreigners, caplog):
    world.engine = "aiortc"  # libdatachannel does not tell what is in flight
    host = Host(await world.daemon("home"))
    await host.expose()
    client, _, far = await visit(foreigners, host)
    mute(client.pc)
    for number in numbers(1, 5):
        await far.send(number)
    with pytest.raises(NotAcknowledged):
        await asyncio.wait_for(far.flush(), PATIENCE)
    with caplog.at_level(logging.WARNING):
        await host.program.reconnect(far.connection_id)
        await host.gone()
    assert (await host.counters(far))["in_doubt"] == 5
    assert "5 messages may be lost" in caplog.text


async def test_a_restarted_daemon_still_has_what_waits_for_a_plain_peer_and_what_came_from_it(host, foreigners):
    client, near, far = await visit(foreigners, host)
    connection_id = far.connection_id
    await far.detach()
    near.send("unread")
    await host.events.next("channel", label="main", waiting=1)
    await client.leave()
    await host.gone()
    sender = await host.program.attach(connection_id, "main", mode="send")
    for number in numbers(1, 20):
        await sender.send(number)
    await host.place.restart()
    await until_published(host)
    await client.reconnect()
    assert await received(near, 20) == numbers(1, 20)
    again = await host.program.attach(connection_id, "main", takeover=True)
    assert await texts_of(again, 1) == ["unread"]
    await exchange(near, again)


async def until_published(host: Host) -> None:
    async def published() -> bool:
        return all(row["published"] for row in await host.program.services())

    await until(published)


async def disconnected(
    world: World, foreigners: Foreigners, **queue: Any
) -> tuple[Host, ForeignClient, ForeignChannel, Any]:
    """A service with these limits whose client has left."""
    host = Host(await world.daemon("home"))
    await host.expose(queue=queue)
    client, near, far = await visit(foreigners, host)
    near.send("hello")
    assert await texts_of(far, 1) == ["hello"]
    await client.leave()
    await host.gone()
    return host, client, near, far


async def test_a_full_queue_drops_the_oldest_unless_told_otherwise_and_says_how_many(world, foreigners):
    host, client, near, far = await disconnected(world, foreigners, max_queue_size=5)
    for number in numbers(1, 8):
        await far.send(number)
    counts = [(await host.events.next("queue_overflow", policy="drop_oldest"))["count"] for _ in range(3)]
    assert counts == [1, 1, 1]
    assert (await host.counters(far))["removed_overflow"] == 3
    await client.reconnect()
    assert await received(near, 5) == numbers(4, 8)


async def test_a_plain_peers_queue_holds_a_thousand_messages_by_default(world, foreigners):
    host, client, near, far = await disconnected(world, foreigners)
    await asyncio.gather(*(far.send(number) for number in numbers(1, 1_010)))
    assert (await host.program.queue(far.connection_id, "main"))["queue_size"] == 1_000
    assert (await host.counters(far))["removed_overflow"] == 10
    await client.reconnect()
    assert await received(near, 1_000) == numbers(11, 1_010)


async def test_a_full_queue_rejects_when_told_so(world, foreigners):
    host, client, near, far = await disconnected(world, foreigners, max_queue_size=5, overflow="reject")
    for number in numbers(1, 5):
        await far.send(number)
    with pytest.raises(MessageRejected) as rejected:
        await far.send("one too many")
    assert rejected.value.code == "queue_full"
    await host.events.next("queue_overflow", policy="reject", count=1)
    assert (await host.counters(far))["overflow_rejected"] == 1
    await client.reconnect()
    assert await received(near, 5) == numbers(1, 5)


async def test_a_full_queue_holds_the_producer_back_when_told_so(world, foreigners):
    host, client, near, far = await disconnected(world, foreigners, max_queue_size=5, overflow="block")
    sending = [asyncio.ensure_future(far.send(number)) for number in numbers(1, 8)]

    await asyncio.wait_for(asyncio.gather(*sending[:5]), PATIENCE)

    async def parked() -> bool:
        return (await host.program.queue(far.connection_id, "main"))["parked"] > 0

    await until(parked)
    assert not any(task.done() for task in sending[5:])
    await client.reconnect()
    assert await received(near, 8) == numbers(1, 8)
    await asyncio.gather(*sending)


async def test_bytes_limit_a_plain_peers_queue_too(world, foreigners):
    host, client, near, far = await disconnected(world, foreigners, max_queue_bytes=1_000)
    for size in (400, 500, 600):
        await far.send("x" * size)
    await host.events.next("queue_overflow", policy="drop_oldest", count=2)
    await client.reconnect()
    assert [len(message) for message in await received(near, 1)] == [600]


async def test_a_message_that_is_too_old_is_removed_and_told(world, foreigners):
    host, client, near, far = await disconnected(world, foreigners)
    await far.send("old", max_age=0.05)
    await far.send("young")
    assert (await host.events.next("message_expired", label="main"))["count"] == 1
    assert (await host.counters(far))["removed_expired"] == 1
    await client.reconnect()
    assert await near.receive() == "young"


async def test_the_age_of_a_queue_is_a_limit_as_well(world, foreigners):
    host, client, near, far = await disconnected(world, foreigners, max_message_age=0.05)
    await far.send("old")
    await host.events.next("message_expired", label="main", count=1)
    await client.reconnect()
    await far.send("young")
    assert await near.receive() == "young"


FLOODED = {"drop_oldest": numbers(21, 30), "reject": numbers(1, 10), "block": numbers(1, 10)}


@pytest.mark.parametrize(("policy", "kept"), FLOODED.items(), ids=FLOODED)
async def test_a_plain_peer_that_floods_a_channel_nobody_reads_loses_what_does_not_fit_and_is_counted(
    world, foreigners, policy, kept
):
    host = Host(await world.daemon("home"))
    await host.expose(serve=False, queue={"max_queue_size": 10, "overflow": policy})
    client = await foreigners.client()
    near = client.create_channel("main")
    for number in numbers(1, 30):
        near.send(number)
    await client.connect()
    dropped = 0
    while dropped < 20:
        dropped += (await host.events.next("queue_overflow", direction="in", policy=policy))["count"]
    (row,) = await host.program.connections()
    far = await host.program.attach(row["connection_id"], "main")
    assert (await host.counters(far))["inbox_overflow"] == dropped == 20
    assert await texts_of(far, 10) == kept


# --- connections ------------------------------------------------------------------------------------------------------


async def test_a_connection_and_a_0_9_0_service_exchange_text_and_binary(guest, foreigners):
    near, far = await call(guest, await foreigners.service())
    assert far.label == "main"
    await exchange(far, near)
    (row,) = await guest.program.connections()
    assert (row["kind"], row["state"]) == ("plain", "connected")
    with pytest.raises(NotAcknowledged):
        await asyncio.wait_for(near.flush(), PATIENCE)
    assert near.acknowledges is False


async def test_a_0_9_2_service_is_reached_on_its_own_data_channel(guest, foreigners):
    service = await foreigners.service(version="0.9.2")
    near, far = await call(guest, service, SERVICE_LABEL, peer="plain")
    await exchange(far, near)


async def test_what_is_sent_before_the_first_contact_reaches_a_plain_peer(world, foreigners):
    guest = Guest(await world.daemon("away"))
    await guest.dial(f"bob/{FQN}")
    near = await guest.connection.create_channel("main")
    assert near.acknowledges is None
    for number in numbers(1, 20):
        await near.send(number)
    far = await (await foreigners.service()).next_channel()
    assert await received(far, 20) == numbers(1, 20)
    await guest.connection.wait("connected", PATIENCE)
    assert near.acknowledges is False


async def test_a_connection_opens_each_of_its_labels_and_hears_what_the_service_opens(guest, foreigners):
    service = await foreigners.service()
    await call(guest, service, "first")
    await guest.connection.create_channel("zweiter ä")
    (live,) = service.live
    assert (await live.arrivals.next()).label == "zweiter ä"
    theirs = ForeignChannel("opened by the service")
    theirs.attach(live.pc.createDataChannel(theirs.label))
    theirs.send("hello")
    await guest.events.next("channel", label=theirs.label)
    ours = await guest.connection.create_channel(theirs.label)
    assert await texts_of(ours, 1) == ["hello"]
    await ours.send("hello back")
    assert await theirs.receive() == "hello back"


async def test_a_connection_finds_a_service_again_that_refreshes_its_ttl_the_old_way(guest, foreigners):
    service = await foreigners.service(pool_size=2)
    near, far = await call(guest, service)
    await exchange(far, near)
    refreshing = asyncio.ensure_future(service.refresh())
    await guest.events.next("disconnected")
    for number in numbers(1, 20):
        await near.send(number)
    await refreshing
    far = await service.next_channel()
    assert await received(far, 20) == numbers(1, 20)
    await exchange(far, near)


async def test_a_restarted_daemon_delivers_what_waits_for_a_foreign_service(guest, foreigners):
    service = await foreigners.service()
    near, far = await call(guest, service)
    await exchange(far, near)
    await service.stop()
    await guest.events.next("disconnected")
    for number in numbers(1, 20):
        await near.send(number)
    await guest.place.restart()
    await service.start()
    far = await service.next_channel()
    assert await received(far, 20) == numbers(1, 20)


OPTIONS = {
    "unordered": ({"ordered": False}, (False, None, None)),
    "without retransmission": ({"ordered": False, "max_retransmits": 0}, (False, 0, None)),
    "some retransmissions": ({"max_retransmits": 3}, (True, 3, None)),
    "a life time": ({"max_packet_life_time": 250}, (True, None, 250)),
}


@pytest.mark.parametrize(("options", "expected"), OPTIONS.values(), ids=OPTIONS)
async def test_the_options_of_a_channel_arrive_at_the_peer_and_survive_a_reconnect(
    guest, foreigners, options, expected
):
    service = await foreigners.service()
    near, far = await call(guest, service, options=options)
    for _ in range(2):
        data_channel = far.data_channel
        assert (data_channel.ordered, data_channel.maxRetransmits, data_channel.maxPacketLifeTime) == expected
        await near.send("passes")
        assert await far.receive() == "passes"
        await guest.connection.reconnect()
        far = await service.next_channel()


async def test_a_channel_closed_by_the_service_is_an_event_and_is_opened_again_for_something_to_send(guest, foreigners):
    service = await foreigners.service()
    near, far = await call(guest, service)
    await exchange(far, near)
    far.close()
    await guest.events.next("close", label="main")
    await near.send("again")
    (live,) = service.live
    assert await (await live.arrivals.next()).receive() == "again"
    assert not guest.events.counts["disconnected"]


# --- links and plain peers --------------------------------------------------------------------------------------------


async def test_a_service_for_links_only_refuses_plain_peers(world, foreigners):
    host = Host(await world.daemon("home"))
    await host.expose(peer="link", pool_size=2)
    client = await foreigners.client(max_attempts=0, timeout=PATIENCE)
    dialling = asyncio.ensure_future(client.connect())
    assert "not_a_link" in (await host.events.next("error"))["message"]
    dialling.cancel()
    assert await host.program.connections() == []


async def test_a_connection_to_links_only_refuses_plain_peers(world, foreigners):
    guest = Guest(await world.daemon("away", "max_attempts = 1\n"))
    service = await foreigners.service()
    await guest.dial(service.target, peer="link")
    assert (await guest.events.next("failed"))["code"] == "not_a_link"
    assert not service.handled


PLAIN_SIDES = {"home": ("plain", "auto"), "away": ("auto", "plain"), "both": ("plain", "plain")}


@pytest.mark.parametrize(("home", "away"), PLAIN_SIDES.values(), ids=PLAIN_SIDES)
async def test_daemons_of_which_one_wants_no_links_are_plain_peers_to_each_other(world, home, away):
    host, guest = Host(await world.daemon("home")), Guest(await world.daemon("away"))
    await host.expose(peer=home)
    await guest.dial(f"alice/{FQN}", peer=away)
    near = await guest.connection.create_channel("main")
    await near.send("without frames")
    far = await host.next_channel()
    assert await texts_of(far, 1) == ["without frames"]
    await exchange_few(near, far)
    kinds = {row["kind"] for place in (host, guest) for row in await place.program.connections()}
    assert kinds == {"plain"}
    assert near.acknowledges is far.acknowledges is False


async def test_texts_of_a_side_that_wants_no_links_are_not_marked(world, foreigners):
    host = Host(await world.daemon("home"))
    await host.expose(peer="plain")
    api = foreigners.api()
    offer = await api.discover(host.service.uuid)
    assert "x-rondevu-link" not in offer["sdp"]
    auto = Host(await world.daemon("other"))
    auto.program = await auto.place.client()
    service = await auto.program.expose_service("carol", FQN, **SERVICE)
    assert "a=x-rondevu-link:1" in (await api.discover(service.uuid))["sdp"]


async def test_a_plain_peer_does_not_disturb_the_links_of_a_service(world, foreigners):
    pair = await open_pair(world, pool_size=2)
    client = await foreigners.client()
    near = client.create_channel("main")
    await client.connect()
    await exchange(near, await pair.next_offered())
    await exchange_few(pair.near, pair.far)
    assert {row["kind"] for row in await pair.program.connections()} == {"plain", "link"}


async def test_reserved_labels_are_refused_unless_only_plain_peers_are_wanted(guest, foreigners):
    service = await foreigners.service()
    await guest.dial(service.target)
    with pytest.raises(RequestRefused) as refused:
        await guest.connection.create_channel(SERVICE_LABEL)
    assert refused.value.code == "reserved_label"


# --- mischief ---------------------------------------------------------------------------------------------------------


@pytest.fixture
async def tricked(tmp_path) -> AsyncIterator[tuple[MisbehavingServer, World, Foreigners]]:
    """A signalling server that plays tricks, and who uses it."""
    async with (
        MisbehavingServer() as server,
        open_world(tmp_path, signalling=False) as world,
        Foreigners(server.url) as foreigners,
    ):
        yield server, world, foreigners


async def test_an_answer_that_comes_twice_makes_one_connection(tricked):
    server, world, foreigners = tricked

    async def twice(body: dict[str, Any]) -> dict[str, Any]:
        return {"answers": [answer for answer in body["answers"] for _ in range(2)]}

    server.wrong["answers"] = changing(twice)
    host = Host(place_at(world, server, "home"))
    await host.place.start()
    await host.expose(pool_size=2)
    _, near, far = await visit(foreigners, host)
    polls = server.requests["answers"]

    async def polled_again() -> bool:
        return server.requests["answers"] > polls + 3

    await until(polled_again)
    await exchange(near, far)
    assert len(await host.program.connections()) == 1
    assert host.events.counts["error"] == 0


async def test_an_offer_taken_by_somebody_else_is_tried_again_without_counting(tricked):
    server, world, foreigners = tricked
    service = await foreigners.service(pool_size=2)
    thefts = []

    async def steal(body: dict[str, Any]) -> dict[str, Any]:
        if len(thefts) < 2 and "offerId" in body:
            await foreigners.answer_in_vain(body["offerId"])
            thefts.append(body["offerId"])
        return body

    server.wrong["discover"] = changing(steal)
    guest = Guest(place_at(world, server, "away", "max_attempts = 1\n"))
    await guest.place.start()
    near, far = await call(guest, service)
    await exchange(far, near)
    assert len(thefts) == 2
    assert guest.events.counts["failed"] == 0


async def test_a_service_without_offers_is_tried_again_without_counting(world, foreigners):
    service = await foreigners.service()
    service.polling.clear()
    await foreigners.consume_offer(service.uuid)
    guest = Guest(await world.daemon("away", "max_attempts = 1\n"))
    await guest.dial(service.target)
    near = await guest.connection.create_channel("main")
    assert (await guest.events.next("reconnecting"))["attempt"] == 0
    service.polling.set()
    await exchange(await service.next_channel(), near)


# --- ends at bad moments ---------------------------------------------------------------------------------------------


async def test_a_client_that_says_one_thing_and_leaves_is_heard(world, foreigners):
    """Its message may come before the daemon has stored the connection and the channel, and be all there is of it."""
    host = Host(await world.daemon("home"))
    await host.expose(pool_size=6)
    for number in range(6):
        client = await foreigners.client()
        near = client.create_channel("main")
        near.send(f"message {number}")
        await client.connect()
        await near.opened()
        while client.pc.sctp._outbound_queue or client.pc.sctp._sent_queue or near.data_channel.bufferedAmount:
            await asyncio.sleep(0)
        await client.leave()
    heard = set()
    async with asyncio.timeout(PATIENCE):
        while len(heard) < 6:
            channel = await host.next_channel()
            heard.add((await anext(channel)).data)
    assert heard == {f"message {number}" for number in range(6)}


async def test_a_peer_that_ends_its_connection_closes_no_label(guest, foreigners):
    service = await foreigners.service()
    near, far = await call(guest, service)
    await exchange(far, near)
    await end(service.live[0].pc)
    await guest.events.next("disconnected")
    assert guest.events.counts["close"] == 0


async def test_a_peer_is_sent_away_when_its_service_is_retired(host, foreigners):
    _client, near, far = await visit(foreigners, host)
    await exchange(near, far)
    (service,) = host.place.house.holdings.services.values()
    await service.retire()
    await host.events.next("disconnected", reason="restarting")
    assert not any(visit.session.connected for visit in service.visits.values())


async def test_a_plain_connection_whose_address_goes_is_replaced_and_ended(guest, foreigners):
    service = await foreigners.service(pool_size=2)
    near, far = await call(guest, service)
    await exchange(far, near)
    (connection,) = guest.place.house.holdings.by_id.values()
    first = connection.session.peer_connection
    connection.network_changed(set(), {connection.session.local_address}, routes=False)
    async with asyncio.timeout(PATIENCE):
        while connection.session.peer_connection is first or first.state != "closed":
            await asyncio.sleep(0)
    assert connection.session.connected
