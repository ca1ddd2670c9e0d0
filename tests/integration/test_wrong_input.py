"""What programs and the world get wrong: an error that names the problem, and nobody else is disturbed."""

from __future__ import annotations

import asyncio
import os

import pytest

from rondevu_client import Daemon, RequestRefused
from rondevud.errors import StateDirectoryError
from tests.integration.daemons import (
    FQN,
    PATIENCE,
    SCALE,
    SERVICE,
    Exchange,
    Pair,
    Place,
    exchange_few,
    open_world,
    watch,
)
from tests.unit.ipc.raw import raw_client

pytestmark = [pytest.mark.webrtc, pytest.mark.once, pytest.mark.timeout(120 * SCALE)]


async def while_messages_pass(pair, *wrong):
    """Do what is wrong in the middle of a stream that loses nothing by it."""
    exchange = Exchange(pair.near, pair.far, 2_000)

    async def do_wrong():
        await exchange.there.reached(100).wait()
        async with asyncio.timeout(PATIENCE):
            for each in wrong:
                await each

    await exchange.run(do_wrong())


# --- on the socket ---------------------------------------------------------------------------------------------------


async def test_unknown_methods_and_wrong_types_get_an_error_that_names_them(pair):
    async def ask_wrongly():
        async with raw_client(pair.away.socket) as client:
            error = await client.refused("conect", name="chat")
            assert error["code"] == "unknown_method"
            assert "conect" in error["message"]
            for method, params, words in (
                ("connect", {"username": 1, "fqn": FQN}, "username"),
                ("connect", {"username": "alice"}, "fqn"),
                ("connect", {"uuid": "no uuid"}, "uuid"),
                ("connect", {"username": "alice", "fqn": FQN, "options": {"reconect": {}}}, "reconect"),
                ("attach", {"target": "chat", "label": "main", "mode": "shard"}, "mode"),
                ("attach", {"target": "chat"}, "label"),
                ("attach", {"target": "chat", "label": "new", "options": {"max_queue_size": "many"}}, "max_queue_size"),
                ("attach", {"target": "chat", "label": "x" * 256}, "label"),
                ("wait", {"target": "chat", "for": "ever"}, "for"),
                ("purge", {"target": "chat", "label": "main", "direction": "up"}, "direction"),
                ("expose", {"username": "alice", "fqn": "no version", "options": {}}, "fqn"),
                ("status", {"verbose": True}, "verbose"),
            ):
                error = await client.refused(method, **params)
                assert (error["code"], words in error["message"]) == ("bad_params", True), (method, params, error)
            error = await client.refused("attach", target="chta", label="main")
            assert error["code"] == "unknown_target"
            assert "chta" in error["message"]
            assert (await client.result("status"))["connections"] == 1

    await while_messages_pass(pair, ask_wrongly())


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", "bad_message", "frame", id="another-protocol"),
        pytest.param(b"\xc1", "bad_frame", "msgpack", id="not-msgpack"),
        pytest.param(b"\xc6\xff\xff\xff\xff", "frame_too_large", "16842752", id="four-gibibytes-of-payload"),
        pytest.param(b"\xdd\xff\xff\xff\xff", "frame_too_large", "", id="four-billion-elements"),
        pytest.param(b"\x91" * 100, "bad_frame", "16", id="too-deep"),
        pytest.param(b"\x91" * 50_000, "bad_frame", "16", id="nesting-without-end"),
        pytest.param(b"\x93\x02\xa4send\x93\x01\x01\x91\xa2\xff\xfe", "bad_frame", "UTF-8", id="text-that-is-none"),
    ],
)
async def test_bytes_that_are_no_frame_get_one_error_and_cost_only_their_socket(pair, data, code, words):
    async def send_rubbish():
        async with raw_client(pair.away.socket) as client:
            client.write(data)
            answer = await client.next()
            assert answer.error["code"] == code, answer
            assert words in answer.error["message"]
            if code != "bad_message":
                assert await client.next() is None

    await while_messages_pass(pair, send_rubbish())


