"""What a bad peer says on a link: frames that fit what was said before, and damaged ones."""

from __future__ import annotations

from typing import Any

from rondevud.durable import frames
from rondevud.durable.handshake import prove
from rondevud.errors import PeerError
from tests.fuzz.link_peers import PRINTS
from tests.fuzz.mutator import Case, Raw, pack

LABELS = ("main", "main", "main", "other", "third", "é", "rondevu", "rondevu.link", "x" * 255)
REASONS = ("expired", "overflow", "purged", "too_large", "damaged", "lost", "restart")
GOODBYES = ("closing", "restarting", "superseded", "timeout", "protocol")
REFUSALS = ("unknown_session", "older_link", "denied", "too_many", "try_later")

DAMAGED = 0.4
"""Share of the frames that are damaged."""


class BadPeer:
    """One end of a link that says what it wants, and remembers what would be right."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.session, self.token = case.random.randbytes(16), case.random.randbytes(32)
        self.link = 1_000
        self.welcomed = False
        self.epochs: dict[str, bytes] = {}
        self.next: dict[str, int] = {}
        self.theirs: dict[str, tuple[bytes, int]] = {}
        """By label: epoch and the number behind the last one, as far as the other side has said them."""
        self.refused = False
        """Whether it has refused a hello: that ends a link, and needs no answer."""
        self._large: tuple[str, int, bytes, int] | None = None

    # --- heard -----------------------------------------------------------------------------------------------------

    def hear(self, message: Any) -> frames.Frame:
        """What the daemon says must be understood: raises `PeerError` where it is not."""
        frame = frames.decode(message)
        match frame:
            case frames.Welcome():
                self.welcomed = True
            case frames.Hello():
                self.session, self.link = frame.session, frame.link
                self.token = frame.token or self.token
            case frames.Channel():
                self.theirs[frame.label] = (frame.epoch, self.theirs.get(frame.label, (b"", 0))[1])
            case frames.Data():
                self.theirs[frame.label] = (self.theirs.get(frame.label, (b"", 0))[0], frame.seq + len(frame.payloads))
            case _:
                pass
        return frame

    # --- said ------------------------------------------------------------------------------------------------------

    def hello(self, *, again: bool = False) -> bytes | str:
        """A hello, right or damaged; `again`: with a proof, under a higher number."""
        self.link += 1
        facts: dict[str, Any] = {"session": self.session, "link": self.link, "name": "bad", "daemon": "fuzz"}
        if again:
            facts["proof"] = prove("hello", self.token, self.session, self.link, PRINTS)
        else:
            facts["token"] = self.token
        return self._say([0, facts | {"max_message": 100_000, "heartbeat": 1}], 0.25)

    def welcome(self) -> bytes | str:
        facts = {"resumed": False, "link": self.link, "daemon": "fuzz", "max_message": 100_000, "heartbeat": 1}
        if self.case.chance(0.2):
            return self._say(self._refuse(), 0.3)
        return self._say([1, facts], 0.25)

    def next_frame(self) -> bytes | str:
        """Something for a link that is up, or would be."""
        case = self.case
        if case.chance(0.06):
            return case.broken_msgpack()
        if case.chance(0.01):
            return "text"
        label = case.random.choice(LABELS)
        kind = case.random.choices(
            (self._channel, self._data, self._piece, self._ack, self._skip, self._other), (3, 8, 4, 3, 2, 1)
        )[0]
        return self._say(kind(label), DAMAGED)

    def _say(self, array: Any, damaged: float) -> bytes:
        if not self.case.chance(damaged):
            return pack(array)
        if self.case.chance(0.3):
            return self.case.scramble(pack(array))
        return pack(self.case.damage(array))

    def _channel(self, label: str) -> Any:
        random = self.case.random
        epoch = self.epochs.setdefault(label, random.randbytes(8))
        if self.case.chance(0.05):
            epoch = self.epochs[label] = random.randbytes(8)
            self.next.pop(label, None)
        if self.case.chance(0.08):
            return [8, label, {"ordered": False, "max_retransmits": random.choice((0, 3, 65_535))}]
        known, behind = self.theirs.get(label, (b"", 0))
        facts = {
            "epoch": epoch,
            "room": random.choice((0, 1, 4 << 20)),
            "durability": random.choice(("disk", "memory")),
        }
        if known:
            facts["peer_epoch"] = known
        if behind and self.case.chance(0.7):
            facts |= {"recv_next": behind, "recv_count": behind}
        return [8, label, facts]

    def _data(self, label: str) -> Any:
        payloads = [self._payload() for _ in range(self.case.random.choice((1, 1, 2, 5, 40)))]
        seq = self.next.get(label, self.case.random.choice((1, 1_000, 2**62)))
        self.next[label] = seq + len(payloads)
        return [9, label, seq, payloads]

    def _payload(self) -> Any:
        if self.case.chance(0.01):
            return None
        payload = self.case.random.choice(("", "text", b"", b"binary" * 10, "é" * 10, None))
        return self.case.random.randbytes(self.case.random.choice((1, 100, 1_000))) if payload is None else payload

    def _piece(self, label: str) -> Any:
        if self._large is None:
            seq = self.next.get(label, 1)
            self._large = (label, seq, self.case.random.randbytes(self.case.random.choice((40, 1_000, 60_000))), 0)
        label, seq, data, offset = self._large
        chunk = data[offset : offset + self.case.random.choice((1, 20, 16_384))]
        offset += len(chunk)
        self._large = (label, seq, data, offset) if offset < len(data) else None
        if self._large is None:
            self.next[label] = seq + 1
        return [10, label, seq, offset - len(chunk), len(data), self.case.chance(0.2), chunk]

    def _ack(self, label: str) -> Any:
        behind = self.theirs.get(label, (b"", 0))[1]
        return [11, label, behind, self.case.random.choice((0, 100, 4 << 20))]

    def _skip(self, label: str) -> Any:
        self.next[label] = self.next.get(label, 1) + self.case.random.choice((1, 10, 10**6))
        return [
            12,
            label,
            self.next[label],
            self.case.random.choice(REASONS),
            self.case.random.choice((None, 0, 1, 10)),
        ]

    def _refuse(self) -> Any:
        self.refused = True
        random = self.case.random
        return [2, random.choice(REFUSALS), "no", random.choice((None, 0, self.link, self.link + 1))]

    def _other(self, _label: str) -> Any:
        random = self.case.random
        return random.choice(
            (
                [3, random.randrange(10)],
                [4, random.randrange(10)],
                [5, random.choice(GOODBYES), "bye"],
                self._refuse(),
                [1, {"resumed": True, "link": self.link, "max_message": 1, "heartbeat": 1e-9}],
                [
                    0,
                    {"session": self.session, "link": self.link, "token": self.token, "max_message": 1, "heartbeat": 1},
                ],
                [random.randrange(-1, 20), self.case.value(2)],
                [9, "main", 1, Raw(b"\xdd\x7f\xff\xff\xff")],
            )
        )


def understood(peer: BadPeer, messages: list[Any]) -> list[frames.Frame]:
    """The frames that the daemon said; one that is not understood is a fault of the daemon."""
    heard = []
    for message in messages:
        try:
            heard.append(peer.hear(message))
        except PeerError as error:
            raise AssertionError(f"the daemon said what is no frame: {error}: {message!r:.200}") from error
    return heard
