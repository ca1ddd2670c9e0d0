from __future__ import annotations

import hashlib
import hmac
from dataclasses import replace

import pytest

from rondevud.durable.frames import Hello, RefuseCode
from rondevud.durable.handshake import Fingerprints, is_proof, judge_hello, prove
from rondevud.records import Role, SessionRecord

PRINTS = Fingerprints(b"o" * 32, b"a" * 32)
TOKEN = bytes(range(32))
KNOWN = SessionRecord("conn-1", Role.SERVICE, "alice/chat@1", b"s" * 16, TOKEN, link=100)


def hello(link=101, token=None, proof=None, session=KNOWN.session):
    return Hello(session, link, token, proof, "name", "daemon", 1000, 1.0)


def genuine(link=101, fingerprints=PRINTS):
    return hello(link, proof=prove("hello", TOKEN, KNOWN.session, link, fingerprints))


def refused(*arguments):
    refuse = judge_hello(*arguments)
    return refuse and refuse.code


def test_proof_is_the_hmac_of_the_design():
    message = b"hello" + KNOWN.session + (101).to_bytes(8, "big") + PRINTS.offer + PRINTS.answer
    assert prove("hello", TOKEN, KNOWN.session, 101, PRINTS) == hmac.new(TOKEN, message, hashlib.sha256).digest()


def test_proof_fits_its_word_link_and_connection_only():
    proof = prove("hello", TOKEN, KNOWN.session, 101, PRINTS)
    assert is_proof(proof, "hello", KNOWN, 101, PRINTS)
    assert not is_proof(proof, "welcome", KNOWN, 101, PRINTS)
    assert not is_proof(proof, "hello", KNOWN, 102, PRINTS)
    assert not is_proof(proof, "hello", replace(KNOWN, session=b"x" * 16), 101, PRINTS)
    assert not is_proof(proof, "hello", replace(KNOWN, token=b"x" * 32), 101, PRINTS)
    assert not is_proof(None, "hello", KNOWN, 101, PRINTS)


def test_known_session_is_resumed_with_proof_or_token():
    assert judge_hello(genuine(), KNOWN, PRINTS) is None
    assert judge_hello(hello(token=TOKEN), KNOWN, PRINTS) is None


def test_new_session_needs_a_token():
    assert judge_hello(hello(token=TOKEN), None, PRINTS) is None
    assert refused(genuine(), None, PRINTS) is RefuseCode.UNKNOWN_SESSION


@pytest.mark.parametrize("wrong", [{"token": b"x" * 32}, {"proof": b"x" * 32}])
def test_wrong_secret_is_answered_like_an_unknown_session(wrong):
    assert judge_hello(hello(**wrong), KNOWN, PRINTS) == judge_hello(genuine(), None, PRINTS)


def test_closed_session_is_unknown_whatever_the_hello_brings():
    closed = replace(KNOWN, closed=True)
    assert refused(hello(token=TOKEN), closed, PRINTS) is RefuseCode.UNKNOWN_SESSION
    assert refused(genuine(), closed, PRINTS) is RefuseCode.UNKNOWN_SESSION


@pytest.mark.parametrize("link", [99, 100])
def test_link_that_is_not_newer_is_told_the_latest(link):
    refuse = judge_hello(genuine(link), KNOWN, PRINTS)
    assert refuse is not None
    assert (refuse.code, refuse.link) == (RefuseCode.OLDER_LINK, 100)


def test_stranger_does_not_learn_the_latest_link():
    refuse = judge_hello(hello(1, proof=b"x" * 32), KNOWN, PRINTS)
    assert refuse is not None
    assert (refuse.code, refuse.link) == (RefuseCode.UNKNOWN_SESSION, 0)


@pytest.mark.parametrize(
    "theirs",
    [Fingerprints(b"M" * 32, b"a" * 32), Fingerprints(b"o" * 32, b"M" * 32), Fingerprints(b"a" * 32, b"o" * 32)],
    ids=["offer", "answer", "both swapped"],
)
def test_server_in_the_middle_can_pass_on_neither_hello_nor_welcome(theirs):
    """Each side of a man in the middle sees other certificates, so no proof made for one fits the other."""
    assert refused(genuine(fingerprints=theirs), KNOWN, PRINTS) is RefuseCode.UNKNOWN_SESSION
    welcome = prove("welcome", TOKEN, KNOWN.session, 101, theirs)
    assert not is_proof(welcome, "welcome", KNOWN, 101, PRINTS)
