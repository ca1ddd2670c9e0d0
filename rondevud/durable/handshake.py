"""Who may speak for a session: tokens, proofs, and what a service answers to a hello.

``proof`` = HMAC-SHA256(token, word ‖ session ‖ link as 8 bytes, big-endian ‖ fingerprint of the offer ‖ of the answer)
with the word ``hello`` or ``welcome``. The fingerprints are those of the texts that signalling carried: a signalling
server that puts itself between two daemons sees other fingerprints than they do, and no proof fits.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import NamedTuple

from rondevud.durable.frames import Hello, Refuse, RefuseCode
from rondevud.records import SessionRecord


class Fingerprints(NamedTuple):
    """SHA-256 certificate fingerprints of one WebRTC connection, 32 bytes each."""

    offer: bytes
    answer: bytes


def prove(word: str, token: bytes, session: bytes, link: int, fingerprints: Fingerprints) -> bytes:
    """The proof that whoever says `word` (``hello`` or ``welcome``) on this link knows the token."""
    message = word.encode() + session + link.to_bytes(8, "big") + fingerprints.offer + fingerprints.answer
    return hmac.digest(token, message, hashlib.sha256)


def is_proof(proof: bytes | None, word: str, record: SessionRecord, link: int, fingerprints: Fingerprints) -> bool:
    """Whether `proof` is the right one, compared in constant time."""
    wanted = prove(word, record.token, record.session, link, fingerprints)
    return proof is not None and hmac.compare_digest(proof, wanted)


def judge_hello(hello: Hello, known: SessionRecord | None, fingerprints: Fingerprints) -> Refuse | None:
    """What speaks against a hello; None = it may have (or make) the session.

    `known` is the session of that name as the service has it, None when it has none: then only a hello that brings its
    token can be taken, as a new session.
    """
    if known is None or known.closed:
        return None if hello.token and known is None else _unknown()
    if hello.token is not None:
        genuine = hmac.compare_digest(hello.token, known.token)
    else:
        genuine = is_proof(hello.proof, "hello", known, hello.link, fingerprints)
    if not genuine:
        return _unknown()
    if hello.link <= known.link:
        return Refuse(RefuseCode.OLDER_LINK, "a later link of this session has been seen", known.link)
    return None


def _unknown() -> Refuse:
    return Refuse(RefuseCode.UNKNOWN_SESSION, "no such session here", 0)
