from __future__ import annotations

from contextlib import suppress

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rondevud.durable import frames
from rondevud.durable.frames import (
    MAX_FRAME,
    MAX_LABEL,
    MAX_LINK,
    MAX_NUMBER,
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
    Welcome,
    decode,
    encode,
    valid_label,
)
from rondevud.errors import PeerError
from rondevud.records import Durability, Reason, payload_size
from rondevud.transport.base import ChannelOptions

NUMBERS = st.integers(0, MAX_NUMBER)
SEQS = st.integers(1, MAX_NUMBER - 1000)
LINKS = st.integers(1, MAX_LINK)
TEXT = st.text(st.characters(codec="utf-8"), max_size=60)
LABELS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=60)
SECONDS = st.floats(0.001, 1e9)
EPOCHS = st.binary(min_size=8, max_size=8)
SECRETS = st.binary(min_size=32, max_size=32)
PAYLOADS = st.one_of(st.binary(max_size=100), TEXT, st.none())


@st.composite
def hellos(draw):
    secret = draw(SECRETS)
    token, proof = draw(st.sampled_from([(secret, None), (None, secret)]))
    session = draw(st.binary(min_size=16, max_size=16))
    return Hello(session, draw(LINKS), token, proof, draw(TEXT), draw(TEXT), draw(SEQS), draw(SECONDS))


@st.composite
def channels(draw):
    recv_next = draw(NUMBERS)
    peer_epoch = draw(EPOCHS) if recv_next else draw(st.one_of(EPOCHS, st.just(b"")))
    count = draw(NUMBERS) if recv_next else 0
    durability = draw(st.sampled_from(Durability))
    return Channel(draw(LABELS), draw(EPOCHS), peer_epoch, recv_next, count, draw(NUMBERS), durability)


@st.composite
def pieces(draw):
    chunk = draw(st.binary(min_size=1, max_size=100))
    offset = draw(st.integers(0, 10_000))
    total = offset + len(chunk) + draw(st.integers(0, 10_000))
    return Piece(draw(LABELS), draw(SEQS), offset, total, draw(st.booleans()), chunk)


FRAMES = st.one_of(
    hellos(),
    st.builds(
        Welcome, st.booleans(), LINKS, st.one_of(st.none(), SECRETS), TEXT, SEQS, SECONDS, st.one_of(st.none(), SECONDS)
    ),
    st.builds(Refuse, st.sampled_from(RefuseCode), TEXT, LINKS),
    st.builds(Ping, NUMBERS),
    st.builds(Pong, NUMBERS),
    st.builds(Goodbye, st.sampled_from(GoodbyeCode), TEXT),
    channels(),
    st.builds(Data, LABELS, SEQS, st.lists(PAYLOADS, min_size=1, max_size=10)),
    pieces(),
    st.builds(Ack, LABELS, NUMBERS, NUMBERS),
    st.builds(Skip, LABELS, SEQS, st.sampled_from(Reason), st.one_of(st.none(), NUMBERS)),
)


@given(FRAMES)
def test_every_frame_comes_back_as_it_was(frame):
    again = decode(encode(frame))
    assert again == frame
    assert type(again) is type(frame)


@given(LABELS, SEQS, st.lists(PAYLOADS, min_size=1, max_size=10))
def test_short_way_to_data_makes_the_same_bytes(label, seq, payloads):
    assert frames.data_frame(label, seq, payloads) == encode(Data(label, seq, payloads))


@given(st.binary(max_size=200))
def test_random_bytes_are_a_frame_or_the_peers_error(data):
    with suppress(PeerError):
        decode(data)


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), TEXT, st.binary(max_size=40)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.one_of(TEXT, st.integers(0, 9)), inner)),
    max_leaves=10,
)


@given(st.integers(0, 13), st.lists(VALUES, max_size=7))
def test_random_values_are_a_frame_or_the_peers_error(kind, values):
    with suppress(PeerError):
        decode(msgpack.packb([kind, *values]))


@given(FRAMES, st.data())
def test_frame_with_one_value_changed_is_a_frame_or_the_peers_error(frame, data):
    array = msgpack.unpackb(encode(frame))
    place = data.draw(st.integers(1, len(array) - 1))
    if isinstance(array[place], dict):
        array[place][data.draw(st.sampled_from(sorted(array[place])))] = data.draw(VALUES)
    else:
        array[place] = data.draw(VALUES)
    with suppress(PeerError):
        decode(msgpack.packb(array))


HELLO = {"session": b"s" * 16, "link": 1, "token": b"t" * 32, "max_message": 1, "heartbeat": 1.0}
WELCOME = {"resumed": True, "link": 1, "max_message": 1, "heartbeat": 1}
CHANNEL = {"epoch": b"e" * 8, "peer_epoch": b"p" * 8, "recv_next": 1, "recv_count": 1, "room": 1, "durability": "disk"}
TOO_MUCH = 2**63


