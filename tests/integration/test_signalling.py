"""The client of the seed-era API against the embedded server, over HTTP on loopback; and against servers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import pytest
from aiohttp import web

from rondevud.errors import ConfigError, ListenError, SignallingGarbled, SignallingRejected, SignallingUnreachable
from rondevud.rendezvous.app import RunningServer, Settings, start
from rondevud.rendezvous.credentials import Credentials
from rondevud.rendezvous.rules import Limits
from rondevud.rendezvous.storage import SqliteStorage
from rondevud.signalling.base import Candidate
from rondevud.signalling.clock import ServerClock
from rondevud.signalling.identity import Identities
from rondevud.signalling.opening import open_signalling
from rondevud.signalling.rest import RestSignalling

FQN = "com.example.chat@1.0.0"


class Closable(Protocol):
    async def close(self) -> None: ...


SomeClosable = TypeVar("SomeClosable", bound=Closable)


@contextlib.asynccontextmanager
async def closing(thing: SomeClosable) -> AsyncIterator[SomeClosable]:
    try:
        yield thing
    finally:
        await thing.close()


@contextlib.asynccontextmanager
async def serving(
    storage: SqliteStorage | None = None, settings: Settings | None = None, port: int = 0
) -> AsyncIterator[RunningServer]:
    """A server, with a storage of its own when none is given."""
    with contextlib.closing(SqliteStorage(":memory:") if storage is None else storage) as used:
        async with closing(await start("127.0.0.1", port, used, settings)) as running:
            yield running


@pytest.fixture
async def server() -> AsyncIterator[RunningServer]:
    storage = SqliteStorage(":memory:")
    running = await start("127.0.0.1", 0, storage)
    yield running
    await running.close()
    storage.close()


@pytest.fixture
async def service_side(server: RunningServer, tmp_path: Path) -> AsyncIterator[RestSignalling]:
    signalling = RestSignalling(server.url, Identities(tmp_path / "service"))
    yield signalling
    await signalling.close()


@pytest.fixture
async def client_side(server: RunningServer, tmp_path: Path) -> AsyncIterator[RestSignalling]:
    signalling = RestSignalling(server.url, Identities(tmp_path / "client"))
    yield signalling
    await signalling.close()


class TestThroughTheEmbeddedServer:
    async def test_a_published_service_is_found_by_name_and_by_uuid(
        self, service_side: RestSignalling, client_side: RestSignalling
    ) -> None:
        publication = await service_side.publisher("alice", FQN).publish(
            "offer 1", ttl=300, public=True, metadata={"a": 1}
        )
        by_name = await client_side.discover("alice", FQN)
        by_uuid = await client_side.discover_uuid(publication.uuid)
        assert by_name == by_uuid
        assert (by_name.username, by_name.fqn, by_name.uuid) == ("alice", FQN, publication.uuid)
        assert (by_name.offer_id, by_name.sdp) == (publication.offer_id, "offer 1")

    async def test_an_answer_reaches_the_service_once(
        self, service_side: RestSignalling, client_side: RestSignalling
    ) -> None:
        publisher = service_side.publisher("alice", FQN)
        publication = await publisher.publish("offer 1", ttl=300, public=False, metadata=None)
        assert await publisher.answers() == []
        await client_side.answer(publication.offer_id, "answer 1")
        (answer,) = await publisher.answers()
        assert (answer.offer_id, answer.sdp) == (publication.offer_id, "answer 1")
        assert len(answer.answerer_id) == 32
        assert await publisher.answers() == []

    async def test_answers_come_oldest_first(self, tmp_path: Path) -> None:
        ticks = itertools.count(1_800_000_000)  # no two answers in one millisecond: those have no order
        async with (
            serving(settings=Settings(clock=lambda: float(next(ticks)))) as server,
            closing(RestSignalling(server.url, Identities(tmp_path))) as signalling,
        ):
            publisher = signalling.publisher("alice", FQN)
            first = await publisher.publish("offer 1", ttl=300, public=False, metadata=None)
            second, third = await publisher.add_offers(["offer 2", "offer 3"], ttl=300)
            order = [third.offer_id, first.offer_id, second.offer_id]
            for offer_id in order:
                await signalling.answer(offer_id, "answer")
            assert [answer.offer_id for answer in await publisher.answers()] == order

    async def test_an_answered_offer_is_taken_and_an_empty_pool_has_no_offer(
        self, service_side: RestSignalling, client_side: RestSignalling
    ) -> None:
        publication = await service_side.publisher("alice", FQN).publish("offer", ttl=300, public=False, metadata=None)
        await client_side.answer(publication.offer_id, "answer")
        with pytest.raises(SignallingRejected, match="already answered") as taken:
            await client_side.answer(publication.offer_id, "another answer")
        assert taken.value.code == "offer_taken"
        with pytest.raises(SignallingRejected) as unknown:
            await client_side.answer("f" * 64, "answer")
        assert unknown.value.code == "offer_taken"
        with pytest.raises(SignallingRejected) as empty:
            await client_side.discover("alice", FQN)
        assert (empty.value.code, empty.value.status) == ("no_offer", 503)

    async def test_what_is_not_there_is_not_found(self, client_side: RestSignalling) -> None:
        for call in (
            client_side.discover("nobody", FQN),
            client_side.discover_uuid("00000000-0000-4000-8000-000000000000"),
            client_side.offer_candidates("f" * 64),
        ):
            with pytest.raises(SignallingRejected) as error:
                await call
            assert (error.value.code, error.value.status) == ("not_found", 404)

    async def test_candidates_go_both_ways_and_come_once(
        self, service_side: RestSignalling, client_side: RestSignalling
    ) -> None:
        publisher = service_side.publisher("alice", FQN)
        offer_id = (await publisher.publish("offer", ttl=300, public=False, metadata=None)).offer_id
        batch = [Candidate(f"candidate:{number}", "0", 0) for number in range(30)]
        late = Candidate("candidate:late", None, None)
        await publisher.add_candidates(offer_id, batch)
        assert await client_side.offer_candidates(offer_id) == batch
        await publisher.add_candidates(offer_id, [late])
        assert await client_side.offer_candidates(offer_id) == [late]
        assert await client_side.offer_candidates(offer_id) == []
        await client_side.add_answer_candidates(offer_id, [late])
        assert await publisher.candidates(offer_id) == [late]
        assert await publisher.candidates(offer_id) == []

    async def test_a_refresh_keeps_the_uuid_and_the_offers_that_are_out(
        self, service_side: RestSignalling, client_side: RestSignalling
    ) -> None:
        publisher = service_side.publisher("alice", FQN)
        first = await publisher.publish("offer 1", ttl=300, public=False, metadata=None)
        second = await publisher.publish("offer 2", ttl=300, public=False, metadata=None)
        assert second.uuid == first.uuid
        found = [await client_side.discover_uuid(first.uuid)]
        await client_side.answer(found[0].offer_id, "answer")
        found.append(await client_side.discover_uuid(first.uuid))
        assert [one.offer_id for one in found] == [second.offer_id, first.offer_id]

    async def test_the_present_initial_offer_is_deleted_only_after_the_next_publication(
        self, service_side: RestSignalling, client_side: RestSignalling
    ) -> None:
        publisher = service_side.publisher("alice", FQN)
        first = await publisher.publish("offer 1", ttl=300, public=False, metadata=None)
        await publisher.delete_offer(first.offer_id)
        assert (await client_side.discover("alice", FQN)).offer_id == first.offer_id
        await publisher.publish("offer 2", ttl=300, public=False, metadata=None)
        with pytest.raises(SignallingRejected, match="not found"):
            await client_side.answer(first.offer_id, "answer")
        assert (await client_side.discover("alice", FQN)).sdp == "offer 2"

    async def test_a_pool_offer_is_deleted_and_deleting_it_again_is_no_error(
        self, service_side: RestSignalling, client_side: RestSignalling
    ) -> None:
        publisher = service_side.publisher("alice", FQN)
        await publisher.publish("offer 1", ttl=300, public=False, metadata=None)
        (pool_offer,) = await publisher.add_offers(["offer 2"], ttl=120)
        assert pool_offer.ttl == 120
        await publisher.delete_offer(pool_offer.offer_id)
        await publisher.delete_offer(pool_offer.offer_id)
        assert (await client_side.discover("alice", FQN)).sdp == "offer 1"

    async def test_withdrawing_removes_service_and_offers_and_can_be_repeated(
        self, service_side: RestSignalling, client_side: RestSignalling
    ) -> None:
        publisher = service_side.publisher("alice", FQN)
        publication = await publisher.publish("offer 1", ttl=300, public=False, metadata=None)
        (pool_offer,) = await publisher.add_offers(["offer 2"], ttl=300)
        await publisher.withdraw()
        await publisher.withdraw()
        with pytest.raises(SignallingRejected) as error:
            await client_side.discover("alice", FQN)
        assert error.value.code == "not_found"
        for offer_id in (publication.offer_id, pool_offer.offer_id):
            with pytest.raises(SignallingRejected, match="not found"):
                await client_side.answer(offer_id, "answer")
        again = await publisher.publish("offer 3", ttl=300, public=False, metadata=None)
        assert again.uuid == publication.uuid

    async def test_two_services_of_one_user_do_not_share_a_pool(
        self, service_side: RestSignalling, client_side: RestSignalling
    ) -> None:
        for name in ("com.example.a@1.0.0", "com.example.b@1.0.0"):
            await service_side.publisher("alice", name).publish(
                f"offer of {name}", ttl=300, public=False, metadata=None
            )
        for name in ("com.example.a@1.0.0", "com.example.b@1.0.0"):
            assert (await client_side.discover("alice", name)).sdp == f"offer of {name}"

    async def test_the_same_offer_twice_is_refused_and_leaves_the_service(
        self, service_side: RestSignalling, client_side: RestSignalling
    ) -> None:
        publisher = service_side.publisher("alice", FQN)
        await publisher.publish("offer", ttl=300, public=False, metadata=None)
        with pytest.raises(SignallingRejected) as error:
            await publisher.publish("offer", ttl=300, public=False, metadata=None)
        assert error.value.code == "offer_taken"
        assert (await client_side.discover("alice", FQN)).sdp == "offer"

    async def test_a_name_held_by_another_key_is_taken(
        self, service_side: RestSignalling, client_side: RestSignalling
    ) -> None:
        ends = await service_side.claim("alice")
        state = await client_side.check("alice")
        assert state["available"] is False
        assert state["expires_at"] == ends
        assert (await client_side.check("bob")) == {"username": "bob", "available": True}
        with pytest.raises(SignallingRejected) as claimed:
            await client_side.claim("alice")
        assert claimed.value.code == "name_taken"
        with pytest.raises(SignallingRejected) as published:
            await client_side.publisher("alice", FQN).publish("offer", ttl=300, public=False, metadata=None)
        assert published.value.code == "name_taken"

    async def test_a_key_that_holds_another_name_is_told_so(self, server: RunningServer, tmp_path: Path) -> None:
        identities = Identities(tmp_path)
        identities.import_seed("alias", identities.obtain("alice").export_seed())
        async with closing(RestSignalling(server.url, identities)) as signalling:
            await signalling.claim("alice")
            with pytest.raises(SignallingRejected, match="one key can hold one name only"):
                await signalling.claim("alias")

    async def test_a_bad_service_name_is_refused_with_the_servers_words(self, service_side: RestSignalling) -> None:
        with pytest.raises(SignallingRejected, match="reverse domain notation") as error:
            await service_side.publisher("alice", "chat@1.0.0").publish("offer", ttl=300, public=False, metadata=None)
        assert error.value.code == "refused"


class TestServersThatForget:
    async def test_after_a_restart_with_nothing_kept_publishing_claims_and_registers_again(
        self, tmp_path: Path
    ) -> None:
        async with serving() as server:
            signalling = RestSignalling(server.url, Identities(tmp_path))
        async with closing(signalling):
            publisher = signalling.publisher("alice", FQN)
            async with serving(port=server.port):
                await publisher.publish("offer 1", ttl=300, public=False, metadata=None)
            async with serving(port=server.port):
                for call in (publisher.answers, lambda: publisher.add_offers(["offer 2"], ttl=300), publisher.answers):
                    with pytest.raises(SignallingRejected) as error:
                        await call()
                    assert error.value.code == "unauthorized"
                await publisher.publish("offer 3", ttl=300, public=False, metadata=None)
                assert await publisher.answers() == []
                found = await signalling.discover("alice", FQN)
                await signalling.answer(found.offer_id, "answer")
                assert [answer.sdp for answer in await publisher.answers()] == ["answer"]

    async def test_the_connecting_side_registers_again_by_itself(self, tmp_path: Path) -> None:
        path = tmp_path / "server.db"
        async with (
            serving(SqliteStorage(path)) as server,
            closing(RestSignalling(server.url, Identities(tmp_path))) as signalling,
        ):
            publisher = signalling.publisher("alice", FQN)
            publication = await publisher.publish("offer 1", ttl=300, public=False, metadata=None)
            await signalling.offer_candidates(publication.offer_id)
            await server.close()
            async with serving(SqliteStorage(path), Settings(auth_secret=bytes(32)), server.port):
                await signalling.answer(publication.offer_id, "answer")
                assert await signalling.offer_candidates(publication.offer_id) == []

    async def test_a_server_on_a_file_knows_its_peers_after_a_restart(self, tmp_path: Path) -> None:
        path = tmp_path / "server.db"
        async with serving(SqliteStorage(path)) as server:
            signalling = RestSignalling(server.url, Identities(tmp_path))
            publisher = signalling.publisher("alice", FQN)
            async with contextlib.AsyncExitStack() as stack:
                stack.push_async_callback(signalling.close)
                publication = await publisher.publish("offer 1", ttl=300, public=False, metadata=None)
                await server.close()
                async with serving(SqliteStorage(path), port=server.port):
                    await signalling.answer(publication.offer_id, "answer")
                    assert [answer.offer_id for answer in await publisher.answers()] == [publication.offer_id]

    async def test_withdrawing_under_dead_credentials_is_no_error(self, tmp_path: Path) -> None:
        path = tmp_path / "server.db"
        async with (
            serving(SqliteStorage(path)) as server,
            closing(RestSignalling(server.url, Identities(tmp_path))) as signalling,
        ):
            publisher = signalling.publisher("alice", FQN)
            await publisher.publish("offer 1", ttl=300, public=False, metadata=None)
            await server.close()
            async with serving(SqliteStorage(path), Settings(auth_secret=bytes(32)), server.port):
                await publisher.withdraw()


class TestClocksThatDiffer:
    @pytest.mark.parametrize("skew", [-86_400.0, 86_400.0])
    async def test_neither_signatures_nor_ttl_suffer(self, tmp_path: Path, skew: float) -> None:
        now = 1_800_000_000.0
        clock = ServerClock(steady=lambda: 5_000.0, wall=lambda: now)
        async with (
            serving(settings=Settings(clock=lambda: now + skew)) as server,
            closing(RestSignalling(server.url, Identities(tmp_path), clock=clock)) as signalling,
        ):
            await signalling.claim("alice")
            publisher = signalling.publisher("alice", FQN)
            publication = await publisher.publish("offer 1", ttl=300, public=False, metadata=None)
            assert 298 <= publication.ttl <= 300
            assert publication.expires_at == now + skew + 300
            (offer,) = await publisher.add_offers(["offer 2"], ttl=200)
            assert offer.ttl == 200

    async def test_a_server_whose_clock_was_set_is_understood_at_the_next_call(self, tmp_path: Path) -> None:
        now = 1_800_000_000.0
        clock = ServerClock(wall=lambda: now)
        async with (
            serving(settings=Settings(clock=lambda: now)) as server,
            closing(RestSignalling(server.url, Identities(tmp_path), clock=clock)) as signalling,
        ):
            await signalling.claim("alice")
            now += 3600
            assert await signalling.claim("alice") == now + 365 * 86_400
            publisher = signalling.publisher("alice", FQN)
            await publisher.publish("offer 1", ttl=300, public=False, metadata=None)
            now += 3600
            assert (await publisher.publish("offer 2", ttl=300, public=False, metadata=None)).expires_at == now + 300

    @pytest.mark.parametrize("step", [-86_400.0, 86_400.0])
    async def test_a_service_that_a_clock_set_forward_has_ended_must_be_published_again(
        self, tmp_path: Path, step: float
    ) -> None:
        now = 1_800_000_000.0
        clock = ServerClock(wall=lambda: now)
        async with (
            serving(settings=Settings(clock=lambda: now)) as server,
            closing(RestSignalling(server.url, Identities(tmp_path), clock=clock)) as signalling,
        ):
            publisher = signalling.publisher("alice", FQN)
            await publisher.publish("offer 1", ttl=300, public=False, metadata=None)
            assert await publisher.answers() == []
            now += step
            if step > 0:
                with pytest.raises(SignallingRejected, match="has expired by the server's clock") as error:
                    await publisher.answers()
                assert error.value.code == "unauthorized"
                await publisher.publish("offer 2", ttl=300, public=False, metadata=None)
            for _ in range(3):
                assert await publisher.answers() == []
            assert (await signalling.discover("alice", FQN)).sdp == ("offer 2" if step > 0 else "offer 1")

    async def test_the_ttl_is_what_the_server_gave_not_what_was_asked(self, tmp_path: Path) -> None:
        async with (
            serving(settings=Settings(limits=Limits(max_ttl=90_000))) as server,
            closing(RestSignalling(server.url, Identities(tmp_path))) as signalling,
        ):
            publisher = signalling.publisher("alice", FQN)
            publication = await publisher.publish("offer 1", ttl=3600, public=False, metadata=None)
            assert 80 <= publication.ttl <= 90
            (offer,) = await publisher.add_offers(["offer 2"], ttl=3600)
            assert offer.ttl == 90
            (short,) = await publisher.add_offers(["offer 3"], ttl=1)
            assert short.ttl == 60


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Misbehaving:
    """A server that answers every request with what `handler` makes of it, and counts them."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self.requests: list[str] = []
        self.url = ""

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.path}")
        return await self._handler(request)

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()


