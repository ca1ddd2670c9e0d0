from __future__ import annotations

import pytest

from rondevud.errors import TransportError
from rondevud.transport.sdp import MAX_CANDIDATES, MAX_SDP, Candidate, check_description, parse_candidate

FINGERPRINT = "a=fingerprint:sha-256 " + ":".join(["0A"] * 32)
OFFER = [
    "v=0",
    "o=- 1 1 IN IP4 0.0.0.0",
    "s=-",
    "t=0 0",
    "a=x-rondevu-link:1",
    "m=application 9 UDP/DTLS/SCTP webrtc-datachannel",
    "c=IN IP4 0.0.0.0",
    "a=mid:0",
    "a=sctp-port:5000",
    "a=ice-ufrag:abcd",
    "a=ice-pwd:abcdefghijklmnopqrstuv",
    FINGERPRINT,
    "a=setup:actpass",
]


def text(*more: str, without: str = "\0", swap: tuple[str, str] = ("\0", "")) -> str:
    lines = [line.replace(*swap) for line in OFFER if not line.startswith(without)]
    return "\n".join([*lines, *more])


class TestCandidates:
    @pytest.mark.parametrize(
        ("line", "expected"),
        [
            (
                "candidate:842163049 1 udp 1677729535 192.0.2.7 46154 typ srflx raddr 10.0.0.1 rport 46154 generation 0",
                Candidate("842163049", 1677729535, "192.0.2.7", 46154, "srflx"),
            ),
            ("a=candidate:1 1 UDP 1 2001:DB8::1 1 typ host\r\n", Candidate("1", 1, "2001:db8::1", 1, "host")),
            (
                "candidate:x 1 udp 4294967295 192.0.2.7 65535 typ relay",
                Candidate("x", 2**32 - 1, "192.0.2.7", 65535, "relay"),
            ),
        ],
    )
    def test_usable_ones_are_read(self, line, expected):
        assert parse_candidate(line) == expected

    @pytest.mark.parametrize(
        "line",
        [
            "",
            "rubbish",
            "candidate:1 1 udp 1 5b1a2a1e-79a4-4a4f-9ad4-f9bd01d5e6a4.local 5000 typ host",
            "candidate:1 1 tcp 1 192.0.2.7 9 typ host tcptype active",
            "candidate:1 2 udp 1 192.0.2.7 5000 typ host",
            "candidate:1 1 udp 1 192.0.2.7 0 typ host",
            "candidate:1 1 udp 1 192.0.2.7 65536 typ host",
            "candidate:1 1 udp 4294967296 192.0.2.7 5000 typ host",
            "candidate:1 1 udp " + "9" * 5000 + " 192.0.2.7 5000 typ host",
            "candidate:1 1 udp \u0661 192.0.2.7 5000 typ host",
            "candidate:1 1 udp 1 0.0.0.0 5000 typ host",
            "candidate:1 1 udp 1 224.0.0.251 5353 typ host",
            "candidate:1 1 udp 1 fe80::1 5000 typ host",
            "candidate:1 1 udp 1 2001:db8::1%eth0 5000 typ host",
            "candidate:1 1 udp 1 192.0.2.7 5000 typ prflx",
            "candidate:1 1 udp 1 192.0.2.7 5000 host typ",
        ],
    )
    def test_unusable_ones_are_not(self, line):
        assert parse_candidate(line) is None


class TestDescriptions:
    def test_a_good_one_keeps_all_its_lines(self):
        assert check_description(text(), "offer").text.splitlines() == OFFER

    def test_every_line_ends_the_way_sdp_wants(self):
        assert check_description(text(), "offer").text.count("\r\n") == len(OFFER)

    def test_bad_candidates_and_the_end_of_them_are_taken_out_and_counted(self):
        good = "a=candidate:1 1 udp 1 192.0.2.7 5000 typ host"
        bad = "a=candidate:1 1 udp 1 x.local 5000 typ host"
        result = check_description(text(bad, good, "a=candidate:", "a=end-of-candidates"), "offer")
        assert result.text.splitlines() == [*OFFER, good]
        assert (result.candidates, result.ignored) == (1, 2)

    def test_no_more_candidates_than_the_limit_are_taken(self):
        lines = [f"a=candidate:1 1 udp 1 192.0.2.7 {port} typ host" for port in range(1, MAX_CANDIDATES + 11)]
        result = check_description(text(*lines), "offer")
        assert (result.candidates, result.ignored) == (MAX_CANDIDATES, 10)

    def test_credentials_may_stand_at_session_level(self):
        moved = [OFFER[0], *OFFER[9:], *OFFER[1:9]]
        assert check_description("\n".join(moved), "offer").text.splitlines() == moved

    @pytest.mark.parametrize("group", ["BUNDLE 0", "BUNDLE 0 1", "BUNDLE 1", "BUNDLE", "", "LS 1 0"])
    def test_any_group_is_taken_that_does_not_put_the_data_section_behind_another(self, group):
        assert check_description(text(f"a=group:{group}"), "offer").text.splitlines()[-1] == f"a=group:{group}"

    def test_the_older_form_of_the_data_section_is_taken(self):
        older = text(without="a=sctp-port", swap=("UDP/DTLS/SCTP webrtc-datachannel", "DTLS/SCTP 5000"))
        assert "DTLS/SCTP 5000" in check_description(older, "offer").text

    @pytest.mark.parametrize(
        ("bad", "complaint"),
        [
            ("", "not an SDP"),
            ("rubbish", "not an SDP"),
            (text() + "x" * MAX_SDP, "characters long"),
            (text(without="m="), "no data section"),
            (
                text(swap=("m=application 9 UDP/DTLS/SCTP webrtc-datachannel", "m=audio 9 UDP/TLS/RTP/SAVPF 111")),
                "no data",
            ),
            (text("m=audio 9 UDP/TLS/RTP/SAVPF 111"), "2 media sections"),
            (text(swap=("UDP/DTLS/SCTP", "UDP/TLS")), "not SCTP over DTLS"),
            (text(swap=("application 9", "application 0")), "rejected"),
            (text(without="a=sctp-port"), "SCTP port"),
            (text(swap=("a=sctp-port:5000", "a=sctp-port:70000")), "SCTP port"),
            (text("a=group:BUNDLE other 0"), "bundled with one that is not there: 'other'"),
            (text(without="a=ice-ufrag"), "ICE user name"),
            (text(without="a=ice-pwd"), "ICE password"),
            (text("a=ice-pwd:"), "ICE password"),
            (text("a=ice-ufrag:" + "x" * 257), "ICE user name"),
            (text(without="a=fingerprint"), "fingerprint"),
            (text(swap=("sha-256", "sha-1")), "fingerprint"),
            (text(swap=("0A:0A", "zz:0A")), "fingerprint"),
            (text(without="a=setup"), "DTLS role"),
            (text(swap=("actpass", "holdconn")), "DTLS role"),
        ],
    )
    def test_unusable_ones_are_refused_by_name(self, bad, complaint):
        with pytest.raises(TransportError, match=complaint) as caught:
            check_description(bad, "offer")
        assert "offer" in str(caught.value)
        assert len(str(caught.value)) < 300

    def test_an_answer_must_have_chosen_its_role(self):
        with pytest.raises(TransportError, match="unusable answer: DTLS role"):
            check_description(text(), "answer")
        assert check_description(text(swap=("actpass", "active")), "answer")
