from __future__ import annotations

import pytest

from rondevud.durable.sdp import addresses, fingerprint, link_versions, mark
from rondevud.errors import TransportError

SHA_256 = "A1:" * 31 + "0b"
SHA_384 = "C3:" * 47 + "C3"

AIORTC = (
    "v=0\r\no=- 3941 3941 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0\r\na=msid-semantic:WMS *\r\n"
    "m=application 49170 UDP/DTLS/SCTP webrtc-datachannel\r\nc=IN IP4 192.0.2.7\r\na=mid:0\r\na=sctp-port:5000\r\n"
    "a=max-message-size:65536\r\na=candidate:1 1 udp 2130706431 192.0.2.7 49170 typ host\r\na=end-of-candidates\r\n"
    "a=ice-ufrag:Cx9Q\r\na=ice-pwd:4Wk3XKMBKmhmBHVxXKPNcC\r\n"
    f"a=fingerprint:sha-256 {SHA_256}\r\na=fingerprint:sha-384 {SHA_384}\r\na=fingerprint:sha-512 {SHA_384}\r\n"
    "a=setup:actpass\r\n"
)
"""As aiortc writes it: three fingerprints in the media section."""

LIBDATACHANNEL = (
    "v=0\r\no=rtc 3245 0 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0\r\na=group:LS 0\r\n"
    "a=msid-semantic:WMS *\r\na=ice-options:ice2,trickle\r\n"
    f"a=fingerprint:sha-256 {SHA_256}\r\n"
    "m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\nc=IN IP4 0.0.0.0\r\na=mid:0\r\na=sendrecv\r\n"
    "a=sctp-port:5000\r\na=max-message-size:262144\r\na=setup:actpass\r\na=ice-ufrag:aBcD\r\n"
    "a=ice-pwd:yTnGPDdCFJdXuFzLxPJbcA\r\n"
)
"""As libdatachannel writes it: one fingerprint, at session level."""

TEXTS = [AIORTC, LIBDATACHANNEL, AIORTC.replace("\r\n", "\n"), LIBDATACHANNEL.replace("\r\n", "\n")]
IDS = ["aiortc", "libdatachannel", "aiortc LF", "libdatachannel LF"]


@pytest.mark.parametrize("text", TEXTS, ids=IDS)
def test_marked_text_says_its_version_at_session_level_and_keeps_all_else(text):
    assert link_versions(text) == frozenset()
    marked = mark(text)
    assert link_versions(marked) == {1}
    lines = marked.splitlines()
    assert lines.index("a=x-rondevu-link:1") < next(i for i, line in enumerate(lines) if line.startswith("m="))
    lines.remove("a=x-rondevu-link:1")
    assert lines == text.splitlines()


@pytest.mark.parametrize("text", TEXTS, ids=IDS)
def test_mark_leaves_each_line_its_own_end(text):
    assert "\r\r" not in mark(text)
    assert "\n\n" not in mark(text).replace("\r\n", "\n")


@pytest.mark.parametrize("text", TEXTS, ids=IDS)
def test_fingerprint_is_the_sha_256_one_among_several(text):
    assert fingerprint(text) == bytes([0xA1] * 31 + [0x0B])
    assert fingerprint(mark(text)) == fingerprint(text)


def test_several_versions_are_read():
    assert link_versions(AIORTC.replace("t=0 0", "t=0 0\r\na=x-rondevu-link:1 2 17")) == {1, 2, 17}
    assert link_versions(mark(AIORTC, 3)) == {3}


def test_mark_in_the_media_section_is_not_one():
    assert link_versions(AIORTC + "a=x-rondevu-link:1\r\n") == frozenset()


@pytest.mark.parametrize(
    "line", ["a=x-rondevu-link:", "a=x-rondevu-link:one", "a=x-rondevu-link:1,2", "x-rondevu-link:1"]
)
def test_mark_that_is_none_makes_a_plain_peer(line):
    assert link_versions(AIORTC.replace("t=0 0", f"t=0 0\r\n{line}")) == frozenset()


def test_endless_numbers_are_not_read():
    text = AIORTC.replace("t=0 0", "t=0 0\r\na=x-rondevu-link:1 " + "9" * 5_000)
    assert link_versions(text) == {1}


@pytest.mark.parametrize(
    "text",
    ["", AIORTC.replace("sha-256", "sha-1"), AIORTC.replace(SHA_256, SHA_256[:-3]), AIORTC.replace("A1:", "XY:")],
)
def test_text_without_a_whole_sha_256_fingerprint_is_refused(text):
    with pytest.raises(TransportError, match="fingerprint"):
        fingerprint(text)


def test_addresses_are_those_of_candidates_in_their_usual_spelling():
    text = (
        "v=0\r\nc=IN IP4 192.0.2.9\r\n"
        "a=candidate:1 1 udp 2130706431 192.0.2.1 5000 typ host\r\n"
        "a=candidate:2 1 udp 2130706431 2001:DB8:0::1 5000 typ host\r\n"
        "a=candidate:3 1 udp 1694498815 198.51.100.1 5000 typ srflx raddr 192.0.2.2 rport 5000\r\n"
        "a=candidate:4 1 udp 2130706431 4d3c.local 5000 typ host\r\na=candidate:5 1\r\n"
    )
    assert addresses(text) == {"192.0.2.1", "2001:db8::1", "198.51.100.1"}
