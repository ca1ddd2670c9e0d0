"""A library and a daemon of different versions understand each other.

An older library with this daemon: what one sent is sent again, byte by byte, and the answers must have all that they had
then. This library with a newer daemon: all that the daemon says gets more keys and elements on its way, and more frames.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path

import msgpack
import pytest

from rondevu_client import Daemon
from rondevu_client.protocol import Decoder, Notification, Response, encode_notification
from rondevud.ipc.server import Server
from tests.unit.ipc.house import MemoryHouse
from tests.unit.ipc.raw import RawClient, raw_client

DATA = Path(__file__).parents[2] / "data"
RECORDED = sorted(DATA.glob("library-*.jsonl"))
FQN = "com.example.chat@1.0.0"


def prepare() -> MemoryHouse:
    house = MemoryHouse()
    house.add_connection("conn-a", "alice-chat")
    house.get("conn-a", "main").deliver("one", b"two")
    return house


async def converse(path: Path) -> list[object]:
    """All that a program does day by day; what it got."""
    got: list[object] = []
    async with Daemon(path, client="program") as daemon:
        connection = await daemon.connect("alice", FQN, name="alice-chat", ephemeral=True)
        events = await daemon.subscribe("alice-chat")
        channel = await connection.create_channel("main")
        async for message in channel:
            got.append((message.data, message.id, message.attempt))
            if len(got) == 2:
                break
        await channel.send("sent")
        await channel.send(b"bytes", max_age=60)
        got += [row["name"] for row in await daemon.connections()]
        got.append((await daemon.queue("alice-chat", "main"))["queue_size"])
        got.append((await daemon.status())["version"])
        service = await daemon.expose_service("alice", FQN, pool_size=2)
        service.on("connection", got.append)
        await daemon.purge("alice-chat", "main", "out")
        await channel.detach()
        del events
    return got


class Tap:
    """Sits at a socket between a library and a daemon; `change` is what becomes of the daemon's frames."""

    def __init__(self, daemon: Path, change=lambda frame: msgpack.packb(list(frame), use_bin_type=True)) -> None:
        self.heard: list[dict[str, object]] = []
        self._daemon = daemon
        self._change = change
        self._serving: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def at(self, path: Path):
        server = await asyncio.start_unix_server(self._serve, str(path))
        async with server:
            yield
        async with asyncio.timeout(10):
            await asyncio.gather(*self._serving)

    async def _serve(self, reader, writer) -> None:
        self._serving.add(asyncio.current_task())
        theirs, ours = await asyncio.open_unix_connection(str(self._daemon))
        async with asyncio.TaskGroup() as group:
            group.create_task(self._up(reader, ours))
            group.create_task(self._down(theirs, writer))
        for end in (writer, ours):
            end.close()
            await end.wait_closed()

    async def _up(self, reader, ours) -> None:
        while data := await reader.read(65_536):
            self.heard.append({"from": "library", "hex": data.hex()})
            ours.write(data)
        ours.close()

    async def _down(self, theirs, writer) -> None:
        decoder = Decoder(2**24)
        while data := await theirs.read(65_536):
            for frame in decoder.frames(data):
                if isinstance(frame, Response):
                    entry = {"msgid": frame.msgid, "error": frame.error, "result": frame.result}
                    writer.write(self._change([1, *frame]))
                else:
                    assert isinstance(frame, Notification)
                    entry = {"method": frame.method, "params": frame.params}
                    writer.write(self._change([2, *frame]))
                self.heard.append({"from": "daemon", **entry})


async def record(directory: Path) -> str:
    """What `converse` says and is answered by this version, as it stands in tests/data."""
    server = Server(prepare(), path=directory / "daemon.sock")
    await server.start()
    tap = Tap(directory / "daemon.sock")
    async with tap.at(directory / "tap.sock"):
        await converse(directory / "tap.sock")
    await server.stop()
    return "".join(json.dumps(entry, default=lambda data: {"$bin": data.hex()}) + "\n" for entry in tap.heard)