async def test_a_label_that_has_a_receiver_is_in_use_until_it_leaves_or_is_taken_over(pair):
    async def compete():
        async with Daemon(pair.away.socket) as rival:
            with pytest.raises(RequestRefused) as refused:
                await rival.attach("chat", "main")
            assert refused.value.code == "in_use"

    await while_messages_pass(pair, compete())
    async with Daemon(pair.away.socket) as rival:
        channel = await rival.attach("chat", "main", takeover=True)
        assert await asyncio.wait_for(pair.near.wait_detached(), PATIENCE) == "taken_over"
        await exchange_few(channel, pair.far)


async def test_a_reserved_label_is_refused_by_name(pair):
    for label in ("rondevu-service", "rondevu.link", "rondevu"):
        with pytest.raises(RequestRefused) as refused:
            await pair.visitor.attach("chat", label)
        assert refused.value.code == "reserved_label"
    assert [row["label"] for row in await pair.visitor.channels("chat")] == ["main"]


async def test_other_options_for_what_exists_are_a_conflict_that_names_them(pair):
    with pytest.raises(RequestRefused) as refused:
        await pair.visitor.connect("alice", FQN, name="chat", queue={"overflow": "block"})
    assert refused.value.code == "conflict"
    assert refused.value.data == {"keys": ["queue"]}
    with pytest.raises(RequestRefused) as refused:
        await pair.program.expose_service("alice", FQN, **SERVICE, pool_size=7)
    assert refused.value.code == "conflict"
    assert "pool_size" in refused.value.message
    with pytest.raises(RequestRefused) as refused:
        await pair.visitor.attach("chat", "main", mode="send", options={"overflow": "block"})
    assert refused.value.code == "options_differ"
    assert refused.value.data == {"keys": ["overflow"]}
    await exchange_few(pair.near, pair.far)


# --- around the daemon -----------------------------------------------------------------------------------------------


async def test_a_user_name_that_somebody_else_has_is_refused_as_taken(pair):
    with pytest.raises(RequestRefused) as refused:
        await pair.visitor.expose_service("alice", "com.example.other@1.0.0")
    assert refused.value.code == "name_taken"
    with pytest.raises(RequestRefused) as refused:
        await pair.visitor.claim("alice")
    assert refused.value.code == "name_taken"
    assert await pair.visitor.services() == []
    await exchange_few(pair.near, pair.far)


async def test_a_second_daemon_on_a_state_directory_is_refused_and_names_the_first(world, pair):
    second = Place(world.directory / "daemons", "second", "")
    second.state_dir = pair.away.state_dir

    async def start_second():
        with pytest.raises(StateDirectoryError, match=f"in use by process {os.getpid()}"):
            await second.start()

    await while_messages_pass(pair, start_second())
    assert not second.socket.exists()


async def test_a_signalling_server_that_is_down_delays_only_the_connection(tmp_path):
    async with open_world(tmp_path, signalling=False) as world:
        home, away = await world.daemon("home"), await world.daemon("away", "max_attempts = 1000\n")
        pair = Pair(world, home, away)
        program, visitor = await home.client(), await away.client()
        published, tried = await watch(program), await watch(visitor)
        exposing = asyncio.ensure_future(program.expose_service("alice", FQN, **SERVICE))
        failed = await published.next("error")
        assert "refused" in failed["message"] or "connect" in failed["message"].lower(), failed
        connection = await visitor.connect("alice", FQN, name="chat")
        channel = await connection.create_channel("main")
        await channel.send("before there was a server")
        assert (await tried.next("reconnecting"))["attempt"] == 0
        await world.start_signalling()
        service = await asyncio.wait_for(exposing, PATIENCE)
        await connection.wait("connected", PATIENCE)
        assert (await program.services())[0]["service"] == f"alice/{FQN}"
        assert service.created
        pair.visitor, pair.program = visitor, program
        far_id = (await pair.ids())[1]
        far = await program.attach(far_id, "main")
        assert (await asyncio.wait_for(anext(far), PATIENCE)).data == "before there was a server"
        await world.stop_signalling()
        await exchange_few(channel, far)
