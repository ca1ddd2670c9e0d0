"""The codec of the socket: what goes in comes out, and what is wrong is named once."""

from __future__ import annotations

import struct
import tracemalloc

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rondevu_client.errors import BadFrame, BadMessage
from rondevu_client.messages import check_from_client, check_from_daemon
from rondevu_client.protocol import (
    FRAME_OVERHEAD,
    Decoder,
    Notification,
    Request,
    Response,
    encode_error,
    encode_notification,
    encode_request,
    encode_response,
)

scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary()
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
)
maps = st.dictionaries(st.text(), values, max_size=4)
frames = st.one_of(
    st.builds(
        lambda i, m, p: (encode_request(i, m, p), Request(i, m, [p])), st.integers(0, 2**32 - 1), st.text(), maps
    ),
    st.builds(lambda i, r: (encode_response(i, r), Response(i, None, r)), st.integers(0, 2**32 - 1), values),
    st.builds(lambda m, p: (encode_notification(m, p), Notification(m, p)), st.text(), st.lists(values, max_size=5)),
)


def decode(*chunks, decoder=None):
    decoder = decoder or Decoder()
    return [frame for chunk in chunks for frame in decoder.frames(chunk)]


@given(st.lists(frames, max_size=5), st.data())
def test_frames_cut_anywhere_come_out_as_they_went_in(sent, data):
    stream = b"".join(encoded for encoded, _ in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    chunks = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert decode(*chunks) == [frame for _, frame in sent]


def test_an_error_carries_code_message_and_data():
    assert decode(encode_error(None, "bad_frame", "no", {"at": 1})) == [
        Response(None, {"code": "bad_frame", "message": "no", "data": {"at": 1}}, None)
    ]


@pytest.mark.parametrize(
    ("stream", "code", "words"),
    [
        (b"\xc1", "bad_frame", "not msgpack"),
        (b"\x93\x02\xa4send\xc1", "bad_frame", "not msgpack"),
        (msgpack.packb([2, "send", [1, 1, [b"\xff"]]], use_bin_type=False), "bad_frame", "UTF-8"),
        (b"\x93\x02\xa4send\xc6\xff\xff\xff\xff", "frame_too_large", "4294967295 bytes"),
        (b"\x93\x02\xa4send\xdb\xff\xff\xff\xff", "frame_too_large", "4294967295 bytes"),
        (b"\x93\x02\xa4send\xdd\xff\xff\xff\xff", "frame_too_large", "holds too much"),
        (b"\x93\x02\xa4send\xdf\xff\xff\xff\xff", "frame_too_large", "holds too much"),
        (b"\x91" * 17 + b"\x01", "bad_frame", "nested deeper than 16"),
        (b"\x91" * 5000, "bad_frame", "nested deeper than 16"),
        (b"\x81\x01\x02", "bad_frame", "can be used"),
    ],
)
def test_what_is_no_frame_is_named_once_and_nothing_behind_it_is_read(stream, code, words):
    decoder = Decoder()
    good = encode_notification("ack", [1, 2])
    with pytest.raises(BadFrame, match=words) as caught:
        decode(good + stream + good * 3, decoder=decoder)
    assert caught.value.code == code
    assert decode(good, decoder=decoder) == []


def test_frames_before_a_bad_one_are_delivered():
    good = encode_notification("ack", [1, 2])
    stream = Decoder().frames(good + good + b"\xc1")
    assert [next(stream), next(stream)] == [Notification("ack", [1, 2])] * 2
    with pytest.raises(BadFrame):
        next(stream)


def test_depth_16_is_taken_and_17_is_not():
    nested = []
    for _ in range(13):
        nested = [nested]
    assert decode(encode_notification("x", [nested])) == [Notification("x", [nested])]
    with pytest.raises(BadFrame, match="nested"):
        decode(encode_notification("x", [[nested]]))


def test_a_frame_of_exactly_the_limit_is_taken_and_one_byte_more_is_not():
    overhead = len(encode_notification("x", [b"\0" * 100_000])) - 100_000
    size = 1000 + FRAME_OVERHEAD - overhead
    (frame,) = decode(encode_notification("x", [b"\0" * size]), decoder=Decoder(1000))
    assert len(frame.params[0]) == size
    with pytest.raises(BadFrame, match="longer") as caught:
        decode(encode_notification("x", [b"\0" * (size + 1)]), decoder=Decoder(1000))
    assert caught.value.code == "frame_too_large"


def test_many_small_values_do_not_make_a_frame_longer_than_the_limit():
    endless = b"\x93\x02\xa1x\xdc" + struct.pack(">H", 60_000) + encode_notification("x", [b"\0" * 200]) * 500
    with pytest.raises(BadFrame) as caught:
        decode(*[endless[i : i + 1000] for i in range(0, len(endless), 1000)], decoder=Decoder(1000))
    assert caught.value.code == "frame_too_large"


def test_more_elements_than_allowed_are_refused_before_they_come():
    with pytest.raises(BadFrame, match="holds too much"):
        decode(b"\x93\x02\xa1x\xdc" + struct.pack(">H", 5000), decoder=Decoder(max_elements=4096))


@pytest.mark.parametrize(
    ("value", "msgid", "words"),
    [
        (5, None, "array"),
        ([], None, "array"),
        ({"a": 1}, None, "array"),
        ([3, 1, 2], None, "begins with 0"),
        ([True, "x", []], None, "begins with 0"),
        ([0, -1, "x", []], None, "msgid"),
        ([0, "1", "x", []], None, "msgid"),
        ([0, 2**32, "x", []], None, "msgid"),
        ([0], None, "msgid"),
        ([0, 7, "x"], 7, "4 elements"),
        ([0, 7, b"x", []], 7, "method is text"),
        ([0, 7, "x", {}], 7, "array"),
        ([1, 7, None], None, "4 elements"),
        ([1, "7", None, None], None, "msgid"),
        ([2, "x"], None, "3 elements"),
        ([2, 1, []], None, "method is text"),
        ([2, "x", {}], None, "array"),
        ([2, "x", "secret text"], None, "not text$"),
    ],
)
def test_a_frame_of_a_wrong_shape_is_an_error_in_its_place(value, msgid, words):
    good = encode_notification("ack", [1, 2])
    wrong, behind = decode(msgpack.packb(value) + good)
    assert isinstance(wrong, BadMessage)
    assert wrong.msgid == msgid
    with pytest.raises(BadMessage, match=words):
        raise wrong
    assert behind == Notification("ack", [1, 2])


@pytest.mark.parametrize("value", [object(), "\ud800", 2**64])
def test_what_msgpack_cannot_carry_is_refused_where_it_is_sent(value):
    with pytest.raises(BadMessage, match="cannot be sent"):
        encode_notification("x", [value])


@pytest.mark.parametrize(
    ("method", "params", "words"),
    [
        ("sned", [1, 1, []], "no notification 'sned'"),
        ("send", [1, 1], "takes"),
        ("send", [1, 1, [], {}, 5], "takes"),
        ("send", ["1", 1, []], "handle must be an integer, not text"),
        ("send", [1, True, []], "seq must be an integer, not True"),
        ("send", [1, -1, []], "from 0"),
        ("send", [1, 2**63, []], "from 0"),
        ("send", [1, 1, "payload"], "payloads must be an array"),
        ("send", [1, 1, [], 5], "options must be a map"),
        ("ack", [1], "takes"),
        ("credit", [1, 1.5], "n must be an integer"),
    ],
)
def test_a_notification_of_a_wrong_shape_is_named(method, params, words):
    with pytest.raises(BadMessage, match=words):
        check_from_client(method, params)


def test_what_a_newer_daemon_adds_is_ignored():
    assert not check_from_daemon("hologram", [1])
    assert check_from_daemon("accepted", [1, 2, "more"])
    assert check_from_daemon("event", [1, 2, "state", {}, 1767225600.5, "more"])
    with pytest.raises(BadMessage, match="row"):
        check_from_daemon("message", [1, 1, [["payload", "id"]]])


def test_an_older_daemon_does_not_say_when_an_event_happened():
    assert check_from_daemon("event", [1, 2, "state", {}])
    with pytest.raises(BadMessage, match="at must be a float"):
        check_from_daemon("event", [1, 2, "state", {}, "noon"])
    with pytest.raises(BadMessage, match="event has 5 parameters, not 3"):
        check_from_daemon("event", [1, 2, "state"])


@given(st.lists(frames, min_size=1, max_size=3), st.data())
def test_a_frame_that_comes_byte_by_byte_claims_nothing_it_does_not_hold(sent, data):
    """Good frames pass the look at unfinished ones with limits as tight as they are themselves."""
    stream = b"".join(encoded for encoded, _ in sent)
    decoder = Decoder(0)
    if any(len(encoded) > FRAME_OVERHEAD for encoded, _ in sent):
        return
    size = data.draw(st.integers(1, 7))
    chunks = [stream[i : i + size] for i in range(0, len(stream), size)]
    assert decode(*chunks, decoder=decoder) == [frame for _, frame in sent]


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_claim_of_4_gib_is_refused_when_its_length_is_complete_however_it_is_cut(cut):
    claim = b"\x93\x02\xa4send\xc6\xff\xff\xff\xff"
    decoder = Decoder()
    assert decode(claim[:cut], decoder=decoder) == []
    with pytest.raises(BadFrame, match="4294967295"):
        decode(claim[cut:], decoder=decoder)


def test_nesting_is_refused_before_the_frame_is_complete():
    with pytest.raises(BadFrame, match="nested"):
        decode(b"\x92" * 17)


def test_a_decoder_that_nothing_was_given_takes_little_memory():
    tracemalloc.start()
    try:
        decoders = [Decoder() for _ in range(10)]
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken < len(decoders) * 100_000
