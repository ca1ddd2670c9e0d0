"""Bearer credentials that need no storage: the secret is the peer id, encrypted under the server's own key. Sans-I/O."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
import uuid

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from rondevud.rendezvous.checks import Refusal, decode_base64

IV_LENGTH = 12


class Credentials:
    """Gives and checks peer credentials under one key of 32 bytes (`ValueError` for another length)."""

    def __init__(self, key: bytes) -> None:
        if len(key) != 32:
            raise ValueError(f"the authentication secret has {len(key)} bytes instead of 32")
        self._key = key
        self._cipher = AESGCM(key)

    def new_peer(self) -> tuple[str, str]:
        """A peer id (32 hex digits) and its secret: base64 of IV, AES-256-GCM ciphertext of the id, and tag."""
        peer_id = secrets.token_hex(16)
        iv = os.urandom(IV_LENGTH)
        return peer_id, base64.b64encode(iv + self._cipher.encrypt(iv, peer_id.encode(), None)).decode()

    def authenticate(self, header: str | None) -> str:
        """The peer id in an ``Authorization`` header. Raises `Refusal` (401)."""
        if not header:
            raise Refusal(401, "Missing Authorization header")
        words = header.split(" ")
        if len(words) != 2 or words[0] != "Bearer":
            raise Refusal(401, "Invalid Authorization header format. Expected: Bearer {peerId}:{secret}")
        parts = words[1].split(":")
        if len(parts) != 2:
            raise Refusal(401, "Invalid credentials format. Expected: {peerId}:{secret}")
        peer_id, secret = parts
        if not peer_id or not self._belongs(peer_id, secret):
            raise Refusal(401, "Invalid credentials")
        return peer_id

    def _belongs(self, peer_id: str, secret: str) -> bool:
        try:
            sealed = decode_base64(secret)
            decrypted = self._cipher.decrypt(sealed[:IV_LENGTH], sealed[IV_LENGTH:], None)
            return hmac.compare_digest(decrypted, peer_id.encode())
        except (ValueError, InvalidTag):  # among them UnicodeEncodeError: header bytes that are no UTF-8
            return False

    def service_uuid(self, username: str, fqn: str) -> str:
        """The public UUID of a service: always the same one, and nobody without the key can guess it."""
        text = f"service uuid\0{username}\0{fqn}".encode()
        return str(uuid.UUID(bytes=hmac.digest(self._key, text, hashlib.sha256)[:16], version=4))