@contextlib.asynccontextmanager
async def against(handler: Handler, tmp_path: Path, timeout: float = 10.0) -> AsyncIterator[tuple[Misbehaving, Any]]:
    async with Misbehaving(handler) as server:
        signalling = RestSignalling(server.url, Identities(tmp_path), timeout=timeout)
        try:
            yield server, signalling
        finally:
            await signalling.close()


def always(**response: Any) -> Handler:
    async def handle(_request: web.Request) -> web.Response:
        return web.Response(**response)

    return handle


GOOD_SERVICE = {"serviceId": "s", "username": "alice", "serviceFqn": FQN, "offerId": "o", "sdp": "offer"}


class TestServersThatMisbehave:
    async def test_without_a_date_of_its_own_the_servers_health_tells_the_time(self, tmp_path: Path) -> None:
        server_time = 1_900_000_000_000
        messages: list[str] = []

        async def handle(request: web.Request) -> web.Response:
            if request.path == "/health":
                body: dict[str, Any] = {"status": "ok", "timestamp": server_time}
            else:
                messages.append((await request.json())["message"])
                body = {"username": "alice", "claimedAt": server_time, "expiresAt": server_time + 1000}
            return web.json_response(body, headers={"Age": "100"})  # from a cache, and so is its Date

        async with against(handle, tmp_path) as (_, signalling):
            assert await signalling.claim("alice") == server_time / 1000 + 1
        (message,) = messages
        assert abs(int(message.removeprefix("claim:alice:")) - server_time) < 300_000

    async def test_a_time_that_is_none_is_not_learnt(self, tmp_path: Path) -> None:
        async def handle(request: web.Request) -> web.Response:
            text = '{"timestamp": %s}' % ("9" * 400)
            body = text if request.path == "/health" else json.dumps({"expiresAt": 1_900_000_000_000})
            return web.Response(text=body, headers={"Age": "100"})

        async with against(handle, tmp_path) as (_, signalling):
            assert await signalling.claim("alice") == 1_900_000_000.0

    async def test_html_is_no_answer_of_a_rondevu_server(self, tmp_path: Path) -> None:
        for status in (200, 404):
            handler = always(status=status, text="<html>It works!</html>", content_type="text/html")
            async with against(handler, tmp_path) as (_, signalling):
                with pytest.raises(SignallingGarbled):
                    await signalling.discover_uuid("u")

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"sdp": None}, "sdp is null"),
            ({"offerId": 5}, "offerId is a number instead of a text"),
            ({"username": ""}, "username is empty"),
            ({"serviceFqn": ...}, "serviceFqn is missing"),
        ],
    )
    async def test_the_member_that_is_wrong_is_named(self, tmp_path: Path, change: dict[str, Any], named: str) -> None:
        body = {name: value for name, value in (GOOD_SERVICE | change).items() if value is not ...}
        async with against(always(text=json.dumps(body)), tmp_path) as (_, signalling):
            with pytest.raises(SignallingGarbled, match=named):
                await signalling.discover_uuid("u")

    async def test_times_that_are_no_times_are_named(self, tmp_path: Path) -> None:
        for value in (-1, True, 1e12, 10**40):
            handler = always(text=json.dumps({"username": "alice", "claimedAt": 1, "expiresAt": value}))
            async with against(handler, tmp_path) as (_, signalling):
                with pytest.raises(SignallingGarbled, match="expiresAt is"):
                    await signalling.claim("alice")

    async def test_500_is_tried_three_times_and_then_unreachable(self, tmp_path: Path) -> None:
        async with against(always(status=500, text="oops"), tmp_path) as (server, signalling):
            with pytest.raises(SignallingUnreachable, match="500: oops") as error:
                await signalling.check("alice")
            assert error.value.retryable
            assert len(server.requests) == 3

    async def test_a_server_that_recovers_is_asked_again(self, tmp_path: Path) -> None:
        async def handle(_request: web.Request) -> web.Response:
            if len(server.requests) < 3:
                return web.json_response({"error": "Bad gateway"}, status=502)
            return web.json_response({"username": "alice", "available": True})

        async with against(handle, tmp_path) as (server, signalling):
            assert (await signalling.check("alice"))["available"] is True

    async def test_429_waits_as_long_as_it_was_told(self, tmp_path: Path) -> None:
        loop = asyncio.get_running_loop()
        times: list[float] = []

        async def handle(_request: web.Request) -> web.Response:
            times.append(loop.time())
            if len(times) == 1:
                return web.json_response({"error": "Too many"}, status=429, headers={"Retry-After": "1"})
            return web.json_response({"username": "alice", "available": True})

        async with against(handle, tmp_path) as (_, signalling):
            await signalling.check("alice")
        assert times[1] - times[0] > 0.99

    async def test_429_beyond_the_time_out_is_handed_to_the_caller(self, tmp_path: Path) -> None:
        handler = always(status=429, text="{}", headers={"Retry-After": "3600"})
        async with against(handler, tmp_path) as (server, signalling):
            with pytest.raises(SignallingUnreachable) as error:
                await signalling.check("alice")
            assert error.value.retry_after == 3600
            assert len(server.requests) == 1

    async def test_retry_after_may_be_a_date_of_the_server(self, tmp_path: Path) -> None:
        headers = {
            "Retry-After": formatdate(2_000_000_060, usegmt=True),
            "Date": formatdate(2_000_000_000, usegmt=True),
        }
        async with against(always(status=503, text="{}", headers=headers), tmp_path) as (_, signalling):
            with pytest.raises(SignallingUnreachable) as error:
                await signalling.check("alice")
            assert error.value.retry_after is not None
            assert 55 < error.value.retry_after <= 61

    async def test_503_of_a_proxy_is_not_an_empty_pool(self, tmp_path: Path) -> None:
        async with against(always(status=503, text="no upstream"), tmp_path) as (_, signalling):
            with pytest.raises(SignallingUnreachable):
                await signalling.discover_uuid("u")

    async def test_a_request_that_hangs_when_the_network_changes_is_made_again(self, tmp_path: Path) -> None:
        arrived = asyncio.Event()

        async def handle(_request: web.Request) -> web.Response:
            if not arrived.is_set():
                arrived.set()
                await asyncio.Event().wait()
            return web.json_response(GOOD_SERVICE)

        async with against(handle, tmp_path) as (_, signalling):
            signalling.network_changed()  # nothing is under way yet
            asked = asyncio.create_task(signalling.discover_uuid("u"))
            await arrived.wait()
            signalling.network_changed()
            signalling.network_changed()
            assert (await asked).sdp == "offer"
            assert signalling.counters["retries"] == 1

    async def test_a_slow_server_ends_in_the_time_out(self, tmp_path: Path) -> None:
        ended = asyncio.Event()

        async def handle(_request: web.Request) -> web.Response:
            await ended.wait()
            return web.Response()

        async with against(handle, tmp_path, timeout=0.2) as (_, signalling):
            with pytest.raises(SignallingUnreachable, match=r"no answer within 0.2 s"):
                await signalling.check("alice")
            ended.set()

    async def test_a_huge_answer_is_refused(self, tmp_path: Path) -> None:
        async with against(always(body=b" " * (1024 * 1024 + 1)), tmp_path) as (_, signalling):
            with pytest.raises(SignallingGarbled, match="larger than 1048576 bytes"):
                await signalling.check("alice")

    async def test_a_redirection_is_named_and_not_followed(self, tmp_path: Path) -> None:
        handler = always(status=308, headers={"Location": "https://elsewhere.example/"})
        async with against(handler, tmp_path) as (server, signalling):
            with pytest.raises(SignallingGarbled, match=r"redirects to https://elsewhere\.example/"):
                await signalling.check("alice")
            assert len(server.requests) == 1

    async def test_a_server_that_is_down_is_unreachable(self, tmp_path: Path) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
            url = f"http://127.0.0.1:{taken.getsockname()[1]}"
            signalling = await open_signalling(url, "auto", Identities(tmp_path))
            with pytest.raises(SignallingUnreachable, match="no connection"):
                await signalling.publisher("alice", FQN).publish("offer", ttl=300, public=False, metadata=None)
            await signalling.close()

    async def test_neither_key_nor_credentials_are_logged(
        self,
        service_side: RestSignalling,
        client_side: RestSignalling,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        given: list[tuple[str, str]] = []
        new_peer = Credentials.new_peer

        def remembered(self: Credentials) -> tuple[str, str]:
            given.append(new_peer(self))
            return given[-1]

        monkeypatch.setattr(Credentials, "new_peer", remembered)
        caplog.set_level(logging.DEBUG, "rondevud")
        publication = await service_side.publisher("alice", FQN).publish("offer", ttl=300, public=False, metadata=None)
        await client_side.answer(publication.offer_id, "answer")
        assert "/services: 201" in caplog.text
        assert "Bearer" not in caplog.text
        seed = Identities(tmp_path / "service").obtain("alice").export_seed()
        assert len(given) == 2
        for secret in (*(secret for _, secret in given), seed):
            assert secret not in caplog.text


class LosingAnswers:
    """A proxy in front of the embedded server that carries requests out and then, for one path, closes without answer."""

    def __init__(self, target: str, path: str) -> None:
        self._target = target
        self._path = path
        self.losses = 1
        self.requests = 0

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        import aiohttp

        body = await request.read()
        headers = {name: request.headers[name] for name in ("Authorization",) if name in request.headers}
        async with (
            aiohttp.ClientSession() as session,
            session.request(request.method, self._target + request.path_qs, data=body, headers=headers) as response,
        ):
            answer = await response.read()
        if request.path.endswith(self._path):
            self.requests += 1
            if self.losses:
                self.losses -= 1
                assert request.transport is not None
                request.transport.close()
        return web.Response(status=response.status, body=answer, headers={"Date": response.headers["Date"]})


class TestAnswersThatAreLost:
    async def test_an_answer_is_repeated_and_known_as_our_own(
        self, server: RunningServer, service_side: RestSignalling, tmp_path: Path
    ) -> None:
        publisher = service_side.publisher("alice", FQN)
        publication = await publisher.publish("offer", ttl=300, public=False, metadata=None)
        proxy = LosingAnswers(server.url, "/answer")
        async with against(proxy, tmp_path) as (_, signalling):
            await signalling.answer(publication.offer_id, "answer")
        assert proxy.requests == 2
        assert [answer.sdp for answer in await publisher.answers()] == ["answer"]

    async def test_added_offers_are_found_again(self, server: RunningServer, tmp_path: Path) -> None:
        proxy = LosingAnswers(server.url, "/offers")
        async with against(proxy, tmp_path) as (_, signalling):
            publisher = signalling.publisher("alice", FQN)
            await publisher.publish("offer 1", ttl=300, public=False, metadata=None)
            first, second = await publisher.add_offers(["offer 2", "offer 3"], ttl=300)
            assert proxy.requests == 2
            await signalling.answer(second.offer_id, "answer")
            assert [answer.offer_id for answer in await publisher.answers()] == [second.offer_id]
            assert first.offer_id != second.offer_id

    async def test_a_publication_is_not_repeated(self, server: RunningServer, tmp_path: Path) -> None:
        proxy = LosingAnswers(server.url, "/services")
        async with against(proxy, tmp_path) as (_, signalling):
            await signalling.claim("alice")
            publisher = signalling.publisher("alice", FQN)
            with pytest.raises(SignallingUnreachable):
                await publisher.publish("offer 1", ttl=300, public=False, metadata=None)
            assert proxy.requests == 1
            await publisher.publish("offer 2", ttl=300, public=False, metadata=None)
            assert (await signalling.discover("alice", FQN)).sdp == "offer 2"


class TestOpening:
    async def test_rpc_is_not_in_this_version(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="not in this version"):
            await open_signalling("http://127.0.0.1:1", "rpc", Identities(tmp_path))

    @pytest.mark.parametrize(
        "url", ["", "localhost:3000", "ftp://a", "http://", "http://u:p@a", "http://a?b=c", "http://a:99999"]
    )
    async def test_a_url_that_cannot_be_one_is_a_configuration_error(self, tmp_path: Path, url: str) -> None:
        with pytest.raises(ConfigError, match="signalling url") as error:
            await open_signalling(url, "rest", Identities(tmp_path))
        assert ":p@" not in str(error.value)

    async def test_a_port_in_use_is_named(self, server: RunningServer) -> None:
        storage = SqliteStorage(":memory:")
        with pytest.raises(ListenError, match=f"127.0.0.1:{server.port}"):
            await start("127.0.0.1", server.port, storage)
        storage.close()

    async def test_closing_twice_is_no_error(self, server: RunningServer, service_side: RestSignalling) -> None:
        await service_side.check("alice")
        await service_side.close()
        await service_side.close()
        await server.close()
        with pytest.raises(SignallingUnreachable, match="closed"):
            await service_side.check("alice")