def hello(**fields):
    return [0, {**HELLO, **fields}]


def welcome(**fields):
    return [1, {**WELCOME, **fields}]


def channel(**fields):
    return [8, "a", {**CHANNEL, **fields}]


@pytest.mark.parametrize(
    ("array", "says"),
    [
        ({}, "not an array"),
        ([], "not an array"),
        (7, "not an array"),
        (["0", {}], "unknown frame kind '0'"),
        ([True, 1], "unknown frame kind True"),
        ([6], "unknown frame kind 6"),
        ([13], "unknown frame kind 13"),
        ([[]], "unknown frame kind"),
        ([0], "hello has 1 elements instead of 2"),
        ([0, {}, 1], "hello has 3 elements instead of 2"),
        ([0, []], "hello has no map"),
        (hello(session=b"s" * 15), "hello's session is not 16 bytes"),
        (hello(session="s" * 16), "hello's session is not 16 bytes"),
        (hello(link=0), "hello's link"),
        (hello(link=True), "hello's link"),
        (hello(link=TOO_MUCH), "hello's link"),
        (hello(link=MAX_LINK + 1), "hello's link leaves no room"),
        (hello(token=None), "exactly one of token and proof"),
        (hello(proof=b"p" * 32), "exactly one of token and proof"),
        (hello(token=b"t"), "hello's token is not 32 bytes"),
        (hello(token=None, proof=b"p"), "hello's proof is not 32 bytes"),
        (hello(name=b"n"), "hello's name is not text"),
        (hello(daemon=1), "hello's daemon is not text"),
        (hello(max_message=0), "hello's max_message"),
        (hello(heartbeat=0), "hello's heartbeat is not a number of seconds"),
        (hello(heartbeat=float("nan")), "hello's heartbeat"),
        (hello(heartbeat=float("inf")), "hello's heartbeat"),
        (hello(heartbeat=True), "hello's heartbeat"),
        ([1, 1], "welcome has no map"),
        (welcome(resumed=1), "welcome's resumed is not a boolean"),
        (welcome(link=-1), "welcome's link"),
        (welcome(link=MAX_LINK + 1), "welcome's link leaves no room"),
        (welcome(proof=b""), "welcome's proof is not 32 bytes"),
        (welcome(daemon=None), "welcome's daemon is not text"),
        (welcome(max_message=1.5), "welcome's max_message"),
        (welcome(heartbeat="1"), "welcome's heartbeat"),
        (welcome(session_expiry=-1), "welcome's session_expiry"),
        ([2, "denied", "no"], "refuse has 3 elements instead of 4"),
        ([2, "nonsense", "no", None], "refuse's code 'nonsense' is unknown"),
        ([2, 1, "no", None], "refuse's code is not text"),
        ([2, "denied", None, None], "refuse's reason is not text"),
        ([2, "denied", "no", -1], "refuse's link"),
        ([2, "older_link", "no", MAX_LINK + 1], "refuse's link leaves no room"),
        ([3], "ping has 1 elements instead of 2"),
        ([3, "1"], "ping's number"),
        ([4, 1, 2], "pong has 3 elements instead of 2"),
        ([4, -1], "pong's number"),
        ([5, "closing"], "goodbye has 2 elements instead of 3"),
        ([5, "bye", ""], "goodbye's code 'bye' is unknown"),
        ([5, "closing", 1], "goodbye's reason is not text"),
        ([8, "a"], "channel has 2 elements instead of 3"),
        ([8, "a", 1], "channel has no map"),
        ([8, "", CHANNEL], "a label is not 1 to 255 bytes"),
        ([8, b"a", CHANNEL], "a label is not 1 to 255 bytes"),
        ([8, "ü" * 128, CHANNEL], "a label is not 1 to 255 bytes"),
        (channel(epoch=b"e"), "channel's epoch is not 8 bytes"),
        (channel(peer_epoch=b""), "channel's peer_epoch is not 8 bytes"),
        (channel(peer_epoch=None), "recv_next without a peer_epoch"),
        (channel(recv_next=-1), "channel's recv_next"),
        (channel(recv_count="1"), "channel's recv_count"),
        (channel(room=None), "channel's room"),
        (channel(durability="paper"), "channel's durability 'paper' is unknown"),
        (channel(durability=1), "channel's durability is not text"),
        ([9, "a", 1], "data has 3 elements instead of 4"),
        ([9, "a", 1, []], "data has no list of payloads"),
        ([9, "a", 1, "text"], "data has no list of payloads"),
        ([9, "a", 0, ["x"]], "data's number"),
        ([9, "a", MAX_NUMBER, ["x"]], "data's numbers run over"),
        ([9, "a", 1, [1]], "a payload is int, not text, binary or nil"),
        ([9, "a", 1, [["x"]]], "a payload is list, not text, binary or nil"),
        ([9, "", 1, ["x"]], "a label is not 1 to 255 bytes"),
        ([10, "a", 1, 0, 1, False], "piece has 6 elements instead of 7"),
        ([10, "a", 1, 0, 1, 0, b"x"], "piece's text is not a boolean"),
        ([10, "a", 1, 0, 1, False, "x"], "piece's chunk is not binary, or empty"),
        ([10, "a", 1, 0, 1, False, b""], "piece's chunk is not binary, or empty"),
        ([10, "a", 1, -1, 1, False, b"x"], "piece's offset"),
        ([10, "a", 1, 0, 0, False, b"x"], "piece's total"),
        ([10, "a", 1, 1, 1, False, b"x"], "runs over its message's total"),
        ([10, "a", 0, 0, 1, False, b"x"], "piece's number"),
        ([11, "a", 1], "ack has 3 elements instead of 4"),
        ([11, "a", -1, 1], "ack's recv_next"),
        ([11, "a", 1, "much"], "ack's room"),
        ([12, "a", 1, "lost"], "skip has 4 elements instead of 5"),
        ([12, "a", 0, "lost", 1], "skip's next"),
        ([12, "a", 1, "stolen", 1], "skip's reason 'stolen' is unknown"),
        ([12, "a", 1, None, 1], "skip's reason is not text"),
        ([12, "a", 1, "lost", -1], "skip's count"),
    ],
)
def test_malformed_frame_is_refused_by_name(array, says):
    with pytest.raises(PeerError) as caught:
        decode(msgpack.packb(array))
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x92\x03",
        b"\x91\xa2\xff\xfe",
        b"\x91" * 5_000,
        b"\x92\x03\x01\x01",
        b"\x93\x08\xa1a\x81\x90\x01",
    ],
)
def test_what_is_not_msgpack_is_refused(data):
    with pytest.raises(PeerError, match=r"not msgpack|unknown frame kind"):
        decode(data)