def assert_has(present: object, recorded: object, where: str) -> None:
    """Everything that there was is there, of the same type; there may be more."""
    if isinstance(recorded, dict) and recorded.keys() != {"$bin"}:
        assert isinstance(present, dict), where
        for key, value in recorded.items():
            assert key in present, f"{where}.{key} is missing"
            assert_has(present[key], value, f"{where}.{key}")
    elif isinstance(recorded, list):
        assert isinstance(present, (list, tuple)), where
        assert len(present) >= len(recorded), where
        for index, value in enumerate(recorded):
            assert_has(present[index], value, f"{where}[{index}]")
    elif recorded is not None and not isinstance(recorded, dict):
        assert type(present) is type(recorded), (where, present, recorded)


async def find(client: RawClient, entry: dict) -> None:
    """The daemon's next frame that is what `entry` shows; other notifications may come before."""
    while True:
        frame = await client.next()
        assert frame is not None, f"closed instead of {entry}"
        if isinstance(frame, Response):
            assert (frame.msgid, frame.error) == (entry.get("msgid"), entry.get("error")), entry
            assert_has(frame.result, entry["result"], f"result {frame.msgid}")
            return
        if frame.method == entry.get("method"):
            assert_has(frame.params, entry["params"], frame.method)
            return


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda path: path.stem)
async def test_what_an_older_library_says_is_understood_and_it_gets_what_it_got(tmp_path, recorded):
    server = Server(prepare(), path=tmp_path / "daemon.sock")
    await server.start()
    try:
        async with raw_client(tmp_path / "daemon.sock", hello=False) as client:
            for entry in map(json.loads, recorded.read_text().splitlines()):
                if entry["from"] == "library":
                    client.write(bytes.fromhex(entry["hex"]))
                else:
                    await find(client, entry)
    finally:
        await server.stop()


def test_a_library_of_the_first_version_is_recorded():
    assert "library-0.1.0" in {path.stem for path in RECORDED}


def add_more(value: object) -> object:
    """As a newer daemon would say it: more keys in each map."""
    if isinstance(value, dict):
        return {"newer": 1, **{key: add_more(item) for key, item in value.items()}, "a newer key": {"x": [None]}}
    return [add_more(item) for item in value] if isinstance(value, list) else value


def make_newer(frame: list) -> bytes:
    if frame[0] == 2:
        frame = [2, frame[1], [*add_more(frame[2]), "a newer element"]]
        if frame[1] == "message":
            frame[2][2] = [[*row, "newer"] for row in frame[2][2]]
    else:
        frame = [1, frame[1], add_more(frame[2]), add_more(frame[3])]
    more = encode_notification("a newer notification", [1, {}])
    return more + msgpack.packb(frame, use_bin_type=True)


async def test_what_a_newer_daemon_says_in_addition_is_ignored(tmp_path):
    server = Server(prepare(), path=tmp_path / "daemon.sock")
    await server.start()
    try:
        plain = await converse(tmp_path / "daemon.sock")
    finally:
        await server.stop()
    server = Server(prepare(), path=tmp_path / "daemon.sock")
    await server.start()
    try:
        tap = Tap(tmp_path / "daemon.sock", make_newer)
        async with tap.at(tmp_path / "tap.sock"):
            assert await converse(tmp_path / "tap.sock") == plain
    finally:
        await server.stop()
    assert plain[:2] == [("one", "00ff-1", 1), (b"two", "00ff-2", 1)]


@pytest.mark.parametrize(
    ("hello", "code"),
    [
        ({"protocol": [1, 2, 99], "client": "newer", "features": {"compress": True}, "token": b"x"}, None),
        ({"protocol": [2]}, "unsupported_protocol"),
        ({"protocol": [0, 2], "more": 1}, "unsupported_protocol"),
    ],
)
async def test_a_newer_library_agrees_on_the_protocol_or_is_told_which_there_is(tmp_path, hello, code):
    server = Server(prepare(), path=tmp_path / "daemon.sock")
    await server.start()
    try:
        async with raw_client(tmp_path / "daemon.sock", hello=False) as client:
            error, result = await client.request("hello", **hello)
    finally:
        await server.stop()
    if code is None:
        assert (error, result["protocol"]) == (None, 1)
    else:
        assert (error["code"], error["data"]) == (code, {"protocol": [1]})
