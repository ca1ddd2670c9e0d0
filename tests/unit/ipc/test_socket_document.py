"""docs/socket.md and docs/socket-vectors.json say what the code does, no more and no less."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import msgpack
import pytest

from rondevu_client import messages, protocol
from rondevu_client.errors import CODES
from rondevud import events
from rondevud.config import ChannelOptions, ConnectionOptions, ServiceOptions
from rondevud.events import EventBus
from rondevud.ipc import server as server_module
from rondevud.ipc import session, writer
from rondevud.ipc.handle import MAX_HELD
from rondevud.ipc.methods import TABLE
from rondevud.ipc.methods.daemon import FEATURES
from rondevud.ipc.server import Server
from rondevud.ipc.table import MAX_TEXT
from tests.unit.ipc.house import MemoryHouse, Row
from tests.unit.ipc.raw import raw_client
from tests.unit.vectors import DOCS, load, revive, rows, sections

SECTIONS = sections("socket.md")
COMMANDS = sections("commands.md")
VECTORS = load("socket-vectors.json")
DIALOGUE = [vector for vector in VECTORS if vector["part"] == "dialogue"]
EXAMPLE_TIME = 1767225600.5
"""When all events of the dialogue happen."""
REFUSED = [vector for vector in VECTORS if vector["part"] == "refused"]
SOURCES = sorted(
    path
    for path in (DOCS.parent / "rondevud").rglob("*.py")
    if not {"rendezvous", "signalling", "transport", "store", "ctl"} & set(path.relative_to(DOCS.parent).parts)
)


def names(vectors):
    return [vector["name"] for vector in vectors]


# --- tables ----------------------------------------------------------------------------------------------------------


def test_methods_are_those_of_the_table():
    assert {words.strip("`") for words in SECTIONS if words.startswith("`")} == TABLE.methods.keys()


@pytest.mark.parametrize("name", TABLE.methods)
def test_parameters_are_those_of_the_table(name):
    documented = {
        row[0]: (row[1], row[2] == "yes", json.loads(row[3] or "null"))
        for row in rows(SECTIONS[f"`{name}`"], "parameter")
    }
    assert documented == {
        key: (parameter.check(object()), parameter.required, parameter.default)
        for key, parameter in TABLE.methods[name].parameters.items()
    }


def result_keys(name):
    return {row[0] for row in rows(SECTIONS[f"`{name}`"], "key")}


@pytest.mark.parametrize(
    ("name", "heading"),
    [
        ("status", "status"), ("reload", "reload"), ("clients", "clients"), ("claim", "claim"), ("check", "check"),
        ("key_list", "key list"), ("key_show", "key list"), ("key_generate", "key list"), ("key_delete", "key list"),
        ("key_export", "key export"), ("key_import", "key import"), ("services", "services"), ("expose", "expose"),
        ("connections", "connections"), ("connect", "connect"), ("reconnect", "reconnect"), ("wait", "wait"),
        ("sessions", "sessions"), ("forget", "forget"), ("kick", "kick"), ("block", "block"), ("unblock", "unblock"),
        ("channels", "channels"), ("queue", "channels, queue"), ("failed", "queue --failed"),
        ("put_back", "queue --put-back"), ("doctor", "doctor"), ("backup", "backup"),
    ],
)  # fmt: skip
def test_result_keys_are_those_of_the_command(name, heading):
    """That a daemon answers with them is checked where docs/commands.md is."""
    of_command = {row[0].split(".")[0] for one in heading.split(", ") for row in rows(COMMANDS[one], "key")}
    of_subscription = {"subscription", "next", "connections"} if name == "expose" else set()
    assert result_keys(name) == of_command | of_subscription


async def test_result_keys_are_those_of_the_answers(client, house):
    house.disk.services["alice/chat@1.0.0"] = {}
    answers = {
        "hello": await client.hello(),
        "ping": await client.result("ping"),
        "attach": await client.result("attach", target="conn-a", label="chat"),
        "threshold": await client.result("threshold", handle=1, bytes=0),
        "subscribe": await client.result("subscribe"),
        "unsubscribe": await client.result("unsubscribe", subscription=2),
        "detach": await client.result("detach", handle=1),
        "expose": await client.result("expose", username="alice", fqn="chat@1.0.0", subscribe=True),
    }
    assert {name: set(answer) for name, answer in answers.items()} == {name: result_keys(name) for name in answers}


def test_options_are_those_of_the_configuration():
    documented = {row[0]: re.findall(r"`(\w+)`", row[1]) for row in rows(SECTIONS["Options"], "of")}
    assert documented == {
        "expose": list(ServiceOptions.model_fields),
        "connect": list(ConnectionOptions.model_fields),
        "attach": list(ChannelOptions.model_fields),
    }


def test_modes_are_those_of_attach():
    modes = [row[0] for row in rows(SECTIONS["Modes"], "mode")]
    assert TABLE.methods["attach"].parameters["mode"].check(None) == "one of " + ", ".join(modes)


def test_features_are_those_of_the_daemon():
    assert [row[0] for row in rows(SECTIONS["Hello"], "feature")] == FEATURES


@pytest.mark.parametrize(
    ("heading", "shapes"),
    [("From the client", messages._FROM_CLIENT), ("From the daemon", messages._FROM_DAEMON)],
)
def test_notifications_are_those_of_the_code(heading, shapes):
    words = {int: "integer", float: "float", str: "text", list: "array", dict: "map"}
    documented = {row[0]: row[1] for row in rows(SECTIONS[heading], "notification")}
    assert documented == {
        name: ", ".join(f"{parameter}: {words[kind]}" for parameter, kind in shape) for name, shape in shapes.items()
    }


def test_codes_are_those_of_the_library():
    assert {row[0]: row[2] for row in rows(SECTIONS["Codes"], "code")} == CODES


def test_codes_that_nothing_gives_are_named():
    unused = {row[0] for row in rows(SECTIONS["Codes"], "code") if row[1] == "nowhere yet"}
    spoken = set()
    for path in [*SOURCES, *(DOCS.parent / "client_lib" / "rondevu_client").glob("*.py")]:
        if path.parts[-2:] != ("rondevu_client", "errors.py"):
            spoken |= strings_of(path)
    spoken.add(protocol.BadFrame("").code)
    assert unused == CODES.keys() - spoken


def test_limits_are_those_of_the_code():
    limits = {
        "text parameter": MAX_TEXT,
        "depth": protocol.MAX_DEPTH,
        "elements": session.MAX_ELEMENTS,
        "frame beyond max_message": protocol.FRAME_OVERHEAD,
        "max_message": protocol.MAX_MESSAGE,
        "msgid": protocol.MAX_MSGID,
        "number": messages.MAX_NUMBER,
        "credit": messages.MAX_CREDIT,
        "unconfirmed messages": messages.SEND_WINDOW,
        "unconfirmed bytes": messages.SEND_WINDOW_BYTES,
        "requests": session.MAX_REQUESTS,
        "handles and subscriptions": session.MAX_HANDLES,
        "sockets": server_module.MAX_CLIENTS,
        "hello": int(session.HELLO_TIMEOUT),
        "last words": int(session.CLOSE_TIMEOUT),
        "events kept": events.HISTORY,
        "frames held for attach": MAX_HELD,
        "unread, deliveries stop": writer.HIGH_WATER,
        "unread, deliveries go on": writer.LOW_WATER,
        "unread, requests wait": writer.STOP_READING,
        "unread, socket closed": writer.HOPELESS,
    }
    assert {row[0]: int(row[1].replace(",", "")) for row in rows(SECTIONS["Limits"], "limit")} == limits


# --- events ----------------------------------------------------------------------------------------------------------


def strings_of(path):
    return {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}


def _text(node):
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def published():
    """By event name: the keys that stand beside it, and the modules that publish it."""
    found: dict[str, tuple[set[str], set[Path]]] = {}
    for path in SOURCES:
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            arguments = list(call.args)
            if isinstance(call.func, ast.Attribute) and call.func.attr == "callback":
                arguments = arguments[1:]
                publishes = call.args and isinstance(call.args[0], ast.Attribute) and call.args[0].attr == "publish"
            elif isinstance(call.func, ast.Name) and call.func.id == "encode_notification":
                publishes = ast.unparse(call.args[0]) == "messages.EVENT"
                arguments = call.args[1].elts[2:] if publishes and isinstance(call.args[1], ast.List) else []
            else:
                publishes = isinstance(call.func, ast.Attribute) and call.func.attr in {
                    "event", "publish", "_publish", "aside",
                }  # fmt: skip
            name = _text(arguments[0]) if publishes and arguments else None
            if name is None:
                continue
            keys, modules = found.setdefault(name, (set(), set()))
            modules.add(path)
            if len(arguments) > 1 and isinstance(arguments[1], ast.Dict):
                keys |= {key for node in arguments[1].keys if (key := _text(node))}
    return found


PUBLISHED = published()
DOCUMENTED = {row[0]: set(re.findall(r"\w+", row[2])) for row in rows(SECTIONS["Events"], "event")}


def test_events_are_those_that_the_code_publishes():
    assert DOCUMENTED.keys() == PUBLISHED.keys()


@pytest.mark.parametrize("name", DOCUMENTED)
def test_data_of_an_event_is_what_the_code_gives(name):
    given, modules = PUBLISHED[name]
    assert given <= DOCUMENTED[name]
    assert DOCUMENTED[name] <= set.union(*map(strings_of, modules))


# --- vectors ---------------------------------------------------------------------------------------------------------


def test_the_dialogue_of_the_document_is_that_of_the_vectors():
    shown = [row[1:] for row in rows(SECTIONS["A dialogue"], "#")]
    assert shown == [[v["direction"], v["hex"], f"{v['name']}: {v['meaning']}"] for v in DIALOGUE]


@pytest.mark.parametrize("vector", DIALOGUE, ids=names(DIALOGUE))
def test_a_vector_decodes_to_what_it_says(vector):
    data = bytes.fromhex(vector["hex"])
    assert msgpack.unpackb(data) == revive(vector["value"])
    assert msgpack.packb(revive(vector["value"])) == data
    (frame,) = protocol.Decoder().frames(data)
    assert isinstance(frame, protocol.Request | protocol.Response | protocol.Notification)


class Stage:
    """The daemon of the dialogue: what its peer does, by the name of the vector that tells of it."""

    def __init__(self):
        self.house = MemoryHouse(instance="9f2c4b6d8e0a1357")
        self.house.add_connection("conn-5f0c9e1b7a3d2468", "alice-chat")
        self.house.events = EventBus(clock=lambda: EXAMPLE_TIME)
        self.channel = self.house.get("conn-5f0c9e1b7a3d2468", "chat")
        self.channel.max_message = protocol.MAX_MESSAGE
        self.house.row = lambda _owner, label, waiting: {
            "label": label, "state": "open", "waiting": waiting, "attached": True,
        }  # fmt: skip
        self.before = {
            "sent": lambda: self.channel.producer.hand_over(2),
            "acknowledged": lambda: self.channel.producer.acknowledge(2),
            "message": lambda: self.deliver(Row("hello", "a1b2c3d4e5f60718-1")),
            "gap": lambda: self.deliver(Row("", "", gap={"first": 2, "next": 5, "count": 3, "reason": "expired"})),
            "buffered_amount_low": self.fall,
            "event to the handle": self.publish,
        }

    def deliver(self, row):
        self.channel.stored.inbox.append(row)
        self.channel.receiver.pump()

    def fall(self):
        for amount in (100, 0):
            self.channel.watches[0].see(amount)

    def publish(self):
        data = {"direction": "in", "count": 3, "reason": "expired", "first": 2, "next": 5}
        self.house.publish("gap", data, self.channel)


def plain(frame):
    """A frame of the decoder as it is on the wire."""
    kind = {protocol.Request: 0, protocol.Response: 1, protocol.Notification: 2}[type(frame)]
    return [kind, *frame]


@pytest.fixture
async def stage(path):
    stage = Stage()
    server = Server(stage.house, path=path)
    await server.start()
    yield stage
    await server.stop()


async def test_a_daemon_says_its_part_of_the_dialogue(stage, path):
    async with raw_client(path, hello=False) as client:
        for vector in DIALOGUE:
            if vector["direction"] == "client":
                client.write(bytes.fromhex(vector["hex"]))
                continue
            stage.before.pop(vector["name"], lambda: None)()
            frame = await client.next()
            assert frame is not None, f"the socket is closed instead of: {vector['name']}"
            assert plain(frame) == revive(vector["value"]), vector["name"]
    assert not stage.before


@pytest.mark.parametrize("vector", REFUSED, ids=names(REFUSED))
async def test_a_daemon_refuses_as_the_vector_says(server, path, vector):
    async with raw_client(path, hello=vector["greeted"]) as client:
        client.write(bytes.fromhex(vector["hex"]))
        answer = await client.next()
        assert isinstance(answer, protocol.Response)
        assert (answer.msgid, answer.error["code"]) == (vector["msgid"], vector["code"])
        assert answer.result is None
        if vector["closes"]:
            assert await client.next() is None
        else:
            await client.hello()
            assert await client.result("ping") == {}


def test_every_kind_of_frame_stands_in_the_vectors():
    spoken = {(vector["direction"], vector["value"][1]) for vector in DIALOGUE if vector["value"][0] == 2}
    others = {"removed", "detached"}  # end of the dialogue's handle, or of a message of it
    assert spoken == {("client", name) for name in messages._FROM_CLIENT} | {
        ("daemon", name) for name in messages._FROM_DAEMON if name not in others
    }