def test_text_message_is_refused():
    with pytest.raises(PeerError, match="a text message"):
        decode("[3, 1]")


def test_largest_frame_is_taken_and_one_byte_more_is_not():
    room = MAX_FRAME - len(encode(Data("a", 1, [b"x" * 60_000]))) + 60_000
    largest = encode(Data("a", 1, [b"x" * room]))
    assert len(largest) == MAX_FRAME
    assert decode(largest) == Data("a", 1, [b"x" * room])
    with pytest.raises(PeerError, match=f"a frame of {MAX_FRAME + 1} bytes"):
        decode(encode(Data("a", 1, [b"x" * (room + 1)])))


def test_unknown_keys_are_ignored():
    assert decode(msgpack.packb(hello(colour="red", proof=None))) == decode(msgpack.packb(hello()))
    assert decode(msgpack.packb(channel(colour="red"))) == decode(msgpack.packb(channel()))


def test_channel_without_epoch_is_an_unreliable_one():
    frame = decode(msgpack.packb([8, "a", {"ordered": False, "max_retransmits": 0}]))
    options = ChannelOptions(ordered=False, max_retransmits=0)
    assert frame == Channel("a", b"", b"", 0, 0, 0, Durability.MEMORY, options)
    assert decode(encode(frame)) == frame


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({}, "channel is reliable and has no epoch"),
        ({"ordered": 0}, "channel's ordered is not a boolean"),
        ({"max_retransmits": -1}, "a channel's reliability is not a number"),
        ({"max_packet_life_time": 65_536}, "a channel's reliability is over 65535"),
        ({"max_retransmits": 0, "max_packet_life_time": 0}, "both max_retransmits and max_packet_life_time"),
    ],
)
def test_options_of_an_unreliable_channel_are_judged(options, problem):
    with pytest.raises(PeerError, match=problem):
        decode(msgpack.packb([8, "a", options]))


def test_whole_numbers_of_seconds_are_taken():
    assert decode(msgpack.packb(welcome(session_expiry=60))).session_expiry == 60.0


def test_label_may_have_255_bytes_and_no_more():
    assert valid_label("a" * MAX_LABEL)
    assert valid_label("ü" * 127)
    assert not valid_label("ü" * 128)
    assert not valid_label("")
    assert not valid_label(b"a")


@given(PAYLOADS)
def test_size_of_a_payload_is_that_of_its_bytes(payload):
    assert payload_size(payload) == len((payload or b"") if not isinstance(payload, str) else payload.encode())
