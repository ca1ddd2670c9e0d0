"""Seeded broken input: values, msgpack, texts and bytes, from nothing or by damaging what is good.

Every case has chance of its own, made of the seed and the case's number, so that one case can be repeated alone:
``RONDEVUD_FUZZ=SEED:NUMBER`` lets every fuzzer run just that one; ``RONDEVUD_FUZZ=SEED`` runs all with another seed. What
fails carries both, and the last inputs, in its notes.

A long run can be done in parts: ``RONDEVUD_FUZZ_FIRST=NUMBER`` begins with that case, and ``RONDEVUD_FUZZ_CASES=AMOUNT``
says how many inputs (not cases: most fuzzers make one case of some) there are to be, instead of 20,000 or 1,000,000. A
long run says on standard output (``pytest -s``), each twentieth of its way, with which case the next part would begin.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import struct
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import msgpack
import pytest

AMOUNT = os.environ.get("RONDEVUD_FUZZ_CASES")
CASES = int(AMOUNT or 20_000)
"""Broken inputs of each fuzzer in CI."""

SOAK_CASES = int(AMOUNT or 1_000_000)
"""The same in the long run."""

FIRST = int(os.environ.get("RONDEVUD_FUZZ_FIRST", "0"))
"""Number of the first case."""

REPORTED_FROM = 10_000
"""Cases of a run that says how far it is."""

AMOUNTS = [
    pytest.param(CASES, id="ci", marks=[pytest.mark.timeout(600)]),
    pytest.param(SOAK_CASES, id="long", marks=[pytest.mark.soak, pytest.mark.timeout(6 * 3600)]),
]
"""Both, for the tests."""

DEFAULT_SEED = 5
SHOWN = 400
"""Bytes of an input that are shown when it has broken something."""

NUMBERS = (
    *(0, 1, -1, 2, 7, 31, 64, 127, 128, 255, 256, 65_535, 65_536, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53),
    *(2**62, 2**63 - 1, 2**63, 2**64 - 1, -(2**31), -(2**63)),
)
FLOATS = (0.0, -0.0, 0.5, 1e-308, 1e308, -1.5, float("inf"), float("-inf"), float("nan"))
TEXTS = (
    "",
    "a",
    "0",
    " ",
    "\0",
    "\n",
    "\r\n",
    "é",
    "𝄞",
    "\u202e",
    "null",
    "../..",
    "%00",
    "%",
    "'",
    '"',
    "<",
    "a" * 255,
    "x" * 300,
)
CHARACTERS = (*map(chr, range(32, 127)), *map(chr, range(32, 127)), *map(chr, range(256)))
"""Of which texts are made by chance."""

SIZES = (1, 2, 7, 8, 9, 16, 31, 32, 33, 64, 255, 256, 1_000)


class Raw(bytes):
    """Bytes that `pack` writes as they are, in the place of a value."""


class Entries(list):
    """A map as a list of (key, value): keys may be twice, or of any kind."""


def pack(value: Any) -> bytes:
    """msgpack; also what no packer writes: `Raw` and `Entries`."""
    try:
        whole: bytes = msgpack.packb(value, strict_types=True, default=_special)
    except (_Special, OverflowError):
        return _pack_by_parts(value)
    return whole


class _Special(Exception):
    """A value holds what the packer does not write."""


def _special(_value: Any) -> Any:
    raise _Special


def _pack_by_parts(value: Any) -> bytes:
    if isinstance(value, Raw):
        return bytes(value)
    if isinstance(value, dict):
        value = Entries(value.items())
    if isinstance(value, Entries):
        return _header(0x80, 0xDE, len(value)) + b"".join(pack(key) + pack(each) for key, each in value)
    if isinstance(value, list | tuple):
        return _header(0x90, 0xDC, len(value)) + b"".join(map(pack, value))
    if type(value) is int and not -(2**63) <= value < 2**64:
        value %= 2**64
    packed: bytes = msgpack.packb(value)
    return packed


def _header(short: int, long: int, length: int) -> bytes:
    if length < 16:
        return bytes([short | length])
    return struct.pack(">BH", long, length) if length < 65_536 else struct.pack(">BI", long + 1, length)


class Chance(Random):
    """What is drawn most often, three times as fast. How even that is does not matter here."""

    def choice(self, seq: Any) -> Any:
        return seq[int(self.random() * len(seq))]

    def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
        if step != 1 or (stop or start) > 2**32:
            return super().randrange(start, stop, step)
        return int(self.random() * start) if stop is None else start + int(self.random() * (stop - start))


class Case:
    """One case: its chance, and what has been fed so far."""

    def __init__(self, seed: int, number: int, turn: int = 0) -> None:
        self.seed, self.number = seed, number
        self.turn = turn
        """How many cases of this run came before it."""
        self.random = Chance(seed << 32 | number)
        self.inputs: deque[Any] = deque(maxlen=8)
        """The last ones."""

    def feed(self, data: Any) -> Any:
        """Remember an input that is about to be given to what is tested."""
        self.inputs.append(data)
        return data

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    # --- values ----------------------------------------------------------------------------------------------------

    def value(self, depth: int = 3) -> Any:
        """Any value of msgpack and JSON, edges first."""
        random = self.random
        kind = random.randrange(12 if depth > 0 else 8)
        if kind < 2:
            return random.choice((None, True, False))
        if kind < 4:
            return random.choice(NUMBERS) if self.chance(0.7) else random.randrange(2 ** random.randrange(1, 65))
        if kind == 4:
            return random.choice(FLOATS)
        if kind < 7:
            return self.text()
        if kind == 7:
            return random.randbytes(random.choice(SIZES))
        if kind < 10:
            return [self.value(depth - 1) for _ in range(random.randrange(5))]
        return {self.key(): self.value(depth - 1) for _ in range(random.randrange(5))}

    def key(self) -> Any:
        return self.text() if self.chance(0.8) else self.random.choice((None, True, 0, -1, 0.5, b"key"))

    def text(self) -> str:
        random = self.random
        if self.chance(0.6):
            return random.choice(TEXTS)
        return "".join(random.choices(CHARACTERS, k=random.randrange(40)))

    def damage(self, value: Any) -> Any:
        """`value` with one place of it changed, or more."""
        for _ in range(self.random.choice((1, 1, 1, 2, 4))):
            value = self._damage_one(value)
        return value

    def _damage_one(self, value: Any) -> Any:
        random = self.random
        if isinstance(value, dict) and value and self.chance(0.85):
            return self._damage_map(dict(value))
        if isinstance(value, Entries | tuple):
            value = list(value)
        if isinstance(value, list) and value and self.chance(0.9):
            return self._damage_list(list(value))
        if isinstance(value, bool) or value is None:
            return self.value(1)
        if isinstance(value, int) and self.chance(0.7):
            return value + random.choice((-1, 1, 1_000, -1_000, 2**32, 2**63 - value, -value, -2 * value))
        if isinstance(value, str) and self.chance(0.6):
            return self.damage_text(value)
        if isinstance(value, bytes) and self.chance(0.6):
            return self.scramble(value)
        return self.value(2)

    def _damage_map(self, value: dict[Any, Any]) -> Any:
        random = self.random
        key = random.choice(list(value))
        what = random.randrange(8)
        if what < 4:
            value[key] = self._damage_one(value[key])
        elif what == 4:
            del value[key]
        elif what == 5:
            value[self.key()] = self.value(2)
        elif what == 6:
            return Entries([*value.items(), (key, self.value(1))])
        else:
            return Entries([*value.items(), (random.choice(([], {}, [1], {"a": 1})), 1)])
        return value

    def _damage_list(self, value: list[Any]) -> list[Any]:
        random = self.random
        place = random.randrange(len(value))
        what = random.randrange(10)
        if what < 6:
            value[place] = self._damage_one(value[place])
        elif what == 6:
            del value[place]
        elif what == 7:
            value.insert(place, self.value(2))
        elif what == 8:
            value[place] = value[random.randrange(len(value))]
        else:
            value = value[:place]
        return value

    def json(self, value: Any) -> bytes:
        """JSON of a value, sometimes not quite: names twice, numbers that nothing holds, half characters, depths."""
        random = self.random
        text = json.dumps(value, default=repr, skipkeys=True, ensure_ascii=self.chance(0.7))
        what = random.randrange(12)
        if what == 0:
            text = self._put_into(text, random.choice(("1e999", "9" * 400, "-" + "9" * 400, "9" * 5_000, "NaN", "-0")))
        elif what == 1:
            text = text.replace('"', '"\\ud800', random.choice((1, 3)))
        elif what == 2:
            depth = random.choice((20, 900, 1_200, 50_000))
            text = self._put_into(text, "[" * depth + "]" * depth)
        elif what == 3:
            text = self._put_into(text, '{"a":' * 950 + "1" + "}" * 950)
        data = text.encode("utf-8", "surrogatepass")
        return self.scramble(data) if self.chance(0.1) else data

    def _put_into(self, text: str, value: str) -> str:
        """JSON with `value` in the place of one of the values of its maps, which goes on under another name."""
        places = [found.end() for found in re.finditer(r'": ', text)]
        place = self.random.choice(places) if places else len(text)
        return f'{text[:place]}{value}, "more": {text[place:]}'

    # --- bytes and texts -------------------------------------------------------------------------------------------

    def scramble(self, data: bytes) -> bytes:
        """Flipped bits, bytes that are missing, doubled, moved or foreign."""
        random, out = self.random, bytearray(data)
        for _ in range(random.choice((1, 1, 2, 3, 8))):
            place = random.randrange(len(out) + 1)
            what = random.randrange(7)
            if what < 2 and place < len(out):
                out[place] ^= 1 << random.randrange(8)
            elif what == 2 and place < len(out):
                out[place] = random.choice((0x00, 0x7F, 0x80, 0xC1, 0xFF, 0x0A, 0x0D, random.randrange(256)))
            elif what == 3:
                del out[place : place + random.choice((1, 1, 4, 64))]
            elif what == 4:
                out[place:place] = random.randbytes(random.choice((1, 2, 8)))
            elif what == 5:
                out[place:place] = out[max(0, place - random.choice((1, 8, 64))) : place]
            else:
                del out[place:]
        return bytes(out)

    def damage_text(self, text: str) -> str:
        """The same with characters."""
        random = self.random
        for _ in range(random.choice((1, 1, 2, 4))):
            place = random.randrange(len(text) + 1)
            what = random.randrange(6)
            if what == 0:
                text = text[:place] + self.text() + text[place:]
            elif what == 1:
                text = text[:place]
            elif what == 2:
                text = text[:place] + text[place + random.choice((1, 2, 16)) :]
            elif what == 3:
                text = text[:place] + text[max(0, place - random.choice((1, 8, 100))) :]
            elif what == 4:
                text = text[:place] + chr(random.choice((0, 9, 10, 13, 32, 0x7F, 0x661, 0xFEFF, 0x2028))) + text[place:]
            else:
                text = _NUMBER.sub(lambda found: str(self._other_number(found[0])), text, count=random.choice((1, 0)))
        return text

    def _other_number(self, text: str) -> int | str:
        return self.random.choice(NUMBERS) if self.chance(0.3) else text

    def damage_lines(self, text: str) -> str:
        """A text of lines: lines missing, doubled, moved, changed, with other ends."""
        random = self.random
        lines = text.split("\r\n")
        for _ in range(random.choice((1, 1, 2, 3, 6))):
            place = random.randrange(len(lines))
            what = random.randrange(7)
            if what < 3:
                lines[place] = self.damage_text(lines[place])
            elif what == 3 and len(lines) > 1:
                del lines[place]
            elif what == 4:
                lines.insert(place, random.choice(lines))
            elif what == 5:
                lines.insert(place, self.text())
            else:
                lines[place:] = [lines[place]] * random.choice((2, 3, 50)) + lines[place:]
        return random.choice(("\r\n", "\r\n", "\r\n", "\n", "\r")).join(lines)

    def broken_msgpack(self) -> bytes:
        """Bytes that are hard on a reader of msgpack, or just noise."""
        random = self.random
        what = random.randrange(7)
        if what == 0:
            return random.randbytes(random.choice(SIZES))
        if what == 1:  # a length that nothing follows
            return bytes([random.choice((0xDB, 0xC6, 0xDD, 0xDF, 0xC9))]) + random.randbytes(4) + b"\x00"
        if what == 2:
            return b"\x91" * random.choice((10, 100, 512, 1_024, 20_000)) + b"\xc0"
        if what == 3:
            return b"\x81\xa1a" * random.choice((10, 600, 5_000)) + b"\xc0"
        if what == 4:  # an extension type, timestamps among them
            size = random.choice((1, 2, 4, 8, 16, 12))
            return pack(
                [
                    random.randrange(13),
                    Raw(bytes([0xC7, size, random.choice((0, 1, 0xFF, 0x80))]) + random.randbytes(size)),
                ]
            )
        if what == 5:
            return pack([random.randrange(13), Raw(b"\xa2\xff\xfe"), self.value(1)])
        return b"\xc1"


_NUMBER = re.compile(r"\d+")


def cases(count: int) -> Iterator[Case]:
    """The cases of a fuzzer: use each one inside `replayable`."""
    seed, _, number = os.environ.get("RONDEVUD_FUZZ", str(DEFAULT_SEED)).partition(":")
    if number:
        yield Case(int(seed), int(number))
        return
    for turn in range(count):
        if count >= REPORTED_FROM and turn % (count // 20) == 0:
            print(f"{time.strftime('%H:%M:%S')} {turn} of {count} cases; next: {FIRST + turn}", flush=True)
        yield Case(int(seed), FIRST + turn, turn)


@contextlib.contextmanager
def replayable(case: Case) -> Iterator[None]:
    """What fails inside says which case it was, and what it was fed last."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"RONDEVUD_FUZZ={case.seed}:{case.number} repeats it. The last inputs, the newest at the end:")
        for data in case.inputs:
            shown = data.hex() if isinstance(data, bytes) else repr(data)
            error.add_note(f"  {shown[:SHOWN]}{f' … ({len(shown)})' if len(shown) > SHOWN else ''}")
        raise


def resident_bytes() -> int:
    """Memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
