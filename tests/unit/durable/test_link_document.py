"""docs/link.md and docs/link-vectors.json say what the code does, no more and no less."""

from __future__ import annotations

import hashlib
import hmac

import msgpack
import pytest

from rondevud.durable import dialling, frames, greeting, incoming, link, sdp
from rondevud.durable.effects import Execute, Transmit
from rondevud.durable.handshake import Fingerprints, judge_hello, prove
from rondevud.durable.incoming import InboxLimits
from rondevud.durable.link import LinkSettings, Session
from rondevud.errors import PeerError
from rondevud.records import (
    CreateChannel,
    Durability,
    LoadSessions,
    PeerKind,
    Reason,
    Role,
    SaveSession,
    SessionRecord,
    Stamp,
)
from rondevud.store.memory import MemoryTables
from rondevud.transport.base import MAX_RELIABILITY, RELIABLE
from tests.unit.vectors import load, revive, rows, sections

SECTIONS = sections("link.md")
VECTORS = load("link-vectors.json")
PROOF = VECTORS["proofs"][0]


def names(vectors):
    return [vector["name"] for vector in vectors]


# --- vectors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", VECTORS["good"], ids=names(VECTORS["good"]))
def test_a_good_frame_is_read_and_written(vector):
    data = bytes.fromhex(vector["hex"])
    assert msgpack.unpackb(data) == revive(vector["value"])
    assert frames.encode(frames.decode(data)).hex() == vector.get("written", vector["hex"])


@pytest.mark.parametrize("vector", VECTORS["bad"], ids=names(VECTORS["bad"]))
def test_a_bad_frame_is_refused_with_its_reason(vector):
    with pytest.raises(PeerError) as refused:
        frames.decode(bytes.fromhex(vector["hex"]))
    assert str(refused.value) == vector["error"]


def test_good_frames_are_of_every_kind_code_and_reason():
    values = [revive(vector["value"]) for vector in VECTORS["good"]]
    assert {value[0] for value in values} == set(frames._DECODERS)
    assert {value[1] for value in values if value[0] == 2} == set(frames.RefuseCode)
    assert {value[1] for value in values if value[0] == 5} == set(frames.GoodbyeCode)
    assert {value[3] for value in values if value[0] == 12} == set(Reason)


@pytest.mark.parametrize("vector", VECTORS["proofs"], ids=[vector["word"] for vector in VECTORS["proofs"]])
def test_a_proof_is_the_one_of_the_formula_and_of_the_code(vector):
    token, session, offer, answer = (bytes.fromhex(vector[key]) for key in ("token", "session", "offer", "answer"))
    message = vector["word"].encode() + session + vector["link"].to_bytes(8, "big") + offer + answer
    assert message.hex() == vector["message"]
    assert hmac.digest(token, message, hashlib.sha256).hex() == vector["proof"]
    assert prove(vector["word"], token, session, vector["link"], Fingerprints(offer, answer)).hex() == vector["proof"]


@pytest.mark.parametrize("vector", VECTORS["texts"], ids=names(VECTORS["texts"]))
def test_a_text_is_recognised(vector):
    assert sorted(sdp.link_versions(vector["sdp"])) == vector["versions"]
    assert sdp.fingerprint(vector["sdp"]).hex() == vector["fingerprint"]


# --- the example -----------------------------------------------------------------------------------------------------

EPOCHS = {Role.CONNECTING: bytes.fromhex("a1b2c3d4e5f60718"), Role.SERVICE: bytes.fromhex("0102030405060708")}
PRINTS = Fingerprints(bytes.fromhex(PROOF["offer"]), bytes.fromhex(PROOF["answer"]))
CLOCK = 1_700_000_000_000_000
STAMP = Stamp("boot", 0.0, 1_700_000_000.0)


class Side:
    """A daemon with one session that there has been a link of, a channel in it, and a store that does as it is told."""

    def __init__(self, role):
        self.name = "service" if role is Role.SERVICE else "connecting"
        record = SessionRecord(
            "conn-1", role, "alice/chat@1.0.0", bytes.fromhex(PROOF["session"]), bytes.fromhex(PROOF["token"]),
            link=PROOF["link"] - 1, welcomed=True, contacted=True, kind=PeerKind.LINK,
        )  # fmt: skip
        self.tables = MemoryTables()
        self.tables.execute(SaveSession(record))
        self.tables.execute(CreateChannel("conn-1", "chat", Durability.DISK, EPOCHS[role], b""))
        channels = [(channel, InboxLimits(), RELIABLE) for channel in self.tables.execute(LoadSessions()).channels]
        settings = LinkSettings(name="alice-chat", daemon="rondevud/0.1.0")
        self.machine = Session(record, channels, settings, clock_us=CLOCK, random=bytes)

    def says(self):
        """The frames that it sends now."""
        said = []
        while effects := self.machine.flush(0.0, STAMP):
            for effect in effects:
                if isinstance(effect, Execute):
                    self.machine.completed(effect.operation, self.tables.execute(effect.operation))
                elif isinstance(effect, Transmit):
                    said.append(effect.data)
        return said


def play():
    """A link is resumed, a text and four bytes go over it, the connecting daemon stops: all frames, with who sends them."""
    connecting, service = Side(Role.CONNECTING), Side(Role.SERVICE)
    spoken = []

    def exchange():
        while said := [(side, frame) for side in (connecting, service) for frame in side.says()]:
            for side, frame in said:
                spoken.append((side.name, frame))
                hearer = service if side is connecting else connecting
                if isinstance(hello := frames.decode(frame), frames.Hello):
                    assert judge_hello(hello, service.machine.record, PRINTS) is None
                    service.machine.accept_link(1, hello, PRINTS, 0.0, resumed=True)
                else:
                    hearer.machine.receive(1, frame, 0.0)

    connecting.machine.open_link(1, PRINTS, 0.0, 0)
    exchange()
    put = connecting.machine.lanes.put("chat", ("hi", b"\x00\xff\x00\xff"), STAMP)
    connecting.machine.completed(put, connecting.tables.execute(put))
    exchange()
    connecting.machine.ping(0.0)
    exchange()
    connecting.machine.say_goodbye(frames.GoodbyeCode.RESTARTING, "the daemon stops", 0.0)
    exchange()
    return spoken


def test_the_example_is_what_two_daemons_say():
    shown = [(vector["from"], bytes.fromhex(vector["hex"])) for vector in VECTORS["example"]]
    assert play() == shown
    for vector in VECTORS["example"]:
        assert msgpack.unpackb(bytes.fromhex(vector["hex"])) == revive(vector["value"])


def test_the_example_of_the_document_is_that_of_the_vectors():
    shown = rows(SECTIONS["Example"], "from")
    assert shown == [[vector["from"], vector["hex"], vector["meaning"]] for vector in VECTORS["example"]]


# --- tables ----------------------------------------------------------------------------------------------------------


def test_kinds_are_those_of_the_code():
    documented = {int(row[0]): row[1] for row in rows(SECTIONS["Frames"], "kind")}
    values = [revive(vector["value"]) for vector in VECTORS["good"]]
    spoken = {value[0]: type(frames.decode(msgpack.packb(value))).__name__.lower() for value in values}
    assert documented == spoken


def test_fields_are_those_that_frames_have():
    documented = {word for row in rows(SECTIONS["Frames"], "field") for word in row[0].replace("`", "").split(", ")}
    values = [revive(vector["value"]) for vector in VECTORS["good"]]
    maps = {key for value in values for part in value if isinstance(part, dict) for key in part} - {"colour"}
    positions = {name for frame in (frames.Data, frames.Piece, frames.Ack, frames.Skip) for name in frame._fields}
    assert documented == maps | (positions - {"payloads", "messages"}) | {"count"}


def test_codes_and_reasons_are_those_of_the_code():
    assert [row[0] for row in rows(SECTIONS["Refuse"], "code")] == list(frames.RefuseCode)
    assert [row[0] for row in rows(SECTIONS["Goodbye"], "code")] == list(frames.GoodbyeCode)
    assert [row[0] for row in rows(SECTIONS["Rules"], "reason of a skip")] == list(Reason)


def test_limits_are_those_of_the_code():
    assert greeting.HELLO_TIMEOUT == link.HELLO_TIMEOUT
    limits = {
        "frame": frames.MAX_FRAME,
        "pack": frames.PACK,
        "label": frames.MAX_LABEL,
        "room": incoming.ROOM,
        "unstored bytes": incoming.UNSTORED_BYTES,
        "unstored messages": incoming.UNSTORED_ITEMS,
        "reliability": MAX_RELIABILITY,
        "hellos": link.HELLOS,
        "hello": link.HELLO_TIMEOUT,
        "connecting": greeting.CONNECTING,
        "goodbye": link.GOODBYE_TIMEOUT,
        "goodbye at most": link.GOODBYE_MOST,
        "suspect": link.SUSPECT_AFTER,
        "dead": link.DEAD_AFTER,
        "slowest heartbeat": link.HEARTBEAT_MOST,
        "attempt": dialling.ATTEMPT,
    }
    assert {row[0]: int(row[1].replace(",", "")) for row in rows(SECTIONS["Limits"], "limit")} == limits


def test_proofs_of_the_document_are_those_of_the_vectors():
    hello, welcome = VECTORS["proofs"]
    shown = {row[0]: row[1:] for row in rows(SECTIONS["Proofs"], "")}
    assert shown == {key: [str(hello[key]), str(welcome[key])] for key in hello if key != "word"}
